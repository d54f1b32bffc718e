# SPDX-License-Identifier: Apache-2.0
"""Tables of a party's two SQLite files (`osmotic.runtime.storage.ledger` says what lies in which, and how long)."""

RUN_TABLES = """
CREATE TABLE IF NOT EXISTS main.meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS main.crossings (
  seq INTEGER PRIMARY KEY, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS main.crossed (edge TEXT NOT NULL, digest TEXT NOT NULL, direction TEXT NOT NULL, label TEXT NOT NULL,
  PRIMARY KEY (edge, direction));
CREATE TABLE IF NOT EXISTS main.heads (party TEXT NOT NULL, chain TEXT NOT NULL, head TEXT NOT NULL, time TEXT NOT NULL,
  PRIMARY KEY (party, chain, head)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS main.tasks (key TEXT PRIMARY KEY, outputs TEXT NOT NULL, seconds REAL NOT NULL);
CREATE TABLE IF NOT EXISTS main.instances (id TEXT PRIMARY KEY, key TEXT NOT NULL, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS main.journal (task TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL,
  PRIMARY KEY (task, name, key)) WITHOUT ROWID;
"""
VAULT_TABLES = """
CREATE TABLE IF NOT EXISTS vault.meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vault.releases (
  lookup TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE, dataset TEXT NOT NULL, document TEXT NOT NULL,
  payload TEXT NOT NULL, parameters TEXT NOT NULL, epsilon REAL NOT NULL, class TEXT NOT NULL, other TEXT NOT NULL,
  symbols TEXT NOT NULL, task TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS vault.releases_document ON releases (dataset, document);
CREATE INDEX IF NOT EXISTS vault.releases_parameters ON releases (parameters);
CREATE TABLE IF NOT EXISTS vault.release_sets (
  ref TEXT PRIMARY KEY, digest TEXT NOT NULL, dataset TEXT NOT NULL, parameters TEXT NOT NULL, class TEXT NOT NULL,
  epsilon REAL NOT NULL, detail TEXT NOT NULL, void TEXT NOT NULL, documents INTEGER NOT NULL, other TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vault.events (
  lookup TEXT PRIMARY KEY, dataset TEXT NOT NULL, class TEXT NOT NULL, event TEXT NOT NULL, payload TEXT NOT NULL,
  task TEXT NOT NULL, void TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vault.members (
  ref TEXT NOT NULL, lookup TEXT NOT NULL, PRIMARY KEY (ref, lookup)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS vault.charges (
  seq INTEGER PRIMARY KEY, body TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS vault.blinds (lookup TEXT PRIMARY KEY, id TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS vault.cards (key TEXT PRIMARY KEY, body TEXT NOT NULL);
"""

# SPDX-License-Identifier: Apache-2.0
"""Releases: the only way from private to protected. Look up, draw, charge and store together, then answer.

Each document's release is kept for good under HMAC(key; data set, id, content, mechanism with parameters and table), so the
same document under the same mechanism costs its budget once, ever. Long work is stored in chunks, each charged and stored in
one transaction, and a chunk that is there is not drawn again after a kill; a set leaves only when it is whole. Noise and random
ids come from the operating system; a seed (tests) is part of the look-up key and voids the guarantee. Released order is that of
the random ids: random.
"""

import hashlib
import json
import math
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Guarantee, Mechanism, Records
from osmotic.plugins.exact import bernoulli
from osmotic.plugins.host import Registry
from osmotic.runtime.privacy.charging import Costs, check_cap, check_costs, columns_of, costs_of
from osmotic.runtime.privacy.drawing import Row, draw, encode_rows, entropy_of, random_id, random_ids
from osmotic.runtime.privacy.preparing import Models, Prepared, Preparer, Progress
from osmotic.runtime.storage.ledger import Ledger, now
from osmotic.schemas.artifacts import canonical, digest_of, json_text
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.records import RecordSchema

CHUNK = 1000  # documents a transaction
MOST_FEEDBACK = 30.0  # epsilon of a bit
Outcome = tuple[dict[str, str], Costs, list[int]]  # payload, costs, symbols a field


@dataclass(frozen=True)
class Made:
    """A set of releases as registered: its reference, and the digest of the very bytes."""

    ref: str
    digest: str


@dataclass(frozen=True)
class Held:
    """A stored release. payload: canonical JSON, or not yet that; lookup and document: hashes under the party's key."""

    lookup: str
    document: str
    identity: str
    payload: str | dict[str, str]
    costs: Costs
    symbols: list[int]


@dataclass
class Work:
    """What is to be released, under which identity. draw(start, rows): outcomes of rows[start:], which begin there."""

    prepared: Prepared
    dataset: str
    seed: int | None
    task: str
    progress: Progress
    draw: Callable[[int, list[Row]], list[Outcome]]
    more: tuple[Any, ...] = ()  # what tells a seeded draw's random ids apart

    @property
    def void(self) -> str:
        """What voids the guarantee."""
        return "" if self.seed is None else "seeded"


class Releaser:
    """Releases records of one party. One object a site."""

    def __init__(self, ledger: Ledger, registry: Registry, policy: SitePolicy) -> None:
        self.ledger, self.registry, self.policy = ledger, registry, policy
        self.preparer = Preparer(ledger, registry, policy)

    def prepare(
        self, mechanism: Mapping[str, Any], fields: Sequence[str], schema: RecordSchema, base: Path, certified: bool,
        models: Models | None = None, progress: Progress = lambda done, total, note: None,
    ) -> Prepared:  # fmt: skip
        """Build the mechanisms and check the policy; see `Preparer.prepare`."""
        return self.preparer.prepare(mechanism, fields, schema, base, certified, models, progress)

    def release(
        self, records: Records, prepared: Prepared, dataset: str, noise_seed: int | None, *, attempt: int = 1,
        task: str = "", progress: Progress = lambda done, total, note: None,
    ) -> tuple[Records, Records, Made]:  # fmt: skip
        """(released, key, the registered set): see `Context.release`. Everything is durable when this returns."""
        wanted = self._identify(records, prepared, dataset, noise_seed, attempt)
        with self.ledger.snapshot():  # what is found and what was spent belong to one moment, whoever else is releasing
            found = self._found(prepared.parameters, list(dict(wanted)))
            new = {pair[0]: row for row, pair in zip(records, wanted, strict=True) if pair[0] not in found}
            rows = list(new.values())
            encoded = encode_rows(rows, prepared)
            asked: dict[str, list[Costs]] = {}
            documents = dict(wanted)
            for i, lookup in enumerate(new):
                costs = prepared.costs(encoded.counts(i)) if encoded is not None else prepared.costs(())
                asked.setdefault(documents[lookup], []).append(costs)
            with self.ledger.reading() as db:
                check_costs(db, self.policy, dataset, asked)
        more = () if attempt == 1 else (attempt,)
        stream = None if noise_seed is None else (noise_seed, dataset, *more)
        work = Work(
            prepared,
            dataset,
            noise_seed,
            task,
            progress,
            lambda start, some: draw(some, prepared, encoded, start, stream),
            more,
        )
        made = self._all(records, wanted, found, rows, work)
        if self.policy.threads > 1 and noise_seed is None:
            complete_lists(prepared.mechanisms)
        return made

    def feedback(
        self, records: Records, bits: Mapping[str, bool], epsilon: float, dataset: str, noise_seed: int | None, *,
        question: str, task: str = "",
    ) -> tuple[Records, Records, Made]:  # fmt: skip
        """One bit a document through randomised response; see `Context.feedback`. question: what is asked, public.

        The same question of the same document is answered from what is stored: it costs once.
        """
        if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 < epsilon <= MOST_FEEDBACK:
            what = f"epsilon must be a number above 0, at most {MOST_FEEDBACK:g}"
            raise ConfigError(Problem(what, path="epsilon", why=f"got {epsilon!r}"))
        claim = Guarantee(mechanism_class="certified", epsilon=float(epsilon), unit="document")
        parameters = fingerprint(["feedback", question, float(epsilon)])
        words = f"a feedback bit, epsilon {epsilon:g}"
        prepared = Prepared("feedback", ("bit",), [], [claim], ["epsilon"], [False], parameters, "", [], words=words)
        hashed = self.ledger.secret_hash
        wanted = [
            (hashed(["feedback", dataset, row["id"], parameters, noise_seed]), hashed(["document", dataset, row["id"]]))
            for row in records
        ]
        documents = dict(wanted)
        with self.ledger.snapshot():
            found = self._found(parameters, list(documents))
            new = {pair[0]: row for row, pair in zip(records, wanted, strict=True) if pair[0] not in found}
            with self.ledger.reading() as db:
                check_costs(db, self.policy, dataset, {documents[k]: [{"epsilon": float(epsilon)}] for k in new})
        lie = 1 / (1 + math.exp(epsilon))  # drawn exactly, however small: 1 - lie would round to 1

        def answer(start: int, some: list[Row]) -> list[Outcome]:
            if noise_seed is None:
                lies = bernoulli(lie, len(some), entropy_of(None)).tolist()
            else:
                lies = [bool(bernoulli(lie, 1, entropy_of(noise_seed, dataset, r["id"], parameters))[0]) for r in some]
            said = [bool(bits[row["id"]]) != lied for row, lied in zip(some, lies, strict=True)]
            return [({"bit": "yes" if one else "no"}, {"epsilon": float(epsilon)}, [1]) for one in said]

        work = Work(prepared, dataset, noise_seed, task, lambda done, total, note: None, answer)
        return self._all(records, wanted, found, list(new.values()), work)

    def blind(self, records: Records, fields: Sequence[str], dataset: str, noise_seed: int | None) -> tuple[Records, Records]:
        """Fresh random ids and order, values unchanged: nothing is protected, but ids do not cross."""
        blinded, key = [], []
        with self.ledger.transaction() as db:
            for row in records:
                lookup = self.ledger.secret_hash(["blind", dataset, row["id"], noise_seed])
                stored = db.execute("SELECT id FROM blinds WHERE lookup=?", (lookup,)).fetchone()
                identity = stored[0] if stored else random_id(noise_seed, "blind", dataset, row["id"])
                if not stored:
                    db.execute("INSERT INTO blinds VALUES (?,?)", (lookup, identity))
                blinded.append({"id": identity, **{f: row[f] for f in fields}})
                key.append({"released": identity, "id": row["id"]})
        return Records(sorted(blinded, key=lambda r: r["id"])), Records(sorted(key, key=lambda r: r["released"]))

    def known_ids(self, ids: Sequence[str]) -> bool:
        """Whether every id is one of this party's random ids."""
        wanted = list(dict.fromkeys(ids))
        for start in range(0, len(wanted), CHUNK):
            some = wanted[start : start + CHUNK]
            marks = ",".join("?" * len(some))
            sql = f"SELECT id FROM releases WHERE id IN ({marks}) UNION SELECT id FROM blinds WHERE id IN ({marks})"
            if len(self.ledger.query(sql, (*some, *some))) < len(some):
                return False
        return True

    def documents_of(self, ids: Sequence[str], dataset: str) -> dict[str, str]:
        """Released id -> document hash, of the releases of a data set."""
        found: dict[str, str] = {}
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            sql = f"SELECT id, document FROM releases WHERE dataset=? AND id IN ({','.join('?' * len(some))})"
            found.update(self.ledger.query(sql, (dataset, *some)))
        return found

    # ---- one set ----

    def _identify(
        self, records: Records, prepared: Prepared, dataset: str, noise_seed: int | None, attempt: int
    ) -> list[tuple[str, str]]:
        """(lookup, document) of each row: keyed hashes of ["release", data set, id, content, parameters, seed] (and the attempt
        after the first) and of ["document", data set, id], as canonical JSON, put together from what all rows share."""
        hashed, name = self.ledger.keyed_hash, json_text(dataset)
        more = [prepared.parameters, noise_seed] if attempt == 1 else [prepared.parameters, noise_seed, attempt]
        end = f"],{canonical(more).decode()[1:]}"
        fields = [(field, f"[{json_text(field)},") for field in prepared.fields]
        pairs = []
        for row in records:
            identity = json_text(row["id"])
            content = ",".join(f"{start}{json_text(row[field])}]" for field, start in fields)
            lookup = hashed(f'["release",{name},{identity},[{content}{end}'.encode())
            pairs.append((lookup, hashed(f'["document",{name},{identity}]'.encode())))
        return pairs

    def _found(self, parameters: str, lookups: Sequence[str]) -> dict[str, Held]:
        """lookup -> release, of those of `lookups` that are stored."""
        if not self.ledger.query("SELECT 1 FROM releases WHERE parameters=? LIMIT 1", (parameters,)):
            return {}
        found: dict[str, Held] = {}
        for start in range(0, len(lookups), CHUNK):
            found |= self._stored(parameters, lookups[start : start + CHUNK])
        return found

    def _stored(self, parameters: str, lookups: Sequence[str]) -> dict[str, Held]:
        """lookup -> release, of those of a chunk's `lookups` that are stored."""
        sql = "SELECT lookup, document, id, payload, epsilon, other, symbols FROM releases WHERE +parameters=?"
        sql, values = f"{sql} AND lookup IN ({','.join('?' * len(lookups))})", (parameters, *lookups)
        return {
            lookup: Held(lookup, document, identity, payload, costs_of(epsilon, other), json.loads(symbols))
            for lookup, document, identity, payload, epsilon, other, symbols in self.ledger.query(sql, values)
        }

    def _all(
        self, records: Records, wanted: list[tuple[str, str]], found: dict[str, Held], rows: list[Row], work: Work
    ) -> tuple[Records, Records, Made]:
        """Draw and store the new rows chunk by chunk; with the last one, register the whole set."""
        check_cap(self.policy, work.dataset)
        pairs = [pair for pair in dict.fromkeys(wanted) if pair[0] not in found]
        starts = list(range(0, len(rows), CHUNK))
        for start in starts[:-1]:
            drawn = self._draw(start, rows[start : start + CHUNK], pairs[start : start + CHUNK], work)
            with self.ledger.transaction() as db:
                found |= self._store(db, drawn, work)
            work.progress(min(start + CHUNK, len(rows)), len(rows), "released")
        start = starts[-1] if starts else 0
        drawn = self._draw(start, rows[start:], pairs[start:], work)
        with self.ledger.transaction() as db:
            found |= self._store(db, drawn, work)
            released, key = _tables(records, wanted, found, work.prepared.fields)
            made = self._register(db, released, [found[lookup] for lookup in dict(wanted)], work)
        if rows:
            work.progress(len(rows), len(rows), "released")
        return released, key, made

    def _draw(self, start: int, rows: list[Row], pairs: list[tuple[str, str]], work: Work) -> list[Held]:
        """Releases of some documents, not yet stored."""
        drawn = []
        fields, parameters = work.prepared.fields, work.prepared.parameters
        outcomes = work.draw(start, rows) if rows else []
        fresh = random_ids(len(rows)) if work.seed is None else []
        for i, (row, (lookup, document), (payload, costs, symbols)) in enumerate(zip(rows, pairs, outcomes, strict=True)):
            if work.seed is None:
                identity = fresh[i]
            else:
                content = [row.get(f) for f in fields]
                identity = random_id(work.seed, "id", work.dataset, row["id"], parameters, content, *work.more)
            drawn.append(Held(lookup, document, identity, payload, costs, symbols))
        return drawn

    def _store(self, db: sqlite3.Connection, drawn: list[Held], work: Work) -> dict[str, Held]:
        """Charge and store what is new, under the caps (inside the transaction); what another process stored first stays."""
        there = self._stored(work.prepared.parameters, [one.lookup for one in drawn])
        fresh = [one for one in drawn if one.lookup not in there]
        asked: dict[str, list[Costs]] = {}
        for one in fresh:
            asked.setdefault(one.document, []).append(one.costs)
        check_costs(db, self.policy, work.dataset, asked)
        values, bodies, kind = [], [], work.prepared.mechanism_class
        charge = _charge(work, now())
        for one in fresh:
            epsilon, other = columns_of(one.costs)
            payload, symbols = canonical(one.payload), json.dumps(one.symbols)
            values.append(
                (one.lookup, one.identity, work.dataset, one.document, payload.decode(), work.prepared.parameters, epsilon,
                 kind, other, symbols, work.task)
            )  # fmt: skip
            bodies.append(charge(one, epsilon, other, hashlib.sha256(payload).hexdigest(), symbols.replace(" ", "")))
        self.ledger.append(db, "charges", *bodies)
        db.executemany(f"INSERT INTO releases VALUES ({','.join('?' * 11)})", values)
        return {one.lookup: one for one in fresh} | there

    def _register(self, db: sqlite3.Connection, result: Records, held: list[Held], work: Work) -> Made:
        """Remember the set that is about to be used, so that the membrane knows its bytes again."""
        prepared = work.prepared
        digest = digest_of(result.kind, result.to_files())
        ref = fingerprint([prepared.parameters, digest])
        most = [max(column) for column in zip(*(one.symbols for one in held), strict=True)] or [0] * len(prepared.fields)
        detail = prepared.detail(most, max((sum(one.symbols) for one in held), default=0))
        largest: Costs = {}
        for one in held:
            for unit, amount in one.costs.items():
                largest[unit] = max(largest.get(unit, 0.0), amount)
        epsilon, other = columns_of(largest)
        values = (ref, digest, work.dataset, prepared.parameters, prepared.mechanism_class, epsilon)
        db.execute(
            "INSERT OR REPLACE INTO release_sets VALUES (?,?,?,?,?,?,?,?,?,?)",
            (*values, detail, work.void, len(held), other),
        )
        db.executemany("INSERT OR IGNORE INTO members VALUES (?,?)", [(ref, one.lookup) for one in held])
        return Made(ref, digest)


def complete_lists(mechanisms: Sequence[Mechanism[Any]]) -> None:
    """Mechanisms that keep lists of a public table make the missing ones in the background: at sites of several threads."""
    for mechanism in mechanisms:
        one: Mechanism[Any] | None = mechanism
        while one is not None:
            complete = getattr(one, "complete_lists", None)
            if callable(complete):
                complete()
            one = one.inner


def _charge(work: Work, time: str) -> Callable[[Held, float, str, str, str], str]:
    """Writes the canonical JSON of a release's charge: what all charges of a set share is encoded once.

    The function takes the release, its epsilon, its other costs and symbols as JSON without spaces, the hash of its payload.
    """
    prepared, q = work.prepared, json_text
    head = f'{{"class":{q(prepared.mechanism_class)},"dataset":{q(work.dataset)},"document":"'
    named, shared = f',"mechanism":{q(prepared.name)},"other":', f',"parameters":{q(prepared.parameters)},"payload":"'
    tail = f',"task":{q(work.task)},"time":{q(time)},"unit":"document","void":{q(work.void)}}}'

    def body(one: Held, epsilon: float, other: str, payload: str, symbols: str) -> str:
        costs = other if other == "{}" else canonical(json.loads(other)).decode()
        return (
            f'{head}{one.document}","epsilon":{epsilon!r},"id":"{one.identity}"{named}{costs}{shared}{payload}",'
            f'"release":"{one.lookup}","symbols":{symbols}{tail}'
        )

    return body


def _tables(
    records: Records, wanted: list[tuple[str, str]], found: Mapping[str, Held], fields: Sequence[str]
) -> tuple[Records, Records]:
    """(released, key) in the order of the random ids; fields in the order asked for."""
    released, key = [], []
    for row, (lookup, _) in zip(records, wanted, strict=True):
        held = found[lookup]
        payload = json.loads(held.payload) if isinstance(held.payload, str) else held.payload
        released.append({"id": held.identity, **{field: payload[field] for field in fields}})
        key.append({"released": held.identity, "id": row["id"]})
    released.sort(key=lambda r: r["id"])
    key.sort(key=lambda r: r["released"])
    return Records(released, ["id", *fields]), Records(key, ["released", "id"])

# SPDX-License-Identifier: Apache-2.0
"""Look into the folder of a run afterwards: ledgers, transcripts, hashes; check that they hold together."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from osmotic.plugins.host import Registry
from osmotic.runtime.party.endpoints import ANSWER
from osmotic.runtime.party.site import Site
from osmotic.runtime.party.survivors import QUORUM
from osmotic.runtime.privacy.accounts import summary
from osmotic.runtime.privacy.charging import body_costs, costs_of
from osmotic.runtime.secure.received import SUM
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import Budget, SitePolicy

ELSEWHERE = "elsewhere"  # what a party's ledger remembers: parties of its runs that have their folders on other machines


def parties_of(home: Path) -> list[str]:
    """Names of the parties that ran in a folder; raises DataError when it is not the folder of a run."""
    folder = home / "parties"
    found = sorted(p.name for p in folder.iterdir() if (p / "run.sqlite").is_file()) if folder.is_dir() else []
    if not found:
        fix = "give the folder named with --home, e.g. osmotic-runs/fedcot"
        raise DataError(Problem("not the folder of a run", str(home), fix=fix))
    return found


def ledgers_of(home: Path, read: Callable[[Site], dict[str, Any]] = summary) -> list[dict[str, Any]]:
    """What each party has spent (`accounts.summary`), or what else is read from its ledger."""
    from osmotic.plugins.host import build_registry

    registry = build_registry(names=())
    found = []
    for party in parties_of(home):
        site = _site(party, home, registry)
        found.append(read(site))
        site.ledger.close()
    return found


def _site(party: str, home: Path, registry: Registry) -> Site:
    """The party with its budget caps as of its last run; nothing else of its policy is needed to read a ledger."""
    folder = home / "parties" / party
    ledger = Ledger(folder)
    try:
        caps, vault = json.loads(ledger.recall("caps") or "{}"), ledger.vault
    finally:
        ledger.close()
    given = {name: cap if isinstance(cap, dict) else {"per_document": cap} for name, cap in caps.items()}
    policy = SitePolicy(budget={name: Budget.model_validate(cap) for name, cap in given.items()})
    return Site(party, folder, policy, Path(), registry, vault=vault)


def summary_of(home: Path) -> dict[str, Any]:
    """The saved summary of the last finished run, with the ledgers as they are now."""
    file = home / "run.json"
    if not file.is_file():
        raise DataError(Problem("no run has finished here", str(home), fix="osmotic run PIPELINE --home ..."))
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(Problem("the saved summary is damaged", str(file), fix="run the pipeline again")) from error
    from osmotic.runtime.reporting.gather import books, installed

    return {**found, "ledger": ledgers_of(home, books), "lock": installed(home)}


def own_summary_of(home: Path, party: str) -> dict[str, Any]:
    """What a party saved for its own report; raises DataError when there is none."""
    file = home / "parties" / party / "results.json"
    if party not in parties_of(home) or not file.is_file():
        known = ", ".join(parties_of(home))
        raise DataError(Problem(f"there is no report of {party!r} here", str(home), fix=f"one of {known}, after a run"))
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def verify(home: Path) -> dict[str, Any]:
    """Chains, charges against releases and their sets, both ends of every crossing. {parties, problems, notes}.

    A party that a run says lives elsewhere has its ends of crossings there: a note says how many were not compared.
    """
    parties: list[dict[str, Any]] = []
    problems: list[str] = []
    notes: list[str] = []
    ends: dict[str, dict[str, set[tuple[str, bytes]]]] = {}
    present = set(parties_of(home))
    for party in sorted(present):
        ledger = Ledger(home / "parties" / party)
        with ledger.snapshot():
            found_here = ledger.chain_problems() + _charge_problems(ledger) + _set_problems(ledger) + _crossed_problems(ledger)
            found_here += _quorum_problems(ledger)
        problems += [f"{party}: {text}" for text in found_here]
        crossings = list(_bodies(ledger, "crossings"))
        away: dict[str, int] = {}
        for entry in crossings:
            if entry["to"] != "report" and entry["kind"] not in (ANSWER, SUM, QUORUM):
                sender = str(entry.get("from", party))
                away[sender] = away.get(sender, 0) + 1
                if sender in present:
                    sides = ends.setdefault(entry["edge"], {"in": set(), "out": set()})
                    sides[entry["direction"]].add((entry["digest"], canonical(entry["label"])))
        said, missing = _away(ledger, party, {sender: n for sender, n in away.items() if sender not in present})
        notes, problems = notes + said, problems + missing
        counts = ledger.query("SELECT COUNT(*) FROM charges")[0][0]
        heads = {table: ledger.head(table)[:12] for table in ("charges", "crossings")}
        parties.append({"party": party, "charges": counts, "crossings": len(crossings), "heads": heads})
        ledger.close()
    problems += _head_problems(home)
    for edge, found in sorted(ends.items()):
        if found["in"] - found["out"]:
            problems.append(f"{edge}: what arrived is not what the sender's transcript says")
    return {"parties": parties, "problems": problems, "notes": notes}


def _away(ledger: Ledger, party: str, absent: dict[str, int]) -> tuple[list[str], list[str]]:
    """(notes, problems) about what came from parties that have no folder here."""
    elsewhere = json.loads(ledger.recall(ELSEWHERE) or "[]")
    notes = [
        f"{party}: the other ends of {count} crossings lie elsewhere, at {other}, and were not compared"
        for other, count in absent.items()
        if other in elsewhere
    ]
    problems = [
        f"{party}: the transcript has {count} crossings from {other}, which has no folder here: it was removed, or renamed"
        for other, count in absent.items()
        if other not in elsewhere
    ]
    return notes, problems


def _quorum_problems(ledger: Ledger) -> list[str]:
    """Who a gather with a quorum says was there: enough of them, and of each something that arrived."""
    problems: list[str] = []
    arrived: dict[str, set[str]] = {}
    for entry in _bodies(ledger, "crossings"):
        _, _, task = entry["edge"].rpartition("->")
        if entry["kind"] != QUORUM:
            arrived.setdefault(task, set()).add(entry["from"])
            continue
        used, senders = set(entry.get("used", ())), arrived.get(task, set())
        if fingerprint({key: entry.get(key) for key in ("at_least", "used", "lost")}) != entry["digest"]:
            problems.append(f"{task}: who was there is not what its digest says")
        if len(used) < entry.get("at_least", 0):
            problems.append(f"{task}: {len(used)} parties were there, {entry['at_least']} are needed")
        if used & senders and used - senders:
            problems.append(f"{task}: nothing arrived from {', '.join(sorted(used - senders))}, who is said to have been there")
    return problems


def _head_problems(home: Path) -> list[str]:
    """Heads that a party keeps of another one must still be in that one's chains."""
    ledgers = {party: Ledger(home / "parties" / party) for party in parties_of(home)}
    problems = [
        f"{keeper} keeps a head of {party}'s {chain} that {party} no longer has: its end was cut off or rewritten"
        for keeper, ledger in ledgers.items()
        for party, chain, head in ledger.kept_heads()
        if party in ledgers and not ledgers[party].has_head(chain, head)
    ]
    for ledger in ledgers.values():
        ledger.close()
    return problems


def _bodies(ledger: Ledger, table: str) -> Iterator[dict[str, Any]]:
    """What the rows of a chain say; rows that say nothing readable are left to `chain_problems`."""
    needed = {
        "charges": {"release", "payload", "dataset", "class", "void"},
        "crossings": {"edge", "to", "kind", "direction", "digest", "label"},
    }
    rotations = [int(seq) for seq in json.loads(ledger.recall_vault("rotations") or "[]")]
    for seq, body in ledger.query(f"SELECT seq, body FROM {table} ORDER BY seq"):
        try:
            entry = json.loads(body)
        except ValueError:
            continue
        if not isinstance(entry, dict) or not needed[table] <= set(entry):
            continue
        if table == "charges" and rotations and "event" not in entry and "document" in entry:
            since = 1 + sum(seq > last for last in rotations)  # keys that there were when this was charged
            entry |= {name: ledger.keys.over(str(entry[name]), since) for name in ("release", "document")}
        if table == "crossings" or "event" in entry or {"epsilon", "id", "document", "parameters"} <= set(entry):
            yield entry


def _charge_problems(ledger: Ledger) -> list[str]:
    """Every release and event has exactly one charge, which says the same of it, and every charge its release or event."""
    charged: dict[str, dict[str, Any]] = {}
    twice: list[str] = []
    for entry in _bodies(ledger, "charges"):
        if entry["release"] in charged:
            twice.append(entry["release"])
        charged[entry["release"]] = entry
    stored = _releases(ledger) | _events(ledger)
    problems = [f"release {r[:12]} was charged twice" for r in twice]
    problems += [f"release {r[:12]} has no charge" for r in stored if r not in charged]
    problems += [f"charge of {r[:12]} has no release" for r in charged if r not in stored]
    for lookup in sorted(set(stored) & set(charged)):
        said = charged[lookup] if "event" in charged[lookup] else {**charged[lookup], "costs": body_costs(charged[lookup])}
        wrong = [name for name, value in stored[lookup].items() if name in said and said[name] != value]
        wrong += ["kind"] if ("event" in said) != ("event" in stored[lookup]) else []
        if wrong:
            problems.append(f"release {lookup[:12]} is not what was charged: {', '.join(wrong)}")
    return problems


def _releases(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """What is stored of each release, by the names that its charge gives."""
    columns = ("id", "dataset", "document", "parameters", "class", "task")
    found = {}
    sql = f"SELECT lookup, payload, epsilon, other, symbols, {', '.join(columns)} FROM releases"
    for lookup, payload, epsilon, other, symbols, *values in ledger.query(sql):
        row = dict(zip(columns, values, strict=True))
        found[lookup] = {**row, "payload": _fingerprint(payload), "costs": _costs(epsilon, other), "symbols": _loaded(symbols)}
    return found


def _events(ledger: Ledger) -> dict[str, dict[str, Any]]:
    """What is stored of each record-level event, by the names that its charge gives."""
    found = {}
    for lookup, dataset, kind, event, payload, task, void in ledger.query(
        "SELECT lookup, dataset, class, event, payload, task, void FROM events"
    ):
        row = {"dataset": dataset, "class": kind, "event": _loaded(event), "task": task, "void": void}
        found[lookup] = {**row, "payload": fingerprint(payload)}
    return found


def _costs(epsilon: float, other: str) -> Any:
    try:
        return costs_of(epsilon, other)
    except (TypeError, ValueError):
        return "unreadable"


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return "unreadable"


def _fingerprint(payload: str) -> str:
    try:
        return fingerprint(json.loads(payload))
    except ValueError:
        return "unreadable"


def _set_problems(ledger: Ledger) -> list[str]:
    """What a set of releases says of itself (data set, mechanism, class, void, how many) follows from its members' charges."""
    charged = {entry["release"]: entry for entry in _bodies(ledger, "charges")}
    members: dict[str, list[str]] = {}
    for ref, lookup in ledger.query("SELECT ref, lookup FROM members"):
        members.setdefault(ref, []).append(lookup)
    problems = []
    columns = ("dataset", "parameters", "class", "void", "epsilon", "documents", "digest", "other")
    for ref, *values in ledger.query(f"SELECT ref, {', '.join(columns)} FROM release_sets ORDER BY ref"):
        said = dict(zip(columns, values, strict=True))
        found = members.pop(ref, [])
        bodies = [charged[lookup] for lookup in found if lookup in charged]
        wrong = [name for name in columns[:4] if any(body.get(name, said[name]) != said[name] for body in bodies)]
        wrong += ["documents"] if len(found) != said["documents"] else []
        wrong += ["epsilon"] if _largest(bodies) != _costs(said["epsilon"], said["other"]) else []
        wrong += ["digest"] if fingerprint([said["parameters"], said["digest"]]) != ref else []
        wrong += ["charges"] if len(bodies) < len(found) else []
        if wrong:
            problems.append(f"set {ref[:12]} does not follow from its charges: {', '.join(wrong)}")
    return problems + [f"set {ref[:12]} is missing, its releases are there" for ref in members]


def _largest(bodies: list[dict[str, Any]]) -> dict[str, float]:
    """The largest cost of one release in each unit."""
    found: dict[str, float] = {}
    for body in bodies:
        for unit, amount in ({} if "event" in body else body_costs(body)).items():
            found[unit] = max(found.get(unit, 0.0), amount)
    return found


def _crossed_problems(ledger: Ledger) -> list[str]:
    """The table of what crossed each edge last follows from the transcript."""
    expected: dict[tuple[str, str], tuple[str, str]] = {}
    for entry in _bodies(ledger, "crossings"):
        expected[(entry["edge"], entry["direction"])] = (entry["digest"], canonical(entry["label"]).decode())
    rows = ledger.query("SELECT edge, direction, digest, label FROM crossed")
    there = {(edge, direction): (digest, label) for edge, direction, digest, label in rows}
    return [
        f"{edge} ({direction}): what is noted to have crossed is not what the transcript says"
        for edge, direction in sorted(set(expected) | set(there))
        if expected.get((edge, direction)) != there.get((edge, direction))
    ]

# SPDX-License-Identifier: Apache-2.0
"""Look into the folder of a run afterwards: ledgers, transcripts, hashes; check that they hold together."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from osmotic.runtime.accounts import summary
from osmotic.runtime.ledger import Ledger
from osmotic.runtime.policies import Policies, open_site
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import Budget, SitePolicy


def parties_of(home: Path) -> list[str]:
    """Names of the parties that ran in a folder; raises DataError when it is not the folder of a run."""
    folder = home / "parties"
    found = sorted(p.name for p in folder.iterdir() if (p / "ledger.sqlite").is_file()) if folder.is_dir() else []
    if not found:
        fix = "give the folder named with --home, e.g. osmotic-runs/fedcot"
        raise DataError(Problem("not the folder of a run", str(home), fix=fix))
    return found


def ledgers_of(home: Path) -> list[dict[str, Any]]:
    """What each party has spent (`accounts.summary`)."""
    from osmotic.plugins.host import build_registry

    registry = build_registry(names=())
    found = []
    for party in parties_of(home):
        site = open_site(party, home, Policies({party: _policy(home, party)}, Path(), None), registry)
        found.append(summary(site))
        site.ledger.close()
    return found


def _policy(home: Path, party: str) -> SitePolicy:
    """The party's budget caps as of its last run; nothing else of its policy is needed to read a ledger."""
    ledger = Ledger(home / "parties" / party)
    try:
        caps = json.loads(ledger.recall("caps") or "{}")
    finally:
        ledger.close()
    return SitePolicy(budget={name: Budget(per_document=cap) for name, cap in caps.items()})


def summary_of(home: Path) -> dict[str, Any]:
    """The saved summary of the last finished run, with the ledgers as they are now."""
    file = home / "run.json"
    if not file.is_file():
        raise DataError(Problem("no run has finished here", str(home), fix="osmotic run PIPELINE --home ..."))
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(Problem("the saved summary is damaged", str(file), fix="run the pipeline again")) from error
    return {**found, "ledger": ledgers_of(home)}


def verify(home: Path) -> dict[str, Any]:
    """Chains, charges against releases, both ends of every crossing. {parties, problems}."""
    parties, problems = [], []
    ends: dict[str, dict[str, set[tuple[str, bytes]]]] = {}
    for party in parties_of(home):
        ledger = Ledger(home / "parties" / party)
        problems += [f"{party}: {text}" for text in ledger.chain_problems() + _charge_problems(ledger)]
        crossings = list(_bodies(ledger, "crossings"))
        for entry in crossings:
            if entry["to"] != "report":
                sides = ends.setdefault(entry["edge"], {"in": set(), "out": set()})
                sides[entry["direction"]].add((entry["digest"], canonical(entry["label"])))
        counts = ledger.query("SELECT COUNT(*) FROM charges")[0][0]
        heads = {table: ledger.head(table)[:12] for table in ("charges", "crossings")}
        parties.append({"party": party, "charges": counts, "crossings": len(crossings), "heads": heads})
        ledger.close()
    problems += _head_problems(home)
    for edge, found in sorted(ends.items()):
        if found["in"] - found["out"]:
            problems.append(f"{edge}: what arrived is not what the sender's transcript says")
    return {"parties": parties, "problems": problems}


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
        "charges": {"release", "epsilon", "id", "payload"},
        "crossings": {"edge", "to", "kind", "direction", "digest", "label"},
    }
    for (body,) in ledger.query(f"SELECT body FROM {table} ORDER BY seq"):
        try:
            entry = json.loads(body)
        except ValueError:
            continue
        if isinstance(entry, dict) and needed[table] <= set(entry):
            yield entry


def _charge_problems(ledger: Ledger) -> list[str]:
    """Every release has exactly one charge of its epsilon, and every charge its release."""
    charged: dict[str, float] = {}
    content: dict[str, tuple[str, str]] = {}
    twice: list[str] = []
    for entry in _bodies(ledger, "charges"):
        if entry["release"] in charged:
            twice.append(entry["release"])
        charged[entry["release"]] = entry["epsilon"]
        content[entry["release"]] = (entry["id"], entry["payload"])
    rows = ledger.query("SELECT lookup, epsilon, id, payload FROM releases")
    stored = {lookup: epsilon for lookup, epsilon, _, _ in rows}
    problems = [f"release {r[:12]} was charged twice" for r in twice]
    problems += [f"release {r[:12]} has no charge" for r in stored if r not in charged]
    problems += [f"charge of {r[:12]} has no release" for r in charged if r not in stored]
    problems += [f"release {r[:12]}: charge and release differ" for r, e in stored.items() if charged.get(r, e) != e]
    changed = [r for r, _, i, text in rows if r in content and content[r] != (i, fingerprint(json.loads(text)))]
    return problems + [f"release {r[:12]} is not what was charged" for r in changed]

# SPDX-License-Identifier: Apache-2.0
"""The guarantee of a run for one party, computed from its ledger over all crossings of its data; and what may be shown.

One unprotected crossing makes it ``unprotected``. Otherwise it has one part a unit (`charging`; partitions together are one
part, given the pattern of all of them): the largest sum, over documents, of the charges of all releases that crossed, and the
composition of all record-level events; the weakest class names the whole. The same release counts once, however often it
crossed. Unlike units are never added. Documents' pure epsilon and events of replace-one have the same neighbours: their sum
stands beside the parts.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from osmotic.plugins.accounting import REPLACE_ONE, Event
from osmotic.runtime.party.site import Ref, Site
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.privacy.charging import (
    EPSILON,
    PARTITION,
    RECORD_CLASSES,
    WEAKEST_FIRST,
    cap_of,
    class_of_unit,
    in_words,
    kind_of,
    weakest,
)
from osmotic.runtime.privacy.composition import SHARES, RecordEvents, events_under, size_of, told
from osmotic.schemas.errors import MembraneError, Problem
from osmotic.schemas.labels import Label


def account(site: Site, edges: list[str]) -> dict[str, Any]:
    """{word, parts, together, epsilon, ever, unit, detail, void, waived, documents, crossings}: this party's guarantee.

    word: unprotected, nothing crosses, or the weakest class of all releases that crossed. parts: one entry a unit, the weakest
    first, of one class the largest: {class, unit, epsilon, ever, delta, text, of}. epsilon, ever: of the first part; None where
    the accountant is missing. of: what a unit's name leaves out: the patterns, or the neighbours. ever: the largest sum that a
    document (or all records) of the same data sets has cost over all runs on this ledger. together: {epsilon, delta, text} of
    certified releases and record-level events, None without both.
    """
    refs: set[str] = set()
    waived: set[str] = set()
    count = 0
    tasks = {edge.removesuffix("=>") for edge in edges if edge.endswith("=>")}
    for edge in [*edges, *(out for out, task in site.exits.items() if task in tasks)]:
        for (label_text,) in _labels(site, edge):
            count += 1
            label = Label.from_json(json.loads(label_text))
            mine = [e for e in label.entries if e.owner == site.party]
            waived |= {e.ref for e in mine if e.source == "exposed"}
            refs |= {e.ref for e in mine if e.source == "release"}
    rows = [_release(site, ref) for ref in sorted(refs)]
    parts = _parts(site, sorted(refs))
    known = {part["class"] for part in parts} | set(RECORD_CLASSES)
    parts += [_empty(name) for name in sorted({row["class"] for row in rows} - known)]  # sets without a document
    parts.sort(key=weakest_first)
    word = "unprotected" if waived else parts[0]["class"] if parts else "nothing crosses"
    return {
        "party": site.party, "word": word, "parts": parts, "together": _together(site, sorted(refs)),
        "epsilon": parts[0]["epsilon"] if parts else 0.0,
        "unit": parts[0]["unit"] if parts else "document", "ever": parts[0]["ever"] if parts else 0.0,
        "detail": "; ".join(sorted({row["detail"] for row in rows})), "waived": sorted(waived),
        "void": sorted({row["void"] for row in rows if row["void"]}),
        "documents": max((row["documents"] for row in rows), default=0), "crossings": count,
    }  # fmt: skip


def _empty(name: str) -> dict[str, Any]:
    return {
        "class": name,
        "unit": "document",
        "epsilon": 0.0,
        "ever": 0.0,
        "delta": 0.0,
        "text": f"{name}, of no document",
        "of": [],
    }


def weakest_first(part: Mapping[str, Any]) -> tuple[int, float]:
    """Order of parts: the weakest class first, of one class the largest epsilon; one that was not computed before all."""
    epsilon = math.inf if part["epsilon"] is None else float(part["epsilon"])
    return WEAKEST_FIRST.index(part["class"]), -epsilon


def _chosen(refs: list[str]) -> str:
    return f"lookup IN (SELECT lookup FROM members WHERE ref IN ({','.join('?' * len(refs))}))"


def _parts(site: Site, refs: list[str]) -> list[dict[str, Any]]:
    """What these releases cost, one entry a unit: documents' by unit, and (epsilon, delta) of record-level events."""
    if not refs:
        return []
    sets = f"dataset IN (SELECT dataset FROM release_sets WHERE ref IN ({','.join('?' * len(refs))}))"
    run, ever = _most(site, _chosen(refs), refs), _most(site, sets, refs)
    patterns = sorted(unit for unit in run if kind_of(unit) == PARTITION)
    for found in (run, ever):  # partitions of one document add up, given the pattern of all of them
        for unit in [u for u in found if kind_of(u) == PARTITION]:
            del found[unit]
    run |= _most_of_kind(site, _chosen(refs), refs, PARTITION)
    ever |= _most_of_kind(site, sets, refs, PARTITION)
    documents = [
        {
            "class": class_of_unit(unit), "unit": unit if unit != EPSILON else "document", "epsilon": amount, "delta": 0.0,
            "ever": ever.get(unit, amount), "text": in_words(unit, amount), "of": patterns if unit == PARTITION else [],
        }
        for unit, amount in run.items()
    ]  # fmt: skip
    return documents + _record_parts(site, refs)


def _events_of(site: Site, refs: list[str]) -> dict[str, list[tuple[str, Event]]]:
    """data set -> (class, event) of the record-level events of these releases."""
    found: dict[str, list[tuple[str, Event]]] = {}
    for dataset, kind, event in site.ledger.query(f"SELECT dataset, class, event FROM events WHERE {_chosen(refs)}", refs):
        found.setdefault(dataset, []).append((kind, json.loads(event)))
    return found


def _record_parts(site: Site, refs: list[str]) -> list[dict[str, Any]]:
    """(epsilon, delta) of record-level events, one entry a data set: its class is the weakest of its events'."""
    parts = []
    for dataset, rows in sorted(_events_of(site, refs).items()):
        events = events_under(site.ledger, site.policy, dataset)
        total = events.total(dataset, [event for _, event in rows]) or {}
        ever = events.total(dataset, events.events(dataset)) or {}
        relation = f" ({total['neighbours']})" if total["neighbours"] else ""
        parts.append(
            {
                "class": weakest(kind for kind, _ in rows), "unit": events.unit, "epsilon": total["epsilon"],
                "delta": total["delta"], "ever": ever["epsilon"], "text": f"{size_of(total)} a {events.unit}{relation}",
                "of": [total["neighbours"]] if total["neighbours"] else [],
            }
        )  # fmt: skip
    return parts


def _together(site: Site, refs: list[str]) -> dict[str, Any] | None:
    """{epsilon, delta, text}: a document's pure epsilon and its data set's events of replace-one, added (basic composition: an
    upper bound), the worst data set; None unless some data set has both.
    """
    found = []
    events = RecordEvents(site.ledger, site.policy)
    found_events = {name: rows for name, rows in _events_of(site, refs).items() if not name.startswith(SHARES)} if refs else {}
    for dataset, rows in found_events.items():
        pure = _most(site, f"{_chosen(refs)} AND dataset=?", [*refs, dataset]).get(EPSILON, 0.0)
        total = events.total(dataset, [event for _, event in rows if event["neighbours"] == REPLACE_ONE])
        if pure and total is not None:
            both = None if total["epsilon"] is None else pure + total["epsilon"]
            found.append({"class": "certified", "epsilon": both, "delta": total["delta"]})
    if not found:
        return None
    worst = min(found, key=weakest_first)
    text = f"together {size_of(worst)} a record"
    return {"epsilon": worst["epsilon"], "delta": worst["delta"], "text": text}


def _labels(site: Site, edge: str) -> list[tuple[Any, ...]]:
    """Labels under which something crossed an edge; ``TASK=>`` stands for all model calls of a task."""
    if edge.endswith("=>"):
        return site.ledger.query("SELECT label FROM crossed WHERE edge >= ? AND edge < ?", (edge, edge + "\x7f"))
    return site.ledger.query("SELECT label FROM crossed WHERE edge=?", (edge,))


def _release(site: Site, ref: str) -> dict[str, Any]:
    sql = "SELECT class, detail, void, documents FROM release_sets WHERE ref=?"
    row = site.ledger.query(sql, (ref,))[0]
    return dict(zip(("class", "detail", "void", "documents"), row, strict=True))


def _most(site: Site, where: str, refs: list[str]) -> dict[str, float]:
    """unit -> the largest sum a document over the releases that `where` selects; unused units are left out."""
    pure = f"SELECT SUM(epsilon) AS total FROM releases WHERE {where} GROUP BY dataset, document"
    found = {EPSILON: site.ledger.query(f"SELECT MAX(total) FROM ({pure})", refs)[0][0] or 0.0}
    other = (
        f"SELECT key, SUM(value) AS total FROM releases, json_each(releases.other) WHERE other<>'{{}}' AND {where}"
        " GROUP BY dataset, document, key"
    )
    found |= dict(site.ledger.query(f"SELECT key, MAX(total) FROM ({other}) GROUP BY key", refs))
    return {unit: float(amount) for unit, amount in found.items() if amount}


def _most_of_kind(site: Site, where: str, values: list[str], kind: str) -> dict[str, float]:
    """{kind: the largest sum a document over all units of a kind}, of the releases that `where` selects; empty without any."""
    sums = (
        f"SELECT SUM(value) AS total FROM releases, json_each(releases.other) WHERE other<>'{{}}' AND {where}"
        " AND (key=? OR key LIKE ?) GROUP BY dataset, document"
    )
    most = site.ledger.query(f"SELECT MAX(total) FROM ({sums})", [*values, kind, f"{kind} %"])[0][0]
    return {kind: float(most)} if most else {}


def largest(site: Site, dataset: str) -> dict[str, float]:
    """unit -> the largest sum that a document of a data set has cost, ever."""
    return _most(site, "dataset=?", [dataset])


def largest_of_kind(site: Site, dataset: str, unit: str) -> float:
    """The largest sum that a document of a data set has cost, ever, in all units of one kind: what the cap holds for."""
    if kind_of(unit) == EPSILON:
        return largest(site, dataset).get(EPSILON, 0.0)
    return _most_of_kind(site, "dataset=?", [dataset], kind_of(unit)).get(kind_of(unit), 0.0)


def may_show(site: Site, ref: Ref, what: str) -> None:
    """Raise MembraneError unless an artifact depends on benchmark and public data alone; note it in the transcript."""
    private = [
        entry.ref
        for entry in ref.label.of("raw")
        if entry.owner != site.party or entry.ref not in site.policy.data or site.policy.data[entry.ref].purpose != "benchmark"
    ]
    if private:
        why = f"data sets: {sorted(set(private))}"
        raise MembraneError(Problem(f"{what} stay at {site.party}: they depend on private data", why=why))
    if site.ledger.query("SELECT 1 FROM crossed WHERE edge=? AND digest=?", (f"shown: {what}", ref.digest)):
        return
    site.ledger.cross(
        edge=f"shown: {what}", name="report", sender=site.party, receiver="report", direction="out", kind=ref.kind,
        digest=ref.digest, size=0, label=ref.label,
    )  # fmt: skip


def called(site: Site, graph: Graph) -> list[dict[str, Any]]:
    """Calls that this party's tasks made of models elsewhere, summed by task and call: as its transcript has them."""
    found: dict[str, dict[str, Any]] = {}
    for (body,) in site.ledger.query("SELECT body FROM crossings ORDER BY seq"):
        entry = json.loads(body)
        if entry["kind"] != "call" or entry["direction"] != "out" or entry["edge"].partition("=>")[0] not in graph.instances:
            continue
        new = {"edge": entry["edge"], "name": entry["name"], "sender": entry["from"], "receiver": entry["to"]}
        row = found.setdefault(entry["edge"], {**new, "bytes": 0, "count": 0})
        row["bytes"] += entry["bytes"]
        row["count"] += 1
    return list(found.values())


def benchmark(ref: Ref) -> dict[str, bool]:
    """{benchmark}: whether what `may_show` allowed depends on benchmark data without protection."""
    return {"benchmark": ref.label.word in ("private", "exposed")}


def without_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as a report shows them: ids, the own ones and the random ones, tell who is who and stay."""
    return [{key: value for key, value in row.items() if key not in ("id", "released")} for row in rows]


def summary(site: Site) -> dict[str, Any]:
    """What the ledger says, for `osmotic ledger`: per data set, what was spent, in which units, under which caps, by what."""
    names = [n for (n,) in site.ledger.query("SELECT dataset FROM releases UNION SELECT dataset FROM events ORDER BY 1")]
    charges = site.ledger.query("SELECT COUNT(*) FROM charges")[0][0]
    sets = [_summary_of(site, name) for name in names]
    return {"party": site.party, "datasets": sets, "charges": charges, "head": site.ledger.head("charges")}


def _units_of(site: Site, dataset: str) -> list[dict[str, Any]]:
    """What the caps hold for, one entry a kind; `of`: the largest of each unit by itself."""
    by_unit = largest(site, dataset)
    found = []
    for kind in sorted({kind_of(unit) for unit in by_unit}):
        of = {unit: amount for unit, amount in sorted(by_unit.items()) if kind_of(unit) == kind}
        amount, several = largest_of_kind(site, dataset, kind), f" (in {len(of)} units)" if len(of) > 1 else ""
        found.append(
            {"unit": kind, "class": class_of_unit(kind), "largest": amount, "cap": cap_of(site.policy, dataset, kind),
             "text": in_words(kind, amount) + several, "of": of}
        )  # fmt: skip
    return found


def _summary_of(site: Site, dataset: str) -> dict[str, Any]:
    sql = "SELECT COUNT(*), COALESCE(MAX(total), 0), COALESCE(AVG(total), 0) FROM "
    sql += "(SELECT SUM(epsilon) AS total FROM releases WHERE dataset=? GROUP BY document)"
    documents, most, mean = site.ledger.query(sql, (dataset,))[0]
    sql = "SELECT DISTINCT class, detail, void FROM release_sets WHERE dataset=? ORDER BY detail"
    events = events_under(site.ledger, site.policy, dataset)
    record, limit, cap = events.total(dataset, events.events(dataset)), events.limit(dataset), site.cap(dataset)
    sets = site.ledger.query(sql, (dataset,))
    if events.unit == "client":
        sql = "SELECT class, event, void FROM events WHERE dataset=? ORDER BY 1, 2"
        sets = list(dict.fromkeys((c, told(json.loads(e)), v) for c, e, v in site.ledger.query(sql, (dataset,))))
    if record is not None:
        record |= {"unit": events.unit, "cap": limit.model_dump() if limit else None}
    return {
        "dataset": dataset, "documents": documents, "epsilon_largest": most, "epsilon_mean": mean, "unit": "document",
        "cap": cap, "left": cap - most if cap is not None else None, "units": _units_of(site, dataset), "record": record,
        "releases": [{"class": c, "detail": d, "void": v} for c, d, v in sets],
    }  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""The guarantee of a run for one party, computed from its ledger over all crossings of its data; and what may be shown.

One unprotected crossing makes it ``unprotected``. Otherwise epsilon is per document: the largest sum, over documents, of the
charges of all releases that crossed; the same release counts once, however often it crossed.
"""

import json
from typing import Any

from osmotic.runtime.site import Ref, Site
from osmotic.schemas.errors import MembraneError, Problem
from osmotic.schemas.labels import Label


def account(site: Site, edges: list[str]) -> dict[str, Any]:
    """{word, epsilon, ever, unit, detail, void, waived, documents, crossings}: this party's guarantee over the crossings.

    ever: the largest sum that a document of the same data sets has cost over all runs on this ledger.
    """
    refs: set[str] = set()
    waived: set[str] = set()
    count = 0
    for edge in edges:
        for (label_text,) in _labels(site, edge):
            count += 1
            label = Label.from_json(json.loads(label_text))
            mine = [e for e in label.entries if e.owner == site.party]
            waived |= {e.ref for e in mine if e.source == "exposed"}
            refs |= {e.ref for e in mine if e.source == "release"}
    rows = [_release(site, ref) for ref in sorted(refs)]
    classes = {row["class"] for row in rows}
    void = sorted({row["void"] for row in rows if row["void"]})
    return {
        "party": site.party, "word": _word(bool(waived), classes), "epsilon": _largest(site, sorted(refs)), "unit": "document",
        "ever": _ever(site, sorted(refs)),
        "detail": "; ".join(sorted({row["detail"] for row in rows})), "void": void, "waived": sorted(waived),
        "documents": max((row["documents"] for row in rows), default=0), "crossings": count,
    }  # fmt: skip


def _word(waived: bool, classes: set[str]) -> str:
    if waived:
        return "unprotected"
    if not classes:
        return "nothing crosses"
    return "certified" if classes == {"certified"} else "heuristic"


def _labels(site: Site, edge: str) -> list[tuple[Any, ...]]:
    """Labels under which something crossed an edge; ``TASK=>`` stands for all model calls of a task."""
    if edge.endswith("=>"):
        return site.ledger.query("SELECT label FROM crossed WHERE edge >= ? AND edge < ?", (edge, edge + "\x7f"))
    return site.ledger.query("SELECT label FROM crossed WHERE edge=?", (edge,))


def _release(site: Site, ref: str) -> dict[str, Any]:
    sql = "SELECT class, detail, void, documents FROM release_sets WHERE ref=?"
    row = site.ledger.query(sql, (ref,))[0]
    return dict(zip(("class", "detail", "void", "documents"), row, strict=True))


def _largest(site: Site, refs: list[str]) -> float:
    """The largest sum over a document's distinct releases."""
    return _most(site, "lookup IN (SELECT lookup FROM members WHERE ref IN ({marks}))", refs)


def _ever(site: Site, refs: list[str]) -> float:
    """The largest sum over all releases of a document, of the data sets that these releases are of."""
    return _most(site, "dataset IN (SELECT dataset FROM release_sets WHERE ref IN ({marks}))", refs)


def _most(site: Site, where: str, refs: list[str]) -> float:
    """The largest sum of epsilon a document over the releases that `where` selects; 0 without references."""
    if not refs:
        return 0.0
    chosen = where.format(marks=",".join("?" * len(refs)))
    sql = f"SELECT MAX(total) FROM (SELECT SUM(epsilon) AS total FROM releases WHERE {chosen} GROUP BY dataset, document)"
    return float(site.ledger.query(sql, refs)[0][0] or 0.0)


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


def benchmark(ref: Ref) -> dict[str, bool]:
    """{benchmark}: whether what `may_show` allowed depends on benchmark data without protection."""
    return {"benchmark": ref.label.word in ("private", "exposed")}


def without_ids(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records as a report shows them: ids, the own ones and the random ones, tell who is who and stay."""
    return [{key: value for key, value in row.items() if key not in ("id", "released")} for row in rows]


def summary(site: Site) -> dict[str, Any]:
    """What the ledger says, for `osmotic ledger`: per data set, what was spent and by which mechanisms."""
    sql = (
        "SELECT dataset, COUNT(*), MAX(total), SUM(total) / COUNT(*) FROM "
        "(SELECT dataset, document, SUM(epsilon) AS total FROM releases GROUP BY dataset, document) GROUP BY dataset"
    )
    sets = []
    for dataset, documents, most, mean in site.ledger.query(sql):
        cap = site.cap(dataset)
        details = site.ledger.query(
            "SELECT DISTINCT class, detail, void FROM release_sets WHERE dataset=? ORDER BY detail", (dataset,)
        )
        found = {
            "dataset": dataset, "documents": documents, "epsilon_largest": most, "epsilon_mean": mean, "unit": "document",
            "cap": cap, "left": cap - most if cap is not None else None,
            "releases": [{"class": c, "detail": d, "void": v} for c, d, v in details],
        }  # fmt: skip
        sets.append(found)
    charges = site.ledger.query("SELECT COUNT(*) FROM charges")[0][0]
    return {"party": site.party, "datasets": sets, "charges": charges, "head": site.ledger.head("charges")}

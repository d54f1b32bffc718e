# SPDX-License-Identifier: Apache-2.0
"""What differs between two runs: configuration, data, code and versions, guarantee, bytes, results with their intervals.

Read from what the two folders hold: `run.json` of each, and the facts of each task in the parties' own files. Of data sets it
is told that they differ, never how.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.runtime.results.comparing import leaves, told
from osmotic.runtime.results.verifying import parties_of, summary_of
from osmotic.runtime.screen.tables import grid, size, width
from osmotic.runtime.storage.ledger import Ledger

DATA = ("data", "schemas", "tables")
CODE = ("component", "code", "mechanism", "osmotic", "environment", "threads")


def diff(first: Path, second: Path) -> dict[str, Any]:
    """{runs, config, data, code, guarantee, bytes, results}: empty lists where nothing differs.

    Raises DataError for a folder that is not that of a finished run.
    """
    one, two = summary_of(first), summary_of(second)
    old, new = _facts(first), _facts(second)
    return {
        "runs": [str(first), str(second)],
        "pipelines": [one["pipeline"], two["pipeline"]],
        "config": _config(one, two),
        "data": _data(old, new),
        "code": _code(one, two, old, new),
        "guarantee": _guarantee(one["guarantee"], two["guarantee"]),
        "bytes": _bytes(one["crossings"], two["crossings"]),
        "results": _results(one["table"], two["table"]),
    }


def _facts(home: Path) -> dict[str, dict[str, Any]]:
    """Task run -> what its outputs depend on, of all parties."""
    found: dict[str, dict[str, Any]] = {}
    for party in parties_of(home):
        ledger = Ledger(home / "parties" / party, passing=True)
        try:
            found |= {identity: json.loads(text) for identity, text in ledger.query("SELECT id, facts FROM instances")}
        finally:
            ledger.close()
    return found


def _node(identity: str) -> str:
    """The task as written, of a run of it."""
    return identity.partition("@")[0].partition("[")[0]


def _config(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, str]]:
    """Keys of the resolved document that differ."""
    pairs = leaves(one.get("resolved", {}), two.get("resolved", {}))
    return [{"key": key, "before": told(before), "now": told(now)} for key, before, now in pairs]


def _data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Which data sets differ, at which party."""
    found: dict[str, None] = {}
    for identity in [i for i in old if i in new]:
        party = identity.rpartition("@")[2]
        for fact in DATA:
            before, now = old[identity].get(fact), new[identity].get(fact)
            if before == now:
                continue
            what = "records or their schema" if fact == "data" else "the schema" if fact == "schemas" else "a table"
            name = f" of {now[2]!r}" if fact == "data" and now else ""
            found[f"{party}: {what}{name} differ{'' if fact == 'data' else 's'} ({_node(identity)})"] = None
    return list(found)


def _code(
    one: Mapping[str, Any], two: Mapping[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]
) -> list[dict[str, str]]:
    """Versions and code that differ: of what was installed, of components, mechanisms and models."""
    rows: dict[str, dict[str, str]] = {}
    for key, before, now in leaves(one.get("versions", {}), two.get("versions", {})):
        rows[key] = {"what": key, "before": told(before), "now": told(now)}
    for identity in [i for i in old if i in new]:
        for fact in (*CODE, "models"):
            before, now = old[identity].get(fact), new[identity].get(fact)
            if before != now and fact != "environment":
                name = f"{_node(identity)}: {fact}"
                digest = fact in ("code", "mechanism", "models")
                most = 12 if digest else 60
                rows[name] = {"what": name, "before": told(before, most), "now": told(now, most)}
    return list(rows.values())


def _guarantee(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, str]]:
    """The run's line, and each party's account, where they differ."""
    rows = [] if one["line"] == two["line"] else [{"of": "the run", "before": one["line"], "now": two["line"]}]
    before, now = ({a["party"]: a for a in found["parties"]} for found in (one, two))
    for party in dict.fromkeys([*before, *now]):
        texts = [_account(found.get(party)) for found in (before, now)]
        if texts[0] != texts[1]:
            rows.append({"of": party, "before": texts[0], "now": texts[1]})
    return rows


def _account(account: Mapping[str, Any] | None) -> str:
    if account is None:
        return "not there"
    parts = ", ".join(part["text"] for part in account["parts"])
    return f"{account['word']}{': ' if parts else ''}{parts}"


def _bytes(one: Iterable[Mapping[str, Any]], two: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Edges whose crossings differ in number or size: {edge, before, now}, each [times, bytes]."""
    before, now = _moved(one), _moved(two)
    edges = dict.fromkeys([*before, *now])
    rows = [{"edge": e, "before": before.get(e, [0, 0]), "now": now.get(e, [0, 0])} for e in edges]
    return [row for row in rows if row["before"] != row["now"]]


def _moved(crossings: Iterable[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Edge as written -> [times, bytes], as they last went, in this run or before it."""
    found: dict[str, list[int]] = {}
    for one in crossings:
        row = found.setdefault(str(one["name"]), [0, 0])
        row[0] += int(one.get("count", 1))
        row[1] += int(one.get("sent", one["bytes"]))
    return found


def _results(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Cells of the tables that differ: {row, metric, before, now, difference}, each {mean, low, high}."""
    before, now = _cells(one), _cells(two)
    rows = []
    for place in dict.fromkeys([*before, *now]):
        old, new = before.get(place), now.get(place)
        if old != new:
            row = {"row": place[0], "metric": place[1], "before": old, "now": new}
            rows.append({**row, "difference": _difference(old, new)})
    return rows


def _cells(table: Mapping[str, Any]) -> dict[tuple[str, str], dict[str, float]]:
    """(row, metric) -> {mean, and low and high where there are bounds}."""
    return {
        (row["row"], column["metric"]): {key: cell[key] for key in ("mean", "low", "high") if key in cell}
        for row in table["rows"]
        for column in table["columns"]
        if (cell := row["cells"][column["metric"]])["mean"] is not None
    }


def _difference(old: Mapping[str, float] | None, new: Mapping[str, float] | None) -> dict[str, float] | None:
    """The second mean less the first; its interval takes the two runs as independent of each other (as they seldom are, so it
    is rather too wide), and is left out where one of them has none.
    """
    if old is None or new is None:
        return None
    mean = new["mean"] - old["mean"]
    if "low" not in old or "low" not in new:
        return {"mean": mean}
    below = math.hypot(new["mean"] - new["low"], old["high"] - old["mean"])
    above = math.hypot(new["high"] - new["mean"], old["mean"] - old["low"])
    return {"mean": mean, "low": mean - below, "high": mean + above}


# ---- as text ----


def diff_text(found: Mapping[str, Any]) -> str:
    """The differences as text, what is equal in one line at the end."""
    wide = width()
    parts = [f"{found['runs'][0]} -> {found['runs'][1]}"]
    if found["config"]:
        rows = [[c["key"], c["before"], c["now"]] for c in found["config"]]
        parts.append(f"Configuration\n{grid(['key', 'before', 'now'], rows, wide)}")
    if found["data"]:
        parts.append("\n".join(["Data", *(f"  {line}" for line in found["data"])]))
    if found["code"]:
        rows = [[c["what"], c["before"], c["now"]] for c in found["code"]]
        parts.append(f"Code and versions\n{grid(['what', 'before', 'now'], rows, wide)}")
    if found["guarantee"]:
        rows = [[g["of"], g["before"], g["now"]] for g in found["guarantee"]]
        parts.append(f"Guarantee\n{grid(['of', 'before', 'now'], rows, wide)}")
    if found["bytes"]:
        pairs = [(b["edge"], [f"{n} x, {size(moved)}" for n, moved in (b["before"], b["now"])]) for b in found["bytes"]]
        rows = [[edge, *texts] for edge, texts in pairs]
        parts.append(f"What crossed\n{grid(['edge', 'before', 'now'], rows, wide)}")
    if found["results"]:
        rows = [
            [r["row"], r["metric"], _shown(r["before"]), _shown(r["now"]), _shown(r["difference"], "+")]
            for r in found["results"]
        ]
        note = "Results, 95% intervals; of differences, as if the runs were independent of each other"
        parts.append(f"{note}\n{grid(['row', 'metric', 'before', 'now', 'difference'], rows, wide)}")
    names = {"config": "configuration", "data": "data", "code": "code and versions", "guarantee": "guarantee"}
    names |= {"bytes": "what crossed", "results": "results"}
    if equal := [name for key, name in names.items() if not found[key]]:
        parts.append(f"Equal: {', '.join(equal)}.")
    return "\n\n".join(parts)


def _shown(cell: Mapping[str, float] | None, sign: str = "") -> str:
    if cell is None:
        return "-"
    bounds = f" [{cell['low']:{sign}.3f}, {cell['high']:{sign}.3f}]" if "low" in cell else ""
    return f"{cell['mean']:{sign}.3f}{bounds}"

# SPDX-License-Identifier: Apache-2.0
"""Plain text for the terminal: tables, ledger, catalogue."""

import itertools
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Port, config_type, input_ports
from osmotic.plugins.host import Registry
from osmotic.runtime.privacy.composition import size_of
from osmotic.schemas.errors import ConfigError, Problem, StoreError
from osmotic.schemas.source import did_you_mean

WORDS = (40, 24, 16, 12, 8)  # how long a word may be that is not broken in a narrow table, in the order of giving way


def width() -> int:
    """Columns of the terminal (or COLUMNS); plenty where there is none, so that files and pipes get whole lines."""
    return shutil.get_terminal_size((400, 24)).columns


def grid(head: list[str], rows: list[list[str]], wide: int | None = None) -> str:
    """Columns aligned, two spaces apart; wide: no line is longer, where that can be: long cells go on below."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    if wide is not None:
        words = [max(len(word) for r in [head, *rows] for word in r[i].split() or [""]) for i in range(len(head))]
        for longest in (*WORDS, 1):  # words stay whole while they can
            widths = _fitted(widths, [min(w, longest) for w in words], wide)
    lines = [line for row in [head, *rows] for line in _lines(row, widths)]
    under = len(_lines(head, widths))
    return "\n".join([*lines[:under], "  ".join("-" * w for w in widths), *lines[under:]])


def _fitted(widths: list[int], least: list[int], wide: int) -> list[int]:
    """Column widths for a line of `wide`: the widest gives way, none below its least; unchanged when it fits."""
    found = list(widths)
    while sum(found) + 2 * (len(found) - 1) > wide:
        able = [i for i, w in enumerate(found) if w > least[i]]
        if not able:
            break
        found[max(able, key=lambda i: found[i])] -= 1
    return found


def _lines(row: list[str], widths: list[int]) -> list[str]:
    """A row as one line or several."""
    cells = [[cell] if len(cell) <= w else textwrap.wrap(cell, w) or [""] for cell, w in zip(row, widths, strict=True)]
    several = itertools.zip_longest(*cells, fillvalue="")
    return ["  ".join(part.ljust(w) for part, w in zip(parts, widths, strict=True)).rstrip() for parts in several]


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def number_of(crossings: Iterable[Mapping[str, Any]]) -> int:
    """How many there were; calls of a model come summed."""
    return sum(int(one.get("count", 1)) for one in crossings)


def ledger_text(found: list[dict[str, Any]]) -> str:
    """Ledgers as text."""
    rows = []
    for party in found:
        for d in party["datasets"]:
            void = [f" VOID: {r['void']}" if r["void"] else "" for r in d["releases"]]
            details = "; ".join(f"{r['detail']} {r['class']}{v}" for r, v in zip(d["releases"], void, strict=True))
            for unit in d.get("units") or ([] if d.get("record") else [{"text": "0 a document", "cap": d["cap"]}]):
                cap = f"{unit['cap']:g}" if unit["cap"] else "NO CAP"
                rows.append([party["party"], d["dataset"], str(d["documents"]), unit["text"], cap, details])
            if d.get("record"):
                rows.append([party["party"], d["dataset"], "all", *_record(d["record"]), details])
    if not rows:
        return "nothing was released"
    return grid(["party", "data set", "documents", "spent, at most", "cap", "releases"], rows)


def _record(found: dict[str, Any]) -> list[str]:
    """What all record-level events of a data set (or those over clients) come to, and their cap."""
    cap = found["cap"]
    events = f"{found['events']} event{'s' if found['events'] > 1 else ''}"
    spent = f"{size_of(found)} a {found.get('unit', 'record')} ({', '.join(w for w in (events, found['neighbours']) if w)})"
    return [spent, f"{cap['epsilon']:g}, delta {cap['delta']:g}" if cap else "NO CAP"]


def components_values(registry: Registry) -> list[dict[str, Any]]:
    """Name, first line of the docstring, ports."""
    values = []
    for name, entry in sorted(registry.components.items()):
        ports = {p: _port_text(q) for p, q in input_ports(entry.cls).items()}
        outputs = {p: f"{o.kind.kind} ({o.label})" for p, o in entry.cls.outputs.items()}
        first = (entry.cls.__doc__ or "").strip().split("\n")[0]
        config = {k: str(f.description or "") for k, f in config_type(entry.cls).model_fields.items()}
        value = {"name": name, "does": first, "inputs": ports, "outputs": outputs, "config": config}
        values.append({**value, "from": entry.distribution})
    return values


def _port_text(port: Port) -> str:
    return f"{'all ' if port.gathered else ''}{port.kind.kind}{'?' if port.optional else ''}"


def components_text(values: list[dict[str, Any]]) -> str:
    """Components as text."""
    blocks = []
    for v in values:
        ports = ", ".join(f"{k}: {t}" for k, t in v["inputs"].items()) or "nothing"
        outs = ", ".join(f"{k}: {t}" for k, t in v["outputs"].items())
        blocks.append(f"{v['name']}  ({v['from']})\n    {v['does']}\n    takes {ports}\n    gives {outs}")
    return "\n".join(blocks)


def plugins_values(registry: Registry) -> dict[str, Any]:
    """Everything registered, and what failed."""
    kinds = {
        "component": registry.components,
        "mechanism": registry.mechanisms,
        "model": registry.models,
        "table": registry.tables,
    }
    entries = [
        {"kind": kind, "name": name, "distribution": e.distribution, "version": e.version}
        for kind, table in kinds.items()
        for name, e in sorted(table.items())
    ]
    return {"registered": entries, "failures": registry.failures}


def plugins_text(values: dict[str, Any]) -> str:
    """Plugins as text."""
    rows = [[e["kind"], e["name"], e["distribution"], e["version"]] for e in values["registered"]]
    failed = "".join(f"\nplugin {n!r} could not be loaded: {w}" for n, w in values["failures"].items())
    return grid(["kind", "name", "from", "version"], rows) + failed


def schema_command(name: str | None, check: bool) -> str:
    """`osmotic schema`: print one, or check all."""
    from osmotic.schemas import generate

    folder = Path(generate.__file__).parent / "generated"
    if check:
        stale = generate.check(folder)
        if stale:
            raise StoreError(Problem(f"stale: {', '.join(stale)}", str(folder), fix="make generate"))
        return "all generated schemas are up to date"
    known = sorted(p.name.removesuffix(".json").removesuffix(".schema") for p in folder.glob("*.json"))
    if name is None:
        return "\n".join(known)
    found = [p for p in folder.glob("*.json") if p.name.removesuffix(".json").removesuffix(".schema") == name]
    if not found:
        raise ConfigError(Problem(f"no schema is called {name!r}", fix=did_you_mean(name, known)))
    return found[0].read_text(encoding="utf-8")

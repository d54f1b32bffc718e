# SPDX-License-Identifier: Apache-2.0
"""Plain text for the terminal: plan, result, ledger, catalogue. The guarantee comes first everywhere."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Port, config_type, input_ports
from osmotic.plugins.host import Registry
from osmotic.runtime.composition import NOT_COMPUTED, size_of
from osmotic.schemas.errors import ConfigError, Problem, StoreError
from osmotic.schemas.source import did_you_mean

ROUNDS, NAMES = 60, 8  # sampled rounds that a plan shows, parties that it names in one
SHOWN = "Scores and samples of benchmark data are shown here."


def grid(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned, two spaces apart."""
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def plan_text(plan: dict[str, Any]) -> str:
    """The plan as text."""
    tasks = [
        [t["task"], t["component"], t["at"], ",".join(t["axes"]), str(t["instances"]), str(t["cached"]), "; ".join(t["why"])]
        for t in plan["tasks"]
    ]
    crossings = [_crossing(c) for c in plan["crossings"]]
    sample = [_taking_part(one) for one in plan["rounds"]]
    parts = [f"{plan['pipeline']}: {plan['count']['tasks']} tasks, {plan['count']['cached']} finished before"]
    parts.append(grid(["task", "component", "at", "axes", "runs", "cached", "why the others run"], tasks))
    if sample:
        more = f"\nand {len(sample) - ROUNDS} more: --json lists them all" if len(sample) > ROUNDS else ""
        parts.append(f"Who takes part\n{grid(['repeat', 'role', 'round', 'parties'], sample[:ROUNDS])}{more}")
    if crossings:
        head = ["edge", "direction", "label", "kind", "times", "bytes", "waiver asked"]
        parts.append(f"What crosses\n{grid(head, crossings)}")
    if plan["budget"]:
        head = ["party", "data set", "task", "asked", "class", "spent", "cap"]
        units = " or ".join(dict.fromkeys(f"a {b['unit']}" for b in plan["budget"]))
        parts.append(f"Budget, {units}\n{grid(head, _budget(plan))}")
    if memory := _memory(plan["memory"]):
        parts.append(memory)
    return "\n\n".join(parts)


def _taking_part(one: dict[str, Any]) -> list[str]:
    """A sampled round; the parties by name, when they are few."""
    names = ", ".join(one["parties"][:NAMES]) + (
        f" and {len(one['parties']) - NAMES} more" if len(one["parties"]) > NAMES else ""
    )
    seed = f" (seed {one['seed']})" if one["seed"] != "" else ""
    return [one["repeat"], one["role"], f"{one['round']}{seed}", names]


def _memory(found: dict[str, Any]) -> str:
    """What the models need, and whether that much is free."""
    rows = [m for m in found["models"] if m["bytes"] is not None]
    unknown = [m["model"] for m in found["models"] if m["bytes"] is None]
    if not rows:
        return ""
    parts = []
    for m in rows:
        times = f" x {m['parties']} parties" if m["parties"] > 1 else ""
        parts.append(f"{m['model']} {size(m['bytes'])}{' in training' if m['training'] else ''}{times}")
    rest = f"; not known: {', '.join(unknown)}" if unknown else ""
    free = found["free"]
    here = "" if free is None else f"; {size(free)} free here"
    if free is not None and found["total"] > free:
        here += ": NOT ENOUGH for one machine"
    return f"Memory of models, at least {size(found['total'])} ({', '.join(parts)}{rest}){here}"


def _crossing(c: dict[str, Any]) -> list[str]:
    label = c["label"].upper() if c["label"] == "exposed" else c["label"]
    moved = f"{size(c['bytes'])} last time" if c["known"] else "not known yet"
    return [c["edge"], f"{c['from']} -> {c['to']}", label, c["kind"], str(c["count"]), moved, c["waive"] or ""]


def _budget(plan: dict[str, Any]) -> list[list[str]]:
    """Rows of the table; those that look the same (of several seeds, say) once, with how often behind the task."""
    rows: list[tuple[str, ...]] = []
    for b in plan["budget"]:
        asked = f"{b['epsilon']:g} ({b['detail']})" if b["epsilon"] is not None else b["detail"]
        again = f"; {b['already_released']} documents released before, free" if b["already_released"] else ""
        if b.get("cards_missing"):
            about = f"about {b['seconds']:.0f} s" if b["seconds"] < 90 else f"about {b['seconds'] / 60:.0f} min"
            again += f"; card missing ({', '.join(b['cards_missing'])}): {about}"
        cap = f"{b['cap']:g}" if b["cap"] else "NO CAP"
        spent = f"{b['spent']:g}" if b["spent"] is not None else NOT_COMPUTED
        rows.append((b["party"], b["dataset"], b["task"], asked + again, b["class"], spent, cap))
    times = {row: rows.count(row) for row in rows}
    return [[*row[:2], f"{row[2]} x {n}" if n > 1 else row[2], *row[3:]] for row, n in times.items()]


def result_text(summary: dict[str, Any]) -> str:
    """The result as text: guarantee, table, differences, crossings, where the report is."""
    parts = [summary["guarantee"]["line"]]
    if summary["guarantee"].get("shown"):
        parts.append(SHOWN)
    table = summary["table"]
    if table["rows"]:
        parts += [_arms(table), _differences(table)]
    if table["withheld"]:
        parts.append(f"Kept back (private data): metrics of {', '.join(table['withheld'])}; see each party's own folder.")
    if summary["crossings"]:
        parts.append(_crossed(summary))
    moved = sum(c["bytes"] for c in summary["crossings"])
    outcome = summary["outcome"]
    done = f"{outcome['tasks']} tasks: {outcome['ran']} ran, {outcome['cached']} found finished"
    crossed = f"{number_of(summary['crossings'])} crossings, {size(moved)} moved; {outcome['seconds']:.1f} s"
    parts.append(f"{done}; {crossed}. Report: {summary['home']}/report.html")
    return "\n\n".join(p for p in parts if p)


def _crossed(summary: dict[str, Any]) -> str:
    """What crossed, one line an edge as written."""
    waived = {e["name"] for e in summary["graph"]["edges"] if e["waived"]}
    found: dict[str, list[dict[str, Any]]] = {}
    for crossing in summary["crossings"]:
        found.setdefault(crossing["name"], []).append(crossing)
    rows = [
        [name, _who(cs, "sender") + " -> " + _who(cs, "receiver"), str(number_of(cs)), size(sum(c["bytes"] for c in cs)),
         "WAIVED" if name in waived else ""]
        for name, cs in found.items()
    ]  # fmt: skip
    return grid(["what crossed", "direction", "times", "bytes (new)", ""], rows)


def number_of(crossings: Iterable[Mapping[str, Any]]) -> int:
    """How many there were; calls of a model come summed."""
    return sum(int(one.get("count", 1)) for one in crossings)


def _who(crossings: list[dict[str, Any]], end: str) -> str:
    names = sorted({c[end] for c in crossings})
    return ", ".join(names) if len(names) <= 3 else f"{len(names)} parties"


def _arms(table: dict[str, Any]) -> str:
    several = any(len(cell["seeds"]) > 1 for r in table["rows"] for cell in r["cells"].values())
    bounds = any("low" in cell for r in table["rows"] for cell in r["cells"].values())
    shown = (" (each seed) mean" if several else "") + (" [95%]" if bounds else "")
    head = [table["axis"], *[c["title"] + shown for c in table["columns"]], "what crossed"]
    metrics = [c["metric"] for c in table["columns"]]
    cells = {r["row"]: [r["row"], *[_cell(r["cells"][m]) for m in metrics], r["guarantee"]] for r in table["rows"]}
    rows, apart = ([cells[r["row"]] for r in table["rows"] if r["apart"] is aside] for aside in (False, True))
    text = grid(head, rows + apart)
    if not apart:
        return text
    lines = text.split("\n")
    split = len(lines) - len(apart)
    return "\n".join([*lines[:split], "apart: weights trained on raw records are averaged", *lines[split:]])


def _cell(cell: dict[str, Any]) -> str:
    if cell["mean"] is None:
        return cell.get("note") or "-"
    bounds = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if "low" in cell else ""
    if len(cell["seeds"]) == 1:
        return f"{cell['mean']:.3f}{bounds}"
    return " ".join(f"{v:.3f}" for v in cell["seeds"].values()) + f"  {cell['mean']:.3f}{bounds}"


def _differences(table: dict[str, Any]) -> str:
    titles = {c["metric"]: c["title"] for c in table["columns"]}
    rows = [
        [f"{c['row']} - {c['against']}", titles[c["metric"]], f"{c['difference']:+.3f}", f"[{c['low']:+.3f}, {c['high']:+.3f}]"]
        for c in table["comparisons"]
    ]
    if not rows:
        return ""
    seeds = {c.get("seeds", 1) for c in table["comparisons"]}
    over = "one seed, nothing is said about others" if seeds == {1} else f"and {_span(seeds)} seeds"
    note = f"Paired by test record and seed, 95%: bootstrap over records, {over}"
    return f"{note}\n{grid(['difference', 'answering', 'mean', 'interval'], rows)}"


def _span(counts: set[int]) -> str:
    """A number, or the smallest and the largest."""
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


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


def schema_command(name: str | None, check: bool, write: Path | None) -> str:
    """`osmotic schema`: print one, check or write all."""
    from osmotic.schemas import generate

    folder = Path(generate.__file__).parent / "generated"
    if check:
        stale = generate.check(folder)
        if stale:
            raise StoreError(Problem(f"stale: {', '.join(stale)}", str(folder), fix=f"osmotic schema --write {folder}"))
        return "all generated schemas are up to date"
    if write is not None:
        generate.write(write)
        return f"written to {write}"
    known = sorted(p.name.removesuffix(".json").removesuffix(".schema") for p in folder.glob("*.json"))
    if name is None:
        return "\n".join(known)
    found = [p for p in folder.glob("*.json") if p.name.removesuffix(".json").removesuffix(".schema") == name]
    if not found:
        raise ConfigError(Problem(f"no schema is called {name!r}", fix=did_you_mean(name, known)))
    return found[0].read_text(encoding="utf-8")

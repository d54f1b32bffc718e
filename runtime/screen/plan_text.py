# SPDX-License-Identifier: Apache-2.0
"""The plan as text: what runs and why, what crosses, what models are asked, the budget. The tables fit the terminal's width."""

import textwrap
from typing import Any

from osmotic.runtime.privacy.composition import NOT_COMPUTED
from osmotic.runtime.screen.tables import grid, size, width

ROUNDS, NAMES = 60, 8  # sampled rounds that a plan shows, parties that it names in one
ESTIMATES = (
    "Estimates: a prompt is the template and an average record, 4 characters a token; answers are as long as they may be."
)


def plan_text(plan: dict[str, Any]) -> str:
    """The plan as text."""
    wide = width()
    tasks = [
        [t["task"], t["component"], t["at"], ",".join(t["axes"]), f"{t['cached']} of {t['instances']}", "; ".join(t["why"])]
        for t in plan["tasks"]
    ]
    crossings = [_crossing(c) for c in plan["crossings"]]
    sample = [_taking_part(one) for one in plan["rounds"]]
    parts = [f"{plan['pipeline']}: {plan['count']['tasks']} tasks, {plan['count']['cached']} finished before"]
    parts.append(grid(["task", "component", "at", "axes", "cached", "why the others run"], tasks, wide))
    if sample:
        more = f"\nand {len(sample) - ROUNDS} more: --json lists them all" if len(sample) > ROUNDS else ""
        parts.append(f"Who takes part\n{grid(['repeat', 'role', 'round', 'parties'], sample[:ROUNDS], wide)}{more}")
    if crossings:
        head = ["edge", "direction", "label", "kind", "times", "bytes", "waiver asked"]
        parts.append(f"What crosses\n{grid(head, crossings, wide)}")
    if plan.get("calls"):
        head = ["task", "model", "at", "runs", "calls", "tokens read", "tokens written, at most"]
        asked = grid(head, [_call(c) for c in plan["calls"]], wide)
        parts.append("\n".join(["What models are asked", *textwrap.wrap(ESTIMATES, wide), asked]))
    if plan["budget"]:
        head = ["party", "data set", "task", "asked", "class", "spent", "left", "cap"]
        units = " or ".join(dict.fromkeys(f"a {b['unit']}" for b in plan["budget"]))
        parts.append(f"Budget, {units}\n{grid(head, _budget(plan), wide)}")
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
    kind = f"{c['kind']}: {c['sum']}" if c.get("sum") else c["kind"]
    kind += f" ({c['enough']})" if c.get("enough") else ""
    return [c["edge"], f"{c['from']} -> {c['to']}", label, kind, str(c["count"]), moved(c), c["waive"] or ""]


def moved(row: dict[str, Any]) -> str:
    """Bytes of an edge's crossings: as they last happened, or an estimate, which says so."""
    if row["known"] == row["count"]:
        return f"{size(row['bytes'])} last time"
    return "not known yet" if row.get("estimate") is None else f"about {size(row['estimate'])}"


def _call(c: dict[str, Any]) -> list[str]:
    numbers = ["not known" if c[key] is None else f"about {c[key]:,}" for key in ("calls", "prompt_tokens", "new_tokens")]
    return [c["task"], c["model"], c["at"], str(c["instances"]), *numbers]


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
        left = f"{max(0.0, b['cap'] - b['spent']):g}" if b["cap"] and b["spent"] is not None else "-"
        rows.append((b["party"], b["dataset"], b["task"], asked + again, b["class"], spent, left, cap))
    times = {row: rows.count(row) for row in rows}
    return [[*row[:2], f"{row[2]} x {n}" if n > 1 else row[2], *row[3:]] for row, n in times.items()]

# SPDX-License-Identifier: Apache-2.0
"""Why a task would run or is found finished, what it depends on, who needs it, whose data its inputs carry and how these came
there: the chain of provenance in words. Reads, and changes nothing.
"""

from collections.abc import Mapping
from typing import Any

from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.flow import Flow
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.plan.planning import FINISHED, STOPPED, states_of
from osmotic.runtime.results.comparing import changes
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.labels import Label, Provenance
from osmotic.schemas.source import did_you_mean

AFTER, UNKNOWN = "after ", "not looked up: the plan is refused"
SHOWN = 12  # instances of a task that are told one by one


def explain(
    task: str, graph: Graph, configs: Configs, sites: Mapping[str, Site], inferred: Flow, refusals: list[Problem]
) -> dict[str, Any]:
    """Everything about one task as plain values: {task, component, at, runs, inputs, needed_by, refusals}.

    task: a task as written, or one run of it (``student[seed=1]@north``). Raises ConfigError for an unknown one.
    """
    found = chosen(graph, task)
    node = graph.nodes[found[0].node]
    states = {} if refusals else states_of(graph, configs, sites)
    path = ".".join(map(str, node.path))
    own = [p for p in refusals if p.path == path or p.path.startswith(f"{path}.")]
    return {
        "task": task,
        "component": node.spec.component,
        "at": node.spec.at,
        "runs": [_run(graph, sites, one, states) for one in found[:SHOWN]],
        "more": max(0, len(found) - SHOWN),
        "inputs": _inputs(graph, inferred, found, {p.path.removeprefix(f"{path}.inputs.") for p in own}),
        "needed_by": _needed_by(graph, found),
        "refusals": [vars(p) for p in own],
        "other_refusals": len(refusals) - len(own),
    }


def chosen(graph: Graph, task: str) -> list[Instance]:
    """The runs that a name means; raises ConfigError with what it may have been meant to be."""
    if task in graph.instances:
        return [graph.instances[task]]
    found = [one for one in graph.instances.values() if one.node == task]
    if not found:
        inside = {name.rpartition(".")[2]: name for name in graph.nodes if "." in name}
        known = inside.get(task)
        near = f"did you mean {known!r}?" if known else did_you_mean(task.partition("[")[0].partition("@")[0], graph.nodes)
        raise ConfigError(Problem(f"the pipeline {graph.pipeline.name!r} has no task {task!r}", fix=near))
    return found


def _run(graph: Graph, sites: Mapping[str, Site], instance: Instance, states: Mapping[str, str]) -> dict[str, Any]:
    """One run: whether it is finished, what differs from the last time, how long that took. root: what has to run first and
    why, where it is another task's inputs that changed.
    """
    state = states.get(instance.id, UNKNOWN)
    row: dict[str, Any] = {"id": instance.id, "party": instance.party, "state": state, "changes": [], "seconds": None}
    row["root"] = _root(graph, instance, states) if state.startswith(AFTER) else None
    site = sites.get(instance.party)
    bound = site.ledger.bound(instance.id) if site else None
    if site is None or bound is None:
        return row
    times = site.ledger.query("SELECT seconds FROM tasks WHERE key=?", (bound[0],))
    row["seconds"] = float(times[0][0]) if times else None
    if state not in FINISHED and site.graph is graph and (now := site.facts(instance)) is not None:
        row["changes"] = changes(bound[1], now)
    return row


def _root(graph: Graph, instance: Instance, states: Mapping[str, str]) -> dict[str, str]:
    """The first of the tasks before this one that has a reason of its own to run."""
    here, seen = instance, {instance.id}
    while states[here.id].startswith(AFTER):
        node = states[here.id].removeprefix(AFTER)
        before = [graph.instances[edge.producer] for edge in here.edges() if edge.producer not in seen]
        waiting = [one for one in before if one.node == node and states[one.id] not in FINISHED]
        if not waiting:
            break
        here = waiting[0]
        seen.add(here.id)
    return {"id": here.id, "state": states[here.id]}


def _inputs(graph: Graph, inferred: Flow, found: list[Instance], refused: set[str]) -> list[dict[str, Any]]:
    """One row an input and what is known of it: from where, whether it crosses, its label there and here, whose data.

    refused: ports at which something would cross that may not.
    """
    rows: dict[tuple[str, str, str, str], dict[str, Any]] = {}
    for instance in found:
        for edge in instance.edges():
            before = inferred.labels[(edge.producer, edge.port)]
            after = inferred.crossing.get((instance.id, edge.producer, edge.port), before)
            source = f"{graph.instances[edge.producer].node}.{edge.port}"
            key = (edge.name, source, before.word, after.word)
            port = edge.name.rpartition(".")[2]
            fresh = {
                "input": port, "from": source, "crosses": edge.crossing, "waive": edge.waive, "label": before.word,
                "label_here": after.word, "refused": port in refused, "of": f"{edge.sender} -> {edge.receiver}",
                "provenance": provenance(graph, inferred, edge, before), "edges": 0,
            }  # fmt: skip
            rows.setdefault(key, fresh)["edges"] += 1
    return list(rows.values())


def _needed_by(graph: Graph, found: list[Instance]) -> list[dict[str, Any]]:
    """Tasks that take something from this one: {task, input, port, to}: to the role that it crosses to, '' where it stays."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for instance in found:
        for consumer, edge in graph.consumers.get(instance.id, ()):
            to = graph.role_of[edge.receiver] if edge.crossing else ""
            fresh = {"task": consumer.node, "input": edge.name.rpartition(".")[2], "port": edge.port, "to": to, "edges": 0}
            rows.setdefault((edge.name, to), fresh)["edges"] += 1
    return list(rows.values())


# ---- the chain of provenance ----


def provenance(graph: Graph, inferred: Flow, edge: Edge, label: Label) -> list[str]:
    """Each entry of a label in words: whose data, and by which tasks they came here from where they entered the plan."""
    return [_chain(graph, inferred, edge, entry) for entry in sorted(label.entries)]


def _chain(graph: Graph, inferred: Flow, edge: Edge, entry: Provenance) -> str:
    """Back along edges that carry the entry, to the task that brought it in."""
    steps, seen = [graph.instances[edge.producer]], {edge.producer}
    while True:
        here = steps[-1]
        carrying = [e for e in here.edges() if e.producer not in seen and entry in _label(inferred, here, e).entries]
        if not carrying:
            break
        seen.add(carrying[0].producer)
        steps.append(graph.instances[carrying[0].producer])
    first, *between = reversed(steps)
    names = list(dict.fromkeys(one.node for one in between if one.node != first.node))
    way = f", then through {', '.join(names)}" if names else ""
    end = "; no release stands between" if entry.source == "raw" else ""
    return f"{_begun(graph, entry, first)}{way}{end}"


def _label(inferred: Flow, instance: Instance, edge: Edge) -> Label:
    """The label of an input as it arrives."""
    return inferred.crossing.get((instance.id, edge.producer, edge.port), inferred.labels[(edge.producer, edge.port)])


def _begun(graph: Graph, entry: Provenance, first: Instance) -> str:
    """Where an entry came into the plan."""
    component = graph.nodes[first.node].spec.component
    if entry.source == "raw":
        return f"private data of {entry.owner}: data set {entry.ref!r}, read by {first.node} ({component})"
    if entry.source == "release":
        maker = graph.instances.get(entry.ref.removeprefix("plan:"))
        node = maker.node if maker else first.node
        return f"data of {entry.owner} as released by {node} ({graph.nodes[node].spec.component})"
    seen = f", for the eyes of {', '.join(entry.observers)}" if entry.observers else ""
    return f"data of {entry.owner}, exposed for ever by the waiver of {entry.ref}{seen}"


def why_text(found: Mapping[str, Any]) -> str:
    """The explanation as text."""
    lines = [f"{found['task']}: {found['component']} at {found['at']}", ""]
    lines += [line for run in found["runs"] for line in _run_lines(run)]
    if found["more"]:
        lines.append(f"and {found['more']} more: name one of them, e.g. {found['runs'][0]['id']}")
    for problem in found["refusals"]:
        lines += ["", *_problem_lines(problem)]
    if found["other_refusals"]:
        lines += ["", f"{found['other_refusals']} more problems at other tasks: osmotic plan lists them"]
    lines += ["", "What it takes" if found["inputs"] else "It takes nothing from other tasks."]
    for one in found["inputs"]:
        across = f", crosses {one['of']}" if one["crosses"] else ""
        turned = f" (as it arrives: {one['label_here']})" if one["label"] != one["label_here"] else ""
        turned = " (may not cross)" if one["refused"] else turned
        lines.append(f"  {one['input']} from {one['from']}: {one['label']}{turned}{across}")
        lines += [f"      {text}" for text in one["provenance"] or ["public: it depends on nobody's data"]]
        lines += [f"      asks for a waiver: {one['waive']}"] if one["waive"] else []
    lines += ["", "Who needs it" if found["needed_by"] else "Nobody needs it: it is an end of the pipeline."]
    for one in found["needed_by"]:
        to = f", crosses to {one['to']}" if one["to"] else ""
        lines.append(f"  {one['task']} takes {one['port']} as {one['input']}{to}")
    return "\n".join(lines)


def _run_lines(run: Mapping[str, Any]) -> list[str]:
    state = run["state"]
    told = {"cached": "finished before, and found", STOPPED: STOPPED, UNKNOWN: UNKNOWN}
    text = told.get(state, f"would run: {state}")
    text += f", and that because of {run['root']['id']}: {run['root']['state']}" if run["root"] else ""
    took = f" (it took {run['seconds']:.1f} s)" if run["seconds"] is not None else ""
    values = [f"      {key}: {old} -> {new}" for one in run["changes"] for key, (old, new) in one["values"].items()]
    return [f"  {run['id']}: {text}{took}", *values]


def _problem_lines(problem: Mapping[str, Any]) -> list[str]:
    place = " ".join(one for one in (problem["where"], problem["path"]) if one)
    return [f"{place} {problem['what']}".strip(), *(f"    {problem[key]}" for key in ("why", "fix") if problem[key])]

# SPDX-License-Identifier: Apache-2.0
"""Estimates of a plan, before anything runs: rows of each task, bytes of each crossing, calls and tokens of models.

They are estimates: a task is taken to give as many rows as it takes; a prompt is its template and an average record, a token
four characters; every answer is as long as it may be. What asks in a loop is bounded by its own limit, where it has one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osmotic.plugins.contract import Records
from osmotic.runtime.party.endpoints import address_of
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.checks import Configs, model_fields
from osmotic.runtime.plan.graph import Edge, Graph

TOKEN, ROW = 4, 40  # characters of a token; bytes that a row has beside its text
LARGE = 50_000_000  # bytes of a file that a plan does not read for an estimate
SLOT = re.compile(r"\{\{[^}]*\}\}")  # of a template: what a record puts in there is in the record
LIMITS = ("queries", "max_queries", "editor_queries")


@dataclass(frozen=True)
class Shape:
    """How many rows a task takes, and how long one is in characters."""

    rows: int
    length: float


def shapes(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> dict[str, Shape]:
    """Instance -> what it probably gives; instances of which nothing can be said are left out."""
    known: dict[str, Shape] = {}
    files: dict[str, Shape | None] = {}
    for instance in graph.instances.values():
        source = any(out.label == "source" for out in graph.nodes[instance.node].component.outputs.values())
        if source:
            made = _bound(sites.get(instance.party), str(getattr(configs.of(instance), "data", "")), files)
        else:
            ports = [_together(graph, value, known) for value in instance.inputs.values()]
            made = max((port for port in ports if port), key=lambda shape: (shape.rows, shape.length), default=None)
        if made is not None:
            known[instance.id] = made
    return known


def _together(graph: Graph, value: Edge | tuple[Edge, ...], known: Mapping[str, Shape]) -> Shape | None:
    """What comes in at a port: the rows of all senders; nothing where no records come in."""
    edges = (value,) if isinstance(value, Edge) else value
    found = [known[edge.producer] for edge in edges if edge.producer in known and _rows(graph, edge)]
    return Shape(sum(one.rows for one in found), max(one.length for one in found)) if found else None


def _rows(graph: Graph, edge: Edge) -> bool:
    """Whether an edge carries records."""
    outputs = graph.nodes[graph.instances[edge.producer].node].component.outputs
    return outputs[edge.port].kind is Records


def _bound(site: Site | None, name: str, files: dict[str, Shape | None]) -> Shape | None:
    """A bound data set; parties that share a file read it once."""
    if site is None or not site.datasets.has(name) or site.datasets.path(name).stat().st_size > LARGE:
        return None
    key = site.datasets.fingerprint(name)
    if key not in files:
        rows = site.datasets.load(name)[0].rows
        text = sum(len(str(value)) for row in rows for value in row.values())
        files[key] = Shape(len(rows), text / len(rows)) if rows else None
    return files[key]


def size_of(kind: str, shape: Shape | None) -> int | None:
    """Bytes of an artifact that nobody has made yet; None: nothing can be said."""
    return int(shape.rows * (shape.length + ROW)) if kind == Records.kind and shape else None


def calls(
    graph: Graph, configs: Configs, known: Mapping[str, Shape], states: Mapping[str, str], finished: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Calls of models by tasks that will run: {task, model, at, instances, calls, prompt_tokens, new_tokens}, summed by task
    and model. calls, tokens: None where the rows are not known. at: the role that has the model, or the origin of its endpoint.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    places: dict[str, str] = {}
    for instance in graph.instances.values():
        config = configs.of(instance)
        longest = _longest(config)
        if longest is None or states.get(instance.id) in finished:
            continue
        for name in dict.fromkeys(getattr(config, key) for key in model_fields(config)):
            if name not in graph.pipeline.models:
                continue
            if name not in places:
                address = address_of(graph.registry, graph, name)
                places[name] = address.origin if address else graph.pipeline.models[name].at
            fresh = {"task": instance.node, "model": name, "at": places[name], "instances": 0}
            row = rows.setdefault((instance.node, name), {**fresh, "calls": 0, "prompt_tokens": 0, "new_tokens": 0})
            row["instances"] += 1
            _add(row, config, known.get(instance.id), longest)
    return list(rows.values())


def _longest(config: Any) -> int | None:
    """The most tokens that an answer may have; None for a task that asks for no text."""
    found = [getattr(config, key) for key in type(config).model_fields if key.startswith("max_new_tokens")]
    return max((one for one in found if isinstance(one, int)), default=None)


def _add(row: dict[str, Any], config: Any, shape: Shape | None, longest: int) -> None:
    """Add one instance's calls; what is not known of one is not known of the sum."""
    limits = [getattr(config, key, None) for key in LIMITS]
    limit = min((one for one in limits if isinstance(one, int)), default=None)
    if row["calls"] is None or (shape is None and limit is None):
        row.update(calls=None, prompt_tokens=None, new_tokens=None)
        return
    number = limit if limit is not None else shape.rows if shape else 0
    texts = [text for key, text in vars(config).items() if "template" in key and isinstance(text, str)]
    fixed = sum(len(SLOT.sub("", text)) for text in texts)
    row["calls"] += number
    row["prompt_tokens"] += round(number * (fixed + (shape.length if shape else 0)) / TOKEN)
    row["new_tokens"] += number * longest

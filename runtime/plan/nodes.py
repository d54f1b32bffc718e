# SPDX-License-Identifier: Apache-2.0
"""What a plan is made of: tasks as written (nodes), their runs (instances), what goes between them (edges)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from osmotic.plugins.contract import Metrics, Port
from osmotic.schemas.pipeline import Patch, Quorum, Repeat, Scalar, TaskSpec
from osmotic.schemas.secure import SecureSum
from osmotic.schemas.source import Key

Cell = tuple[tuple[str, Scalar], ...]
PLACEHOLDER = re.compile(r"\$\{([a-z]+)\.([A-Za-z0-9_-]+)\}")


@dataclass(frozen=True, slots=True)
class Edge:
    """One artifact that an instance takes: from which instance and port, at which party."""

    producer: str
    port: str
    sender: str
    receiver: str
    name: str  # task.input of the receiving task
    waive: str | None = None
    secure: SecureSum | None = None  # only the sum over all senders of this input arrives
    quorum: Quorum | None = None  # of the gather that it is part of

    @property
    def input(self) -> str:
        """The port of the receiving task."""
        return self.name.rpartition(".")[2]

    @property
    def crossing(self) -> bool:
        """Whether it goes from one party to another."""
        return self.sender != self.receiver


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of one component at one party. `inputs`: port -> edge, or a tuple of edges for a gathered port or a sum."""

    id: str
    node: str
    party: str
    cell: Cell
    round: int | None
    each: str | None
    inputs: Mapping[str, Edge | tuple[Edge, ...]]

    def edges(self) -> Iterator[Edge]:
        """Every edge that comes in."""
        for value in self.inputs.values():
            if isinstance(value, Edge):
                yield value
            else:
                yield from value


@dataclass(frozen=True)
class Reference:
    """What an input's text means: a node and port; carried: of the round before, and `start` in the first round."""

    node: str
    port: str
    carried: bool = False
    start: "Reference | None" = None

    def targets(self) -> "list[Reference]":
        """Everything that it can stand for, over all rounds."""
        return [self, self.start] if self.start else [self]


@dataclass
class Node:
    """A task as written, with what was found out about it. references: (port, text) -> what the text means."""

    name: str
    spec: TaskSpec
    path: Key
    group: str | None
    repeat: Repeat | None
    component: type[Any]
    ports: dict[str, Port]
    axes: tuple[str, ...] = ()
    references: dict[tuple[str, str], Reference] = field(default_factory=dict)


def metrics_port(node: Node) -> str | None:
    """The first output of a task that is metrics; None when it gives none."""
    return next((port for port, out in node.component.outputs.items() if out.kind is Metrics), None)


def word(value: Scalar) -> str:
    """An axis value as it is written in 'vary' and in identities."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def task_id(node: str, cell: Cell, round_: int | None, each: str | None, party: str) -> str:
    """``node[round=2,arm=x,for=north]@hub``"""
    parts = [f"{a}={word(v)}" for a, v in cell]
    if round_ is not None:
        parts.insert(0, f"round={round_}")
    if each is not None:
        parts.append(f"for={each}")
    return f"{node}[{','.join(parts)}]@{party}" if parts else f"{node}@{party}"


def patches(spec: TaskSpec, cell: Cell) -> list[Patch]:
    """The patches that apply in a cell, in the axes' order."""
    return [spec.vary[a][word(v)] for a, v in cell if a in spec.vary and word(v) in spec.vary[a]]


def all_patches(spec: TaskSpec) -> Iterator[tuple[Key, Patch]]:
    """(path below the task, patch) of every patch."""
    for axis, values in spec.vary.items():
        for value, patch in values.items():
            yield ("vary", axis, value), patch


def merge(base: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Deep: keys of `patch` replace those of `base`, dictionaries are merged."""
    merged = dict(base)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def fill(value: Any, cell: Mapping[str, Scalar], texts: Mapping[str, str]) -> Any:
    """A configuration with ``${matrix.AXIS}`` and ``${text.NAME}`` replaced; both always stand alone in a value."""
    if isinstance(value, dict):
        return {k: fill(v, cell, texts) for k, v in value.items()}
    if isinstance(value, list):
        return [fill(v, cell, texts) for v in value]
    found = PLACEHOLDER.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    return cell[found[2]] if found[1] == "matrix" else texts[found[2]]


def placeholders(value: Any, path: Key = ()) -> Iterator[tuple[Key, str, str, bool]]:
    """(path, kind, name, whether it stands alone) of every ``${KIND.NAME}`` in a configuration."""
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    elif isinstance(value, str):
        for found in PLACEHOLDER.finditer(value):
            yield path, found[1], found[2], found[0] == value
    for key, child in children:
        yield from placeholders(child, (*path, key))


def axes_in(spec: TaskSpec) -> set[str]:
    """Axes that a task names itself: in 'matrix', in 'vary', and as ``${matrix.AXIS}`` in a configuration."""
    configs = [spec.config, *(patch.config for _, patch in all_patches(spec))]
    return {*spec.matrix, *spec.vary, *(name for _, kind, name, _ in placeholders(configs) if kind == "matrix")}

# SPDX-License-Identifier: Apache-2.0
"""Repeats that stop early: which instances decide, whether a round is needed. Used by the plan and by the run alike."""

from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.schemas.pipeline import Until


def task_of(until: Until) -> str:
    """The task (inside the repeat) whose metric decides."""
    return until.metric.partition(":")[0].partition(".")[0]


class Stops:
    """What is known about the repeats of a graph. `at`: instances whose metric reached its bound -> their round."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.at: dict[str, int] = {}
        self._rounds: dict[tuple[str, int], list[Instance]] = {}
        for instance in graph.instances.values():
            self._rounds.setdefault((instance.node, instance.round or 0), []).append(instance)

    def gate(self, instance: Instance) -> list[str]:
        """Instances of the last round before that has any, whose metric decides whether this round is needed."""
        node = self.graph.nodes[instance.node]
        if node.repeat is None or node.repeat.until is None:
            return []
        earlier = (self.deciders(instance, round_) for round_ in range((instance.round or 1) - 1, 0, -1))
        return next(([i.id for i in found] for found in earlier if found), [])

    def deciders(self, instance: Instance, round_: int) -> list[Instance]:
        """Instances of a round whose metric decides about those of an instance's cell."""
        node = self.graph.nodes[instance.node]
        until = node.repeat.until if node.repeat else None
        name = f"{node.group}.{task_of(until)}" if until else ""
        cell = dict(instance.cell)
        return [i for i in self._rounds.get((name, round_), ()) if all(cell.get(a, v) == v for a, v in i.cell)]

    def port(self, instance: Instance) -> str | None:
        """The port of the metrics by which an instance decides about its repeat; None: it decides nothing."""
        node = self.graph.nodes[instance.node]
        until = node.repeat.until if node.repeat else None
        if until is None or instance.node != f"{node.group}.{task_of(until)}":
            return None
        parts = until.metric.partition(":")[0].split(".")
        return parts[1] if len(parts) > 1 else next(iter(node.component.outputs))

    def needs(self, instance: Instance) -> set[str]:
        """Instances that must be finished before this one is looked at."""
        needs = {edge.producer for edge in instance.edges()}
        if gate := self.gate(instance):
            needs |= {*gate, *([self.graph.before[instance.id]] if instance.id in self.graph.before else [])}
        return needs

    def stopped(self, instance: Instance) -> bool:
        """Whether the repeat of an instance has stopped before its round: what was there last stands for it."""
        if not self.at:
            return False
        for earlier in range(1, instance.round or 1):
            deciders = self.deciders(instance, earlier)
            if deciders and all(d.id in self.at for d in deciders) and self.gate(instance):
                return True
        return False

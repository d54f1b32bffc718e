# SPDX-License-Identifier: Apache-2.0
"""`require`: bounds on the metrics of a task, checked by the site that ran it; a metric that does not keep one fails the run.

That a run failed, and at which bound, is seen by everybody: it leaves the party. So a bound may stand only where the metric
could be shown as it is: where it is public or protected, or depends on benchmark data alone. A plan that asks for more is
refused; the label that the task's metrics really have is looked at again before a bound is.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from osmotic.plugins.contract import Metrics
from osmotic.runtime.plan.nodes import Instance, Node, metrics_port
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem, RefusedError, RequireError
from osmotic.schemas.labels import Label
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.source import Key, did_you_mean

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Ref, Site
    from osmotic.runtime.plan.graph import Graph

WAYS = "take 'require' away, or demand it of a metric that needs no private data, such as bayes_attacker's"


def kept_back(label: Label, policies: Mapping[str, SitePolicy]) -> list[str]:
    """What a label depends on that may not decide whether a run fails: 'data set of party', sorted.

    Raw data count unless their owner's policy says benchmark. Data exposed by a waiver are benchmark data; data exposed to
    the endpoint of a model may be private. An owner whose policy is not known here checks for itself.
    """
    found = set()
    for entry in (*label.of("raw"), *label.of("exposed")):
        policy = policies.get(entry.owner)
        if policy is None or (entry.source == "exposed" and not entry.ref.startswith("model ")):
            continue
        if entry.source == "exposed":
            found.add(f"what {entry.ref!r} was asked about data of {entry.owner}")
        elif entry.ref not in policy.data or policy.data[entry.ref].purpose != "benchmark":
            found.add(f"the data set {entry.ref!r} of {entry.owner}")
    return sorted(found)


def refusals(graph: "Graph", labels: Mapping[tuple[str, str], Label], policies: Mapping[str, SitePolicy]) -> Iterator[Problem]:
    """Bounds of a plan that may not be checked, one a task and reason, with their place."""
    told: set[tuple[str, str]] = set()
    for instance in graph.instances.values():
        node = graph.nodes[instance.node]
        port = metrics_port(node)
        if not node.spec.require or port is None:
            continue
        for one in kept_back(labels[(instance.id, port)], policies):
            if (node.name, one) not in told:
                told.add((node.name, one))
                yield _refusal(graph, node, one)


def _refusal(graph: "Graph", node: Node, one: str) -> Problem:
    path: Key = (*node.path, "require", next(iter(node.spec.require)))
    what = f"refused: the metric depends on {one}, which is private: whether the run fails would tell about it"
    return Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), fix=WAYS)


def check(site: "Site", instance: Instance, refs: "Mapping[str, Ref]") -> None:
    """Raise RequireError, located, when a metric of a task does not keep its bound; whether it ran now or was found finished.

    Raises RefusedError, whatever the value is, where the metric's label does not allow to tell; ConfigError for a metric that
    the task does not give.
    """
    from osmotic.runtime.privacy.accounts import may_show  # it imports the site, which imports this

    graph, _ = site.need()
    node = graph.nodes[instance.node]
    port = metrics_port(node)
    if not node.spec.require or port is None:
        return
    private = kept_back(refs[port].label, {site.party: site.policy})
    if private:
        raise RefusedError(_refusal(graph, node, private[0]))
    may_show(site, refs[port], f"whether {instance.id} keeps what is required")
    artifact = site.store.get(refs[port].kind, refs[port].digest)
    values = artifact.values if isinstance(artifact, Metrics) else {}
    problems, unknown = [], []
    for metric, bound in node.spec.require.items():
        path: Key = (*node.path, "require", metric)
        if metric not in values:
            what, fix = f"{instance.id} gives no metric {metric!r}", did_you_mean(metric, values)
            unknown.append(Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), fix=fix))
            continue
        for side, limit, broken in (
            ("max", bound.max, bound.max is not None and values[metric] > bound.max),
            ("min", bound.min, bound.min is not None and values[metric] < bound.min),
        ):
            if broken:
                problems.append(_violation(graph, instance, (*path, side), values[metric], limit))
    if unknown:
        raise ConfigError(*unknown)
    if problems:
        raise RequireError(*problems)


def may_tell(site: "Site", instance: Instance) -> bool:
    """Whether everybody may learn that a bound of a task was not kept: the task is finished, and its metric is not private.

    A component that raises RequireError by itself has not finished.
    """
    graph, _ = site.need()
    node = graph.nodes[instance.node]
    port = metrics_port(node)
    try:
        refs = site.lookup(instance.id)[0]
    except OsmoticError:
        return False
    if refs is None or port is None or not node.spec.require:
        return False
    return not kept_back(refs[port].label, {site.party: site.policy})


def _violation(graph: "Graph", instance: Instance, path: Key, value: float, limit: float | None) -> Problem:
    words = "at most" if path[-1] == "max" else "at least"
    what = f"{path[-2]} of {instance.id} is {value:.6g}, demanded is {words} {limit:g}"
    why = "the task itself is finished, and is found again by the next run"
    return Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), why)

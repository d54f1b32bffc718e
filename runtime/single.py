# SPDX-License-Identifier: Apache-2.0
"""One component at one party, from Python: a pipeline of one task over the same site, so the same membrane and ledger."""

from pathlib import Path
from typing import Any

import yaml

from osmotic.plugins.contract import Artifact, Records, input_ports
from osmotic.plugins.host import Registry
from osmotic.runtime.checks import Configs
from osmotic.runtime.graph import Graph
from osmotic.runtime.load import load_text
from osmotic.runtime.policies import Policies, open_site
from osmotic.runtime.run import locked
from osmotic.schemas.errors import ConfigError, Problem, RefusedError
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.source import did_you_mean, read, validate


def call_single(
    component: str, records: Records | None, config: dict[str, Any], policy: SitePolicy | Path, home: Path, party: str,
    inputs: dict[str, Artifact], data: str | None, registry: Registry,
) -> dict[str, Artifact]:  # fmt: skip
    """See `api.call`."""
    ports = input_ports(registry.component(component))
    unknown = [name for name in inputs if name not in ports]
    if unknown:
        raise ConfigError(Problem(f"{component} has no input {unknown[0]!r}", fix=did_you_mean(unknown[0], ports)))
    policies = _policies(policy, party)
    with locked(home):
        site = open_site(party, home, policies, registry)
        try:
            first = next(iter(ports), None)
            loads = records is None and first is not None and first not in inputs
            graph = _graph(component, config, party, data or "records", first if loads else None, registry)
            configs = Configs(graph)
            problems = site.objections(graph, configs)
            if problems:
                raise RefusedError(*problems)
            site.take(graph, configs)
            given = dict(inputs) if records is None or first is None else {first: records, **inputs}
            return _run(site, graph, party, given, data or "records")
        finally:
            site.ledger.close()


def _policies(policy: SitePolicy | Path, party: str) -> Policies:
    if isinstance(policy, SitePolicy):
        return Policies({party: policy}, Path(), None)
    return Policies({party: validate(SitePolicy, read(policy))}, policy.resolve().parent, policy)


def _graph(component: str, config: dict[str, Any], party: str, data: str, port: str | None, registry: Registry) -> Graph:
    """A pipeline with the component alone, behind a record_loader when its records come from the policy."""
    task: dict[str, Any] = {"component": component, "at": "caller", "config": config}
    tasks: dict[str, Any] = {"called": task}
    if port is not None:
        tasks = {"loaded": {"component": "record_loader", "at": "caller", "config": {"data": data}}, **tasks}
        task["inputs"] = {port: "loaded"}
    document = {"osmotic": 1, "name": "call", "parties": {"caller": party}, "tasks": tasks}
    return Graph(load_text(yaml.safe_dump(document), "osmotic.call"), registry)


def _run(site: Any, graph: Graph, party: str, given: dict[str, Artifact], data: str) -> dict[str, Artifact]:
    for instance in graph.instances.values():
        site.run(instance.id)
    refs = site.results[f"called@{party}"]
    return {port: site.store.get(ref.kind, ref.digest) for port, ref in refs.items()}

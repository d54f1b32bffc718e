# SPDX-License-Identifier: Apache-2.0
"""One component at one party, from Python: a pipeline of one task over the same site, so the same membrane and ledger.

What is given directly enters like a data set of the site: its label is the one that the policy's binding has.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Artifact, Component, Config, Context, Out, Outputs, Records, input_ports
from osmotic.plugins.host import Registered, Registry
from osmotic.runtime.party.data import Datasets
from osmotic.runtime.party.policies import Policies, open_site
from osmotic.runtime.party.site import Progress, Ref, Site
from osmotic.runtime.plan.checks import Configs, slot_problems
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import load_text
from osmotic.runtime.run import locked
from osmotic.schemas.artifacts import digest_of
from osmotic.schemas.errors import ConfigError, DataError, Problem, RefusedError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean, read, validate


class GivenConfig(Config):
    """Configuration of a given artifact's source: the data set that it counts as, and its content."""

    data: str
    digest: str


class GivenData(Datasets):
    """A site's data sets, where one name stands for what was given: no file is read for it.

    What was given is copied when it is loaded, so nobody can change it during the call: it is checked and hashed once.
    """

    def __init__(self, of: Datasets, name: str, records: Records | None) -> None:
        super().__init__(of.policy, of.base, of.party)
        self.name, self.records = name, records
        self._checked, self._content = False, ""

    def load(self, name: str) -> tuple[Records, RecordSchema]:
        """The given records, checked like a file's; any other data set as ever."""
        if name != self.name or self.records is None:
            return super().load(name)
        schema = self.schema(name)
        if not self._checked:
            problems = list(schema.check((f"record {i + 1}", row) for i, row in enumerate(self.records)))
            if problems:
                raise DataError(*problems)
            self._checked = True
        fields = ["id", *schema.fields]
        return Records([{key: row[key] for key in fields} for row in self.records], fields), schema

    def fingerprint(self, name: str) -> str:
        """Of the given content and the schema; `GivenConfig` has the digest of whatever is not records."""
        if name != self.name:
            return super().fingerprint(name)
        if self.records is not None and not self._content:
            checked, _ = self.load(name)
            self._content = digest_of(checked.kind, checked.to_files())
        return fingerprint([self._content, self.schema(name).model_dump(mode="json")])


@dataclass
class Call:
    """A component to be called. `data`: the binding of the policy whose data the given artifacts count as.

    after: told of the outputs and their labels while the site is open. progress: told how far the component has come.
    """

    component: str
    config: dict[str, Any]
    party: str
    data: str
    models: dict[str, Any]
    registry: Registry
    after: Callable[[Site, Mapping[str, Ref]], None] | None = None
    progress: Progress | None = None

    def run(
        self, records: Records | None, inputs: dict[str, Artifact], policy: SitePolicy | Path | Policies, home: Path
    ) -> dict[str, Artifact]:
        """The outputs by port; see `api.call`."""
        ports = input_ports(self.registry.component(self.component))
        unknown = [name for name in inputs if name not in ports]
        if unknown:
            raise ConfigError(Problem(f"{self.component} has no input {unknown[0]!r}", fix=did_you_mean(unknown[0], ports)))
        first = next((port for port in ports if port not in inputs), None)
        if records is not None and first is None:
            raise ConfigError(Problem(f"{self.component} has no input left for the records"))
        graph = self._graph(inputs, first if records is not None or not inputs else None)
        with locked(home):
            site = open_site(self.party, home, _policies(policy, self.party), self.registry)
            try:
                site.progress = self.progress or site.progress
                if records is not None or inputs:
                    site.datasets = GivenData(site.datasets, self.data, records)
                return self._outputs(site, graph)
            finally:
                site.ledger.close()

    def _outputs(self, site: Site, graph: Graph) -> dict[str, Artifact]:
        """Check the plan as for a pipeline, run it, read what the called task gave."""
        configs = Configs(graph)
        problems = slot_problems(graph, configs, self.party, site.datasets)
        if problems:
            raise ConfigError(*problems)
        problems = site.objections(graph, configs)
        if problems:
            raise RefusedError(*problems)
        site.take(graph, configs)
        for instance in graph.instances.values():
            site.run(instance.id)
        refs = site.results[f"called@{self.party}"]
        if self.after is not None:
            self.after(site, refs)
        return {port: site.store.get(ref.kind, ref.digest) for port, ref in refs.items()}

    def _graph(self, inputs: dict[str, Artifact], loaded: str | None) -> Graph:
        """The component behind a record_loader (port `loaded`) and a source for each given artifact."""
        registry = Registry(dict(self.registry.components), self.registry.mechanisms, self.registry.models)
        tasks: dict[str, Any] = {}
        called: dict[str, Any] = {"component": self.component, "at": "caller", "config": self.config, "inputs": {}}
        if loaded is not None:
            tasks["loaded"] = {"component": "record_loader", "at": "caller", "config": {"data": self.data}}
            called["inputs"][loaded] = "loaded"
        for port, artifact in inputs.items():
            name = f"given-{port.replace('_', '-')}"
            registry.components[name] = Registered(_source_of(name, artifact), "osmotic", "0")
            digest = digest_of(artifact.kind, artifact.to_files())
            tasks[name] = {"component": name, "at": "caller", "config": {"data": self.data, "digest": digest}}
            called["inputs"][port] = name
        document = {
            "osmotic": 1,
            "name": "call",
            "parties": {"caller": self.party},
            "models": {name: {**spec, "at": "caller"} for name, spec in self.models.items()},
            "tasks": {**tasks, "called": called},
        }
        try:
            text = json.dumps(document, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(Problem(f"the configuration cannot be written as JSON: {error}")) from error
        return Graph(load_text(text, "osmotic.call"), registry)


def _source_of(title: str, artifact: Artifact) -> type[Component[GivenConfig]]:
    """A component that gives an artifact, labelled as data of the binding that its configuration names."""

    class Given(Component[GivenConfig]):
        """An artifact given by the caller."""

        name = title
        outputs = {"given": Out(type(artifact), label="source")}

        def run(self, context: Context) -> Outputs:
            return {"given": artifact}

    return Given


def _policies(policy: SitePolicy | Path | Policies, party: str) -> Policies:
    if isinstance(policy, Policies):
        return policy
    if isinstance(policy, SitePolicy):
        return Policies({party: policy}, Path(), None)
    return Policies({party: validate(SitePolicy, read(policy))}, policy.resolve().parent, policy)

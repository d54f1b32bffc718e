# SPDX-License-Identifier: Apache-2.0
"""One party: its policy, store, ledger and copy of the plan. Runs its own tasks; knows the label of everything it holds."""

import contextlib
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Artifact, Gathered
from osmotic.plugins.host import Registry
from osmotic.runtime.party import endpoints, survivors
from osmotic.runtime.party.answers import Answers
from osmotic.runtime.party.context import SiteContext
from osmotic.runtime.party.data import Datasets, check_distinct
from osmotic.runtime.party.facts import each_of, facts_of
from osmotic.runtime.party.keys import key_of, use_threads, why
from osmotic.runtime.party.ports import RemoteModel, adopt_calls, inherit_calls
from osmotic.runtime.party.refs import Ref as Ref
from osmotic.runtime.plan import absence, asking, demands, flow, record_asks, secure_asks, totals
from osmotic.runtime.plan.checks import Configs, build_model, datasets_of, site_problems
from osmotic.runtime.plan.graph import Edge, Graph, Instance
from osmotic.runtime.plan.load import load_text
from osmotic.runtime.plan.quorum import WHYS
from osmotic.runtime.privacy.charging import EPSILON, cap_of
from osmotic.runtime.privacy.preparing import Prepared
from osmotic.runtime.privacy.questions import question_of
from osmotic.runtime.privacy.releases import Releaser
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.remembering import check_charged
from osmotic.runtime.storage.store import Store
from osmotic.runtime.storage.turns import Turns
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, OsmoticError, Problem, RefusedError
from osmotic.schemas.labels import Label, released
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy

Progress = Callable[[str, int, int, str], None]


class Site:
    """A party's runtime. `folder`: of store and journals; `vault`: of releases and charges; `base`: of its policy file."""

    def __init__(
        self, party: str, folder: Path, policy: SitePolicy, base: Path, registry: Registry, passing: bool = False,
        vault: Path | None = None,
    ) -> None:  # fmt: skip
        check_distinct(policy, base, party)
        self.party, self.policy, self.registry = party, policy, registry
        self.ledger = Ledger(folder, passing, vault)
        self.store = Store(folder / "store", passing)
        self.datasets = Datasets(policy, base, party)
        self.releaser = Releaser(self.ledger, registry, policy)
        self.graph: Graph | None = None
        self.configs: Configs | None = None
        self.results: dict[str, dict[str, Ref]] = {}
        self.received: dict[tuple[str, str, str], Ref] = {}
        self.progress: Progress = lambda task, done, total, note: None
        self.outbound: Callable[[str, dict[str, Any], bytes], tuple[dict[str, Any], bytes]] | None = None
        self.overdue: Callable[[OsmoticError], None] | None = None  # ends this party's process, with an answer
        self.exits: dict[str, str] = {}  # what the software around this party was given: edge -> task that made it
        self.absent: set[str] = set()  # instances that never came to be: their repeat stopped before, or a party was lost
        self.lost: dict[str, tuple[str, str]] = {}  # of those, the ones that were lost: with which party, why
        self.late: dict[str, dict[str, Ref]] = {}  # of the lost ones, what was made here all the same: others may have used it
        self.gathered: dict[tuple[str, str], dict[str, Any]] = {}  # who was there for what ran here (`survivors`)
        self.running: dict[str, str] = {}  # instance -> key of its work, while it runs
        self.turns: Turns | None = None  # where other processes work for this party too
        self._models: dict[str, Any] = {}
        self._model_keys: dict[str, str] = {}
        self._model_specs: dict[str, str] = {}

    # ---- the plan ----

    def accept(self, text: str, name: str, overrides: tuple[str, ...], folder: Path) -> None:
        """Read a plan, check it against the own policy; raises ConfigError or RefusedError and keeps nothing of it."""
        graph = Graph(load_text(text, name, overrides, folder), self.registry)
        configs = Configs(graph)
        problems = self.objections(graph, configs) + flow.infer(graph, {self.party: self.policy}).refusals
        if problems:
            raise RefusedError(*problems)
        self.take(graph, configs)

    def objections(self, graph: Graph, configs: Configs) -> list[Problem]:
        """What this party's policy says against a plan, crossings apart (`flow.infer` has those)."""
        if self.party not in graph.role_of:
            return [Problem(f"the plan has no party called {self.party!r}")]
        problems = site_problems(graph, configs, self.party, self.datasets)
        problems += endpoints.objections(graph, self.party, self.policy)
        problems += secure_asks.objections(self, graph, configs)
        return problems or asking.objections(self, graph, configs) or list(totals.refusals(self, graph, configs))

    def take(self, graph: Graph, configs: Configs) -> None:
        """Take a plan that was checked against this party's policy; StoreError for a ledger that has forgotten charges."""
        check_charged(self.ledger)
        self.graph, self.configs = graph, configs
        self.results, self.received, self.absent, self.lost, self.late = {}, {}, set(), {}, {}
        self.gathered = {}
        specs = {n: fingerprint(s.model_dump(mode="json")) for n, s in graph.pipeline.models.items()}
        self._models = {n: m for n, m in self._models.items() if self._model_specs.get(n) == specs.get(n)}
        self._model_keys = {n: m for n, m in self._model_keys.items() if self._model_specs.get(n) == specs.get(n)}
        self._model_specs = specs

    def asked(self, dataset: str, config: Any, graph: Graph | None = None) -> Prepared:
        """The mechanisms that a task's configuration asks for over a data set; nothing is certified or released."""
        schema, base = self.datasets.schema(dataset), self.datasets.base
        models = asking.OwnModels(self, graph or self.need()[0])
        return self.releaser.prepare(config.mechanism, config.fields, schema, base, certified=False, models=models)

    def cap(self, dataset: str) -> float | None:
        """The most epsilon that a document of a data set may ever cost; None: no cap."""
        return cap_of(self.policy, dataset, EPSILON)

    # ---- running ----

    def need(self) -> tuple[Graph, Configs]:
        """The accepted plan; raises RefusedError when there is none."""
        if self.graph is None or self.configs is None:
            raise RefusedError(Problem(f"{self.party} has accepted no plan"))
        return self.graph, self.configs

    def instance(self, identity: str) -> Instance:
        """An instance of the plan that runs here; refuses what the plan does not have."""
        graph, _ = self.need()
        found = graph.instances.get(identity)
        if found is None or found.party != self.party or identity in self.absent:
            raise RefusedError(Problem(f"the plan has no task {identity!r} at {self.party}"))
        return absence.without(graph, found, self.absent) if self.absent else found

    def leave_out(self, identity: str, party: str = "", why: str = "") -> None:
        """Take it that an instance never comes to be; raises RefusedError where that cannot be.

        party, why: with whom it was lost, and the class of the reason (`quorum.WHYS`); without: a repeat stopped before it.
        """
        graph, _ = self.need()
        if identity in self.absent and identity not in self.results:
            return  # told again
        if not party:
            absence.check(graph, identity, self.results)
        elif party not in graph.role_of or why not in WHYS:
            raise RefusedError(Problem(f"{identity} cannot be left out", why=f"{party!r} is no party, or {why!r} no reason"))
        else:
            absence.check_lost(graph, identity, self.absent, self.results)
            self.lost[identity] = (party, why)
            if (made := self.results.pop(identity, None)) is not None:
                self.late[identity] = made  # what came too late is not used any more
        self.absent.add(identity)

    def find(self, edge: Edge) -> Ref | None:
        """The artifact of an incoming edge, if it is here."""
        if edge.crossing:
            return self.received.get((edge.name, edge.producer, edge.port))
        return self.results.get(edge.producer, {}).get(edge.port)

    def facts(self, instance: Instance) -> dict[str, Any] | None:
        """What the instance's outputs depend on; None while an input is not here."""
        return facts_of(self, instance)

    def seed_of(self, instance: Instance) -> str:
        """The seed of the instance's streams: the axis ``seed`` if there is one, the round; never the arm."""
        return record_asks.seed_of(self.need()[0], instance)

    def model_key(self, name: str) -> str:
        """Fingerprint of a model of the pipeline."""
        if name not in self._model_keys:
            graph, _ = self.need()
            here = graph.pipeline.models[name].at == graph.role_of[self.party]
            made = (
                build_model(self.registry, graph, name).fingerprint()
                if here
                else f"{self.server_of(name)}:{self._model_specs[name]}"
            )
            self._model_keys[name] = made
        return self._model_keys[name]

    def server_of(self, name: str) -> str:
        """The party that answers calls of a model at another role."""
        pipeline = self.need()[0].pipeline
        return pipeline.parties[pipeline.models[name].at][0]

    def asked_at(self, name: str) -> str:
        """Who answers calls of a model: the party that has it, or the origin of its endpoint when it is at this role."""
        graph, _ = self.need()
        if graph.pipeline.models[name].at != graph.role_of[self.party]:
            return self.server_of(name)
        address = endpoints.address_of(self.registry, graph, name)
        return address.origin if address else self.party

    def own_model(self, name: str) -> Any:
        """A model at this role, built once."""
        if name not in self._models:
            self._models[name] = build_model(self.registry, self.need()[0], name).build()
        return self._models[name]

    def model(self, name: str, instance: Instance, label: Callable[[], Label] | None = None) -> Any:
        """A model of the pipeline: itself when it is at this role, behind a check when a server answers; else a port."""
        graph, _ = self.need()
        spec, seen = graph.pipeline.models[name], label or (lambda: self.label_in(instance))
        if spec.at == graph.role_of[self.party]:
            model, address = self.own_model(name), endpoints.address_of(self.registry, graph, name)
            if address is None:
                return model
            kept = Answers(self.ledger, [name, self.model_key(name)]) if instance.party == self.party else None
            return endpoints.EndpointModel(self, instance.id, name, model, address, seen, kept)
        return RemoteModel(self, instance, name, self.server_of(name), seen)

    def label_in(self, instance: Instance) -> Label:
        """The join of an instance's input labels."""
        return Label.join(ref.label for edge in instance.edges() if (ref := self.find(edge)) is not None)

    def lookup(self, identity: str) -> tuple[dict[str, Ref] | None, str, str]:
        """(outputs if finished before and intact, key, why it must run)."""
        instance = self.instance(identity)
        facts = self.facts(instance)
        if facts is None:
            return None, "", "waits for its inputs"
        key = key_of(facts)
        refs, damaged = self._finished(key)
        if refs is not None:
            return refs, key, "cached"
        bound = None if damaged else self.ledger.bound(identity)
        return None, key, "a stored artifact was damaged" if damaged else why(bound[1] if bound else None, facts)

    def _finished(self, key: str) -> tuple[dict[str, Ref] | None, bool]:
        """(outputs if finished before and intact, whether one was damaged)."""
        stored = self.ledger.finished(key)
        if stored is None:
            return None, False
        refs = {port: Ref.from_json(value) for port, value in stored.items()}
        if not all(self.store.intact(ref.kind, ref.digest) for ref in refs.values()):
            self.ledger.forget(key)
            return None, True
        return refs, False

    def run(self, identity: str) -> tuple[bool, float]:
        """Run one instance (or find it finished): (cached, seconds). Raises OsmoticError."""
        instance = self.instance(identity)
        facts = self.facts(instance)
        if facts is None:
            raise RefusedError(Problem(f"{identity}: an input has not arrived"))
        if self.graph is not None:
            survivors.record(self, self.graph.instances[identity])
        text = canonical(facts)
        key = hashlib.sha256(text).hexdigest()  # as `key_of` has it
        with self.turns.of(key) if self.turns else contextlib.nullcontext():
            refs, cached, seconds = self._once(instance, key, facts, text.decode())
        demands.check(self, instance, refs)
        self.results[identity] = refs
        return cached, seconds

    def _once(
        self, instance: Instance, key: str, facts: dict[str, Any], text: str
    ) -> tuple[dict[str, Ref], bool, float]:  # fmt: skip
        """(outputs, whether they were there, seconds): what is finished, also for another instance, is not done again.

        text: the facts as canonical JSON.
        """
        identity, seconds = instance.id, 0.0
        refs, _ = self._finished(key)
        cached = refs is not None
        if refs is None:
            start = time.perf_counter()
            self.running[identity] = key
            try:
                refs = self._execute(instance, key)
            finally:
                del self.running[identity]
            inherit_calls(self, identity, key)
            seconds = time.perf_counter() - start
            outputs = {port: ref.to_json() for port, ref in refs.items()}
            digests = {ref.digest for ref in refs.values()}
            self.ledger.finish(key, outputs, seconds, identity, text, lambda: self.store.sync(digests))
            self.store.clear_scratch(key)
        elif self.ledger.bound_key(identity) != key:
            adopt_calls(self, identity, key)
            self.ledger.bind(identity, key, facts)
        return refs, cached, seconds

    def alias(self, identity: str, earlier: str) -> None:
        """A round that was not needed (its repeat stopped) stands for the last one before it that the party took part in."""
        graph, _ = self.need()
        instance, before = self.instance(identity), self.instance(earlier)
        same = (instance.node, instance.cell, instance.each) == (before.node, before.cell, before.each)
        repeat = graph.nodes[instance.node].repeat
        made = earlier in self.results
        if not made or not same or repeat is None or repeat.until is None or graph.before.get(identity) != earlier:
            raise RefusedError(Problem(f"{identity} cannot stand for {earlier}"))
        self.results[identity] = self.results[earlier]

    def _execute(self, instance: Instance, key: str) -> dict[str, Ref]:
        graph, configs = self.need()
        use_threads(self.policy.threads)
        node, label = graph.nodes[instance.node], self.label_in(instance)
        component = node.component(configs.of(instance))
        if asking.is_feedback(configs.of(instance)) and label.of("raw"):
            asking.check_own(graph, configs, instance, set(), self._is_raw)
        found = [(edge, ref) for edge in instance.edges() if (ref := self.find(edge))]
        inputs = [ref for _, ref in found]
        context = SiteContext(
            party=self.party, task=instance.id, key=key, seed=self.seed_of(instance), noise_seed=graph.pipeline.noise_seed,
            label=label, lineage=lambda: datasets_of(graph, configs, instance), datasets=self.datasets, releaser=self.releaser,
            ledger=self.ledger, store=self.store, models=lambda name, label: self.model(name, instance, label),
            source=self._source_of(instance), own_models=asking.OwnModels(self, graph),
            question=lambda: question_of(graph, configs, instance, self.model_key, self.seed_of),
            progress=lambda done, total, note: self.progress(instance.id, done, total, note),
            private_inputs=sum(
                bool(ref.label.of("raw")) and not asking.own_rows(graph, configs, instance, edge, self._is_raw)
                for edge, ref in found
            ),
            seen=[ref.digest for ref in inputs if not ref.label.of("raw")],
        )  # fmt: skip
        arguments = {port: None for port in node.ports}  # an optional input that is not connected
        arguments |= {port: self._argument(value) for port, value in instance.inputs.items()}
        outputs = dict(component.run(context, **arguments))
        self._check_outputs(instance, outputs)
        return {port: self._keep(instance, port, artifact, context) for port, artifact in outputs.items()}

    def _is_raw(self, edge: Edge) -> bool:
        """Whether an artifact made here is private; one that is not here counts as such, one that never came to be does not.

        One that was made and is lost counts as what it is: a task before this may have read it.
        """
        ref = self.results.get(edge.producer, self.late.get(edge.producer, {})).get(edge.port)
        return bool(ref.label.of("raw")) if ref is not None else edge.producer not in self.absent

    def _source_of(self, instance: Instance) -> str | None:
        """The data set that an instance may ask for: a source's own, and nothing for any other component."""
        graph, configs = self.need()
        source = any(out.label == "source" for out in graph.nodes[instance.node].component.outputs.values())
        return str(configs.of(instance).data) if source else None

    def _argument(self, value: Edge | tuple[Edge, ...]) -> Any:
        if isinstance(value, Edge):
            return self._load(value)
        if value[0].secure is not None:
            return self._load(value[0])
        edges = {(e.sender if e.crossing else each_of(e)): e for e in value}
        openers = {party: (lambda e=e: self._load(e, whole=False)) for party, e in edges.items()}
        return Gathered({party: (lambda e=e: self._load(e)) for party, e in edges.items()}, openers)

    def _load(self, edge: Edge, whole: bool = True) -> Artifact:
        ref = self.find(edge)
        if ref is None:
            raise RefusedError(Problem(f"{edge.name}: the input has not arrived"))
        return (self.store.get if whole else self.store.open)(ref.kind, ref.digest)

    def _check_outputs(self, instance: Instance, outputs: dict[str, Any]) -> None:
        declared = self.need()[0].nodes[instance.node].component.outputs
        if set(outputs) != set(declared):
            what = f"{instance.id}: the component returned {sorted(outputs)}, declared are {sorted(declared)}"
            raise ComponentError(Problem(what))
        for port, artifact in outputs.items():
            if not isinstance(artifact, declared[port].kind):
                kind = declared[port].kind.__name__
                what = f"{instance.id}: output {port!r} is a {type(artifact).__name__}, declared is {kind}"
                raise ComponentError(Problem(what))

    def _keep(self, instance: Instance, port: str, artifact: Artifact, context: SiteContext) -> Ref:
        """Store an output; its label is computed here, never taken from the component or the plan."""
        graph, configs = self.need()
        digest = self.store.put(artifact)
        out = graph.nodes[instance.node].component.outputs[port]
        label = context.label
        if out.label == "source":
            label |= flow.source_label(self.party, configs.of(instance).data, {self.party: self.policy})
        elif out.label == "release":
            label = self._minted(context.made.get(digest), label)
        return Ref(artifact.kind, digest, label)

    def _minted(self, ref: str | None, joined: Label) -> Label:
        """The label of a release port: a release only if this very task released and charged these very bytes.

        Bytes that an earlier task released are not enough: which of several earlier releases it is would be a private choice.
        """
        if ref is None or not flow.raw_entries(joined, self.party):
            return joined
        kept = {e for e in joined.entries if e.source != "raw" or e.owner != self.party}
        return Label(frozenset(kept)) | released(self.party, ref)

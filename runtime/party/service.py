# SPDX-License-Identifier: Apache-2.0
"""What a site answers to the coordinator: a closed set of operations, each (header, bytes) -> (header, bytes).

Every transport carries exactly these. Results tell no more than the coordinator needs: ids of the plan, counts, codes; never
a digest of private data, never an error text (those go to the site's own log and, on one machine, to its console). Where
the operator is somebody else: no times, no progress, no reasons of a failure at a party that has private data.
"""

import contextlib
import json
import re
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Artifact, Document, Generation, Metrics, Records
from osmotic.runtime.party import fragments, membrane
from osmotic.runtime.party.deadlines import in_time
from osmotic.runtime.party.ports import record_call
from osmotic.runtime.party.site import Ref, Site
from osmotic.runtime.plan import demands
from osmotic.runtime.plan.checks import model_fields
from osmotic.runtime.plan.graph import Instance
from osmotic.runtime.privacy import accounts
from osmotic.runtime.reporting.gather import transcript
from osmotic.runtime.storage.ledger import now
from osmotic.runtime.storage.turns import Turns
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import (
    Code,
    ComponentError,
    MembraneError,
    OsmoticError,
    Problem,
    ProtocolFault,
    RequireError,
    StoreError,
)
from osmotic.schemas.labels import Label

if TYPE_CHECKING:
    from osmotic.runtime.secure.receiving import Receiving

OWN = ("share", "find")  # for processes of one party; elsewhere, what was found finished is nobody's business
Header = dict[str, Any]
Reply = tuple[Header, bytes]


def refusal(error: OsmoticError, local: bool) -> Header:
    """An error as a reply: its code and exit status, and its text only where the operator owns the site."""
    problems = [asdict(p) for p in error.problems] if local else []
    return {"error": {"code": str(error.code), "exit": error.exit_code, "problems": problems}}


def _internal(problem: Problem) -> OsmoticError:
    error = ComponentError(problem)
    error.code = Code.INTERNAL
    return error


class Service:
    """Dispatches operations to a site. `local`: the operator owns this site, so error texts may be shown."""

    def __init__(self, site: Site, local: bool) -> None:
        self.site, self.local = site, local
        self.sums: Receiving | None = None  # those that this party receives, while they are made
        self.failure: OsmoticError | None = None  # the last one, as software around this party may show it
        self.operations: dict[str, Callable[[Header, bytes], Reply]] = {
            "plan": self._plan,
            "status": self._status,
            "run": self._run,
            "alias": self._alias,
            "absent": self._absent,
            "fragment": lambda header, blob: fragments.answer(self.handle, header, blob),
            "share": self._share,
            "find": self._find,
            "held": self._held,
            "known": self._known,
            "pull": self._pull,
            "push": self._push,
            "until": self._until,
            "call": self._call,
            "sum": self._sum,
            "sum-receive": self._sum_receive,
            "metrics": self._metrics,
            "samples": self._samples,
            "document": self._document,
            "transcript": self._transcript,
            "account": self._account,
            "called": self._called,
            "hashes": self._hashes,
            "heads": self._heads,
            "settle": self._settle,
        }

    def handle(self, header: Header, blob: bytes) -> Reply:
        """Answer one request; errors become a header with a code from the closed list."""
        try:
            operation = self.operations.get(str(header.get("op")))
            if operation is None or (header["op"] in OWN and not self.local):
                raise ProtocolFault(Problem(f"unknown operation {header.get('op')!r}"))
            return operation(header, blob)
        except OsmoticError as error:
            self._log(header, str(error))
            return self._refused(header, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a component is a stranger's code; the site must go on and say so
            self._log(header, f"{type(error).__name__}: {error}", trace=True)
            why = f"{type(error).__name__}: {error}" if self.local else ""
            log = self.site.ledger.folder / "errors.log"
            problem = Problem(f"{self.site.party}: {header.get('id', header.get('op'))} failed", why=why, fix=f"trace in {log}")
            return self._refused(header, _internal(problem))

    def _refused(self, header: Header, error: OsmoticError) -> Reply:
        """The answer to a request that failed. Its reason is kept as well, unless it may quote private records.

        The software around this party shows what is kept, and tells others its code: so that is veiled too.
        """
        task, veiled = self._task_of(header), self._veiled(header, error)
        read = any(one.label == one.purpose == "private" for one in self.site.policy.data.values())
        self.failure = error
        if veiled is not error or (error.code == Code.DATA and read):
            log, about = self.site.ledger.folder / "errors.log", task.id if task else header.get("op")
            self.failure = OsmoticError(Problem(f"{about} failed ({veiled.code})", fix=f"the reason is in {log}"))
            self.failure.code, self.failure.exit_code = veiled.code, veiled.exit_code
        return refusal(error if self.local else veiled, self.local), b""

    def _task_of(self, header: Header) -> Instance | None:
        """The own task that a request is about whose failure may depend on records."""
        graph = self.site.graph
        task = graph.instances.get(str(header.get("id"))) if graph and header.get("op") in ("run", "alias", "until") else None
        return task if task is not None and task.party == self.site.party else None

    def _veiled(self, header: Header, error: OsmoticError) -> OsmoticError:
        """Why a task failed may depend on private records: elsewhere, every reason looks the same.

        What the plan alone decides (there is no such task here) keeps its code, and so does a task without private data,
        and a bound that a finished task did not keep (`demands` refuses those of private metrics).
        """
        task = self._task_of(header)
        if task is None:
            return error
        if isinstance(error, RequireError) and demands.may_tell(self.site, task):
            return error
        return ComponentError() if self._reads_private(task) else error

    def _reads_private(self, task: Instance) -> bool:
        """Whether a task's inputs are private, or it is a source of a data set that is not public."""
        graph, configs = self.site.need()
        if any(out.label == "source" for out in graph.nodes[task.node].component.outputs.values()):
            binding = self.site.policy.data.get(str(getattr(configs.of(task), "data", "")))
            return binding is None or binding.label == "private"
        return bool(self.site.label_in(task).of("raw"))

    def _log(self, header: Header, text: str, trace: bool = False) -> None:
        """Details stay at the site, in its own log."""
        log = self.site.ledger.folder / "errors.log"
        with contextlib.suppress(OSError), log.open("a", encoding="utf-8", errors="replace") as file:
            file.write(f"{now()} {header.get('op')} {header.get('id', '')}\n{text}\n")
            if trace:
                file.write(traceback.format_exc())

    def _plan(self, header: Header, blob: bytes) -> Reply:
        name, folder = str(header["name"]), Path(header["folder"]) if self.local else Path()
        if not self.local:  # a path of another machine says nothing here
            name = Path(name).name[:100]
        self.site.accept(blob.decode(), name, tuple(header["overrides"]), folder)
        return {"party": self.site.party}, b""

    def _status(self, header: Header, blob: bytes) -> Reply:
        """For each id, whether it is finished for the inputs known so far, and why not."""
        graph, _ = self.site.need()
        answers: dict[str, str] = {}
        for instance in graph.at(self.site.party):
            for edge in instance.edges():
                if edge.crossing and self.site.find(edge) is None:
                    membrane.known(self.site, instance.id, edge.producer, edge.port)
            refs, _, why = self.site.lookup(instance.id)
            if refs is not None:
                self.site.results[instance.id] = refs
            answers[instance.id] = why if self.local else "runs"  # what was found finished tells whether data have changed
        return {"status": answers}, b""

    def _run(self, header: Header, blob: bytes) -> Reply:
        with in_time(self.site, header["id"]):
            cached, seconds = self.site.run(header["id"])
        if not self.local:
            cached, seconds = False, 0.0
        return {"cached": cached, "seconds": seconds}, b""

    def _alias(self, header: Header, blob: bytes) -> Reply:
        self.site.alias(header["id"], header["earlier"])
        return {}, b""

    def _absent(self, header: Header, blob: bytes) -> Reply:
        """An instance of the plan, here or elsewhere, that never comes to be."""
        self.site.leave_out(header["id"], str(header.get("party", "")), str(header.get("why", "")))
        return {}, b""

    def _share(self, header: Header, blob: bytes) -> Reply:
        """Other processes work for this party too, over the same files: equal work is done by one of them."""
        self.site.turns = Turns(self.site.ledger.folder / "turns")
        return {}, b""

    def _find(self, header: Header, blob: bytes) -> Reply:
        """Take over what another process of this party has finished, for the inputs that are known here."""
        refs, _, why = self.site.lookup(header["id"])
        if refs is None:
            raise StoreError(Problem(f"{header['id']} has not been finished here", why=why))
        self.site.results[header["id"]] = refs
        return {}, b""

    def _held(self, header: Header, blob: bytes) -> Reply:
        """Digests of what this site last received over each incoming edge and still holds."""
        graph, _ = self.site.need()
        held = {}
        for instance in graph.at(self.site.party):
            for edge in instance.edges():
                if edge.crossing and (digest := membrane.known(self.site, instance.id, edge.producer, edge.port)):
                    held[membrane.edge_id(edge, instance.id)] = digest
        self.site.received.clear()
        return {"held": held}, b""

    def _known(self, header: Header, blob: bytes) -> Reply:
        return {"digest": membrane.known(self.site, header["id"], header["producer"], header["port"])}, b""

    def _pull(self, header: Header, blob: bytes) -> Reply:
        digest, out = membrane.send(self.site, header["id"], header["producer"], header["port"], header.get("have", ""))
        return {"digest": digest, "same": not out}, out

    def _push(self, header: Header, blob: bytes) -> Reply:
        return {"digest": membrane.receive(self.site, blob)}, b""

    def _until(self, header: Header, blob: bytes) -> Reply:
        """Whether a metric of this site has reached its bound: one bit, which may cross like anything else."""
        graph, _ = self.site.need()
        instance = self.site.instance(header["id"])
        node = graph.nodes[instance.node]
        until = node.repeat.until if node.repeat else None
        if until is None:
            raise MembraneError(Problem(f"{instance.id} belongs to no repeat that stops early"))
        ref = self.site.results[instance.id][header["port"]]
        accounts.may_show(self.site, ref, f"the decision to stop after {instance.id}")
        artifact = self.site.store.get(ref.kind, ref.digest)
        name = until.metric.partition(":")[2]
        if not isinstance(artifact, Metrics) or name not in artifact.values:
            known = sorted(artifact.values) if isinstance(artifact, Metrics) else []
            raise MembraneError(Problem(f"{instance.id} has no metric {name!r}", fix=f"known: {', '.join(known)}"))
        return {"stop": artifact.values[name] >= until.at_least}, b""

    def _call(self, header: Header, blob: bytes) -> Reply:
        """A model call from another party's task, which must name the model, and the model must be at this role in the plan."""
        graph, configs = self.site.need()
        name = header["model"]
        spec = graph.pipeline.models.get(name)
        task = graph.instances.get(str(header["task"]))
        if spec is None or task is None or spec.at != graph.role_of[self.site.party]:
            raise MembraneError(Problem(f"the plan has no model {name!r} here, or no task {header['task']!r}"))
        config = configs.of(task)
        if task.party != header.get("from") or name not in [getattr(config, key) for key in model_fields(config)]:
            raise MembraneError(Problem(f"{task.id} is not a task of the caller that asks the model {name!r}"))
        label = Label.from_json(header["label"])
        if label.of("raw"):
            raise MembraneError(Problem("a call with a raw label: what is raw does not cross"))
        record_call(self.site, header, blob, label, task.party, self.site.party, "in")
        model = self.site.model(name, task, lambda: label)  # an endpoint sees what the caller's data became, not ours
        items = json.loads(blob)
        if header["method"] == "generate":
            return {}, canonical(self._generate(model, items))
        if header["method"] == "log_likelihood":
            return {}, canonical([list(pair) for pair in model.log_likelihood([tuple(i) for i in items])])
        raise ProtocolFault(Problem(f"a model has no method {header['method']!r} that can be called from elsewhere"))

    def _sum(self, header: Header, blob: bytes) -> Reply:
        """A stage of a secure sum that a vector of this party goes into."""
        from osmotic.runtime.secure.serving import answer

        return answer(self.site, header, blob)

    def _sum_receive(self, header: Header, blob: bytes) -> Reply:
        """A stage of a secure sum that this party receives."""
        from osmotic.runtime.secure.receiving import Receiving

        self.sums = self.sums or Receiving(self.site)
        return self.sums.answer(header, blob)

    def _generate(self, model: Any, items: list[Any]) -> list[Any]:
        """Answer in groups of equal options, whatever their seeds, in the order asked."""
        answers: list[Any] = [None] * len(items)
        groups: dict[str, list[int]] = {}
        for i, (_, how) in enumerate(items):
            groups.setdefault(canonical({**how, "seed": 0}).decode(), []).append(i)
        for text, places in groups.items():
            how = json.loads(text)
            seeds = tuple(items[i][1].get("seed", 0) for i in places)
            one = {"seed": seeds[0], "seeds": seeds if len(set(seeds)) > 1 else ()}
            prompts, asked = [items[i][0] for i in places], Generation(**{**how, "stop": tuple(how["stop"]), **one})
            if hasattr(model, "stream"):
                made = dict(model.stream(prompts, asked))  # prompts without an answer say why, and the others have theirs
            else:
                made = dict(enumerate(model.generate(prompts, asked)))
            if set(made) != set(range(len(places))):
                raise ComponentError(Problem(f"{len(places)} prompts were asked, {len(made)} answers came"))
            for i, answer in made.items():
                answers[places[i]] = asdict(answer)
        return answers

    def _metrics(self, header: Header, blob: bytes) -> Reply:
        """Metrics of a task for the table of the whole: only of benchmark or public data."""
        ref, artifact = self._shown(header, "metrics")
        if not isinstance(artifact, Metrics):
            raise MembraneError(Problem(f"{header['id']}.{header['port']} is not metrics"))
        return accounts.benchmark(ref), canonical(artifact.to_json())

    def _samples(self, header: Header, blob: bytes) -> Reply:
        """The first records of an output for the report of the whole: only of benchmark or public data."""
        ref, artifact = self._shown(header, "samples")
        if not isinstance(artifact, Records):
            raise MembraneError(Problem(f"{header['id']}.{header['port']} is not records"))
        return accounts.benchmark(ref), canonical(accounts.without_ids(artifact.rows[: int(header["count"])]))

    def _document(self, header: Header, blob: bytes) -> Reply:
        """A document of a task (curve, counts, cost) for the report of the whole: only of benchmark or public data."""
        ref, artifact = self._shown(header, "document")
        if not isinstance(artifact, Document):
            raise MembraneError(Problem(f"{header['id']}.{header['port']} is not a document"))
        return accounts.benchmark(ref), canonical(artifact.data)

    def _transcript(self, header: Header, blob: bytes) -> Reply:
        """Kind, label and bytes of what this party sent over the plan's edges: all of it was on the envelopes."""
        return {}, canonical(transcript(self.site, self.site.need()[0]))

    def _shown(self, header: Header, what: str) -> tuple[Ref, Artifact]:
        """An output that may be shown to the operator of the whole; raises MembraneError when it may not."""
        ref = self.site.results[header["id"]][header["port"]]
        accounts.may_show(self.site, ref, f"{what} of {header['id']}")
        return ref, self.site.store.get(ref.kind, ref.digest)

    def _called(self, header: Header, blob: bytes) -> Reply:
        """Calls of models elsewhere, for the report of the whole; how many there were may follow private data, and stays."""
        data = self.site.policy.data.values()
        if not self.local and not all(one.label == "public" or one.purpose == "benchmark" for one in data):
            return {}, canonical([])
        return {}, canonical(accounts.called(self.site, self.site.need()[0]))

    def _account(self, header: Header, blob: bytes) -> Reply:
        """What these crossings cost this party: its guarantee, computed from its own ledger."""
        if self.local:
            return {}, canonical(accounts.account(self.site, header["crossings"]))
        graph, _ = self.site.need()
        edges = {membrane.edge_id(edge, consumer.id) for consumer, edge in graph.crossings()}
        edges |= {f"{identity}=>" for identity in graph.instances}
        found = accounts.account(self.site, [edge for edge in header["crossings"] if edge in edges])
        kept = {key: value for key, value in found.items() if key != "documents"}
        return {}, canonical({**kept, "detail": re.sub(r"\d+ tokens", "tokens", str(found["detail"]))})

    def _heads(self, header: Header, blob: bytes) -> Reply:
        """Keep the other parties' chain heads; answer with the own ones."""
        for party, heads in header["heads"].items():
            if party != self.site.party:
                self.site.ledger.keep_heads(party, {chain: str(heads[chain]) for chain in ("charges", "crossings")})
        return {"heads": self.site.ledger.heads()}, b""

    def _settle(self, header: Header, blob: bytes) -> Reply:
        """The run is over: write this party's own report into its own folder."""
        from osmotic.runtime.reporting.own import write_own

        write_own(self.site)
        return {}, b""

    def _hashes(self, header: Header, blob: bytes) -> Reply:
        """Digests of what crossed or may cross (private artifacts only for the local operator)."""
        found = {}
        for identity, refs in self.site.results.items():
            for port, ref in refs.items():
                if self.local or not ref.label.of("raw"):
                    found[f"{identity}.{port}"] = ref.digest
        return {"hashes": found}, b""

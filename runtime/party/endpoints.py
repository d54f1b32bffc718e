# SPDX-License-Identifier: Apache-2.0
"""A model behind a server is a party of its own, named by the server's origin: every call of it is a crossing to there.

Which servers a plan may use, what each may see and which key goes where stands in the site's policy under ``remote``. A call is
checked against the label of everything that the task has seen, and written to the transcript, before a prompt leaves.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation, config_type
from osmotic.plugins.host import Registry
from osmotic.runtime.party.answers import Answers
from osmotic.runtime.party.ports import CHOICE, MEND, SLICE, note_known, record_call, travelling
from osmotic.runtime.party.rules import check_entries
from osmotic.runtime.plan.checks import build_model, model_keys
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.schemas.addresses import Address
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, MembraneError, Problem
from osmotic.schemas.labels import Label
from osmotic.schemas.policy import Remote, SitePolicy

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site


# ---- what the plan and the policy say ----


def address_of(registry: Registry, graph: Graph, name: str) -> Address | None:
    """Where a model of the pipeline is asked; None for one that runs at its party. Raises ConfigError for no proper address."""
    endpoint = build_model(registry, graph, name).endpoint()
    if endpoint is None:
        return None
    try:
        return Address.parse(endpoint)
    except ValueError as error:
        raise ConfigError(Problem(f"the model {name!r} has an endpoint with no proper address", why=str(error))) from None


def granted(policy: SitePolicy, address: Address) -> Remote | None:
    """What a policy says of an address: the entry with the longest path that covers it."""
    covering = [remote for remote in policy.remote if remote.address.covers(address)]
    return max(covering, key=lambda remote: len(remote.address.path), default=None)


def objections(graph: Graph, party: str, policy: SitePolicy) -> Iterator[Problem]:
    """Endpoints that the plan would have this party ask, and keys that it would have it send, against its policy."""
    for name, spec in graph.pipeline.models.items():
        if spec.at != graph.role_of[party] or (address := address_of(graph.registry, graph, name)) is None:
            continue
        remote, variable = granted(policy, address), _variable(graph, name)
        if remote is None:
            fix = f"add 'remote: [{{url: \"{address}\"}}]' to the site file of {party}"
            what = f"{party} does not list the endpoint {address}"
            yield _at(graph, name, "url", what, "a plan may not choose where prompts go", fix)
        elif variable is not None and variable != remote.key:
            fix = f"add 'key: {variable}' to that endpoint in the site file of {party}"
            what = f"{party} does not send the environment variable {variable!r} to {address.origin}"
            yield _at(graph, name, "key_variable", what, "a plan may not choose which secret goes where", fix)


def _variable(graph: Graph, name: str) -> str | None:
    """The environment variable whose value a model sends: as its configuration is in the end, defaults filled in."""
    variable = getattr(build_model(graph.registry, graph, name).config, "key_variable", None)
    return None if variable is None else str(variable)


def _at(graph: Graph, name: str, key: str, what: str, why: str, fix: str) -> Problem:
    path = ("models", name, "config", key)
    return Problem(what, graph.loaded.source.where(path), ".".join(path), why, fix)


def crossing(party: str, policy: SitePolicy, address: Address, name: str, label: Label) -> tuple[Label, str]:
    """(the label of a call as it crosses from a party to an endpoint, why it is refused or '')."""
    remote, origin = granted(policy, address), address.origin
    if remote is None:
        return label, f"{party} does not list the endpoint {address}"
    raw = label.of("raw")
    others = sorted({entry.owner for entry in raw} - {party})
    if others:
        return label, f"raw data of {', '.join(others)} at {party}"
    if raw and remote.sees != "private":
        names = ", ".join(sorted({entry.ref for entry in raw}))
        return label, f"private data of {party} ({names}) would go to {origin}, which may see {remote.sees} data only"
    if label.entries and remote.sees == "public":
        return label, f"{label.word} data would go to {origin}, which may see public data only"
    label = label.exposed(party, f"model {name}", (origin,))
    for entry in label.of("exposed"):
        if origin not in entry.observers:
            seen = ", ".join(entry.observers)
            return label, f"data of {entry.owner}, exposed by {entry.ref}, may be seen by {seen} only, not by {origin}"
    return label, ""


@dataclass(frozen=True)
class Call:
    """Calls of one model by one task, as the plan has them. label: as it crosses to the endpoint."""

    task: str
    model: str
    sender: str
    address: Address
    label: Label


def planned(
    graph: Graph, addresses: Mapping[str, Address], instance: Instance, seen: Label, policies: Mapping[str, SitePolicy]
) -> Iterator[tuple[Call, str, str]]:
    """(call, configuration key that names the model, why it is refused or '') of an instance. seen: the join of its inputs.

    A party whose policy is not known here checks for itself.
    """
    node = graph.nodes[instance.node]
    config, model = graph.config_of(node, instance.cell), config_type(node.component)
    for key in model_keys(model):
        name = config.get(key, model.model_fields[key].default)
        if not isinstance(name, str) or name not in addresses:
            continue
        spec, label, why = graph.pipeline.models[name], seen, ""
        sender = instance.party
        if spec.at != graph.role_of[sender]:
            sender = graph.pipeline.parties[spec.at][0]
            if instance.party in policies:
                label = travelling(policies[instance.party], instance.party, sender, name, label)
            else:  # whether its data are private, and what it grants, says the label that comes with the call
                label = _without_raw(label, instance.party)
        if sender in policies:
            label, why = crossing(sender, policies[sender], addresses[name], name, label)
        yield Call(instance.id, name, sender, addresses[name], label), key, why


def untrusted(
    graph: Graph, instance: Instance, seen: Label, policies: Mapping[str, SitePolicy]
) -> Iterator[tuple[str, str, str]]:
    """(configuration key, party that has the model, why) of calls of models at a party that may not see the data, wherever that
    one asks them in turn.
    """
    policy = policies.get(instance.party)
    if policy is None or not seen.of("raw"):
        return
    node = graph.nodes[instance.node]
    config, model = graph.config_of(node, instance.cell), config_type(node.component)
    for key in model_keys(model):
        name = config.get(key, model.model_fields[key].default)
        spec = graph.pipeline.models.get(name) if isinstance(name, str) else None
        if spec is None or spec.at == graph.role_of[instance.party]:
            continue
        server = graph.pipeline.parties[spec.at][0]
        if server not in policy.endpoints:
            names = ", ".join(sorted({entry.ref for entry in seen.of("raw")}))
            why = f"private data of {instance.party} ({names}) would go to {server} with calls of the model {name!r}"
            yield key, server, why


def _without_raw(label: Label, owner: str) -> Label:
    return Label(frozenset(e for e in label.entries if e.owner != owner or e.source != "raw"))


# ---- at run time ----


class LackingError(ConfigError, AttributeError):
    """What a model behind an endpoint does not have; `hasattr` says no."""


class EndpointModel:
    """Stands before a model that asks a server. Has `generate` and `stream`; weights never come this way.

    What a task of this party asked before, the model's answer to it is given again, to any task that may ask. kept: where those
    answers are; a peer's stay with the peer, since how long an answer takes would tell another one what was asked before.
    """

    def __init__(
        self, site: "Site", task: str, name: str, model: Any, address: Address, label: Callable[[], Label],
        kept: Answers | None = None,
    ) -> None:  # fmt: skip
        self._site, self._task, self._name = site, task, name
        self._model, self._address, self._label = model, address, label
        self._kept = kept or Answers(site.ledger, None)

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "log_likelihood" and hasattr(self._model, attribute):
            return self._log_likelihood
        what = f"the model {self._name!r} is asked at {self._address.origin}: it has no {attribute!r} here"
        why = "only texts come from an endpoint: nothing can be trained there, and no weights can be put in"
        raise LackingError(Problem(what, why=why, fix="name a model that runs at this party"))

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt, in order; what the model raises for prompts without an answer."""
        if not prompts:
            return []
        prompts = tuple(prompts)
        with self._call("generate", _items(prompts, how)) as call:
            answers = {place: Answer(**value) for place, value in call.asked.found}
            if call.asked.keys:
                call.go()
                made: list[Answer] = self._model.generate(*_part(prompts, how, call.asked.first))
                if len(made) != len(call.asked.keys):
                    raise _miscounted(self._name, len(call.asked.keys), len(made))
                answers.update(call.came(list(enumerate(made))))
        return [answers[i] for i in range(len(prompts))]

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        """(index, answer) as they come, known ones first, each once. Checked and written down when the first is asked for."""
        with closing(self.batches(prompts, how)) as batches:
            for batch in batches:
                yield from batch

    def batches(self, prompts: Sequence[str], how: Generation) -> Generator[list[tuple[int, Answer]], None, None]:
        """The same, those together that came together."""
        if not prompts:
            return
        prompts = tuple(prompts)  # what was checked and written down is what goes, whatever becomes of the caller's list
        with self._call("generate", _items(prompts, how)) as call:
            found = call.asked.found
            for start in range(0, len(found), SLICE):
                yield [(place, Answer(**value)) for place, value in found[start : start + SLICE]]
            if call.asked.keys:
                call.go()
                with closing(self._arriving(*_part(prompts, how, call.asked.first))) as inner:
                    for batch in inner:
                        yield call.came(batch)

    def _arriving(self, prompts: Sequence[str], how: Generation) -> Generator[list[tuple[int, Answer]], None, None]:
        model = self._model
        if not hasattr(model, "batches") and not hasattr(model, "stream"):
            yield list(enumerate(model.generate(prompts, how)))
            return
        together = hasattr(model, "batches")
        inner = model.batches(prompts, how) if together else model.stream(prompts, how)
        try:
            for one in inner:
                yield one if together else [one]
        finally:
            if hasattr(inner, "close"):
                inner.close()

    def _log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        if not pairs:
            return []
        pairs = tuple(pairs)
        with self._call("log_likelihood", [list(pair) for pair in pairs]) as call:
            scores = {place: (float(value[0]), int(value[1])) for place, value in call.asked.found}
            if call.asked.keys:
                call.go()
                made: list[tuple[float, int]] = self._model.log_likelihood([pairs[i] for i in call.asked.first])
                if len(made) != len(call.asked.keys):
                    raise _miscounted(self._name, len(call.asked.keys), len(made))
                scores.update((i, score) for several, score in zip(call.asked.places, made, strict=True) for i in several)
                pairs_made = zip(call.asked.keys, made, strict=True)
                self._kept.keep({key: list(score) for key, score in pairs_made if math.isfinite(score[0])})
        return [scores[i] for i in range(len(pairs))]

    def _call(self, method: str, items: list[Any]) -> "_Call":
        """A call that is allowed; raises MembraneError before anything is found or leaves."""
        site, origin, seen = self._site, self._address.origin, self._label()
        label, why = crossing(site.party, site.policy, self._address, self._name, seen)
        if why:
            what = f"{self._task}: a call of the model {self._name!r} may not go to {origin}"
            why = f"{why}; {CHOICE}" if seen.of("raw") else why
            raise MembraneError(Problem(what, why=why, fix=f"{MEND}; what it may see stands under 'remote'"))
        check_entries(site, f"model {self._name}", origin, label)
        header = {"model": self._name, "method": method, "task": self._task, "label": label.to_json()}
        return _Call(site, origin, header, label, items, self._kept)


class _Call:
    """One call of a server: what of it was answered before, what goes, what comes; in the transcript and in the account."""

    def __init__(
        self, site: "Site", origin: str, header: dict[str, Any], label: Label, items: list[Any], kept: Answers
    ) -> None:  # fmt: skip
        self._site, self._origin, self._header, self._label = site, origin, header, label
        self._items, self._kept = items, kept
        self._noted: _Came | None = None
        self.asked = kept.sort(header["method"], items)

    def __enter__(self) -> "_Call":
        return self

    def __exit__(self, *error: object) -> None:
        if self._noted is not None and self._header["method"] == "generate":
            self._note(self._noted)
        elif self._noted is None and self.asked.found:
            note_known(self._site, self._header, canonical(self._items), self._label, self._origin)

    def go(self) -> None:
        """Write down what leaves now."""
        asked = [self._items[i] for i in self.asked.first]
        record_call(self._site, self._header, canonical(asked), self._label, self._site.party, self._origin, "out")
        self._noted = _Came()

    def came(self, batch: Sequence[tuple[int, Answer]]) -> list[tuple[int, Answer]]:
        """Answers by the places of their questions; those that did not fail are kept."""
        made, kept = [], {}
        for index, answer in batch:
            if not 0 <= index < len(self.asked.keys):
                raise _miscounted(self._header["model"], len(self.asked.keys), index + 1)
            if self._noted is not None:
                self._noted.add(index, answer)
            if not answer.problem:
                kept[self.asked.keys[index]] = asdict(answer)
            made += [(place, answer) for place in self.asked.places[index]]
        self._kept.keep(kept)
        return made

    def _note(self, came: "_Came") -> None:
        """Write to the transcript what came back: its size and digest, as it arrived."""
        header = self._header
        self._site.ledger.cross(
            edge=f"{header['task']}=>{header['model']}.{header['method']}", name=f"model {header['model']}",
            sender=self._origin, receiver=self._site.party, direction="in", kind=ANSWER, digest=came.digest,
            size=came.size, label=self._label,
        )  # fmt: skip


def _miscounted(name: str, asked: int, came: int) -> ComponentError:
    return ComponentError(Problem(f"the model {name!r} was asked {asked} questions, and gave {came} answers"))


def _part(prompts: Sequence[str], how: Generation, places: Sequence[int]) -> tuple[tuple[str, ...], Generation]:
    """Some of the prompts, and how these are asked."""
    seeds = tuple(how.of(i).seed for i in places) if how.seeds else ()
    return tuple(prompts[i] for i in places), replace(how, seeds=seeds)


ANSWER = "answer"  # a crossing whose sender keeps no transcript


def _items(prompts: Sequence[str], how: Generation) -> list[Any]:
    said = {**asdict(replace(how, seeds=())), "seeds": []}
    return [[prompt, {**said, "seed": how.of(i).seed}] for i, prompt in enumerate(prompts)]


class _Came:
    """Counts answers without keeping them."""

    def __init__(self) -> None:
        self.size = 0
        self._hash = hashlib.sha256()

    def add(self, index: int, answer: Answer) -> None:
        body = canonical([index, vars(answer)])
        self.size += len(answer.text.encode("utf-8", "replace"))
        self._hash.update(body + b"\n")

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

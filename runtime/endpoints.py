# SPDX-License-Identifier: Apache-2.0
"""A model behind a server is a party of its own, named by the server's origin: every call of it is a crossing to there.

Which servers a plan may use, what each may see and which key goes where stands in the site's policy under ``remote``. A call is
checked against the label of everything that the task has seen, and written to the transcript, before a prompt leaves.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation, config_type
from osmotic.plugins.host import Registry
from osmotic.runtime.checks import build_model, model_keys
from osmotic.runtime.graph import Graph, Instance
from osmotic.runtime.ports import record_call, travelling
from osmotic.runtime.rules import check_entries
from osmotic.schemas.addresses import Address
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, MembraneError, Problem
from osmotic.schemas.labels import Label
from osmotic.schemas.policy import Remote, SitePolicy

if TYPE_CHECKING:
    from osmotic.runtime.site import Site


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


def _without_raw(label: Label, owner: str) -> Label:
    return Label(frozenset(e for e in label.entries if e.owner != owner or e.source != "raw"))


# ---- at run time ----


class LackingError(ConfigError, AttributeError):
    """What a model behind an endpoint does not have; `hasattr` says no."""


class EndpointModel:
    """Stands before a model that asks a server. Has `generate` and `stream`; weights never come this way."""

    def __init__(self, site: "Site", task: str, name: str, model: Any, address: Address, label: Callable[[], Label]) -> None:
        self._site, self._task, self._name = site, task, name
        self._model, self._address, self._label = model, address, label

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
        header, _ = self._cross("generate", _items(prompts, how))
        answers: list[Answer] = self._model.generate(prompts, how)
        noted = _Came()
        for index, answer in enumerate(answers):
            noted.add(index, answer)
        self._note(header, noted)
        return answers

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        """(index, answer) as they come, each once. Checked and written down when the first one is asked for."""
        with closing(self.batches(prompts, how)) as batches:
            for batch in batches:
                yield from batch

    def batches(self, prompts: Sequence[str], how: Generation) -> Generator[list[tuple[int, Answer]], None, None]:
        """The same, those together that came together."""
        if not prompts:
            return
        prompts = tuple(prompts)  # what was checked and written down is what goes, whatever becomes of the caller's list
        header, _ = self._cross("generate", _items(prompts, how))
        noted, inner = _Came(), self._arriving(prompts, how)
        try:
            for batch in inner:
                for index, answer in batch:
                    noted.add(index, answer)
                yield batch
        finally:
            if hasattr(inner, "close"):
                inner.close()
            self._note(header, noted)

    def _arriving(self, prompts: Sequence[str], how: Generation) -> Iterator[list[tuple[int, Answer]]]:
        if hasattr(self._model, "batches"):
            found: Iterator[list[tuple[int, Answer]]] = self._model.batches(prompts, how)
            return found
        return self._one_by_one(prompts, how)

    def _one_by_one(self, prompts: Sequence[str], how: Generation) -> Iterator[list[tuple[int, Answer]]]:
        if not hasattr(self._model, "stream"):
            yield list(enumerate(self._model.generate(prompts, how)))
            return
        inner = self._model.stream(prompts, how)
        try:
            for one in inner:
                yield [one]
        finally:
            if hasattr(inner, "close"):
                inner.close()

    def _log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        if not pairs:
            return []
        pairs = tuple(pairs)
        self._cross("log_likelihood", [list(pair) for pair in pairs])
        found: list[tuple[float, int]] = self._model.log_likelihood(pairs)
        return found

    def _cross(self, method: str, items: list[Any]) -> tuple[dict[str, Any], Label]:
        """Check and record a call; raises MembraneError before anything leaves."""
        site, origin, seen = self._site, self._address.origin, self._label()
        label, why = crossing(site.party, site.policy, self._address, self._name, seen)
        if why:
            what = f"{self._task}: a call of the model {self._name!r} may not go to {origin}"
            fix = "sanitize first, or say what it may see under 'remote' in this site's policy"
            raise MembraneError(Problem(what, why=why, fix=fix))
        check_entries(site, f"model {self._name}", origin, label)
        header = {"model": self._name, "method": method, "task": self._task, "label": label.to_json()}
        record_call(site, header, canonical(items), label, site.party, origin, "out")
        return header, label

    def _note(self, header: dict[str, Any], came: "_Came") -> None:
        """Write to the transcript what came back: its size and digest, as it arrived."""
        self._site.ledger.cross(
            edge=f"{header['task']}=>{header['model']}.{header['method']}", name=f"model {header['model']}",
            sender=self._address.origin, receiver=self._site.party, direction="in", kind=ANSWER, digest=came.digest,
            size=came.size, label=Label.from_json(header["label"]),
        )  # fmt: skip


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

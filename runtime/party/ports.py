# SPDX-License-Identifier: Apache-2.0
"""Model ports: a model at another party, called from inside a task. Each call is a crossing with its own label, transcript
entry and cache; it is the only way out of a running component.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation
from osmotic.runtime.party.answers import Answers
from osmotic.runtime.party.rules import check_entries
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, MembraneError, PeerError, Problem
from osmotic.schemas.labels import Label
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site
    from osmotic.runtime.plan.graph import Instance

CALLS = "calls of the task"  # a journal: what crossed for a task's work, whichever instance of the plan did it
CHOICE = "whatever text is sent, which questions are asked depends on all that the task has read"
MEND = (
    "let the model run at the party; or trust where it is asked, in the site's policy; or ask in a task of its own, which reads"
    " released and public artifacts alone"
)
SLICE = 32  # prompts of a stream that are asked in one call: what a kill loses at most


def travelling(policy: SitePolicy, party: str, server: str, name: str, label: Label) -> Label:
    """The label that a party's call of a model at another party carries: its raw data is exposed to that party, and to the
    endpoints that its policy lets see private data, should the model be asked there.

    Labels know origins, not paths: an origin of which another entry of the policy says less is left out.
    """
    less = {remote.address.origin for remote in policy.remote if remote.sees != "private"}
    origins = sorted({remote.address.origin for remote in policy.remote} - less)
    return label.exposed(party, f"model {name}", (server, *origins))


class RemoteModel:
    """Stands for a model at another party. Has `generate`, `stream`, `log_likelihood`; its weights never come this way."""

    def __init__(self, site: "Site", instance: "Instance", name: str, party: str, label: Callable[[], Label]) -> None:
        self._site, self._instance, self._name, self._party, self._label = site, instance, name, party, label
        self._kept = Answers(site.ledger, ["port", party, name, site.model_key(name)])

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt; prompts asked before (same model, same options) are not sent again.

        Raises ComponentError when a prompt has no answer.
        """
        answers = self._ask(prompts, how)
        failed = sorted(answer.problem for answer in answers if answer.problem)
        if failed:
            why = ", ".join(f"{failed.count(word)} {word}" for word in dict.fromkeys(failed))
            raise ComponentError(Problem(f"{len(failed)} of {len(prompts)} prompts have no answer", why=why))
        return answers

    def stream(self, prompts: Sequence[str], how: Generation) -> Iterator[tuple[int, Answer]]:
        """(index, answer), a few prompts at a time; `Answer.problem` says why there is none."""
        for start in range(0, len(prompts), SLICE):
            yield from enumerate(self._ask(prompts[start : start + SLICE], how, start), start)

    def _ask(self, prompts: Sequence[str], how: Generation, start: int = 0) -> list[Answer]:
        items = [[prompt, asdict(how.of(i))] for i, prompt in enumerate(prompts, start)]
        try:
            return [Answer(**value) for value in self._call("generate", items)]
        except TypeError as error:
            raise PeerError(Problem(f"{self._party} sent an answer of another form")) from error

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities, tokens) of each target given its prompt."""
        values = self._call("log_likelihood", [list(pair) for pair in pairs])
        return [(float(total), int(count)) for total, count in values]

    def _call(self, method: str, items: list[Any]) -> list[Any]:
        label = self._allowed()  # what was answered before, to another task, is not therefore allowed to this one
        questions = self._kept.sort(method, items)
        answers = dict(questions.found)
        if questions.keys:
            came = self._send(method, [items[i] for i in questions.first], label)
            self._kept.keep({key: one for key, one in zip(questions.keys, came, strict=True) if not _failed(one)})
            for places, answer in zip(questions.places, came, strict=True):
                answers |= dict.fromkeys(places, answer)
        elif items:
            note_known(self._site, self._header(method, label), canonical(items), label, self._party)
        return [answers[i] for i in range(len(items))]

    def _header(self, method: str, label: Label) -> dict[str, Any]:
        return {"op": "call", "model": self._name, "method": method, "task": self._instance.id, "label": label.to_json()}

    def _send(self, method: str, items: list[Any], label: Label) -> list[Any]:
        site = self._site
        if site.outbound is None:
            raise PeerError(Problem(f"{site.party}: no way to reach the model {self._name!r}"))
        payload, header = canonical(items), self._header(method, label)
        record_call(site, header, payload, label, site.party, self._party, "out")
        reply, blob = site.outbound(self._party, header, payload)
        if "error" in reply:
            what = f"{self._party} could not answer a call of the model {self._name!r}"
            raise PeerError(Problem(what, why=reply["error"]["code"]))
        try:
            answers = json.loads(blob)
        except (ValueError, RecursionError) as error:
            raise PeerError(Problem(f"{self._party} sent no list of answers")) from error
        if not isinstance(answers, list) or len(answers) != len(items):
            raise PeerError(Problem(f"{self._party} did not answer {len(items)} questions one by one"))
        found: list[Any] = answers
        return found

    def _allowed(self) -> Label:
        """The label under which a call crosses: private data only towards an endpoint that the site trusts."""
        site = self._site
        label = self._label()
        if label.of("raw"):
            if self._party not in site.policy.endpoints:  # never by the model's name: the plan chooses that
                what = f"{self._instance.id}: a call of the model {self._name!r} would carry private data to {self._party}"
                raise MembraneError(Problem(what, why=CHOICE, fix=f"{MEND}; trusted is who stands under 'endpoints'"))
            label = travelling(site.policy, site.party, self._party, self._name, label)
        check_entries(site, f"model {self._name}", self._party, label)
        return label


def _failed(answer: Any) -> bool:
    """Whether it says why there is no answer: that is asked again."""
    return isinstance(answer, dict) and bool(answer.get("problem"))


def note_known(site: "Site", header: dict[str, Any], payload: bytes, label: Label, receiver: str) -> None:
    """Answers that were found crossed for another task: this one's account counts them too, once a label."""
    edge = f"{header['task']}=>{header['model']}.{header['method']}"
    sql = "SELECT 1 FROM crossed WHERE edge=? AND direction='out' AND label=?"
    if not site.ledger.query(sql, (edge, canonical(label.to_json()).decode())):
        record_call(site, header, payload, label, site.party, receiver, "out", 0)


def record_call(
    site: "Site", header: dict[str, Any], payload: bytes, label: Label, sender: str, receiver: str, way: str,
    size: int | None = None,
) -> None:  # fmt: skip
    """Write a model call to the transcript of one end; the account of the run counts it like any crossing.

    size: in bytes, if not the payload's; 0 for answers that were known already, since nothing went.
    """
    size, call = len(payload) if size is None else size, f"{header['model']}.{header['method']}"
    digest = fingerprint(payload.decode())
    site.ledger.cross(
        edge=f"{header['task']}=>{call}", name=f"model {header['model']}", sender=sender, receiver=receiver, direction=way,
        kind="call", digest=digest, size=size, label=label,
    )  # fmt: skip
    if way == "out" and (key := site.running.get(header["task"])):
        TaskJournal(site.ledger, key, CALLS).put_all({call: [digest, receiver, label.to_json()]})


def inherit_calls(site: "Site", identity: str, key: str) -> None:
    """Note the model calls of a task that was killed under the instance that went on with its journal: answers that were
    found there crossed, and belong to its account.
    """
    known = "SELECT 1 FROM crossed WHERE edge=? AND direction='out' AND label=?"
    sql = "SELECT key, value FROM journal WHERE task=? AND name=?"
    for call, value in site.ledger.query(sql, (key, CALLS)):
        digest, receiver, label = json.loads(value)
        edge = f"{identity}=>{call}"
        if not site.ledger.query(known, (edge, canonical(label).decode())):
            site.ledger.cross(
                edge=edge, name=f"model {call.rpartition('.')[0]}", sender=site.party, receiver=receiver, direction="out",
                kind="call", digest=digest, size=0, label=Label.from_json(label),
            )  # fmt: skip


def adopt_calls(site: "Site", identity: str, key: str) -> None:
    """Note the model calls of a finished task under an instance that it now stands for too: equal work is done once, but
    whatever crossed for it belongs to the account of each.
    """
    sql = "SELECT edge, digest, label FROM crossed WHERE direction='out' AND edge >= ? AND edge < ?"
    for (other,) in site.ledger.query("SELECT id FROM instances WHERE key=? AND id<>?", (key, identity)):
        for edge, digest, label in site.ledger.query(sql, (f"{other}=>", f"{other}=>\x7f")):
            call = edge.removeprefix(f"{other}=>")
            name = call.rpartition(".")[0]
            own = f"{identity}=>{call}"
            if site.ledger.query("SELECT 1 FROM crossed WHERE edge=? AND direction='out' AND label=?", (own, label)):
                continue
            site.ledger.cross(
                edge=own, name=f"model {name}", sender=site.party, receiver=site.asked_at(name), direction="out", kind="call",
                digest=digest, size=0, label=Label.from_json(json.loads(label)),
            )  # fmt: skip

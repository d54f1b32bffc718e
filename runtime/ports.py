# SPDX-License-Identifier: Apache-2.0
"""Model ports: a model at another party, called from inside a task. Each call is a crossing with its own label, transcript
entry and cache; it is the only way out of a running component.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation
from osmotic.runtime.ledger import TaskJournal
from osmotic.runtime.rules import check_entries
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import MembraneError, PeerError, Problem
from osmotic.schemas.labels import Label
from osmotic.schemas.messages import fingerprint

if TYPE_CHECKING:
    from osmotic.runtime.graph import Instance
    from osmotic.runtime.site import Site


class RemoteModel:
    """Stands for a model at another party. Has `generate` and `log_likelihood`; a model's weights never come this way."""

    def __init__(self, site: "Site", instance: "Instance", name: str, party: str, label: Callable[[], Label]) -> None:
        self._site, self._instance, self._name, self._party, self._label = site, instance, name, party, label
        self._cache = TaskJournal(site.ledger, fingerprint(["port", party, name, site.model_key(name)]), "calls")

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt; prompts asked before (same model, same options) are not sent again."""
        values = self._call("generate", [[p, asdict(how)] for p in prompts])
        return [Answer(**value) for value in values]

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(sum of log-probabilities, tokens) of each target given its prompt."""
        values = self._call("log_likelihood", [list(pair) for pair in pairs])
        return [(float(total), int(count)) for total, count in values]

    def _call(self, method: str, items: list[Any]) -> list[Any]:
        label = self._allowed()  # what was answered before, to another task, is not therefore allowed to this one
        keys = [fingerprint([method, item]) for item in items]
        asked: dict[str, Any] = {}
        for key, item in zip(keys, items, strict=True):
            if key not in asked and self._cache.get(key) is None:
                asked[key] = item
        if asked:
            answers = self._send(method, list(asked.values()), label)
            self._cache.put_all(dict(zip(asked, answers, strict=True)))
        elif items:
            self._note(self._header(method, label), canonical(items), label)
        return [self._cache.get(key) for key in keys]

    def _header(self, method: str, label: Label) -> dict[str, Any]:
        return {"op": "call", "model": self._name, "method": method, "task": self._instance.id, "label": label.to_json()}

    def _note(self, header: dict[str, Any], payload: bytes, label: Label) -> None:
        """Answers from the cache crossed for another task: this one's account counts them too, once a label."""
        edge = f"{header['task']}=>{header['model']}.{header['method']}"
        sql = "SELECT 1 FROM crossed WHERE edge=? AND direction='out' AND label=?"
        if not self._site.ledger.query(sql, (edge, canonical(label.to_json()).decode())):
            record_call(self._site, header, payload, label, self._site.party, self._party, "out", 0)

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
                fix = f"sanitize first, or list the party under 'endpoints' in this site's policy: [{self._party}]"
                raise MembraneError(Problem(what, fix=fix))
            label = label.exposed(site.party, f"model {self._name}", (self._party,))
        check_entries(site, f"model {self._name}", self._party, label)
        return label


def record_call(
    site: "Site", header: dict[str, Any], payload: bytes, label: Label, sender: str, receiver: str, way: str,
    size: int | None = None,
) -> None:  # fmt: skip
    """Write a model call to the transcript of one end; the account of the run counts it like any crossing.

    size: in bytes, if not the payload's; 0 for answers that were known already, since nothing went.
    """
    size = len(payload) if size is None else size
    site.ledger.cross(
        edge=f"{header['task']}=>{header['model']}.{header['method']}", name=f"model {header['model']}", sender=sender,
        receiver=receiver, direction=way, kind="call", digest=fingerprint(payload.decode()), size=size, label=label,
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
                edge=own, name=f"model {name}", sender=site.party, receiver=site.server_of(name), direction="out", kind="call",
                digest=digest, size=0, label=Label.from_json(json.loads(label)),
            )  # fmt: skip

# SPDX-License-Identifier: Apache-2.0
"""A party's own report: written by its site into its own folder, never sent anywhere.

It shows what the report of the whole may not: scores and rejected rationales that depend on private data. Of other parties it
knows only what crossed.
"""

import json
from dataclasses import asdict
from typing import Any

from osmotic.plugins.contract import Document, Metrics, Records
from osmotic.runtime.party.site import Site
from osmotic.runtime.party.survivors import told
from osmotic.runtime.plan.flow import infer
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.privacy.accounts import account, called
from osmotic.runtime.reporting.gather import books, guessed, planned, transcript
from osmotic.runtime.reporting.page import render
from osmotic.runtime.results.summary import summarise
from osmotic.runtime.run import Crossed, Outcome
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import MembraneError, Problem


class OwnView:
    """Answers what a summary asks from one site's own store; of other parties it has nothing to say."""

    parallel = False

    def __init__(self, site: Site) -> None:
        self.site = site

    def request(self, party: str, header: dict[str, Any], blob: bytes = b"") -> tuple[dict[str, Any], bytes]:
        """Accounts, transcript, metrics, samples and documents of the own party, without the check of what others may see."""
        if party != self.site.party:
            return self._received(party, header)
        if header["op"] == "account":
            return {}, canonical(account(self.site, header["crossings"]))
        if header["op"] == "called":
            return {}, canonical(called(self.site, self.site.need()[0]))
        if header["op"] == "transcript":
            graph = self.site.need()[0]
            return {}, canonical({**transcript(self.site, graph, "in"), **transcript(self.site, graph)})
        ref = self.site.results[header["id"]][header["port"]]
        artifact = self.site.store.get(ref.kind, ref.digest)
        if header["op"] == "metrics" and isinstance(artifact, Metrics):
            return {}, canonical(artifact.to_json())
        if header["op"] == "samples" and isinstance(artifact, Records):
            return {}, canonical(artifact.rows[: int(header["count"])])
        if header["op"] == "document" and isinstance(artifact, Document):
            return {}, canonical(artifact.data)
        return _withheld("it is of another kind")

    def _received(self, party: str, header: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Of another party's outputs there are those that this one was sent."""
        sent = ((ref, port) for (_, producer, port), ref in self.site.received.items() if producer == header.get("id"))
        ref = next((ref for ref, port in sent if port == header.get("port")), None)
        if ref is None or header["op"] != "samples":
            return _withheld(f"it is at {party}")
        artifact = self.site.store.get(ref.kind, ref.digest)
        return (
            ({}, canonical(artifact.rows[: int(header["count"])]))
            if isinstance(artifact, Records)
            else _withheld("not records")
        )

    def close(self) -> None:
        """Nothing to let go of."""


def write_own(site: Site) -> None:
    """Write ``report.html`` and ``results.json`` into the party's folder."""
    graph, configs = site.need()
    outcome = Outcome(crossings=crossings_of(graph, site.ledger), times=times_of(graph, site.ledger), absent=site.absent)
    outcome.quorums = told(site)
    here = {site.party: site.policy}
    plan = planned(graph, infer(graph, here), {}, guessed(graph, configs, {site.party: site}), (site.party,))
    found = summarise(graph, OwnView(site), outcome, parties=(site.party,), plan=plan)
    found |= {"home": str(site.ledger.folder), "party": site.party, "ledger": [books(site)]}
    (site.ledger.folder / "results.json").write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")
    (site.ledger.folder / "report.html").write_text(render(found), encoding="utf-8")


def crossings_of(graph: Graph, ledger: Ledger) -> list[Crossed]:
    """What this party sent and received over the plan's edges, as its transcript says last."""
    edges = {f"{e.producer}.{e.port}->{i.id}" for i, e in graph.crossings()}
    found: dict[str, Crossed] = {}
    for (body,) in ledger.query("SELECT body FROM crossings ORDER BY seq"):
        entry = json.loads(body)
        if entry["edge"] in edges:
            found[entry["edge"]] = Crossed(entry["edge"], entry["name"], entry["from"], entry["to"], entry["bytes"])
    return list(found.values())


def times_of(graph: Graph, ledger: Ledger) -> dict[str, float]:
    """Seconds of this party's tasks, as they last ran; 0 for the others'."""
    times = dict.fromkeys(graph.instances, 0.0)
    rows = ledger.query("SELECT instances.id, tasks.seconds FROM instances JOIN tasks ON tasks.key = instances.key")
    return {**times, **{identity: seconds for identity, seconds in rows if identity in times}}


def _withheld(why: str) -> tuple[dict[str, Any], bytes]:
    """The answer of a site that keeps something back."""
    problems = [asdict(Problem(why))]
    return {"error": {"code": str(MembraneError.code), "exit": MembraneError.exit_code, "problems": problems}}, b""

# SPDX-License-Identifier: Apache-2.0
"""What a party gives FATE at the end: artifacts, a report as JSON, metrics. Every output that FATE declares is written.

The report has what others may know of this party, and no more: its guarantee, what crossed (edge, sender, receiver, bytes),
digests of what is not private, the heads of its ledger; at the coordinator the table too, of metrics that each party let be
shown.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic import __version__
from osmotic.plugins.contract import Metrics
from osmotic.runtime.fate.handing import FOLDERS, JSON, hand, nothing
from osmotic.runtime.fate.link import Link
from osmotic.runtime.fate.wire import Place
from osmotic.runtime.party.membrane import edge_id
from osmotic.runtime.party.service import Service
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.nodes import word
from osmotic.runtime.privacy import accounts
from osmotic.runtime.reporting.own import crossings_of
from osmotic.runtime.storage.store import disk
from osmotic.schemas.errors import ConfigError, MembraneError, Problem
from osmotic.schemas.labels import Label

if TYPE_CHECKING:
    from osmotic.runtime.fate.share import Share


def give(share: "Share", link: Link, summary: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write every output and tell the metrics; returns a few words for each output. summary: of the whole, if it is known."""
    found = dict(hand_over(share))
    for name, place in share.start.outputs.items():
        if place.type in JSON:
            report = report_of(share, summary)
            write_json(path_of(place), report)
            found[name] = {"kind": "report", "guarantee": report["guarantee"]["word"]}
        elif place.type not in FOLDERS:
            raise ConfigError(Problem(f"is a {place.type}, which nothing here writes", path=f"outputs.{name}"))
        elif name not in found:
            found[name] = nothing(path_of(place))
    for name, value, step in metrics(share.site):
        link.say({"frame": "metric", "name": name, "value": value, "step": step})
    return found


def hand_over(share: "Share") -> dict[str, dict[str, Any]]:
    """Write the artifacts, once. This comes before any guarantee is computed: what goes to FATE counts in it."""
    if share.given_out is None:
        share.given_out = {one.name: hand(share.site, one, path_of(one.place)) for one in share.handed}
    return share.given_out


def path_of(place: Place) -> Path:
    """Where an output of FATE lies."""
    return Path(place.path.removeprefix("file://"))


def write_json(path: Path, value: Any) -> None:
    """One JSON file."""
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")


def report_of(share: "Share", summary: Mapping[str, Any] | None) -> dict[str, Any]:
    """The report of one party, as others may see it."""
    site, graph = share.site, share.graph
    service = Service(site, local=False)
    edges = [edge_id(edge, consumer.id) for consumer, edge in graph.crossings()] + [f"{one}=>" for one in graph.instances]
    account = json.loads(service.handle({"op": "account", "crossings": edges}, b"")[1])
    found: dict[str, Any] = {
        "osmotic": __version__, "pipeline": graph.pipeline.name, "party": share.party, "parties": share.names,
        "guarantee": account, "heads": site.ledger.heads(),
        "crossings": [vars(crossed) for crossed in crossings_of(graph, site.ledger)], "handed": handed_of(site),
        "digests": service.handle({"op": "hashes"}, b"")[0]["hashes"],
    }  # fmt: skip
    if summary is not None:
        found |= {"line": summary["guarantee"]["line"], "table": summary["table"]}
    return found


def handed_of(site: Site) -> list[dict[str, str]]:
    """What FATE was given, as the transcript has it: {edge, label in a word}."""
    found = []
    for edge in sorted(site.exits):
        for (label,) in site.ledger.query("SELECT label FROM crossed WHERE edge=?", (edge,)):
            found.append({"edge": edge, "label": Label.from_json(json.loads(label)).word})
    return found


def metrics(site: Site) -> list[tuple[str, float, int]]:
    """(name, value, round) of this party's metrics that may be shown: those of benchmark and public data alone."""
    graph, found = site.need()[0], []
    for identity, refs in site.results.items():
        instance = graph.instances[identity]
        axes = ",".join(f"{axis}={word(value)}" for axis, value in instance.cell)
        for port, ref in refs.items():
            if ref.kind != Metrics.kind:
                continue
            try:
                accounts.may_show(site, ref, f"metrics of {identity}")
            except MembraneError:
                continue
            artifact = site.store.get(ref.kind, ref.digest)
            if isinstance(artifact, Metrics):
                name = f"{instance.node}[{axes}]" if axes else instance.node
                found += [(f"{name}.{port}:{key}", value, instance.round or 0) for key, value in artifact.values.items()]
    return found

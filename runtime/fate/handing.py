# SPDX-License-Identifier: Apache-2.0
"""Artifacts handed to FATE: a crossing to the software around a party, decided by labels and by that party's own policy.

Handed over is what was released, what is public, and what depends on benchmark data; anything else only when the site's policy
lists it under `handover`. A folder holds the artifact's files as the store has them and a manifest.json that says what they
are: FATE loses a folder's own metadata between tasks. What was handed over stands in the party's transcript and counts in its
guarantee like any crossing: unprotected records make the run unprotected, releases are charged once.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic import __version__
from osmotic.runtime.fate.folders import MANIFEST
from osmotic.runtime.fate.wire import Place
from osmotic.runtime.party import membrane
from osmotic.runtime.party.site import Ref, Site
from osmotic.runtime.plan.flow import infer
from osmotic.runtime.plan.graph import Graph, Instance
from osmotic.runtime.storage.store import disk
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, MembraneError, Problem
from osmotic.schemas.labels import Label
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.source import did_you_mean

FOLDERS = {"data_directory": ("records", "document", "metrics"), "model_directory": ("weights",)}
JSON = ("json_model", "json_metric")
OUTSIDE = "fate"  # who gets what is handed over
_REFERENCE = re.compile(r"([^\[\]]+?)(?:\[([^\[\]]*)\])?(?:\.([a-z][a-z0-9_]*))?")


@dataclass(frozen=True)
class Handed:
    """One output of FATE and what goes there."""

    name: str
    place: Place
    task: Instance
    port: str

    @property
    def allowed_as(self) -> str:
        """Its name in a policy."""
        return f"{self.task.node}.{self.port}"


def planned(
    graph: Graph, policy: SitePolicy, party: str, given: Mapping[str, str], places: Mapping[str, Place]
) -> list[Handed]:  # fmt: skip
    """What this party hands over, checked before anything runs. Raises ConfigError or MembraneError, with every problem."""
    problems, found = [], []
    for name, reference in given.items():
        path = f"parameters.outputs.{name}"
        try:
            found.append(_planned(graph, party, name, reference, places))
        except ConfigError as error:
            problems += [Problem(p.what, p.where, path, p.why, p.fix) for p in error.problems]
    if problems:
        raise ConfigError(*problems)
    labels = infer(graph, {party: policy}).labels if found else {}
    refused = [why for one in found if (why := _refusal(policy, party, one.allowed_as, labels[(one.task.id, one.port)]))]
    if refused:
        raise MembraneError(*refused)
    return found


def _planned(graph: Graph, party: str, name: str, reference: str, places: Mapping[str, Place]) -> Handed:
    place = places.get(name)
    if place is None or place.type not in FOLDERS:
        folders = [key for key, one in places.items() if one.type in FOLDERS]
        raise ConfigError(Problem(f"FATE's task has no output folder {name!r} here", fix=did_you_mean(name, folders)))
    task, port = resolve(graph, party, reference)
    kind = graph.nodes[task.node].component.outputs[port].kind.kind
    if kind not in FOLDERS[place.type]:
        fix = next(f"hand it to an output of the type {other}" for other, kinds in FOLDERS.items() if kind in kinds)
        raise ConfigError(Problem(f"{reference} is {kind}, FATE's output {name!r} a {place.type}", fix=fix))
    return Handed(name, place, task, port)


def resolve(graph: Graph, party: str, reference: str) -> tuple[Instance, str]:
    """``task``, ``task.port`` or ``task[axis=value].port`` -> the instance at a party (of a repeat the last round), its port.

    Raises ConfigError when there is none, or more than one.
    """
    base, cell, port = _split(graph, reference)
    here = [one for one in graph.at(party) if one.node == base]
    if not here:
        known = sorted({one.node for one in graph.at(party)})
        raise ConfigError(Problem(f"there is no task {base!r} at {party}", fix=did_you_mean(base, known)))
    chosen = [one for one in here if cell <= _cell(one)]
    last = max((one.round or 0 for one in chosen), default=0)
    chosen = [one for one in chosen if (one.round or 0) == last]
    if len(chosen) != 1:
        options = sorted({f"{base}[{','.join(sorted(_cell(one)))}]" for one in here if _cell(one)})
        fix = f"say which, for example {options[0]}.{port}" if options else ""
        raise ConfigError(Problem(f"{reference!r} stands for {len(chosen)} tasks at {party}", fix=fix))
    return chosen[0], port


def _split(graph: Graph, reference: str) -> tuple[str, set[str], str]:
    """(node, cell as ``axis=value``, port)"""
    matched = _REFERENCE.fullmatch(reference)
    base, cell, port = matched.groups() if matched else (reference, None, None)
    if port and cell is None and f"{base}.{port}" in graph.nodes:
        base, port = f"{base}.{port}", None
    node = graph.nodes.get(base)
    if node is None:
        raise ConfigError(Problem(f"there is no task {base!r}", fix=did_you_mean(base, graph.nodes)))
    ports = list(node.component.outputs)
    if port is not None and port not in ports:
        raise ConfigError(Problem(f"{base} has no output {port!r}", fix=did_you_mean(port, ports)))
    return base, {part.strip() for part in cell.split(",")} if cell else set(), port or ports[0]


def _cell(instance: Instance) -> set[str]:
    inside = instance.id.partition("@")[0].partition("[")[2].rstrip("]")
    return {part for part in inside.split(",") if part and not part.startswith("round=")}


# ---- the decision ----


def _refusal(policy: SitePolicy, party: str, name: str, label: Label) -> Problem | None:
    """Why an artifact may not be handed over; None when it may."""
    raw, bound = label.of("raw"), policy.data
    private = sorted({e.ref for e in raw if e.owner != party or e.ref not in bound or bound[e.ref].purpose != "benchmark"})
    if not private or (name in policy.handover and all(e.owner == party for e in raw)):
        return None
    fix = f"hand over what was released, or list {name!r} under 'handover' in the policy of {party}"
    return Problem(f"{name} stays at {party}: it depends on private data", why=f"data sets: {', '.join(private)}", fix=fix)


def may_hand(site: Site, name: str, label: Label) -> None:
    """Raise MembraneError unless this party's policy lets an artifact go to the software around it. name: ``task.port``."""
    if refused := _refusal(site.policy, site.party, name, label):
        raise MembraneError(refused)


def hand(site: Site, one: Handed, folder: Path) -> dict[str, Any]:
    """Write an output of this party's share into a folder of FATE; returns what may be told of it."""
    ref = site.results.get(one.task.id, {}).get(one.port)
    if ref is None:  # a round that was not needed
        return nothing(folder)
    producer = {"pipeline": site.need()[0].pipeline.name, "task": one.task.id, "port": one.port, "party": site.party}
    return give_out(site, folder, ref, one.allowed_as, producer)


def give_out(site: Site, folder: Path, ref: Ref, name: str, producer: Mapping[str, str]) -> dict[str, Any]:
    """Copy an artifact's files into a folder, with a manifest. Raises MembraneError before anything is written.

    name: in a policy, ``task.port``. The transcript has it first. Files are copied, not read into memory. Returns what may be
    told of it: the manifest, without a digest that private records could be guessed from.
    """
    may_hand(site, name, ref.label)
    if not ref.label.of("raw"):
        membrane.check_bytes(site, ref, ref.label)
    site.store.open(ref.kind, ref.digest)  # verified
    source = site.store.path(ref.digest)
    files = sorted(path.name for path in source.iterdir() if path.is_file())
    _note(site, name, str(producer.get("task", "")), ref, sum((source / file).stat().st_size for file in files))
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copyfile(source / file, folder / file)
    about = {"kind": ref.kind, "digest": ref.digest, "word": ref.label.word, "label": ref.label.to_json()}
    made = _say(folder, {**about, "files": files, "producer": dict(producer)})
    return {key: value for key, value in made.items() if key != "digest" or not ref.label.of("raw")}


def nothing(folder: Path) -> dict[str, Any]:
    """An output that FATE declares and nobody fills: a folder that says so. An unwritten one fails the task."""
    return _say(folder, {"kind": "nothing", "files": []})


def _note(site: Site, name: str, task: str, ref: Ref, size: int) -> None:
    """The handing over, in the transcript: once for each content and label. What is raw is exposed from now on."""
    edge = f"handed: {name}" + (f" of {task}" if task else "")
    label = ref.label.exposed(site.party, f"handed: {name}", (OUTSIDE,))
    sql, text = "SELECT 1 FROM crossed WHERE edge=? AND digest=? AND label=?", canonical(label.to_json()).decode()
    if not site.ledger.query(sql, (edge, ref.digest, text)):
        site.ledger.cross(
            edge=edge, name=name, sender=site.party, receiver=OUTSIDE, direction="out", kind=ref.kind, digest=ref.digest,
            size=size, label=label,
        )  # fmt: skip
    site.exits[edge] = task


def _say(folder: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    made = {"osmotic": __version__, **about}
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).write_text(json.dumps(made, indent=1, sort_keys=True), encoding="utf-8")
    return made

# SPDX-License-Identifier: Apache-2.0
"""How much memory a plan's models need, roughly, before any of them is loaded; beside what is free on this machine.

An estimate of weights, gradients and optimiser states by each model's own account; activations and the rest of the process come
on top. Models stay in memory once they are loaded, so a party's models add up, and so do the parties of one machine.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import config_type
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan.checks import Configs, build_model, model_fields
from osmotic.runtime.plan.graph import Graph
from osmotic.schemas.errors import OsmoticError

MEMINFO = Path("/proc/meminfo")


def estimate(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> dict[str, Any]:
    """models: what each needs at how many parties; total in bytes; free: bytes, None where it cannot be read."""
    rows: list[dict[str, Any]] = []
    for name, used in _used(graph, configs, sites).items():
        training = any(used.values())
        rows.append({"model": name, "parties": len(used), "training": training, "bytes": _bytes(graph, sites, name, training)})
    total = sum((row["bytes"] or 0) * row["parties"] for row in rows)
    return {"models": rows, "total": total, "free": free()}


def free() -> int | None:
    """Bytes of memory that can be had without swapping, where the system says so."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found and found[0].isdigit() else None


def _used(graph: Graph, configs: Configs, sites: Mapping[str, Site]) -> dict[str, dict[str, bool]]:
    """Model -> party that loads it -> whether it is trained there."""
    used: dict[str, dict[str, bool]] = {}
    for instance in graph.instances.values():
        trains = graph.nodes[instance.node].component.trains
        for name in _named(graph, configs.of(instance), sites[instance.party]):
            spec = graph.pipeline.models[name]
            home = instance.party if spec.at == graph.role_of[instance.party] else graph.pipeline.parties[spec.at][0]
            parties = used.setdefault(name, {})
            parties[home] = parties.get(home, False) or trains
    return used


def _named(graph: Graph, config: Any, site: Site) -> list[str]:
    """Models that a configuration names, its mechanism's among them."""
    mechanism = getattr(config, "mechanism", None)
    found = [getattr(config, key) for key in model_fields(config)]
    if isinstance(mechanism, Mapping) and "name" in mechanism:
        keys = model_fields_of(site, str(mechanism["name"]))
        found += [mechanism[key] for key in keys if key in mechanism]
    return [name for name in dict.fromkeys(found) if isinstance(name, str) and name in graph.pipeline.models]


def model_fields_of(site: Site, mechanism: str) -> list[str]:
    """Configuration keys of a mechanism that name a model."""
    try:
        model = config_type(site.registry.mechanism(mechanism))
    except OsmoticError:
        return []
    return list(model_fields(model.model_construct()))


def _bytes(graph: Graph, sites: Mapping[str, Site], name: str, training: bool) -> int | None:
    try:
        found: int | None = build_model(next(iter(sites.values())).registry, graph, name).memory(training)
    except OsmoticError:
        return None  # that the model cannot be found is told when it is loaded
    return found

# SPDX-License-Identifier: Apache-2.0
"""What a site may tell another operator of why it refuses a plan, and what it refuses since a server carries everything.

Reasons that follow from the plan, the policy and public schemas alone are told ("epsilon 6 > cap 4"): the checks are made again
for a party with the same policy that has neither records nor a ledger. Whatever depends on records, on what was spent or on
files of this machine stays at the site.
"""

import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any

from osmotic.runtime.party.data import Datasets
from osmotic.runtime.party.site import Site
from osmotic.runtime.plan import flow
from osmotic.runtime.plan.checks import Configs, model_fields
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import Loaded, load_text
from osmotic.schemas.errors import ConfigError, DataError, OsmoticError, Problem
from osmotic.schemas.terminal import harmless

MOST = 20  # problems that are told
LONGEST = 400  # characters of each
PATH = re.compile(r"[^\s'\"(),;]*/[^\s'\"(),;]*|[\w.-]+\.(?:ya?ml|jsonl?|csv|parquet|arrow|txt|npz|npy|safetensors|gguf)\b")


def read_plan(header: dict[str, Any], blob: bytes) -> Loaded:
    """The plan that another operator sent, its name without folders; raises ConfigError."""
    try:
        text = blob.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(Problem("the plan is not UTF-8 text")) from error
    given = header.get("overrides", ())
    if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
        raise ConfigError(Problem("the plan's overrides are not texts"))
    return load_text(text, name_of(header), tuple(given))


def name_of(header: dict[str, Any]) -> str:
    """What a plan is called in messages: another machine's folders say nothing here."""
    return Path(str(header.get("name", "plan"))).name[:100]


def reasons(site: Site, header: dict[str, Any], blob: bytes, error: OsmoticError) -> list[Problem]:
    """Of the reasons why a party refused a plan, those that it would give without records and ledger too."""
    blind = blind_problems(without_records(site), header, blob)
    return [problem for problem in error.problems if problem in blind]


def by_way_of_server(site: Site, server: str) -> list[Problem]:
    """Crossings from this party to another site that the policy lets that site see, and not the server that carries them."""
    graph, configs = site.need()
    labels = flow.infer(graph, {site.party: site.policy}).crossing
    fix = f"add {server!r} where the site's policy names who may see it, or send it to the server itself"
    found: dict[Problem, None] = {}
    for consumer, edge in graph.crossings():
        if edge.sender != site.party or edge.receiver == server:
            continue
        hidden = [
            e for e in labels[(consumer.id, edge.producer, edge.port)].of("exposed") if server not in (e.owner, *e.observers)
        ]
        if hidden:
            path = (*graph.nodes[consumer.node].path, "inputs", edge.name.rpartition(".")[2])
            what = f"{edge.name} goes to {edge.receiver} by way of {server}, which may not see it"
            found[Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), fix=fix)] = None
    return [*found, *_calls(graph, configs, site, server, fix)]


def _calls(graph: Graph, configs: Configs, site: Site, server: str, fix: str) -> list[Problem]:
    found: dict[Problem, None] = {}
    for instance in graph.at(site.party):
        for key in model_fields(config := configs.of(instance)):
            name = getattr(config, key)
            there = graph.pipeline.parties[graph.pipeline.models[name].at][0] if name in graph.pipeline.models else server
            if there not in (server, site.party) and there in site.policy.endpoints and server not in site.policy.endpoints:
                path = (*graph.nodes[instance.node].path, "config", key)
                what = f"calls of {name!r} go to {there} by way of {server}, which may not see them"
                found[Problem(what, graph.loaded.source.where(path), ".".join(map(str, path)), fix=fix)] = None
    return list(found)


class NoRecords(Datasets):
    """The same data sets by policy and schema, of which no file is there."""

    def path(self, name: str) -> Path:
        """Raises DataError, for every name."""
        raise DataError(Problem("not looked at"))


def without_records(site: Site) -> Site:
    """The same party without records and without a ledger; makes nothing on disk."""
    nowhere = Path(tempfile.gettempdir()) / "osmotic-nowhere"
    blind = Site(site.party, nowhere, site.policy, site.datasets.base, site.registry, passing=True)
    blind.datasets = NoRecords(site.policy, site.datasets.base, site.party)
    return blind


def blind_problems(blind: Site, header: dict[str, Any], blob: bytes) -> list[Problem]:
    """What a party without records and ledger has against a plan; none where it would have to look at a file."""
    try:
        graph = Graph(read_plan(header, blob), blind.registry)
        configs = Configs(graph)
    except ConfigError as error:
        return error.problems
    found = flow.infer(graph, {blind.party: blind.policy}).refusals
    with contextlib.suppress(OsmoticError):
        found = blind.objections(graph, configs) + found
    return found


def tellable(problem: Problem, name: str, plan: str, party: str) -> Problem | None:
    """A problem as another operator may read it, short and without what the plan does not say itself; None: a code is enough.

    name, plan: the plan's and its text: problems of other files are of this machine, and so are paths that are not in it.
    """

    def clean(text: str) -> str:
        return harmless(text)[:LONGEST]

    def local(text: str) -> bool:
        return any(found not in plan for found in PATH.findall(clean(text)))

    of_plan = problem.where == name or problem.where.startswith((f"{name}:", "--set ")) or not (problem.where or problem.path)
    if not of_plan or local(problem.what):
        return None
    why = "" if local(problem.why) else problem.why
    fix = f"change the plan, or ask the operator of {party}: its policy decides"
    return Problem(clean(problem.what), clean(problem.where), clean(problem.path), clean(why), fix)

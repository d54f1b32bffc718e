# SPDX-License-Identifier: Apache-2.0
"""What a FATE job and a site may say: strict, located, and nothing that chooses a file or a program of somebody else."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest

from osmotic import __version__
from osmotic.runtime.fate import wire
from osmotic.runtime.fate.mapping import assign, coordinator_of, in_order
from osmotic.runtime.fate.parameters import Job, settings, site_of
from osmotic.runtime.fate.taking import binds
from osmotic.schemas.errors import ConfigError, DataError, OsmoticError, ProtocolError, RefusedError

PRESENT = ["arbiter:10000", "guest:9999", "host:10000", "host:9998"]
ROLES = {"server": ("hub",), "clients": ("north", "south", "west")}


def start(**more: Any) -> wire.Start:
    frame = {"frame": "start", "protocol": 1, "kind": "pipeline", "role": "guest", "party": "guest:9999", "peers": PRESENT}
    return wire.start({**frame, "parameters": {"pipeline": "fedcot"}, **more})


def told(caught: pytest.ExceptionInfo[OsmoticError]) -> str:
    return "\n".join(f"{p.path}|{p.where}|{p.what}|{p.why}|{p.fix}" for p in caught.value.problems)


# ---- frames and versions ----


def test_a_bridge_of_another_protocol_is_refused_naming_both_and_the_mend() -> None:
    with pytest.raises(ProtocolError, match="protocol 2, the worker protocol 1") as caught:
        wire.start({"frame": "start", "protocol": 2, "bridge": "9.9", "new": 1})
    assert "9.9" in told(caught) and __version__ in told(caught) and "install" in told(caught)
    with pytest.raises(ProtocolError):
        wire.start({"frame": "put"})


def test_unknown_keys_of_the_first_frame_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        start(extra=1, inputs={"data": {"type": "data_directory"}})
    assert "start.extra|" in told(caught) and "start.inputs.data.path|" in told(caught)


@pytest.mark.parametrize(("key", "value"), [("osmotic", "99.0"), ("rules", 99), ("protocol", 7)])
def test_workers_of_two_versions_are_named_with_the_mend(key: str, value: Any) -> None:
    mine = wire.greeting("arbiter:10000", "job")
    with pytest.raises(ProtocolError, match=r"guest:9999 has osmotic .*this party osmotic") as caught:
        wire.check_greeting("guest:9999", {**mine, key: value}, mine)
    assert str(value) in told(caught) and __version__ in told(caught) and "same version" in told(caught)


def test_workers_that_were_given_different_jobs_are_told_so() -> None:
    mine = wire.greeting("arbiter:10000", "job")
    wire.check_greeting("guest:9999", dict(mine), mine)
    with pytest.raises(ConfigError, match="another pipeline"):
        wire.check_greeting("guest:9999", {**mine, "job": "other"}, mine)
    with pytest.raises(ConfigError, match=r"takes guest:9999 for the coordinator, this party arbiter:10000"):
        wire.check_greeting("guest:9999", {**mine, "coordinator": "guest:9999"}, mine)
    with pytest.raises(ProtocolError, match="greeting"):
        wire.check_greeting("guest:9999", {"frame": "request"}, mine)


# ---- parameters ----

BAD = [
    ({}, "parameters.pipeline|", "required"),
    ({"pipeline": "fedcot", "override": []}, "parameters.override|", "did you mean 'overrides'"),
    ({"pipeline": "fedcott"}, "parameters.pipeline|", "did you mean 'fedcot'"),
    ({"pipeline": "/etc/osmotic/fedcot.yaml"}, "parameters.pipeline|", "a path would name a file"),
    ({"pipeline": "../fedcot.yaml"}, "parameters.pipeline|", "a path would name a file"),
    ({"pipeline": "osmotic: 1\nname: x\ntasks: {}\n"}, "parameters.pipeline:", "required"),
    ({"pipeline": "osmotic: 1\nname: [x\n"}, "parameters.pipeline:", "YAML"),
    ({"pipeline": {"osmotic": 1, "name": "x", "parties": {"server": "hub"}, "tusks": {}}}, "tusks", "did you mean 'tasks'"),
    ({"pipeline": "fedcot", "overrides": ["noise_seed"]}, "", "parameters.overrides: noise_seed"),
    ({"pipeline": "fedcot", "overrides": ["@/etc/passwd"]}, "parameters.overrides|", "names no files"),
    ({"pipeline": "fedcot", "overrides": {"tasks.nothing.config.x": 1}}, "", "parameters.overrides: tasks.nothing"),
    ({"pipeline": "fedcot", "deadline": 0}, "parameters.deadline|", "greater than 0"),
    ({"pipeline": "fedcot", "deadline": "soon"}, "parameters.deadline|", "number"),
    ({"pipeline": "fedcot", "parties": {"North": "guest:9999"}}, "parameters.parties.North|", "lower-case"),
    ({"pipeline": "fedcot", "outputs": {"guset": {"data": "exam"}}}, "parameters.outputs.guset|", "did you mean 'guest'"),
    ({"pipeline": "fedcot", "python": "/bin/sh"}, "parameters.python|", "unknown key"),
    ({"pipeline": "fedcot", "sites": "/mine.yaml"}, "parameters.sites|", "unknown key"),
    ({"pipeline": 3}, "parameters.pipeline|", "must be"),
    ({"pipeline": functools.reduce(lambda inner, _: {"a": inner}, range(5000), {})}, "parameters.pipeline|", "too deep"),
    ({"pipeline": "fedcot", "deadline": 1e300}, "parameters.deadline|", "less than or equal"),
]


@pytest.mark.parametrize(("parameters", "place", "words"), BAD)
def test_a_wrong_parameter_names_its_place(parameters: dict[str, Any], place: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(start(parameters=parameters))
    assert place in told(caught) and words in told(caught)


def test_a_pipeline_by_name_by_text_and_as_a_mapping() -> None:
    small = {"osmotic": 1, "name": "small", "parties": {"server": "hub"}, "tasks": {"a": {"component": "x", "at": "server"}}}
    by_mapping = settings(start(parameters={"pipeline": small, "overrides": {"seed": 3}}))
    by_text = settings(start(parameters={"pipeline": json.dumps(small) + "\n", "overrides": ["seed=3"]}))
    assert by_mapping.loaded.pipeline == by_text.loaded.pipeline and by_text.loaded.pipeline.seed == 3
    named = settings(start(parameters={"pipeline": "fedcot"}))
    assert named.loaded.pipeline.name == "fedcot" and named.name == "fedcot"
    assert "patients" in named.policies(["north"], ()).policies["north"].data  # a shipped pipeline brings its site file
    assert by_text.policies(["hub"], ()).policies["hub"].data == {}  # any other brings nothing


def test_what_the_site_says_is_strict_and_relative_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "site.json"
    given = site_of(start(site={"sites": "mine.yaml", "home": "/runs"}, site_file=str(file)))
    assert given.sites == str(tmp_path / "mine.yaml") and given.home == "/runs" and given.state is None
    with pytest.raises(ConfigError) as caught:
        site_of(start(site={"pyhton": "x"}, site_file=str(file)))
    assert f"site.pyhton|{file}|unknown key" in told(caught) and "did you mean 'python'" in told(caught)


def test_the_state_of_the_site_file_is_where_ledgers_lie(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("osmotic_sites: 1\nparties: {north: {}}\n")
    found = settings(start(site={"sites": "mine.yaml", "state": "ledgers"}, site_file=str(tmp_path / "s.json")))
    assert found.policies(["north"], ()).vault("north") == tmp_path / "ledgers" / "north"


# ---- who is who ----


def job(**more: Any) -> Job:
    return Job.model_validate({"pipeline": "fedcot", **more})


def test_by_default_the_arbiter_is_the_server_and_clients_are_guest_and_hosts_in_order() -> None:
    assert assign(ROLES, PRESENT, job()) == {
        "hub": "arbiter:10000", "north": "guest:9999", "south": "host:10000", "west": "host:9998"
    }  # fmt: skip
    assert coordinator_of(ROLES) == "hub" and coordinator_of({"a": ("x",), "b": ("y",)}) == "x"


def test_any_number_of_hosts() -> None:
    clients = tuple(f"c{i}" for i in range(41))
    present = ["arbiter:1", "guest:2", *(f"host:{i}" for i in range(100, 140))]
    found = assign({"server": ("hub",), "clients": clients}, present, job())
    assert len(found) == 42 and found["c0"] == "guest:2" and found["c40"] == "host:139"


def test_roles_and_parties_of_the_job_say_otherwise() -> None:
    roles = {"server": ["guest"], "clients": ["host", "arbiter"]}
    assert assign(ROLES, PRESENT, job(roles=roles))["hub"] == "guest:9999"
    found = assign(ROLES, PRESENT, job(parties={"west": "guest:9999", "north": "host:9998"}))
    assert found == {"hub": "arbiter:10000", "north": "host:9998", "south": "host:10000", "west": "guest:9999"}
    three = {"server": ("hub",), "clients": ("north",), "judges": ("eve",)}
    given = job(roles={"clients": "guest", "judges": "host"})
    assert assign(three, PRESENT[:3], given) == {"hub": "arbiter:10000", "north": "guest:9999", "eve": "host:10000"}


MISFITS = [
    (ROLES, PRESENT[:3], {}, "parameters.roles.clients|", "3 parties (north, south, west)", 'parties.clients=[\\"party-0\\"'),
    (ROLES, PRESENT[1:], {}, "parameters.roles.server|", "no arbiter", "add one"),
    (ROLES, [*PRESENT, "local:0"], {}, "parameters.parties|", "local:0 has no share", "leave it out"),
    (
        {"server": ("hub",), "a": ("x",), "b": ("y",)},
        PRESENT[:3],
        {},
        "parameters.roles|",
        "it is open which is which",
        "guest",
    ),
    (ROLES, PRESENT, {"roles": {"clints": "guest"}}, "parameters.roles.clints|", "no role 'clints'", "did you mean 'clients'"),
    (ROLES, PRESENT, {"roles": {"clients": "gest"}}, "parameters.roles.clients|", "FATE has no role 'gest'", "mean 'guest'"),
    (ROLES, PRESENT, {"parties": {"nroth": "guest:9999"}}, "parameters.parties.nroth|", "no party", "did you mean 'north'"),
    (ROLES, PRESENT, {"parties": {"north": "guest:999"}}, "parameters.parties.north|", "no party 'guest:999'", "guest:9999"),
    (ROLES, PRESENT, {"parties": {"north": "guest:9999", "south": "guest:9999"}}, "parties.south|", "stands twice", "one"),
    ({"server": ("hub",)}, PRESENT[:2], {}, "parameters.parties|", "guest:9999 has no share", "leave it out"),
]


@pytest.mark.parametrize(("roles", "present", "more", "place", "what", "fix"), MISFITS)
def test_what_does_not_fit_says_what_to_write(
    roles: Any, present: list[str], more: dict[str, Any], place: str, what: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        assign(roles, present, job(**more))
    assert place in told(caught) and what in told(caught) and fix in told(caught)


def test_the_order_of_parties_is_the_same_at_every_worker() -> None:
    mixed = ["host:10000", "guest:9999", "host:9998", "arbiter:10000"]
    assert in_order(mixed, "guest:9999") == ["arbiter:10000", "guest:9999", "host:10000", "host:9998"]
    without = {own: in_order([p for p in mixed if p != own], own) for own in mixed}
    assert len({tuple(found) for found in without.values()}) == 1 and set(without["host:9998"]) == set(mixed)


# ---- inputs ----


def test_an_input_becomes_a_data_set_only_where_the_site_says_so(tmp_path: Path) -> None:
    (tmp_path / "patients.jsonl").write_text("{}\n")
    (tmp_path / "manifest.json").write_text("{}")
    place = wire.Place(type="data_directory", path=f"file://{tmp_path}")
    assert binds({"patients": "data"}, {"data": place}) == (f"patients={tmp_path / 'patients.jsonl'}",)
    with pytest.raises(RefusedError, match="takes no input 'data'"):
        binds({}, {"data": place})
    with pytest.raises(ConfigError, match="which is missing"):
        binds({"patients": "data"}, {})
    with pytest.raises(ConfigError, match="is a dataframe") as caught:
        binds({"patients": "data"}, {"data": wire.Place(type="dataframe", path="x")})
    assert caught.value.problems[0].path == "inputs.data"
    (tmp_path / "more.csv").write_text("a\n")
    with pytest.raises(DataError, match="2 files of records"):
        binds({"patients": "data"}, {"data": place})

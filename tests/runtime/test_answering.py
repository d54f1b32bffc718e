# SPDX-License-Identifier: Apache-2.0
"""What a site answers to another operator's plan: yes, or no with reasons that follow from plan and policy alone."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import build_registry
from osmotic.runtime.party.answering import Answering, Rules
from osmotic.runtime.party.policies import policies_of
from osmotic.runtime.party.telling import tellable
from osmotic.runtime.run import locked
from osmotic.schemas.errors import Problem
from osmotic.schemas.site import SiteFile

PLAN = """osmotic: 1
name: toy
parties: {server: hub, clients: [north, lab]}
tasks:
  records: {component: record_loader, at: clients, config: {data: numbers}}
  safe:
    component: dp_sanitizer
    at: clients
    inputs: {records: records}
    config: {mechanism: {name: list-rr, epsilon: 3, k: 1}, fields: [colour, size]}
  blind: {component: record_blinder, at: server, each: party, inputs: {records: safe}, config: {fields: [colour]}}
"""
SITES = """osmotic_sites: 1
parties:
  north:
    data: {numbers: {path: secret-folder/numbers.jsonl, schema: schema.yaml}}
    budget: {numbers: {per_document: 8}}
"""


class Bench:
    """One site, whose policy can be changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "secret-folder").mkdir()
        (folder / "secret-folder/numbers.jsonl").write_text('{"id": "a", "colour": "red", "size": "s"}\n')
        (folder / "schema.yaml").write_text("fields: {colour: {domain: [red, green]}, size: {domain: [s, m]}}\n")
        self.made: list[Answering] = []

    def site(self, sites: str = SITES, **changed: Any) -> Answering:
        for earlier in self.made:
            earlier.close()
        (self.folder / "policy.yaml").write_text(sites)
        file = SiteFile.model_validate(
            {"osmotic_site": 1, "party": "north", "server": "hub", "policy": "policy.yaml", **changed}
        )
        policy, self.file = self.folder / "policy.yaml", file
        made = Answering(lambda: Rules(self.file, self.folder / "home", policies_of(["north"], policy)), build_registry([]))
        self.made.append(made)
        return made

    def ask(self, site: Answering, plan: str = PLAN, *overrides: str) -> Any:
        header = {"op": "plan", "name": "/home/boss/toy.yaml", "overrides": list(overrides), "folder": "/home/boss"}
        return site.handle(header, plan.encode())[0]


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    found = Bench(tmp_path)
    yield found
    for site in found.made:
        site.close()


def told(reply: Any) -> str:
    return json.dumps(reply["error"]["problems"])


def test_a_plan_is_accepted_in_a_folder_of_its_own(bench: Bench) -> None:
    site = bench.site()
    assert site.handle({"op": "held"}, b"")[0]["error"] == {"code": "policy", "exit": 4, "problems": []}
    assert bench.ask(site) == {"party": "north"}
    assert (bench.folder / "home/toy/parties/north/run.lock").exists()
    assert site.handle({"op": "held"}, b"")[0] == {"held": {}}
    assert bench.ask(site, PLAN.replace("name: toy", "name: other")) == {"party": "north"}
    assert (bench.folder / "home/other/parties/north").is_dir()
    site.close()
    with locked(bench.folder / "home/toy/parties/north"), locked(bench.folder / "home/other/parties/north"):
        pass
    site.close()


def test_a_policy_that_was_changed_holds_from_the_next_plan_on(bench: Bench) -> None:
    """In the process that is there, which may be that of a run that was killed. A policy that cannot be read allows nothing."""
    site = bench.site()
    assert bench.ask(site) == {"party": "north"}
    (bench.folder / "policy.yaml").write_text(SITES.replace("per_document: 8", "per_document: 4"))
    assert "over the cap" in told(bench.ask(site))
    (bench.folder / "policy.yaml").write_text(SITES.replace("budget:", "bugdet:"))
    assert bench.ask(site) == {"error": {"code": "config", "exit": 2, "problems": []}}
    assert site.failure is not None and "bugdet" in str(site.failure)
    assert site.handle({"op": "held"}, b"")[0]["error"]["code"] == "policy"  # no plan is accepted any more
    (bench.folder / "policy.yaml").write_text(SITES)
    assert bench.ask(site) == {"party": "north"}
    bench.file = bench.file.model_copy(update={"plugins": ("other",)})
    assert bench.ask(site)["error"] == {"code": "config", "exit": 2, "problems": []}


def test_reasons_that_follow_from_plan_and_policy_are_told(bench: Bench) -> None:
    reply = bench.ask(bench.site(SITES.replace("per_document: 8", "per_document: 4")))
    assert reply["error"]["code"] == "policy"
    (one,) = reply["error"]["problems"]
    assert "epsilon 6 a document (2 fields x 3) is over the cap" in one["what"] and "cap of 'numbers': 4" in one["why"]
    assert one["where"].startswith("toy.yaml:10:") and one["path"] == "tasks.safe.config.mechanism"
    assert one["fix"] == "change the plan, or ask the operator of north: its policy decides"


def test_a_site_may_tell_codes_alone(bench: Bench) -> None:
    site = bench.site(SITES.replace("per_document: 8", "per_document: 4"), tells="codes")
    assert bench.ask(site) == {"error": {"code": "policy", "exit": 4, "problems": []}}
    assert site.failure is not None and "over the cap" in str(site.failure)  # its own operator sees it


@pytest.mark.parametrize(
    ("old", "new", "told_of"),
    [
        (
            "inputs: {records: safe}",
            "inputs: {records: {from: records, waive: because we would like it}}",
            "a waiver works on benchmark data only",
        ),
        ("name: toy", "name: toy\nnoise_seed: 7", "north does not allow seeded noise"),
        ("epsilon: 3", "epsilon: 500", "over the cap"),
        ("data: numbers", "data: patients", "north binds no data set called 'patients'"),
    ],
)
def test_a_forged_plan_is_refused_by_the_own_policy(old: str, new: str, told_of: str, bench: Bench) -> None:
    assert old in PLAN
    site = bench.site()
    reply = bench.ask(site, PLAN.replace(old, new))
    assert reply["error"]["code"] == "policy" and told_of in told(reply), reply
    assert "numbers.jsonl" not in told(reply)
    if "patients" in new:
        assert "'numbers'" not in told(reply)  # which others there are is nobody's business
    assert site.handle({"op": "run", "id": "records@north"}, b"")[0]["error"]["code"] == "policy"


def test_nothing_that_depends_on_files_or_spending_is_told(bench: Bench) -> None:
    """The schema's file is broken, then the records' file is away, then the ledger is of another time: codes."""
    schema = bench.folder / "schema.yaml"
    good = schema.read_text()
    schema.write_text("fields: {colour: [\n")
    site = bench.site()
    reply = bench.ask(site)
    assert "error" in reply and reply["error"]["problems"] == [], reply
    assert site.failure is not None and "schema.yaml" in str(site.failure)
    schema.write_text(good)
    (bench.folder / "secret-folder/numbers.jsonl").unlink()
    votes = PLAN.replace("name: list-rr, epsilon: 3, k: 1", "name: list-rr, epsilon: 9, k: 1")
    reply = bench.ask(bench.site(), votes)
    assert "over the cap" in told(reply) and "secret-folder" not in told(reply)


def test_a_plan_that_cannot_be_read(bench: Bench) -> None:
    site = bench.site()
    for plan in ("tasks: [", "osmotic: 2\nname: x\n", "\x00", ""):
        reply = bench.ask(site, plan)
        assert reply["error"]["code"] == "config", plan
    assert site.handle({"op": "plan", "name": "x", "overrides": []}, b"\xff\xfe")[0]["error"]["code"] == "config"
    assert site.handle({"op": "plan", "name": "x", "overrides": [7]}, PLAN.encode())[0]["error"]["code"] == "config"
    assert site.service is None and not (bench.folder / "home").exists()


def test_the_server_is_pinned(bench: Bench) -> None:
    """Policies trust parties by name: a coordinator that calls itself otherwise gets nothing."""
    reply = bench.ask(bench.site(server="boss"))
    assert "the plan's server is 'hub'; for north the server is 'boss'" in told(reply)
    lab = PLAN.replace("{server: hub, clients: [north, lab]}", "{server: lab, clients: [north, hub]}")
    assert "the plan's server is 'lab'; for north the server is 'hub'" in told(bench.ask(bench.site(), lab))


RELAYED = """osmotic: 1
name: relayed
parties: {server: hub, clients: [north], labs: [lab]}
tasks:
  records: {component: record_loader, at: clients, config: {data: numbers}}
  seen:
    component: record_blinder
    at: labs
    each: party
    inputs: {records: {from: records, waive: the lab has the same records}}
    config: {fields: [colour]}
"""


def test_what_another_site_may_see_the_server_must_be_allowed_to_see(bench: Bench) -> None:
    granted = SITES.replace("schema: schema.yaml}", "schema: schema.yaml, purpose: benchmark}")
    granted += "    waivers: [{edge: seen.records, observers: [lab]}]\n"
    reply = bench.ask(bench.site(granted), RELAYED)
    assert "seen.records goes to lab by way of hub, which may not see it" in told(reply)
    assert bench.ask(bench.site(granted.replace("[lab]", "[lab, hub]")), RELAYED) == {"party": "north"}


def test_an_earlier_process_of_the_site_is_waited_for_and_that_is_progress(bench: Bench) -> None:
    site, seen, over = bench.site(), list[str](), threading.Event()
    site.site.progress = lambda task, done, total, note: seen.append(note)

    def hold() -> None:
        with locked(bench.folder / "home/toy/parties/north"):
            over.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    while not (bench.folder / "home/toy/parties/north/run.lock").exists():
        time.sleep(0.01)
    threading.Timer(0.8, over.set).start()
    assert bench.ask(site) == {"party": "north"} and "waiting for an earlier process" in seen
    thread.join()


def test_paths_of_this_machine_and_long_texts_do_not_leave() -> None:
    fixed = {"where": "toy.yaml:1:1", "path": "tasks.a", "fix": "look into /srv/secret"}
    plan = ("toy.yaml", "path: /opt/m", "north")
    kept = tellable(Problem("no ${text} for 'x'", why="see /srv/records/a.jsonl", **fixed), *plan)
    assert kept is not None and kept.why == "" and "/srv" not in str(kept)
    for text in ("no file ~/a", "no file folder/a", "no file a.jsonl", "no file './b'", "C:/x"):
        assert tellable(Problem(text, **fixed), *plan) is None, text
    assert tellable(Problem("no model /opt/m", **fixed), *plan) is not None
    assert tellable(Problem("odd", "schema.yaml:1:1"), *plan) is tellable(Problem("odd", path="north.data.x"), *plan) is None
    long = tellable(Problem("x" * 9999 + "\x1b[31m", **fixed), *plan)
    assert long is not None and len(long.what) == 400

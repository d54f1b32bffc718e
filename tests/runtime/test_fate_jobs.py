# SPDX-License-Identifier: Apache-2.0
"""Whole FATE jobs of three worker processes: who is lost is named, refusals stay at their party, logs quote no record."""

import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify

pytestmark = pytest.mark.slow
Tasks = Callable[..., dict[str, Any]]
ROOT = Path(__file__).parents[2]
GUEST, HOST, ARBITER = "guest:9999", "host:9998", "arbiter:10000"


class Jobs:
    """Starts jobs of the shop; `last`: the job that was started last."""

    def __init__(self, shop: Any) -> None:
        self.shop, self.module, self.last = shop, importlib.import_module("osmotic_fate_jobs"), None

    def __call__(self, tasks: dict[str, Any], site: dict[str, Any] | None = None, **options: Any) -> dict[str, dict[str, Any]]:
        parameters = {key: options.pop(key) for key in ("outputs", "deadline") if key in options}
        given, own = self.module.of_shop(self.shop.write(tasks), self.shop.folder / "fate", **parameters)
        self.shop.home = self.shop.folder / "fate" / "shop"
        self.last = self.module.Job(self.shop.folder / "job", [ARBITER, GUEST, HOST], given, {**own, **(site or {})}, **options)
        return self.last.wait(200)  # type: ignore[no-any-return]

    def said(self) -> dict[str, str]:
        """Everything that left the workers for FATE, by party."""
        bridges = self.last.bridges.items()  # type: ignore[attr-defined]
        return {party: json.dumps([b.logs, b.metrics, b.end], ensure_ascii=False) for party, b in bridges}


@pytest.fixture
def jobs(shop: Any, toys: Registry, toy_path: None) -> Iterator[Jobs]:
    made = Jobs(shop)
    yield made
    if made.last is not None:
        made.last.close()


def told(end: dict[str, Any]) -> str:
    return " ".join(f"{p['path']} {p['what']} {p['why']} {p['fix']}" for p in end["problems"])


@pytest.mark.parametrize("victim", [GUEST, ARBITER])
def test_a_killed_worker_is_named_by_the_others_and_the_rest_is_kept(jobs: Jobs, tasks: Tasks, victim: str) -> None:
    started = time.monotonic()

    def kill(bridge: Any, text: str) -> None:
        if bridge.party == victim and text.startswith("plan"):
            nonlocal started
            started = time.monotonic()
            os.kill(bridge.process.pid, signal.SIGKILL)

    ends = jobs(tasks(), seen=kill)
    assert time.monotonic() - started < 30 and ends[victim] == {}
    for party in {GUEST, HOST, ARBITER} - {victim}:
        assert (ends[party]["exit"], ends[party]["code"]) == (7, "lost") and f"{victim} (" in told(ends[party])
    again = jobs(tasks())
    assert [end["exit"] for end in again.values()] == [0, 0, 0] and verify(jobs.shop.home)["problems"] == []


def test_a_site_that_refuses_says_why_at_home_and_a_code_elsewhere(jobs: Jobs, tasks: Tasks) -> None:
    jobs.shop.defaults = {"max_epsilon": 1}
    ends = jobs(tasks())
    assert [(end["exit"], end["code"]) for end in ends.values()] == [(4, "policy"), (4, "policy"), (4, "policy")]
    assert "epsilon 2 a token is more than this site allows" in told(ends[GUEST])
    assert "guest:9999 (north) ended the run: policy" in told(ends[ARBITER]) and "epsilon" not in told(ends[ARBITER])
    assert "epsilon 2" in told(ends[HOST])


def test_what_a_component_says_when_it_fails_stays_at_its_party(jobs: Jobs, tasks: Tasks) -> None:
    """The reason of a failure, ids and values of records: in no line, metric or last frame; in the party's own log."""
    broken = {"component": "crasher", "at": "clients", "config": {"how": "raise"}}
    ends = jobs(tasks(broken=broken))
    assert ends[ARBITER]["exit"] == 6 and "internal" in told(ends[ARBITER])
    for party, text in jobs.said().items():
        assert "PRIVATE-DETAIL" not in text and "ValueError" not in text, party
        assert not any(f'"{party_name}-{i}"' in text for party_name in ("north", "south") for i in range(12))
        assert not any(colour in text for colour in ("red", "green", "blue", "white")), party
    failed = [party for party in (GUEST, HOST) if "failed" in told(ends[party])]
    name = {GUEST: "north", HOST: "south"}[failed[0]]
    log = jobs.shop.home / "parties" / name / "errors.log"
    assert f"broken@{name} failed" in told(ends[failed[0]]) and str(log) in told(ends[failed[0]])
    assert "PRIVATE-DETAIL" in log.read_text(encoding="utf-8")


def test_a_worker_of_another_version_is_named_by_both_sides(jobs: Jobs, tasks: Tasks, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import osmotic\nosmotic.__version__ = '9.9.9'\n")
    path = f"{other}{os.pathsep}{os.environ['PYTHONPATH']}"
    ends = jobs(tasks(), environment=lambda party: {"PYTHONPATH": path} if party == HOST else {})
    assert ends[HOST]["code"] == "protocol" and ends[HOST]["exit"] == 7
    assert "9.9.9" in told(ends[HOST]) and "arbiter:10000 has osmotic 0." in told(ends[HOST]) and "install" in told(ends[HOST])
    assert ends[ARBITER]["exit"] == 7 and ("9.9.9" in told(ends[ARBITER]) or "host:9998" in told(ends[ARBITER]))
    assert not (jobs.shop.home / "run.json").exists()


def outputs_of(folder: Path) -> Callable[[str], dict[str, Any]]:
    def start(party: str) -> dict[str, Any]:
        place = folder / party.replace(":", "-")
        types = {"data": "data_directory", "model": "model_directory", "report": "json_model"}
        return {"outputs": {name: {"type": kind, "path": f"file://{place / name}"} for name, kind in types.items()}}

    return start


def test_outputs_are_handed_over_with_manifests_reports_and_what_may_be_shown(jobs: Jobs, tasks: Tasks) -> None:
    jobs.shop.binding = {"purpose": "benchmark"}
    metered = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}
    given = {"guest": {"data": "safe.sanitized"}, "host": {"data": "metered"}}
    ends = jobs(tasks(metered=metered), start=outputs_of(jobs.shop.folder / "out"), outputs=given)
    assert [end["exit"] for end in ends.values()] == [0, 0, 0]
    guest = jobs.shop.folder / "out" / "guest-9999"
    manifest = json.loads((guest / "data" / "manifest.json").read_text())
    assert manifest["kind"] == "records" and manifest["word"] == "protected" and manifest["files"] == ["records.parquet"]
    assert manifest["producer"] == {"pipeline": "shop", "task": "safe@north", "port": "sanitized", "party": "north"}
    assert json.loads((guest / "model" / "manifest.json").read_text())["kind"] == "nothing"
    report = json.loads((guest / "report").read_text())
    assert report["digests"]["safe@north.sanitized"] == manifest["digest"] and "table" not in report
    assert report["guarantee"]["word"] == "certified" and "documents" not in report["guarantee"]
    assert [c["edge"] for c in report["crossings"]] == ["safe@north.sanitized->counted@hub"]
    whole = json.loads((jobs.shop.folder / "out" / "arbiter-10000" / "report").read_text())
    assert "unprotected" in whole["line"] and "(handed: metered.metrics)" in whole["line"] and "table" in whole
    assert [(m["name"], m["value"]) for m in jobs.last.bridges[GUEST].metrics] == [("metered.metrics:records", 12.0)]  # type: ignore[attr-defined]
    assert verify(jobs.shop.home)["problems"] == []


def test_private_outputs_stay_before_anything_runs(jobs: Jobs, tasks: Tasks) -> None:
    ends = jobs(tasks(), start=outputs_of(jobs.shop.folder / "out"), outputs={"guest": {"data": "items"}})
    assert (ends[GUEST]["exit"], ends[GUEST]["code"]) == (4, "membrane")
    assert "items.records stays at north: it depends on private data" in told(ends[GUEST])
    assert "'handover'" in told(ends[GUEST])
    for party in (ARBITER, HOST):
        assert "guest:9999" in told(ends[party]) and "membrane" in told(ends[party]) and "items" not in told(ends[party])
    assert not (jobs.shop.folder / "out").exists()


def test_private_records_that_fate_is_given_make_the_run_unprotected(jobs: Jobs, tasks: Tasks) -> None:
    jobs.shop.defaults = {"handover": ["items.records"]}
    ends = jobs(tasks(), start=outputs_of(jobs.shop.folder / "out"), outputs={"guest": {"data": "items"}})
    assert [end["exit"] for end in ends.values()] == [0, 0, 0]
    whole = json.loads((jobs.shop.folder / "out" / "arbiter-10000" / "report").read_text())
    assert "unprotected" in whole["line"] and "or was handed over (handed: items.records)" in whole["line"]
    words = {}
    for party in ("north", "south"):
        own = json.loads((jobs.shop.home / "parties" / party / "results.json").read_text())
        words[party] = own["guarantee"]["parties"][0]["word"]
    assert words == {"north": "unprotected", "south": "certified"}
    digest = json.loads((jobs.shop.folder / "out" / "guest-9999" / "data" / "manifest.json").read_text())["digest"]
    assert all(digest not in text for text in jobs.said().values())
    assert verify(jobs.shop.home)["problems"] == []


def test_the_deadline_of_a_site_ends_a_task_that_does_not_return(jobs: Jobs, tasks: Tasks) -> None:
    config = {"seconds": 120, "log": str(jobs.shop.folder / "log")}
    stuck = {"component": "sleeper", "at": "clients", "inputs": {"records": "items"}, "config": config}
    jobs.shop.defaults = {"deadline": 4}
    started = time.monotonic()
    ends = jobs(tasks(stuck=stuck))
    assert time.monotonic() - started < 60 and {end["exit"] for end in ends.values()} <= {6, 7}
    assert "told no progress for 4 s" in told(ends[GUEST]) + told(ends[HOST])


@pytest.mark.whole
def test_a_job_that_stands_still_ends_with_the_name_of_the_task(jobs: Jobs, tasks: Tasks) -> None:
    def stop(bridge: Any, text: str) -> None:
        if bridge.party == HOST and text.startswith("plan"):
            os.kill(bridge.process.pid, signal.SIGSTOP)  # alive, and silent
        if bridge.party == ARBITER and text.startswith("ended"):
            os.kill(bridge.job.bridges[HOST].process.pid, signal.SIGKILL)

    ends = jobs(tasks(), seen=stop, deadline=20)
    assert ends[ARBITER]["code"] == "lost" and "host:9998 (south) is silent" in told(ends[ARBITER])
    assert ends[GUEST]["exit"] == 7


def test_the_bridges_of_the_package_carry_the_same_job_to_the_same_artifacts(
    jobs: Jobs, tasks: Tasks, hashes: Callable[[Path], dict[str, str]], toys: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's other half, as FATE's environment has it, over a context with FATE's rules."""
    for folder in (ROOT / "plugins" / "fate" / "src", ROOT / "tests" / "fate"):
        if not folder.is_dir():
            pytest.skip("the bridge's sources are not here")
        monkeypatch.syspath_prepend(str(folder))
    bridge, fake = importlib.import_module("osmotic_fate.bridge"), importlib.import_module("fate_fake")
    jobs.shop.defaults, jobs.shop.binding = {"seeded": True}, {"purpose": "benchmark"}
    file, folder = jobs.shop.write(tasks(), noise_seed=3), jobs.shop.folder
    parameters, site = jobs.module.of_shop(file, folder / "fate")
    names = [ARBITER, GUEST, HOST]
    contexts = fake.contexts(fake.Post(), [tuple(name.split(":")) for name in names])
    results: dict[str, Any] = {}

    def one(name: str) -> None:
        start = {
            "kind": "pipeline", "role": name.partition(":")[0], "parameters": parameters, "site": site, "site_file": "",
            "task": {"id": "t", "name": "osmotic"}, "inputs": {}, "outputs": {},
        }  # fmt: skip
        command = [sys.executable, "-m", "osmotic.runtime.fate.worker"]
        made = bridge.Bridge(contexts[name], name, names, "osmotic", bridge.Times(beat=2.0))
        try:
            results[name] = made.run(lambda: (command, str(folder / f"{name}.log"), start), dict(os.environ))
        except bridge.TaskError as error:
            results[name] = error

    threads = [threading.Thread(target=one, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert results == {name: {} for name in names}
    api.run(file, home=folder / "local", registry=toys)
    assert hashes(folder / "fate" / "shop") == hashes(folder / "local") and len(hashes(folder / "local")) == 7

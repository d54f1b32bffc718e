# SPDX-License-Identifier: Apache-2.0
"""What FATE may get of a party's artifacts, and which party a site is: decided by labels and by the site's own files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.fate import share, wire
from osmotic.runtime.fate.handing import Handed, give_out, hand, may_hand, nothing, planned, resolve
from osmotic.runtime.party.site import Ref, Site
from osmotic.schemas.artifacts import Records, Weights
from osmotic.schemas.errors import ConfigError, MembraneError, OsmoticError, RefusedError
from osmotic.schemas.labels import PUBLIC, Label, raw, released

Tasks = Callable[..., dict[str, Any]]
DATA, MODEL = wire.Place(type="data_directory", path="/d"), wire.Place(type="model_directory", path="/m")


@pytest.fixture
def opened(shop: Any, toys: Registry, tasks: Tasks) -> Iterator[Callable[..., Any]]:
    """Tasks and options of the document -> (prepared pipeline, site of north), under the shop's policies."""
    made: list[Any] = []

    def go(given: dict[str, Any] | None = None, **document: Any) -> tuple[Any, Site]:
        ready = api.prepare(shop.write(given or tasks(), **document), home=shop.home, registry=toys)
        made.append(ready)
        site = ready.open()["north"]
        site.take(ready.graph, ready.configs)
        return ready, site

    yield go
    for ready in made:
        ready.close()


def shown(site: Site) -> list[tuple[str, str]]:
    bodies = [json.loads(body) for (body,) in site.ledger.query("SELECT body FROM crossings ORDER BY seq")]
    return [(body["edge"], body["to"]) for body in bodies]


def test_private_records_stay_unless_the_site_lists_them(opened: Any, shop: Any) -> None:
    label = raw("north", "items")
    _, site = opened()
    with pytest.raises(MembraneError, match=r"items.records stays at north.*\n.*items\n.*'handover'"):
        may_hand(site, "items.records", label)
    may_hand(site, "safe.sanitized", released("north", "r"))
    may_hand(site, "exam.records", PUBLIC)
    shop.defaults = {"handover": ["items.records"]}
    _, site = opened()
    may_hand(site, "items.records", label)
    with pytest.raises(MembraneError):
        may_hand(site, "items2.records", label)
    with pytest.raises(MembraneError, match="stays"):  # of another party: not this one's to grant
        may_hand(site, "items.records", label | raw("south", "items"))


def test_benchmark_data_may_go(opened: Any, shop: Any) -> None:
    shop.binding = {"purpose": "benchmark"}
    _, site = opened()
    may_hand(site, "items.records", raw("north", "items"))
    with pytest.raises(MembraneError):
        may_hand(site, "items.records", raw("north", "unknown"))


def test_ids_of_private_records_do_not_go_whatever_the_label_says(opened: Any, tmp_path: Path) -> None:
    _, site = opened()
    digest = site.store.put(Records([{"id": "north-1", "colour": "red"}]))
    with pytest.raises(MembraneError, match="record ids"):
        give_out(site, tmp_path / "out", Ref("records", digest, released("north", "r")), "safe.sanitized", {})
    assert not (tmp_path / "out").exists() and shown(site) == []


def test_an_adapter_is_copied_as_it_is_and_noted_once(opened: Any, tmp_path: Path) -> None:
    import numpy as np

    _, site = opened()
    weights = Weights({"a": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"base": "x"})
    ref = Ref("weights", site.store.put(weights), PUBLIC)
    for _ in range(2):
        made = give_out(site, tmp_path / "out", ref, "train.adapter", {"task": "train@north"})
    assert made["files"] == ["meta.json", "weights.safetensors"] and made["digest"] == ref.digest  # nothing private
    files = {name: (tmp_path / "out" / name).read_bytes() for name in made["files"]}
    assert Weights.from_files(files).meta == {"base": "x"}
    assert shown(site) == [("handed: train.adapter of train@north", "fate")]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == made


def test_an_output_that_nobody_fills_says_so(opened: Any, tmp_path: Path) -> None:
    assert nothing(tmp_path / "a")["kind"] == "nothing" and (tmp_path / "a" / "manifest.json").is_file()
    ready, site = opened()
    one = Handed("data", DATA, ready.graph.instances["safe@north"], "sanitized")
    assert hand(site, one, tmp_path / "b")["kind"] == "nothing"  # the task never ran


def test_which_task_is_meant(opened: Any, tasks: Tasks) -> None:
    climb = {"component": "climber", "at": "clients", "inputs": {"before": "carry.score"}}
    loop = {"repeat": {"times": 3, "carry": {"score": {"from": "climb"}}}, "tasks": {"climb": climb}}
    safe = {**tasks()["safe"], "matrix": ["seed"]}
    ready, _ = opened({**tasks(), "safe": safe, "loop": loop}, matrix={"seed": [1, 2]})
    found = {
        text: resolve(ready.graph, "north", text)[0].id
        for text in ("items", "items.records", "loop.climb", "loop.climb.metrics", "safe[seed=2]", "safe[seed=1].sanitized")
    }
    assert found["items"] == found["items.records"] == "items@north"
    assert found["loop.climb"] == found["loop.climb.metrics"] == "loop.climb[round=3]@north"
    assert found["safe[seed=2]"] == "safe[seed=2]@north" and found["safe[seed=1].sanitized"] == "safe[seed=1]@north"
    for text, words in {
        "safe": r"stands for 2 tasks at north\n.*safe\[seed=1\]", "sfae": "no task 'sfae'",
        "counted": "no task 'counted' at north",
        "items.rows": "no output 'rows'", "safe[seed=3]": "stands for 0 tasks", "[": "no task",
    }.items():  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            resolve(ready.graph, "north", text)


def test_every_misfit_is_told_before_anything_runs_with_its_place(opened: Any) -> None:
    ready, site = opened()
    places = {"data": DATA, "model": MODEL, "report": wire.Place(type="json_model", path="/r")}
    with pytest.raises(ConfigError) as caught:
        planned(ready.graph, site.policy, "north", {"model": "safe", "dta": "safe", "report": "safe"}, places)
    told = {p.path: f"{p.what} {p.fix}" for p in caught.value.problems}
    assert "records, FATE's output 'model' a model_directory hand it to an output of the type data_directory" in (
        told["parameters.outputs.model"].replace("safe is ", "")
    )
    assert "did you mean 'data'" in told["parameters.outputs.dta"] and "no output folder" in told["parameters.outputs.report"]
    assert [one.task.id for one in planned(ready.graph, site.policy, "north", {"data": "safe"}, places)] == ["safe@north"]
    with pytest.raises(MembraneError, match=r"items\.records stays"):
        planned(ready.graph, site.policy, "north", {"data": "items"}, places)


class Partners:
    """A link that only hears who is who."""

    def partners(self, *given: Any) -> None:
        self.given = given

    def overdue(self, error: OsmoticError) -> None:
        raise error


def start_of(shop: Any, **more: Any) -> wire.Start:
    sites = shop.folder / "shop.sites.yaml"
    site = {"sites": str(sites), "home": str(shop.folder / "fate"), "plugins": ["toys"], "party": "north"}
    frame = {
        "frame": "start", "protocol": 1, "kind": "pipeline", "role": "guest", "party": "guest:9999",
        "peers": ["arbiter:1", "guest:9999", "host:2"], "site": {**site, **more.pop("site", {})},
    }  # fmt: skip
    frame = {**frame, "parameters": {"pipeline": (shop.folder / "shop.yaml").read_text()}}
    return wire.start({**frame, **more})


def test_a_site_is_the_party_that_its_own_file_says(shop: Any, tasks: Tasks, toys: Registry, toy_path: None) -> None:
    shop.write(tasks())
    other = share.opened(start_of(shop, site={"party": "south"}), Partners())  # type: ignore[arg-type]
    with (
        pytest.raises(RefusedError, match=r"this site is 'south'; the job makes guest:9999 the party 'north'") as caught,
        other,
    ):
        raise KeyError("it must not be opened")
    assert 'parties: {"south": "guest:9999"}' in caught.value.problems[0].fix
    with share.opened(start_of(shop, site={"party": "north"}), Partners()) as made:  # type: ignore[arg-type]
        assert (made.party, made.coordinator) == ("north", "hub") and made.home == shop.folder / "fate" / "shop"


def test_a_wrong_override_is_told_as_a_parameter(shop: Any, tasks: Tasks, toys: Registry, toy_path: None) -> None:
    shop.write(tasks())
    given = {"pipeline": (shop.folder / "shop.yaml").read_text(), "overrides": {"tasks.safe.config.mechanism.epsilo": 4}}
    wrong = share.opened(start_of(shop, parameters=given), Partners())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"parameters.overrides: tasks.safe.config.mechanism.epsilo=4") as caught, wrong:
        raise KeyError("it must not be opened")
    assert "epsilon" in caught.value.problems[0].fix


def test_an_input_of_fate_is_the_file_of_a_bound_data_set(
    shop: Any, tasks: Tasks, toys: Registry, toy_path: None, tmp_path: Path
) -> None:
    shop.write(tasks())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text('{"id": "a", "colour": "red", "size": "s"}\n')
    place = {"type": "data_directory", "path": str(tmp_path / "in")}
    given = start_of(shop, site={"inputs": {"items": "data"}}, inputs={"data": place})
    with share.opened(given, Partners()) as made:  # type: ignore[arg-type]
        assert made.site.datasets.load("items")[0].rows[0]["id"] == "a"
        assert made.site.policy.data["items"].label == "private"  # what it is, says the policy


def test_labels_in_manifests_are_plain_json() -> None:
    label = Label.join([released("north", "r1"), raw("north", "items")])
    assert Label.from_json(json.loads(json.dumps(label.to_json()))) == label

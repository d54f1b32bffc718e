# SPDX-License-Identifier: Apache-2.0
"""`osmotic export fate`: the documents of a job, and what is refused. FATE's own parser reads them in tests/fate."""

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from osmotic.runtime.exporting.fate import export_fate
from osmotic.runtime.exporting.fate_parties import FateParty, shares
from osmotic.runtime.plan.load import load, shipped
from osmotic.schemas.errors import ConfigError

TWO = {"server": ["hub"], "clients": ["north", "south"]}
SMALL = """
osmotic: 1
name: {name}
parties: {parties}
tasks:
  records: {{component: record_loader, at: clients, config: {{data: patients}}}}
"""


def pipeline(folder: Path, name: str = "small", parties: str = "{server: hub, clients: [north, south]}") -> str:
    file = folder / f"{name}.yaml"
    file.write_text(SMALL.format(name=name, parties=parties), encoding="utf-8")
    return str(file)


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_a_shipped_pipeline_is_a_job_of_three_parties(tmp_path: Path) -> None:
    made = export_fate(["fedcot"], tmp_path / "job", overrides=("matrix.seed=[1]",))
    assert sorted(made.files) == sorted(str(p.relative_to(made.folder)) for p in made.folder.rglob("*") if p.is_file())
    dag = read(made.folder / "dag.yaml")
    task = dag["dag"]["tasks"]["fedcot"]
    assert dag["kind"] == "fate" and task["component_ref"] == "osmotic_pipeline" and task["stage"] == "default"
    ids = {entry["role"]: entry["party_id"] for entry in dag["dag"]["parties"]}
    assert ids == {"arbiter": ["10000"], "guest": ["9999"], "host": ["10000"]}
    places = {"hub": "arbiter:10000", "north": "guest:9999", "south": "host:10000"}
    assert task["parameters"] == {"pipeline": "fedcot", "overrides": ["matrix.seed=[1]"], "parties": places}


def test_a_task_configuration_holds_all_that_component_execute_needs(tmp_path: Path) -> None:
    made = export_fate(["fedcot"], tmp_path / "job")
    config = read(made.folder / "tasks" / "guest-9999.yaml")
    assert (config["role"], config["party_id"], config["component"]) == ("guest", "9999", "osmotic_pipeline")
    assert set(config["output_artifacts"]) == {"report", "metric"}
    assert config["output_artifacts"]["metric"]["uri"] == f"file://{made.folder}/out/fedcot-guest-9999/metric.json"
    federation = config["conf"]["federation"]["metadata"]
    assert federation["parties"]["local"] == {"role": "guest", "partyid": "9999"} and len(federation["parties"]["parties"]) == 3
    same = {read(file)["conf"]["federation"]["metadata"]["federation_id"] for file in (made.folder / "tasks").iterdir()}
    assert len(same) == 1


def test_no_parameter_of_a_job_is_a_path_or_an_interpreter(tmp_path: Path) -> None:
    made = export_fate([pipeline(tmp_path)], tmp_path / "job", sites=tmp_path / "mine.yaml")
    text = (made.folder / "dag.yaml").read_text(encoding="utf-8")
    assert str(tmp_path) not in text and "python" not in text
    site = json.loads((made.folder / "site.json").read_text())
    assert set(site) == {"python", "sites", "home"} and site["sites"] == str(tmp_path / "mine.yaml")


def test_a_pipeline_of_ones_own_goes_as_its_text(tmp_path: Path) -> None:
    made = export_fate([pipeline(tmp_path)], tmp_path / "job")
    text = read(made.folder / "dag.yaml")["dag"]["tasks"]["small"]["parameters"]["pipeline"]
    assert yaml.safe_load(text)["name"] == "small"


def test_the_readme_has_a_command_for_each_party_and_the_class_is_python(tmp_path: Path) -> None:
    made = export_fate(["fedcot"], tmp_path / "job")
    text = (made.folder / "README.md").read_text(encoding="utf-8")
    assert "@@" not in text and text.count("component execute --config") == 3 and "OSMOTIC_FATE_SITE" in text
    tree = ast.parse((made.folder / "osmotic_client.py").read_text(encoding="utf-8"))
    assert {"OsmoticPipeline", "job"} <= {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_pipeline_has_shares_for_all_its_parties(name: str) -> None:
    lists = load(name).pipeline.parties
    found = shares(lists)
    assert len(set(found.values())) == sum(map(len, lists.values())) > 1
    assert [str(p) for p in found.values() if p.role == "guest"] == ["guest:9999"]


def test_two_pipelines_are_two_tasks_of_one_job(tmp_path: Path) -> None:
    more = pipeline(tmp_path, "more", "{server: hub, clients: [north, south, east]}")
    made = export_fate([pipeline(tmp_path), more], tmp_path / "job")
    dag = read(made.folder / "dag.yaml")["dag"]
    assert dag["parties"][-1] == {"role": "host", "party_id": ["10000", "10001"]}
    assert dag["tasks"]["small"]["parties"][-1] == {"role": "host", "party_id": ["10000"]}
    assert "parties" not in dag["tasks"]["more"]
    assert (made.folder / "tasks" / "more-host-10001.yaml").is_file()


def test_two_tasks_with_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two tasks of the job are called 'fedcot'"):
        export_fate(["fedcot", "fedcot"], tmp_path / "job")
    assert not (tmp_path / "job").exists()


def test_places_can_be_given_by_name_and_by_role() -> None:
    found = shares(TWO, ["south=guest:7", "host:8,arbiter:9"], ["server=arbiter"])
    assert {name: str(place) for name, place in found.items()} == {"hub": "arbiter:9", "south": "guest:7", "north": "host:8"}


def test_roles_of_other_names_are_said() -> None:
    parties = {"judge": ["j"], "clients": ["a", "b"]}
    with pytest.raises(ConfigError, match="FATE has no role 'judge'") as caught:
        shares(parties)
    assert caught.value.problems[0].path == "parties.judge" and "--role judge=arbiter" in caught.value.problems[0].fix
    found = shares(parties, (), ["judge=arbiter", "clients=guest"])
    assert [str(found[name]) for name in ("j", "a", "b")] == ["arbiter:10000", "guest:9999", "host:10000"]


def test_the_parameter_roles_is_written_where_it_was_needed(tmp_path: Path) -> None:
    file = pipeline(tmp_path, parties="{judge: j, clients: [a, b]}")
    made = export_fate([file], tmp_path / "job", roles=["judge=arbiter", "clients=guest"])
    given = read(made.folder / "dag.yaml")["dag"]["tasks"]["small"]["parameters"]
    assert given["roles"] == {"judge": "arbiter", "clients": ["guest", "host"]}


@pytest.mark.parametrize(
    ("given", "roles", "what"),
    [
        (["guest:1,host:2,host:3,arbiter:4"], [], "host:3 has no share in the pipeline"),
        (["guest:1,arbiter:4"], [], "no party of FATE for the pipeline's 'south'"),
        (["gest:1"], [], "FATE has no role 'gest'"),
        (["guest"], [], "'guest' is no party of FATE"),
        (["nort=guest:1"], [], "the pipeline has no party 'nort'"),
        (["north=guest:1,north=host:2"], [], "has a place already"),
        (["north=host:2,south=host:2,hub=arbiter:1"], [], "are both host:2"),
        (["north=guest:1,south=guest:2"], [], "are both guest; FATE has one"),
        ([], ["server=judge"], "write ROLE=arbiter"),
        ([], ["sever=arbiter"], "the pipeline has no role 'sever'"),
        ([], ["clients=host"], "no party of the pipeline is FATE's guest"),
        ([], ["clients=arbiter", "server=guest"], "FATE has one arbiter, the pipeline has 2"),
    ],
)
def test_shares_that_do_not_fit_are_told(given: list[str], roles: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        shares(TWO, given, roles)
    assert what in str(caught.value) and all(problem.fix for problem in caught.value.problems)


def test_files_that_are_there_are_not_written_over(tmp_path: Path) -> None:
    made = export_fate(["fedcot"], tmp_path / "job")
    (made.folder / "site.json").write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigError, match="is there already"):
        export_fate(["fedcot"], tmp_path / "job")
    assert (made.folder / "site.json").read_text() == "mine"
    export_fate(["fedcot"], tmp_path / "job", force=True)
    assert json.loads((made.folder / "site.json").read_text())["home"] == f"{made.folder}/home"


def test_a_pipeline_that_cannot_run_is_no_job(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="record_loadr"):
        export_fate([pipeline(tmp_path)], tmp_path / "job", overrides=("tasks.records.component=record_loadr",))


def test_a_party_of_fate_reads_its_own_form() -> None:
    assert FateParty.parse("host:10001", "here") == FateParty("host", "10001")


def test_files_beside_a_pipeline_are_refused_with_their_place(tmp_path: Path) -> None:
    file = Path(pipeline(tmp_path))
    (tmp_path / "shop.schema.yaml").write_text("fields: {colour: {domain: [red, green]}}\n", encoding="utf-8")
    text = file.read_text(encoding="utf-8").replace("{data: patients}", "{data: shop.schema.yaml}")
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        export_fate([str(file)], tmp_path / "job")
    (problem,) = caught.value.problems
    assert "shop.schema.yaml' is a file beside the pipeline" in problem.what and problem.path == "tasks.records.config.data"
    assert not (tmp_path / "job").exists()

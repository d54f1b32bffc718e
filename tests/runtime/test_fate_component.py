# SPDX-License-Identifier: Apache-2.0
"""One component as a task of FATE: folders in, folders out, under the site's own policy."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from osmotic.runtime.fate.component import run_component
from osmotic.runtime.results.verifying import ledgers_of, verify
from osmotic.schemas.errors import BudgetError, DataError, MembraneError, OsmoticError, RefusedError

SCHEMA = {"fields": {"colour": {"domain": ["red", "green", "blue"]}, "size": {"domain": ["s", "m"]}}}
ROWS = [{"id": f"r{i}", "colour": ("red", "green", "blue")[i % 3], "size": "sm"[i % 2]} for i in range(20)]
CONFIG = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour", "size"]}


@pytest.fixture
def site(tmp_path: Path) -> dict[str, Any]:
    """A site of one party that binds `records` without a file: whatever FATE hands over counts as it."""
    return write_site(tmp_path)


def write_site(folder: Path, purpose: str = "private", parties: tuple[str, ...] = ("north",), **more: Any) -> dict[str, Any]:
    policy = {"data": {"records": {"path": "???", "schema": SCHEMA, "purpose": purpose}}, **more}
    policy["budget"] = {"records": {"per_document": 4}}
    file = folder / "sites.yaml"
    file.write_text(json.dumps({"osmotic_sites": 1, "parties": {party: policy for party in parties}}), encoding="utf-8")
    return {"sites": str(file), "home": str(folder / "home"), "inputs": {"records": "data"}}


def rows_in(folder: Path, rows: list[dict[str, Any]] = ROWS) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"data": {"type": "data_directory", "path": str(folder)}}


def start(tmp_path: Path, site: dict[str, Any], inputs: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    given = {"component": "dp_sanitizer", "config": CONFIG, **parameters}
    outputs = {
        "output_data": {"type": "data_directory", "path": str(tmp_path / "out" / "data")},
        "output_model": {"type": "model_directory", "path": str(tmp_path / "out" / "model")},
        "report": {"type": "json_model", "path": str(tmp_path / "out" / "report.json")},
    }
    return {
        "frame": "start", "protocol": 1, "bridge": "0", "kind": "component", "role": "guest", "party": "guest:9999",
        "peers": ["guest:9999"], "parameters": given, "site": site, "site_file": "", "task": {"id": "t", "name": "t"},
        "inputs": inputs, "outputs": outputs,
    }  # fmt: skip


def run(frame: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []
    return run_component(frame, lambda header, blob: said.append(header)), said


def test_records_of_fate_are_sanitised_and_handed_back(tmp_path: Path, site: dict[str, Any]) -> None:
    end, said = run(start(tmp_path, site, rows_in(tmp_path / "in")))
    folder = tmp_path / "out" / "data"
    manifest = json.loads((folder / "manifest.json").read_text())
    table = pq.read_table(folder / "records.parquet").to_pylist()
    assert (end["exit"], manifest["kind"], manifest["word"]) == (0, "records", "protected")
    assert len(table) == 20 and {row["id"] for row in table}.isdisjoint({row["id"] for row in ROWS})
    assert json.loads((tmp_path / "out" / "model" / "manifest.json").read_text())["kind"] == "nothing"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["handed"] == {"output_data": "sanitized"} and report["outputs"]["key"] == {
        "kind": "records",
        "label": "private",
    }
    texts = [header["text"] for header in said if header["frame"] == "log"]
    assert "dp_sanitizer: sanitized: records, protected" in texts
    assert not any(row["id"] in text for row in ROWS for text in texts)


def test_a_second_task_pays_nothing_and_the_transcript_has_the_handing_over(tmp_path: Path, site: dict[str, Any]) -> None:
    for name in ("one", "two"):
        run(start(tmp_path / name, site, rows_in(tmp_path / "in")))
    first, second = ((tmp_path / name / "out" / "data" / "records.parquet").read_bytes() for name in ("one", "two"))
    assert first == second
    home = Path(site["home"]) / "component-dp_sanitizer"
    (party,) = ledgers_of(home)
    assert [(d["dataset"], d["documents"], d["epsilon_largest"]) for d in party["datasets"]] == [("records", 20, 4.0)]
    found = verify(home)
    assert found["problems"] == [] and found["parties"][0]["crossings"] == 1


def test_the_cap_of_the_site_holds(tmp_path: Path, site: dict[str, Any]) -> None:
    dear = {**CONFIG, "mechanism": {"name": "list-rr", "epsilon": 3, "k": 1}}
    with pytest.raises((BudgetError, RefusedError), match="over the cap"):
        run(start(tmp_path, site, rows_in(tmp_path / "in"), config=dear))
    assert not (tmp_path / "out").exists()


def test_what_is_private_stays_unless_the_policy_hands_it_over(tmp_path: Path) -> None:
    asked = {"outputs": {"output_data": "key"}}
    with pytest.raises(MembraneError, match=r"dp_sanitizer\.key stays at north") as caught:
        run(start(tmp_path, write_site(tmp_path), rows_in(tmp_path / "in"), **asked))
    assert "'handover'" in str(caught.value)
    allowed = write_site(tmp_path, handover=["dp_sanitizer.key"])
    end, _ = run(start(tmp_path, allowed, rows_in(tmp_path / "in"), **asked))
    assert end["outputs"]["output_data"]["word"] == "private"


def test_a_folder_of_osmotic_is_an_input_again_and_counts_as_the_binding(tmp_path: Path) -> None:
    site = write_site(tmp_path, purpose="benchmark")
    blind = {"component": "record_blinder", "config": {"fields": ["colour", "size"]}}
    end, _ = run(start(tmp_path / "one", site, rows_in(tmp_path / "in"), **blind))
    made = tmp_path / "one" / "out" / "data"
    assert end["outputs"]["output_data"]["word"] == "private"  # of benchmark data: it may go
    inputs = {"data": {"type": "data_directory", "path": str(made)}}
    end, _ = run(start(tmp_path / "two", site, inputs))
    assert end["outputs"]["output_data"]["word"] == "protected"
    (made / "records.parquet").write_bytes((made / "records.parquet").read_bytes()[:-1] + b"\0")
    with pytest.raises(DataError, match="not what was written"):
        run(start(tmp_path / "three", site, inputs))


def test_records_of_fate_stand_for_a_data_set_only_where_the_site_says_so(tmp_path: Path, site: dict[str, Any]) -> None:
    closed = {**site, "inputs": {}}
    with pytest.raises(RefusedError, match="takes no records of FATE for 'records'") as caught:
        run(start(tmp_path, closed, rows_in(tmp_path / "in")))
    assert '"inputs": {"records": "data"}' in caught.value.problems[0].fix


@pytest.mark.parametrize(
    ("change", "what", "path"),
    [
        ({"parameters": {"component": "dp_sanitiser"}}, "there is no component 'dp_sanitiser'", "parameters.component"),
        ({"parameters": {"component": "dp_sanitizer", "confg": {}}}, "unknown key", "parameters.confg"),
        ({"inputs": {"data": {"type": "dataframe", "path": "/x"}}}, "must be a data_directory (got dataframe)", "inputs.data"),
        ({"inputs": {"train": {"type": "data_directory", "path": "/x"}}}, "no such artifact", "inputs.train"),
        ({"site": {}}, "this site has no policy", "site.sites"),
        ({"site": {"pyton": "/x"}}, "unknown key", "site.pyton"),
    ],
)  # fmt: skip
def test_mistakes_are_located(tmp_path: Path, site: dict[str, Any], change: dict[str, Any], what: str, path: str) -> None:
    with pytest.raises(OsmoticError) as caught:
        run({**start(tmp_path, site, rows_in(tmp_path / "in")), **change})
    problem = caught.value.problems[0]
    assert what in problem.what and problem.path == path


def test_a_wrong_configuration_is_found_at_the_job_parameters(tmp_path: Path, site: dict[str, Any]) -> None:
    wrong = {**CONFIG, "fields": ["colour", "shade"]}
    with pytest.raises(OsmoticError) as caught:
        run(start(tmp_path, site, rows_in(tmp_path / "in"), config={**CONFIG, "mechansm": 1}))
    assert caught.value.problems[0].path == "parameters.config.mechansm" and caught.value.problems[0].where == ""
    with pytest.raises(OsmoticError, match="shade"):
        run(start(tmp_path, site, rows_in(tmp_path / "in"), config=wrong))


def test_the_site_says_which_party_it_is(tmp_path: Path) -> None:
    both = write_site(tmp_path, parties=("north", "south"))
    with pytest.raises(RefusedError, match="the job would choose which party this site is"):
        run(start(tmp_path, both, rows_in(tmp_path / "in"), party="south"))
    end, _ = run(start(tmp_path, {**both, "party": "south"}, rows_in(tmp_path / "in")))
    assert end["exit"] == 0 and json.loads((tmp_path / "out" / "report.json").read_text())["party"] == "south"
    with pytest.raises(RefusedError, match="this site is 'north', not 'south'"):
        run(start(tmp_path, {**both, "party": "north"}, rows_in(tmp_path / "in"), party="south"))


def test_a_plugin_that_the_policy_does_not_list_is_refused(tmp_path: Path) -> None:
    strict = write_site(tmp_path, components=["record_loader"])
    with pytest.raises(RefusedError, match="dp_sanitizer"):
        run(start(tmp_path, strict, rows_in(tmp_path / "in")))


@pytest.mark.parametrize("purpose", ["private", "benchmark"])
def test_a_reason_that_may_quote_private_records_is_in_the_own_log_alone(
    tmp_path: Path, purpose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = write_site(tmp_path, purpose=purpose)
    with pytest.raises(OsmoticError) as caught:
        run(start(tmp_path, site, rows_in(tmp_path / "in", [{"id": "r1", "colour": "pink", "size": "s"}])))
    told, logged = str(caught.value), capsys.readouterr().err
    assert caught.value.exit_code == DataError.exit_code
    if purpose == "private":
        assert told.startswith("dp_sanitizer failed (data)") and "pink" not in told and "pink" in logged
    else:
        assert "pink" in told


def test_a_model_folder_of_somebody_else_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    inputs = {"model": {"type": "model_directory", "path": str(tmp_path / "model")}}
    with pytest.raises(DataError, match="none that osmotic wrote"):
        run(start(tmp_path, write_site(tmp_path, purpose="benchmark"), inputs))


def test_a_link_in_a_folder_of_fate_is_not_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = rows_in(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine.jsonl").symlink_to(tmp_path / "elsewhere" / "mine.jsonl")
    place["data"]["path"] = str(tmp_path / "in")
    with pytest.raises(OsmoticError, match="dp_sanitizer failed"):
        run(start(tmp_path, write_site(tmp_path), place))
    assert "inputs.data: 'mine.jsonl' is a link" in capsys.readouterr().err

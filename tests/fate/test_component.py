# SPDX-License-Identifier: Apache-2.0
"""With the real pyfate: `dp_sanitizer` as a FATE task at one party, on a data_directory."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fate_real import Task

from osmotic.runtime.results.verifying import ledgers_of

SCHEMA = {"fields": {"colour": {"domain": ["red", "green", "blue"]}, "size": {"domain": ["s", "m"]}}}
ROWS = [{"id": f"r{i}", "colour": ("red", "green", "blue")[i % 3], "size": "sm"[i % 2]} for i in range(24)]
CONFIG = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1}, "fields": ["colour", "size"]}
GUEST = "guest:9999"


class Alone(Task):
    """A task of the guest alone; its site lets FATE's records stand for `records`."""

    def __init__(self, folder: Path, python: str, config: dict[str, Any], kind: str = "data_directory") -> None:
        policy = {"data": {"records": {"path": "???", "schema": SCHEMA}}, "budget": {"records": {"per_document": 4}}}
        sites = folder / "sites.yaml"
        (folder / "in").mkdir(parents=True)
        sites.write_text(json.dumps({"osmotic_sites": 1, "parties": {"north": policy}}), encoding="utf-8")
        (folder / "in" / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
        outputs = {"output_data": "data_directory", "report": "json_model"}
        super().__init__(
            folder, python, "osmotic_component", {"component": "dp_sanitizer", "config": config}, parties=[("guest", "9999")],
            sites=sites, outputs=outputs, inputs={"data": (kind, folder / "in")},
        )  # fmt: skip

    def environment(self, name: str) -> dict[str, str]:
        found = super().environment(name)
        file = Path(found["OSMOTIC_FATE_SITE"])
        file.write_text(json.dumps({**json.loads(file.read_text()), "inputs": {"records": "data"}}), encoding="utf-8")
        return found


def run(task: Task) -> tuple[int, dict[str, Any]]:
    task.start()
    (code,) = task.wait(120).values()
    return code, task.status(GUEST)


@pytest.mark.slow
def test_dp_sanitizer_is_a_task_of_fate(tmp_path: Path, fate_python: str) -> None:
    task = Alone(tmp_path / "job", fate_python, CONFIG)
    code, status = run(task)
    assert (code, status["code"]) == (0, 0), task.log(GUEST)[-3000:]
    table = pq.read_table(task.folder / "guest" / "output_data" / "records.parquet").to_pylist()
    manifest = json.loads((task.folder / "guest" / "output_data" / "manifest.json").read_text())
    assert len(table) == len(ROWS) and manifest["word"] == "protected"
    assert {row["id"] for row in table}.isdisjoint({row["id"] for row in ROWS})
    assert not any(row["id"] in task.log(GUEST) for row in table)
    (party,) = ledgers_of(task.home(GUEST) / "component-dp_sanitizer")
    assert [(d["documents"], d["epsilon_largest"]) for d in party["datasets"]] == [(24, 4.0)]


@pytest.mark.slow
def test_a_wrong_configuration_is_located_in_the_status_of_fate(tmp_path: Path, fate_python: str) -> None:
    task = Alone(tmp_path / "job", fate_python, {**CONFIG, "mechansm": 1})
    code, status = run(task)
    assert code != 0 and status["code"] == -1
    assert "parameters.config.mechansm" in status["exceptions"]

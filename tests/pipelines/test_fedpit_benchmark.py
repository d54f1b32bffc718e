# SPDX-License-Identifier: Apache-2.0
"""What the benchmark of FedPIT makes of a user's file: records of every known form, dealt out so that nobody shares one."""

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    if not (FOLDER / "fedpit.py").is_file():
        pytest.skip("the benchmarks are not here")
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("fedpit_benchmark", FOLDER / "fedpit.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(FOLDER))


ENTRIES = [
    {"instruction": "Name a tea.", "input": "", "response": "Assam"},
    {"instruction": "name a TEA.", "response": "Oolong"},  # alike
    {"instruction": "What is it?", "instances": [{"input": "a kettle", "output": "a pot"}]},
    {"instruction": "Is it warm?", "input": None, "output": "yes"},
    {"instruction": "Say nothing.", "output": " "},
    {"instruction": "Say much.", "output": "word " * 50},
]


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_every_form_is_read_and_what_is_alike_empty_or_long_is_left_out(benchmark: Any, tmp_path: Path, form: str) -> None:
    text = json.dumps(ENTRIES, indent=1) if form == "json" else "".join(json.dumps(entry) + "\n" for entry in ENTRIES)
    (tmp_path / "file").write_text(text)
    assert benchmark.records(benchmark.read(tmp_path / "file"), 20) == [
        {"kind": "request", "instruction": "Name a tea.", "response": "Assam"},
        {"kind": "request", "instruction": "What is it?\na kettle", "response": "a pot"},
        {"kind": "question", "instruction": "Is it warm?", "response": "yes"},
    ]


def test_nobody_shares_a_record_but_for_the_exam(benchmark: Any, tmp_path: Path) -> None:
    rows = [{"kind": "request", "instruction": f"do {i}", "response": f"done {i}"} for i in range(50)]
    dealt = benchmark.deal(rows, ["a", "b"], 10, 5, 1)
    parts = [dealt[client][name] for client in ("a", "b") for name in ("instructions", "control")]
    ids = [row["id"] for part in [*parts, dealt["a"]["exam"]] for row in part]
    assert len(ids) == len(set(ids)) == 45 and dealt["a"]["exam"] == dealt["b"]["exam"]
    assert dealt == benchmark.deal(rows, ["a", "b"], 10, 5, 1) != benchmark.deal(rows, ["a", "b"], 10, 5, 2)
    with pytest.raises(SystemExit, match="50 usable records, 65 are needed"):
        benchmark.deal(rows, ["a", "b"], 15, 5, 1)
    sites = json.loads(benchmark.write(tmp_path, dealt).read_text())
    assert set(sites["parties"]) == {"hub", "a", "b"} and set(sites["parties"]["a"]["data"]) == {"instructions", "control"}
    assert sites["parties"]["hub"]["data"]["exam"]["label"] == "public"


def test_what_is_said_to_the_pipeline(benchmark: Any) -> None:
    sizes = {"epochs": 2.0, "examples": 10, "batch": 8, "layers": 4, "rounds": 2, "words": 60, "kept": 8}
    given = argparse.Namespace(**sizes, rate=1e-3, prefix=0.3, seeds=[1], arms=["fedpit"], set=["a.b=1"])
    said = dict(option.split("=", 1) for option in benchmark.overrides(given, ["a", "b"]))
    assert json.loads(said["parties.clients"]) == ["a", "b"] and json.loads(said["matrix.arm"]) == ["fedpit"]
    assert said["a.b"] == "1" and all(said[key] == "3" for key in benchmark.STEPS) and said[benchmark.ROUNDS] == "2"

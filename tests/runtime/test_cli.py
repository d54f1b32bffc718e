# SPDX-License-Identifier: Apache-2.0
"""The command line: light to start, pure JSON, exit codes, commands that look into a finished run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "datasets", "deepspeed", "peft", "pyarrow", "scipy", "sklearn")
LOADED = """
import contextlib, io, json, sys
sys.argv = ["osmotic", *json.loads(sys.argv[1])]
from osmotic.runtime.cli import main
code = None
with contextlib.redirect_stdout(io.StringIO()):
    try:
        main()
    except SystemExit as stop:
        code = stop.code
print(json.dumps([code, sorted(sys.modules)]))
"""
PIPELINE = """
osmotic: 1
name: toy
parties: {clients: [north, south]}
matrix: {arm: [first, second]}
tasks:
  records: {component: record_loader, at: clients, config: {data: numbers}, matrix: [arm]}
  safe:
    component: dp_sanitizer
    at: clients
    inputs: {records: records}
    config: {mechanism: {name: list-rr, epsilon: 1, k: 1}, fields: [colour]}
"""
SITES = """
defaults:
  data: {numbers: {path: numbers.jsonl, schema: schema.yaml}}
  budget: {numbers: {per_document: 4}}
parties: {north: {}, south: {}}
"""


def osmotic(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "OSMOTIC_PLUGINS": "", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False)


@pytest.mark.parametrize(
    "command", [["--help"], ["--version"], ["plan", "fedcot"], ["validate", "fedcot"], ["components"], ["schema"]]
)
def test_nothing_heavy_is_imported(command: list[str], tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(command)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    code, modules = json.loads(run.stdout)
    assert code == 0 and not set(HEAVY) & set(modules)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline and the home of its run."""
    folder = tmp_path_factory.mktemp("toy")
    rows = [{"id": f"r{i}", "colour": ("red", "green", "blue")[i % 3]} for i in range(5)]
    (folder / "numbers.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    (folder / "schema.yaml").write_text("{fields: {colour: {domain: [red, green, blue]}}}", encoding="utf-8")
    (folder / "toy.yaml").write_text(PIPELINE, encoding="utf-8")
    (folder / "toy.sites.yaml").write_text(f"osmotic_sites: 1{SITES}", encoding="utf-8")
    done = osmotic("run", "toy.yaml", "--home", "home", "--json", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and json.loads(done.stdout)["outcome"]["ran"] == 4  # both arms share their work
    return folder


def test_usage_errors_are_one_message() -> None:
    for arguments in (["plan"], ["pln"], ["--nonsense"], ["schema", "a", "b"]):
        done = osmotic(*arguments)
        assert done.returncode == 2 and "Error: " in done.stderr and "Traceback" not in done.stderr
    assert "Did you mean 'plan'" in osmotic("pln").stderr
    assert osmotic().returncode == 2 and "Exit codes" in osmotic("--help").stdout


def test_version() -> None:
    from osmotic import __version__

    assert osmotic("--version").stdout == f"osmotic {__version__}\n"


def test_validate(finished: Path) -> None:
    assert osmotic("validate", "toy.yaml", cwd=finished).stdout == "toy.yaml: valid; 2 tasks as written, 8 to run\n"
    said = osmotic("validate", "toy.yaml", "--set", "matrix.arm=[only]", "--json", cwd=finished)
    assert json.loads(said.stdout) == {"pipeline": "toy", "nodes": 2, "tasks": 4}
    wrong = osmotic("validate", "toy.yaml", "--set", "tasks.safe.config.field=x", "--json", cwd=finished)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert (
        "--set tasks.safe.config.field=x tasks.safe.config.field:" in wrong.stderr and "did you mean 'fields'?" in wrong.stderr
    )


def test_plan_after_a_run(finished: Path) -> None:
    plan = json.loads(osmotic("plan", "toy.yaml", "--home", "home", "--json", cwd=finished).stdout)
    assert plan["count"] == {"tasks": 8, "cached": 8}
    text = osmotic("plan", "toy.yaml", "--home", "home", cwd=finished).stdout
    assert "toy: 8 tasks, 8 finished before" in text and "1 (1 field" in text and "5 documents released before, free" in text


def test_plan_refused_prints_the_plan_and_exits_with_4(finished: Path) -> None:
    done = osmotic(
        "plan", "toy.yaml", "--home", "home", "--json", "--set", "tasks.safe.config.mechanism.epsilon=5", cwd=finished
    )
    assert done.returncode == 4 and len(json.loads(done.stdout)["refusals"]) == 2
    assert (
        done.stderr.startswith("2 problems:\n")
        and "toy.yaml:12:14 tasks.safe.config.mechanism: north: epsilon 5" in done.stderr
    )


def test_run_again_does_nothing_and_progress_goes_to_stderr(finished: Path) -> None:
    done = osmotic("run", "toy.yaml", "--home", "home", cwd=finished)
    assert done.returncode == 0 and "8 found finished" in done.stderr and "8 found finished" in done.stdout
    assert done.stdout.startswith("Guarantee of this run: ") and done.stdout.rstrip().endswith("Report: home/report.html")


def test_ledger(finished: Path) -> None:
    found = json.loads(osmotic("ledger", "home", "--json", cwd=finished).stdout)
    assert [(p["party"], p["datasets"][0]["epsilon_largest"]) for p in found] == [("north", 1.0), ("south", 1.0)]
    text = osmotic("ledger", "home", cwd=finished).stdout
    assert "north" in text and "1 a document" in text and "numbers" in text


def test_verify(finished: Path) -> None:
    assert osmotic("verify", "home", cwd=finished).stdout.endswith("both ends of every crossing agree\n")
    assert json.loads(osmotic("verify", "home", "--json", cwd=finished).stdout)["problems"] == []


def test_report(finished: Path) -> None:
    (finished / "home" / "report.html").unlink()
    done = osmotic("report", "home", cwd=finished)
    assert done.returncode == 0 and done.stdout == "home/report.html\n"
    assert "<html" in (finished / "home" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["ledger", "verify", "report"])
def test_a_folder_without_a_run_is_said(command: str, tmp_path: Path) -> None:
    done = osmotic(command, tmp_path)
    assert done.returncode == 3 and str(tmp_path) in done.stderr and "Traceback" not in done.stderr


def test_catalogues() -> None:
    components = json.loads(osmotic("components", "--json").stdout)
    loader = next(c for c in components if c["name"] == "record_loader")
    assert loader["outputs"] == {"records": "records (source)"} and "data" in loader["config"]
    assert "takes records: records" in osmotic("components").stdout
    plugins = json.loads(osmotic("plugins", "--json").stdout)
    kinds = {e["kind"] for e in plugins["registered"]}
    assert plugins["failures"] == {} and kinds == {"component", "mechanism", "model", "table"}
    assert "list-rr" in osmotic("plugins").stdout


def test_schemas(tmp_path: Path) -> None:
    assert {"pipeline", "sites", "records"} <= set(osmotic("schema").stdout.split())
    assert json.loads(osmotic("schema", "pipeline").stdout)["title"] == "osmotic pipeline"
    assert osmotic("schema", "--check").returncode == 0
    assert osmotic("schema", "--write", tmp_path).returncode == 0 and list(tmp_path.glob("*.json"))
    wrong = osmotic("schema", "pipelin")
    assert wrong.returncode == 2 and "did you mean 'pipeline'?" in wrong.stderr

# SPDX-License-Identifier: Apache-2.0
"""A stranger's package through the command line: its mechanism, component and model in one pipeline."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "plugin_example"
PIPELINE = EXAMPLE / "garden" / "pipeline.yaml"

try:
    distribution("osmotic-example")
except PackageNotFoundError:
    pytest.skip("the example plugin is not installed: pip install --no-deps ./tests/plugin_example", allow_module_level=True)


def osmotic(*arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a user would, from a folder that has nothing to do with the source tree."""
    command = [sys.executable, "-c", "import sys; from osmotic.runtime.cli import main; sys.exit(main())", *arguments]
    env = {k: v for k, v in os.environ.items() if k != "OSMOTIC_PLUGINS"} | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)


def run(home: Path, *more: str) -> dict[str, Any]:
    done = osmotic("run", str(PIPELINE), "--home", str(home), "--json", *more, folder=home.parent)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.parametrize("how", [(), ("--isolate",)], ids=["one process", "a process each"])
def test_the_example_runs_and_runs_again_from_the_store(tmp_path: Path, how: tuple[str, ...]) -> None:
    first = run(tmp_path / "home", *how)
    assert first["outcome"]["ran"] == 7 and first["outcome"]["cached"] == 0
    assert {p["party"]: (p["word"], p["epsilon"], p["unit"]) for p in first["guarantee"]["parties"]} == {
        "north": ("certified", 6.0, "document"),
        "south": ("certified", 6.0, "document"),
    }
    assert {(c["name"], c["sender"], c["receiver"]) for c in first["crossings"]} == {
        ("answers.prompts", "north", "hub"),
        ("answers.prompts", "south", "hub"),
    }
    counts = [json.loads(path.read_text()) for path in (tmp_path / "home").rglob("metrics.json")]
    assert [c["values"]["texts"] for c in counts] == [14.0] and counts[0]["values"]["words"] >= 14 * 3
    again = run(tmp_path / "home", *how)
    assert again["outcome"]["ran"] == 0 and again["guarantee"] == first["guarantee"]


def test_without_plugins_its_names_are_unknown(tmp_path: Path) -> None:
    done = osmotic("validate", str(PIPELINE), folder=tmp_path, OSMOTIC_PLUGINS="")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "unknown component 'word_counter'" in done.stderr and "pipeline.yaml:30:5" in done.stderr


def test_a_mistake_in_the_plugins_own_configuration_is_told_with_its_place(tmp_path: Path) -> None:
    text = PIPELINE.read_text(encoding="utf-8").replace("{order: 4}", "{ordr: 4}")
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    done = osmotic("validate", "p.yaml", folder=tmp_path)
    assert done.returncode == 2
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "ordr" in row)
    assert f"p.yaml:{line}:" in done.stderr and "did you mean 'order'?" in done.stderr


def test_more_epsilon_than_the_site_grants_is_refused(tmp_path: Path) -> None:
    more = ("--set", "tasks.sanitized.config.mechanism.epsilon=4")
    done = osmotic("run", str(PIPELINE), "--home", str(tmp_path / "home"), *more, folder=tmp_path)
    assert done.returncode == 4 and "Traceback" not in done.stderr

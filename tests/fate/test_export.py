# SPDX-License-Identifier: Apache-2.0
"""What `osmotic export fate` writes, read by FATE's own parser (pyfate 2.2.0, fate_client 2.2.0) and built again from it."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

osmotic = pytest.importorskip("osmotic")

READ = """
import glob, json, sys, yaml
from fate.components.core.spec.task import TaskConfigSpec
configs = {}
for name in glob.glob("tasks/*.yaml"):
    one = TaskConfigSpec.parse_obj(yaml.safe_load(open(name)))
    configs[f"{one.role}:{one.party_id}"] = {
        "parameters": one.parameters, "outputs": sorted(one.output_artifacts), "stage": one.stage,
        "parties": [[p.role, p.partyid] for p in one.conf.federation.metadata.parties.parties],
    }
print(json.dumps(configs))
"""
BUILD = """
import json, sys, yaml
from fate_client.pipeline.entity.dag_structures import DAGSchema
sys.path.insert(0, ".")
import osmotic_client
given = DAGSchema(**yaml.safe_load(open("dag.yaml")))
made = osmotic_client.job().compile()._dag.dag_spec
shown = lambda dag: {"parties": {p.role: p.party_id for p in dag.parties}, "stage": dag.stage,
                     "tasks": {n: [t.component_ref, t.parameters] for n, t in dag.tasks.items()}}
print(json.dumps([shown(given.dag), shown(made.dag)]))
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from osmotic.runtime.exporting.fate import export_fate

    return export_fate(["fedcot"], tmp_path_factory.mktemp("export") / "job", overrides=("matrix.seed=[1]",)).folder


def run(python: str, folder: Path, *arguments: str) -> str:
    done = subprocess.run([python, "-W", "ignore", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_task_configurations_are_what_fate_reads(fate_python: str, job: Path) -> None:
    found = json.loads(run(fate_python, job, "-c", READ).splitlines()[-1])
    assert set(found) == {"arbiter:10000", "guest:9999", "host:10000"}
    parameters = yaml.safe_load((job / "dag.yaml").read_text())["dag"]["tasks"]["fedcot"]["parameters"]
    for one in found.values():
        assert one["parameters"] == parameters and one["stage"] == "default" and one["outputs"] == ["metric", "report"]
        assert one["parties"] == [["arbiter", "10000"], ["guest", "9999"], ["host", "10000"]]


def test_the_class_of_fate_client_builds_the_same_job(fate_python: str, job: Path) -> None:
    probe = subprocess.run([fate_python, "-c", "import fate_client.pipeline"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"fate_client cannot be imported there: {probe.stderr.splitlines()[-1]}")
    definition = job / "osmotic_pipeline.yaml"
    told = subprocess.run([fate_python, "-c", "import sys; sys.path.insert(0, '.'); import osmotic_client as c; c.job()"],
                          cwd=job, capture_output=True, text=True, check=False)  # fmt: skip
    assert "component desc --name osmotic_pipeline --save" in told.stderr
    run(fate_python, job, "-m", "fate.components", "component", "desc", "--name", "osmotic_pipeline", "--save", str(definition))
    given, made = json.loads(run(fate_python, job, "-c", BUILD).splitlines()[-1])
    assert made == given


def test_the_component_has_every_parameter_that_a_job_may_give(fate_python: str, job: Path) -> None:
    shown = yaml.safe_load(run(fate_python, job, "-m", "fate.components", "component", "desc", "--name", "osmotic_pipeline"))
    known = set(shown["component"]["parameters"])
    assert {"pipeline", "overrides", "parties", "roles", "deadline", "worker"} <= known
    artifacts = shown["component"]["output_artifacts"]
    assert "report" in artifacts["model"] and shown["component"]["roles"] == ["guest", "host", "arbiter"]

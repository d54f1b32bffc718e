# SPDX-License-Identifier: Apache-2.0
"""The shipped fedcot, shortened and seeded, over a real server and three real sites: what one machine gives, bit for bit."""

import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.plan.load import shipped
from osmotic.runtime.results.verifying import verify

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # two runs over processes that load torch: half a minute of processor time, shared with others
    pytest.mark.skipif(importlib.util.find_spec("nvflare") is None, reason="the extra nvflare is not installed"),
]
SITES = ("north", "south", "east")
SETS = (
    "parties.clients=[north, south, east]",
    "noise_seed=5",
    "matrix.seed=[1]",
    "matrix.arm=[fedcot]",
    "tasks.student.config.steps=2",
    "tasks.federated.repeat.times=1",
    "tasks.federated.tasks.local.config.steps=1",
    "tasks.rationales.config.max_new_tokens=6",
    "tasks.clean_rationales.config.max_new_tokens=6",
    "tasks.evaluated.config.modes=[label]",
)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """fedcot beside a sites file of three clinics, eight records each, that allows seeds."""
    shutil.copy(shipped()["fedcot"], tmp_path / "fedcot.yaml")
    sites = yaml.safe_load(shipped()["fedcot"].with_name("fedcot.sites.yaml").read_text())
    sites["defaults"]["seeded"] = True
    sites["defaults"]["waivers"][1]["observers"] = ["hub", *SITES]
    sites["parties"]["east"] = json.loads(json.dumps(sites["parties"]["south"]))
    for start, party in ((0, "north"), (0, "south"), (12, "east")):
        for name, binding in sites["parties"][party]["data"].items():
            binding["rows"] = [0, 4] if name == "exam" else [start, start + 8]
    (tmp_path / "fedcot.sites.yaml").write_text(json.dumps(sites, indent=1))
    return tmp_path / "fedcot.yaml"


@pytest.mark.whole
def test_three_sites_give_what_one_machine_gives(
    toys: Registry, small: Path, tmp_path: Path, hashes: Callable[[Path], dict[str, str]]
) -> None:
    """Every artifact has the same digest; every party's ledger and transcript are in order; the guarantee is the same."""
    registry = build_registry(names=())
    local = api.run(small, overrides=SETS, home=tmp_path / "local", registry=registry)
    deployment = importlib.import_module("osmotic_deployed").Deployed(tmp_path / "deployed", SITES)
    deployment.settle_in(small.with_name("fedcot.sites.yaml"), tmp_path / "far", plugins=[])
    try:
        deployment.up()
        far: dict[str, Any] = deployment.run(small, tmp_path / "far" / "fedcot", registry, overrides=SETS)
        deployment.again()  # as the next `osmotic serve`: other processes, the same stores and ledgers
        again: dict[str, Any] = deployment.run(small, tmp_path / "far" / "fedcot", registry, overrides=SETS)
    finally:
        deployment.down()
    one, two = hashes(tmp_path / "local"), hashes(tmp_path / "far" / "fedcot")
    assert one == two
    assert len(one) > 30
    assert far["table"] == local["table"] == again["table"]
    assert far["guarantee"]["line"] == local["guarantee"]["line"]
    assert sum(crossing["bytes"] for crossing in again["crossings"]) == 0
    found, expected = verify(tmp_path / "far" / "fedcot"), verify(tmp_path / "local")
    assert found["problems"] == []
    assert [party["charges"] for party in found["parties"]] == [party["charges"] for party in expected["parties"]]

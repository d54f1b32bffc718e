# SPDX-License-Identifier: Apache-2.0
"""The shipped secure-average with three offices, as its user runs it: what the server has, what is told, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.contract import Weights
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import Store
from osmotic.schemas.errors import OsmoticError

for name in ("cryptography", "dp_accounting"):
    pytest.importorskip(name, reason=f"secure-average needs {name}: pip install 'osmotic[dp,eval]'")

PIPELINES = Path(api.__file__).parents[1] / "pipelines"
ROUND = "tasks.rounds.tasks"
FEW = 3
SECURE = f"{ROUND}.summed.vary.arm.secure.inputs.total"
SHORT = [
    f"parties.clients={FEW}",
    "matrix.seed=[1]",
    "tasks.rounds.repeat.times=1",
    f"{ROUND}.local.config.steps=2",
    f"{ROUND}.local.config.batch=4",
    f"{ROUND}.averaged.inputs.models.quorum.at_least=2",
    f"{ROUND}.summed.inputs.total.quorum.at_least=2",
    f"{ROUND}.summed.inputs.total.secure_sum.at_least=2",
    f"{ROUND}.summed.inputs.total.secure_sum.rounds=1",
    f"{SECURE}.quorum.at_least=2",
    f"{SECURE}.secure_sum.at_least=2",
]


def sites(folder: Path, at_least: int = 2) -> Path:
    """The shipped policies of the hub and the first few offices, numbered as so many are."""
    import yaml

    document: dict[str, Any] = yaml.safe_load((PIPELINES / "secure-average.sites.yaml").read_text(encoding="utf-8"))
    document["parties"] = {"hub": {}} | {f"party-{i}": document["parties"][f"party-{i:02d}"] for i in range(FEW)}
    document["defaults"]["secure_sum"]["at_least"] = at_least
    for waiver in document["defaults"]["waivers"]:
        waiver["observers"] = list(document["parties"])
    file = folder / "few.sites.yaml"
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure-average")
    api.run(PIPELINES / "secure-average.yaml", sites=sites(folder), overrides=tuple(SHORT), home=folder / "home")
    return folder / "home"


@pytest.fixture(scope="module")
def done(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / "run.json").read_text(encoding="utf-8"))
    return found


def weights(home: Path, party: str, task: str, port: str) -> dict[str, np.ndarray]:
    folder = home / "parties" / party
    ledger = Ledger(folder)
    rows = ledger.query("SELECT t.outputs FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id=?", (task,))
    ledger.close()
    ref = json.loads(rows[0][0])[port]
    found = Store(folder / "store").get(ref["kind"], ref["digest"])
    assert isinstance(found, Weights)
    return {name: np.asarray(tensor, dtype=np.float64) for name, tensor in found.tensors.items()}


def identities(home: Path, party: str) -> list[str]:
    ledger = Ledger(home / "parties" / party)
    found = [str(row[0]) for row in ledger.query("SELECT id FROM instances", ())]
    ledger.close()
    return found


def of_arm(home: Path, party: str, task: str, arm: str) -> str:
    (found,) = [one for one in identities(home, party) if one.startswith(task) and f"arm={arm}" in one]
    return found


def test_each_arm_says_what_it_guarantees(done: dict[str, Any]) -> None:
    rows = {row["row"].partition(",")[0]: row for row in done["table"]["rows"]}
    assert list(rows) == ["alone", "plain", "secure", "private"]
    assert rows["plain"]["guarantee"] == rows["secure"]["guarantee"] == "unprotected"
    assert "a client" in rows["private"]["guarantee"] and "epsilon" in rows["private"]["guarantee"]
    for row in rows.values():
        assert 0 <= row["cells"]["accuracy_label"]["mean"] <= 1


def test_the_secure_sum_gives_what_plain_averaging_gives(home: Path) -> None:
    plain = weights(home, "hub", of_arm(home, "hub", "rounds.averaged", "plain"), "weights")
    secure = weights(home, "hub", of_arm(home, "hub", "rounds.summed", "secure"), "weights")
    private = weights(home, "hub", of_arm(home, "hub", "rounds.summed", "private"), "weights")
    assert max(float(np.abs(plain[name] - secure[name]).max()) for name in plain) < 1e-6
    noise = np.concatenate([(private[name] - secure[name]).ravel() for name in sorted(plain)])
    assert 0.2 < noise.std() < 2  # of the mean of three, about 1 / 3 of (multiplier, near 1) times (clip 1), and more


def test_the_server_holds_each_update_of_plain_and_none_of_the_sums(home: Path) -> None:
    """Of the first round: B begins at zero, so its update is what `plain` sent in the same home; that of A is not."""
    held = b"".join(path.read_bytes() for path in (home / "parties" / "hub").rglob("*") if path.is_file())
    for party in (f"party-{i}" for i in range(FEW)):
        sent = weights(home, party, of_arm(home, party, "rounds.local", "plain"), "weights")
        assert all(tensor.astype("<f4").tobytes() in held for tensor in sent.values())
        for arm in ("secure", "private"):
            kept = weights(home, party, of_arm(home, party, "rounds.update", arm), "update")
            changed = [tensor.astype("<f4").tobytes() for name, tensor in kept.items() if "lora_A" in name and tensor.any()]
            assert changed and not any(part in held for part in changed)


def test_who_was_in_the_sums_is_told(done: dict[str, Any]) -> None:
    assert len(done["sums"]) == 2
    for one in done["sums"]:
        assert (one["used"], one["lost"], one["of"]) == ([f"party-{i}" for i in range(FEW)], {}, FEW)
        assert one["trust"] == "honest-but-curious"


def test_a_site_that_asks_for_more_offices_refuses_the_plan(home: Path, tmp_path: Path) -> None:
    with pytest.raises(OsmoticError) as caught:
        api.run(PIPELINES / "secure-average.yaml", sites=sites(tmp_path, 3), overrides=tuple(SHORT), home=tmp_path / "home")
    assert "at_least" in str(caught.value)


def test_verify_finds_nothing(home: Path) -> None:
    assert verify(home)["problems"] == []

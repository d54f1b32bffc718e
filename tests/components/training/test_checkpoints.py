# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or not there; damaged ones passed over; good for another engine too."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from osmotic.components.training import checkpoints  # noqa: E402

DAMAGE = {
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit flipped": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"\xff" + path.read_bytes()[-8:]),
    "gone": lambda path: path.unlink(),
}


def three(folder: Path, key: str = "k") -> None:
    """Checkpoints of the steps 1 to 3; two stay."""
    for step in (1, 2, 3):
        checkpoints.save(folder, key, step, {"value/a": torch.full((40,), float(step))}, {"curve": [step]})


def test_the_two_newest_stay_and_come_back_whole(tmp_path: Path) -> None:
    """Values, state, step; no other file."""
    three(tmp_path)
    assert sorted(path.name[-2:] for path in tmp_path.iterdir()) == ["02", "03"]
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is not None and not notes
    assert (found.step, found.state, found.slot("value")["a"].tolist()) == (3, {"curve": [3]}, [3.0] * 40)
    assert not found.slot("best")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_one_is_passed_over_for_the_one_before(tmp_path: Path, damage: str, name: str) -> None:
    """And then for the beginning; each time it is said."""
    three(tmp_path)
    newest, older = sorted(tmp_path.iterdir(), reverse=True)
    DAMAGE[damage](newest / name)
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is not None and found.step == 2 and found.slot("value")["a"][0] == 2
    assert len(notes) == 1 and newest.name in notes[0]
    DAMAGE[damage](older / name)
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is None and len(notes) == 2


def test_a_digit_that_changed_in_the_state_is_noticed(tmp_path: Path) -> None:
    """It is JSON as before, and says something else."""
    three(tmp_path)
    path = max(tmp_path.iterdir()) / "state.json"
    path.write_text(path.read_text().replace('"curve":[3]', '"curve":[8]'))
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is not None and found.step == 2 and "own digest" in notes[0]


@pytest.mark.skipif(os.name != "posix", reason="the permissions of POSIX")
def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """It holds what private records made of the model."""
    three(tmp_path)
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}


@pytest.mark.parametrize("body", ["[]", "3", "null", '{"format": 1}', '{"format": 1, "key": "k", "sha256": 3}'])
def test_a_state_that_is_json_but_nothing_of_ours(tmp_path: Path, body: str) -> None:
    """Passed over like any other damage."""
    three(tmp_path)
    (max(tmp_path.iterdir()) / "state.json").write_text(body)
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is not None and found.step == 2 and len(notes) == 1


def test_another_run_is_not_touched_by_reading_and_cleared_by_writing(tmp_path: Path) -> None:
    """Its later steps must not stand in the way of ours."""
    checkpoints.save(tmp_path, "other", 900, {"value/a": torch.ones(1)}, {})
    assert checkpoints.load(tmp_path, "k") == (None, [])
    three(tmp_path)
    found, _ = checkpoints.load(tmp_path, "k")
    assert found is not None and found.step == 3
    assert checkpoints.load(tmp_path, "other")[0] is None


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path: Path) -> None:
    """A half-written folder is written over."""
    three(tmp_path)
    shutil.copytree(max(tmp_path.iterdir()), tmp_path / "writing")
    (tmp_path / "writing" / "state.json").unlink()
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is not None and found.step == 3 and not notes
    checkpoints.save(tmp_path, "k", 4, {"value/a": torch.ones(1)}, {})
    assert not (tmp_path / "writing").exists()


def full_disk(monkeypatch: Any, until: int) -> list[int]:
    """The first `until` writes fail, having left something behind."""
    import safetensors.torch

    calls, right = [], safetensors.torch.save_file

    def fails(tensors: Any, path: Path) -> None:
        calls.append(1)
        if len(calls) <= until:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        right(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    return calls


def test_a_full_disk_does_not_stop_training(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    """It is noted once, nothing half stays, and later attempts succeed."""
    expected, _ = tiny.train(tmp_path / "a")
    calls = full_disk(monkeypatch, until=2)
    result, _ = tiny.train(tmp_path / "b", seconds=0.0)
    assert len(calls) == 5 and result.curve == expected.curve
    assert len(result.notes) == 1 and "No space left" in result.notes[0]
    assert sorted(path.name[-2:] for path in (tmp_path / "b").iterdir()) == ["04", "05"]


def test_a_full_disk_leaves_the_checkpoint_before_in_place(tmp_path: Path, monkeypatch: Any) -> None:
    """The good ones go only once a new one is complete."""
    three(tmp_path)
    full_disk(monkeypatch, until=1)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(tmp_path, "k", 4, {"value/a": torch.ones(1)}, {})
    found, notes = checkpoints.load(tmp_path, "k")
    assert found is not None and found.step == 3 and not notes and not (tmp_path / "writing").exists()


def cut(tiny: SimpleNamespace, folder: Path, **more: Any) -> None:
    """A training whose checkpoint is that of step 3."""

    def report(done: int, total: int, note: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny.train(folder, report=report, seconds=0.0, **more)


def test_a_damaged_checkpoint_costs_steps_and_nothing_else(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """The run goes on from the one before, or begins anew: the same weights; the notes say so."""
    _, expected = tiny.train(tmp_path / "a")
    cut(tiny, tmp_path / "b")
    for count in (1, 2):
        for found in sorted((tmp_path / "b").iterdir(), reverse=True)[:count]:
            DAMAGE["cut short"](found / "tensors.safetensors")
        result, module = tiny.train(tmp_path / "b")
        assert tiny.digest(module) == tiny.digest(expected)
        assert len(result.notes) == count and len(result.curve) == 5


def test_another_key_begins_anew(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Nothing of another run's checkpoint is used."""
    _, expected = tiny.train(tmp_path / "a", learning_rate=1e-3)
    cut(tiny, tmp_path / "b")
    result, module = tiny.train(tmp_path / "b", learning_rate=1e-3, key="another run")
    assert tiny.digest(module) == tiny.digest(expected) and not result.notes


WAYS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"engine": "torch"}, {"engine": "deepspeed", "stage": 2}),
    ({"engine": "deepspeed", "stage": 3}, {"engine": "torch"}),
    ({"engine": "deepspeed", "stage": 1}, {"engine": "deepspeed", "stage": 3}),
]


@pytest.mark.parametrize(("before", "after"), WAYS)
def test_it_goes_on_with_another_engine_or_stage(
    tiny: SimpleNamespace, tmp_path: Path, before: dict[str, Any], after: dict[str, Any]
) -> None:
    """Equal within float error, and it is said that it is no more than that."""
    pytest.importorskip("deepspeed")
    whole, expected = tiny.train(tmp_path / "a", **after)
    cut(tiny, tmp_path / "b", **before)
    result, module = tiny.train(tmp_path / "b", **after)
    assert tiny.apart(result, whole) < 1e-5 and tiny.distance(module, expected) < 1e-5
    assert len(result.notes) == 1 and "within float error" in result.notes[0]


def test_no_pickle_lies_in_a_checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Two files, safetensors and JSON, of DeepSpeed's stages too."""
    pytest.importorskip("deepspeed")
    cut(tiny, tmp_path, engine="deepspeed", stage=2)
    for found in tmp_path.iterdir():
        assert sorted(path.name for path in found.iterdir()) == ["state.json", "tensors.safetensors"]
        json.loads((found / "state.json").read_bytes())

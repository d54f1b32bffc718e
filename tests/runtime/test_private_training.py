# SPDX-License-Identifier: Apache-2.0
"""Private training in the ledger: charged before the first gradient, once, over kills, races and retries; refused otherwise."""

import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.fake_context import FakeContext
from osmotic.runtime.results.verifying import _charge_problems, _set_problems
from osmotic.schemas.errors import BudgetError, ComponentError, ConfigError, RefusedError, StoreError

NEEDED = ("dp_accounting", "opacus", "torch", "cryptography")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED), reason="needs torch and the extra osmotic[dp]"
)
HERE = Path(__file__).parent


def folder_of(vault: Path) -> Path:
    """The folder of the one training of a vault."""
    (found,) = (p.parent for p in (vault / "trainings").glob("*/lock"))
    return found


def same(one: Any, other: Any) -> bool:
    return bool(one[0].to_files() == other[0].to_files() and one[1].to_files() == other[1].to_files())


# ---- charged, kept, found again ----


def test_it_is_charged_in_full_and_its_secret_is_on_the_disk_before_a_record_is_looked_at(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from osmotic.plugins.dp_sgd import trial

    found, seen = jobs.events(tmp_path), []

    def encode(row: Any) -> Any:
        secret = folder_of(tmp_path) / "secret"
        seen.append((jobs.charges(found), len(secret.read_bytes()), stat.S_IMODE(secret.stat().st_mode)))
        return jobs.encode(row)

    tried: list[int] = []
    trials: list[int] = []
    check = trial.check
    monkeypatch.setattr(trial, "check", lambda job: (trials.append(jobs.charges(found)), check(job))[1])

    def losses(module: Any, examples: Any) -> Any:
        tried.append(jobs.charges(found))
        return jobs.losses(module, examples)

    jobs.train(found, jobs.job(encode=encode, losses=losses))
    assert seen == [(1, 32, 0o600)] * 40
    first = tried.index(1)
    assert set(tried[:first]) == {0} and set(tried[first:]) == {1}  # dummies are tried before, records after
    assert trials == [0]  # once: it takes long with a large model
    (body,) = (json.loads(text) for (text,) in found.ledger.query("SELECT body FROM charges"))
    given = {"noise_multiplier": 1.5, "sampling_probability": 0.2, "steps": 6}
    assert (body["class"], body["unit"], body["void"]) == ("dp-sgd", "record", "")
    assert (body["event"]["parameters"], body["event"]["neighbours"]) == (given, "add-or-remove-one")
    assert "secret" not in body and len(body["payload"]) == 64


def test_the_secret_and_the_checkpoints_are_gone_when_it_is_given_back(jobs: Any, tmp_path: Path) -> None:
    found = jobs.events(tmp_path)
    weights, log = jobs.train(found)
    assert sorted(p.name for p in folder_of(tmp_path).iterdir()) == ["lock", "result.json"]
    assert weights.meta["base"] == "toy" and weights.meta["privacy"]["epsilon"] < 2
    assert {"batch", "loss"} <= set(log.data["steps"][0]) and len(log.data["steps"]) == 6
    assert not {"batch", "loss"} & set(weights.meta) and "steps" in weights.meta["privacy"]
    assert found.ledger.query("SELECT class, void, documents FROM release_sets") == [("dp-sgd", "", 1)]
    assert _charge_problems(found.ledger) == [] == _set_problems(found.ledger)


def test_the_same_training_is_found_again_and_another_is_charged(jobs: Any, tmp_path: Path) -> None:
    found = jobs.events(tmp_path)
    first = jobs.train(found)
    assert same(jobs.train(found), first) and same(jobs.train(found, rows=jobs.ROWS[::-1]), first) and jobs.charges(found) == 1
    again = jobs.events(tmp_path, epsilon=1.3)  # another process, and nothing is left of the cap for another
    assert same(jobs.train(again), first) and jobs.charges(again) == 1
    others = [
        lambda: jobs.train(found, jobs.job(key="other")),
        lambda: jobs.train(found, jobs.job(rate=0.2)),
        lambda: jobs.train(found, noise={**jobs.NOISE, "clip": 2.0}),
        lambda: jobs.train(found, rows=[{**jobs.ROWS[0], "size": "m"}, *jobs.ROWS[1:]]),
        lambda: jobs.train(found, stream="1"),
    ]
    for count, other in enumerate(others, start=2):
        assert not same(other(), first) and jobs.charges(found) == count
    assert same(jobs.train(found, jobs.job(at_once=3)), first)  # how many at a time changes nothing


def test_two_unseeded_vaults_draw_differently_and_seeded_ones_alike(jobs: Any, tmp_path: Path) -> None:
    one, two = (jobs.train(jobs.events(tmp_path / name)) for name in "ab")
    assert not np.array_equal(one[0].tensors["weight"], two[0].tensors["weight"])
    found = [jobs.events(tmp_path / name) for name in "cd"]
    assert same(*(jobs.train(each, seed=7) for each in found)) and not same(jobs.train(found[0], seed=8), one)
    assert found[1].ledger.query("SELECT void FROM events") == [("seeded",)]
    assert found[1].ledger.query("SELECT void FROM release_sets") == [("seeded",)]
    weights, log = jobs.train(found[1], seed=7)
    assert weights.meta["privacy"]["void"] == "seeded" == log.data["privacy"]["void"] and "void" not in one[0].meta["privacy"]


# ---- kills ----

KILLED = """
import functools, os, signal, sys
from pathlib import Path
sys.path.insert(0, {toys!r})
import osmotic_private_jobs as p
from osmotic.plugins.dp_sgd import loop
loop.train = functools.partial(loop.train, checkpoint_seconds=0.0)
def progress(done, total, note):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
job = p.job()
first = os.fork()
if first:
    assert os.waitstatus_to_exitcode(os.waitpid(first, 0)[1]) == -9
p.train(p.events(Path({folder!r}) / ("seeded" if first else "plain")), job, seed=3 if first else None, progress=progress)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vaults `plain` and `seeded` of processes that were killed (SIGKILL) after 4 of 6 steps."""
    folder = tmp_path_factory.mktemp("killed")
    code = KILLED.format(toys=str(HERE / "toy_plugin"), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, timeout=120)
    assert done.returncode == -9
    return folder


def test_a_killed_training_goes_on_with_its_secret_and_is_what_it_would_have_been(
    jobs: Any, tmp_path: Path, killed: Path
) -> None:
    """From its checkpoint and, in a copy of the vault without one, from the beginning: the same bytes, one charge."""
    for name in "ab":
        shutil.copytree(killed / "plain", tmp_path / name)
    secret = folder_of(tmp_path / "a") / "secret"
    assert secret.is_file() and list((secret.parent / "state").glob("*.safetensors"))
    before = secret.read_bytes()
    shutil.rmtree(folder_of(tmp_path / "b") / "state")
    gone_on, begun = jobs.events(tmp_path / "a"), jobs.events(tmp_path / "b")
    assert jobs.charges(gone_on) == 1
    steps: list[int] = []
    one = jobs.train(gone_on, progress=lambda done, total, note: steps.append(done))
    assert steps == [5, 6] and same(one, jobs.train(begun)) and jobs.charges(gone_on) == 1 == jobs.charges(begun)
    for vault in (tmp_path / "a", tmp_path / "b"):
        assert not any(before in p.read_bytes() for p in vault.rglob("*") if p.is_file())


def test_a_killed_seeded_training_equals_an_uninterrupted_one(jobs: Any, tmp_path: Path, killed: Path) -> None:
    shutil.copytree(killed / "seeded", tmp_path / "a")
    resumed, whole = jobs.events(tmp_path / "a"), jobs.events(tmp_path / "b")
    assert same(jobs.train(resumed, seed=3), jobs.train(whole, seed=3)) and jobs.charges(resumed) == 1


@pytest.mark.parametrize(
    ("where", "charged", "kept"), [("_try", 0, False), ("settle", 0, True), ("own_folder", 1, True), ("register", 1, True)]
)
def test_wherever_it_stops_the_next_run_ends_it_and_pays_once(
    jobs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, charged: int, kept: bool
) -> None:
    from osmotic.runtime.privacy import private_training as module

    found, plain = jobs.events(tmp_path), getattr(module, where)

    def stopped(*arguments: Any) -> Any:
        if where == "own_folder" and arguments[0].name != "state":
            return plain(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, where, stopped)
    with pytest.raises(KeyboardInterrupt):
        jobs.train(found)
    monkeypatch.undo()
    secret = folder_of(tmp_path) / "secret"
    assert jobs.charges(found) == charged and secret.is_file() == kept
    assert found.ledger.query("SELECT COUNT(*) FROM release_sets") == [(0,)]
    before = secret.read_bytes() if kept else b""
    spied: list[bytes] = []
    monkeypatch.setattr(module, "_secret", lambda *given: (spied.append(plain_secret(*given)), spied[-1])[1])
    jobs.train(found)
    assert jobs.charges(found) == 1 and not secret.exists()
    assert not kept or not spied or spied == [before]


def plain_secret(asked: Any, file: Path) -> bytes:
    return file.read_bytes()


def test_a_lost_or_changed_secret_is_never_drawn_anew(jobs: Any, tmp_path: Path, killed: Path) -> None:
    for name in "ab":
        shutil.copytree(killed / "plain", tmp_path / name)
    (folder_of(tmp_path / "a") / "secret").unlink()
    with pytest.raises(StoreError, match="neither its result nor the secret"):
        jobs.train(jobs.events(tmp_path / "a"))
    (folder_of(tmp_path / "b") / "secret").write_bytes(bytes(32))
    with pytest.raises(StoreError, match="not the one it was charged with"):
        jobs.train(jobs.events(tmp_path / "b"))
    for name in "ab":
        found = jobs.events(tmp_path / name)
        assert jobs.charges(found) == 1 and not list((tmp_path / name / "trainings" / "objects").glob("*"))


@pytest.mark.parametrize("what", ["folder", "objects", "bytes", "result"])
def test_a_missing_or_tampered_result_is_refused(jobs: Any, tmp_path: Path, what: str) -> None:
    found = jobs.events(tmp_path)
    jobs.train(found)
    other = jobs.train(found, jobs.job(key="other")) if what == "result" else None
    if what == "folder":
        shutil.rmtree(tmp_path / "trainings")
    elif what == "objects":
        shutil.rmtree(tmp_path / "trainings" / "objects")
    elif what == "bytes":
        (file,) = (tmp_path / "trainings" / "objects").glob("*/*/weights.safetensors")
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    else:
        one, two = (p.parent / "result.json" for p in (tmp_path / "trainings").glob("*/lock"))
        first, second = one.read_bytes(), two.read_bytes()
        one.write_bytes(second)
        two.write_bytes(first)
    with pytest.raises(StoreError, match=r"secret to go on|not where the ledger says|not the one that was released"):
        jobs.train(found)
    assert jobs.charges(found) == (2 if other else 1)


def test_two_at_once_make_one_training(jobs: Any, tmp_path: Path) -> None:
    made: list[Any] = []
    notes: list[str] = []
    waits = threading.Event()

    def slow(done: int, total: int, note: str) -> None:
        if done == 1:
            other.start()
            assert waits.wait(30)

    def noted(done: int, total: int, note: str) -> None:
        notes.append(note)
        waits.set()

    def second() -> None:
        made.append(jobs.train(jobs.events(tmp_path), progress=noted))

    other = threading.Thread(target=second)
    found = jobs.events(tmp_path)
    first = jobs.train(found, progress=slow)
    other.join(60)
    assert same(first, made[0]) and jobs.charges(found) == 1 and "another run" in notes[0] and len(notes) == 1


# ---- caps, wrong noise, wrong jobs ----


def test_trainings_add_up_and_nothing_is_drawn_over_the_cap(jobs: Any, tmp_path: Path) -> None:
    found = jobs.events(tmp_path, epsilon=1.5)
    jobs.train(found, task="run: one@north")
    with pytest.raises(BudgetError, match=r"epsilon would go from 1.19.* > 1.5 a record") as error:
        jobs.train(found, jobs.job(key="other"), task="run: two@north")
    assert "DP-SGD (Poisson sampling 0.2, 6 steps, noise 1.5) by run: one@north" in str(error.value)
    assert jobs.charges(found) == 1 and len(list((tmp_path / "trainings").glob("*/secret"))) == 0
    with pytest.raises(BudgetError, match="a cap with a delta"):
        jobs.train(jobs.events(tmp_path / "pure", delta=0.0))
    with pytest.raises(RefusedError, match=r"no budget of \(epsilon, delta\)"):
        jobs.train(jobs.events(tmp_path / "none", epsilon=None))


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        ({"batch": 41, "steps": 1, "epsilon": 1.0, "delta": 1e-3}, "more than the 40 records"),
        ({"batch": 8, "steps": 1, "epsilon": 1.0, "delta": 0.025}, "1 / 40 records = 0.025"),
        ({"batch": 8, "steps": 1}, "'epsilon' or 'noise_multiplier'"),
        ({"batch": 8, "steps": 0, "epsilon": 1.0}, "steps"),
    ],
)
def test_wrong_noise_is_refused_before_anything(jobs: Any, tmp_path: Path, noise: Any, message: str) -> None:
    found = jobs.events(tmp_path)
    with pytest.raises(ConfigError, match=message):
        jobs.train(found, noise=noise)
    assert jobs.charges(found) == 0 and not list(tmp_path.glob("trainings/*/secret"))


def test_a_model_that_mixes_records_is_refused_before_it_is_charged(jobs: Any, tmp_path: Path) -> None:
    found = jobs.events(tmp_path)

    def mixed(module: Any, examples: Any) -> Any:
        values = jobs.losses(module, examples)
        return values - 0.5 * values.mean()

    with pytest.raises(ConfigError, match="in company"):
        jobs.train(found, jobs.job(losses=mixed))
    assert jobs.charges(found) == 0


def test_a_record_without_an_example_adds_nothing_and_one_that_fails_can_be_mended(jobs: Any, tmp_path: Path) -> None:
    """Charged once: with the same key, the mended job goes on with the same secret."""
    found = jobs.events(tmp_path)

    def fails(row: Any) -> Any:
        if row["id"] == "r07":
            raise ComponentError("cannot be encoded")
        return jobs.encode(row)

    with pytest.raises(ComponentError, match="cannot be encoded"):
        jobs.train(found, jobs.job(encode=fails))
    assert jobs.charges(found) == 1
    _, log = jobs.train(found, jobs.job(encode=lambda row: None if row["id"] == "r07" else jobs.encode(row)))
    assert jobs.charges(found) == 1 and log.data["records"] == 40
    nobody = jobs.train(found, jobs.job(key="nobody", encode=lambda row: None))[1]
    assert {step["loss"] for step in nobody.data["steps"]} == {None}


def test_the_fake_context_trains_with_the_engine(jobs: Any) -> None:
    from osmotic.plugins.contract import Records

    def made() -> Any:
        return FakeContext(seed=3).private_training(Records(jobs.ROWS), jobs.job(), jobs.NOISE)

    assert same(made(), made()) and made()[0].meta["privacy"]["noise_multiplier"] == 1.5

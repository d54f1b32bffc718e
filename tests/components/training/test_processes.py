# SPDX-License-Identifier: Apache-2.0
"""Training by two processes: the same losses as by one, exact resume, and what happens when one of them goes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from osmotic.components.training import checkpoints, launch, loop, losses, worker  # noqa: E402
from osmotic.schemas.artifacts import canonical  # noqa: E402
from osmotic.schemas.errors import ComponentError, ConfigError  # noqa: E402


@pytest.fixture
def started(monkeypatch: Any) -> list[Any]:
    """The worker processes as they are started."""
    found: list[Any] = []
    right = subprocess.Popen

    def popen(*arguments: Any, **more: Any) -> Any:
        found.append(right(*arguments, **more))
        return found[-1]

    monkeypatch.setattr(launch.subprocess, "Popen", popen)
    return found


@pytest.mark.whole
def test_a_rank_is_killed_and_the_run_goes_on(tiny: SimpleNamespace, tmp_path: Path, started: list[Any]) -> None:
    """The other rank is ended with it; called again, two processes end with one's losses and weights."""
    more: dict[str, Any] = {"steps": 40, "held_out": (15, 9)}  # three files of steps
    rows = tiny.Feed(seed=9).take()
    alone, expected = tiny.train(tmp_path / "one", tiny.llama(lora=True), rows=rows, **more)

    def kill(done: int, total: int, note: str) -> None:
        if done == 20:
            started[1].send_signal(signal.SIGKILL)
            started[1].wait()

    more |= {"processes": 2}
    with pytest.raises(ComponentError, match="process 1 of 2 was ended by signal 9"):
        tiny.train(tmp_path / "cut", tiny.llama(lora=True), rows=rows, report=kill, seconds=0.0, **more)
    assert all(process.poll() is not None for process in started)
    kept, _ = checkpoints.load(tmp_path / "cut", "a run")
    assert kept is not None and 15 < kept.step < 25
    seen: list[int] = []
    tell = seen.append
    result, module = tiny.train(tmp_path / "cut", tiny.llama(lora=True), rows=rows, report=lambda *said: tell(said[0]), **more)
    assert tiny.apart(result, alone) < 1e-5 and tiny.distance(module, expected) < 1e-5
    assert [p["step"] for p in result.held_out] == [15, 30, 40] and result.best == alone.best
    assert seen == list(range(kept.step + 1, 41))
    assert all(path.name.startswith(checkpoints._prefix("a run")) for path in (tmp_path / "cut").iterdir())


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_told_as_by_one_process(tiny: SimpleNamespace, tmp_path: Path, started: list[Any]) -> None:
    """The error is the loop's own, not that of a connection; the module is as it was."""
    pytest.importorskip("deepspeed")
    module = tiny.llama()
    with torch.no_grad():
        module.model.norm.weight[0] = torch.nan
    before = tiny.digest(module)
    with pytest.raises(ComponentError, match=r"the loss is nan at step 1 \(batch 1\)"):
        tiny.train(tmp_path, module, processes=2, kind="padded", engine="deepspeed", stage=3)
    assert len(started) == 2 and all(process.poll() is not None for process in started)
    assert not list(tmp_path.iterdir()) and tiny.digest(module) == before


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="stops a process by a signal")
@pytest.mark.whole
def test_a_rank_that_hangs_is_not_waited_for_for_ever(
    tiny: SimpleNamespace, tmp_path: Path, started: list[Any], monkeypatch: Any
) -> None:
    """Told which one it was; all are ended."""
    monkeypatch.setattr(launch, "PATIENCE", 12.0)

    def stop(done: int, total: int, note: str) -> None:
        if done == 1:
            started[1].send_signal(signal.SIGSTOP)

    with pytest.raises(ComponentError, match="process 1 of 2 does not answer"):
        tiny.train(tmp_path, processes=2, steps=1000000, report=stop)
    assert all(process.poll() is not None for process in started) and not list(tmp_path.iterdir())


class Fake:
    """A process that has left with a code, or (None) has not."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        """As that of subprocess."""
        return self.code


ECHO = "RuntimeError: [gloo/transport/tcp/pair.cc:538] Connection closed by peer"
CAUSES: list[tuple[list[tuple[int | None, str]], str]] = [
    ([(1, ECHO), (-9, "")], "process 1 of 2 was ended by signal 9"),
    ([(1, "MemoryError: no room"), (1, ECHO)], "process 0 of 2 failed"),
    ([(1, ECHO), (1, "MemoryError: no room")], "process 1 of 2 failed"),
    ([(3, ""), (0, "")], "it left with 3 and said nothing"),
    ([(1, "RuntimeError: Timed out waiting 12000ms for recv"), (None, "")], "process 1 of 2 does not answer"),
]


@pytest.mark.parametrize(("told", "expected"), CAUSES)
def test_the_first_cause_is_told(tmp_path: Path, monkeypatch: Any, told: list[tuple[int | None, str]], expected: str) -> None:
    """Not that somebody else has gone."""
    monkeypatch.setattr(launch, "GRACE", 0.0)
    for i, (_, said) in enumerate(told):
        (tmp_path / f"rank-{i}.log").write_text(said)
    assert expected in str(launch._cause([Fake(code) for code, _ in told], tmp_path))  # type: ignore[misc]


def test_what_other_processes_are_given(tmp_path: Path, monkeypatch: Any) -> None:
    """Nothing of the environment that looks like a secret; a folder that only its owner can read; old ones are removed."""
    for name in ("OPENAI_API_KEY", "HF_TOKEN", "db_password", "AWS_SECRET_ACCESS_KEY", "KEYBOARD", "LANG"):
        monkeypatch.setenv(name, "x")
    given: list[dict[str, str]] = []

    class Started(Fake):
        stdin = stdout = None

        def wait(self) -> None:
            """It has gone."""

    monkeypatch.setattr(launch.subprocess, "Popen", lambda *_, env, **__: given.append(env) or Started(0))
    (tmp_path / "job.of-a-killed-run").mkdir()
    with launch._job(tmp_path) as job, launch._ranks(job, 2):
        assert list(tmp_path.iterdir()) == [job]
        assert os.name != "posix" or job.stat().st_mode & 0o077 == 0
    assert not list(tmp_path.iterdir())
    kept = {"OPENAI_API_KEY", "HF_TOKEN", "db_password", "AWS_SECRET_ACCESS_KEY", "KEYBOARD", "LANG"} & set(given[0])
    assert kept == {"KEYBOARD", "LANG"} and given[0]["TOKENIZERS_PARALLELISM"] == "false"


def test_a_full_disk_is_told(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any, started: list[Any]) -> None:
    """Before anything is started, and nothing half stays."""
    import safetensors.torch

    def fails(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(ComponentError, match=r"(?s)cannot be written.*No space left"):
        tiny.train(tmp_path, processes=2)
    assert not started and not list(tmp_path.iterdir())


ORPHANS = """
import os, sys, time
from pathlib import Path
from osmotic.components.training import launch
with launch._job(Path(sys.argv[1])) as job:
    os.mkfifo(job / "job.json")  # nobody will write it: the workers wait
    with launch._ranks(job, 2) as ranks:
        print(*(rank.pid for rank in ranks), flush=True)
        time.sleep(600)
"""


def _alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc which processes run")
def test_ranks_do_not_outlive_the_process_that_started_them(tmp_path: Path) -> None:
    """Killed with SIGKILL, it cannot end them, nor take the folder of private tokens away: they do so themselves."""
    script = [sys.executable, "-c", ORPHANS, str(tmp_path)]
    parent = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    ranks = [int(word) for word in parent.stdout.readline().split()] if parent.stdout else []
    try:
        time.sleep(1.0)
        assert len(ranks) == 2 and all(_alive(rank) for rank in ranks)
        parent.kill()
        until = time.monotonic() + 20
        while (any(_alive(rank) for rank in ranks) or list(tmp_path.iterdir())) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(_alive(rank) for rank in ranks) and not list(tmp_path.iterdir())
    finally:
        parent.kill()
        parent.wait()
        if parent.stdout:
            parent.stdout.close()
        for rank in filter(_alive, ranks):
            os.kill(rank, signal.SIGKILL)


def test_a_model_that_is_not_of_transformers(tiny: SimpleNamespace, tmp_path: Path, started: list[Any]) -> None:
    """Refused before anything is started."""
    from transformers import LlamaForCausalLM

    class Mine(LlamaForCausalLM):
        """A class that other processes could not find."""

    module = tiny.llama()
    module.__class__ = Mine
    with pytest.raises(ConfigError, match="several processes"):
        tiny.train(tmp_path, module, processes=2)
    assert not started


def _seq2seq() -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=96, decoder_start_token_id=0, **sizes))


def _with_buffers() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64))


@pytest.mark.parametrize("which", ["llama", "adapters", "packed", "seq2seq", "buffers"])
def test_a_worker_rebuilds_the_same_module(tiny: SimpleNamespace, tmp_path: Path, which: str) -> None:
    """Names, values, what is trained, tied weights, attention, logits."""
    made = {"llama": tiny.llama, "packed": tiny.llama, "seq2seq": _seq2seq, "buffers": _with_buffers}
    module = tiny.llama(lora=True) if which == "adapters" else made[which]()
    kind = {"packed": "packed", "seq2seq": "seq2seq"}.get(which, "padded")
    losses.kind_of(module, "packed" if which == "packed" else "padded")
    next(module.parameters()).requires_grad_(False)
    told: dict[str, Any] = {}
    launch._write_module(module, tmp_path, told)
    again = worker.rebuild(tmp_path, json.loads((tmp_path / "job.json").read_bytes()), kind)
    assert tiny.digest(again) == tiny.digest(module)
    trained = [[name for name, p in each.named_parameters() if p.requires_grad] for each in (module, again)]
    assert trained[0] == trained[1]
    micro = losses.share(tiny.Feed().take(), {"label": 1.0, "rationale": 0.5}, 1)[0]
    values = [float(losses.loss_of(each.eval(), micro, kind)[0].detach()) for each in (module, again)]
    assert values[0] == values[1]


RANK = """
import os, sys
from pathlib import Path
from osmotic.components.training import worker
from torch import distributed
os.environ |= worker.loopback()
right, group = distributed.init_process_group, []
distributed.init_process_group = lambda *a, **k: None if group else group.append(right(*a, **k))
distributed.destroy_process_group = lambda: None  # one group for all jobs
for job in sys.argv[2:]:
    worker.work(Path(job), int(sys.argv[1]), sys.stdout)
sys.stderr.flush()
os._exit(0)
"""
CASES = [("torch", 0), *(("deepspeed", stage) for stage in range(4))]


def _prepare(tiny: SimpleNamespace, job: Path, folder: Path, wanted: Any, start: int) -> None:
    """A job folder as the launching process would make it, with all steps in one file."""
    source = loop.Whole(tiny.Feed())
    kept, _ = checkpoints.load(folder, "k")
    if start and kept is not None:
        source.restore(kept.state["feed"])
    job.mkdir()
    state, steps = source.state(), [launch._plain(source.take()) for _ in range(wanted.steps - start)]
    launch.put(job / launch.chunk_name(start), canonical({"state": state, "steps": steps}))
    told = {"key": "k", "start": start, "folder": str(folder), "checkpoint_seconds": 0.0, "held_out": None}
    module = tiny.llama()
    losses.kind_of(module, "packed")
    launch._write_module(module, job, told | {"settings": wanted.to_json(), "patience": 300.0})


def _run(jobs: list[Path]) -> list[tuple[Any, dict[str, Any]]]:
    """Two processes do one job after another: (result, final tensors) of each."""
    from safetensors.torch import load_file

    scripts = [[sys.executable, "-W", "ignore", "-c", RANK, str(rank), *map(str, jobs)] for rank in (0, 1)]
    ranks = [subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for script in scripts]
    told = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), told
    bodies = [json.loads((job / "result.json").read_bytes()) for job in jobs]
    return [(loop.Result(**body), load_file(job / "final.safetensors")) for body, job in zip(bodies, jobs, strict=True)]


@pytest.mark.slow
def test_every_engine_by_two_processes(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """One process's losses within 1e-5, one engine after another in the same two processes; resumed: the same bits."""
    pytest.importorskip("deepspeed")
    alone, first = tiny.train(tmp_path / "one")
    settings = [tiny.settings(engine=engine, stage=stage, processes=2) for engine, stage in CASES]
    jobs, folders = [tmp_path / f"job-{i}" for i in range(5)], [tmp_path / f"kept-{i}" for i in range(5)]
    for job, folder, wanted in zip(jobs, folders, settings, strict=True):
        _prepare(tiny, job, folder, wanted, 0)
    whole = _run(jobs)
    for result, tensors in whole:
        assert tiny.apart(result, alone) < 1e-5
        assert max(float((p.detach() - tensors[n]).abs().max()) for n, p in first.named_parameters()) < 1e-5
    for job, folder, wanted in zip(jobs, folders, settings, strict=True):
        shutil.rmtree(max(folder.iterdir()))  # that of step 5; that of step 4 stays
        shutil.rmtree(job)
        shutil.copytree(folder, tmp_path / f"fewer-{folder.name}")
        _prepare(tiny, job, folder, wanted, 4)
    for (result, tensors), (again, bits) in zip(whole, _run(jobs), strict=True):
        assert again == result and all(torch.equal(tensors[name], bits[name]) for name in tensors)
    kept = tmp_path / "fewer-kept-4"  # of stage 3: goes on in one process, in plain torch
    fewer, other = tiny.train(kept, key="k")
    assert tiny.apart(fewer, alone) < 1e-5 and tiny.distance(other, first) < 1e-5 and "2 process(es)" in fewer.notes[0]

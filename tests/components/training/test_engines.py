# SPDX-License-Identifier: Apache-2.0
"""torch and DeepSpeed's stages give the same training; what they leave behind."""

import contextlib
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

numpy = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from osmotic.components.training.engines import device_of  # noqa: E402
from osmotic.schemas.errors import ComponentError, ConfigError  # noqa: E402

STAGES = [(stage, "none", stage % 2 == 1) for stage in range(4)] + [(stage, "cpu", stage == 2) for stage in (1, 2, 3)]
STAGES += [(2, "none", True), (3, "none", False)]


@pytest.mark.parametrize(("stage", "offload", "lora"), STAGES)
def test_every_stage_gives_what_torch_gives(
    tiny: SimpleNamespace, tmp_path: Path, stage: int, offload: str, lora: bool
) -> None:
    """Losses, norms and weights of five steps, within 1e-5."""
    pytest.importorskip("deepspeed")
    expected, first = tiny.train(tmp_path / "a", tiny.llama(lora))
    result, module = tiny.train(tmp_path / "b", tiny.llama(lora), engine="deepspeed", stage=stage, offload=offload)
    assert tiny.apart(result, expected) < 1e-5
    assert tiny.distance(module, first) < 1e-5
    norms = zip(result.curve, expected.curve, strict=True)
    assert max(abs(a["norm"] - b["norm"]) for a, b in norms) < 1e-4


def test_deepspeed_leaves_nothing_behind(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    """No process group, no variables, no hooks on the module, nothing compiled."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "compiled"))
    before, module = dict(os.environ), tiny.llama()
    tiny.train(tmp_path / "a", module, engine="deepspeed", stage=3)
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()
    assert not (tmp_path / "compiled").exists()
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in module.modules())
    assert not any(hasattr(p, "ds_id") for p in module.parameters())
    expected, _ = tiny.train(tmp_path / "b", tiny.llama())
    again, _ = tiny.train(tmp_path / "c", tiny.llama())
    assert again == expected


def _globals() -> dict[str, Any]:
    """What of torch and Python a training could change for everybody else."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "linear": torch.nn.functional.linear,
        "init": torch.nn.Module.__init__,
        "apply": torch.nn.Module.apply,
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": numpy.random.get_state()[1].tolist(),
        "excepthook": sys.excepthook,
        "folder": Path.cwd(),
        "warnings": list(warnings.filters),
        "signals": {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)},
    }


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(("engine", "stage"), [("torch", 0), ("deepspeed", 0), ("deepspeed", 2), ("deepspeed", 3)])
def test_nothing_is_changed_for_everybody_else(
    tiny: SimpleNamespace, tmp_path: Path, engine: str, stage: int, fails: bool
) -> None:
    """However the run ends; and the one after it is as if there had been none."""
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")

    def report(done: int, total: int, note: str) -> None:
        if fails and done == 2:
            raise ZeroDivisionError

    expected, _ = tiny.train(tmp_path / "a")
    variables, before = dict(os.environ), _globals()
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        tiny.train(tmp_path / "b", tiny.llama(lora=True, dropout=0.2), report=report, engine=engine, stage=stage)
    assert _globals() == before and dict(os.environ) == variables and not torch.distributed.is_initialized()
    assert tiny.train(tmp_path / "c")[0] == expected


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks /proc for sockets")
def test_a_process_alone_listens_on_the_loopback_interface_only(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any
) -> None:
    """Whatever address the machine's name stands for; the variable that says so is put back."""
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    tiny.train(tmp_path, engine="deepspeed", stage=1, steps=1)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "no-such-interface"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_means_the_same_to_every_engine(tiny: SimpleNamespace, tmp_path: Path, stage: int) -> None:
    """Autocast inside DeepSpeed's own wrapping: torch's losses, and not those of float32."""
    pytest.importorskip("deepspeed")
    full, half, zero = (
        tiny.train(tmp_path / str(i), steps=3, **more)[0]
        for i, more in enumerate(({}, {"dtype": "bfloat16"}, {"dtype": "bfloat16", "engine": "deepspeed", "stage": stage}))
    )
    assert tiny.apart(zero, half) < 1e-5 < 5e-5 < tiny.apart(zero, full)


def test_without_deepspeed_it_is_said_how_to_get_it(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    """No stack trace of an import."""
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match="pip install"):
        tiny.train(tmp_path, engine="deepspeed")
    assert not torch.distributed.is_initialized()


def test_a_model_with_nothing_to_train(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Said before anything is run."""
    with pytest.raises(ComponentError, match="no trainable parameters"):
        tiny.train(tmp_path, tiny.llama().requires_grad_(False))


def test_fewer_gpus_than_processes(tiny: SimpleNamespace, monkeypatch: Any) -> None:
    """Two processes never share one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of(tiny.settings(), 0) == "cuda:0"
    with pytest.raises(ConfigError, match="fewer GPUs"):
        device_of(tiny.settings(processes=2), 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(tiny.settings(processes=2), 1) == "cpu"

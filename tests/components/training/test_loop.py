# SPDX-License-Identifier: Apache-2.0
"""The loop of steps against a hand-written one; early stopping, faults, exact resume."""

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from osmotic.components.training import checkpoints, losses
from osmotic.components.training.engines import trained
from osmotic.components.training.loop import rate_of
from osmotic.schemas.errors import ComponentError

ENGINES = [("torch", 0), ("deepspeed", 0), ("deepspeed", 1), ("deepspeed", 2), ("deepspeed", 3)]


def by_hand(tiny: SimpleNamespace, module: Any, feed: Any, wanted: Any) -> list[float]:
    """Row by row, nothing shared with the code under test: losses of the steps; the module is trained."""
    named = dict(module.named_parameters())
    origin = {n: p.detach().clone() for n, p in named.items()}
    decays = {"params": [p for p in named.values() if p.ndim > 1], "weight_decay": wanted.weight_decay}
    others = {"params": [p for p in named.values() if p.ndim <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decays, others])
    found = []
    for step in range(wanted.steps):
        total = torch.zeros(())
        for task, rows in feed.take().examples.items():
            summed, tokens = torch.zeros(()), 0
            for head, tail in rows:
                logits = module(input_ids=torch.tensor([head + tail])).logits[0, len(head) - 1 : -1]
                summed = summed + torch.nn.functional.cross_entropy(logits, torch.tensor(tail), reduction="sum")
                tokens += len(tail)
            total = total + wanted.weights[task] * summed / tokens
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), wanted.clip)
        for n, p in named.items():
            p.grad += wanted.proximal * (p.detach() - origin[n])
        for group in optimizer.param_groups:
            group["lr"] = rate_of(wanted, step)
        optimizer.step()
        found.append(float(total.detach()))
    return found


def test_the_loop_is_the_loop_written_by_hand(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Losses and weights within float error: clipping, decay of matrices, warm-up, cosine, proximal, two forwards a step."""
    start, other = tiny.llama(), tiny.llama()
    expected = by_hand(tiny, other, tiny.Feed(), tiny.settings())
    result, module = tiny.train(tmp_path, start)
    assert [p["loss"] for p in result.curve] == pytest.approx(expected, abs=5e-6)
    assert tiny.distance(module, other) < 5e-6
    assert [p["step"] for p in result.curve] == [1, 2, 3, 4, 5]
    for point in result.curve:
        assert point["label"] + 0.5 * point["rationale"] == pytest.approx(point["loss"], abs=1e-5)
    assert [p["rate"] for p in result.curve] == [rate_of(tiny.settings(), i) for i in range(5)]


@pytest.mark.parametrize("more", [{"accumulate": 1}, {"accumulate": 3}, {"accumulate": 20}, {"kind": "padded"}])
def test_how_the_rows_are_shared_out_changes_nothing(tiny: SimpleNamespace, tmp_path: Path, more: dict[str, Any]) -> None:
    """More forwards than rows, one forward, padded ones."""
    expected, first = tiny.train(tmp_path / "a")
    result, module = tiny.train(tmp_path / "b", **more)
    assert tiny.apart(result, expected) < 1e-5
    assert tiny.distance(module, first) < 1e-5


def test_the_caller_finds_everything_else_as_it_was(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """torch's generator, the module's mode and frozen weights, the feed behind the last step."""
    module, feed = tiny.llama(lora=True).eval(), tiny.Feed()
    frozen = {n: p.detach().clone() for n, p in module.named_parameters() if not p.requires_grad}
    before = torch.get_rng_state()
    tiny.train(tmp_path, module, feed)
    assert torch.equal(before, torch.get_rng_state())
    assert not module.training and feed.taken == 5
    assert all(torch.equal(p, frozen[n]) for n, p in module.named_parameters() if n in frozen)
    assert set(trained(module)) == {n for n, _ in module.named_parameters()} - set(frozen)


def test_bfloat16_is_autocast_over_float32_parameters(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Near the float32 run, not equal to it; the module's forward is its own again."""
    full, _ = tiny.train(tmp_path / "a")
    half, module = tiny.train(tmp_path / "b", dtype="bfloat16")
    assert 0 < tiny.apart(full, half) < 0.05
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert "forward" not in vars(module)


def test_a_loss_that_is_no_number_stops_before_the_step(tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any) -> None:
    """The step is named; the weights are those before it; the checkpoint of the step before is still good."""
    calls, right = [], losses.loss_of

    def poisoned(module: Any, micro: Any, kind: Any) -> Any:
        calls.append(1)
        tensor, shares = right(module, micro, kind)
        return (tensor * math.nan if len(calls) == 6 else tensor), shares

    monkeypatch.setattr(losses, "loss_of", poisoned)
    _, two = tiny.train(tmp_path / "two", steps=2, schedule="constant")
    calls.clear()
    module = tiny.llama()
    with pytest.raises(ComponentError, match=r"the loss is nan at step 3 \(batch 3\)"):
        tiny.train(tmp_path, module, seconds=0.0, schedule="constant")
    assert tiny.digest(module) == tiny.digest(two)
    kept, notes = checkpoints.load(tmp_path, "a run")
    assert kept is not None and kept.step == 2 and not notes
    assert all(torch.equal(kept.slot("value")[n], p) for n, p in trained(module).items())


class Blows(torch.autograd.Function):
    """The same value, an infinite gradient."""

    @staticmethod
    def forward(context: Any, value: Any) -> Any:
        """As it is."""
        return value.clone()

    @staticmethod
    def backward(context: Any, gradient: Any) -> Any:
        """Infinite."""
        return gradient * math.inf


@pytest.mark.parametrize(("engine", "stage"), ENGINES)
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_gradient_that_is_not_finite_stops_too(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: Any, engine: str, stage: int, clip: float
) -> None:
    """Whatever the engine, with a finite loss: nothing is stepped."""
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")
    calls, right, seen = [], losses.loss_of, []

    def poisoned(module: Any, micro: Any, kind: Any) -> Any:
        calls.append(1)
        tensor, shares = right(module, micro, kind)
        return (Blows.apply(tensor) if len(calls) == 6 else tensor), shares

    monkeypatch.setattr(losses, "loss_of", poisoned)
    with pytest.raises(ComponentError, match=r"gradient is (inf|nan) at step 3 \(batch 3\)"):
        tiny.train(tmp_path, report=lambda *said: seen.append(said[0]), engine=engine, stage=stage, clip=clip)
    assert seen == [1, 2]


def test_training_stops_early_and_keeps_the_best_weights(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """On rows that have nothing in common the held-out loss rises soon; what is kept has the least of them."""
    same = tiny.Feed().take()
    feed = SimpleNamespace(take=lambda: same, state=lambda: None, restore=lambda state: None)
    rows = tiny.Feed(seed=9).take()
    more: dict[str, Any] = {"steps": 60, "proximal": 0.0, "schedule": "constant", "learning_rate": 1e-2}
    result, module = tiny.train(tmp_path / "a", feed=feed, rows=rows, held_out=(2, 3), **more)
    found = {p["step"]: p["loss"] for p in result.held_out}
    assert result.best == min(found, key=lambda step: (found[step], step))
    assert result.stopped == result.best + 6 == max(found) == len(result.curve) < 60
    again, best = tiny.train(tmp_path / "b", feed=feed, rows=rows, **{**more, "steps": result.best})
    assert tiny.digest(module) == tiny.digest(best)
    assert again.best is None and again.stopped is None and not again.held_out  # not asked for: not looked at


def test_the_held_out_part_is_seen_without_dropout_and_without_gradients(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Its loss is that of the module as it then is, whatever the sizes of the forwards."""
    rows = tiny.Feed(seed=9, rows=(23, 31)).take()
    result, module = tiny.train(tmp_path, tiny.llama(lora=True, dropout=0.5), rows=rows, held_out=(5, 1))
    micro = losses.share(rows, tiny.settings().weights, 1)[0]
    with torch.no_grad():
        expected = float(losses.loss_of(module.eval(), micro, "packed")[0])
    assert result.held_out[-1]["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("engine", "stage"), ENGINES)
def test_a_run_that_was_cut_off_goes_on_exactly(tiny: SimpleNamespace, tmp_path: Path, engine: str, stage: int) -> None:
    """Twice cut off, with dropout, a held-out part, and a feed in the middle of its stream: the same bits."""
    if engine == "deepspeed":
        pytest.importorskip("deepspeed")

    def run(folder: Path, cut: int = 0, seconds: float = 1e9) -> Any:
        def report(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KeyboardInterrupt

        more: dict[str, Any] = {"steps": 9, "engine": engine, "stage": stage, "held_out": (2, 9)}
        rows = tiny.Feed(seed=9).take()
        return tiny.train(folder, tiny.llama(lora=True, dropout=0.3), report=report, rows=rows, seconds=seconds, **more)

    whole, expected = run(tmp_path / "whole")
    for cut in (4, 7):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", cut, seconds=0.0)
    kept, _ = checkpoints.load(tmp_path / "cut", "a run")
    assert kept is not None and kept.step == 6
    result, module = run(tmp_path / "cut")
    assert result == whole
    assert tiny.digest(module) == tiny.digest(expected)


def test_the_seed_is_what_dropout_comes_from(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """Equal seeds, equal losses; another seed, others."""
    runs = [tiny.train(tmp_path / str(i), tiny.llama(lora=True, dropout=0.3), seed=seed)[0] for i, seed in enumerate((1, 1, 2))]
    assert runs[0] == runs[1]
    assert tiny.apart(runs[0], runs[2]) > 1e-4


def test_a_step_that_leaves_a_parameter_out_still_decays_it(tiny: SimpleNamespace, tmp_path: Path) -> None:
    """A parameter without a gradient takes part in every step all the same (zero gradient, decay)."""
    module = tiny.llama()
    module.spare = torch.nn.Linear(3, 3, bias=False)
    before = copy.deepcopy(module.spare.weight.detach())
    tiny.train(tmp_path, module, proximal=0.0, schedule="constant", warmup=0, weight_decay=0.1)
    assert torch.allclose(module.spare.weight, before * (1 - 5e-3 * 0.1) ** 5, rtol=1e-6)

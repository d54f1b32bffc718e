# SPDX-License-Identifier: Apache-2.0
"""Per-example gradients: equal to one example at a time for every accepted kind; what is refused, by which name; clipping."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from osmotic.plugins.dp_sgd import trial
from osmotic.plugins.dp_sgd.clipping import Gradients, add_clipped, norms, together
from osmotic.plugins.dp_sgd.noise import MARGIN
from osmotic.schemas.errors import ConfigError

FULL = ["llama", "llama-tied", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "opt", "neox", "gptneo", "bloom"]
ADAPTED = ["llama-lora", "llama-dora", "gpt2-lora", "opt-lora", "neox-lora", "qwen3-lora", "bloom-lora", "mixtral-lora"]


def alone(job: Any, row: Any) -> dict[str, torch.Tensor]:
    """By autograd, one example being all there is."""
    trained = {name: p for name, p in job.module.named_parameters() if p.requires_grad}
    job.module.eval()
    found = torch.autograd.grad(job.losses(job.module, [row]).sum(), list(trained.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(trained.items(), found, strict=True)}


def whole(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


@pytest.mark.parametrize("kind", FULL + ADAPTED)
def test_equal_to_one_example_at_a_time(kind: str, pico: Callable, job_of: Callable, rows_of: Callable):
    module, rows = pico(kind), rows_of(6)
    with torch.no_grad():  # adapters do not start at zero here
        for p in module.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)))
    job = job_of(module)
    wanted = [whole(alone(job, row)) for row in rows]
    module.train()
    with Gradients(module, 8) as gradients:
        losses, found = gradients.of(job.losses, rows)
        for i, reference in enumerate(wanted):
            off = whole({name: g[i] for name, g in found.items()}) - reference
            assert off.norm() <= 1e-5 * reference.norm(), i
    assert losses.shape == (6,)
    assert module.training and not any(m._forward_hooks for m in module.modules())


@pytest.mark.parametrize("kind", ["llama", "gpt2-lora", "opt"])
def test_an_accepted_model_is_as_it_was(kind: str, pico: Callable, job_of: Callable):
    module = pico(kind)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    flags = {name: p.requires_grad for name, p in module.named_parameters()}
    trial.check(job_of(module))
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert flags == {name: p.requires_grad for name, p in module.named_parameters()}
    assert module.training and all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("kind", ["llama", "llama-tied", "llama-lora"])
def test_equal_to_opacus(kind: str, pico: Callable, job_of: Callable, rows_of: Callable):
    from opacus.grad_sample import GradSampleModule

    module, rows = pico(kind).eval(), rows_of(4)
    job = job_of(module)
    with Gradients(module, 8) as gradients:
        ours = {name: g.clone() for name, g in gradients.of(job.losses, rows)[1].items()}
    for m in module.modules():
        m.training = not isinstance(m, torch.nn.Dropout)
    wrapped = GradSampleModule(module, loss_reduction="sum", strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about Opacus's hooks
        job.losses(wrapped, rows).sum().backward()
    for name, p in module.named_parameters():
        if p.requires_grad:
            assert torch.allclose(ours[name], p.grad_sample, rtol=1e-4, atol=1e-6), name
    wrapped.remove_hooks()


@pytest.mark.parametrize("kind,named", [("mixtral", "mlp.gate"), ("mamba", "mixer.conv1d")])
@pytest.mark.filterwarnings("ignore")  # the families' own
def test_layers_that_cannot_be_told_apart_are_named(kind: str, named: str, pico: Callable, job_of: Callable):
    with pytest.raises(ConfigError, match=named) as raised:
        trial.check(job_of(pico(kind)))
    assert "LoRA" in raised.value.problems[0].fix


def test_a_wrong_rule_is_found(pico: Callable, job_of: Callable, monkeypatch: pytest.MonkeyPatch):
    from osmotic.plugins.dp_sgd import layers

    def wrong(layer: Any, call: Any, gradient: Any, slots: Any) -> None:
        slots.product(layer.weight, 1.001 * gradient.transpose(1, 2), call[0][0])

    monkeypatch.setattr(layers, "_linear", wrong)
    with pytest.raises(ConfigError, match=r"lora_A\.default \(Linear\)|lora_B\.default \(Linear\)"):
        trial.check(job_of(pico("llama-lora")))


@pytest.mark.parametrize("kind", ["gpt2", "llama-lora"])
def test_what_is_off_by_little_is_tried_in_float64(
    kind: str, pico: Callable, job_of: Callable, monkeypatch: pytest.MonkeyPatch
):
    """And the model has its own dtypes and values again."""
    module, dtypes, really = pico(kind), [], trial._try
    before = {name: p.detach().clone() for name, p in module.named_parameters()}

    def once(job: Any, *given: Any) -> float:
        dtypes.append(next(job.module.parameters()).dtype)
        if len(dtypes) == 1:
            raise trial._NearError("off by little")
        return really(job, *given)

    monkeypatch.setattr(trial, "_try", once)
    assert trial.check(job_of(module)) == 1  # company moves gradients by more than the noise has room for
    assert dtypes == [torch.float32, torch.float64]
    assert all(p.dtype == torch.float32 and torch.equal(p, before[n]) for n, p in module.named_parameters())


def of_batch(module: Any, rows: Sequence[Any]) -> Any:
    """The published mistake: the mean over all tokens of the batch."""
    from_each = module.base_losses(module, rows)
    weights = torch.tensor([float(len(row)) for row in rows])
    return from_each * weights / weights.sum()


def padded(module: Any, rows: Sequence[Any]) -> Any:
    """Another: padding carries loss and is attended to."""
    length = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    logits = module(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none").mean(1)


@pytest.mark.parametrize("wrong", [of_batch, padded, lambda m, rows: m.base_losses(m, rows).mean()])
def test_a_loss_that_mixes_examples_is_refused(wrong: Callable, pico: Callable, job_of: Callable):
    module = pico("llama-lora")
    object.__setattr__(module, "base_losses", job_of(module).losses)
    with pytest.raises(ConfigError, match=r"in company|in the shape"):
        trial.check(job_of(module, losses=wrong))


def test_a_gradient_that_mixes_examples_behind_equal_losses_is_refused(pico: Callable, job_of: Callable):
    """The value is right; the gradient is the neighbour's as well."""
    module, right = pico("llama"), job_of(None).losses

    def wrong(m: Any, rows: Any) -> Any:
        values = right(m, rows)
        return values + 0.1 * (values.mean() - values.mean().detach()) * float(len(rows) > 1)

    with pytest.raises(ConfigError, match="not right"):
        trial.check(job_of(module, losses=wrong))


class Counting(torch.nn.Module):
    """Keeps a running mean of what it sees."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, **given: Any) -> Any:
        self.seen += given["input_ids"].float().mean()
        return self.inner(**given)


def test_buffers_that_change_are_refused(pico: Callable, job_of: Callable):
    with pytest.raises(ConfigError, match="buffers of the model change as it runs, first 'seen'"):
        trial.check(job_of(Counting(pico("llama"))))


def test_other_refusals(pico: Callable, job_of: Callable):
    with pytest.raises(ConfigError, match="two public dummies"):
        job = job_of(pico("llama"))
        trial.check(type(job)(job.module, job.encode, job.losses, job.dummies[:1], "k", 1e-3))
    with pytest.raises(ConfigError, match="not float32"):
        trial.check(job_of(pico("llama").to(torch.bfloat16)))
    with pytest.raises(ConfigError, match="no parameter"):
        Gradients(pico("llama").requires_grad_(False), 8)


def test_long_gradients_are_measured_in_full():
    """One float32 sum of 8 million squares is 1e-3 off; what is summed in parts is not."""
    flat = {"w": torch.full((1, 2000, 4000), 0.1)}
    assert float(norms(flat)[0]) == pytest.approx(0.1 * math.sqrt(8e6), rel=1e-5)
    assert float(norms({"w": torch.full((1, 8_000_000), 0.1)})[0]) == pytest.approx(0.1 * math.sqrt(8e6), rel=1e-6)


def test_no_example_adds_more_than_the_limit():
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-30, 1e-3, 1.0, 1e6, 1e18):
        given = {"a": scale * torch.randn(1, 300, 40, generator=generator), "b": scale * torch.randn(1, 7, generator=generator)}
        total = torch.zeros(12_007, dtype=torch.float64)
        found = float(add_clipped(total, given, torch.tensor([True]), 0.999)[0])
        assert float(total.norm()) <= 1.0 and float(total.norm()) == pytest.approx(min(found, 0.999), rel=1e-5)


def test_gradients_that_are_no_numbers_count_as_nothing():
    given = {"a": torch.ones(4, 5), "b": torch.ones(4, 2, 2)}
    given["a"][1, 0], given["b"][2, 0, 0] = math.nan, math.inf
    total = torch.zeros(9, dtype=torch.float64)
    found = add_clipped(total, given, torch.tensor([True, True, True, False]), 1.0)
    assert torch.allclose(total, torch.full((9,), 1 / 3, dtype=torch.float64), atol=1e-7)
    assert torch.isfinite(found).tolist() == [True, False, False, True]


def test_huge_gradients_are_held_to_the_limit_or_not_added():
    """A share of 1e-44 is no exact float32: what is longer than 1e30 limits adds nothing and counts as no number."""
    for scale, added in ((1e29, True), (3e30, False), (1e37, False)):
        total = torch.zeros(1, dtype=torch.float64)
        found = add_clipped(total, {"a": torch.full((1, 1), 1e-6 * scale)}, torch.tensor([True]), 1e-6)
        assert float(total) == pytest.approx(1e-6 * added, rel=1e-5) and math.isfinite(float(found)) == added


def test_a_sum_of_many_rounds_as_little_as_of_few():
    """256 equal gradients that float32 cannot add exactly: off by less than a tenth of the margin."""
    given, total = {"a": torch.full((256, 4), 0.1234567)}, torch.zeros(4, dtype=torch.float64)
    add_clipped(total, given, torch.ones(256, dtype=torch.bool), 1.0)
    assert float((total - 256 * given["a"][0].double()).norm()) < 1e-4


def test_with_bfloat16_examples_are_taken_one_at_a_time(pico: Callable):
    """So another's row or length cannot move a gradient."""
    with Gradients(pico("llama"), 8, "bfloat16") as gradients:
        assert gradients.chunk == 1


@pytest.mark.parametrize("off,count", [(0.0, 256), (1e-7, 257), (5e-6, 26), (9e-6, 14), (1e-3, 1)])
def test_so_many_are_together_that_the_margin_covers_what_company_does(off: float, count: int):
    assert together(off) == count and 4 * (count - 1) * off <= MARGIN / 2 + 1e-12


def test_the_trial_measures_what_company_does(pico: Callable, job_of: Callable, monkeypatch: pytest.MonkeyPatch):
    """A loss whose gradient is a little of its neighbours', as coarse rounding would make it: fewer go together."""
    module, right = pico("llama-lora"), job_of(None).losses
    assert trial.check(job_of(module)) > 32

    def rounded(m: Any, rows: Any) -> Any:
        values = right(m, rows)
        return values + 3e-6 * (values.sum() - values - (values.sum() - values).detach())

    assert 2 <= trial.check(job_of(module, losses=rounded)) < 32


@pytest.mark.parametrize("count,chunk", [(2, 8), (3, 2), (4, 3), (4, 1), (4, 4), (5, 2)])
def test_every_dummy_is_tried_in_as_much_company_as_there_will_be(count: int, chunk: int):
    found = trial._companies(count, chunk)
    assert set().union(*map(set, found)) == set(range(count)) and max(map(len, found)) == min(count, chunk)
    assert all(len(set(one)) == len(one) for one in found)


def test_bfloat16_gradients_are_near(pico: Callable, job_of: Callable, rows_of: Callable):
    job, rows = job_of(pico("llama")), rows_of(5)
    wanted = [whole(alone(job, row)) for row in rows]
    with Gradients(job.module, 8, "bfloat16") as gradients:
        found = gradients.of(job.losses, rows)[1]
        for i, reference in enumerate(wanted):
            assert (whole({n: g[i] for n, g in found.items()}) - reference).norm() < 0.05 * reference.norm()


def test_neighbours_in_memory_move_only_the_last_bits(pico: Callable, job_of: Callable, rows_of: Callable):
    """What the margin is for: the share of its gradient by which a record is moved by another's being a dummy."""
    job, rows = job_of(pico("llama")), rows_of(8)
    with Gradients(job.module, 8) as gradients:
        before = {n: g.clone() for n, g in gradients.of(job.losses, rows)[1].items()}
        after = gradients.of(job.losses, [*rows[:7], job.dummies[0]])[1]
        for i in range(7):
            one, other = (whole({n: g[i] for n, g in part.items()}) for part in (before, after))
            assert (one - other).norm() < 2e-6 * one.norm()

# SPDX-License-Identifier: Apache-2.0
"""The loss: its normalisation over a whole step however it is shared out, end tokens, both kinds of student."""

from typing import Any

import pytest
import torch

from osmotic.components.training.losses import kind_of, loss_of, share, start_of
from osmotic.components.training.parts import Micro, Step
from osmotic.schemas.errors import ComponentError

END = 1  # also what rows are padded with in some of these models
STEP = Step(
    {
        "label": [([5, 6, 7, 8], [9, END]), ([5, 6], [END]), ([30], [9, END]), ([3, 3, 3], [7, 7, END])],
        "rationale": [([5, 6, 7, 8, 9], [9, 4, 5, 6, END]), ([4, 2, 4, 2, 4, 2, 4, 2], [9, END])],
    }
)
WEIGHTS = {"label": 0.5, "rationale": 2.0}


def build(name: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    if name == "t5":
        sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
        return t.T5ForConditionalGeneration(t.T5Config(vocab_size=40, **sizes, decoder_start_token_id=0))
    if name == "bart":
        layers = {"encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0}
        ids = {"bos_token_id": 0, "pad_token_id": END, "eos_token_id": END, "forced_eos_token_id": None}
        return t.BartForConditionalGeneration(
            t.BartConfig(vocab_size=40, d_model=16, max_position_embeddings=64, **layers, **heads, **ids)
        )
    config = t.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=END, pad_token_id=END,
    )  # fmt: skip
    return t.LlamaForCausalLM(config)


def gradients(module: Any, micros: list[Micro], kind: Any) -> tuple[float, dict[str, torch.Tensor]]:
    module.zero_grad()
    losses = [loss_of(module, micro, kind)[0] for micro in micros]
    for loss in losses:
        loss.backward()
    found = {n: p.grad.clone() if p.grad is not None else torch.zeros_like(p) for n, p in module.named_parameters()}
    return sum(float(loss.detach()) for loss in losses), found


@pytest.mark.parametrize("name, wanted", [("llama", "auto"), ("llama", "padded"), ("t5", "auto"), ("bart", "auto")])
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_however_it_is_shared_out_the_step_has_one_loss_and_one_gradient(name, wanted, parts):
    module = build(name)
    kind = kind_of(module, wanted)
    whole, once = gradients(module, share(STEP, WEIGHTS, 1), kind)
    split, more = gradients(module, share(STEP, WEIGHTS, parts), kind)
    assert split == pytest.approx(whole, abs=1e-5)
    assert all(torch.allclose(once[label], more[label], atol=1e-6) for label in once)


def test_parts_hold_every_row_once_with_its_weight_and_about_as_many_tokens():
    parts = share(STEP, WEIGHTS, 3)
    rows = [
        (row, task, weight) for part in parts for row, task, weight in zip(part.rows, part.tasks, part.weights, strict=True)
    ]
    tokens = {task: sum(len(tail) for _, tail in found) for task, found in STEP.examples.items()}
    wanted = [(row, task, WEIGHTS[task] / tokens[task]) for task, found in STEP.examples.items() for row in found]
    assert sorted(rows) == sorted(wanted)
    sizes = [sum(len(head) + len(tail) for head, tail in part.rows) for part in parts]
    longest = max(len(head) + len(tail) for row in STEP.examples.values() for head, tail in row)
    assert max(sizes) - min(sizes) <= longest
    assert parts == share(STEP, WEIGHTS, 3)


def test_a_part_without_rows_has_one_that_weighs_nothing():
    step = Step({"label": [([5, 6], [9, END]), ([5], [END])]})
    parts = share(step, {"label": 1.0}, 4)
    assert [len(part.rows) for part in parts] == [1, 1, 1, 1]
    assert [part.weights for part in parts[2:]] == [[0.0], [0.0]]
    module = build("llama")
    loss, found = gradients(module, parts[2:], kind_of(module, "auto"))
    assert loss == 0.0 and not any(gradient.any() for gradient in found.values())
    with pytest.raises(ComponentError, match="without rows"):
        loss_of(module, Micro([], [], []), "packed")


@pytest.mark.parametrize("wanted", ["packed", "padded"])
def test_the_loss_is_the_weighted_sum_of_the_tasks_means_over_target_tokens(wanted):
    module = build("llama")
    kind, means = kind_of(module, wanted), {}
    for task, rows in STEP.examples.items():
        nll, count = 0.0, 0
        for head, tail in rows:
            with torch.no_grad():
                table = module(input_ids=torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
            nll -= sum(float(table[len(head) - 1 + i, token]) for i, token in enumerate(tail))
            count += len(tail)
        means[task] = nll / count
    loss, shares = loss_of(module, share(STEP, WEIGHTS, 1)[0], kind)
    assert float(loss.detach()) == pytest.approx(sum(WEIGHTS[t] * means[t] for t in means), abs=1e-5)
    assert shares == {task: pytest.approx(WEIGHTS[task] * means[task], abs=1e-5) for task in means}
    for factor in (0.0, 0.25, 3.0):  # linear in each weight
        scaled = {**WEIGHTS, "rationale": factor}
        found = float(loss_of(module, share(STEP, scaled, 1)[0], kind)[0].detach())
        assert found == pytest.approx(0.5 * means["label"] + factor * means["rationale"], abs=1e-5)


def test_a_task_of_weight_zero_has_no_gradient():
    module = build("llama")
    kind = kind_of(module, "auto")
    alone = Step({"rationale": STEP.examples["rationale"]})
    _, with_labels = gradients(module, share(STEP, {"label": 0.0, "rationale": 1.0}, 1), kind)
    _, without = gradients(module, share(alone, {"rationale": 1.0}, 1), kind)
    assert all(torch.allclose(with_labels[name], without[name], atol=1e-7) for name in without)


@pytest.mark.parametrize("wanted", ["packed", "padded"])
def test_end_tokens_carry_loss_and_padding_none_where_they_are_the_same_token(wanted):
    module = build("llama")
    kind = kind_of(module, wanted)
    ends = Step({"label": [([5, 6, 7], [END])]})
    with torch.no_grad():
        nll = -float(module(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)[END])
    assert float(loss_of(module, share(ends, {"label": 1.0}, 1)[0], kind)[0].detach()) == pytest.approx(nll, abs=1e-6)
    mixed = Step({"label": [([5, 6, 7], [END]), ([4] * 9, [8] * 9 + [END])]})  # the first row is padded to 18
    micro = share(mixed, {"label": 11.0}, 1)[0]
    only = Micro(micro.rows, ["a", "b"], [1.0, 0.0])
    assert loss_of(module, only, kind)[1]["a"] == pytest.approx(nll, abs=1e-6)


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_encoder_decoder_reads_the_prompt_and_writes_the_target(name):
    """Against transformers' own loss from labels, row by row."""
    module = build(name).eval()
    assert kind_of(module, "auto") == kind_of(module, "padded") == "seq2seq"
    wanted = 0.0
    for task, rows in STEP.examples.items():
        tokens = sum(len(tail) for _, tail in rows)
        for head, tail in rows:
            with torch.no_grad():
                own = module(input_ids=torch.tensor([head]), labels=torch.tensor([tail])).loss
            wanted += WEIGHTS[task] * float(own) * len(tail) / tokens
    assert float(loss_of(module, share(STEP, WEIGHTS, 1)[0], "seq2seq")[0].detach()) == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(ComponentError, match="cannot be trained packed"):
        kind_of(module, "packed")


def test_a_decoder_starts_from_the_models_own_token_inside_an_engine_too():
    module = build("t5")

    class Around:
        config, module = object(), None

    Around.module = module
    for own, wanted in ((7, 7), (None, 0)):
        module.config.decoder_start_token_id = own
        assert start_of(module) == start_of(Around()) == wanted


def test_the_loss_is_float32_under_autocast():
    module = build("llama")
    kind = kind_of(module, "auto")
    exact = float(loss_of(module, share(STEP, WEIGHTS, 1)[0], kind)[0].detach())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(module, share(STEP, WEIGHTS, 1)[0], kind)[0]
    assert loss.dtype == torch.float32 and float(loss.detach()) == pytest.approx(exact, rel=2e-2)

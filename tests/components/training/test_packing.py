# SPDX-License-Identifier: Apache-2.0
"""Packing: no row sees another, the loss is the padded one, and a model that cannot is found out before it trains."""

import copy
from typing import Any

import pytest
import torch

from osmotic.components.training import packing
from osmotic.components.training.losses import kind_of, loss_of, share
from osmotic.components.training.packing import ATTENTION, pack, switch
from osmotic.components.training.parts import Micro, Step
from osmotic.schemas.errors import ComponentError

SIZE: dict[str, Any] = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
MORE: dict[str, Any] = {"intermediate_size": 32, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
STEP = Step(
    {
        "label": [([5, 6, 7, 8], [9, 1]), ([5, 6], [1]), ([30], [9, 1])],
        "rationale": [([5, 6, 7, 8, 9], [9, 4, 5, 6, 1]), ([4, 2, 4, 2, 4, 2, 4, 2], [9, 1])],
    }
)
WEIGHTS = {"label": 0.5, "rationale": 2.0}


def build(name: str) -> Any:
    """A random model of a few thousand parameters, without dropout."""
    import transformers as t

    torch.manual_seed(0)
    if name == "llama":
        config = t.LlamaConfig(**SIZE, **MORE, num_key_value_heads=2, tie_word_embeddings=True)
        return t.LlamaForCausalLM(config)
    if name == "gpt2":
        drop = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 1}
        return t.GPT2LMHeadModel(t.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64, **drop))
    if name == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**SIZE, **MORE, num_key_value_heads=1))
    if name == "granite":
        return t.GraniteForCausalLM(t.GraniteConfig(**SIZE, **MORE, num_key_value_heads=2, logits_scaling=3.0))
    if name == "mixtral":
        more = {"num_local_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}
        return t.MixtralForCausalLM(t.MixtralConfig(**SIZE, **MORE, **more))
    if name == "mistral":
        return t.MistralForCausalLM(t.MistralConfig(**SIZE, **MORE, num_key_value_heads=2, sliding_window=4))
    if name == "gemma2":
        return t.Gemma2ForCausalLM(t.Gemma2Config(**SIZE, **MORE, num_key_value_heads=2, head_dim=4))
    if name == "bloom":
        return t.BloomForCausalLM(t.BloomConfig(vocab_size=40, hidden_size=16, n_layer=2, n_head=2, eos_token_id=1))
    return t.MambaForCausalLM(t.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=1))


def total(module: Any, kind: Any, step: Step = STEP, parts: int = 1) -> torch.Tensor:
    return sum((loss_of(module, micro, kind)[0] for micro in share(step, WEIGHTS, parts)), start=torch.zeros(()))


def by_hand(module: Any) -> float:
    """The step's loss from each row alone, token by token."""
    found = 0.0
    for task, rows in STEP.examples.items():
        nll, count = 0.0, 0
        for head, tail in rows:
            with torch.no_grad():
                table = module(input_ids=torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
            nll -= sum(float(table[len(head) - 1 + i, token]) for i, token in enumerate(tail))
            count += len(tail)
        found += WEIGHTS[task] * nll / count
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2", "granite", "mixtral"])
def test_the_packed_loss_and_gradients_are_the_padded_ones(name):
    packed, padded = build(name), build(name)
    assert kind_of(packed, "auto") == "packed" and kind_of(padded, "padded") == "padded"
    one, other = total(packed, "packed"), total(padded, "padded")
    assert float(one.detach()) == pytest.approx(by_hand(padded), abs=1e-5)
    assert float(one.detach()) == pytest.approx(float(other.detach()), abs=1e-5)
    one.backward()
    other.backward()
    for (label, p), q in zip(packed.named_parameters(), padded.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6), label


def test_rows_of_very_different_lengths_are_laid_out_apart_and_come_back_in_order(monkeypatch):
    lengths = [60, 3, 45, 130, 1, 33, 20, 64, 2]
    rows = [([(7 * i + j) % 37 + 2 for j in range(n)], [(i + 3) % 40, 1]) for i, n in enumerate(lengths)]
    step = Step({"label": rows[::2], "rationale": rows[1::2]})
    packed, padded = build("llama"), build("llama")
    assert kind_of(packed, "packed") == "packed"
    widths: list[tuple[int, int]] = []
    inner = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        widths.append((query.shape[0], query.shape[2]))
        return inner(query, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    one = total(packed, "packed", step)
    assert sorted(widths) == sorted(2 * [(1, 65), (1, 131), (3, 61), (4, 21)])  # two layers
    monkeypatch.undo()
    other = total(padded, "padded", step)
    assert float(one.detach()) == pytest.approx(float(other.detach()), abs=1e-5)
    one.backward()
    other.backward()
    assert all(torch.allclose(p.grad, q.grad, atol=1e-6) for p, q in zip(packed.parameters(), padded.parameters(), strict=True))


@pytest.mark.parametrize("name", ["mistral", "gemma2", "bloom", "mamba"])
def test_models_that_cannot_be_packed_are_padded_and_right(name):
    module = build(name)
    before = module.config._attn_implementation
    kind = kind_of(module, "auto")
    assert kind in ("padded", "whole") and module.config._attn_implementation == before
    assert float(total(module, kind).detach()) == pytest.approx(by_hand(module), abs=1e-5)
    with pytest.raises(ComponentError, match="cannot be trained packed"):
        kind_of(module, "packed")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_row_sees_another(name):
    """The gradient of one row's loss is exactly zero at every token of all other rows."""
    module = build(name)
    assert not switch(module)
    rows = [row for examples in STEP.examples.values() for row in examples]
    seen: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    module.get_input_embeddings().register_forward_hook(keep)
    lengths = [len(head) + len(tail) - 1 for head, tail in rows]
    for chosen in range(len(rows)):
        weights = [float(i == chosen) for i in range(len(rows))]
        loss_of(module, Micro(rows, ["label"] * len(rows), weights), "packed")[0].backward()
        touched = seen[-1].grad[0].abs().sum(-1) > 0
        start = sum(lengths[:chosen])
        assert touched[start : start + lengths[chosen]].all()
        assert not touched[:start].any() and not touched[start + lengths[chosen] :].any()


def test_changing_one_row_leaves_the_others_losses():
    module = build("llama")
    assert not switch(module)
    rows = [row for examples in STEP.examples.values() for row in examples]
    weights = [0.0, 1.0, 1.0, 1.0, 1.0]
    tasks = [str(i) for i in range(5)]
    before = loss_of(module, Micro(rows, tasks, weights), "packed")[1]
    rows[0] = ([17, 18, 19, 20], [21, 1])
    after = loss_of(module, Micro(rows, tasks, weights), "packed")[1]
    assert before == after


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers has renamed
def test_adapters_are_packed_too():
    from peft import LoraConfig, get_peft_model

    def adapted() -> Any:
        torch.manual_seed(1)
        wanted = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(build("llama"), wanted)

    packed, padded = adapted(), adapted()
    assert kind_of(packed, "auto") == "packed" and kind_of(padded, "padded") == "padded"
    one, other = total(packed, "packed"), total(padded, "padded")
    assert float(one.detach()) == pytest.approx(float(other.detach()), abs=1e-5)
    one.backward()
    other.backward()
    pairs = zip(packed.named_parameters(), padded.parameters(), strict=True)
    assert all(torch.allclose(p.grad, q.grad, atol=1e-6) for (_, p), q in pairs if p.requires_grad)


def test_ordinary_forwards_of_a_switched_module_stay_as_they_were():
    plain, switched = build("llama"), build("llama")
    assert not switch(switched) and switched.config._attn_implementation == ATTENTION
    ids = torch.tensor([[1, 1, 5, 6, 7], [4, 5, 6, 7, 8]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    for given in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        with torch.no_grad():
            assert torch.allclose(plain(**given).logits, switched(**given).logits, atol=1e-6)
    copied = copy.deepcopy(switched)
    assert float(total(copied, "packed").detach()) == float(total(switched, "packed").detach())


def test_an_attention_that_mixes_rows_is_found_out(monkeypatch):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def mixing(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:
        return sdpa_attention_forward(module, query, key, value, None, **options)

    monkeypatch.setattr(packing, "attention", mixing)
    module = build("llama")
    before = module.config._attn_implementation
    assert switch(module) == "its rows see each other when packed"
    assert module.config._attn_implementation == before and module.training == build("llama").training
    assert kind_of(module, "auto") == "padded"
    monkeypatch.undo()
    assert not switch(module)  # what was registered is replaced


@pytest.mark.parametrize("broken", [False, True])
def test_a_leak_too_small_for_half_precision_is_found_out(monkeypatch, broken):
    """The logits are near enough to those of each row alone; they must not move at all with other rows' tokens."""
    right = packing.attention

    def leaking(module: Any, *parts: Any, **options: Any) -> Any:
        found, nothing = right(module, *parts, **options)
        return found + 4e-4 * found.sum(1, keepdim=True) if parts[3] is not None and broken else found, nothing

    monkeypatch.setattr(packing, "attention", leaking)
    module = build("llama").to(torch.bfloat16)
    assert switch(module) == ("its rows see each other when packed" if broken else "")


@pytest.mark.parametrize("setting", ["attention_window", "local_attention", "attention_chunk_size"])
def test_windows_that_a_few_tokens_cannot_show_are_read_off_the_settings(setting):
    module = build("llama")
    setattr(module.config, setting, 4096)
    assert kind_of(module, "auto") == "padded"
    setattr(module.config, setting, None)
    assert kind_of(module, "auto") == "packed"


def test_windows_of_a_part_of_a_model_are_seen(monkeypatch):
    """A model of several parts keeps its writer's settings inside."""
    module, inner = build("llama"), build("llama").config
    inner.layer_types = ["full_attention", "chunked_attention"]
    monkeypatch.setattr(type(module.config), "get_text_config", lambda self: inner)
    assert switch(module) == "it has layers of chunked_attention"


def test_a_model_that_fails_in_its_own_way_is_padded(monkeypatch):
    def fails(*_: Any, **__: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    monkeypatch.setattr(packing, "attention", fails)
    module = build("llama")
    before = module.config._attn_implementation
    assert kind_of(module, "auto") == "padded" and module.config._attn_implementation == before


def test_losses_of_routing_are_no_reason_to_fail():
    """A mixture of experts that is set to report its routing is run as its library can."""
    module = build("mixtral")
    module.config.output_router_logits = True
    kind = kind_of(module, "auto")
    assert float(total(module, kind).detach()) == pytest.approx(by_hand(module), abs=1e-5)


def test_checkpointed_gradients_are_the_same():
    plain, saving = build("llama").train(), build("llama").train()
    assert kind_of(plain, "packed") == kind_of(saving, "packed")
    saving.activation_checkpointing_enable({"use_reentrant": False})
    total(plain, "packed").backward()
    total(saving, "packed").backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(plain.parameters(), saving.parameters(), strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_switched_module_writes_what_it_wrote_before(name):
    """Batches padded on the left, with a cache."""
    plain, switched = build(name), build(name)
    assert not switch(switched)
    given = {"input_ids": torch.tensor([[1, 1, 5, 6, 7], [4, 5, 6, 7, 8]])}
    given["attention_mask"] = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    more: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 1}
    for cache in (None, "static"):
        told = [module.generate(**given, **more, cache_implementation=cache) for module in (plain, switched)]
        assert torch.equal(*told)


def test_attention_dropout_is_on_in_training_only():
    import transformers as t

    torch.manual_seed(0)
    module = t.LlamaForCausalLM(t.LlamaConfig(**SIZE, **MORE, attention_dropout=0.5)).train()
    assert kind_of(module, "auto") == "packed" and module.training
    assert float(total(module, "packed").detach()) != float(total(module, "packed").detach())
    module.eval()
    assert float(total(module, "packed").detach()) == float(total(module, "packed").detach())


def test_what_a_packed_forward_is_given():
    given = pack([[7, 8, 9], [4], [5, 6]])
    assert given["input_ids"].tolist() == [[7, 8, 9, 4, 5, 6]]
    assert given["position_ids"].tolist() == [[0, 1, 2, 0, 0, 1]]
    assert given["attention_mask"].tolist() == [[[[0, 1, 2], [3, -1, -1], [4, 5, -1]]]]


def test_the_head_sees_target_positions_only():
    module = build("llama")
    assert not switch(module)
    seen: list[int] = []
    module.get_output_embeddings().register_forward_hook(lambda _, given, __: seen.append(given[0].shape[-2]))
    total(module, "packed")
    assert seen == [sum(len(tail) for rows in STEP.examples.values() for _, tail in rows)]

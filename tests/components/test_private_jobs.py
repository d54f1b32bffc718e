# SPDX-License-Identifier: Apache-2.0
"""Jobs of private training on random models of a few thousand parameters: what carries loss, what is cut, what is public."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.components.private_jobs import Learning, language_job, language_losses
from osmotic.components.templates import compile_template
from osmotic.plugins.contract import Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.errors import ComponentError, ConfigError
from osmotic.schemas.records import FieldSpec, RecordSchema

WORDS = ("<unk>", "<eos>", "label:", "text:", "sport", "food", "ball", "team", "soup", "bread", "we", "like", "the", "new")
SCHEMA = RecordSchema(fields={"label": FieldSpec(domain=("sport", "food")), "text": FieldSpec(text=True)})
ROWS = [
    {"id": "a", "label": "sport", "text": "the team"},
    {"id": "b", "label": "food", "text": "we like the new soup"},
    {"id": "c", "label": "food", "text": "bread"},
]


def save(folder: Path, family: str) -> Path:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    ends = {"vocab_size": len(WORDS), "eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None}
    if family == "gpt2":
        off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **off, **ends)).save_pretrained(folder)
    elif family == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 1}
        t.T5ForConditionalGeneration(t.T5Config(**sizes, **ends)).save_pretrained(folder)
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        t.LlamaForCausalLM(t.LlamaConfig(**sizes, max_position_embeddings=32, **ends)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = save(tmp_path_factory.mktemp(request.param), request.param)
    return TransformersModel(TransformersConfig(path=str(folder), device="cpu")).build()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return TransformersModel(TransformersConfig(path=str(save(tmp_path_factory.mktemp("one"), "llama")), device="cpu")).build()


@pytest.fixture(scope="module")
def short(llama: Any) -> Any:
    return job_of(llama, max_length=16)


def job_of(
    model: Any,
    prompt: str = "label: {{ label }} text:",
    target: str = "{{ text }}",
    schema: RecordSchema = SCHEMA,
    **learning: Any,
) -> Any:
    settings = Learning(**{"learning_rate": 0.01, **learning})
    return language_job(model, compile_template(prompt, "prompt"), compile_template(target, "target"), schema, settings)


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def alone(module: Any, example: Any) -> Any:
    """The loss of one example by hand: no batch, no padding, no mask; every target token after all that stands before it."""
    import torch

    head, tail = example
    table = module(input_ids=torch.tensor([[*head, *tail]])).logits[0].log_softmax(-1)
    return -sum(table[len(head) + i - 1, token] for i, token in enumerate(tail)) / len(tail)


def test_an_example_is_the_prompt_and_the_text_with_its_end(llama: Any) -> None:
    job = job_of(llama)
    assert job.encode(ROWS[0]) == (ids("label: sport text:"), ids("the team <eos>"))
    assert [job.encode(row) for row in ROWS] == [job.encode(row) for row in reversed(ROWS)][::-1]


def test_losses_and_gradients_are_those_by_hand_and_no_row_changes_another(model: Any) -> None:
    """Padding is the end token here; were it to carry loss, or the end none, the numbers would differ in the first digit."""
    import torch

    job = job_of(model)
    module = job.module.eval()
    examples = [job.encode(row) for row in ROWS]
    losses = job.losses(module, examples)
    wanted = [alone(module, example) for example in examples]
    assert losses.shape == (3,) and torch.allclose(losses, torch.stack(wanted), atol=1e-6)
    parameters = [p for p in module.parameters() if p.requires_grad]
    for i in range(3):
        found = torch.autograd.grad(losses[i], parameters, retain_graph=True, allow_unused=True)
        hand = torch.autograd.grad(wanted[i], parameters, retain_graph=True, allow_unused=True)
        for a, b in zip(found, hand, strict=True):
            assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)
    mates = job.losses(module, [examples[1], examples[0]])
    assert torch.allclose(mates[1], losses[0], atol=1e-6)


def test_the_end_is_learned_and_prompts_are_not(llama: Any) -> None:
    """Token by token: an output row is pulled towards exactly the target's tokens, the end among them."""
    import torch

    job = job_of(llama)
    head = job.module.get_output_embeddings().weight
    hidden: list[Any] = []
    handle = job.module.get_output_embeddings().register_forward_hook(lambda _, given, out: hidden.append((given[0], out)))
    loss = job.losses(job.module.eval(), [job.encode(ROWS[0]), job.encode(ROWS[1])])[0]
    handle.remove()
    (gradient,) = torch.autograd.grad(loss, hidden[0][1], retain_graph=True)
    pulled = (gradient[0] < 0).nonzero()
    assert sorted(pulled[:, 1].tolist()) == sorted(ids("the team <eos>"))  # each of the three is asked for once
    assert gradient[1].abs().max() == 0 and torch.autograd.grad(loss, head)[0].abs().max() > 0


def test_what_is_too_long_is_cut_and_a_text_that_goes_on_has_no_end(llama: Any) -> None:
    job = job_of(llama, max_length=16)
    head, tail = job.encode({"label": "food", "text": "soup " * 50})
    assert head == ids("label: food text:") and tail == ids("soup " * 13)
    fits = job.encode({"label": "food", "text": "soup " * 12})
    assert fits[1] == ids("soup " * 12 + "<eos>")
    free = job_of(llama, "text: {{ text }} label:", "{{ label }}", max_length=16)
    head, tail = free.encode({"label": "food", "text": "soup " * 50})
    assert tail == ids("food <eos>") and head == ids("soup " * 13 + "label:")
    both = job_of(llama, "{{ text }} label:", "{{ text }}", max_length=16)
    head, tail = both.encode({"label": "food", "text": "soup " * 50})
    assert (len(head), len(tail)) == (8, 8) and head[-1] == WORDS.index("label:")


def test_positions_bound_the_length(llama: Any) -> None:
    head, tail = job_of(llama, max_length=4096).encode({"label": "food", "text": "soup " * 50})
    assert len(head) + len(tail) == 32


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_an_empty_text_teaches_nothing(llama: Any, text: str) -> None:
    assert job_of(llama).encode({"label": "food", "text": text}) is None


def test_tokens_that_the_model_does_not_have_are_left_out(tmp_path: Path) -> None:
    """A tokenizer with special tokens of its own: written in one record, they must not end the training."""
    from transformers import AutoTokenizer

    folder = save(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra>"]})
    tokenizer.save_pretrained(folder)
    odd = TransformersModel(TransformersConfig(path=str(folder), device="cpu")).build()
    assert len(odd.tokenizer) == len(WORDS) + 1
    job = job_of(odd)
    assert job.encode({"label": "food", "text": "hot <extra> soup"})[1] == ids("<unk> soup <eos>")
    assert job.encode({"label": "food", "text": "<extra>"}) is None


def test_a_prompt_without_tokens_begins_with_the_end_token(llama: Any) -> None:
    free = job_of(llama, "{{ text }}", "{{ label }}")
    assert free.encode({"label": "food", "text": ""}) == ([1], ids("food <eos>"))


@given(st.text(alphabet=st.characters(), max_size=60))
def test_encoding_ends_for_every_text(short: Any, text: str) -> None:
    job = short
    for found in (job.encode({"label": "food", "text": text}), job.encode({"label": text, "text": "soup \ud800"})):
        assert found is None or (found[0] and found[1] and len(found[0]) + len(found[1]) <= 16)


def test_dummies_are_public_and_unequal(llama: Any) -> None:
    job = job_of(llama)
    lengths = [len(head) + len(tail) for head, tail in job.dummies]
    assert len(job.dummies) >= 2 and len(set(lengths)) >= 2
    assert {tuple(head) for head, _ in job.dummies} <= {tuple(ids(f"label: {label} text:")) for label in ("sport", "food")}
    assert job.losses(job.module, job.dummies).shape == (len(job.dummies),)


def test_the_key_names_what_the_result_depends_on(llama: Any, model: Any) -> None:
    key = job_of(llama).key
    assert key == job_of(llama, at_once=3).key
    others = [
        job_of(llama, "label: {{ label }} text: we"), job_of(llama, target="the {{ text }}"), job_of(llama, learning_rate=0.02),
        job_of(llama, warmup=1), job_of(llama, schedule="linear"), job_of(llama, weight_decay=0.1),
        job_of(llama, max_length=20), job_of(llama, dtype="bfloat16"),
        job_of(TransformersModel(TransformersConfig(path=llama.config.path, device="cpu", lora={"rank": 2})).build()),
    ]  # fmt: skip
    assert len({key, *(job.key for job in others)}) == 1 + len(others)


def test_weights_fit_the_model_that_was_trained(llama: Any) -> None:
    from osmotic.components.training.engines import read_out

    job = job_of(llama)
    assert job.meta == {"base": llama.fingerprint, "layout": "full"}
    again = llama.with_weights(Weights(read_out(job.module), dict(job.meta)))
    assert again.log_likelihood([("label:", "food")]) == llama.log_likelihood([("label:", "food")])
    adapted = TransformersModel(TransformersConfig(path=llama.config.path, device="cpu", lora={"rank": 2})).build()
    meta = job_of(adapted).meta
    assert (meta["layout"], meta["rank"]) == ("lora", 2)


def test_labels_that_would_be_cut_are_named_before_any_record(llama: Any) -> None:
    long = " ".join(["sport"] * 60)
    schema = RecordSchema(fields={"label": FieldSpec(domain=("food", long, "3", "")), "text": FieldSpec(text=True)})
    with pytest.raises(ConfigError, match=r"the prompt with label 'sport sport .* has 62 tokens: at most 16 of 32") as caught:
        job_of(llama, schema=schema)
    assert "max_length" in str(caught.value)
    odd = RecordSchema(fields={"label": FieldSpec(domain=("3", "", "12")), "text": FieldSpec(text=True)})
    assert job_of(llama, schema=odd).encode({"label": "", "text": "soup"}) == (ids("label: text:"), ids("soup <eos>"))


def test_other_kinds_of_models_are_refused(tmp_path: Path) -> None:
    seq2seq = TransformersModel(TransformersConfig(path=str(save(tmp_path, "t5")), device="cpu")).build()
    with pytest.raises(ConfigError, match="encoder-decoder"):
        job_of(seq2seq)
    with pytest.raises(ComponentError, match="cannot be trained"):
        job_of(object())


def test_no_examples_have_no_losses(llama: Any) -> None:
    assert language_losses(llama.module, []).shape == (0,)

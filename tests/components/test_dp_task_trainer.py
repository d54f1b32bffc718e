# SPDX-License-Identifier: Apache-2.0
"""The private task trainer: its job by the engine's own trial, what it may depend on, both modes, the stages, mistakes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components.dp_task_trainer import DpTaskTrainer, DpTaskTrainerConfig, HeadEncode
from osmotic.components.templates import compile_template
from osmotic.components.training.heads import HeadEncoder, HeadModel
from osmotic.plugins.contract import PrivateJob, Records
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext
from osmotic.schemas.errors import ComponentError, ConfigError
from osmotic.schemas.records import FieldSpec, RecordSchema, numbered

pytest.importorskip("dp_accounting", reason="the extra 'dp' is not installed")
LABELS = ("bad", "good")
SCHEMA = RecordSchema(fields={"label": FieldSpec(domain=LABELS), "text": FieldSpec(text=True)})
SETTINGS: dict[str, Any] = {
    "model": "slm", "prompt": "{{ text }} w39", "learning_rate": 0.01,
    "privacy": {"noise_multiplier": 1.0, "delta": 1e-5, "batch": 16, "steps": 4},
}  # fmt: skip


def save_model(folder: Path, family: str = "llama") -> Path:
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "<eos>", "bad", "good", *(f"w{i}" for i in range(40))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    ends: dict[str, Any] = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = {
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(max_position_embeddings=64, **sizes, **ends)),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=64, **ends)),
    }
    torch.manual_seed(0)
    made[family]().save_pretrained(folder)
    return folder


def with_more_tokens(folder: Path) -> Path:
    """The tokenizer knows a special token for which the model has no row."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
    tokenizer.save_pretrained(folder)
    return folder


def rows(count: int, seed: int = 0) -> Records:
    rng = np.random.Generator(np.random.PCG64(seed))
    found = []
    for i in range(count):
        words = [f"w{n}" for n in rng.integers(5, 38, size=int(rng.integers(2, 9)))]
        words[int(rng.integers(len(words)))] = ("w1", "w2")[i % 2]
        found.append({"id": f"r{i}", "label": LABELS[i % 2], "text": " ".join(words)})
    return Records(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("slm"))


def build(folder: Path, **more):
    return TransformersModel(TransformersConfig(path=str(folder), **more)).build()


@pytest.fixture(scope="module")
def slm(folder):
    return build(folder)


def context_of(model, **more) -> FakeContext:
    return FakeContext(models={"slm": model}, record_schema=SCHEMA, **more)


def train(model, records=None, augmented=None, init=None, context=None, **changes):
    component = DpTaskTrainer(DpTaskTrainerConfig(**SETTINGS | changes))
    return component.run(context or context_of(model), records or rows(64), augmented, init)


class Caught(Exception):
    pass


def job_of(model, augmented=None, init=None, **changes) -> PrivateJob:
    """The job that the host is given."""
    context, found = context_of(model), []

    def take(records, job, noise):
        found.append(job)
        raise Caught

    context.private_training = take  # type: ignore[method-assign]
    with pytest.raises(Caught):
        train(model, None, augmented, init, context, **changes)
    return found[0]


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "lora", "frozen"])
def test_every_examples_gradient_is_its_own(tmp_path, pooling, family):
    from osmotic.plugins.dp_sgd.trial import check

    adapted = family in ("lora", "frozen")
    lora = {"rank": 4, "target_modules": ("q_proj",), "freeze_a": family == "frozen"} if adapted else None
    model = build(save_model(tmp_path, "llama" if adapted else family), lora=lora)
    job = job_of(model, pooling=pooling)
    check(job)
    assert len({len(ids) for ids, _ in job.dummies}) > 1 and job.losses(job.module, []).shape == (0,)


def test_what_comes_out_classifies(slm):
    out = train(slm, privacy={**SETTINGS["privacy"], "noise_multiplier": 0.1, "steps": 60, "batch": 32})
    assert out["weights"].meta["head"]["labels"] == list(LABELS) and "privacy" in out["weights"].meta
    exam, head = rows(80, 5), HeadModel.of(slm, out["weights"])
    found = head.log_probabilities([f"{row['text']} w39" for row in exam]).argmax(1)
    right = np.mean([LABELS[i] == row["label"] for i, row in zip(found, exam, strict=True)])
    assert right > 0.75  # almost no noise; chance is 0.5, and 0.75 is 4.5 standard errors above it
    assert out["curve"].data["before"] is None and out["curve"].data["notes"] == []


def test_encoding_never_fails_and_reads_one_record(slm):
    encode = job_of(slm).encode
    row = {"id": "a", "label": "good", "text": "w1 w2"}
    assert encode(row) == ([6, 7, 44], [1])
    assert encode({**row, "id": "b"}) == encode(row)
    assert encode({**row, "label": "other"}) is None and encode({**row, "label": 7}) is None
    assert encode({**row, "text": "\ud83d w1 \x00"}) is not None
    assert len(encode({**row, "text": "w1 " * 5000})[0]) == 64 and encode({**row, "text": "w1 " * 5000})[0][-1] == 44
    plain = HeadEncode(
        HeadEncoder(slm.encode_prompts, None, 8, 45), compile_template("{{ text }}", "prompt"), "label", LABELS, 0
    )
    assert plain({**row, "text": ""}) is None


@pytest.mark.parametrize("mode", ["head", "generation"])
def test_a_token_that_the_model_does_not_have_stops_nothing(tmp_path, mode):
    """A special token written in a record's text: whether the training ends must not depend on it."""
    model = build(with_more_tokens(save_model(tmp_path)))
    encode = job_of(model, mode=mode).encode
    row = {"id": "a", "label": "good", "text": "w1 <more> w2"}
    assert encode(row) == encode({**row, "text": "w1 w2"}) and encode(row)[0] == [6, 7, 44]
    odd = Records([{**one, "text": f"{one['text']} <more>"} for one in rows(32)])
    privacy = {**SETTINGS["privacy"], "steps": 1}
    assert train(model, odd, odd, mode=mode, privacy=privacy, before={"steps": 1})["weights"].tensors


def test_a_label_that_cannot_be_written_whole_is_named_before_any_record(slm):
    long = " ".join(["w1"] * 40)
    schema = RecordSchema(fields={"label": FieldSpec(domain=("bad", long)), "text": FieldSpec(text=True)})
    context = FakeContext(models={"slm": slm}, record_schema=schema)
    with pytest.raises(ConfigError, match=r"target with label 'w1 .* has 41 tokens: at most 32 of 64"):
        train(slm, context=context, mode="generation")


@pytest.mark.parametrize("freeze", [False, True])
def test_instructions_and_responses_need_no_label(folder, freeze):
    schema = RecordSchema(fields={"instruction": FieldSpec(text=True), "response": FieldSpec(text=True)})
    own = Records([{"id": f"i{i}", "instruction": row["text"], "response": "w7 w8"} for i, row in enumerate(rows(40))])
    made = Records([{**row, "id": numbered(i)} for i, row in enumerate(own)])
    texts = {"mode": "generation", "prompt": "{{ instruction }} w39", "target": "{{ response }}"}
    assert DpTaskTrainer.check(DpTaskTrainerConfig(**SETTINGS | texts), schema) == []
    model = build(folder, lora={"rank": 4, "target_modules": ("q_proj", "v_proj"), "freeze_a": freeze})
    context = FakeContext(models={"slm": model}, record_schema=schema)
    privacy = {**SETTINGS["privacy"], "steps": 2}
    weights = train(model, own, made, context=context, **texts, privacy=privacy, before={"steps": 2})["weights"]
    assert all("lora_B" in name for name in weights.tensors) == freeze == ("frozen" in weights.meta)
    assert "privacy" in weights.meta and model.with_weights(weights) is not None
    again = train(model, own, init=weights, context=context, **texts, privacy=privacy)["weights"]
    assert again.meta.get("frozen") == weights.meta.get("frozen") and again.tensors.keys() == weights.tensors.keys()
    no_target = DpTaskTrainerConfig(**SETTINGS | texts | {"target": None})
    assert any("no field 'label'" in text for text in DpTaskTrainer.check(no_target, schema))


def test_a_stage_that_was_left_out_is_told(slm):
    privacy = {**SETTINGS["privacy"], "steps": 1}
    for made, before, note in ((rows(4, 9), None, "not used"), (None, {"steps": 1}, "no augmented records came")):
        notes = train(slm, augmented=made, before=before, privacy=privacy)["curve"].data["notes"]
        assert len(notes) == 1 and note in notes[0]
    assert "0 augmented" in train(slm, augmented=Records([]), before={"steps": 1}, privacy=privacy)["curve"].data["notes"][0]


def test_the_key_names_all_that_is_public_and_the_result_depends_on(slm):
    same = job_of(slm).key
    assert job_of(slm).key == job_of(slm, at_once=3).key == same
    made, before = rows(20, 9), {"steps": 2}
    keys = {
        same, job_of(slm, pooling="mean").key, job_of(slm, prompt="{{ text }}").key, job_of(slm, labels=LABELS[::-1]).key,
        job_of(slm, made, before=before).key, job_of(slm, rows(20, 8), before=before).key, job_of(slm, mode="generation").key,
        job_of(slm, made, before=before, mode="generation").key, job_of(slm, init=train(slm)["weights"]).key,
    }  # fmt: skip
    assert len(keys) == 9
    assert job_of(slm, made).key == same  # they are not used without `before`


def test_augmented_records_are_learned_first_and_without_noise(slm):
    out = train(slm, augmented=rows(40, 3), before={"steps": 40, "batch": 16, "learning_rate": 0.01})
    curve = out["curve"].data["before"]
    assert curve["augmented"][-1] < 0.5 * curve["augmented"][0]
    job = job_of(slm, rows(40, 3), before={"steps": 40, "batch": 16, "learning_rate": 0.01})
    assert float(job.module.head.weight.detach().abs().max()) > 0


@pytest.mark.parametrize("mode", ["head", "generation"])
@pytest.mark.parametrize("at", ["before", "private"])
def test_a_training_that_was_killed_goes_on_exactly(slm, monkeypatch, mode, at):
    from osmotic.components import dp_task_trainer
    from osmotic.plugins.dp_sgd import loop

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(dp_task_trainer, "CHECKPOINT_SECONDS", 0.0)
    asked = {"mode": mode, "augmented": rows(12, 3), "before": {"steps": 6, "batch": 4}}
    whole, context, seen = train(slm, **asked), context_of(slm), []

    def killed(self, done, total, note=""):
        seen.append(total)
        if (done, total) == ((4, 6) if at == "before" else (3, 4)):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "progress", killed)
        with pytest.raises(KeyboardInterrupt):
            train(slm, context=context, **asked)
    assert seen[-1] == (6 if at == "before" else 4)
    again = train(slm, context=context, **asked)
    assert all(np.array_equal(again["weights"].tensors[name], made) for name, made in whole["weights"].tensors.items())
    assert again["curve"].data == whole["curve"].data


@pytest.mark.parametrize("mode", ["head", "generation"])
def test_bfloat16_trains(slm, mode):
    privacy = {**SETTINGS["privacy"], "noise_multiplier": 0.1, "steps": 2}
    one, two = (train(slm, mode=mode, dtype=dtype, at_once=1, privacy=privacy) for dtype in ("float32", "bfloat16"))
    first, other = (out["curve"].data["private"]["steps"][1]["loss"] for out in (one, two))
    assert first != other and first == pytest.approx(other, rel=0.05)  # 8 bits of a mantissa


def test_generation(slm):
    from osmotic.plugins.dp_sgd.trial import check

    job = job_of(slm, mode="generation")
    check(job)
    assert job.encode({"id": "a", "label": "good", "text": "w1"}) == ([6, 44], [4, 2])
    assert job.encode({"id": "a", "label": "odd", "text": "w1"}) is None
    out = train(slm, mode="generation", augmented=rows(8, 3), before={"steps": 2})
    assert slm.with_weights(out["weights"]) is not None and "head" not in out["weights"].meta


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "deepspeed"}, "deepspeed"),
        ({"warmup": 4}, "warmup: 4 of 4 steps"),
        ({"before": {"steps": 3, "warmup": 3}}, "before.warmup: 3 of 3 steps"),
        ({"privacy": {**SETTINGS["privacy"], "delta": 0.1}}, "privacy.delta"),
        ({"prompt": "{{ story }}"}, "unknown slot"),
        ({"label_field": "text"}, "has no domain"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(changes, message):
    assert any(message in text for text in DpTaskTrainer.check(DpTaskTrainerConfig(**SETTINGS | changes), SCHEMA))


def test_deepspeed_is_refused_at_run_time_too(slm):
    with pytest.raises(ConfigError, match="deepspeed"):
        train(slm, engine="deepspeed")
    with pytest.raises(ComponentError, match="no augmented record has a label"):
        train(slm, augmented=Records([{"id": "n0000000", "label": "x", "text": "w1"}]), before={"steps": 1})

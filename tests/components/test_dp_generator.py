# SPDX-License-Identifier: Apache-2.0
"""The generator under the real engine, on random Llamas of a few thousand parameters: learning, resuming, what is refused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components.dp_generator import DpGenerator, DpGeneratorConfig
from osmotic.components.synthetic_filter import SyntheticFilter
from osmotic.components.text_synthesizer import TextSynthesizer
from osmotic.plugins.contract import Outputs, Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, run_component
from osmotic.schemas.errors import ConfigError
from osmotic.schemas.records import FieldSpec, RecordSchema

pytestmark = pytest.mark.skipif(importlib.util.find_spec("dp_accounting") is None, reason="needs the extra osmotic[dp]")
LABELS = ("10", "9", "")
TEXTS = {"10": "the team won the match", "9": "soup and bread came hot", "": "nothing to say of it"}
WORDS = ["<unk>", "<eos>", "score", "10", "9", ":", *dict.fromkeys(" ".join(TEXTS.values()).split())]
SCHEMA = RecordSchema(fields={"label": FieldSpec(domain=LABELS), "text": FieldSpec(text=True)})
RECORDS = Records([{"id": f"r{i}", "label": LABELS[i % 3], "text": TEXTS[LABELS[i % 3]]} for i in range(90)])
NOISE = {"noise_multiplier": 0.5, "delta": 1e-3, "batch": 45, "steps": 30}
CONFIG: dict[str, Any] = {
    "model": "generator", "prompt": "score {{ label }} :", "privacy": NOISE, "learning_rate": 0.02, "max_length": 24
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("pico")
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    t.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": len(WORDS),
    }
    ends = {"eos_token_id": 1, "pad_token_id": 1, "bos_token_id": None, "max_position_embeddings": 64}
    t.LlamaForCausalLM(t.LlamaConfig(**sizes, **ends)).save_pretrained(folder)
    return TransformersModel(TransformersConfig(path=str(folder), device="cpu")).build()


def context_of(model: Any, schema: RecordSchema = SCHEMA, **more: Any) -> FakeContext:
    return FakeContext(models={"generator": model}, record_schema=schema, **more)


def train(model: Any, records: Records = RECORDS, context: FakeContext | None = None, **changes: Any) -> Outputs:
    return run_component(DpGenerator, {**CONFIG, **changes}, {"records": records}, context or context_of(model))


@pytest.fixture(scope="module")
def trained(model: Any) -> Outputs:
    return train(model)


def equal(one: Weights, two: Weights) -> bool:
    return one.tensors.keys() == two.tensors.keys() and all(np.array_equal(one.tensors[n], two.tensors[n]) for n in one.tensors)


# ---- learning ----


def test_texts_follow_the_control_code_and_end_by_themselves(model: Any, trained: Outputs) -> None:
    """With little noise; a random model's texts would be of the right label 1 time in 3, whole nearly never."""
    config = {"model": "generator", "prompt": CONFIG["prompt"], "per_label": 15, "max_new_tokens": 12, "top_k": 0, "top_p": 0.9}
    made = run_component(TextSynthesizer, config, {"weights": trained["weights"]}, context_of(model))["synthetic"]
    right = sum(row["text"] == TEXTS[row["label"]] for row in made)
    assert len(made) == 45 and right >= 36, [row["text"] for row in made]
    untouched = Weights(
        {n: p.detach().numpy() for n, p in model.trainable()[0].named_parameters()}, {"base": model.fingerprint}
    )
    before = run_component(TextSynthesizer, config, {"weights": untouched}, context_of(model))["synthetic"]
    assert sum(row["text"] == TEXTS[row["label"]] for row in before) == 0
    kept = run_component(SyntheticFilter, {"min_words": 4, "near_duplicate": None}, {"texts": made}, context_of(model))["valid"]
    assert {row["label"] for row in kept} == set(LABELS)


def test_what_comes_out(model: Any, trained: Outputs) -> None:
    meta = trained["weights"].meta
    assert meta["base"] == model.fingerprint and meta["layout"] == "full"
    told = meta["privacy"]
    assert (told["records"], told["batch"], told["steps"], told["noise_multiplier"]) == (90, 45, 30, 0.5)
    steps = trained["curve"].data["steps"]
    assert len(steps) == 30 and len({step["batch"] for step in steps}) > 3  # Poisson: sizes vary
    assert steps[-1]["loss"] < 0.3 * steps[0]["loss"]


def test_the_same_twice_and_after_a_kill(model: Any, trained: Outputs, monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.plugins.dp_sgd import loop

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    context = context_of(model)

    def killed(self: FakeContext, done: int, total: int, note: str = "") -> None:
        if done == 20:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FakeContext, "progress", killed)
        with pytest.raises(KeyboardInterrupt):
            train(model, context=context)
    assert equal(train(model, context=context)["weights"], trained["weights"])


def test_settings_of_speed_change_nothing(model: Any, trained: Outputs) -> None:
    other = train(model, at_once=7)["weights"]
    for name, tensor in trained["weights"].tensors.items():
        assert np.allclose(other.tensors[name], tensor, atol=2e-3), name


# ---- odd records ----


def few(count: int, **changes: Any) -> Records:
    return Records([{**row, **changes} for row in RECORDS.rows[:count]])


SHORT: dict[str, Any] = {"privacy": {**NOISE, "batch": 2, "steps": 2}}


def test_one_record_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="needs 2 records or more"):
        train(model, few(1), privacy={**NOISE, "batch": 1, "steps": 2})


def test_one_label_and_empty_texts_train(model: Any) -> None:
    assert train(model, few(6, label="10"), **SHORT)["weights"].meta["privacy"]["records"] == 6
    empty = train(model, few(6, text=" "), **SHORT)
    assert all(step["loss"] is None for step in empty["curve"].data["steps"])  # nothing to learn: noise alone, the same charge


def test_an_empty_text_changes_no_count_that_leaves(model: Any) -> None:
    rows = few(6).rows
    some = train(model, Records([*rows[:5], {**rows[5], "text": ""}]), **SHORT)["weights"].meta
    assert some == train(model, Records(rows), **SHORT)["weights"].meta


def test_a_batch_larger_than_the_data_and_a_delta_too_large(model: Any) -> None:
    with pytest.raises(ConfigError, match="45 is more than the 6 records"):
        train(model, few(6))
    with pytest.raises(ConfigError, match=r"0\.2 is not below 1 / 6 records"):
        train(model, few(6), privacy={**NOISE, "batch": 2, "steps": 2, "delta": 0.2})


# ---- the plan ----


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "deepspeed"}, r"engine: .*does not run on deepspeed.*Opacus.*engine: torch"),
        ({"prompt": "score {{ lable }} :"}, "prompt: unknown slot 'lable'"),
        ({"target": "{{ txt }}"}, "target: unknown slot 'txt'"),
        ({"prompt": "{{ label }}"}, "prompt: needs words of its own"),
        ({"prompt": "score {{ text }} :"}, "prompt: 'text' is free text"),
        ({"target": "{{ text }} {{ label }}"}, "target: 'label' stands in the prompt already"),
        ({"target": "text"}, "target: has no slot"),
        ({"warmup": 30}, "warmup: 30 of 30 steps"),
        ({"privacy": {**NOISE, "delta": 0.1}}, r"privacy.delta: 0.1 is not below 1 / records"),
    ],
)
def test_the_plan_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    import re

    found = DpGenerator.check(DpGeneratorConfig.model_validate({**CONFIG, **changes}), SCHEMA)
    assert any(re.search(said, problem) for problem in found), found


def test_a_right_configuration_has_no_problems_and_its_defaults() -> None:
    config = DpGeneratorConfig.model_validate(
        {"model": "g", "prompt": CONFIG["prompt"], "privacy": {"epsilon": 3, "batch": 8, "steps": 9}}
    )
    assert not DpGenerator.check(config, SCHEMA)
    assert (config.target, config.learning_rate, config.schedule, config.warmup) == ("{{ text }}", 2e-3, "constant", 0)
    assert (config.weight_decay, config.max_length, config.at_once, config.engine) == (0.0, 256, 32, "torch")
    assert (config.privacy.delta, config.privacy.clip) == (1e-5, 1.0)


def test_deepspeed_is_refused_even_where_nothing_planned(model: Any) -> None:
    with pytest.raises(ConfigError, match="engine: torch"):
        train(model, engine="deepspeed")


def test_a_guarantee_is_asked_for_in_one_way(model: Any) -> None:
    for privacy in ({"batch": 2, "steps": 2}, {**NOISE, "epsilon": 3}):
        with pytest.raises(ConfigError, match="'epsilon' or 'noise_multiplier'"):
            train(model, privacy=privacy)


def test_the_shape_of_outputs(tmp_path: Path) -> None:
    assert {name: out.label for name, out in DpGenerator.outputs.items()} == {"weights": "release", "curve": "join"}
    assert DpGenerator.trains

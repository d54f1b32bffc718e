# SPDX-License-Identifier: Apache-2.0
"""The task trainer, on random models of a few thousand parameters: learning, mixing, smoothing, resume, weights, errors."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components import task_trainer
from osmotic.components.evaluator import Evaluator, EvaluatorConfig
from osmotic.components.task_trainer import TaskTrainer, TaskTrainerConfig
from osmotic.components.training.engines import trained
from osmotic.components.training.heads import HeadModel, classifier
from osmotic.components.training.mixing import PoolFeed, ShareFeed
from osmotic.plugins.contract import Generation, Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import ComponentError, ConfigError, OsmoticError
from osmotic.schemas.records import FieldSpec, RecordSchema, numbered

LABELS = ("bad", "fine", "good")
SCHEMA = RecordSchema(fields={"label": FieldSpec(domain=LABELS), "text": FieldSpec(text=True)})
SIGNS = ("w1", "w2", "w3")
SETTINGS: dict[str, Any] = {"model": "slm", "prompt": "{{ text }} w39", "steps": 30, "batch": 12, "learning_rate": 0.01}
ONE, TWO = {"seed": 0}, {"seed": 7}


def rows(count: int, seed: int = 0) -> Records:
    """The label is told by one word among many."""
    rng = np.random.Generator(np.random.PCG64(seed))
    found = []
    for i in range(count):
        words = [f"w{n}" for n in rng.integers(5, 38, size=int(rng.integers(2, 9)))]
        words[int(rng.integers(len(words)))] = SIGNS[i % 3]
        found.append({"id": f"r{seed}-{i}", "label": LABELS[i % 3], "text": " ".join(words)})
    return Records(found)


RECORDS, MADE, EXAM = rows(60), rows(45, 1), rows(90, 2)


def save_model(folder: Path, family: str = "llama") -> Path:
    """A random model of a few thousand parameters, one token a word."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<unk>", "<eos>", *(f"w{i}" for i in range(40))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    ends: dict[str, Any] = {"vocab_size": len(words), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = {
        "llama": lambda: hf.LlamaForCausalLM(
            hf.LlamaConfig(max_position_embeddings=128, initializer_range=0.2, **sizes, **ends)
        ),
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=128, **ends)),
        "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **ends)),
        "t5": lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=len(words), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
        ),
    }
    torch.manual_seed(0)
    made[family]().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("slm"))


@pytest.fixture(scope="module")
def slm(folder):
    return TransformersModel(TransformersConfig(path=str(folder))).build()


def context_of(model, **more) -> FakeContext:
    return FakeContext(models={"slm": model}, record_schema=SCHEMA, **more)


def train(model, records=RECORDS, augmented=None, init=None, context=None, **changes):
    context = context or context_of(model)
    return TaskTrainer(TaskTrainerConfig(**SETTINGS | changes)).run(context, records, augmented, init)


def exam(model, weights, records=EXAM, **changes):
    settings = {"model": "slm", "label_prompt": SETTINGS["prompt"], "label_target": "{{ label }}", "modes": ("head",)}
    return Evaluator(EvaluatorConfig(**settings | changes)).run(context_of(model), records, weights)


@pytest.fixture(scope="module")
def good(slm):
    return train(slm, steps=60)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_head_learns_what_chance_does_not_know(slm, pooling):
    out = train(slm, steps=60, pooling=pooling)
    metrics = exam(slm, out["weights"])["metrics"]
    assert metrics.values["accuracy_head"] > 0.8  # chance is 1/3; 90 records: 0.8 is 9 standard errors above it
    assert out["curve"].data["own"][0] == pytest.approx(math.log(3), abs=1e-5)  # the head starts at zero
    assert out["curve"].data["own"][-1] < 0.3


def test_what_comes_out(slm, good):
    weights = good["weights"]
    head = {"labels": list(LABELS), "pooling": "last", "max_length": 128, "truncate": "left", "prompt": SETTINGS["prompt"]}
    assert weights.meta == {"base": slm.fingerprint, "layout": "full", "steps": 60, "head": head}
    names = trained(slm.trainable()[0]).keys()
    assert weights.tensors.keys() == {n for n in names if n != "lm_head.weight"} | {"head.weight", "head.bias"}
    assert good["curve"].data.keys() == {"step", "loss", "own", "rate", "norm", "notes"} and good["curve"].data["notes"] == []


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_gradients_reach_head_and_body_alike_packed_padded_and_one_by_one(slm, packing, pooling):
    import torch

    from osmotic.components.training.losses import loss_of, share
    from osmotic.components.training.parts import Step

    step = Step({"own": [([3, 4, 5, 6, 7], [0]), ([8, 9], [2]), ([10, 11, 12], [1])]})
    found = []
    for way, parts in ((packing, 1), ("padded", 3)):
        module, kind = classifier(slm.trainable()[0].eval(), 3, pooling, way)
        torch.nn.init.normal_(module.head.weight, generator=torch.Generator().manual_seed(1))
        for micro in share(step, {"own": 1.0}, parts):
            loss_of(module, micro, kind)[0].backward()
        found.append({name: p.grad for name, p in module.named_parameters()})
    assert all(grad is not None and float(grad.abs().max()) > 0 for grad in found[0].values())
    for name, grad in found[0].items():
        torch.testing.assert_close(grad, found[1][name], atol=2e-5, rtol=1e-4)


def test_states_are_those_of_the_language_model(slm, good):
    """Logits by hand: the model's own hidden state at the last token of a text, times the head."""
    import torch

    text = "w1 w20 w30 w39"
    model = HeadModel.of(slm, good["weights"])
    body = {n: t for n, t in good["weights"].tensors.items() if not n.startswith("head.")}
    head = {n: torch.from_numpy(t).double() for n, t in good["weights"].tensors.items() if n.startswith("head.")}
    module, tokenizer = slm.trainable()
    module.eval().load_state_dict({n: torch.from_numpy(t) for n, t in body.items()}, strict=False)
    with torch.no_grad():
        states = module(torch.tensor([tokenizer(text)["input_ids"]]), output_hidden_states=True).hidden_states[-1][0, -1]
    wanted = (head["head.weight"] @ states.double() + head["head.bias"]).log_softmax(0)
    np.testing.assert_allclose(model.log_probabilities([text, "w5 " * 40])[0], wanted.numpy(), atol=1e-5)


def equal(one, two) -> bool:
    a, b = one["weights"].tensors, two["weights"].tensors
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a)


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(slm):
    one = train(slm, augmented=MADE, steps=4)
    assert equal(one, train(slm, augmented=MADE, steps=4))
    assert not equal(one, train(slm, augmented=MADE, steps=4, context=context_of(slm, seed=1)))


@pytest.mark.parametrize("mixing", ["examples", "share"])
@pytest.mark.parametrize("mode", ["head", "generation"])
def test_a_training_that_was_cut_off_goes_on_exactly(slm, monkeypatch, mixing, mode):
    monkeypatch.setattr(task_trainer, "CHECKPOINT_SECONDS", 0.0)
    changes = {"augmented": MADE, "mixing": mixing, "mode": mode, "steps": 7, "held_out": {"every": 2}}
    whole, context = train(slm, **changes), context_of(slm)

    def cut(done: int, total: int, note: str = "") -> None:
        if done == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(context, "progress", cut)
    with pytest.raises(KeyboardInterrupt):
        train(slm, context=context, **changes)
    monkeypatch.undo()
    again = train(slm, context=context, **changes)
    assert equal(whole, again) and again["curve"].data == whole["curve"].data
    assert context.log[0][0] == 4  # it did not begin anew: the step that was cut off is done again


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_label_smoothing_is_what_it_says(slm, good, smoothing):
    """By hand, over a trained model: (1 - s) * -log p(label) + s * mean over all labels of -log p."""
    out = train(slm, init=good["weights"], steps=1, batch=60, label_smoothing=smoothing, packing="padded")
    told = HeadModel.of(slm, good["weights"]).log_probabilities([f"{r['text']} w39" for r in RECORDS])
    own = told[np.arange(60), [LABELS.index(r["label"]) for r in RECORDS]]
    wanted = -((1 - smoothing) * own + smoothing * told.mean(1)).mean()
    assert out["curve"].data["loss"][0] == pytest.approx(wanted, abs=1e-5)


def test_weights_of_the_sources_are_what_they_say(slm, good):
    """One step over everything: the weighted mean over all examples, by hand."""
    out = train(slm, augmented=MADE, init=good["weights"], steps=1, batch=105, own_weight=3.0, augmented_weight=0.5)
    model = HeadModel.of(slm, good["weights"])
    means, total = [], []
    for records, weight in ((RECORDS, 3.0), (MADE, 0.5)):
        told = model.log_probabilities([f"{r['text']} w39" for r in records])
        losses = -told[np.arange(len(records)), [LABELS.index(r["label"]) for r in records]]
        means.append(losses.mean())
        total += [(weight, loss) for loss in losses]
    curve = out["curve"].data
    assert curve["own"][0] == pytest.approx(means[0], rel=1e-4) and curve["augmented"][0] == pytest.approx(means[1], rel=1e-4)
    wanted = sum(w * loss for w, loss in total) / sum(w for w, _ in total)
    assert curve["loss"][0] == pytest.approx(wanted, rel=1e-4)


def test_a_pool_takes_every_example_equally_often_and_a_share_is_kept():
    import random

    sources = {"own": [([i], [0]) for i in range(4)], "augmented": [([100 + i], [0]) for i in range(20)]}
    pool, counts = PoolFeed(sources, 6, random.Random(0)), dict[int, int]()
    for _ in range(8):
        for examples in pool.take().examples.values():
            for head, _ in examples:
                counts[head[0]] = counts.get(head[0], 0) + 1
    assert set(counts.values()) == {2} and len(counts) == 24
    share = ShareFeed(sources, 6, 0.25, {name: random.Random(1) for name in sources})
    sizes = [len(share.take().examples["own"]) for _ in range(8)]
    assert sum(sizes) == 12 and set(sizes) == {1, 2}  # 1.5 a step
    state = share.state()
    after = [share.take().examples for _ in range(3)]
    again = ShareFeed(sources, 6, 0.25, {name: random.Random(5) for name in sources})
    again.restore(state)
    assert [again.take().examples for _ in range(3)] == after


def test_a_weight_of_zero_leaves_a_source_out(slm):
    assert equal(train(slm, steps=2), train(slm, augmented=MADE, augmented_weight=0, steps=2))
    with pytest.raises(ComponentError, match="nothing to learn from"):
        train(slm, own_weight=0)


def test_augmented_alone_and_what_is_held_out(slm):
    alone = train(slm, None, MADE, steps=4, held_out={"every": 2, "share": 0.2})
    assert {"augmented", "held_out"} <= alone["curve"].data.keys() and "own" not in alone["curve"].data
    assert alone["curve"].data["held_out"]["step"] == [2, 4] and "augmented" in alone["curve"].data["held_out"]
    both = train(slm, RECORDS, MADE, steps=4, held_out={"every": 2, "share": 0.2})
    assert "own" in both["curve"].data["held_out"] and "augmented" not in both["curve"].data["held_out"]


def test_labels_that_are_not_on_the_list_are_left_out_and_counted(slm):
    odd = Records(
        [*MADE.rows, *({"id": f"x{i}", "label": word, "text": "w4 w5"} for i, word in enumerate(("bad.", "", "BAD")))]
    )
    out = train(slm, augmented=odd, steps=4)
    assert out["curve"].data["notes"] == ["3 augmented records have a label that is not on the list: left out"]
    assert equal(out, train(slm, augmented=MADE, steps=4))


def test_one_label_alone_is_noted_and_texts_without_tokens_are_left_out(slm):
    one = Records([row for row in RECORDS if row["label"] == "bad"] + [{"id": "e", "label": "bad", "text": ""}])
    notes = train(slm, one, steps=2, prompt="{{ text }}")["curve"].data["notes"]
    assert "only one of 3 labels occurs: there is nothing to tell apart" in notes
    assert "1 own records have a text without tokens: left out" in notes


def test_labels_that_are_numbers_or_very_long(slm):
    labels = ("1", "2", "x" * 300)
    records = Records([{**row, "label": (1, 2, "x" * 300)[LABELS.index(row["label"])]} for row in RECORDS])
    weights = train(slm, records, labels=labels, steps=60)["weights"]
    values = exam(slm, weights, Records([{**row, "label": labels[LABELS.index(row["label"])]} for row in EXAM]))[
        "metrics"
    ].values
    assert weights.meta["head"]["labels"] == list(labels) and values["accuracy_head"] > 0.8


def test_tokens_that_the_model_does_not_have_are_left_out(tmp_path):
    from transformers import AutoTokenizer

    folder = save_model(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<more>"]})
    tokenizer.save_pretrained(folder)
    model = TransformersModel(TransformersConfig(path=str(folder))).build()
    odd = Records([{**row, "text": f"<more> {row['text']}"} for row in RECORDS])
    one, two = (train(model, records, steps=2)["weights"] for records in (odd, RECORDS))
    assert all(np.array_equal(one.tensors[name], two.tensors[name]) for name in two.tensors)
    one, two = (train(model, records, steps=2, mode="generation", target="{{ text }}") for records in (odd, RECORDS))
    assert one["curve"].data["loss"] == two["curve"].data["loss"]
    two = train(model, steps=2)["weights"]
    found = [HeadModel.of(model, two).log_probabilities(texts) for texts in (["w1 <more> w2"], ["w1 w2"])]
    assert np.array_equal(*found)


def test_a_checkpoint_is_of_its_labels(slm, monkeypatch):
    keys = []

    def seen(*given, **more):
        keys.append(given[4])
        raise KeyboardInterrupt

    monkeypatch.setattr(task_trainer.loop, "train", seen)
    for domain in (LABELS, LABELS[::-1]):
        schema = RecordSchema(fields={"label": FieldSpec(domain=domain), "text": FieldSpec(text=True)})
        with pytest.raises(KeyboardInterrupt):
            train(slm, context=FakeContext(models={"slm": slm}, record_schema=schema))
    assert keys[0] != keys[1]


@pytest.mark.parametrize("key", ["own_weight", "augmented_weight"])
def test_weights_are_numbers(key):
    with pytest.raises(ValueError, match="finite number"):
        TaskTrainerConfig(**SETTINGS | {key: math.inf})


def test_long_texts_keep_their_cue(slm):
    long = Records([{**row, "text": "w20 " * 300 + row["text"]} for row in RECORDS])
    out = train(slm, long, steps=40, max_length=16)
    assert out["curve"].data["notes"] == ["60 prompts of own records were too long and lost their beginning"]
    assert HeadModel.of(slm, out["weights"]).encoder.texts(["w20 " * 300 + "w39"], 1)[0][0][-1] == 3 + 39


def test_generation_writes_the_label(slm):
    out = train(slm, augmented=MADE, mode="generation", steps=80, label_smoothing=0.05)
    assert out["weights"].meta == {"base": slm.fingerprint, "layout": "full", "steps": 80}
    answers = slm.with_weights(out["weights"]).generate([f"{r['text']} w39" for r in EXAM], Generation(max_new_tokens=4))
    assert all(answer.finished for answer in answers)


def test_smoothing_of_written_targets_by_hand(slm):
    import torch

    out = train(slm, mode="generation", target="w7 w8", steps=1, batch=60, label_smoothing=0.3)
    module, tokenizer = slm.trainable()
    losses = []
    for row in RECORDS:
        head = tokenizer(f"{row['text']} w39")["input_ids"]
        with torch.no_grad():
            logits = module.eval()(torch.tensor([[*head, 10, 11]])).logits[0, len(head) - 1 :].double()
        table = logits.log_softmax(-1)
        losses += [-(0.7 * table[i, t] + 0.3 * table[i].mean()) for i, t in enumerate((10, 11, 2))]
    assert out["curve"].data["loss"][0] == pytest.approx(float(sum(losses)) / len(losses), rel=1e-4)


def test_start_from_a_language_model_and_from_a_classifier(slm, good):
    written = train(slm, mode="generation", steps=2)["weights"]
    assert equal(train(slm, steps=2, init=written), train(slm, steps=2, init=written))
    assert not equal(train(slm, steps=2), train(slm, steps=2, init=written))
    further = train(slm, steps=1, init=good["weights"])
    assert further["curve"].data["own"][0] < 0.5
    with pytest.raises(ComponentError, match="other labels"):
        train(slm, init=good["weights"], labels=("good", "fine", "bad"))
    with pytest.raises(ComponentError, match="another model"):
        train(slm, init=Weights(good["weights"].tensors, {**good["weights"].meta, "base": "0"}))
    with pytest.raises(ComponentError, match="does not fit"):
        train(slm, init=Weights({**written.tensors, "more": np.zeros(1, np.float32)}, written.meta))


def test_adapters(folder):
    model = TransformersModel(
        TransformersConfig(path=str(folder), lora={"rank": 4, "target_modules": ("q_proj", "v_proj")})
    ).build()
    out = train(model, steps=60, learning_rate=0.03)
    assert out["weights"].meta["layout"] == "lora" and all(
        "lora_" in n or n.startswith("head.") for n in out["weights"].tensors
    )
    assert exam(model, out["weights"])["metrics"].values["accuracy_head"] > 0.6


INSTRUCTIONS = RecordSchema(fields={"instruction": FieldSpec(text=True), "response": FieldSpec(text=True)})
WRITTEN: dict[str, Any] = {"mode": "generation", "prompt": "w39 {{ instruction }} w38", "target": "{{ response }}"}


def instructions(count: int, seed: int = 0, made: bool = False) -> Records:
    """The response is the instruction's first word, twice; rows that a model made have numbers for ids."""
    found = []
    for i, row in enumerate(rows(count, seed)):
        first = row["text"].split()[0]
        identity = numbered(i) if made else f"i{seed}-{i}"
        found.append({"id": identity, "instruction": row["text"], "response": f"{first} {first}"})
    return Records(found)


def test_instructions_and_responses_need_no_label(slm):
    def context() -> FakeContext:
        return FakeContext(models={"slm": slm}, record_schema=INSTRUCTIONS)

    assert TaskTrainer.check(TaskTrainerConfig(**SETTINGS | WRITTEN), INSTRUCTIONS) == []
    own, made = instructions(30), instructions(30, 1, made=True)
    both = train(slm, own, made, context=context(), **WRITTEN, declare_examples=True)
    assert both["weights"].meta["examples"] == 60 and both["curve"].data["notes"] == []
    alone = train(slm, None, made, context=context(), **WRITTEN, steps=5)
    assert equal(alone, train(slm, None, made, context=FakeContext(models={"slm": slm}), **WRITTEN, steps=5))  # of no data set
    assert alone["curve"].data.keys() >= {"augmented"} and "own" not in alone["curve"].data
    more = Records([{**row, "label": "bad", "source": 3} for row in made])  # what the templates do not name changes nothing
    assert equal(alone, train(slm, None, more, context=context(), **WRITTEN, steps=5))
    again = train(slm, own, context=context(), init=both["weights"], **WRITTEN, steps=1)
    assert again["curve"].data["own"][0] < train(slm, own, context=context(), **WRITTEN, steps=1)["curve"].data["own"][0] / 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "head", "target": None}, "no field 'label'"),
        ({"target": None}, "give 'target', and no 'labels'"),
        ({"labels": ("a", "b")}, "no field 'label'"),
        ({"target": "{{ answer }}"}, "target: unknown slot"),
    ],
)
def test_where_a_label_is_needed_it_is_missed(changes, message):
    assert any(message in text for text in TaskTrainer.check(TaskTrainerConfig(**SETTINGS | WRITTEN | changes), INSTRUCTIONS))


def test_rows_without_what_the_templates_name_are_told(slm):
    with pytest.raises(ComponentError, match="augmented records lack 'response'"):
        made = Records([{"id": numbered(0), "instruction": "w4"}])
        train(slm, None, made, context=FakeContext(models={"slm": slm}, record_schema=INSTRUCTIONS), **WRITTEN)


def test_adapters_whose_a_is_frozen_train_b_alone(folder):
    lora = {"rank": 4, "target_modules": ("q_proj", "v_proj")}
    frozen, usual = (
        TransformersModel(TransformersConfig(path=str(folder), lora={**lora, **more})).build()
        for more in ({"freeze_a": True}, {})
    )
    for changes in ({}, {"mode": "generation"}):
        out = train(frozen, steps=60, learning_rate=0.05, **changes)["weights"]
        bodies = [name for name in out.tensors if not name.startswith("head.")]
        assert bodies and all("lora_B" in name for name in bodies) and len(out.meta["frozen"]) == 64
        assert train(frozen, steps=1, init=out, **changes)["weights"].meta["frozen"] == out.meta["frozen"]
        moved = Weights(out.tensors, {**out.meta, "frozen": "0" * 64})
        with pytest.raises(ComponentError, match="another A"):
            train(frozen, steps=1, init=moved, **changes)
        with pytest.raises(ComponentError, match="another model"):
            train(usual, steps=1, init=out, **changes)
    head = train(frozen, steps=60, learning_rate=0.05)["weights"]
    assert exam(frozen, head)["metrics"].values["accuracy_head"] > 0.6
    with pytest.raises(ComponentError, match="another A"):
        exam(frozen, Weights(head.tensors, {**head.meta, "frozen": "0" * 64}))


@pytest.mark.parametrize("family", ["gpt2", "bloom"])
def test_other_families(tmp_path, family):
    model = TransformersModel(TransformersConfig(path=str(save_model(tmp_path, family)))).build()
    out = train(model, steps=40)
    assert exam(model, out["weights"])["metrics"].values["accuracy_head"] > 0.6


def test_deepspeed_gives_the_same(slm):
    pytest.importorskip("deepspeed")
    one = train(slm, steps=3)
    two = train(slm, steps=3, engine="deepspeed", deepspeed={"stage": 1})
    for name, tensor in one["weights"].tensors.items():
        np.testing.assert_allclose(tensor, two["weights"].tensors[name], atol=1e-5)


def test_conformance(slm):
    check_component(TaskTrainer, {**SETTINGS, "steps": 2}, {"records": RECORDS, "augmented": MADE}, lambda: context_of(slm))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "{{ story }}"}, "prompt: unknown slot"),
        ({"target": "{{ label }}"}, "'generation' only"),
        ({"processes": 2}, "one process"),
        ({"own_weight": 0, "augmented_weight": 0}, "must be more than 0"),
        ({"labels": ("a",)}, "two or more"),
        ({"label_field": "text"}, "has no domain"),
        ({"label_field": "stars"}, "no field 'stars'"),
        ({"deepspeed": {"stage": 1}}, "engine: deepspeed"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(changes, message):
    assert any(message in text for text in TaskTrainer.check(TaskTrainerConfig(**SETTINGS | changes), SCHEMA))


def test_what_cannot_be_trained(slm, tmp_path):
    with pytest.raises(ComponentError, match="nothing to learn from"):
        train(slm, None)
    with pytest.raises(ComponentError, match="nothing to learn from"):
        train(slm, Records([], ["id", "label", "text"]))
    with pytest.raises(ComponentError, match="augmented records lack 'text'"):
        train(slm, augmented=Records([{"id": "n0000000", "label": "bad"}]))
    with pytest.raises(ConfigError, match="two labels or more"):
        train(slm, label_field="text")
    with pytest.raises(ComponentError, match="cannot be trained"):
        train(object())
    t5 = TransformersModel(TransformersConfig(path=str(save_model(tmp_path, "t5")))).build()
    with pytest.raises(OsmoticError, match="cannot be given a head"):
        train(t5)


def test_the_evaluator_reads_a_heads_answers(slm, good):
    out = exam(slm, good["weights"], metrics=("accuracy", "macro_f1"))
    values, confusion = out["metrics"].values, out["confusion"].data["head"]
    assert values.keys() == {"accuracy_head", "macro_f1_head", "unparsed_head", "records"} and values["unparsed_head"] == 0
    assert confusion["labels"] == list(LABELS) and sum(map(sum, confusion["counts"])) == 90
    assert sum(confusion["counts"][i][i] for i in range(3)) == round(90 * values["accuracy_head"])
    assert out["metrics"].outcomes["accuracy_head"] == exam(slm, good["weights"], batch=7)["metrics"].outcomes["accuracy_head"]
    odd = exam(slm, good["weights"], label_prompt="{{ text }}")["metrics"].notes
    assert odd == {"head": "asked with another prompt than it was trained on"}


def test_labels_that_read_alike_are_said_to_be_one(slm):
    records = Records([{"id": f"{i}", "label": ("A", "a")[i % 2], "text": "w1"} for i in range(4)])
    made = train(slm, records, steps=1, labels=("A", "a"))["weights"]
    found = exam(slm, made, records)["metrics"]
    assert found.values["accuracy_head"] == 1 and "taken for one" in found.notes["labels"]


def test_batches_change_no_answer_and_an_empty_text_is_named_by_its_place(slm, good):
    one, many = (exam(slm, good["weights"], batch=batch)["metrics"].outcomes for batch in (1, 64))
    assert one == many
    odd = Records([*EXAM.rows, {"id": "odd", "label": "good", "text": ""}])
    with pytest.raises(ComponentError, match="record 91 has no tokens"):
        exam(slm, good["weights"], odd, label_prompt="{{ text }}", batch=16)


def test_the_evaluator_says_what_has_no_head(slm, good):
    written = train(slm, mode="generation", steps=1)["weights"]
    with pytest.raises(ComponentError, match="the weights have no head of classes"):
        exam(slm, written)
    with pytest.raises(ComponentError, match="no weights with a head"):
        exam(slm, None)
    with pytest.raises(ComponentError, match="name a class by a head, and write nothing"):
        exam(slm, good["weights"], modes=("label",))
    with pytest.raises(ComponentError, match="belong to another model"):
        exam(slm, Weights(good["weights"].tensors, {**good["weights"].meta, "base": "0"}))
    with pytest.raises(ComponentError, match="damaged"):
        exam(slm, Weights(good["weights"].tensors, {**good["weights"].meta, "head": {"labels": ["a", "b"]}}))
    found = Evaluator.check(
        EvaluatorConfig(
            model="slm", label_prompt="{{ text }}", label_target="{{ label }}", modes=("head", "label"), metrics=("perplexity",)
        ),
        SCHEMA,
    )
    assert len(found) == 2


def test_heads_are_averaged_only_over_the_same_labels(slm, good):
    from osmotic.components.aggregator import Aggregator
    from osmotic.plugins.contract import Gathered, config_type

    other = train(slm, labels=("good", "fine", "bad"), steps=2)["weights"]
    models = Gathered({"a": lambda: good["weights"], "b": lambda: train(slm, steps=2)["weights"]})
    out = Aggregator(config_type(Aggregator)()).run(context_of(slm), models)
    mean = next(a for a in out.values() if isinstance(a, Weights))
    assert mean.meta["head"]["labels"] == list(LABELS)
    assert exam(slm, mean)["metrics"].values["records"] == 90
    with pytest.raises(ComponentError, match="another head"):
        Aggregator(config_type(Aggregator)()).run(context_of(slm), Gathered({"a": lambda: good["weights"], "b": lambda: other}))

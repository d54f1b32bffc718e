# SPDX-License-Identifier: Apache-2.0
"""The student's trainer, on random Llamas of a few thousand parameters: loss, steps, arms, resume, engines, errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components import student_trainer
from osmotic.components.training.batches import Encoder, Order, task_loss
from osmotic.components.training.engines import trained
from osmotic.components.student_trainer import StudentTrainer, StudentTrainerConfig, rate
from osmotic.plugins.contract import Generation, Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import ComponentError
from osmotic.schemas.records import FieldSpec, RecordSchema

NAMES, SIGNS, WARDS = ("ann", "bob", "cid", "dot"), ("cough", "rash", "ache"), ("lungs", "skin", "joints")
SCHEMA = RecordSchema(
    fields={"name": FieldSpec(domain=NAMES), "sign": FieldSpec(domain=SIGNS), "ward": FieldSpec(domain=WARDS)}
)
RECORDS = Records([{"id": f"r{i}", "name": NAMES[i % 4], "sign": SIGNS[i % 3], "ward": WARDS[i % 3]} for i in range(12)])
TOLD = Records([{"id": r["id"], "rationale": f"{r['sign']} goes to {r['ward']}"} for r in RECORDS][:8])
SETTINGS: dict[str, Any] = {
    "model": "student",
    "label_prompt": "patient {{ name }} has {{ sign }} predict:",
    "label_target": "{{ ward }}",
    "rationale_prompt": "patient {{ name }} has {{ sign }} explain:",
    "batch": 6,
    "steps": 6,
    "learning_rate": 0.01,
}


def save_pico(folder: Path) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<eos>", "patient", "has", "predict:", "explain:", "goes", "to", *NAMES, *SIGNS, *WARDS]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    wrapped.save_pretrained(folder)  # pad == eos on purpose
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, attention_dropout=0.1, bos_token_id=None, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="module")
def model(folder: Path):
    return TransformersModel(TransformersConfig(path=str(folder))).build()


def train(model, rationales: Records | None = TOLD, context: FakeContext | None = None, init=None, records=RECORDS, **changes):
    context = context or FakeContext(models={"student": model}, record_schema=SCHEMA)
    return StudentTrainer(StudentTrainerConfig(**SETTINGS | changes)).run(context, records, rationales, init)


def tensors(outputs) -> dict[str, np.ndarray]:
    return outputs["weights"].tensors


def equal(one, two) -> bool:
    return tensors(one).keys() == tensors(two).keys() and all(
        np.array_equal(tensors(one)[name], tensors(two)[name]) for name in tensors(one)
    )


def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(model):
    assert equal(train(model), train(model))
    other = FakeContext(models={"student": model}, record_schema=SCHEMA, seed=1)
    assert not equal(train(model), train(model, context=other))


def test_what_comes_out(model):
    out = train(model)
    assert out["weights"].meta == {"base": model.fingerprint, "layout": "full", "steps": 6}
    assert tensors(out).keys() == trained(model.trainable()[0]).keys()
    assert out["curve"].data["step"] == [1, 2, 3, 4, 5, 6]
    assert out["curve"].data.keys() == {"step", "loss", "label", "rationale"}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 4.0), (3.0, 0.25)])
def test_the_loss_is_linear_in_the_weights(model, weights):
    first = train(model, steps=1, label_weight=weights[0], rationale_weight=weights[1])["curve"].data
    wanted = weights[0] * first["label"][0] + weights[1] * first["rationale"][0]
    unit = train(model, steps=1)["curve"].data
    assert first["loss"][0] == pytest.approx(wanted, rel=1e-6)
    assert (first["label"], first["rationale"]) == (unit["label"], unit["rationale"])


def test_no_rationale_weight_equals_labels_only(model):
    labels = train(model, rationales=None)
    assert equal(labels, train(model, rationale_weight=0.0))
    assert equal(labels, train(model, rationales=Records([])))
    assert not equal(labels, train(model))


def test_no_label_weight_learns_nothing_from_labels(model):
    swapped = Records([{**row, "ward": WARDS[0]} for row in RECORDS])
    assert equal(train(model, label_weight=0.0), train(model, label_weight=0.0, records=swapped))
    assert not equal(train(model), train(model, records=swapped))


def test_arms_see_the_same_label_batches(model):
    redraw = {"fields": ["name"], "probability": 0.8}
    few = train(model, rationales=Records(TOLD.rows[:2]), steps=1, redraw=redraw)["curve"].data
    many = train(model, steps=1, redraw=redraw)["curve"].data
    none = train(model, rationales=None, steps=1, redraw=redraw)["curve"].data
    assert few["label"] == many["label"] == none["label"]
    assert few["rationale"] != many["rationale"]


def test_one_step_equals_one_by_hand(model):
    """AdamW's first step, written out: theta - lr * (decay * theta + g / (|g| + 1e-8))."""
    import torch

    module, tokenizer = model.trainable()
    encoder = Encoder(model.encode_prompts, tokenizer, 64)
    labels = [("patient ann has cough predict:", "lungs")]
    told = [("patient ann has cough explain:", "cough goes to lungs")]
    with torch.random.fork_rng(devices=[]):  # the same dropout
        torch.manual_seed(FakeContext().rng("torch").getrandbits(63))
        losses = [task_loss(module, encoder.pairs(*map(list, zip(*task, strict=True)), keep=True)) for task in (labels, told)]
    (losses[0] + 4.0 * losses[1]).backward()
    one = Records(RECORDS.rows[:1])
    out = train(
        model, Records(TOLD.rows[:1]), records=one, steps=1, batch=1, rationale_weight=4.0, weight_decay=0.1, learning_rate=0.01
    )
    for name, parameter in module.named_parameters():
        gradient, value = parameter.grad, parameter.detach()
        decay = 0.1 if parameter.ndim > 1 else 0.0
        wanted = value - 0.01 * decay * value - 0.01 * gradient / (gradient.abs() + 1e-8)
        steady = gradient.abs() > 1e-6  # elsewhere one rounding of the gradient decides the direction
        got = torch.from_numpy(tensors(out)[name])
        assert torch.allclose(got[steady], wanted[steady], atol=2e-6), name
        still = gradient == 0
        assert torch.allclose(got[still], (value * (1 - 0.01 * decay))[still], atol=1e-7), name


def test_the_loss_is_the_mean_over_target_tokens_and_padding_carries_none(model):
    import torch

    module = model.trainable()[0].eval()
    examples = [([2, 8, 3, 12, 4], [15, 1]), ([2, 4], [12, 6, 7, 15, 1]), ([9, 8, 3], [1])]
    total, count = 0.0, 0
    with torch.no_grad():
        for head, tail in examples:
            table = module(input_ids=torch.tensor([head + tail])).logits[0].log_softmax(-1)
            total -= sum(float(table[len(head) - 1 + i, token]) for i, token in enumerate(tail))
            count += len(tail)
        assert float(task_loss(module, examples)) == pytest.approx(total / count, rel=1e-5)


def test_targets_end_with_eos_and_prompts_lose_their_beginning(model):
    _, tokenizer = model.trainable()
    encoder = Encoder(model.encode_prompts, tokenizer, 16)
    long = " ".join(["patient"] * 40 + ["has", "cough", "predict:"])
    head, tail = encoder.pairs([long], ["cough goes to lungs"], keep=False)[0]
    assert tail[-1] == tokenizer.eos_token_id and len(tail) == 5
    assert len(head) == 11 and tokenizer.decode(head).endswith("has cough predict:")
    with pytest.raises(ComponentError, match="too long"):
        encoder.target(" ".join(["cough"] * 9))


def test_overfits_and_stops(model):
    out = train(model, steps=220, learning_rate=0.02, batch=12, weight_decay=0.0)
    assert out["curve"].data["label"][-1] < 0.02 and out["curve"].data["rationale"][-1] < 0.02
    ready = model.with_weights(out["weights"])
    how = Generation(max_new_tokens=12)
    labels = ready.generate([f"patient {r['name']} has {r['sign']} predict:" for r in RECORDS], how)
    assert [answer.text for answer in labels] == [r["ward"] for r in RECORDS]
    told = ready.generate([f"patient {r['name']} has {r['sign']} explain:" for r in RECORDS][:8], how)
    assert [answer.text for answer in told] == [r["rationale"] for r in TOLD]
    assert all(answer.finished for answer in labels + told)


class Killed(FakeContext):
    """Dies at a step, once; progress is reported every five."""

    dies_at = 0

    def progress(self, done: int, total: int, note: str = "") -> None:
        super().progress(done, total, note)
        if done == self.dies_at:
            self.dies_at = 0
            raise KeyboardInterrupt


@pytest.mark.parametrize("engine", ["torch", pytest.param("deepspeed", marks=pytest.mark.slow)])
def test_resumes_with_equal_bits(model, monkeypatch, engine):
    if engine == "deepspeed":
        pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    changes = {"steps": 13, "schedule": "cosine", "redraw": {"fields": ["name"]}, "engine": engine}
    whole = train(model, **changes)
    monkeypatch.setattr(student_trainer, "CHECKPOINT_SECONDS", 0.0)
    context = Killed(models={"student": model}, record_schema=SCHEMA)
    context.dies_at = 10
    with pytest.raises(KeyboardInterrupt):
        train(model, context=context, **changes)
    kept = [path.name for path in context.scratch().iterdir()]
    assert kept == ["step-00000010"]
    assert sorted(p.suffix for p in (context.scratch() / kept[0]).iterdir()) == [".json", ".safetensors"]
    done = len(context.log)
    resumed = train(model, context=context, **changes)
    assert equal(whole, resumed) and resumed["curve"].data == whole["curve"].data
    assert [entry[0] for entry in context.log[done:]] == [13]


def test_a_checkpoint_of_something_else_is_not_used(model, monkeypatch):
    monkeypatch.setattr(student_trainer, "CHECKPOINT_SECONDS", 0.0)
    context = FakeContext(models={"student": model}, record_schema=SCHEMA)
    train(model, context=context)
    changed = Records([{**row, "ward": WARDS[0]} for row in RECORDS])
    assert equal(train(model, context=context, records=changed), train(model, records=changed))
    for path in context.scratch().glob("step-*/tensors.safetensors"):
        path.write_bytes(b"torn")
    assert equal(train(model, context=context), train(model))


def test_starts_from_init(model):
    first = train(model, steps=3)
    again = train(model, init=first["weights"], steps=1)
    direct = train(model.with_weights(first["weights"]), steps=1)
    assert equal(again, direct) and not equal(again, train(model, steps=1))
    with pytest.raises(ComponentError, match="another model"):
        train(model, init=Weights(tensors(first), {"base": "0" * 64}))
    with pytest.raises(ComponentError, match="does not fit"):
        train(model, init=Weights({"x": np.zeros(1, "float32")}, {"base": model.fingerprint}))


def test_adapters_only(folder):
    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]}
    adapted = TransformersModel(TransformersConfig(path=str(folder), lora=lora)).build()
    out = train(adapted)
    assert out["weights"].meta["layout"] == "lora" and all("lora_" in name for name in tensors(out))
    again = train(adapted, init=out["weights"], steps=1)
    assert tensors(again).keys() == tensors(out).keys()
    assert len(adapted.with_weights(out["weights"]).generate(["patient ann predict:"], Generation(3))) == 1


def test_shuffled_rationales_go_to_other_records(model):
    context = FakeContext(models={"student": model})
    component = StudentTrainer(StudentTrainerConfig(**SETTINGS, shuffle_rationales=True))
    unique = Records([{"id": row["id"], "rationale": row["id"]} for row in RECORDS])
    joined = component._join(context, RECORDS, unique)
    assert sorted(joined.values()) == sorted(joined) and all(key != value for key, value in joined.items())
    assert not equal(train(model, shuffle_rationales=True), train(model))


def test_redraw_changes_listed_fields_only(model):
    redraw = {"fields": ["name"], "probability": 1.0}
    assert equal(train(model, redraw=redraw), train(model, redraw=redraw))
    assert not equal(train(model, redraw=redraw), train(model))
    same = {"fields": ["name"], "probability": 0.0}
    assert equal(train(model, redraw=same), train(model))


def test_order_visits_every_wanted_record_once_an_epoch():
    order = Order(FakeContext().rng("x"), [i != 3 for i in range(7)])
    seen = order.take(12)
    assert sorted(seen[:6]) == sorted(seen[6:]) == [0, 1, 2, 4, 5, 6]


def test_rates():
    def at(step: int, **changes) -> float:
        return rate(StudentTrainerConfig(**SETTINGS | {"steps": 10, "learning_rate": 1.0, **changes}), step)

    assert [at(i, warmup=4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [at(i, schedule="linear") for i in (0, 5, 9)] == pytest.approx([1.0, 0.5, 0.1])
    assert [at(i, schedule="cosine") for i in (0, 5)] == pytest.approx([1.0, 0.5])


def test_errors(model):
    with pytest.raises(ComponentError, match=r"the loss is (nan|inf) at step \d+"):
        train(model, learning_rate=1e30, steps=20)
    with pytest.raises(ComponentError, match="not there"):
        train(model, Records([{"id": "who", "rationale": "x"}]))
    with pytest.raises(ComponentError, match="twice"):
        train(model, Records([TOLD.rows[0], TOLD.rows[0]]))
    with pytest.raises(ComponentError, match="nothing to learn"):
        train(model, None, label_weight=0.0)
    with pytest.raises(ComponentError, match="cannot be trained"):
        train(object())
    with pytest.raises(ComponentError, match="no tokens"):
        train(model, label_prompt=" ")
    with pytest.raises(ComponentError, match="no domain"):
        train(model, redraw={"fields": ["age"]})


def test_check_finds_wrong_slots_and_fields():
    good = StudentTrainerConfig(**SETTINGS)
    assert not StudentTrainer.check(good, SCHEMA) and not StudentTrainer.check(good, None)
    bad = StudentTrainerConfig(**SETTINGS | {"label_prompt": "{{ sigm }}", "redraw": {"fields": ["nam"]}})
    found = StudentTrainer.check(bad, SCHEMA)
    assert len(found) == 2 and "'sigm'" in found[0] and "'nam'" in found[1]


def test_torch_generator_is_left_alone(model):
    import torch

    before = torch.get_rng_state()
    train(model, steps=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.slow
def test_deepspeed_gives_the_same_as_torch(model, monkeypatch):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    import os

    from torch import distributed

    monkeypatch.setenv("RANK", "kept")
    before = dict(os.environ)
    one, two = train(model, steps=8), train(model, steps=8, engine="deepspeed")
    for name, tensor in tensors(one).items():
        assert np.allclose(tensor, tensors(two)[name], atol=1e-4), name
    assert one["curve"].data["loss"] == pytest.approx(two["curve"].data["loss"], rel=1e-4)
    assert not distributed.is_initialized() and dict(os.environ) == before


def test_fits_the_contract(model):
    check_component(
        StudentTrainer,
        SETTINGS | {"steps": 2},
        {"records": RECORDS, "rationales": TOLD},
        lambda: FakeContext(models={"student": model}, record_schema=SCHEMA),
    )

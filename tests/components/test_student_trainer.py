# SPDX-License-Identifier: Apache-2.0
"""The student's trainer, on random Llamas of a few thousand parameters: loss, steps, arms, resume, engines, errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components import student_trainer
from osmotic.components.student_trainer import StudentTrainer, StudentTrainerConfig
from osmotic.components.training.batches import Encoder
from osmotic.components.training.common import HeldOut, held_out_of
from osmotic.components.training.engines import trained
from osmotic.components.training.loop import seed_step
from osmotic.components.training.losses import kind_of, loss_of, share
from osmotic.components.training.parts import Step
from osmotic.plugins.contract import Generation, Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import ComponentError, OsmoticError
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


def save_pico(folder: Path, kind: str = "llama") -> Path:
    """A random model of a few thousand parameters. llama has dropout in its attention, calm is one without."""
    import torch
    import transformers as t
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<eos>", "patient", "has", "predict:", "explain:", "goes", "to", *NAMES, *SIGNS, *WARDS]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = t.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    wrapped.save_pretrained(folder)  # pad == eos on purpose
    torch.manual_seed(0)
    ends = {"eos_token_id": 1, "pad_token_id": 1}
    if kind == "t5":
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
        config = t.T5Config(vocab_size=len(words), **sizes, **ends, decoder_start_token_id=1)
        t.T5ForConditionalGeneration(config).save_pretrained(folder)
    elif kind == "bart":
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "max_position_embeddings": 64}
        more = {"decoder_start_token_id": 1, "bos_token_id": 1, "forced_eos_token_id": None}
        config = t.BartConfig(vocab_size=len(words), d_model=16, **layers, **heads, **ends, **more)
        t.BartForConditionalGeneration(config).save_pretrained(folder)
    else:
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        more = {"max_position_embeddings": 64, "attention_dropout": 0.1 if kind == "llama" else 0.0, "bos_token_id": None}
        t.LlamaForCausalLM(t.LlamaConfig(vocab_size=len(words), **sizes, **more, **ends)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("pico"))


@pytest.fixture(scope="module")
def model(folder: Path):
    return TransformersModel(TransformersConfig(path=str(folder))).build()


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory):
    return TransformersModel(TransformersConfig(path=str(save_pico(tmp_path_factory.mktemp("calm"), "calm")))).build()


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
    assert out["curve"].data.keys() == {"step", "loss", "label", "rationale", "rate", "norm", "notes"}
    assert out["curve"].data["notes"] == [] and out["curve"].data["rate"] == [0.01] * 6


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 4.0), (3.0, 0.25)])
def test_the_loss_is_linear_in_the_weights(model, weights):
    first = train(model, steps=1, label_weight=weights[0], rationale_weight=weights[1])["curve"].data
    wanted = weights[0] * first["label"][0] + weights[1] * first["rationale"][0]
    unit = train(model, steps=1)["curve"].data
    assert first["loss"][0] == pytest.approx(wanted, rel=1e-6)
    for task in ("label", "rationale"):
        assert first[task] == pytest.approx(unit[task], rel=1e-6)


def test_no_rationale_weight_equals_labels_only(model):
    labels = train(model, rationales=None)
    assert equal(labels, train(model, rationale_weight=0.0))
    assert equal(labels, train(model, rationales=Records([])))
    assert not equal(labels, train(model))


def test_no_label_weight_learns_nothing_from_labels(model):
    swapped = Records([{**row, "ward": WARDS[0]} for row in RECORDS])
    assert equal(train(model, label_weight=0.0), train(model, label_weight=0.0, records=swapped))
    assert not equal(train(model), train(model, records=swapped))


def test_arms_see_the_same_label_batches(calm):
    redraw = {"fields": ["name"], "probability": 0.8}
    few = train(calm, rationales=Records(TOLD.rows[:2]), steps=1, redraw=redraw)["curve"].data
    many = train(calm, steps=1, redraw=redraw)["curve"].data
    none = train(calm, rationales=None, steps=1, redraw=redraw)["curve"].data
    assert few["label"] == pytest.approx(many["label"], rel=1e-6)
    assert none["label"] == pytest.approx(many["label"], rel=1e-6)
    assert few["rationale"] != pytest.approx(many["rationale"], rel=1e-3)


def test_one_step_equals_one_by_hand(model):
    """AdamW's first step, written out: theta - lr * (decay * theta + g / (|g| + 1e-8))."""
    import torch

    module, tokenizer = model.trainable()
    encoder = Encoder(model.encode_prompts, tokenizer, 64)
    labels = encoder.pairs(["patient ann has cough predict:"], ["lungs"], [0])[0]
    told = encoder.pairs(["patient ann has cough explain:"], ["cough goes to lungs"], [0])[0]
    with torch.random.fork_rng(devices=[]):  # the same dropout
        seed_step(FakeContext().rng("torch").getrandbits(63), 0, 0)
        whole = share(Step({"label": labels, "rationale": told}), {"label": 1.0, "rationale": 4.0}, 1)[0]
        loss_of(module, whole, kind_of(module, "packed"))[0].backward()
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


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_overfits_and_stops(calm, packing):
    model = calm
    out = train(model, packing=packing, steps=120, learning_rate=0.02, batch=12, weight_decay=0.0)
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
    assert {path.suffix for path in context.scratch().rglob("*") if path.is_file()} == {".json", ".safetensors"}
    done = len(context.log)
    resumed = train(model, context=context, **changes)
    assert equal(whole, resumed) and resumed["curve"].data == whole["curve"].data
    assert [entry[0] for entry in context.log[done:]] == list(range(10, 14))  # step 10 was not yet written: made again


def test_a_checkpoint_of_something_else_is_not_used(model, monkeypatch):
    monkeypatch.setattr(student_trainer, "CHECKPOINT_SECONDS", 0.0)
    context = FakeContext(models={"student": model}, record_schema=SCHEMA)
    train(model, context=context)
    changed = Records([{**row, "ward": WARDS[0]} for row in RECORDS])
    assert equal(train(model, context=context, records=changed), train(model, records=changed))
    for path in context.scratch().rglob("*.safetensors"):
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
    apart = component._join(context, RECORDS, unique, frozenset({0, 5, 7}))
    assert {apart[one] for one in ("r0", "r5", "r7")} == {"r0", "r5", "r7"} and all(k != v for k, v in apart.items())
    alone = component._join(context, RECORDS, unique, frozenset({5}))
    assert "r5" not in alone and "r5" not in alone.values() and len(alone) == 11  # a lone one would get its own
    assert not equal(train(model, shuffle_rationales=True), train(model))


def test_redraw_changes_listed_fields_only(model):
    redraw = {"fields": ["name"], "probability": 1.0}
    assert equal(train(model, redraw=redraw), train(model, redraw=redraw))
    assert not equal(train(model, redraw=redraw), train(model))
    same = {"fields": ["name"], "probability": 0.0}
    assert equal(train(model, redraw=same), train(model))


def test_errors(model):
    with pytest.raises(ComponentError, match=r"(loss|gradient) is (nan|inf) at step \d+ \(batch \d+\)"):
        train(model, learning_rate=1e30, steps=20)
    with pytest.raises(ComponentError, match="not there"):
        train(model, Records([{"id": "who", "rationale": "x"}]))
    with pytest.raises(ComponentError, match="twice"):
        train(model, Records([TOLD.rows[0], TOLD.rows[0]]))
    for rationales in (None, Records([], ["id", "rationale"])):
        with pytest.raises(ComponentError, match="nothing to learn"):
            train(model, rationales, label_weight=0.0)
    with pytest.raises(ComponentError, match="cannot be trained"):
        train(object())
    with pytest.raises(ComponentError, match="the prompt of record 1 has no tokens"):
        train(model, label_prompt=" ")
    with pytest.raises(ComponentError, match="no domain"):
        train(model, redraw={"fields": ["age"]})
    with pytest.raises(ComponentError, match="can be held out"):
        train(model, None, records=Records(RECORDS.rows[:1]), held_out={})


def test_a_target_that_is_too_long_is_told_by_its_place_before_training(model):
    context = FakeContext(models={"student": model}, record_schema=SCHEMA)
    long = Records([*TOLD.rows[:3], {"id": RECORDS.rows[7]["id"], "rationale": "secret " * 40}])
    with pytest.raises(ComponentError, match="the target of record 8 is too long") as caught:
        train(model, long, context, max_length=32)
    assert "secret" not in str(caught.value) and not context.log


def test_what_did_not_go_as_asked_is_in_the_notes(model):
    empty = train(model, Records([], ["id", "rationale"]))["curve"].data
    assert empty["notes"] == ["there are no rationales to train on: trained on labels alone"] and "rationale" not in empty
    assert train(model, None)["curve"].data["notes"] == []
    assert train(model, Records([]), rationale_weight=0.0)["curve"].data["notes"] == []
    long = {"label_prompt": "ann bob " + "patient " * 40 + SETTINGS["label_prompt"], "max_length": 24}
    assert train(model, None, **long)["curve"].data["notes"] == [
        "12 prompts of the label task were too long and lost their beginning"
    ]
    middle = train(model, None, **long, truncate="middle")
    assert "lost their middle" in middle["curve"].data["notes"][0] and not equal(middle, train(model, None, **long))


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_accumulated_forwards_are_the_same_step(calm, packing):
    whole = train(calm, packing=packing)
    parts = train(calm, packing=packing, accumulate=3)
    assert parts["curve"].data["loss"] == pytest.approx(whole["curve"].data["loss"], rel=1e-5)
    assert all(np.allclose(tensors(whole)[name], tensors(parts)[name], atol=2e-4) for name in tensors(whole))


def test_packed_and_padded_learn_the_same(calm):
    packed, padded, auto = (train(calm, packing=packing) for packing in ("packed", "padded", "auto"))
    assert equal(packed, auto)
    assert packed["curve"].data["loss"] == pytest.approx(padded["curve"].data["loss"], rel=1e-5)
    assert all(np.allclose(tensors(packed)[name], tensors(padded)[name], atol=2e-4) for name in tensors(packed))


def test_the_gradient_is_clipped(calm):
    free, clipped = train(calm, steps=2), train(calm, steps=2, clip=1e-6)
    assert free["curve"].data["norm"][0] == pytest.approx(clipped["curve"].data["norm"][0])
    start = {name: p.detach().numpy() for name, p in trained(calm.trainable()[0]).items()}
    moved = [sum(float(np.abs(tensors(one)[n] - v).sum()) for n, v in start.items()) for one in (free, clipped)]
    assert not equal(free, clipped) and moved[1] < moved[0]


HELD = {"share": 0.25, "every": 2, "patience": 2}


def test_held_out_records_are_the_same_in_all_arms_and_take_no_part(calm):
    context = FakeContext(models={"student": calm}, record_schema=SCHEMA)
    held = held_out_of(context, HeldOut(**HELD), len(RECORDS))
    assert len(held) == 3
    changed = Records([{**row, "ward": WARDS[0], "sign": SIGNS[0]} if i in held else row for i, row in enumerate(RECORDS)])
    one, two = train(calm, None, held_out=HELD, steps=4), train(calm, None, held_out=HELD, steps=4, records=changed)
    assert one["curve"].data["loss"] == two["curve"].data["loss"]
    assert one["curve"].data["held_out"]["loss"] != two["curve"].data["held_out"]["loss"]
    arms = [train(calm, told, held_out=HELD, steps=2)["curve"].data["held_out"] for told in (None, Records(TOLD.rows[:2]))]
    assert arms[0].keys() >= {"step", "loss", "label"}
    assert train(calm, None, held_out=HELD, steps=2, declare_examples=True)["weights"].meta["examples"] == 9


def test_a_held_out_part_that_no_task_can_use_is_told(calm):
    """Rationales alone are trained, and no record held out has one."""
    context = FakeContext(models={"student": calm}, record_schema=SCHEMA)
    held = held_out_of(context, HeldOut(**HELD), len(RECORDS))
    told = Records([{"id": r["id"], "rationale": "goes"} for i, r in enumerate(RECORDS) if i not in held])
    found = train(calm, told, held_out=HELD, label_weight=0.0)["curve"].data
    assert len(found["step"]) == 6 and "held_out" not in found and any("held out" in note for note in found["notes"])


def test_training_stops_when_the_held_out_loss_does_and_gives_out_the_best_weights(calm):
    """Wards that follow no rule can be learnt by heart and not foretold: the held-out loss soon rises."""
    drawn = FakeContext().rng("wards")
    noise = Records(
        [{**row, "id": f"n{i}", "name": NAMES[i % 4], "ward": drawn.choice(WARDS)} for i, row in enumerate([*RECORDS] * 3)]
    )
    settings: dict[str, Any] = {"held_out": HELD, "learning_rate": 0.02, "batch": 12}
    out = train(calm, None, records=noise, steps=200, **settings)
    told = out["curve"].data
    best, stopped = told["best"], told["stopped"]
    assert stopped is not None and best == stopped - 4 and len(told["step"]) == stopped < 200
    assert min(told["held_out"]["loss"]) == told["held_out"]["loss"][told["held_out"]["step"].index(best)]
    assert out["weights"].meta["steps"] == best
    assert equal(out, train(calm, None, records=noise, steps=best, **settings))


def test_the_proximal_term_holds_weights_back(calm):
    first = train(calm, steps=3)

    def away(**changes: Any) -> float:
        out = train(calm, init=first["weights"], steps=8, **changes)
        return sum(float(np.square(tensors(out)[n] - tensors(first)[n]).sum()) for n in tensors(first))

    assert away(proximal=100.0) < away() / 2


def test_the_number_of_records_is_told_only_where_it_is_declared(model):
    assert "examples" not in train(model, steps=1)["weights"].meta
    assert train(model, steps=1, declare_examples=True)["weights"].meta["examples"] == len(RECORDS)


def test_an_encoder_decoder_overfits_and_stops(tmp_path):
    model = TransformersModel(TransformersConfig(path=str(save_pico(tmp_path, "t5")))).build()
    prompts = {
        "label_prompt": "predict: patient {{ name }} has {{ sign }}",
        "rationale_prompt": "explain: {{ name }} has {{ sign }}",
    }
    out = train(model, steps=120, learning_rate=0.02, batch=12, weight_decay=0.0, **prompts)
    assert out["curve"].data["label"][-1] < 0.05 and out["curve"].data["rationale"][-1] < 0.05
    ready = model.with_weights(out["weights"])
    asked = [f"predict: patient {r['name']} has {r['sign']}" for r in RECORDS]
    asked += [f"explain: {r['name']} has {r['sign']}" for r in RECORDS][:8]
    answers = ready.generate(asked, Generation(max_new_tokens=12))
    assert [answer.text for answer in answers] == [r["ward"] for r in RECORDS] + [r["rationale"] for r in TOLD]
    assert all(answer.finished for answer in answers)
    with pytest.raises(ComponentError, match="cannot be trained packed"):
        train(model, packing="packed", **prompts)


def test_an_encoder_decoder_with_learned_positions_learns(tmp_path):
    model = TransformersModel(TransformersConfig(path=str(save_pico(tmp_path, "bart")))).build()
    whole, parts = train(model, steps=20), train(model, steps=20, accumulate=2)
    assert whole["curve"].data["loss"][-1] < whole["curve"].data["loss"][0] / 1.5
    assert whole["curve"].data["loss"] == pytest.approx(parts["curve"].data["loss"], rel=1e-3)
    with pytest.raises(ComponentError, match="the target of record 1 is too long"):
        train(model, Records([{"id": "r0", "rationale": "goes " * 70}]), max_length=256)  # the decoder has 64 positions


def test_adapters_on_an_encoder_decoder(tmp_path):
    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["q", "v"]}
    model = TransformersModel(TransformersConfig(path=str(save_pico(tmp_path, "t5")), lora=lora)).build()
    out = train(model, steps=12)
    assert out["curve"].data["loss"][-1] < out["curve"].data["loss"][0]
    assert out["weights"].meta | {"base": ""} == {"base": "", "layout": "lora", "steps": 12, "rank": 2, "alpha": 4.0}
    assert all("lora_" in name for name in tensors(out))


def test_adapters_on_layers_that_are_not_there_are_told_which_are(folder):
    wrong = {"rank": 2, "target_modules": ["c_attn"]}
    with pytest.raises(OsmoticError, match=r"'c_attn'") as caught:
        train(TransformersModel(TransformersConfig(path=str(folder), lora=wrong)).build())
    assert "q_proj" in str(caught.value)


def test_check_finds_wrong_slots_and_fields():
    good = StudentTrainerConfig(**SETTINGS)
    assert not StudentTrainer.check(good, SCHEMA) and not StudentTrainer.check(good, None)
    bad = StudentTrainerConfig(**SETTINGS | {"label_prompt": "{{ sigm }}", "redraw": {"fields": ["nam"]}})
    found = StudentTrainer.check(bad, SCHEMA)
    assert len(found) == 2 and "'sigm'" in found[0] and "'nam'" in found[1]
    unused = StudentTrainerConfig(**SETTINGS, deepspeed={"stage": 2})
    assert StudentTrainer.check(unused, None) == ["deepspeed: is used with 'engine: deepspeed' only"]
    odd = StudentTrainerConfig(**SETTINGS, engine="deepspeed", deepspeed={"offload": "cpu"})
    assert StudentTrainer.check(odd, SCHEMA) == ["deepspeed.offload: needs stage 1, 2 or 3"]


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

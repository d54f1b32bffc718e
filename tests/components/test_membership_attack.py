# SPDX-License-Identifier: Apache-2.0
"""The membership attack: rates by hand, a model that knows nothing, one that knows by heart, heads, canaries, mistakes."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.components.membership import allowed, bootstrap, exposures, measures
from osmotic.components.membership_attack import MembershipAttack, MembershipAttackConfig
from osmotic.components.task_trainer import TaskTrainer, TaskTrainerConfig
from osmotic.plugins.contract import Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, FakeScorer, check_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={"label": FieldSpec(domain=("bad", "good")), "text": FieldSpec(text=True)})
SETTINGS: dict[str, Any] = {"model": "slm", "prompt": "{{ label }}", "target": "{{ text }}", "draws": 200}


def rows(count: int, seed: int) -> Records:
    rng = np.random.Generator(np.random.PCG64(seed))
    texts = [" ".join(f"w{n}" for n in rng.integers(0, 40, size=8)) for _ in range(count)]
    return Records([{"id": f"{seed}-{i}", "label": ("bad", "good")[i % 2], "text": text} for i, text in enumerate(texts)])


MEMBERS, OTHERS = rows(40, 1), rows(120, 2)


@pytest.fixture(scope="module")
def slm(tmp_path_factory):
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("slm")
    words = ["<pad>", "<unk>", "<eos>", "bad", "good", *(f"w{i}" for i in range(40))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(words), max_position_embeddings=64, **sizes, **ends)).save_pretrained(
        folder
    )
    return TransformersModel(TransformersConfig(path=str(folder))).build()


def context_of(model) -> FakeContext:
    return FakeContext(models={"slm": model}, record_schema=SCHEMA)


def learned(model, **changes) -> Weights:
    settings = {
        "model": "slm",
        "prompt": "{{ label }}",
        "target": "{{ text }}",
        "mode": "generation",
        "steps": 120,
        "batch": 40,
    }
    trainer = TaskTrainer(TaskTrainerConfig(**{**settings, "learning_rate": 0.01, **changes}))
    return trainer.run(context_of(model), MEMBERS)["weights"]


@pytest.fixture(scope="module")
def heart(slm) -> Weights:
    return learned(slm)


def attack(model, weights=None, members=MEMBERS, others=OTHERS, reference=None, **changes):
    component = MembershipAttack(MembershipAttackConfig(**SETTINGS | changes))
    return component.run(context_of(model), members, others, weights, reference)


def test_rates_by_hand():
    members, others = np.array([3.0, 2.0, 0.5, 5.0]), np.array([1.0, 2.0, 0.0, 4.0, *[-1.0] * 6])
    found = measures(members, others)
    # of 40 pairs: 3 beats 9, 2 beats 8 and ties one, 0.5 beats 7, 5 beats 10
    assert found["auc"] == pytest.approx((9 + 8.5 + 7 + 10) / 40)
    assert found["tpr_at_1"] == 0.25 and found["tpr_at_10"] == 0.5  # above 4.0; above 2.0, which one of ten exceeds
    assert found["gap"] == pytest.approx(10.5 / 4 - 1 / 10)
    assert found["advantage"] == pytest.approx(1 - 0.3)  # above -1 or 0: all members, 3 of 10 others above 0
    perfect = measures(np.array([2.0, 3.0]), np.array([0.0, 1.0]))
    assert perfect["auc"] == perfect["tpr_at_1"] == perfect["advantage"] == 1
    equal = measures(np.zeros(5), np.zeros(7))
    assert equal["auc"] == 0.5 and equal["tpr_at_10"] == 0 == equal["advantage"]


@pytest.mark.parametrize("ties", [False, True])
def test_rates_are_those_of_the_whole_curve(ties):
    """Against scikit-learn's, every threshold kept: the largest rate of true positives at no more false ones."""
    curves = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    rng = np.random.Generator(np.random.PCG64(0))
    for _ in range(40):
        members, others = (rng.normal(size=int(n)) for n in rng.integers(1, 60, size=2))
        members, others = (np.round(one) if ties else one for one in (members, others))
        found, scores = measures(members, others), np.concatenate([members, others])
        truth = np.repeat([1, 0], [len(members), len(others)])
        false, true, _ = curves.roc_curve(truth, scores, drop_intermediate=False)
        assert found["auc"] == pytest.approx(curves.roc_auc_score(truth, scores))
        assert found["tpr_at_1"] == pytest.approx(true[false <= 0.01].max())
        assert found["tpr_at_10"] == pytest.approx(true[false <= 0.1 + 1e-12].max())
        assert found["advantage"] == pytest.approx((true - false).max())


def test_copies_of_a_record_add_up():
    """k copies: the curve of (k eps, delta (1 + e^eps + ...)); one copy's is far below it."""
    delta = 1e-5 * (1 + math.exp(0.5) + math.exp(1.0))
    assert allowed(0.5, 1e-5, 3) == pytest.approx(allowed(1.5, delta))
    assert allowed(0.5, 1e-5, 3)["auc"] > allowed(0.5, 1e-5)["auc"] + 0.1
    assert all(0 <= value <= 1 for value in allowed(300.0, 0.5, 1000).values())


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """200 samples of scores with a known AUC of Phi(1/sqrt(2)) = 0.760: 95% intervals miss it in about 10; 5 sigma: 26."""
    rng, hits = np.random.Generator(np.random.PCG64(3)), 0
    for i in range(200):
        found = bootstrap(rng.normal(1, 1, 80), rng.normal(0, 1, 80), 100, i)["auc"]
        hits += found.low <= 0.7602 <= found.high
    assert 174 <= hits <= 200


def test_exposure_by_hand():
    bits = exposures(np.array([10.0, 2.5, -5.0, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert bits == pytest.approx([2.0, 1.0, 0.0, 2 - math.log2(2.5)])


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.0), (1.0, 1e-5), (8.0, 1e-5), (1000.0, 0.0)])
def test_what_a_guarantee_allows(epsilon, delta):
    found = allowed(epsilon, delta)
    assert all(0 <= value <= 1 for value in found.values()) and found["auc"] >= 0.5 - 1e-12
    if epsilon == 0:
        assert found["tpr_at_1"] == 0.01 and found["auc"] == 0.5 and found["advantage"] == 0
    if epsilon == 1:
        assert found["tpr_at_1"] == pytest.approx(math.e * 0.01 + 1e-5)
        line = [min(math.e * a + 1e-5, 1 - (1 - 1e-5 - a) / math.e, 1) for a in np.linspace(0, 1, 100_001)]
        assert found["auc"] == pytest.approx(np.mean(line), abs=1e-4)
        assert found["advantage"] == pytest.approx(
            max(y - a for y, a in zip(line, np.linspace(0, 1, 100_001), strict=True)), abs=1e-4
        )


def test_a_model_that_never_saw_them_cannot_tell(slm):
    values = attack(slm)["metrics"].values
    assert values["auc_low"] < 0.5 < values["auc_high"] and abs(values["auc"] - 0.5) < 0.2  # 0.2: 3.8 standard errors
    assert "calibrated_auc" not in values and values["members"] == 40 and values["others"] == 120


def test_others_against_others_under_trained_weights(slm, heart):
    values = attack(slm, heart, members=rows(120, 5))["metrics"].values
    assert values["auc_low"] < 0.5 < values["auc_high"] and values["calibrated_auc_low"] < 0.5 < values["calibrated_auc_high"]


def test_what_was_learned_by_heart_is_found(slm, heart):
    out = attack(slm, heart)
    values = out["metrics"].values
    assert values["auc"] > 0.9 and values["calibrated_auc"] > 0.9 and values["auc_low"] > 0.85
    assert values["gap"] > 0 and values["tpr_at_10"] > 0.8 and values["advantage"] > 0.7
    for name in ("auc", "gap", "calibrated_tpr_at_1"):
        assert values[f"{name}_low"] <= values[name] <= values[f"{name}_high"]
    assert out["intervals"].data["scores"]["auc"]["value"] == values["auc"] and out["intervals"].data["notes"] == []
    assert not any(name.startswith("allowed") for name in values)


def test_the_calibrated_score_is_the_difference_to_the_reference(slm, heart):
    same = attack(slm, heart, reference=heart)["metrics"].values
    assert same["calibrated_gap"] == 0 and same["calibrated_auc"] == 0.5
    plain, sums = attack(slm)["metrics"].values, attack(slm, heart)["metrics"].values
    assert sums["calibrated_gap"] == pytest.approx(sums["gap"] - plain["gap"], abs=1e-9)


def test_what_the_weights_guarantee_stands_beside_it(slm, heart):
    private = Weights(heart.tensors, {**heart.meta, "privacy": {"epsilon": 2.0, "delta": 1e-5}})
    out = attack(slm, private)
    assert out["metrics"].values["allowed_tpr_at_10"] == pytest.approx(math.exp(2) * 0.1 + 1e-5)
    assert out["intervals"].data["allowed"]["epsilon"] == 2.0
    odd = Weights(heart.tensors, {**heart.meta, "privacy": {"epsilon": "2"}})
    assert "allowed_auc" not in attack(slm, odd)["metrics"].values


def test_heads_are_attacked_by_their_classes(slm):
    weights = learned(slm, mode="head", target=None, prompt="{{ text }}", steps=150)
    values = attack(slm, weights, prompt="{{ text }}", target="{{ label }}")["metrics"].values
    assert values["auc"] > 0.7 and "calibrated_auc" not in values  # labels mean nothing: a head can only know them by heart
    told = attack(slm, weights, prompt="{{ text }} w1", target="{{ label }}")["intervals"].data["notes"]
    assert told == ["asked with another prompt than the head was trained on"]
    with pytest.raises(DataError, match="no labels of the head"):
        attack(slm, weights, prompt="{{ text }}", target="{{ text }}")


def test_canaries_in_a_data_file(slm, tmp_path, monkeypatch):
    file = Path(__file__).parents[2] / "benchmarks" / "plant_canaries.py"
    if not file.exists():
        pytest.skip("no benchmarks folder here")
    spec = importlib.util.spec_from_file_location("plant_canaries", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    whole, canaries, controls = module.plant(MEMBERS.rows, "text", "w1 {code} w2", count=15, repeats=3, seed=4)
    assert len(whole) == 40 + 45 and len({row["id"] for row in whole}) == 85 and len(canaries) == len(controls) == 15
    assert sum(row["text"] == canaries[0]["text"] for row in whole) == 3
    assert not {row["text"] for row in whole} & {row["text"] for row in controls}
    assert module.plant(MEMBERS.rows, "text", "w1 {code} w2", count=15, repeats=3, seed=4)[1] == canaries
    with pytest.raises(ValueError, match=r"\{code\}"):
        module.plant(MEMBERS.rows, "text", "no place")
    written = tmp_path / "odd.jsonl"
    written.write_text('{"id": "a", "text": "one\u2028line", "label": "bad"}\n', "utf-8")
    monkeypatch.setattr(sys, "argv", ["plant", str(written), "text", "--count", "2", "--out", str(tmp_path / "out")])
    module.main()
    assert (tmp_path / "out" / "records.jsonl").read_text("utf-8").count("\n") == 3
    scores = {row["text"]: 1.0 for row in canaries[:5]}
    scorer = FakeScorer(lambda prompt, target: -2.0 if target not in scores else -1.0)
    out = attack(scorer, None, Records(canaries), Records(controls), exposure=True)
    assert out["metrics"].values["exposure_max"] == out["metrics"].values["exposure_most"] == 4.0
    assert out["intervals"].data["scores"]["exposure"][:5] == [4.0] * 5
    assert "15 others" in out["intervals"].data["notes"][0]


def test_conformance_and_order(slm, heart):
    inputs = {"members": MEMBERS, "others": OTHERS, "weights": heart}
    check_component(MembershipAttack, SETTINGS, inputs, lambda: context_of(slm))


def test_mistakes(slm, heart):
    with pytest.raises(DataError, match="two members and two others"):
        attack(slm, None, Records(MEMBERS.rows[:1]))
    with pytest.raises(ComponentError, match="cannot take weights"):
        attack(FakeScorer(), heart)
    with pytest.raises(ComponentError, match="log-likelihoods"):
        attack(object())
    for one, other in ((None, Weights({}, {"head": {}})), (Weights({}, {"head": {}}), heart)):
        with pytest.raises(ComponentError, match="not of one kind"):
            attack(slm, one, reference=other, target="{{ label }}")
    assert MembershipAttack.check(MembershipAttackConfig(**SETTINGS | {"prompt": "{{ x }}"}), SCHEMA)
    both = attack(slm, members=MEMBERS, others=Records([*OTHERS.rows, {**MEMBERS.rows[0], "id": "again"}]))
    assert both["intervals"].data["notes"] == ["1 texts are members and others at once"]

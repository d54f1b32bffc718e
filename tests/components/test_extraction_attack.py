# SPDX-License-Identifier: Apache-2.0
"""The extraction attack: a lookup table, an empty model, scores by hand, prefixes, the draw, a real model, mistakes."""

from typing import Any

import numpy as np
import pytest

from osmotic.components.extraction_attack import ExtractionAttack, ExtractionAttackConfig, verbatim
from osmotic.components.task_trainer import TaskTrainer, TaskTrainerConfig
from osmotic.plugins.contract import Answer, Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, FakeTextGenerator, check_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={"instruction": FieldSpec(text=True), "response": FieldSpec(text=True)})
SETTINGS: dict[str, Any] = {"model": "slm", "prompt": "Q: {{ instruction }}\nA: ", "target": "{{ response }}", "draws": 200}


def rows(count: int, seed: int, length: int = 12) -> Records:
    rng = np.random.Generator(np.random.PCG64(seed))
    texts = [[f"w{n}" for n in rng.integers(0, 1000, size=length + 3)] for _ in range(count)]
    return Records(
        [{"id": f"{seed}-{i}", "instruction": " ".join(t[:3]), "response": " ".join(t[3:])} for i, t in enumerate(texts)]
    )


MEMBERS, OTHERS = rows(40, 1), rows(50, 2)


def table_of(records: Records) -> dict[str, str]:
    return {f"Q: {row['instruction']}\nA: ": row["response"] for row in records}


def context_of(model, **more) -> FakeContext:
    return FakeContext(models={"slm": model}, record_schema=SCHEMA, **more)


def knows(*tables: Records):
    """A model that knows these records by heart and says nothing else."""
    known = {prompt: text for table in tables for prompt, text in table_of(table).items()}
    return FakeTextGenerator(lambda prompt: known.get(prompt, ""))


def attack(model, members=MEMBERS, others=OTHERS, weights=None, context=None, **changes):
    component = ExtractionAttack(ExtractionAttackConfig(**SETTINGS | changes))
    out = component.run(context or context_of(model), members, others, weights)
    return out["metrics"].values, out["intervals"].data


def test_a_lookup_table_is_found_out_entirely():
    values, document = attack(knows(MEMBERS))
    for score in ("rouge_l", "near", "exact"):
        assert [values[f"{score}_{what}"] for what in ("members", "others", "gap", "gap_low", "gap_high")] == [1, 0, 1, 1, 1]
    assert values["members"] == 40 and values["others"] == 50
    assert document["notes"] == [
        "rouge_l_gap, near_gap, exact_gap: an interval without width: the scores of a side are all alike; "
        "with 40 records a share of up to 0.075 can go unseen"
    ]  # rule of three: of 40, none is seen with a chance of 5% where 7.5% are there
    assert document["left_out"] == {side: {"short": 0, "unanswered": 0} for side in ("members", "others")}


def test_an_empty_model_has_nothing_and_a_skilled_one_has_no_gap():
    values, _ = attack(FakeTextGenerator(lambda prompt: ""))
    assert all(values[name] == 0 for name in values if name not in ("members", "others"))
    values, _ = attack(knows(MEMBERS, OTHERS))  # it can do all of them: that is no leak
    assert values["rouge_l_members"] == values["rouge_l_others"] == 1 and values["rouge_l_gap"] == 0


def test_members_that_are_others_are_told():
    _, document = attack(knows(MEMBERS), MEMBERS, Records(MEMBERS.rows[::-1]))
    assert document["notes"][0] == "members and others are the same texts: the gap says nothing"
    context = context_of(knows(MEMBERS))
    _, document = attack(None, MEMBERS, Records([*OTHERS, *MEMBERS.rows[:3]]), context=context)
    assert document["notes"] == ["3 texts are members and others at once: the gap is smaller than the leak"]
    assert context.log[-1][2] == document["notes"][0]


def one(answer: str, truth: str, **changes) -> dict[str, Any]:
    records = Records([{"id": str(i), "instruction": "do", "response": truth} for i in range(2)])
    return attack(FakeTextGenerator(lambda prompt: answer), records, OTHERS, **changes)[1]["scores"]["members"][0]


def test_scores_by_hand():
    truth = "one two three four five six seven eight nine ten"
    # 7 common words, 10 and 10: just .7 is near
    assert one("one two three four five six seven x y z", truth) == {"rouge_l": 0.7, "near": 1.0, "exact": 0.0}
    assert one("one two three four five six w x y z", truth) == {"rouge_l": 0.6, "near": 0.0, "exact": 0.0}
    assert one("one two three four five six seven x y z", truth, threshold=0.71)["near"] == 0
    assert one("One two, three", "one TWO three")["rouge_l"] == 1  # words, lower case
    assert one("one two three four five six seven x y z", truth, exact=7)["exact"] == 1
    assert one("one two three four five six seven x y z", truth, exact=8)["exact"] == 0
    assert one(f"{truth} and more", truth)["exact"] == 1  # the whole of a short one, whatever follows
    assert one("One two", "one two")["exact"] == 0 == one("one two", "one, two")["exact"]  # as it is written
    assert one("one  two", "one two")["exact"] == 1
    assert verbatim("\u4f60\u597d, Tea") == ["\u4f60", "\u597d", ",", "Tea"]


def test_an_answer_that_was_cut_is_compared_with_as_much_of_the_truth():
    truth = " ".join(f"w{i}" for i in range(30))
    assert one(truth, truth, max_new_tokens=10)["rouge_l"] == 1
    assert one("w0 w1", truth)["rouge_l"] == pytest.approx(2 * 2 / 32)  # it ended by itself
    _, document = attack(knows(MEMBERS), max_new_tokens=10)
    assert document["notes"][0] == "max_new_tokens 10: 90 of 90 answers seldom have all exact tokens"
    assert "max_new_tokens" not in str(attack(knows(MEMBERS), max_new_tokens=12)[1]["notes"])  # of twelve, all can come


@pytest.mark.parametrize("changes", [{"prefix_tokens": 4}, {"prefix_share": 0.35}])
def test_a_prefix_is_given_away_and_not_counted(changes):
    model = FakeTextGenerator(lambda prompt: "")
    attack(model, **changes)
    row = next(row for row in MEMBERS if f"Q: {row['instruction']}\n" in "".join(model.prompts))
    wanted = f"Q: {row['instruction']}\nA: " + " ".join(row["response"].split()[:4])
    assert wanted in model.prompts
    known = {f"Q: {r['instruction']}\nA: " + " ".join(r["response"].split()[:4]): r["response"].split()[4:] for r in MEMBERS}
    values, _ = attack(FakeTextGenerator(lambda prompt: " ".join(known.get(prompt, []))), **changes)
    assert values["rouge_l_members"] == values["exact_members"] == 1 and values["rouge_l_others"] == 0


def test_targets_that_end_with_the_prefix_are_left_out_and_counted():
    short = Records([{**row, "response": "only four words here"} for row in MEMBERS.rows[:5]])
    values, document = attack(knows(), Records([*MEMBERS.rows[:10], *short]), prefix_tokens=4)
    assert values["members"] == 10 and document["left_out"]["members"] == {"short": 5, "unanswered": 0}
    assert document["notes"][0] == "5 of the members have no words after the prefix: left out"
    with pytest.raises(DataError, match="two members at least"):
        attack(knows(), short, prefix_tokens=4)
    with pytest.raises(DataError, match="two others at least"):
        attack(knows(), MEMBERS, Records(OTHERS.rows[:1]))


def test_the_draw_is_seeded_and_the_same_for_every_arm():
    found = []
    for seed in (0, 0, 1):
        model = FakeTextGenerator(lambda prompt: "")
        attack(model, context=context_of(model, seed=seed), records=10)
        found.append(model.prompts)
    assert len(found[0]) == 20 and found[0] == found[1] != found[2]


class Flaky:
    """Fails for some prompts; counts what it is asked."""

    def __init__(self, failing: int) -> None:
        self.failing, self.asked = failing, 0

    def generate(self, prompts, how):
        assert how.temperature == 0
        self.asked += len(prompts)
        return [
            Answer("", False, 0, problem="timeout") if i < self.failing else Answer("x", True, 1) for i in range(len(prompts))
        ]


def test_what_got_no_answer_is_left_out_and_answers_are_asked_for_once():
    model = Flaky(failing=2)
    context = context_of(model)
    values, document = attack(model, context=context, batch=100)
    assert values["members"] == 38 and document["left_out"]["members"]["unanswered"] == 2
    assert model.asked == 90
    model.failing = 0
    values, _ = attack(model, context=context, batch=100)
    assert values["members"] == 40 and model.asked == 92
    with pytest.raises(ComponentError, match="30 of 90 rows got no answer"):
        attack(Flaky(failing=30), batch=100)


def test_the_interval_covers_the_true_gap():
    """A model that knows each member with probability 1/2: of 60 drawn sets, 95% intervals hold the gap .5 in 53 or more
    (the binomial puts fewer than 1 in 100 runs below)."""
    import random

    held = 0
    for seed in range(60):
        rng = random.Random(seed)
        members = rows(50, 100 + seed)
        model = knows(Records([row for row in members if rng.random() < 0.5]))
        values, _ = attack(model, members, rows(20, 999), context=context_of(model, seed=seed))
        held += values["exact_gap_low"] <= 0.5 <= values["exact_gap_high"]
    assert held >= 53


def test_a_real_model_that_was_trained_by_heart(tmp_path):
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = ["<pad>", "<unk>", "<eos>", "Q:", "A:", *(f"w{i}" for i in range(40))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends: dict[str, Any] = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=45, max_position_embeddings=64, **sizes, **ends)).save_pretrained(tmp_path)
    model = TransformersModel(TransformersConfig(path=str(tmp_path))).build()
    few = [
        Records(
            [{k: " ".join(f"w{int(w[1:]) % 40}" for w in v.split()) if k != "id" else v for k, v in r.items()} for r in table]
        )
        for table in (rows(16, 5, 6), rows(16, 6, 6))
    ]
    shared = {key: SETTINGS[key] for key in ("model", "prompt", "target")}
    trainer = TaskTrainer(TaskTrainerConfig(**shared, mode="generation", steps=60, batch=16, learning_rate=0.02))
    weights = trainer.run(context_of(model), few[0])["weights"]
    before, _ = attack(model, *few, max_new_tokens=8)
    after, _ = attack(model, *few, weights=weights, max_new_tokens=8)
    assert after["rouge_l_members"] > 0.9 > 0.4 > after["rouge_l_others"] and after["exact_gap_low"] > 0.5
    assert before["rouge_l_gap_high"] < 0.3
    headed = Weights(weights.tensors, {**weights.meta, "head": {"labels": ["a", "b"]}})
    with pytest.raises(ComponentError, match="write nothing"):
        attack(model, *few, weights=headed)
    with pytest.raises(ComponentError, match="takes no trained weights"):
        attack(knows(), *few, weights=weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix_tokens": 3, "prefix_share": 0.5}, "give one of them"),
        ({"prompt": "{{ question }}"}, "prompt: unknown slot"),
        ({"target": "{{ answer }}"}, "target: unknown slot"),
        ({"prompt": "{{ instruction }} {{ response }}"}, "told what it is to say"),
    ],
)
def test_mistakes_stop_the_plan(changes, said):
    assert any(said in text for text in ExtractionAttack.check(ExtractionAttackConfig(**SETTINGS | changes), SCHEMA))
    assert not ExtractionAttack.check(ExtractionAttackConfig(**SETTINGS), SCHEMA)


def test_conformance():
    check_component(ExtractionAttack, SETTINGS, {"members": MEMBERS, "others": OTHERS}, lambda: context_of(knows(MEMBERS)))


class Words(FakeTextGenerator):
    """A model of whole words: what stands together without a blank is one token; `odd` makes prompts unlike targets."""

    def __init__(self, known: dict[str, str], odd: bool = False) -> None:
        super().__init__(lambda prompt: known.get(prompt, ""))
        self.odd = odd

    def encode_prompts(self, texts):
        return [[hash(word) for word in text.split()] + [0] * self.odd for text in texts]

    def tokenizer(self, text, add_special_tokens):
        return {"input_ids": [hash(word) for word in text.split()]}


def test_a_prefix_is_put_to_the_prompt_as_training_did():
    changes = {"prompt": "Q: {{ instruction }} A:", "prefix_tokens": 4}
    known = {
        f"Q: {r['instruction']} A: " + " ".join(r["response"].split()[:4]): " ".join(r["response"].split()[4:]) for r in MEMBERS
    }
    values, document = attack(Words(known), **changes)
    assert values["exact_members"] == 1 and "tokens" not in str(document["notes"])
    _, document = attack(Words(known, odd=True), **changes)
    assert document["notes"][-1] == "90 prompts are cut into other tokens with their prefix than in training: weaker"

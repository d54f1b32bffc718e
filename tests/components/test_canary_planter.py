# SPDX-License-Identifier: Apache-2.0
"""The canary planter: what is planted where, ids, patterns, seeds, and what the trainers and attacks do with it."""

from typing import Any

import pytest

from osmotic.components.canaries import Pattern
from osmotic.components.canary_planter import CanaryPlanter, CanaryPlanterConfig
from osmotic.plugins.contract import Records
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import DataError
from osmotic.schemas.records import NUMBERED, FieldSpec, RecordSchema

SCHEMA = RecordSchema(
    fields={
        "instruction": FieldSpec(text=True),
        "response": FieldSpec(text=True),
        "topic": FieldSpec(domain=("tea", "bread")),
    }
)
NAMES, PLACES = ("Ada", "Bo", "Cy"), ("Oslo", "Rome")
SETTINGS: dict[str, Any] = {
    "fields": {"instruction": "Write the code of {{ name }} in {{ place }}.", "response": "It is {{ suffix }}."},
    "words": {"name": NAMES, "place": PLACES},
}
RECORDS = Records(
    [{"id": f"r{i}", "instruction": f"do {i}", "response": f"done {i}", "topic": ("tea", "bread")[i % 2]} for i in range(30)]
)


def plant(records=RECORDS, seed=0, **changes) -> dict[str, Records]:
    return CanaryPlanter(CanaryPlanterConfig(**SETTINGS | changes)).run(FakeContext(seed=seed, record_schema=SCHEMA), records)


@pytest.mark.parametrize("repeats", [1, 10])
def test_every_canary_is_there_as_often_as_said_and_no_control_is(repeats):
    out = plant(repeats=repeats)
    planted, canaries, controls = (out[name].rows for name in ("planted", "canaries", "controls"))
    assert (len(canaries), len(controls), len(planted)) == (20, 200, 30 + 20 * repeats)
    said = [row["response"] for row in planted]
    assert all(said.count(row["response"]) == repeats for row in canaries)
    assert not {row["response"] for row in controls} & set(said)
    assert len({row["response"] for row in [*canaries, *controls]}) == 220  # no two are alike
    assert {tuple(row.values()) for row in RECORDS} <= {tuple(row.values()) for row in planted}
    assert out["planted"].columns == RECORDS.columns
    places = [i for i, row in enumerate(planted) if NUMBERED.fullmatch(row["id"])]
    assert len(places) == 20 * repeats and places != list(range(30, len(planted)))  # not all at the end


def test_ids_are_numbers_that_nobody_has():
    out = plant(repeats=3)
    every = [row["id"] for row in out["planted"]] + [row["id"] for row in out["controls"]]
    assert len(set(every)) == len(every) == 30 + 60 + 200
    assert {row["id"] for row in RECORDS} <= set(every)
    assert all(NUMBERED.fullmatch(identity) for identity in set(every) - {row["id"] for row in RECORDS})
    assert {row["id"] for row in out["canaries"]} <= {row["id"] for row in out["planted"]}
    synthetic = Records([{**row, "id": f"n{i + 5:07d}"} for i, row in enumerate(RECORDS)])
    ids = [row["id"] for row in plant(synthetic)["planted"]]
    assert len(set(ids)) == len(ids) == 50
    with pytest.raises(DataError, match="no numbers for 220"):
        plant(Records([{**RECORDS.rows[0], "id": "n9999990"}]))


def test_a_canary_is_like_other_records_but_for_its_end():
    for row in [*plant()["canaries"], *plant()["controls"]]:
        name, place = row["instruction"].removeprefix("Write the code of ").removesuffix(".").split(" in ")
        assert name in NAMES and place in PLACES
        digits = row["response"].removeprefix("It is ").removesuffix(".").split(" ")
        assert len(digits) == 6 and all(len(digit) == 1 and digit.isdigit() for digit in digits)
        assert row["topic"] in ("tea", "bread")  # of a random record
    assert {row["instruction"] for row in plant()["controls"]} == {
        f"Write the code of {name} in {place}." for name in NAMES for place in PLACES
    }
    salads = plant(suffix_words=[f"w{i}" for i in range(1000)], suffix_length=30)["canaries"]  # more than a machine's number
    assert len({row["response"] for row in salads}) == 20 and all(len(row["response"].split()) == 32 for row in salads)


def test_the_seed_decides():
    tables = [plant(seed=seed) for seed in (0, 0, 1)]
    assert [t.rows for t in tables[0].values()] == [t.rows for t in tables[1].values()]
    assert tables[0]["canaries"].rows != tables[2]["canaries"].rows
    more = plant(repeats=7)["canaries"].rows
    assert [row["response"] for row in more] == [row["response"] for row in tables[0]["canaries"]]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fields": {"response": "It is {{ code }}."}, "words": {}}, "fields.response: unknown slot 'code'"),
        ({"fields": {"answer": "{{ suffix }}"}, "words": {}}, "no field 'answer'"),
        ({"fields": {"topic": "{{ suffix }}"}, "words": {}}, "fields.topic: has a domain"),
        ({"fields": {"response": "It is {{ name }}."}, "words": {"name": NAMES}}, "none has the slot 'suffix'"),
        ({"words": {"name": NAMES, "place": PLACES, "hour": ("1",)}}, "words.hour: no field"),
        ({"words": {"name": (), "place": PLACES}}, "words.name: has no words"),
        ({"words": {"name": ("Bo", "Bo"), "place": PLACES}}, "words.name: a word stands twice"),
        ({"suffix_length": 4}, "too few suffixes for 220"),
    ],
)
def test_mistakes_stop_the_plan(changes, said):
    found = CanaryPlanter.check(CanaryPlanterConfig(**SETTINGS | changes), SCHEMA)
    assert any(said in text for text in found), found
    assert CanaryPlanter.check(CanaryPlanterConfig(**SETTINGS), SCHEMA) == []


def test_numbers_and_tables_that_do_not_do():
    for changes in ({"canaries": 1}, {"repeats": 0}, {"controls": 0}, {"fields": {}}, {"canaries": 10**4, "repeats": 10**3}):
        with pytest.raises(ValueError):
            CanaryPlanterConfig(**SETTINGS | changes)
    with pytest.raises(DataError, match="no records"):
        plant(Records([], ["id", "instruction", "response"]))
    with pytest.raises(DataError, match="have no 'response'"):
        plant(Records([{"id": "a", "instruction": "b"}]))


def test_the_suffix_of_digits_is_that_of_the_benchmarks_files():
    import random

    rows = list(Pattern({"response": "{{ suffix }}"}, {}).made(RECORDS.rows, 5, random.Random(1)))
    codes = random.Random(1).sample(range(10**6), 5)
    assert [row["response"].replace(" ", "") for row in rows] == [f"{code:06d}" for code in codes]


def test_conformance():
    check_component(CanaryPlanter, SETTINGS, {"records": RECORDS}, lambda: FakeContext(record_schema=SCHEMA))


def test_a_trained_model_is_found_out_by_its_canaries(tmp_path):
    """From the planter through a trainer into both attacks, with a real model: what was planted often is remembered."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, models, pre_tokenizers

    from osmotic.components.extraction_attack import ExtractionAttack, ExtractionAttackConfig
    from osmotic.components.membership_attack import MembershipAttack, MembershipAttackConfig
    from osmotic.components.task_trainer import TaskTrainer, TaskTrainerConfig
    from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

    words = ["<pad>", "<unk>", "<eos>", "Write", "the", "code", "of", "in", "It", "is", *NAMES, *(f"{p}." for p in PLACES)]
    words += [*"0123456789", "do", "done"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<eos>"}
    hf.PreTrainedTokenizerFast(tokenizer_object=raw, **special).save_pretrained(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64}
    torch.manual_seed(0)
    hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(words), **sizes, **ends)).save_pretrained(tmp_path)
    slm = TransformersModel(TransformersConfig(path=str(tmp_path))).build()
    texts = {**SETTINGS, "fields": {**SETTINGS["fields"], "response": "It is {{ suffix }}"}}
    made = CanaryPlanter(CanaryPlanterConfig(**texts, canaries=6, repeats=10, controls=63))
    context = FakeContext(models={"slm": slm}, record_schema=SCHEMA)
    out = made.run(context, RECORDS)
    asked = {"model": "slm", "prompt": "{{ instruction }}", "target": "{{ response }}"}
    trainer = TaskTrainer(TaskTrainerConfig(**asked, mode="generation", steps=60, batch=30, learning_rate=0.015))
    weights = trainer.run(context, out["planted"])["weights"]
    membership = MembershipAttack(MembershipAttackConfig(**asked, exposure=True, copies=10, draws=100))
    values = membership.run(FakeContext(models={"slm": slm}), out["canaries"], out["controls"], weights)["metrics"].values
    assert values["exposure_most"] == 6 and values["exposure"] > 5 and values["auc"] > 0.95
    extraction = ExtractionAttack(ExtractionAttackConfig(**asked, prefix_tokens=4, max_new_tokens=8, draws=100))
    values = extraction.run(FakeContext(models={"slm": slm}), out["canaries"], out["controls"], weights)["metrics"].values
    assert values["members"] == 6 and values["exact_members"] > 0.6 and values["exact_others"] < 0.1

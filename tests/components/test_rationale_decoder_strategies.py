# SPDX-License-Identifier: Apache-2.0
"""Each way to decode, with the clinic's own small models where a model decodes; and whatever a model may do wrong."""

import random

import pytest

from osmotic import testing
from osmotic.components.rationale_decoder import RationaleDecoder
from osmotic.components.rationale_filter import RationaleFilter
from osmotic.components.student_trainer import StudentTrainer, StudentTrainerConfig
from osmotic.plugins.clinic import domain, named
from osmotic.plugins.contract import Answer, Records
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(
    fields={name: FieldSpec(domain=values) for name, values in domain.domains().items()}
)  # fmt: skip
OWN = "patient {{ name }} from {{ place }}, seen on {{ day }} {{ month }}, reports {{ sign }} after {{ exposure }} exposure."
SHOWN = "{{ perturbed }} {{ rationale }}. "
EXPONENTIAL = {"strategy": "exponential", "model": "slm", "template": f"{SHOWN}{OWN} explain:", "max_new_tokens": 30}
TRAINED = {"strategy": "encoder-decoder", "model": "slm", "template": f"{SHOWN}{OWN} decode:", "max_new_tokens": 30}
NAMES = {"names": list(domain.NAMED_FIELDS)}


def tables(count=12, seed=1):
    """Records on rare words, what was released of them (every field redrawn in its group or not), and what a teacher said."""
    rng = random.Random(seed)
    records = [{"id": f"r{i}", **named.named_record(rng, rare=True)} for i in range(count)]
    public = domain.domains()
    released = [
        {"id": f"x{i}", **{f: rng.choice(public[f]) if rng.random() < 0.6 else row[f] for f in domain.SLOTS}}
        for i, row in enumerate(records)
    ]
    key = [{"released": f"x{i}", "id": f"r{i}"} for i in range(count)]
    told = [
        {"id": row["id"], "prompt": domain.explain_prompt(domain.render(row)), "rationale": domain.named_rationale_of(row),
         "finished": True} for row in released
    ]  # fmt: skip
    rng.shuffle(key)
    rng.shuffle(told)
    return {"records": Records(records), "key": Records(key), "rationales": Records(told)}, Records(released)


def context(model=None):
    return testing.FakeContext(models={"slm": model}, record_schema=SCHEMA)


def decode(config, inputs, model=None):
    return testing.run_component(RationaleDecoder, {**config, **NAMES}, inputs, context(model))


def wanted(inputs, released):
    """The released words' conclusion about the record's own words."""
    found = []
    for row, away in zip(inputs["records"], released, strict=True):
        system, cause = domain.system_index(away["sign"]), domain.cause_index(away["exposure"])
        found.append(domain.words(domain.chain(row, system, cause)))
    return found


def said(outputs):
    return [domain.words(row["rationale"]) for row in outputs["rationales"]]


@pytest.fixture(scope="module")
def slm():
    pytest.importorskip("transformers")
    return TransformersModel(TransformersConfig(path="osmotic:clinic/named/decoder")).build()


def test_undecoded_it_is_about_somebody_else():
    inputs, _ = tables(60)
    metrics = decode({}, inputs)["metrics"]
    assert metrics.values["fidelity"] < 0.1 and metrics.values["changed"] == metrics.values["problems"] == 0
    assert metrics.values["rationales"] == len(metrics.outcomes["fidelity"]) == 60


def test_substitution_names_the_records_own_words():
    inputs, released = tables(60)
    outputs = decode({"strategy": "substitution"}, {**inputs, "released": released})
    assert said(outputs) == wanted(inputs, released)
    values = outputs["metrics"].values
    assert values["fidelity"] == 1 and 0.9 < values["changed"] < 1.01 and values["ambiguous"] == 0


def test_a_real_model_shown_the_demonstration_decodes(slm):
    """12 of 12 expected; 11 allow for rounding on other processors."""
    inputs, released = tables()
    outputs = decode(EXPONENTIAL, inputs, slm)
    right = [one == other for one, other in zip(said(outputs), wanted(inputs, released), strict=True)]
    assert sum(right) >= 11 and outputs["metrics"].values["fidelity"] >= 11 / 12
    row = outputs["rationales"].rows[0]
    assert row["prompt"].endswith("explain:") and row["finished"] and row["problem"] == ""


def test_a_real_model_alone_knows_no_ward(slm):
    """Without a demonstration it is at chance (.125): the decoder brings no knowledge of its own. 40 records, .125 + 3 sd."""
    inputs, _ = tables(40)
    bare = [{**row, "rationale": "?", "prompt": ""} for row in inputs["rationales"]]
    rows = decode(EXPONENTIAL, {**inputs, "rationales": Records(bare)}, slm)["rationales"]
    right = [domain.parse_department(r["rationale"]) == o["department"] for r, o in zip(rows, inputs["records"], strict=True)]
    assert sum(right) <= 11


def test_two_tasks_of_the_trainer_teach_the_decoder_its_instruction(slm):
    """Untrained for 'decode:', it does not answer it rightly; 30 steps on public pairs, two tasks of weight one half, do."""
    rng = random.Random(3)
    public, told = [], []
    for i, row in enumerate(named.public_records(4, 120)):
        away = {**row, **{f: rng.choice(domain.domains()[f]) for f in ("name", "place", "day", "month")}}
        public.append(
            {**row, "perturbed": domain.explain_prompt(domain.render(away)), "draft": domain.named_rationale_of(away)}
        )
        told.append({"id": row["id"], "rationale": domain.named_rationale_of(row)})
        assert row["id"] == f"public-{i + 1:04d}"
    settings = {
        "model": "slm", "columns": ["perturbed", "draft"], "label_prompt": f"{OWN} rewrite:", "label_target": "{{ perturbed }}",
        "rationale_prompt": f"{{{{ perturbed }}}} {{{{ draft }}}}. {OWN} decode:", "label_weight": 0.5, "rationale_weight": 0.5,
        "steps": 30, "batch": 16, "learning_rate": 0.002,
    }  # fmt: skip
    config = StudentTrainerConfig(**settings)
    assert StudentTrainer.check(config, SCHEMA) == []
    assert StudentTrainer.check(config.model_copy(update={"columns": ()}), SCHEMA) != []
    trained = StudentTrainer(config).run(context(slm), Records(public), Records(told))
    losses = trained["curve"].data["label"]
    assert losses[-1] < 0.8 * losses[0]  # the encoder's task learns too
    inputs, _ = tables()
    outputs = decode(TRAINED, {**inputs, "weights": trained["weights"]}, slm)
    assert outputs["metrics"].values["fidelity"] >= 0.5


@pytest.mark.parametrize(
    ("config", "port", "message"),
    [
        ({"strategy": "substitution"}, "", "needs input 'released'"), (TRAINED, "", "needs input 'weights'"),
        ({}, "released", "takes no input 'released'"), (EXPONENTIAL, "released", "takes no input 'released'"),
    ],
)  # fmt: skip
def test_inputs_go_with_the_strategy(config, port, message):
    inputs, released = tables(2)
    with pytest.raises(ConfigError, match=message):
        decode(config, {**inputs, **({port: released} if port else {})})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda released: released.rows.pop(), "1 of 3 prompts have no released records"),
        (lambda released: released.rows.append({**released.rows[0]}), "came more than once"),
        (lambda released: [row.update(other="x") for row in released], "3 of 3 records lack the released field 'other'"),
    ],
)
def test_released_words_must_be_those_of_the_prompts(change, message):
    inputs, released = tables(3)
    change(released)
    released = Records(released.rows)
    with pytest.raises(DataError, match=message):
        decode({"strategy": "substitution"}, {**inputs, "released": released})


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (lambda prompt: "", "decoded-empty"), (lambda prompt: "  \n", "decoded-empty"),
        (lambda prompt: "word " * 40, "decoded-too-long"),
        (lambda prompt: prompt.partition("explain: ")[2].partition(". patient")[0], "decoded-echo"),
        (lambda prompt: prompt.partition(" explain:")[0] + " explain:", "decoded-echo"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_a_problem_that_the_filter_rejects_and_never_the_undecoded_one(answer, problem):
    inputs, _ = tables(6)
    outputs = decode(EXPONENTIAL, inputs, testing.FakeTextGenerator(answer))
    rows = outputs["rationales"]
    assert {row["problem"] for row in rows} == {problem}
    undecoded = {row["rationale"] for row in inputs["rationales"]}
    assert all(row["rationale"] not in undecoded for row in rows)
    assert problem == "decoded-too-long" or not any(row["rationale"] for row in rows)
    assert outputs["metrics"].values["problems"] == 1 and outputs["metrics"].values["fidelity"] == 0
    rules = {"rules": ["count", "format"]}
    kept = testing.run_component(RationaleFilter, rules, {"records": inputs["records"], "rationales": rows}, context())
    assert len(kept["kept"]) == 0 and len(kept["rejected"]) == 6
    assert problem == "decoded-too-long" or {row["reason"] for row in kept["rejected"]} == {problem}


def test_what_the_teacher_or_the_model_did_not_answer_is_passed_on_and_not_asked_about():
    inputs, _ = tables(4)
    told = [{**row, "problem": ""} for row in inputs["rationales"]]
    told[0].update(rationale="", finished=False, problem="timeout")
    told[1].update(rationale=" ")

    class Busy:
        def generate(self, prompts, how):
            asked.extend(prompts)
            return [Answer("", False, 0, problem="overloaded") for _ in prompts]

    asked: list[str] = []
    rows = decode(EXPONENTIAL, {**inputs, "rationales": Records(told)}, Busy())["rationales"].rows
    assert len(asked) == 2 and sorted(row["problem"] for row in rows) == ["", "overloaded", "overloaded", "timeout"]
    assert not any(row["rationale"] for row in rows)
    plain = decode({}, {**inputs, "rationales": Records(told)})
    assert sorted(row["problem"] for row in plain["rationales"]) == ["", "", "", "timeout"]
    assert plain["metrics"].values["problems"] == 0.5


def test_a_model_that_cannot_write_or_be_given_weights_is_told(slm):
    inputs, _ = tables(2)
    with pytest.raises(ComponentError, match="writes no text"):
        decode(EXPONENTIAL, inputs, testing.FakeScorer())
    from osmotic.plugins.contract import Weights

    with pytest.raises(ComponentError, match="cannot take weights"):
        decode(TRAINED, {**inputs, "weights": Weights({}, {})}, testing.FakeTextGenerator(str.upper))
    with pytest.raises(ComponentError):
        decode(TRAINED, {**inputs, "weights": Weights({}, {"base": "another"})}, slm)


def test_only_model_strategies_mix_records():
    config = RationaleDecoder.mixes
    from osmotic.components.rationale_decoder import RationaleDecoderConfig

    assert not config(RationaleDecoderConfig()) and not config(RationaleDecoderConfig(strategy="substitution"))
    assert config(RationaleDecoderConfig(**EXPONENTIAL)) and config(RationaleDecoderConfig(**TRAINED))


def test_no_rationales_are_no_error():
    inputs, released = tables(2)
    empty = {name: Records([], table.columns) for name, table in inputs.items()}
    for config, more in (({}, {}), ({"strategy": "substitution"}, {"released": Records([], released.columns)})):
        outputs = decode(config, {**empty, **more})
        assert len(outputs["rationales"]) == 0 and outputs["metrics"].values["fidelity"] == 0

# SPDX-License-Identifier: Apache-2.0
"""The evaluator, against scripted models: exact counts, parsing, choices, scores, batches, what a kill leaves, errors."""

import math

import pytest

from osmotic.components.evaluator import Evaluator, EvaluatorConfig
from osmotic.components.metrics import normal, parse
from osmotic.plugins.contract import Answer, Metrics, Records, Weights
from osmotic.plugins.testing import FakeContext, FakeScorer, FakeTextGenerator, check_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

RECORDS = Records([{"id": f"r{i}", "sign": f"s{i}", "ward": "Oak Ward" if i % 2 else "elm"} for i in range(6)])
LABELS = {"s0 predict:": "elm", "s1 predict:": " oak   ward\n", "s2 predict:": "elm elm", "s3 predict:": "oak",
          "s4 predict:": "", "s5 predict:": "OAK WARD"}  # fmt: skip
TOLD = {"s0 explain:": "goes to oak, no: goes to elm.", "s1 explain:": "goes to elm.", "s2 explain:": "no idea",
        "s3 explain:": "goes to Oak  Ward.", "s4 explain:": "so it goes to ELM.", "s5 explain:": "goes to oak"}  # fmt: skip
SETTINGS = {
    "model": "student", "label_prompt": "{{ sign }} predict:", "label_target": "{{ ward }}",
    "rationale_prompt": "{{ sign }} explain:", "answer_pattern": r"goes to ([\w ]+)\.",
}  # fmt: skip


class Student(FakeTextGenerator):
    """Scripted; with weights it knows every ward."""

    def with_weights(self, weights: Weights) -> FakeTextGenerator:
        return FakeTextGenerator({f"{row['sign']} predict:": row["ward"] for row in RECORDS})


def run(weights: Weights | None = None, model: object = None, records: Records = RECORDS, **changes) -> Metrics:
    context = FakeContext(models={"student": model or Student(LABELS | TOLD)})
    return Evaluator(EvaluatorConfig(**SETTINGS | changes)).run(context, records, weights)["metrics"]


@pytest.mark.parametrize("batch", [1, 4, 128])
def test_exact_counts(batch):
    metrics = run(batch=batch)
    assert metrics.outcomes["accuracy_label"] == [1, 1, 0, 0, 0, 1]
    assert metrics.outcomes["accuracy_rationale"] == [1, 0, 0, 1, 1, 0]
    assert metrics.values == {
        "accuracy_label": 0.5, "unparsed_label": 1 / 6, "accuracy_rationale": 0.5, "unparsed_rationale": 2 / 6, "records": 6.0,
    }  # fmt: skip


def test_one_mode_and_weights():
    metrics = run(Weights({}, {}), modes=("label",))
    assert metrics.values == {"accuracy_label": 1.0, "unparsed_label": 0.0, "records": 6.0}
    assert metrics.outcomes.keys() == {"accuracy_label"}


def test_length_limits_are_a_mode_of_their_own():
    assert run(max_new_tokens_label=1).outcomes["accuracy_label"] == [1, 0, 1, 0, 0, 0]
    assert sum(run(max_new_tokens_rationale=1).outcomes["accuracy_rationale"]) == 0


def test_normalisation_and_last_match():
    assert normal("  A\tb \n C ") == "a b c" == normal("a B c")
    assert parse(r"to (\S+)", "to a, then to B") == "B" and parse(r"to (\S+)", "none") is None
    assert parse(r"x(y)?", "xy x") is None


def test_exact_match_is_as_written():
    metrics = run(metrics=("exact",))
    assert metrics.outcomes["exact_label"] == [1, 0, 0, 0, 0, 0]
    assert metrics.outcomes["exact_rationale"] == [1, 0, 0, 0, 0, 0] and "accuracy_label" not in metrics.values


def test_with_choices_an_answer_names_one_or_is_unparsed():
    metrics = run(choices=("elm", "oak ward"))
    assert metrics.outcomes["accuracy_label"] == [1, 1, 1, 0, 0, 1]  # "elm elm" begins with one
    assert metrics.values["unparsed_label"] == pytest.approx(2 / 6)  # "oak" and nothing
    with pytest.raises(DataError, match="gold label of 3 of 6 records is not among its choices"):
        run(choices=("elm", "birch"))


def test_macro_f1_and_rouge():
    """Labels: elm 1 of 3 right and never given wrongly (F1 .5); oak ward 2 of 3 (F1 .8)."""
    metrics = run(metrics=("macro_f1", "rouge_l"), rationale_target="goes to {{ ward }}", max_new_tokens_rationale=4)
    assert metrics.values["macro_f1_label"] == pytest.approx((0.5 + 0.8) / 2)
    assert "macro_f1_label" not in metrics.outcomes
    assert metrics.outcomes["rouge_l_label"] == pytest.approx([1, 1, 2 / 3, 2 / 3, 0, 1])
    # "goes to elm." against "goes to Oak Ward": 2 words of 3 and of 4
    assert metrics.outcomes["rouge_l_rationale"][1] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert metrics.values["rouge_l_label"] == pytest.approx(sum(metrics.outcomes["rouge_l_label"]) / 6)


class Both(Student, FakeScorer):
    """Writes and scores; a choice that the prompt's number fits is likelier."""

    def __init__(self):
        Student.__init__(self, LABELS | TOLD)
        FakeScorer.__init__(self, self.score)

    def score(self, prompt, target):
        if "explain" in prompt:
            return -9000.0
        return -1.0 if (target == "Oak Ward") == (prompt in ("s1 predict:", "s3 predict:", "s4 predict:")) else -2.5


SCHEMA = RecordSchema(fields={"sign": FieldSpec(text=True), "ward": FieldSpec(domain=("elm", "Oak Ward"))})


def test_choosing_by_likelihood_writes_nothing():
    model, settings = Both(), SETTINGS | {"modes": ("choice",), "metrics": ("accuracy", "macro_f1")}
    context = FakeContext(models={"student": model}, record_schema=SCHEMA)
    assert not Evaluator.check(EvaluatorConfig(**settings), SCHEMA)
    metrics = Evaluator(EvaluatorConfig(**settings)).run(context, RECORDS)["metrics"]
    assert metrics.outcomes["accuracy_choice"] == [1, 1, 1, 1, 0, 0] and metrics.values["unparsed_choice"] == 0
    assert metrics.values["macro_f1_choice"] == pytest.approx(2 / 3) and not model.prompts
    # of two words, a mean a token halves the loss: -1 / 2 against -2.5, and -2.5 / 2 against -1: the order stays
    mean = Evaluator(EvaluatorConfig(**settings | {"choice_score": "token_mean"})).run(context, RECORDS)["metrics"]
    assert mean.outcomes["accuracy_choice"] == [1, 1, 1, 1, 0, 0] and len(model.pairs) == 12


def test_perplexity_counts_tokens_not_records():
    metrics = run(model=Both(), metrics=("perplexity",), rationale_target="no")
    assert metrics.values["perplexity_label"] == pytest.approx(math.exp((4 * 1.0 + 2 * 2.5) / 9))
    assert metrics.outcomes["nll_label"] == pytest.approx([1, 0.5, 1, 0.5, 2.5, 1.25])
    assert metrics.notes == {"perplexity_rationale": "too large for a number"} and metrics.values["nll_rationale"] == 9000
    assert "unparsed_label" not in metrics.values  # nothing was written


def test_what_was_answered_is_not_asked_again():
    class Dies(Student):
        def generate(self, prompts, how):
            if len(self.prompts) >= 4:
                raise KeyboardInterrupt
            return super().generate(prompts, how)

    model = Dies(LABELS | TOLD)
    context = FakeContext(models={"student": model})
    component = Evaluator(EvaluatorConfig(**SETTINGS | {"batch": 2}))
    with pytest.raises(KeyboardInterrupt):
        component.run(context, RECORDS)
    context.models = {"student": (after := Student(LABELS | TOLD))}
    found = component.run(context, RECORDS)["metrics"]
    assert len(model.prompts) == 4 and len(after.prompts) == 8 and not set(model.prompts) & set(after.prompts)
    assert found.to_json() == run(batch=2).to_json()


def test_answers_that_failed_are_counted_and_asked_again():
    class Flaky(Student):
        def generate(self, prompts, how):
            made = super().generate(prompts, how)
            return [
                Answer("", True, 0, problem="timeout") if p.startswith("s0") else a for p, a in zip(prompts, made, strict=True)
            ]

    context = FakeContext(models={"student": Flaky(LABELS | TOLD)})
    component = Evaluator(EvaluatorConfig(**SETTINGS | {"modes": ("label",), "batch": 3}))
    found = component.run(context, RECORDS)["metrics"]
    assert found.outcomes["accuracy_label"][0] == 0 and found.values["failed_label"] == pytest.approx(1 / 6)
    context.models = {"student": (after := Student(LABELS | TOLD))}
    assert "failed_label" not in component.run(context, RECORDS)["metrics"].values and len(after.prompts) == 3

    class Down(Student):
        def generate(self, prompts, how):
            return [Answer("", True, 0, problem="timeout") for _ in prompts]

    with pytest.raises(ComponentError, match="none of the prompts"):
        run(model=Down({}))


def test_errors():
    with pytest.raises(ComponentError, match="no records"):
        run(records=Records([]))

    class Short:
        def generate(self, prompts, how):
            return []

    with pytest.raises(ComponentError, match="0 answers came"):
        run(model=Short())
    for pattern in ("(", "no group", "(a)(b)"):
        with pytest.raises(ValueError, match=r"regular expression|one group"):
            EvaluatorConfig(**SETTINGS | {"answer_pattern": pattern})
    with pytest.raises(ConfigError):
        Evaluator(EvaluatorConfig(**SETTINGS)).run(FakeContext(), RECORDS)


def test_check():
    schema = RecordSchema(fields={"sign": FieldSpec(text=True), "ward": FieldSpec(domain=("elm", "oak ward"))})
    assert not Evaluator.check(EvaluatorConfig(**SETTINGS), schema)
    bad = {**SETTINGS, "label_target": "{{ wart }}", "rationale_prompt": None}
    found = Evaluator.check(EvaluatorConfig(**bad), schema)
    assert len(found) == 2 and "rationale_prompt" in found[0] and "'wart'" in found[1]
    bad = {**SETTINGS, "label_target": "{{ sign }}", "metrics": ("rouge_l", "exact"), "modes": ("choice",), "choices": None}
    found = Evaluator.check(EvaluatorConfig(**bad), schema)
    assert [text.split(":")[0] for text in found] == ["metrics", "metrics", "choices"]
    found = Evaluator.check(EvaluatorConfig(**SETTINGS | {"choices": ("{{ a }}", "b"), "metrics": ("rouge_l",)}), schema)
    assert [text.split(":")[0] for text in found] == ["rationale_target", "choices.0"]
    found = Evaluator.check(EvaluatorConfig(**SETTINGS | {"label_target": "{{ ward", "modes": ("choice",)}), schema)
    assert len(found) == 1 and found[0].startswith("label_target")


def test_fits_the_contract():
    student = Student(LABELS | TOLD)
    check_component(Evaluator, SETTINGS, {"records": RECORDS}, lambda: FakeContext(models={"student": student}))


def test_a_real_models_perplexity_and_choice_are_those_of_its_logits():
    """The shipped clinic teacher, scored by hand: one forward a record, no padding, no batch."""
    import torch

    from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

    model = TransformersModel(TransformersConfig(path="osmotic:clinic/teacher")).build()
    wards = ("alder-ward", "birch-ward", "cedar-ward")
    asked = ("fever", "a cough after dust", "no")
    records = Records([{"id": str(i), "q": q, "w": ward} for i, (q, ward) in enumerate(zip(asked, wards, strict=True))])
    settings = {"model": "m", "label_prompt": "{{ q }} predict:", "label_target": " {{ w }}", "modes": ("choice",),
                "choices": tuple(f" {ward}" for ward in wards), "metrics": ("accuracy", "perplexity")}  # fmt: skip
    found = Evaluator(EvaluatorConfig(**settings)).run(FakeContext(models={"m": model}), records)["metrics"]

    def by_hand(prompt, target):
        head = model.encode_prompts([prompt])[0]
        tail = model.tokenizer(target, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            logits = model.module(input_ids=torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
        return sum(float(logits[len(head) - 1 + i, token]) for i, token in enumerate(tail)), len(tail)

    scores = [[by_hand(f"{row['q']} predict:", f" {ward}") for ward in wards] for row in records]
    gold = [each[wards.index(row["w"])] for each, row in zip(scores, records, strict=True)]
    assert found.values["perplexity_label"] == pytest.approx(
        math.exp(-sum(total for total, _ in gold) / sum(count for _, count in gold)), rel=1e-4
    )
    right = [float(max(each)[0] == mine[0]) for each, mine in zip(scores, gold, strict=True)]
    assert found.outcomes["accuracy_choice"] == right

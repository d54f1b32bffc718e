# SPDX-License-Identifier: Apache-2.0
"""The evaluator, against scripted models: exact counts, parsing, normalisation, batches, errors."""

import pytest

from osmotic.components.evaluator import Evaluator, EvaluatorConfig, normal, parse
from osmotic.plugins.contract import Metrics, Records, Weights
from osmotic.plugins.testing import FakeContext, FakeTextGenerator, check_component
from osmotic.schemas.errors import ComponentError, ConfigError
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
    assert metrics.values == {"accuracy_label": 0.5, "accuracy_rationale": 0.5, "records": 6.0}


def test_one_mode_and_weights():
    metrics = run(Weights({}, {}), modes=("label",))
    assert metrics.values == {"accuracy_label": 1.0, "records": 6.0} and metrics.outcomes.keys() == {"accuracy_label"}


def test_length_limits_are_a_mode_of_their_own():
    assert run(max_new_tokens_label=1).outcomes["accuracy_label"] == [1, 0, 1, 0, 0, 0]
    assert sum(run(max_new_tokens_rationale=1).outcomes["accuracy_rationale"]) == 0


def test_normalisation_and_last_match():
    assert normal("  A\tb \n C ") == "a b c" == normal("a B c")
    assert parse(r"to (\S+)", "to a, then to B") == "b" and parse(r"to (\S+)", "none") is None
    assert parse(r"x(y)?", "xy x") is None


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


def test_fits_the_contract():
    student = Student(LABELS | TOLD)
    check_component(Evaluator, SETTINGS, {"records": RECORDS}, lambda: FakeContext(models={"student": student}))

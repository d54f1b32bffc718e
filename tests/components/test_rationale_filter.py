# SPDX-License-Identifier: Apache-2.0
"""The filter keeps rationales that help; every rejected one says why; nothing is lost between the two tables."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic import testing
from osmotic.components import rationale_rules as rules
from osmotic.components.rationale_filter import RationaleFilter, RationaleFilterConfig
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

REAL = Path(__file__).resolve().parents[3] / "shared/data/commonsense_qa_llm_rationales/rationales.jsonl"
CONFIG = {"answer_pattern": r"goes to (\S+)", "gold": "{{ ward }}"}
GOOD = "the finding points to lungs, and that goes to alder-ward"
PROMPT = "patient Ann Lee from Ashford, seen on 3 May, reports wheezing after a paint-fume episode"


def run(rationales, config=CONFIG, context=None):
    """Run the filter over one record a rationale (text, or a row without id); gives {id: reason or None} and the outputs."""
    rows = [{"rationale": r, "finished": True, "prompt": PROMPT} if isinstance(r, str) else r for r in rationales]
    inputs = {
        "records": Records([{"id": str(i), "ward": "alder-ward", "q": f"question {i}"} for i in range(len(rows))], ["id"]),
        "rationales": Records([{"id": str(i)} | row for i, row in enumerate(rows)], ["id", "rationale"]),
    }
    outputs = testing.run_component(RationaleFilter, config, inputs, context)
    reasons = {row["id"]: None for row in outputs["kept"]} | {row["id"]: row["reason"] for row in outputs["rejected"]}
    return [reasons[str(i)] for i in range(len(rows))], outputs


def test_each_reason_in_the_order_of_the_chain():
    texts = {
        GOOD: None,
        "": "empty",
        " \n": "empty",
        "goes to": "too-short",
        "goes to alder-ward " * 101: "too-long",
        "I’m sorry, but I cannot say where this goes to alder-ward": "refusal",  # noqa: RUF001
        "As an AI model, it goes to alder-ward": "refusal",
        f"{PROMPT} goes to alder-ward": None,
        PROMPT: "echo",
        "no ward is named in this one": "no-answer",
        "first it goes to alder-ward, but then it goes to birch-ward": "wrong-answer",
        "first it goes to birch-ward, but then it goes to Alder-Ward.": None,
    }
    found, outputs = run(list(texts))
    assert found == list(texts.values())
    assert outputs["report"].data == {
        "records": 12,
        "kept": 3,
        "rejected": {"echo": 1, "empty": 2, "no-answer": 1, "refusal": 2, "too-long": 1, "too-short": 1, "wrong-answer": 1},
        "share": 0.25,
    }
    assert outputs["kept"].columns == ["id", "rationale"] and outputs["rejected"].columns == ["id", "rationale", "reason"]


def test_what_ended_by_the_length_limit_is_rejected_unless_it_may():
    cut = {"rationale": GOOD, "finished": False, "prompt": PROMPT}
    assert run([cut])[0] == ["unfinished"]
    assert run([cut], {**CONFIG, "require_finished": False})[0] == [None]
    without = [
        {"rationale": "It goes to alder-ward. Then the"},
        {"rationale": "It goes to alder-ward. Good."},
        {"rationale": GOOD},
    ]
    assert run(without)[0] == ["unfinished", None, None]


def test_the_order_of_rules_decides_the_reason():
    assert run([""], {**CONFIG, "rules": ["answer", "format"]})[0] == ["no-answer"]
    assert run(["", "x"], {"rules": []})[0] == [None, None]


def test_later_rules_see_only_what_earlier_ones_left():
    texts = ["long enough but no ward", GOOD, GOOD.upper(), GOOD + " now"]
    config = {**CONFIG, "rules": ["format", "answer", "duplicates"], "answer_pattern": r"(?i)goes to (\S+)"}
    assert run(texts, config)[0] == ["no-answer", None, "duplicate", None]
    assert run(texts, {**config, "near_duplicate": 0.5})[0] == ["no-answer", None, "duplicate", "duplicate"]


def test_usefulness_compares_the_answer_with_and_without_the_rationale():
    scorer = testing.FakeScorer()
    context = testing.FakeContext(models={"slm": scorer})
    config = {"rules": ["usefulness"], "gold": "{{ ward }}", "model": "slm", "label_prompt": "{{ q }} {{ rationale }} ->"}
    assert run(["points to alder ward", "points to birch", ""], config, context)[0] == [None, "not-useful", "not-useful"]
    assert ("question 0  ->", "alder-ward") in scorer.pairs and context.log[-1][:2] == (3, 3)

    class Short:
        def log_likelihood(self, pairs):
            return []

    with pytest.raises(ComponentError, match="0 scores to 2 pairs"):
        run(["x"], config, testing.FakeContext(models={"slm": Short()}))


def test_nothing_kept_is_said_and_is_no_error():
    found, outputs = run(["no", "nothing"])
    assert found == ["too-short", "too-short"] and "labels alone" in outputs["report"].data["warning"]
    kept = Records.from_files(outputs["kept"].to_files())
    assert len(kept) == 0 and kept.columns == ["id", "rationale"]
    assert run([])[1]["report"].data["share"] == 0.0


def tables(given, records=3):
    rows = [{"id": i, "rationale": GOOD, "finished": True} for i in given]
    return {"records": Records([{"id": str(i), "ward": "alder-ward"} for i in range(records)]), "rationales": Records(rows)}


def test_count_makes_a_missing_rationale_an_error():
    with pytest.raises(DataError, match="1 of 3 records have no rationales: '1'"):
        testing.run_component(RationaleFilter, CONFIG, tables(["2", "0"]))
    outputs = testing.run_component(RationaleFilter, {**CONFIG, "rules": ["answer"]}, tables(["2", "0"]))
    assert [row["id"] for row in outputs["kept"]] == ["0", "2"] and outputs["report"].data["missing"] == 1


@pytest.mark.parametrize("given", [["0", "1", "2", "9"], ["0", "0", "1", "2"]])
@pytest.mark.parametrize("chain", [["count"], []])
def test_unknown_and_doubled_ids_are_always_errors(given, chain):
    with pytest.raises(DataError):
        testing.run_component(RationaleFilter, {**CONFIG, "rules": chain}, tables(given))


def test_an_empty_right_answer_is_an_error():
    with pytest.raises(DataError, match="empty for 1 of 1"):
        run([GOOD], {**CONFIG, "gold": "{{ '' }}"})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "rule 'answer' needs 'answer_pattern'.*'gold'"),
        ({**CONFIG, "answer_pattern": "no group"}, "exactly one group"),
        ({**CONFIG, "answer_pattern": "(a)(b)"}, "exactly one group"),
        ({**CONFIG, "answer_pattern": "(a"}, "not a valid regular expression"),
        ({**CONFIG, "rules": ["answer", "answer"]}, "stands twice"),
        ({**CONFIG, "rules": ["leakage"]}, "rules"),
        ({"rules": ["usefulness"], "gold": "x"}, "needs 'model'"),
        ({**CONFIG, "min_words": 9, "max_words": 3}, "more than max_words"),
        ({**CONFIG, "near_duplicate": 0}, "greater than 0"),
        ({**CONFIG, "alpha": 1}, "unknown key"),
    ],
)
def test_wrong_configurations_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        run([GOOD], config)


def test_slots_are_checked_before_anything_runs():
    schema = RecordSchema(fields={"ward": FieldSpec(text=True)})
    config = RationaleFilterConfig(**{**CONFIG, "gold": "{{ word }}", "label_prompt": "{{ rationale }}{{ q }}"})
    assert RationaleFilter.check(config, schema) == [
        "gold: unknown slot 'word'; did you mean 'ward'?",
        "label_prompt: unknown slot 'q'; known: rationale, ward",
    ]
    assert RationaleFilter.check(config, None) == ()


def test_it_fits_the_contract():
    testing.check_component(RationaleFilter, CONFIG, tables(["2", "0", "1"]))


def slow_duplicates(texts, threshold):
    """The definition: compare with every earlier one that stays."""
    stays, out = [], []
    for i, text in enumerate(texts):
        mine = rules.grams(text)
        same = any(len(mine & other) >= threshold * len(mine | other) - 1e-9 for other in stays if mine and other)
        (out if same else stays).append(i if same else mine)
    return out


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=25),
    st.sampled_from([0.2, 0.5, 0.75, 0.9, 1.0]),
)
def test_near_duplicates_are_found_exactly(texts, threshold):
    assert rules.near_duplicates(texts, threshold) == slow_duplicates(texts, threshold)


def test_near_duplicates_of_many_texts_are_fast():
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(30)) for _ in range(5_000)]
    texts += [text + " end" for text in texts[:500]]
    assert rules.near_duplicates(texts, 0.9) == list(range(5_000, 5_500))


def test_words_are_counted_in_scripts_without_spaces_too():
    assert len(rules.words("患者は肺の病気です")) == 9
    assert rules.words("Don’t re-use it, B2!") == ["don't", "re-use", "it", "b2"]  # noqa: RUF001
    assert rules.answer_key(" (E). ") == rules.answer_key("e") == "e"
    assert not rules.is_refusal("the sign says: do not say i'm sorryness", rules.REFUSALS)


@pytest.mark.skipif(not REAL.is_file(), reason="the real rationales are not on this machine")
def test_defaults_are_sensible_on_real_rationales():
    """1,221 rationales of a real teacher: no refusals, 3 that only repeat the question, 170 cut ones, found by their text."""
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    records = Records([{"id": str(i), "gold": row["answer"]} for i, row in enumerate(rows)])
    rationales = Records([{"id": str(i), "rationale": r["rationale"], "prompt": r["question"]} for i, r in enumerate(rows)])
    config = {"gold": "{{ gold }}", "answer_pattern": r"(?:answer is|answer must be|must be|[Oo]ption) \(?([A-E])\b"}
    outputs = testing.run_component(RationaleFilter, config, {"records": records, "rationales": rationales})
    report = outputs["report"].data
    assert set(report["rejected"]) == {"echo", "unfinished", "no-answer", "wrong-answer"}
    assert report["rejected"]["unfinished"] == 170 and report["rejected"]["echo"] == 3
    ends = [row["rationale"].rstrip()[-1] for row in outputs["kept"]]
    assert len(ends) > 100 and all(end in ".!?\"')" for end in ends)
    correct = {str(i) for i, row in enumerate(rows) if row["correct"]}
    assert sum(row["id"] in correct for row in outputs["kept"]) / len(outputs["kept"]) > 0.95
    assert len(rules.near_duplicates([row["rationale"] for row in rows], 0.9)) < 10

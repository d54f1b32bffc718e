# SPDX-License-Identifier: Apache-2.0
"""The filter keeps rationales that help; every rejected one says why; nothing is lost between the two tables."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic import testing
from osmotic.components import near_duplicates as near
from osmotic.components import rationale_rules as rules
from osmotic.components.languages import COMMON, is_foreign, language_of
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
    assert ("question 0  ->", "alder-ward") in scorer.pairs and context.log[-1][:2] == (6, 6)

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
        ({**CONFIG, "rules": ["leakage"]}, "rule 'leakage' needs 'released'"),
        ({**CONFIG, "rules": ["prediction"]}, "needs 'model'.*needs 'label_prompt'.*needs 'choices'"),
        ({"rules": ["consistency"]}, "needs 'answer_pattern'"),
        ({**CONFIG, "rules": ["spelling"]}, "rules"),
        ({**CONFIG, "language": "xx"}, "language"),
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
    config = RationaleFilterConfig(
        **{**CONFIG, "choices": {"A": "{{ a }}", "B": ""}, "label_target": "{{ text }}", "released": ["r"]}
    )
    found = RationaleFilter.check(config, schema)
    assert [text.split(":")[0] for text in found] == ["choices.A", "released"]
    assert RationaleFilter.check(config, None) == ()


def test_it_fits_the_contract():
    testing.check_component(RationaleFilter, CONFIG, tables(["2", "0", "1"]))


def slow_duplicates(texts, threshold):
    """The definition: compare with every earlier one that stays."""
    stays, out = [], []
    for i, text in enumerate(texts):
        mine = near.grams(text)
        same = any(len(mine & other) >= threshold * len(mine | other) - 1e-9 for other in stays if mine and other)
        (out if same else stays).append(i if same else mine)
    return out


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), max_size=25),
    st.sampled_from([0.2, 0.5, 0.75, 0.9, 1.0]),
)
def test_near_duplicates_are_found_exactly(texts, threshold):
    assert near.near_duplicates(texts, threshold) == slow_duplicates(texts, threshold)


def test_near_duplicates_of_many_texts_are_fast():
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(30)) for _ in range(5_000)]
    texts += [text + " end" for text in texts[:500]]
    assert near.near_duplicates(texts, 0.9) == list(range(5_000, 5_500))


def test_minhash_finds_what_the_exact_search_finds():
    """750 texts, of which 250 are near an earlier one: at most 1 in 1,000 pairs is missed, and none invented."""
    rng = random.Random(5)
    texts = [[f"w{rng.randrange(300)}" for _ in range(rng.randrange(1, 40))] for _ in range(500)]
    for base in rng.choices(texts, k=250):
        copy = list(base)
        copy[rng.randrange(len(copy))] = "changed"
        texts.append(copy)
    joined = [" ".join(text) for text in texts] + ["", ""]
    for threshold in (0.5, 0.8, 0.9, 1.0):
        exact, fast = near.near_duplicates(joined, threshold), near.near_duplicates(joined, threshold, exact=0)
        assert len(set(exact) ^ set(fast)) <= 2 and (threshold == 1.0 or len(exact) > 10)


def test_minhash_of_many_texts_is_fast():
    rng = random.Random(3)
    texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(12)) for _ in range(3_000)]
    texts += [text.upper() for text in texts[:500]]
    assert near.near_duplicates(texts, 0.9, exact=3_000) == list(range(3_000, 3_500))


def test_words_are_counted_in_scripts_without_spaces_too():
    assert len(rules.words("患者は肺の病気です")) == 9
    assert rules.words("Don’t re-use it, B2!") == ["don't", "re-use", "it", "b2"]  # noqa: RUF001
    assert rules.answer_key(" (E). ") == rules.answer_key("e") == "e"
    assert not rules.is_refusal("the sign says: do not say i'm sorryness", rules.REFUSALS)


FIELDS = {"who": FieldSpec(text=True), "ward": FieldSpec(domain=("alder-ward", "birch ward", "birch"))}
SENT = "patient Ben Lee from Ashford, 41, goes to birch ward"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Ben Lee is from Ashford and 41 years old", None),
        ("Ann must go there", "leakage"),
        ("a person of 52 must go there", "leakage"),
        ("it is alder-ward for this one", "leakage"),
        ("the alder is a tree", None),
        ("from what he has seen, of the two", None),
    ],
)
def test_what_the_teacher_was_not_shown_is_leakage(text, reason):
    """The record: Ann Lee, 52, of what the teacher saw Ben Lee, 41, from Ashford; alder-ward became birch ward."""
    records = Records([{"id": "0", "who": "Ann Lee, 52, from the two", "ward": "alder-ward"}])
    inputs = {"records": records, "rationales": Records([{"id": "0", "rationale": text, "prompt": SENT}])}
    context = testing.FakeContext(record_schema=RecordSchema(fields=FIELDS))
    config = {"rules": ["leakage"], "released": ["who", "ward"], "leaked_words": 1}
    found = testing.run_component(RationaleFilter, config, inputs, context)
    assert [row["reason"] for row in found["rejected"]] == [reason] * (reason is not None)
    lenient = testing.run_component(RationaleFilter, config | {"leaked_words": 2}, inputs, context)
    assert len(lenient["kept"]) == 1
    own = testing.run_component(RationaleFilter, config | {"released": ["ward"]}, inputs, context)
    assert len(own["kept"]) == (text != "it is alder-ward for this one")


@pytest.mark.parametrize(
    ("own", "text", "found"),
    [
        ("Ann Smith", "Smith's leg is broken", {"smith"}), ("Smith's leg", "Smith has a leg", {"smith", "leg"}),
        ("a post-operative pain", "Post operative, he said", {"post", "operative"}),
        ("Jean Dupont", "chez l'dupont", {"dupont"}),
        ("O'Brien", "o\N{RIGHT SINGLE QUOTATION MARK}brien's", {"brien"}), ("I don't know", "he don't", {"don't"}),
        ("it's what's", "what's it's", set()),
    ],
)  # fmt: skip
def test_hyphens_and_possessives_hide_no_word(own: str, text: str, found: set[str]) -> None:
    assert rules.leaked([own], [], text, "", COMMON) == found
    assert not rules.leaked([own], [], text, own, COMMON)
    assert rules.leaked([], ["alder-ward"], "the alder ward's bed", "", COMMON) == {"alder-ward"}


def test_leakage_without_the_prompt_is_an_error():
    inputs = {"records": Records([{"id": "0", "who": "Ann"}]), "rationales": Records([{"id": "0", "rationale": "x"}])}
    context = testing.FakeContext(record_schema=RecordSchema(fields={"who": FieldSpec(text=True)}))
    with pytest.raises(DataError, match="'prompt'"):
        testing.run_component(RationaleFilter, {"rules": ["leakage"], "released": ["who"]}, inputs, context)


def test_other_languages_are_told_by_script_and_by_function_words():
    english = "What is the capital of the country that was named for its rivers?"
    other = [
        "Столица этой страны называется так же.", "この国の首都はとても大きいです", "عاصمة هذا البلد مدينة كبيرة جدا",
        "Die Hauptstadt ist nicht der Ort, den man mit dem Fluss und auch sich selbst verbindet.",
        "La capitale est dans une région qui est sur le fleuve avec les villes.",
        "La capital está en el país, pero no es como las otras porque es muy grande.",
    ]  # fmt: skip
    assert all(is_foreign(text, english) for text in other) and all(is_foreign(text, "", "en") for text in other)
    fine = [english, "Paris.", "x = 3 * π + 2, so Ω is 41.", "Berlin, Madrid, São Paulo und Köln are the capitals of it.", ""]
    assert not any(is_foreign(text, english) for text in fine)
    assert not any(is_foreign(text, "") for text in other)  # nothing to compare with
    assert not is_foreign(other[3], "Was ist das und wo ist der Ort, den ich nicht kenne?") and is_foreign(
        english, other[3], "de"
    )
    assert [language_of(text) for text in (english, *other[3:])] == ["en", "de", "fr", "es"] and language_of("Paris") is None
    rows = [{"rationale": other[3], "prompt": english}, {"rationale": english, "prompt": english}]
    assert run(rows, {"rules": ["language"]})[0] == ["language", None]


def test_what_the_teacher_did_not_answer_is_rejected_whatever_the_rules():
    rows = [
        {"rationale": "", "problem": "timeout"},
        {"rationale": GOOD, "problem": ""},
        {"rationale": None, "problem": "Ann Lee"},
    ]
    assert run(rows, {"rules": []})[0] == ["teacher-timeout", None, "teacher-problem"]
    assert run(rows)[0] == ["teacher-timeout", None, "teacher-problem"]
    cut = {"rationale": GOOD, "problem": "decoded-too-long", "finished": False}
    rows = [{"rationale": "", "problem": "decoded-echo"}, cut, cut | {"rationale": ""}]
    rows[0]["finished"] = True
    assert run(rows)[0] == ["decoded-echo", "unfinished", "decoded-too-long"]
    assert run(rows, {**CONFIG, "require_finished": False})[0] == ["decoded-echo", None, "decoded-too-long"]


def samples(answers, rules=("count", "format", "consistency"), **config):
    """answers: of each record, its samples' last words. Gives (kept texts by id, reasons by (id, sample), report)."""
    records = Records([{"id": str(i), "ward": "elm"} for i in range(len(answers))])
    rows = [
        {"id": str(i), "sample": s, "rationale": f"say {s}: this one goes to {word}."}
        for i, words in enumerate(answers) for s, word in enumerate(words)
    ]  # fmt: skip
    random.Random(1).shuffle(rows)
    config = {"answer_pattern": r"goes to (\w*)", "gold": "{{ ward }}", **config, "rules": list(rules)}
    found = testing.run_component(RationaleFilter, config, {"records": records, "rationales": Records(rows)})
    reasons = {(row["id"], row["sample"]): row["reason"] for row in found["rejected"]}
    return {row["id"]: row["rationale"] for row in found["kept"]}, reasons, found


def test_of_several_samples_one_of_the_majority_is_kept():
    kept, reasons, found = samples([["oak", "elm", "elm"], ["oak", "elm", "ash"], ["elm", "oak", "elm"]])
    assert kept == {"0": "say 1: this one goes to elm.", "2": "say 0: this one goes to elm."}
    assert reasons == {
        ("0", 0): "minority", ("0", 2): "another-sample", ("1", 0): "no-majority", ("1", 1): "no-majority",
        ("1", 2): "no-majority", ("2", 1): "minority", ("2", 2): "another-sample",
    }  # fmt: skip
    report = found["report"].data
    assert report["share"] == pytest.approx(2 / 3) and report["samples"] == 9 and report["records"] == 3
    assert found["rejected"].columns == ["id", "sample", "rationale", "reason"]
    assert found["metrics"].outcomes["survival"] == [1, 0, 1]


def test_the_majority_may_be_wrong_and_a_tie_is_none():
    kept, reasons, _ = samples([["oak", "oak", "elm"], ["oak", "elm", ""]], ("consistency", "answer"))
    assert not kept and reasons["0", 0] == "wrong-answer" and reasons["1", 0] == reasons["1", 1] == "no-majority"
    assert len(samples([["oak", "elm", "elm", "ash"]], agreement=0.4)[0]) == 1
    assert not samples([["oak", "elm", "elm", "ash"]])[0]


def test_an_empty_answer_has_no_vote_and_samples_come_in_the_order_of_their_numbers() -> None:
    kept, reasons, _ = samples([["", "", "elm"], ["oak"] + ["ash"] + ["elm"] * 10], ("consistency",))
    assert kept == {"0": "say 2: this one goes to elm.", "1": "say 2: this one goes to elm."}  # not 10
    assert reasons["0", 0] == reasons["0", 1] == "no-answer"


def test_samples_must_be_told_apart_and_be_as_many():
    with pytest.raises(DataError, match="different samples"):
        samples([["oak", "elm"], ["oak"]])
    assert len(samples([["elm", "elm"], ["elm"]], ["consistency"])[0]) == 2
    with pytest.raises(DataError, match="more than once"):
        samples([["oak", "elm"]], ["count", "format"])
    twice = [{"id": "0", "sample": 1, "rationale": GOOD}] * 2
    with pytest.raises(DataError, match="sample of a record came more than once"):
        inputs = {"records": Records([{"id": "0", "ward": "x"}]), "rationales": Records(twice)}
        testing.run_component(RationaleFilter, {**CONFIG, "rules": ["consistency"]}, inputs)


def test_without_a_match_the_choice_named_last_is_the_answer():
    config = {"rules": ["answer"], "gold": "B", "choices": {"A": "oven", "B": "fridge", "C": "fridge door", "D": "{{ q }}"}}
    texts = {
        "Not the oven: milk is kept in a Fridge.": None,
        "The fridge door is where it is kept.": "wrong-answer",
        "It is not in the fridge but in the oven": "wrong-answer",
        "it is (A), or rather [b]": None,
        "an ovenproof fridges": "no-answer",
        "ask question 5": "wrong-answer",
    }
    assert run(list(texts), config)[0] == list(texts.values())
    patterned = {**config, "answer_pattern": r"answer is (\w)"}
    assert run(["The answer is B, not the oven", "the oven"], patterned)[0] == [None, "wrong-answer"]


def test_prediction_asks_the_local_model():
    scorer = testing.FakeScorer()
    config = {
        "rules": ["prediction"], "gold": "B", "choices": {"A": "oven", "B": "fridge"}, "model": "slm",
        "label_prompt": "{{ q }} {{ rationale }} so:", "label_target": "the {{ text }}",
    }  # fmt: skip
    context = testing.FakeContext(models={"slm": scorer})
    assert run(["milk needs a fridge", "hot like an oven"], config, context)[0] == [None, "wrong-prediction"]
    assert ("question 0 milk needs a fridge so:", "the fridge") in scorer.pairs and len(scorer.pairs) == 4
    assert run(["milk needs a fridge", "hot like an oven"], config, context)[0] == [None, "wrong-prediction"]
    assert len(scorer.pairs) == 4  # from the journal
    with pytest.raises(DataError, match="not among the choices"):
        run(["x"], {**config, "gold": "C"}, context)
    useful = {**config, "rules": ["usefulness"]}
    for gold in ("(b)", "B."):  # the choice B, as for the other rules: its text is scored
        scorer.pairs.clear()
        run(["milk needs a fridge"], {**useful, "gold": gold}, testing.FakeContext(models={"slm": scorer}))
        assert {target for _, target in scorer.pairs} == {"the fridge"}
    assert run(["milk needs a fridge", "hot like an oven"], useful, context)[0] == [None, "not-useful"]
    assert RationaleFilter.mixes(RationaleFilterConfig(**config)) and RationaleFilter.mixes(RationaleFilterConfig(**useful))
    assert not RationaleFilter.mixes(RationaleFilterConfig(**CONFIG))


def test_wordings_of_refusals():
    for text in [
        "I'm afraid I cannot say",
        "I must decline to answer",
        "Unfortunately, I am only a model",
        "I do not have enough information to",
    ]:
        assert rules.is_refusal(text, rules.REFUSALS), text
    assert not rules.is_refusal("The man is not able to lift it, he will not win", rules.REFUSALS)


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
    assert len(near.near_duplicates([row["rationale"] for row in rows], 0.9)) < 10


@pytest.mark.skipif(not REAL.is_file(), reason="the real rationales are not on this machine")
def test_the_choice_named_last_doubles_what_real_rationales_give():
    """Without looking at `correct`: of 1,221 rationales (789 right) over 500 are kept, nine in ten of them right."""
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    parts = [dict(re.findall(r"\(([A-E])\) (.*?)(?= \([A-E]\) |$)", row["question"])) for row in rows]
    records = Records([{"id": str(i), "gold": row["answer"], **parts[i]} for i, row in enumerate(rows)])
    rationales = Records([{"id": str(i), "rationale": r["rationale"], "prompt": r["question"]} for i, r in enumerate(rows)])
    config = {"gold": "{{ gold }}", "choices": {letter: f"{{{{ {letter} }}}}" for letter in "ABCDE"}}
    kept = testing.run_component(RationaleFilter, config, {"records": records, "rationales": rationales})["kept"]
    right = sum(rows[int(row["id"])]["correct"] for row in kept)
    assert len(kept) > 480 and right / len(kept) > 0.88

# SPDX-License-Identifier: Apache-2.0
"""The augmenting teacher: demonstrations, new samples, labels of every kind, rubbish, time-outs, resume, determinism."""

import itertools
import json
import random
import re

import pytest

from osmotic.components.teacher_augmenter import TeacherAugmenter, TeacherAugmenterConfig
from osmotic.components.teaching.taking import Deck
from osmotic.plugins.contract import Answer, Records
from osmotic.plugins.fakes import hashed
from osmotic.plugins.labelled.formats import Sample, SampleFormat
from osmotic.plugins.testing import FakeContext, FakeTextGenerator, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema, numbered

LINE = SampleFormat("label: {{ label }} text: {{ text }}")
LONG = "x" * 300
WANTED = re.compile(r'new texts of the label "(.*?)"')


def rows(labels=("1", "10"), count: int = 12) -> Records:
    made = [{"id": numbered(i), "label": labels[i % len(labels)], "text": f"Old text {i}."} for i in range(count)]
    return Records(made, ("id", "label", "text"))


def augment(model, texts: Records | None = None, given: FakeContext | None = None, **changes):
    given = given or FakeContext(models={"teacher": model} if model else {})
    config = {"model": "teacher", "per_label": 6, "per_prompt": 2, **changes}
    return run_component(TeacherAugmenter, config, {"texts": rows() if texts is None else texts}, given)


def wanted(prompt: str) -> str:
    return WANTED.search(prompt)[1]


def writes(prompt: str) -> str:
    """Two new texts of the label wanted, which depend on the prompt alone."""
    return "\n".join(f"label: {wanted(prompt)} text: New text {hashed(prompt + str(i))}." for i in range(2))


class Attempts:
    """Says what a function of (prompt, attempt) says; a word of Answer.problem after "!"."""

    def __init__(self, say) -> None:
        self.say, self.seen, self.how = say, [], []

    def generate(self, prompts, how):
        out = []
        for index, prompt in enumerate(prompts):
            word = self.say(prompt, self.seen.count(prompt))
            self.seen.append(prompt)
            self.how.append(how.of(index))
            out.append(Answer("", False, 0, problem=word[1:]) if word[:1] == "!" else Answer(word, True, 3, 5, 0.5))
        return out


def test_new_samples_of_every_label_with_numbered_ids():
    model = FakeTextGenerator(writes)
    out = augment(model)
    made = out["augmented"].rows
    assert [row["id"] for row in made] == [numbered(i) for i in range(12)] and made[0].keys() == {"id", "label", "text"}
    assert [row["label"] for row in made] == ["1"] * 6 + ["10"] * 6 and len({row["text"] for row in made}) == 12
    values = out["report"].values
    assert (values["augmented"], values["short"], values["rejected"], values["prompts"], len(model.prompts)) == (12, 0, 0, 6, 6)
    assert out["audit"].data == {
        "rejected": [],
        "labels_without_examples": [],
        "labels": {"1": {"examples": 6, "augmented": 6}, "10": {"examples": 6, "augmented": 6}},
    }


def test_prompts_show_two_of_every_label_and_all_of_them_in_turn():
    model = FakeTextGenerator(writes)
    augment(model, per_label=12)
    for prompt in model.prompts:
        shown = [one.label for one in LINE.parse(prompt.partition("\n\nWrite")[0], ["1", "10"]).samples]
        assert sorted(shown) == ["1", "1", "10", "10"]
    assert all(any(f"Old text {i}." in prompt for prompt in model.prompts[:3]) for i in range(12))


def test_a_deck_deals_all_before_any_again():
    deck = Deck([Sample("a", str(i)) for i in range(5)], random.Random(1))
    hands = [[one.text for one in deck.draw(2)] for _ in range(5)]
    assert sorted(card for hand in hands for card in hand) == sorted("0123401234") and all(
        len(set(hand)) == 2 for hand in hands
    )
    assert len(deck.draw(9)) == 5


@pytest.mark.parametrize(
    "labels", [("1", "2"), tuple(str(i) for i in range(1, 13)), (LONG, "a+b*(c)"), ("world", "world news")]
)
def test_labels_of_every_kind_come_back_as_they_are(labels):
    out = augment(FakeTextGenerator(writes), rows(labels, 3 * len(labels)), per_label=2)
    assert sorted(row["label"] for row in out["augmented"]) == sorted(label for label in labels for _ in range(2))


def test_one_label_or_a_label_without_examples():
    out = augment(FakeTextGenerator(writes), rows(("1",)))
    assert out["report"].values["augmented"] == 6 and out["report"].values["labels"] == 1
    model = FakeTextGenerator(writes)
    out = augment(model, rows(("1",)), labels=["1", "10", "3"])
    assert out["report"].values["missing_labels"] == 2 and out["report"].notes == {"labels_without_examples": "10, 3"}
    assert out["audit"].data["labels_without_examples"] == ["10", "3"]
    assert {wanted(prompt) for prompt in model.prompts} == {"1", "10", "3"}  # asked for by name all the same


@pytest.mark.parametrize("labels", [["1", ""], ["1", " 1"], ["1", "a\nb"], ["1", "it text: is"]])
def test_labels_that_no_prompt_can_show_are_refused(labels):
    config = TeacherAugmenterConfig.model_validate({"model": "teacher", "labels": labels})
    assert TeacherAugmenter.check(config, None)[0].startswith("labels: ")
    with pytest.raises(ConfigError):
        augment(None, labels=labels)


def test_rows_that_cannot_be_shown_are_counted():
    texts = Records(
        [
            *rows(),
            {"id": "a", "label": "", "text": "x"},
            {"id": "b", "label": "1", "text": ""},
            {"id": "c", "label": "7", "text": "x"},
            {"id": "d", "label": "1", "text": "with a label: in it"},
        ]
    )
    values = augment(FakeTextGenerator(writes), texts, labels=["1", "10"])["report"].values
    assert (values["rows"], values["empty"], values["foreign"], values["unwritable"]) == (16, 2, 1, 1)


def test_nothing_in_nothing_out_and_no_model():
    for labels in ([], ["1", "2"]):
        out = augment(None, Records([]), labels=labels)
        assert out["augmented"].columns == ["id", "label", "text"] and not len(out["augmented"])
        assert out["report"].values["prompts"] == 0 and out["report"].values["short"] == 6 * len(labels)


def test_labels_outside_the_list_are_rejected_and_kept_raw():
    out = augment(FakeTextGenerator(lambda p: writes(p) + "\nlabel: 100 text: Not on the list."))
    assert len(out["augmented"]) == 12 and out["report"].values["rejected_unknown_label"] == 6
    assert out["audit"].data["rejected"][0] == {
        "label": "1",
        "reason": "unknown-label",
        "raw": "label: 100 text: Not on the list.",
    }


def test_copies_duplicates_surplus_and_other_labels():
    count = itertools.count()

    def say(prompt):
        lines = [
            "label: 1 text: old  TEXT 3.",
            "label: 1 text: Twice.",
            *(f"label: 10 text: N{next(count)}." for _ in range(4)),
        ]
        return "\n".join(lines)

    out = augment(FakeTextGenerator(say))
    values = out["report"].values
    assert [row["label"] for row in out["augmented"]] == ["1"] + ["10"] * 6
    assert (values["copies"], values["duplicates"], values["surplus"], values["other_label"]) == (6, 5, 18, 6)
    assert values["read"] == 36 and values["short"] == 5


def test_rubbish_is_asked_again_and_kept_raw():
    model = Attempts(
        lambda prompt, attempt: f"I cannot, {attempt}." if wanted(prompt) == "10" or not attempt else writes(prompt)
    )
    out = augment(model, attempts=3)
    values = out["report"].values
    assert (values["augmented"], values["short"], values["asked_again"]) == (6, 6, 3 * 1 + 3 * 2)
    assert values["rejected_unreadable"] == 3 and values["rejected_asked_again"] == 9 and values["cost"] == 0.5 * 15
    assert {one["raw"] for one in out["audit"].data["rejected"]} == {"I cannot, 0.", "I cannot, 1.", "I cannot, 2."}
    assert len({how.seed for how in model.how}) == len(model.how) == 15


def test_a_teacher_that_times_out():
    with pytest.raises(ComponentError, match="3 timeout"):
        augment(Attempts(lambda prompt, attempt: "!timeout" if wanted(prompt) == "10" else writes(prompt)), attempts=1)
    model = Attempts(lambda prompt, attempt: "!timeout" if wanted(prompt) == "10" else writes(prompt))
    given = FakeContext(models={"teacher": model})
    out = augment(model, given=given, max_failures=0.5)
    assert out["report"].values["unanswered"] == 3 and out["report"].values["short"] == 6
    model.say = lambda prompt, attempt: writes(prompt)
    count = len(model.seen)
    assert augment(model, given=given)["augmented"].rows == augment(FakeTextGenerator(writes))["augmented"].rows
    assert len(model.seen) == count + 3


def test_a_killed_task_pays_no_answer_again():
    class Dies(FakeTextGenerator):
        def generate(self, prompts, how):
            if len(self.prompts) >= 4:
                raise KeyboardInterrupt
            return super().generate(prompts, how)

    broken, other = Dies(writes), FakeTextGenerator(writes)
    given = FakeContext(models={"teacher": broken})
    with pytest.raises(KeyboardInterrupt):
        augment(broken, given=given, batch=2)
    given.models = {"teacher": other}
    out = augment(other, given=given, batch=2)
    assert len(other.prompts) == 2 and not set(other.prompts) & set(broken.prompts)
    whole = augment(FakeTextGenerator(writes))
    assert out["augmented"].rows == whole["augmented"].rows and out["report"].values == whole["report"].values
    assert given.log[-1][:2] == (6, 6)


def test_alike_prompts_are_asked_each_with_its_own_seed():
    model = Attempts(lambda prompt, attempt: f"label: 1 text: New {attempt}.")
    out = augment(model, rows(("1",), 1), per_label=6)
    assert len(set(model.seen)) == 1 and len(model.seen) == 3 and len({how.seed for how in model.how}) == 3
    assert [row["text"] for row in out["augmented"]] == ["New 0.", "New 1.", "New 2."]


def test_one_alike_prompt_of_many_that_fails_is_one_failure_of_all():
    """Eleven alike prompts and one that times out: 1 of 12 may fail, whichever of the alike ones it is."""
    model = Attempts(lambda prompt, attempt: "!timeout" if attempt == 11 else f"label: 1 text: New {attempt}.")
    out = augment(model, rows(("1",), 1), per_label=12, per_prompt=1, attempts=1, max_failures=0.1, batch=1)
    assert (out["report"].values["unanswered"], out["report"].values["augmented"], out["report"].values["prompts"]) == (
        1,
        11,
        12,
    )


def test_what_was_paid_for_nothing_is_told():
    model = Attempts(lambda prompt, attempt: "I cannot." if not attempt else "!bad-answer")
    out = augment(model, max_failures=1)
    assert out["report"].values["cost"] == 0.5 * 6 and len(model.seen) == 12  # an answer that did not come is free here
    assert out["report"].values["unanswered"] == 6 and out["report"].values["rejected_unreadable"] == 6


@pytest.mark.parametrize("more", [{}, {"json": True}, {"prompt": "{{ examples }}\nNow a new one, please, of {{ label }}:"}])
def test_an_echo_of_the_prompt_is_no_new_text(more):
    """The last example would run on into what is asked for, and come out as a text that is none of those known."""
    for part in (lambda prompt: prompt, lambda prompt: "Sure! " + prompt.partition("\n\n")[2]):
        out = augment(FakeTextGenerator(lambda p, part=part: f"{part(p)}\nlabel: 1 text: New {hashed(p)}."), **more)
        assert all(row["text"].startswith("New ") and "\n" not in row["text"] for row in out["augmented"])
        assert len(out["augmented"]) == 6


def test_the_form_of_an_answer_is_no_text():
    say = '{"samples": [{"label": "1", "text": "..."}]} is the form. {"samples": [{"label": "1", "text": "Quite new."}]}'
    out = augment(FakeTextGenerator(lambda p: say), json=True)
    assert [row["text"] for row in out["augmented"]] == ["Quite new."] and out["report"].values["rejected_no_text"] == 6


def test_near_copies_are_dropped():
    words = [f"w{i}" for i in range(24)]
    known = Records([{"id": numbered(0), "label": "1", "text": " ".join(words)}])
    other = [f"v{i}" for i in range(24)]
    said = [[*words[:9], "other", *words[10:]], other, [*other[:20], "x", *other[21:]], [*words[12:], *other[12:]]]
    out = augment(FakeTextGenerator(lambda p: "\n".join(f"label: 1 text: {' '.join(one)}" for one in said)), known, per_label=2)
    assert [row["text"] for row in out["augmented"]] == [" ".join(said[1]), " ".join(said[3])]
    assert out["report"].values["near_copies"] == 2
    out = augment(
        FakeTextGenerator(lambda p: "\n".join(f"label: 1 text: {' '.join(one)}" for one in said)), known, near_copies=1
    )
    assert len(out["augmented"]) == 4 and out["report"].values["near_copies"] == 0


def test_halves_of_characters_in_an_answer_do_not_break_a_table():
    bad = '{"samples": [{"label": "1", "text": "cut in a face \\ud83d"}]}'
    out = augment(FakeTextGenerator(lambda p: bad if wanted(p) == "1" else "label: 10 text: half \ud83d"), json=True)
    assert {row["text"] for row in out["augmented"]} == {"cut in a face ?", "half ?"}
    assert out["augmented"].to_files()


def test_texts_none_of_which_has_a_label_of_the_list_are_refused():
    with pytest.raises(DataError, match="none of the 12 texts has a label of the list"):
        augment(None, labels=["One", "Ten"])


def test_texts_do_not_depend_on_how_many_are_asked_at_a_time():
    """The generator goes by the seed, and prompts are alike."""

    class Seeded:
        def generate(self, prompts, how):
            return [Answer(f"label: 1 text: T {how.of(i).seed}.", True, 1) for i in range(len(prompts))]

    made = [augment(Seeded(), rows(("1",), 1), per_label=9, batch=batch)["augmented"].rows for batch in (1, 2, 32)]
    assert made[0] == made[1] == made[2] and len({row["text"] for row in made[0]}) == 5


def test_a_deck_of_many_is_dealt_fast():
    deck = Deck([Sample("a", str(i)) for i in range(20_000)], random.Random(1))
    assert len({one.text for _ in range(10_000) for one in deck.draw(2)}) == 20_000


def test_settings_reach_the_model():
    model = Attempts(lambda prompt, attempt: writes(prompt))
    augment(model)
    how = model.how[0]
    assert (how.temperature, how.top_p, how.max_new_tokens, how.json_schema) == (0.8, 0.9, 512, None)
    augment(model, temperature=0.5, top_p=0.7, max_new_tokens=9, stop=["#"])
    how = model.how[-1]
    assert (how.temperature, how.top_p, how.max_new_tokens, how.stop) == (0.5, 0.7, 9, ("#",))


def test_json_is_asked_for_and_read_and_the_format_is_read_where_it_comes_instead():
    def say(prompt):
        samples = [{"label": wanted(prompt), "text": f"New {hashed(prompt + str(i))}"} for i in range(2)]
        return json.dumps({"samples": samples}) if wanted(prompt) == "1" else writes(prompt)

    model = Attempts(lambda prompt, attempt: say(prompt))
    out = augment(model, json=True)
    assert len(out["augmented"]) == 12 and '"samples"' in model.seen[0]
    assert model.how[0].json_schema["properties"]["samples"]["items"]["properties"]["label"]["enum"] == ["1", "10"]


def test_a_prefix_ends_the_prompt_and_begins_the_answer():
    prompt, prefix = "{{ examples }}", "label: {{ label }} text:"
    model = FakeTextGenerator(lambda p: f"New {hashed(p)}.")
    out = augment(model, prompt=prompt, prefix=prefix, per_prompt=1, per_label=2)
    assert [row["label"] for row in out["augmented"]] == ["1", "1", "10", "10"]
    assert model.prompts[0].endswith("\nlabel: 1 text:") and model.prompts[0].count("label: 1 text:") == 3
    for wrong, what in (
        ("Label: {{ label }}", "begins so"),
        ("label: {{ lable }}", "unknown slot"),
        ("{{ label|upper }}", "plain"),
    ):
        config = TeacherAugmenterConfig.model_validate({"model": "teacher", "prompt": prompt, "prefix": wrong})
        assert what in TeacherAugmenter.check(config, None)[0]
    with pytest.raises(ConfigError, match="prefix"):
        augment(model, prefix=prefix, json=True)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"prompt": "Write like {examples}."}, "single braces"),
        ({"prompt": "Write."}, "lacks"),
        ({"prompt": "{{ examples|lower }}"}, "lacks"),
        ({"prompt": "{{ examples }} {{ n }}"}, "unknown slot 'n'"),
        ({"format": "{{ label }}: {{ text }}"}, "before the first slot"),
        ({"format": "label: {{ label }} text: {text}"}, "braces"),
        ({"labels": ["a", "b text: c"]}, "words of the format"),
    ],
)
def test_templates_are_checked_in_the_plan_and_before_a_model_is_asked_for(changes, what):
    schema = RecordSchema(fields={"label": FieldSpec(domain=("A", "B")), "text": FieldSpec(text=True)})
    config = TeacherAugmenterConfig.model_validate({"model": "teacher", **changes})
    assert what in TeacherAugmenter.check(config, schema)[0] and what in TeacherAugmenter.check(config, None)[0]
    with pytest.raises(ConfigError, match=re.escape(what)):  # FakeContext has no model at all
        augment(None, **changes)


def test_the_default_prompts_pass_their_own_checks():
    for changes in ({}, {"json": True}):
        assert TeacherAugmenter.check(TeacherAugmenterConfig.model_validate({"model": "t", **changes}), None) == []


def test_contract_and_determinism():
    config = {"model": "teacher", "per_label": 4}
    check_component(
        TeacherAugmenter, config, {"texts": rows()}, lambda: FakeContext(models={"teacher": FakeTextGenerator(writes)})
    )
    first, second = FakeTextGenerator(writes), FakeTextGenerator(writes)
    augment(first, given=FakeContext(models={"teacher": first}, seed=1))
    augment(second, given=FakeContext(models={"teacher": second}, seed=2))
    assert first.prompts != second.prompts

# SPDX-License-Identifier: Apache-2.0
"""The desk's world: its words, its messages, what is meant by whom, and the shipped data that were made from it."""

import doctest
import importlib.resources
import itertools
import json
import random
from collections import Counter

import pytest
import yaml

from osmotic.plugins.desk import domain, make, teaching, words
from osmotic.schemas.records import RecordSchema

DESK = importlib.resources.files("osmotic.plugins.desk")
NAMES = (*domain.CLIENTS, "public", "exam")
DAY = "today i {} ask about the fee of my fan; {} ago we {} spoke of the leak for my fan."


@pytest.fixture(scope="module")
def shipped():
    def read(name):
        return [json.loads(line) for line in (DESK / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    return {name: read(name) for name in (*NAMES, "instructions")}


def accuracy(instruction, records, taste="llm"):
    """Of the rule that the models learn: how often it answers with the matter of now."""
    return sum(domain.margin(instruction, record["text"], taste) > 0 for record in records) / len(records)


def test_doctests():
    assert doctest.testmod(domain).attempted > 0 and doctest.testmod(domain).failed == 0


def test_no_word_has_two_meanings():
    telling = [word for lists in (words.NOW, words.BEFORE) for part in lists.values() for word in part]
    plain = [word for part in words.PLAIN.values() for word in part]
    matters = [word for part in words.MATTERS.values() for word in part]
    topics = [word for part in words.TOPICS.values() for word in part]
    listed = [*telling, *plain, *matters, *topics, *words.LABELS, *words.LOUD]
    assert [word for word, count in Counter(listed).items() if count > 1] == []
    own = [word for lists in (words.NAMES, words.ITEMS) for part in lists.values() for word in part]
    assert len(own) == len(set(own)) and not set(own) & set(listed)


def test_every_word_of_the_prompts_is_known_and_none_is_unknown(shipped):
    known = set(domain.vocabulary())
    assert len(domain.vocabulary()) == len(known) < 400
    texts = [domain.MANUAL, domain.GOOD, domain.FRAME.strip("[]").replace("{{ text }}", "text")]
    texts += [record["text"] for name in shipped for record in shipped[name]]
    assert {word for text in texts for word in domain.words(text)} <= known


def test_the_manual_prompt_has_free_words_only_and_is_vague():
    found = domain.words(domain.MANUAL)
    assert 8 <= len(found) <= 12 and not set(found) & set(words.LABELS)
    telling = {word for lists in (words.NOW, words.BEFORE) for part in lists.values() for word in part}
    assert not telling & set(found) and len(telling & set(domain.words(domain.GOOD))) >= 3


def test_leanings_are_bounded_follow_their_list_and_differ_by_taste():
    for lists, sign in ((words.NOW, 1), (words.BEFORE, -1)):
        telling = [word for part in lists.values() for word in part]
        assert all(0.1 < sign * domain.leaning(word) <= 1 for word in telling)
        kept = [word for word in telling if sign * domain.leaning(word, "other") > 0.1]
        assert 0.7 < len(kept) / len(telling) < 1
    plain = [word for part in words.PLAIN.values() for word in part]
    assert all(abs(domain.leaning(word, taste)) <= domain.QUIRK for word in plain for taste in ("llm", "other"))
    assert domain.leaning("invoice") == domain.leaning(",") == domain.leaning("no-such-word") == 0


def test_strength_and_loudness_and_pull_add_up():
    text = DAY.format("desperately", "days", "barely")
    assert (domain.label_of(text), domain.label_of(text, "before")) == ("billing", "repair")
    assert domain.loudness(text) == pytest.approx(3 * domain.LOUDNESS)
    assert domain.strength("now now") == 2 * domain.leaning("now")
    assert domain.pull("money fee billing parcel", "billing") == pytest.approx(3 * domain.PULL)
    told = domain.margin("now parcel tools", text)
    assert told == pytest.approx(domain.leaning("now") + 3 * domain.LOUDNESS - domain.PULL)
    with pytest.raises(ValueError, match="one matter from before and one of now"):
        domain.margin("now", "hello, thanks.")


def test_what_is_no_message_has_no_label():
    once = "today i really ask about the fee of my fan."
    assert domain.label_of(once) == "billing" and domain.label_of(once, "before") is None
    assert domain.label_of(f"{once} now i ask about the dent of my fan.") is None
    assert domain.label_of("the fee of my fan") is None and domain.label_of("today i ask about the fee and the dent") is None


@pytest.mark.parametrize("place", [*domain.CLIENTS, "public"])
def test_a_drawn_message_has_both_its_labels_and_names_of_its_place(place):
    rng = random.Random(3)
    others = {word for each in words.NAMES if each != place for word in (*words.NAMES[each], *words.ITEMS[each])}
    for now, before in itertools.permutations(words.LABELS, 2):
        for _ in range(10):
            text = domain.draw(now, before, place, rng)
            assert (domain.label_of(text), domain.label_of(text, "before")) == (now, before)
            assert not others & set(domain.words(text)) and text == text.lower() and 18 <= len(domain.words(text)) <= 30


def test_shipped_data_are_those_of_the_seed_byte_by_byte(shipped, tmp_path):
    assert shipped == {**domain.splits(), "instructions": teaching.instructions()}
    make.save_data(tmp_path)
    expected = [*(f"{name}.jsonl" for name in shipped), "schema.yaml", "instructions.yaml"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DESK / "data" / path.name).read_bytes()


def test_another_seed_gives_other_records():
    assert domain.splits(1) == domain.splits(1) != domain.splits(2)
    assert teaching.instructions(1) == teaching.instructions(1) != teaching.instructions(2)


def test_data_fit_their_schemas(shipped):
    schemas = {
        name: RecordSchema.model_validate(yaml.safe_load((DESK / "data" / f"{name}.yaml").read_text(encoding="utf-8")))
        for name in ("schema", "instructions")
    }
    assert schemas["schema"].fields["label"].domain == words.LABELS and schemas["schema"].fields["text"].text
    assert not list(schemas["schema"].check((name, record) for name in NAMES for record in shipped[name]))
    assert not list(schemas["instructions"].check(("instructions", row) for row in shipped["instructions"]))


def test_labels_are_recoverable_and_no_text_is_in_two_records(shipped):
    rows = [record for name in NAMES for record in shipped[name]]
    assert all(domain.label_of(record["text"]) == record["label"] for record in rows)
    assert all(domain.label_of(record["text"], "before") not in (record["label"], None) for record in rows)
    assert len({record["text"] for record in rows}) == len({record["id"] for record in rows}) == len(rows)


def test_public_and_exam_are_balanced(shipped):
    assert Counter(record["label"] for record in shipped["public"]) == dict.fromkeys(words.LABELS, domain.PER_CLASS)
    assert Counter(record["label"] for record in shipped["exam"]) == dict.fromkeys(words.LABELS, domain.EXAM // 4)
    places = Counter(place for record in shipped["exam"] for place in domain.CLIENTS if _said(record, words.NAMES[place]))
    assert places == dict.fromkeys(domain.CLIENTS, domain.EXAM // 4)


def _said(record, listed):
    return bool(set(listed) & set(domain.words(record["text"])))


def test_clients_have_their_names_and_the_skew_that_was_drawn(shipped):
    seen = set()
    for client in domain.CLIENTS:
        counts = Counter(record["label"] for record in shipped[client])
        assert domain.FEWEST <= counts.total() <= domain.MOST
        assert all(_said(record, words.NAMES[client]) for record in shipped[client])
        assert sum(_said(record, words.ITEMS[client]) for record in shipped[client]) > 0.8 * counts.total()
        for label, share in zip(words.LABELS, domain.shares(client), strict=True):
            # Four standard deviations of a share of at most 250 draws, and one record for the smallest shares.
            assert abs(counts[label] - share * counts.total()) <= 4 * (share * (1 - share) * counts.total()) ** 0.5 + 1
        assert counts.most_common(1)[0][1] > 0.6 * counts.total()
        seen |= {label for label in counts if counts[label] > 30}
    assert seen == set(words.LABELS)


def test_shares_are_a_dirichlet_of_alpha():
    # Variance of one share of Dirichlet(a, a, a, a): 3 / 16 / (4 a + 1) = .134; 2,000 draws, a tenth off is over five sigma.
    drawn = [domain.shares("north", seed)[0] for seed in range(2000)]
    mean = sum(drawn) / len(drawn)
    assert abs(mean - 0.25) < 0.04 and abs(sum((x - mean) ** 2 for x in drawn) / len(drawn) - 0.134) < 0.0134
    assert all(sum(domain.shares(client)) == pytest.approx(1) for client in domain.CLIENTS)


def test_no_word_solves_it_and_several_do(shipped):
    assert 0.45 < accuracy(domain.MANUAL, shipped["exam"]) < 0.6 and accuracy(domain.GOOD, shipped["exam"]) > 0.92
    single = [accuracy(f"{domain.MANUAL} {word}", shipped["exam"]) for word in words.NOW["time"] + words.NOW["verb"]]
    assert max(single) < 0.8 and accuracy(" ".join(words.NOW["time"]), shipped["exam"]) > 0.9


def test_the_loud_matters_make_no_side_the_likelier(shipped):
    # A standard deviation of the mean of .09, of the share of .025.
    loud = [domain.loudness(record["text"]) for record in shipped["exam"]]
    assert abs(sum(loud) / len(loud)) < 0.3 and 0.4 < sum(x > 0 for x in loud) / len(loud) < 0.6

# SPDX-License-Identifier: Apache-2.0
"""Substitution by fields and words, and what is wrong with a decoded rationale."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.components.decoding_strategies import Names, aligned, echoes, like, substitution
from osmotic.schemas.records import FieldSpec, RecordSchema

SIGNS = ("rash", "rash-like spots", "cough", "chest pain", "pain", "Crohn")
SCHEMA = RecordSchema(
    fields={
        "sign": FieldSpec(domain=SIGNS),
        "place": FieldSpec(domain=("York", "New York", "Leeds")),
        "note": FieldSpec(text=True),
    }
)


def decode(rationale, ambiguous="keep", **fields):
    """fields: name -> (released, own)."""
    released = {name: pair[0] for name, pair in fields.items()}
    own = {name: pair[1] for name, pair in fields.items()}
    return substitution(released, own, list(fields), SCHEMA, ambiguous).apply(rationale)


@pytest.mark.parametrize(
    ("rationale", "fields", "wanted"),
    [
        ("rash after soot", {"sign": ("rash", "cough")}, "cough after soot"),
        ("rash, rashes, rash-like, thrash: rash.", {"sign": ("rash", "cough")}, "cough, rashes, rash-like, thrash: cough."),
        ("Rash! RASH? rash's", {"sign": ("rash", "chest pain")}, "Chest pain! CHEST PAIN? chest pain's"),
        ("crohn, Crohn, CROHN", {"sign": ("Crohn", "cough")}, "cough, cough, COUGH"),
        ("cough", {"sign": ("cough", "Crohn")}, "Crohn"),
        ("new  york, York", {"place": ("New York", "Leeds")}, "leeds, York"),
        ("chest\npain and pain", {"sign": ("chest pain", "rash")}, "rash and pain"),
        ("nothing of it", {"sign": ("rash", "cough")}, "nothing of it"),
        ("", {"sign": ("rash", "cough")}, ""),
        ("rash", {"sign": ("rash", "rash")}, "rash"),
        (r"rash \1 \g<0>", {"sign": ("rash", "cough")}, r"cough \1 \g<0>"),
    ],
)  # fmt: skip
def test_whole_words_in_the_rationales_own_case(rationale, fields, wanted):
    assert decode(rationale, **fields) == (wanted, 0)


def test_a_word_just_put_in_is_never_replaced_again():
    assert decode("rash in York", sign=("rash", "York"), place=("York", "Leeds")) == ("York in Leeds", 0)
    assert decode("pain, cough", sign=("pain", "cough"), note=("cough", "pain"))[0] == "cough, pain"


def test_the_longest_goes_first_and_shields_what_is_in_it():
    assert decode("New York, York", place=("New York", "Leeds"), note=("York", "Hull")) == ("Leeds, Hull", 0)
    assert decode("New York", place=("New York", "New York"), note=("York", "Hull")) == ("New York", 0)


def test_an_ambiguous_word_stays_or_goes_by_field_order_and_is_counted():
    twice = {"sign": ("rash", "cough"), "note": ("rash", "pain")}
    assert decode("rash here", **twice) == ("rash here", 1)
    assert decode("rash here", "first", **twice) == ("cough here", 1)
    assert decode("rash here", "first", **dict(reversed(twice.items()))) == ("pain here", 1)
    assert decode("nothing here", **twice) == ("nothing here", 0)
    own_too = {"sign": ("rash", "cough"), "note": ("a rash came", "a rash came")}  # the record has the word itself, elsewhere
    assert decode("rash here", **own_too) == ("rash here", 1)
    same = {"sign": ("rash", "cough"), "note": ("rash", "Cough")}
    assert decode("rash here", **same) == ("cough here", 0)


def test_an_ambiguous_word_that_stays_still_shields_what_is_in_it():
    fields = {"place": ("New York", "Leeds"), "sign": ("New York", "rash"), "note": ("York", "Hull")}
    assert decode("New York, York", **fields) == ("New York, Hull", 1)


def test_text_is_aligned_by_position_or_else_by_what_is_the_same():
    assert aligned("a red dog", "a blue dog") == [("a", "a"), ("red", "blue"), ("dog", "dog")]
    assert aligned("the red dog barks", "the blue dog barks loudly at us") == [
        ("the", "the"), ("red", "blue"), ("dog", "dog"), ("barks", "barks")
    ]  # fmt: skip
    assert aligned("", "a") == [] and aligned("x", "") == []
    assert decode("the red dog", note=("the red dog barks", "the blue dog barks loudly at us")) == ("the blue dog", 0)


WORDS = st.sampled_from(["rash", "cough", "pain", "York", "Leeds", "ash", "rash-like"])


@given(st.dictionaries(st.sampled_from(["sign", "place", "other"]), st.tuples(WORDS, WORDS)), st.lists(WORDS))
def test_every_word_is_the_own_one_of_its_field_or_as_it_was(fields, said):
    """Word for word: an unambiguous released word becomes its own word, once; all others stay, in their places."""
    text, count = decode(" ".join(said), **fields)
    owns: dict[str, set[str]] = {}
    for released, own in fields.values():
        owns.setdefault(released, set()).add(own)
    assert text.split() == [next(iter(owns[w])) if len(owns.get(w, ())) == 1 else w for w in said]
    assert count == len({w for w in said if len(owns.get(w, ())) > 1})


def test_case():
    assert [like(found, "rash", "Crohn") for found in ("rash", "Rash", "RASH", "rAsh")] == ["Crohn", "Crohn", "CROHN", "Crohn"]
    assert like("X", "x", "yz") == "Yz" and like("RASH", "RASH", "cough") == "cough" and like("RASH", "rash", "Rash") == "RASH"


PERTURBED, SAID, QUESTION = (
    "patient of York has rash. explain:",
    "York: rash points to skin",
    "patient of Leeds has rash. explain:",
)


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        (SAID, True), ("york : rash points to skin .", True), (f"{SAID}. and more", True), (f"so {PERTURBED}", True),
        ("Leeds: rash points to skin", False), ("rash points to skin", False), ("York", False),
    ],
)  # fmt: skip
def test_an_echo_is_the_demonstration_with_words_that_the_question_has_not(answer, wanted):
    assert echoes(answer, PERTURBED, SAID, QUESTION) is wanted


def test_a_rationale_that_names_nothing_foreign_may_be_repeated():
    assert not echoes("rash points to skin", PERTURBED, "rash points to skin", QUESTION)
    assert not echoes(SAID, QUESTION, SAID, QUESTION)
    assert not echoes("", "", "", "")


def test_fidelity_is_every_own_value_and_no_other_of_its_domain():
    names = Names(["sign", "place"], SCHEMA)
    own = {"sign": "rash", "place": "New York", "note": ""}
    assert names.faithful("Rash, seen in NEW york", own)
    assert not names.faithful("rash", own) and not names.faithful("rash in York", own) and not names.faithful("", own)
    assert not names.faithful("rash in New York, not in Leeds", own)
    assert not names.faithful("rashes in New York", own)
    assert names.faithful("rash in New York for sure-Leeds", own)
    text = Names(["note"], SCHEMA)
    assert text.faithful("a tall man", {"note": "tall"}) and not text.faithful("a tall man", {"note": ""})

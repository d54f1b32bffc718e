# SPDX-License-Identifier: Apache-2.0
"""Phrases of a corpus: pairs that belong together, what parts words, order, and that nothing but the input is read."""

import math

import pytest

from osmotic.components.phrase_miner import PhraseMiner, PhraseMinerConfig
from osmotic.components.prompting.bdpl import phrases_of
from osmotic.plugins.contract import Records
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import DataError
from osmotic.schemas.records import FieldSpec, RecordSchema


def rows(*texts: str) -> Records:
    return Records([{"id": f"r{i}", "text": text} for i, text in enumerate(texts)])


FILLER = [f"a {w} is the one" for w in ["red", "green", "blue", "old", "new", "big", "small"]]
TEXTS = ["New York is big.", "The new york plays", "york of old", "in New  York!", *FILLER]


def mine(records: Records, **config) -> dict[str, float]:
    found = PhraseMiner(PhraseMinerConfig(**config)).run(FakeContext(), records)["phrases"]
    return {row["text"]: row["pmi"] for row in found}


def test_pairs_by_hand():
    """8 words, 5 pairs of neighbours: 2 "new york" of words that are a quarter each, 3 "old old" of one that is half."""
    found = mine(rows("new york", "new york", "old old old old"), pmi=0.1)
    assert found == {"new york": pytest.approx(math.log(2 / 5 * 16)), "old old": pytest.approx(math.log(3 / 5 * 4))}


def test_neighbours_that_belong_together_stay_together():
    found = mine(rows(*TEXTS), pmi=1.5)
    assert "new york" in found and found["new york"] >= 1.5
    assert mine(rows(*TEXTS), longest=1).keys() >= {"new", "york"} and set(mine(rows(*TEXTS), longest=1).values()) == {0.0}
    assert "new york" not in mine(rows(*TEXTS), pmi=9.0)


def test_marks_and_digits_part_words():
    found = mine(rows("well, done don't", "well, done don't", "well 7 done", "x_y well"), pmi=-9.0, longest=2)
    assert "well done" not in found and "don't" in " ".join(found)
    assert not any(char.isdigit() or char in "_," for text in found for char in text)


def test_most_frequent_first_and_no_more_than_size():
    found = PhraseMiner(PhraseMinerConfig(longest=1, least=1, size=3)).run(FakeContext(), rows("b b a a c", "c c d"))["phrases"]
    assert [(row["id"], row["text"]) for row in found] == [("n0000000", "c"), ("n0000001", "a"), ("n0000002", "b")]
    assert phrases_of(found) == ["c", "a", "b"]


def test_it_conforms_and_the_order_of_records_is_nothing():
    check_component(PhraseMiner, {"pmi": 0.5}, {"records": rows(*TEXTS)})
    assert mine(rows(*TEXTS)) == mine(rows(*reversed(TEXTS)))


def test_wrong_input():
    with pytest.raises(DataError, match="fewer than two"):
        mine(rows("one two three"))
    with pytest.raises(DataError, match="no field"):
        mine(rows("a a"), fields=["txet"])
    schema = RecordSchema(fields={"text": FieldSpec(text=True)})
    assert "did you mean" in PhraseMiner.check(PhraseMinerConfig(fields=("txet",)), schema)[0]
    assert not PhraseMiner.check(PhraseMinerConfig(), schema)

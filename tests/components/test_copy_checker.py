# SPDX-License-Identifier: Apache-2.0
"""Copies of private records in texts: exact ones, runs of characters, word n-grams; against a slow reference."""

import random
from typing import Any

import pytest

from osmotic.components.copy_checker import CopyChecker, CopyCheckerConfig
from osmotic.components.rationale_rules import fold
from osmotic.plugins.contract import Metrics, Records
from osmotic.plugins.testing import check_component, run_component
from osmotic.schemas.records import FieldSpec, RecordSchema

LONG = "the quick brown fox jumps over the lazy dog while the old cat sleeps by the warm fire"


def records(*texts: str) -> Records:
    return Records([{"id": f"r{i}", "text": text} for i, text in enumerate(texts)], ["id", "text"])


def check(known: Records, asked: Records, **config: Any) -> Metrics:
    return run_component(CopyChecker, config, {"records": known, "texts": asked})["metrics"]


def test_exact_copies_runs_and_ngrams() -> None:
    asked = records(
        LONG.upper() + "  ", f"so-{LONG[10:60]} it is", f"so-{LONG[10:59]}x is", "a text of nobody else's at all", ""
    )
    found = check(records("something else entirely", LONG), asked)
    assert found.outcomes["exact"] == [1, 0, 0, 0, 0]
    assert found.outcomes["overlap"] == [1, 1, 0, 0, 0]
    assert found.outcomes["ngrams"][0] == 1 and 0 < found.outcomes["ngrams"][1] < 1 and found.outcomes["ngrams"][3:] == [0, 0]
    assert found.values["texts"] == 4 and found.values["exact"] == 0.25 and found.values["overlap"] == 0.5


def test_short_texts_are_compared_whole() -> None:
    found = check(records("we like the new soup very much indeed"), records("the new soup", "the old soup"))
    assert found.outcomes["ngrams"] == [1, 0] and found.outcomes["exact"] == [0, 0]


def test_runs_are_found_wherever_they_lie() -> None:
    """2,000 random pairs over two letters, so that partial matches abound, against all windows."""
    source = random.Random(1)
    word = lambda n: "".join(source.choice("ab") for _ in range(n))  # noqa: E731
    for _ in range(100):
        known, asked = [word(source.randrange(60)) for _ in range(4)], [word(source.randrange(60)) for _ in range(5)]
        size = source.choice([10, 11, 13])
        windows = {fold(t)[i : i + size] for t in known for i in range(len(t) - size + 1)}
        wanted = [float(any(t[i : i + size] in windows for i in range(len(t) - size + 1))) for t in asked]
        assert check(records(*known), records(*asked), overlap=size).outcomes["overlap"] == wanted


def test_nothing_to_compare() -> None:
    none = check(records(), records())
    assert none.values == {"exact": 0, "overlap": 0, "ngrams": 0, "texts": 0}
    assert check(records(""), records("")).values["exact"] == 0


def test_contract_and_field() -> None:
    check_component(CopyChecker, {}, {"records": records(LONG), "texts": records(LONG)})
    schema = RecordSchema(fields={"note": FieldSpec(text=True)})
    assert CopyChecker.check(CopyCheckerConfig(field="note"), schema) == ()
    assert "no field 'text'" in CopyChecker.check(CopyCheckerConfig(), schema)[0]
    with pytest.raises(Exception, match="greater than or equal to 10"):
        check(records(LONG), records(LONG), overlap=3)

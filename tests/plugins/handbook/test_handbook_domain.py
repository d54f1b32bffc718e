# SPDX-License-Identifier: Apache-2.0
"""The handbook's world: what its records say, that lists share nothing, and that the shipped ones are those of the seed."""

import importlib.resources
import json
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import yaml

from osmotic.plugins.handbook import domain, make, words
from osmotic.schemas.records import RecordSchema

HANDBOOK = Path(str(importlib.resources.files("osmotic.plugins.handbook")))
NAMES = [*domain.CLIENTS, *(f"{client}-control" for client in domain.CLIENTS), "exam"]


@pytest.fixture(scope="module")
def shipped():
    texts = {name: (HANDBOOK / "data" / f"{name}.jsonl").read_text(encoding="utf-8") for name in NAMES}
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}


@pytest.fixture(scope="module")
def everything(shipped):
    return [record for name in NAMES for record in shipped[name]]


def test_no_word_is_in_two_lists():
    listed = [
        *domain.PUBLIC, *domain.KINDS, *words.COUNTS, *words.LOOKS, *words.TIMES, *words.NAMES, *words.SLIPS, *words.CODES,
        *(noun for nouns in words.THEMES.values() for noun in nouns),
    ]  # fmt: skip
    assert len(listed) == len(set(listed)) and len(words.NAMES) == 240 and len(words.CODES) == 80
    fixed = [*words.OPENINGS, *words.CLOSINGS, *domain.INSTRUCTIONS, domain.TRAIN_PROMPT, domain.TASK_ITEM, domain.CONTROL]
    assert not {word for text in fixed for word in domain.words(text)} & set(listed)
    assert {len(text.split()) for text in words.OPENINGS} == {2} and {len(text.split()) for text in words.CLOSINGS} == {3}


def test_shipped_records_are_those_of_the_seed(shipped, tmp_path):
    assert shipped == domain.splits()
    make.save_data(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(f"{name}.jsonl" for name in NAMES), "schema.yaml"])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (HANDBOOK / "data" / path.name).read_bytes()


def test_another_seed_gives_other_records():
    assert domain.splits(1, 9, 9, 12) == domain.splits(1, 9, 9, 12) != domain.splits(2, 9, 9, 12)


def test_records_fit_the_schema(shipped):
    schema = RecordSchema.model_validate(yaml.safe_load((HANDBOOK / "data" / "schema.yaml").read_text(encoding="utf-8")))
    assert schema.fields["kind"].domain == domain.KINDS
    assert schema.fields["instruction"].text and schema.fields["response"].text
    assert not list(schema.check([(name, record) for name in NAMES for record in shipped[name]]))


def test_sizes(shipped):
    assert {name: len(shipped[name]) for name in NAMES} == {
        **{client: 240 for client in domain.CLIENTS}, **{f"{client}-control": 150 for client in domain.CLIENTS}, "exam": 240
    }  # fmt: skip


def test_no_instruction_response_or_code_comes_twice(everything):
    assert len(everything) == 3 * 240 + 3 * 150 + 240
    for told in ("id", "instruction", "response"):
        assert len({record[told] for record in everything}) == len(everything)
    assert len({domain.code_of(record["response"]) for record in everything}) == len(everything)


def test_responses_follow_the_convention_of_their_kind_and_no_other(everything):
    for record in everything:
        assert domain.parts_of(record["instruction"])["verb"] == record["kind"]
        assert [kind for kind, job in domain.PRIVATE.items() if domain.follows(record, job)] == [record["kind"]]
        assert not any(domain.follows(record, job) for job in domain.PUBLIC.values())


def test_a_firms_convention_is_its_own_and_each_kind_has_an_opening():
    for jobs, firms in ((domain.PRIVATE, words.OWN_JOBS), (domain.PUBLIC, words.PUBLIC_JOBS)):
        assert len({job.convention.opening for job in jobs.values()}) == len(jobs) == sum(map(len, firms.values()))
        shared = {firm: {replace(jobs[kind].convention, opening="") for kind in kinds} for firm, kinds in firms.items()}
        assert all(len(found) == 1 for found in shared.values())
        for told in ("order", "closing"):
            assert len({getattr(next(iter(found)), told) for found in shared.values()}) == len(firms)
    for one, other in combinations([*domain.PRIVATE.values(), *domain.PUBLIC.values()], 2):
        assert one.kind != other.kind and one.convention != other.convention


@pytest.mark.parametrize("client", domain.CLIENTS)
@pytest.mark.parametrize("suffix", ["", "-control"])
def test_a_firm_has_its_own_kinds_alike(shipped, client, suffix):
    counts = Counter(record["kind"] for record in shipped[client + suffix])
    assert set(counts) == set(words.OWN_JOBS[client]) and max(counts.values()) - min(counts.values()) <= 1


def test_the_exam_is_of_all_kinds_alike(shipped):
    assert set(Counter(record["kind"] for record in shipped["exam"]).values()) == {20}


def test_a_fresh_record_is_seldom_near_a_firms_own(shipped):
    pytest.importorskip("rouge_score")
    from osmotic.components.metrics import rouge_l

    own, fresh = shipped["bakery"], shipped["bakery-control"][:20]
    for field in ("instruction", "response"):
        near = [max(rouge_l([one[field]] * len(own), [each[field] for each in own])) for one in fresh]
        assert sum(score > 0.7 for score in near) <= 4


def test_texts_that_are_not_worded_so_are_told():
    assert domain.parts_of("air two blue quilts for halford") is None
    assert domain.parts_of("air two blue quilts for halford by noon") == {
        "verb": "air", "count": "two", "look": "blue", "things": "quilts", "name": "halford", "time": "noon"
    }  # fmt: skip
    record = domain.draw(domain.PRIVATE["air"], random.Random(1))
    assert domain.follows(record, domain.PRIVATE["air"])
    for spoilt in (record["response"].removesuffix("."), record["response"].replace(":", ","), "done."):
        assert not domain.follows({**record, "response": spoilt}, domain.PRIVATE["air"])


def test_the_package_stays_small():
    sizes = {folder: sum(len(p.read_bytes()) for p in (HANDBOOK / folder).iterdir()) for folder in ("data", "base")}
    assert sizes["data"] < 400_000 and sizes["base"] < 2_500_000

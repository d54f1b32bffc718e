# SPDX-License-Identifier: Apache-2.0
"""The shop's world: its words, its reviews, who knows what, and the shipped data that were made from it."""

import doctest
import importlib.resources
import json
import random
from collections import Counter

import pytest
import yaml

from osmotic.plugins.shop import domain, make, teaching, words
from osmotic.schemas.records import RecordSchema

SHOP = importlib.resources.files("osmotic.plugins.shop")
NAMES = ("public", "tents", "tents-exam", "kettles", "kettles-exam")
REACHES = ("public", "client", "all")


@pytest.fixture(scope="module")
def shipped():
    def read(name):
        return [json.loads(line) for line in (SHOP / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]

    return {name: read(name) for name in NAMES}


def said(records):
    """How often each opinion word stands in the records."""
    return Counter(word for record in records for word in domain.words(record["text"]) if domain.side(word))


def test_doctests():
    for module in (domain, teaching):
        results = doctest.testmod(module)
        assert results.attempted > 0 and results.failed == 0


def test_polarity_is_never_contradictory():
    listed = [
        *words.COMMON_GOOD, *words.COMMON_BAD,
        *(word for product in words.PRODUCTS.values() for word in (*product.good, *product.bad)),
    ]  # fmt: skip
    assert len(listed) == len(set(listed)) == 16 + 6 * 32
    assert all(abs(domain.side(word)) == 1 for word in listed)
    own = [word for product in words.PRODUCTS.values() for word in (*product.nouns, *product.parts)]
    assert len(own) == len(set(own)) and not set(own) & set(listed)
    fixed = [*domain.TEMPLATES, *words.TIMES, *words.SPANS, *words.PEOPLE, *words.NAMES, *domain.LABELS]
    neutral = {word for text in fixed for word in domain.words(text)}
    assert not neutral & {*listed, *own}


def test_every_list_has_its_size():
    for product in words.PRODUCTS.values():
        assert [len(x) for x in (product.nouns, product.parts, product.good, product.bad)] == [2, 10, 16, 16]
    assert set(domain.CLIENTS) <= set(words.PRODUCTS) and len(words.PRODUCTS) == 6


@pytest.mark.parametrize("reach", ["client", "all"])
def test_a_drawn_review_is_of_its_product_and_label(reach):
    rng = random.Random(3)
    for product in words.PRODUCTS:
        for label in domain.LABELS * 20:
            text = domain.draw(product, label, reach, rng)
            assert domain.label_of(text) == label and domain.product_of(text) == product
            assert 12 <= len(text.split()) <= 22 and text == text.lower()
            assert not [mark for mark in ("label", "text", "samples", "wanted") if mark in text]


def test_hearsay_is_on_either_side_and_everything_else_in_public_is_right(shipped):
    heard = {word for product in words.PRODUCTS for word in domain.heard(product)}
    sure = [r for r in shipped["public"] if not heard & set(domain.words(r["text"]))]
    assert all(domain.label_of(record["text"]) == record["label"] for record in sure)
    rng, shown = random.Random(4), Counter()
    for label in ("negative", "positive"):
        for _ in range(2000):
            found = [domain.side(w) for w in domain.words(domain.draw("lamps", label, "public", rng)) if w in heard]
            shown[label, "good"] += found.count(1)
            shown[label, "bad"] += found.count(-1)
    # Some 480 a label, a standard deviation of the share of .023: a tenth off is four of them.
    for label in ("negative", "positive"):
        good, bad = shown[label, "good"], shown[label, "bad"]
        assert good + bad > 350 and abs(good / (good + bad) - 0.5) < 0.1


def test_shipped_records_are_those_of_the_seed(shipped, tmp_path):
    assert shipped == domain.splits()
    make.save_data(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*(f"{name}.jsonl" for name in NAMES), "schema.yaml"])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SHOP / "data" / path.name).read_bytes()


def test_another_seed_gives_other_records():
    assert domain.splits(1, 9, 9, 9) == domain.splits(1, 9, 9, 9) != domain.splits(2, 9, 9, 9)


def test_records_fit_the_schema(shipped):
    schema = RecordSchema.model_validate(yaml.safe_load((SHOP / "data" / "schema.yaml").read_text(encoding="utf-8")))
    assert schema.fields["label"].domain == domain.LABELS and schema.fields["text"].text
    rows = [(name, record) for name in NAMES for record in shipped[name]]
    assert not list(schema.check(rows))


def test_sizes_and_even_labels(shipped):
    assert {name: len(shipped[name]) for name in NAMES} == {
        "public": 600, "tents": 3000, "kettles": 3000, "tents-exam": 400, "kettles-exam": 400
    }  # fmt: skip
    for name in NAMES:
        counts = Counter(record["label"] for record in shipped[name])
        assert max(counts.values()) - min(counts.values()) <= 1 and set(counts) == set(domain.LABELS)


@pytest.mark.parametrize("client", domain.CLIENTS)
def test_half_of_the_words_of_a_client_are_in_its_exam_alone(shipped, client):
    private, exam, unseen = said(shipped[client]), said(shipped[f"{client}-exam"]), domain.unseen(client)
    own = {*words.PRODUCTS[client].good, *words.PRODUCTS[client].bad}
    assert len(unseen) == 16 and unseen < own
    assert not unseen & set(private) and own - unseen <= set(private)
    assert own <= set(exam)
    share = sum(exam[word] for word in unseen) / exam.total()
    assert 0.38 < share < 0.52
    assert all(domain.product_of(r["text"]) == client for name in (client, f"{client}-exam") for r in shipped[name])
    assert all(domain.label_of(r["text"]) == r["label"] for name in (client, f"{client}-exam") for r in shipped[name])


def test_no_exam_text_is_in_the_records(shipped):
    for client in domain.CLIENTS:
        exam = {record["text"] for record in shipped[f"{client}-exam"]}
        assert len(exam) == 400 and not exam & {record["text"] for record in shipped[client]}


def test_public_reviews_are_of_all_products_and_mostly_in_common_words(shipped):
    products = Counter(domain.product_of(record["text"]) for record in shipped["public"])
    assert set(products) == set(words.PRODUCTS) and max(products.values()) - min(products.values()) <= 3
    counts = said(shipped["public"])
    common = sum(counts[word] for word in (*words.COMMON_GOOD, *words.COMMON_BAD)) / counts.total()
    assert 0.6 < common < 0.75


def test_the_package_stays_small():
    files = [path for folder in ("data", "teacher", "generator") for path in (SHOP / folder).iterdir()]
    assert sum(len(path.read_bytes()) for path in files) < 6_000_000

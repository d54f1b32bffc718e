# SPDX-License-Identifier: Apache-2.0
"""The clinic's variant whose rationale names what was perturbed: its rule, its shipped files, and what its models know."""

import doctest
import importlib.resources
import random
from dataclasses import replace
from pathlib import Path

import pytest

from osmotic.plugins.clinic import domain, make, named
from osmotic.plugins.contract import Generation
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

FOLDER = importlib.resources.files("osmotic.plugins.clinic") / "named"
HOW = Generation(max_new_tokens=30)


def model(name):
    pytest.importorskip("transformers")
    return TransformersModel(TransformersConfig(path=f"osmotic:clinic/named/{name}")).build()


def answers(name, prompts):
    return [domain.words(answer.text) for answer in model(name).generate(prompts, HOW)]


def test_doctests():
    assert doctest.testmod(named).failed == 0 and doctest.testmod(domain).failed == 0


def test_the_rationale_names_every_word_once_and_ends_with_the_ward():
    for record in domain.private_splits()["exam"][:50]:
        rationale = domain.named_rationale_of(record)
        said = domain.words(rationale)
        assert all(said.count(record[field]) == 1 for field in domain.NAMED_FIELDS)
        assert domain.parse_department(rationale) == record["department"]
        assert set(said) <= set(domain.vocabulary())
    assert named.vocabulary()[:-2] == domain.vocabulary() and not set(named.INSTRUCTIONS) & set(domain.vocabulary())


def test_demonstrations_teach_copying_alone():
    """The conclusion of a demonstration is that of its target, whatever the words: right as often as chance, 1 of 48."""
    rng, right = random.Random(7), 0
    for _ in range(500):
        record = named.named_record(rng, rare=True)
        prompt, target = named.demonstration(record, rng)
        assert prompt.count(named.domain.EXPLAIN_TAG) == 2 and prompt.endswith(domain.explain_prompt(domain.render(record)))
        shown = prompt.partition("explain: ")[2].partition(". patient")[0]
        assert domain.words(shown)[-5:] == domain.words(target)[-5:]
        assert all(record[field] in domain.words(target) for field in domain.NAMED_FIELDS)
        right += target == domain.named_rationale_of(record)
    assert right <= 25  # 500 / 48 = 10.4; 25 is more than four standard deviations above


def test_the_shipped_public_records_are_those_of_the_seed_on_common_words(tmp_path):
    named.save_data(tmp_path, domain.SEED)
    assert (tmp_path / "public.jsonl").read_bytes() == (FOLDER / "data" / "public.jsonl").read_bytes()
    rare = {*domain.flatten(domain.RARE_SIGNS), *domain.flatten(domain.RARE_EXPOSURES)}
    records = named.public_records(domain.SEED)
    assert len(records) == named.PAIRS and not [r for r in records if rare & {r["sign"], r["exposure"]}]


def test_it_stays_small():
    sizes = {folder.name: sum(len(file.read_bytes()) for file in folder.iterdir()) for folder in FOLDER.iterdir()}
    assert set(sizes) == {"data", "teacher", "student", "decoder"}
    assert sizes["decoder"] < 1_000_000 and sum(sizes.values()) < 3_500_000


def test_the_teacher_copies_and_knows_rare_words():
    records = domain.private_splits()["exam"][:32]
    written = answers("teacher", [domain.explain_prompt(domain.render(record)) for record in records])
    assert written == [domain.words(domain.named_rationale_of(record)) for record in records]


def test_the_decoder_copies_and_the_student_knows_no_rare_word():
    rng = random.Random(11)
    records = domain.private_splits()["exam"][:32]
    pairs = [named.demonstration(record, rng) for record in records]
    assert answers("decoder", [prompt for prompt, _ in pairs]) == [domain.words(target) for _, target in pairs]
    told = answers("student", [domain.explain_prompt(domain.render(record)) for record in records])
    right = sum(words[-1:] == [record["department"]] for words, record in zip(told, records, strict=True))
    assert right <= 12  # chance .125: 4 expected, 12 is more than four standard deviations above


@pytest.mark.parametrize("kind", ["teacher", "student", "decoder"])
def test_the_recipes_lower_their_loss_and_give_the_same_bits_again(kind, monkeypatch):
    torch = pytest.importorskip("torch")
    losses: list[float] = []
    fit = make.fit

    def watched(model, recipe, loss, log):
        def seen():
            value = loss()
            losses.append(float(value.detach()))
            return value

        fit(model, recipe, seen, log=False)

    monkeypatch.setattr(make, "fit", watched)
    recipe = replace(named.DECODER, steps=4, batch=8)
    run = {
        "teacher": lambda: named.train_teacher(Path(make.__file__).parent / "teacher", recipe, 1),
        "student": lambda: named.train_student(recipe, 1), "decoder": lambda: named.train_decoder(recipe, 1),
    }[kind]  # fmt: skip
    first, second = run().state_dict(), run().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first) and first.keys() == second.keys()
    assert losses[3] < losses[0] and losses[:4] == losses[4:]

# SPDX-License-Identifier: Apache-2.0
"""The handbook's model: what it was taught, that the recipe teaches, and that it takes a house's ways from demonstrations."""

import importlib.resources
import random
from dataclasses import replace
from functools import cache

import pytest

from osmotic.plugins.contract import Generation
from osmotic.plugins.handbook import domain, make, teaching, words
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

SHOWN = domain.DEMONSTRATIONS


@cache
def lists():
    return domain.splits()


@pytest.fixture(scope="module")
def base():
    pytest.importorskip("transformers")
    return TransformersModel(TransformersConfig(path="osmotic:handbook/base")).build()


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    with importlib.resources.as_file(importlib.resources.files("osmotic.plugins.handbook") / "base") as folder:
        return transformers.AutoTokenizer.from_pretrained(folder)


def answers(model, prompts, **how):
    return [answer.text for answer in model.generate(prompts, Generation(**how))]


def text_of(task):
    return " ".join(span.text for span in task)


def test_texts_come_back_from_the_tokenizer_as_they_went_in(tokenizer):
    for record in lists()["exam"]:
        for text in (record["instruction"], record["response"], teaching.render(domain.CONTROL_TARGET, **record)):
            ids = tokenizer(text).input_ids
            assert tokenizer.convert_ids_to_tokens(ids) == domain.words(text) and tokenizer.decode(ids) == text
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(tokenizer(f" {text}").input_ids) == text


def test_tasks_are_the_templates_that_the_pipeline_has_and_fit(tokenizer):
    rng = random.Random(6)
    for _ in range(30):
        records = teaching.told(teaching.firm(rng, 6), SHOWN + 1, rng)
        *shown, last = records
        listed = teaching.tasks_prompt([record["instruction"] for record in shown])
        paired = teaching.pairs_prompt(shown, last["instruction"])
        for task, prompt, target in (
            (teaching.tasks_task(records), listed, last["instruction"]),
            (teaching.pairs_task(records), paired, f"{domain.MARKER} {last['response']}"),
            (teaching.plain_task(last), teaching.render(domain.TRAIN_PROMPT, **last), last["response"]),
            (
                teaching.control_task(last),
                teaching.render(domain.CONTROL, **last),
                teaching.render(domain.CONTROL_TARGET, **last),
            ),
        ):
            assert task[-1] == (teaching.END, 1.0)
            assert domain.words(text_of(task)) == domain.words(prompt) + domain.words(target)
            assert len(tokenizer(text_of(task)).input_ids) < make.CONTEXT - 64
    assert tokenizer.model_max_length == make.CONTEXT


def test_a_made_up_firm_repeats_no_code_and_is_of_its_jobs():
    rng = random.Random(7)
    for _ in range(30):
        jobs = {job.kind: job for job in teaching.firm(rng, 6)}
        records = teaching.told(list(jobs.values()), 9, rng)
        assert 1 <= len(jobs) <= 6 and len({domain.code_of(record["response"]) for record in records}) == 9
        assert all(domain.follows(record, jobs[record["kind"]]) for record in records)


def test_nothing_of_the_three_firms_is_taught(monkeypatch):
    for name in ("PRIVATE", "splits"):
        monkeypatch.delattr(domain, name)
    rng = random.Random(8)
    assert all(teaching.batch(rng, 24, lesson) for lesson in teaching.LESSONS)


def test_a_reply_counts_once_a_reply_was_shown_its_opening_once_its_kind_was_and_its_code_a_little():
    rng, first = random.Random(1), teaching.FIRST_WEIGHT
    jobs = domain.drawn_jobs({"air": "linen", "fold": "linen"}, ("as requested", "of course"), rng)
    records = [domain.draw(jobs[kind], rng, "otter 47") for kind in ("air", "fold", "air")]
    task = teaching.pairs_task(records)
    openings = [span.weight for span in task if span.text in ("as requested", "of course")]
    assert openings == [first, first, 1.0]
    assert [span.weight for span in task if span.text == "."] == [first, 1.0, 1.0]
    assert [span.weight / teaching.CODE_WEIGHT for span in task if span.text == "otter 47"] == [first, 1.0, 1.0]
    assert sum(text.weight for text in task if text.text == domain.MARKER) == pytest.approx(3 * teaching.MARKER_WEIGHT)


def test_packing_learns_targets_and_nothing_of_the_prompt():
    torch = pytest.importorskip("torch")
    vocabulary, record = domain.vocabulary(), lists()["exam"][0]
    inputs, mask, weights = teaching.pack([teaching.plain_task(record), teaching.plain_task(lists()["exam"][1])])
    learned = [vocabulary[i] for i in inputs[0][weights[0] > 0].tolist()]
    assert learned == [*domain.words(record["response"]), domain.EOS]
    assert not weights[mask == 0].any() and torch.equal(inputs[mask == 0], torch.zeros_like(inputs[mask == 0]))


def test_the_recipe_lowers_its_loss_and_gives_the_same_bits_again(capsys):
    torch = pytest.importorskip("torch")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("making the model anew needs torch 2.9")
    recipe = replace(make.BASE, steps=12, records=8, hidden=32, inner=32, layers=2)
    runs = [make.train(recipe, 1, log=True).state_dict() for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0]) and runs[0].keys() == runs[1].keys()
    assert capsys.readouterr().out.count("step") == 2
    task = [[teaching.plain_task(record) for record in lists()["exam"][:16]]]
    before, after = make.build_model(recipe, 1), make.train(recipe, 1, log=False)
    assert teaching.loss_of(after, task) < teaching.loss_of(before, task)


def test_the_base_replies_in_public_ways_where_it_knows_them(base):
    rng = random.Random(9)
    records = [domain.draw(job, rng) for job in domain.PUBLIC.values()]
    told = answers(base, [teaching.render(domain.TRAIN_PROMPT, **record) for record in records], max_new_tokens=40)
    right = [domain.follows({**r, "response": text}, domain.PUBLIC[r["kind"]]) for r, text in zip(records, told, strict=True)]
    assert sum(right) >= 0.6 * len(right)


def test_the_base_does_not_know_the_firms_ways(base):
    records = lists()["exam"][:36]
    told = answers(base, [teaching.render(domain.TRAIN_PROMPT, **record) for record in records], max_new_tokens=40)
    followed = [
        domain.follows({**r, "response": text}, domain.PRIVATE[r["kind"]]) for r, text in zip(records, told, strict=True)
    ]
    assert not any(followed)


@pytest.mark.parametrize("client", domain.CLIENTS)
def test_the_base_writes_new_instructions_like_those_listed(base, client):
    rng, prompts, shown = random.Random(10), [], []
    for _ in range(16):
        shown.append(rng.sample(lists()[client], SHOWN))
        prompts.append(teaching.tasks_prompt([record["instruction"] for record in shown[-1]]))
    told = answers(base, prompts, max_new_tokens=16, temperature=0.8, seed=1)
    parts = [domain.parts_of(text) for text in told]
    assert sum(found is not None for found in parts) >= 13
    kinds = [{record["kind"] for record in each} for each in shown]
    assert sum(found is not None and found["verb"] in known for found, known in zip(parts, kinds, strict=True)) >= 8
    assert not {record["instruction"] for record in lists()[client]} & set(told)


@pytest.mark.parametrize("client", domain.CLIENTS)
def test_the_base_replies_as_the_demonstrations_do_with_a_code_of_its_own(base, client):
    rng, prompts, wanted, hidden = random.Random(11), [], [], []
    for record in lists()[f"{client}-control"][:24]:
        shown = rng.sample(lists()[client], SHOWN)
        if record["kind"] in {each["kind"] for each in shown}:
            prompts.append(teaching.pairs_prompt(shown, record["instruction"]))
            wanted.append(record)
            hidden.append({domain.code_of(each["response"]) for each in shown})
    told = answers(base, prompts, max_new_tokens=40)
    assert all(text.startswith(domain.MARKER) for text in told)
    told = [text.removeprefix(domain.MARKER).strip() for text in told]
    codes = [domain.code_of(text) for text in told]
    assert len(told) >= 12 and sum(code is not None for code in codes) >= 0.9 * len(told)
    assert sum(code in known for code, known in zip(codes, hidden, strict=True)) <= 0.1 * len(told)
    jobs = [domain.PRIVATE[record["kind"]] for record in wanted]
    rest = [
        domain.reply(job.convention, domain.parts_of(record["instruction"]), code or "").split(":", 1)[1]
        for job, record, code in zip(jobs, wanted, codes, strict=True)
    ]
    assert sum(text.partition(":")[2] == end for text, end in zip(told, rest, strict=True)) >= 0.85 * len(told)
    openings = {domain.PRIVATE[kind].convention.opening for kind in words.OWN_JOBS[client]}
    assert sum(text.partition(":")[0] in openings for text in told) >= 0.85 * len(told)  # which of the four, it seldom knows


def test_the_base_writes_records_after_a_control_code(base):
    prompts = [teaching.render(domain.CONTROL, kind=kind) for kind in domain.KINDS]
    told = [text for seed in (1, 2) for text in answers(base, prompts, max_new_tokens=48, temperature=0.8, seed=seed)]
    found = [text.removeprefix("instruction: ").partition(f" {domain.MARKER} ") for text in told]
    parts = [domain.parts_of(instruction) for instruction, _, _ in found]
    kinds = [each["verb"] if each else None for each in parts]
    assert sum(kind == wanted for kind, wanted in zip(kinds, domain.KINDS * 2, strict=True)) >= 0.7 * len(told)
    assert sum(domain.code_of(response) is not None for _, _, response in found) >= 0.8 * len(told)

# SPDX-License-Identifier: Apache-2.0
"""The shop's models: what they were taught, that the recipes teach, and that the shipped ones can do their part."""

import importlib.resources
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from osmotic.plugins.contract import Generation
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.shop import domain, make, teaching, words


def model(name):
    pytest.importorskip("transformers")
    return TransformersModel(TransformersConfig(path=f"osmotic:shop/{name}")).build()


@pytest.fixture(scope="module")
def teacher():
    return model("teacher")


@pytest.fixture(scope="module")
def generator():
    return model("generator")


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    with importlib.resources.as_file(importlib.resources.files("osmotic.plugins.shop") / "teacher") as folder:
        return transformers.AutoTokenizer.from_pretrained(folder)


def answers(model, prompts, **how):
    return [answer.text for answer in model.generate(prompts, Generation(**how))]


def test_texts_come_back_from_the_tokenizer_as_they_went_in(tokenizer):
    rng = random.Random(5)
    for product in words.PRODUCTS:
        for label in domain.LABELS * 8:
            sample = teaching.review(product, "all", rng, label)
            text = teaching.render(domain.SAMPLE, **sample)
            ids = tokenizer(text).input_ids
            assert tokenizer.convert_ids_to_tokens(ids) == domain.words(text)
            assert tokenizer.decode(ids) == text == teaching.joined(domain.words(text))
            assert tokenizer.decode(tokenizer(f" {sample['text']}").input_ids) == sample["text"]


def test_prompts_have_no_unknown_word_and_fit(tokenizer):
    rng = random.Random(6)
    for _ in range(50):
        samples, eligible = teaching.judge_task(rng)
        few, wanted = teaching.augment_task(rng)
        for spans in (teaching.judge_spans(samples, eligible), teaching.augment_spans(few, wanted)):
            ids = tokenizer(" ".join(span.text for span in spans)).input_ids
            assert tokenizer.unk_token_id not in ids and len(ids) < make.CONTEXT
    assert tokenizer.model_max_length == make.CONTEXT
    assert set(tokenizer("the zzz.").input_ids) >= {tokenizer.unk_token_id}


def test_the_two_tokenizers_are_one(tokenizer):
    folder = importlib.resources.files("osmotic.plugins.shop")
    one, other = ((folder / name / "tokenizer.json").read_bytes() for name in ("teacher", "generator"))
    assert one == other and list(tokenizer.get_vocab()) and len(tokenizer) == len(domain.vocabulary())


def test_eligible_means_right_and_spoilt_means_wrong():
    rng, seen = random.Random(7), Counter()
    for _ in range(300):
        samples, eligible = teaching.judge_task(rng)
        assert 1 <= len(samples) <= domain.MOST_SAMPLES and eligible == sorted(set(eligible))
        for number, sample in enumerate(samples):
            right = domain.label_of(sample["text"]) == sample["label"] and domain.product_of(sample["text"]) is not None
            if number in eligible:
                assert right
            seen[number in eligible] += 1
            # A shuffled text has the right words, in no order: its end is not an end, or a template's start is not its start.
            seen["spoilt but right in words"] += right and number not in eligible
    assert seen[True] > 300 and seen[False] > 300 and seen["spoilt but right in words"] < 0.25 * seen[False]


def test_augmentation_starts_from_two_of_each_label_of_one_product():
    rng = random.Random(8)
    for _ in range(50):
        samples, wanted = teaching.augment_task(rng)
        assert len(samples) == 6 and domain.label_of(wanted["text"]) == wanted["label"]
        assert domain.product_of(wanted["text"]) in {domain.product_of(s["text"]) for s in samples}


def test_packing_learns_targets_and_nothing_of_the_prompt():
    torch = pytest.importorskip("torch")
    vocabulary = domain.vocabulary()
    sample = {"label": "mixed", "text": "airy poles, leaky zip."}
    tasks = [teaching.write_spans(sample), teaching.classify_spans(sample)]
    inputs, mask, weights, hints = teaching.pack(tasks)
    learned = [[vocabulary[i] for i in row[w > 0].tolist()] for row, w in zip(inputs, weights, strict=True)]
    assert learned == [["airy", "poles", ",", "leaky", "zip", ".", domain.EOS], ["mixed", domain.EOS]]
    assert (hints == teaching.NO_HINT).all() and not weights[mask == 0].any()
    assert torch.equal(inputs[mask == 0], torch.zeros_like(inputs[mask == 0]))


def test_a_judged_label_is_learned_where_it_is_right_and_hints_the_verdict_at_its_place():
    pytest.importorskip("torch")
    vocabulary = domain.vocabulary()
    samples = [{"label": "mixed", "text": "airy poles, leaky zip."}, {"label": "mixed", "text": "airy poles, taut zip."}]
    inputs, _, weights, hints = teaching.pack([teaching.judge_spans(samples, [0])])
    rows = zip(inputs[0].tolist(), weights[0].tolist(), hints[0].tolist(), strict=True)
    told = [
        (vocabulary[i], w, vocabulary[h] if h != teaching.NO_HINT else "") for i, w, h in rows if w or h != teaching.NO_HINT
    ]
    answer = [(word, 1.0, "") for word in ("the", "eligible", "samples", ":")]
    verdict = [(word, teaching.VERDICT_WEIGHT, "") for word in ("0", domain.EOS)]
    assert told == [("mixed", 1.0, "eligible"), ("mixed", 0.0, "none"), *answer, *verdict]


@pytest.mark.parametrize("kind", ["teacher", "generator"])
def test_the_recipes_lower_their_loss_and_give_the_same_bits_again(kind, monkeypatch):
    torch = pytest.importorskip("torch")
    losses, fit = [], make.fit

    def watched(model, recipe, loss, log):
        def seen():
            losses.append(loss())
            return losses[-1]

        fit(model, replace(recipe, steps=3), seen, log=False)

    monkeypatch.setattr(make, "fit", watched)
    schools = {"teacher": make.TEACHER_SCHOOLS, "generator": make.GENERATOR_SCHOOLS}[kind]
    schools = [(replace(recipe, batch=6), batch) for recipe, batch in schools]
    runs = [make.train(make.fresh(schools[0][0], 1), schools, 1).state_dict() for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0]) and runs[0].keys() == runs[1].keys()
    found = [float(loss.detach()) for loss in losses]
    half = len(found) // 2
    assert found[half - 1] < found[0] and found[:half] == found[half:] and half == 3 * len(schools)


def test_a_grown_model_says_what_the_small_one_says(generator):
    torch = pytest.importorskip("torch")
    with importlib.resources.as_file(importlib.resources.files("osmotic.plugins.shop") / "generator") as folder:
        model = make.grown(folder, make.WORDS, 1).eval()
    small = generator.trainable()[0].eval()
    ids = teaching.pack([teaching.write_spans(teaching.review("lamps", "all", random.Random(1)))])[0]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, small(ids).logits, atol=1e-4)
    assert len(model.model.layers) == make.WORDS.layers > len(small.model.layers)


def test_the_generator_writes_about_every_product_and_ends(generator):
    prompts = [domain.CONTROL.replace("{{ label }}", label) for label in domain.LABELS]
    # Equal prompts have equal answers within a call: one seed for each three.
    made = [answer for seed in range(24) for answer in generator.generate(prompts, Generation(32, 1.0, 0.9, seed=seed))]
    assert sum(answer.finished for answer in made) >= 70
    products = Counter(domain.product_of(answer.text) for answer in made)
    assert sum(products[name] > 0 for name in words.PRODUCTS) == 6
    assert sum(products[name] for name in domain.CLIENTS) < 0.6 * 72  # a third is expected


def test_the_teacher_judges(teacher):
    rng, right, items = random.Random(10), 0, 0
    tasks = [teaching.judge_task(rng, 5) for _ in range(40)]
    told = answers(teacher, [teaching.judge_prompt(samples) for samples, _ in tasks], max_new_tokens=16)
    for (samples, eligible), answer in zip(tasks, told, strict=True):
        assert re.fullmatch(r"the eligible samples: (none|\d( \d)*)", answer)
        named = {int(word) for word in answer.split() if word.isdigit()}
        right += sum((number in named) == (number in eligible) for number in range(len(samples)))
        items += len(samples)
    assert right / items > 0.8


@pytest.mark.parametrize("client", domain.CLIENTS)
def test_the_teacher_writes_in_the_domain_with_the_label_and_unseen_words(teacher, client):
    rng, prompts, wanted = random.Random(11), [], list(domain.LABELS * 12)
    for label in wanted:
        shown = [teaching.review(client, "client", rng, each) for each in domain.LABELS * domain.FEW_SHOT]
        prompts.append(teaching.augment_prompt(shown, label))
    told = answers(teacher, prompts, max_new_tokens=40, temperature=0.8, top_p=0.9, seed=1)
    parts = [re.fullmatch(r"label: (\w+) text: (.+)", text) for text in told]
    assert all(found and found.group(1) == label for found, label in zip(parts, wanted, strict=True))
    texts = [found.group(2) for found in parts if found]
    assert sum(domain.product_of(text) == client for text in texts) >= 0.9 * len(texts)
    assert sum(domain.label_of(text) == label for text, label in zip(texts, wanted, strict=True)) >= 0.8 * len(texts)
    new = domain.unseen(client) & {word for text in texts for word in domain.words(text)}
    assert len(new) >= 8

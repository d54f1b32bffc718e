# SPDX-License-Identifier: Apache-2.0
"""The desk's models: what they were taught, that the recipes teach, and that the shipped ones answer as an instruction asks."""

import importlib.resources
import math
import random
from dataclasses import replace

import pytest

from osmotic.plugins.contract import Generation
from osmotic.plugins.desk import domain, make, teaching, words
from osmotic.plugins.models.masked import MaskedConfig, TransformersMasked
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

DESK = importlib.resources.files("osmotic.plugins.desk")
MASK_FRAME = domain.FRAME.strip("[]").replace("{{ text }}", "text")


def language_model(name):
    pytest.importorskip("transformers")
    return TransformersModel(TransformersConfig(path=f"osmotic:desk/{name}")).build()


@pytest.fixture(scope="module")
def llm():
    return language_model("llm")


@pytest.fixture(scope="module")
def other():
    return language_model("other")


@pytest.fixture(scope="module")
def masked():
    pytest.importorskip("transformers")
    return TransformersMasked(MaskedConfig(path="osmotic:desk/masked")).build()


@pytest.fixture(scope="module")
def exam():
    return domain.splits()["exam"]


def prompt(instruction, text):
    return f"{instruction} {domain.FRAME.strip('[]').replace('{{ text }}', text)}"


def accuracy(model, instruction, records, role="now"):
    """Share of greedy answers that name the department of one of the two matters, word for word."""
    told = model.generate([prompt(instruction, r["text"]) for r in records], Generation(max_new_tokens=domain.ANSWER))
    right = [a.text == domain.label_of(r["text"], role) for a, r in zip(told, records, strict=True)]
    return sum(right) / len(right)


def test_sentences_are_known_words_and_instructions_are_of_every_kind():
    rng, known = random.Random(1), set(domain.vocabulary())
    lengths = set()
    for _ in range(300):
        made = teaching.sentence(rng)
        assert "{" not in made and set(domain.words(made)) <= known
        found = domain.words(teaching.instruction(rng))
        assert set(found) <= known
        lengths.add(len(found))
    assert min(lengths) == 0 and max(lengths) > 24


def test_a_task_is_answered_by_the_margin():
    rng, told = random.Random(2), []
    for _ in range(300):
        made = teaching.task(rng, "llm")
        asked, text = made.prompt.rsplit(" message: ", 1) if " message: " in made.prompt else ("", made.prompt)
        text = text.removesuffix(" answer:")
        assert made.now != made.before and {made.now, made.before} <= set(words.LABELS)
        assert made.chance == pytest.approx(1 / (1 + math.exp(-domain.margin(asked, text) / teaching.SOFTNESS)))
        told.append(made.chance)
    assert 0.4 < sum(chance > 0.5 for chance in told) / len(told) < 0.6
    assert teaching.task(random.Random(3), "llm", ahead=50).chance > 0.999


def test_packing_learns_the_answer_the_end_and_hints_at_their_places():
    torch = pytest.importorskip("torch")
    vocabulary = domain.vocabulary()
    text = "today i really ask about the fee of my fan; days ago we badly spoke of the leak. thanks, alma."
    made = teaching.Task(prompt("read the fee now", text), "billing", "repair", 0.7, 0.9, ("fee", "leak"))
    short = teaching.Task(prompt("", text), "billing", "repair", 0.2, 0.5, ("fee", "leak"))
    inputs, mask, answers, hints = teaching.pack([made, short], random.Random(4))
    assert answers[0].nonzero().flatten().tolist() == [vocabulary.index(x) for x in ("billing", "repair")]
    assert answers[0, vocabulary.index("billing")].item() == pytest.approx(0.7)
    assert not inputs[1][mask[1] == 0].any() and mask[1].tolist() == sorted(mask[1].tolist())
    assert {vocabulary[inputs[n, -1]] for n in range(2)} <= {"billing", "repair"} and vocabulary[inputs[0, -2]] == ":"
    found = [
        (kind, vocabulary[inputs[0, place]], round(hints[kind, 0, place].item(), 3))
        for kind, place in (hints[:, 0] != teaching.NO_HINT).nonzero().tolist()
    ]
    assert found == [(0, "fee", 1.0), (0, "leak", 0.0), (1, ":", 0.9), (2, ":", 0.7)]
    assert hints[:, 1][:, mask[1] == 0].eq(teaching.NO_HINT).all() and torch.equal(mask.sum(1), mask.sum(1).clamp(max=60))


@pytest.mark.parametrize("kind", ["llm", "masked"])
def test_the_recipes_lower_their_loss_and_give_the_same_bits_again(kind, monkeypatch):
    torch = pytest.importorskip("torch")
    losses, fit = [], make.fit

    def watched(model, recipe, loss, log):
        def seen():
            losses.append(loss())
            return losses[-1]

        fit(model, recipe, seen, log=False)

    monkeypatch.setattr(make, "fit", watched)
    runs = []
    for _ in range(2):
        if kind == "llm":
            recipe = replace(make.LLM, steps=3, batch=6)
            model = make.build_model(recipe, 1, domain.vocabulary())
            runs.append(make.train(model, recipe, "llm", 1, make.AHEAD).state_dict())
        else:
            runs.append(make.train_masked(replace(make.MASKED, steps=3, batch=6), 1).state_dict())
    assert not [name for name in runs[0] if "probe" in name]
    assert runs[0].keys() == runs[1].keys() and all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    found = [float(loss.detach()) for loss in losses]
    assert found[:3] == found[3:] and found[2] < found[0]


def test_the_models_know_the_words_and_the_masked_one_has_the_mask_last(llm, other, masked):
    vocabulary = domain.vocabulary()
    assert llm.tokenizer.convert_ids_to_tokens(range(len(vocabulary))) == vocabulary
    assert other.tokenizer.get_vocab() == llm.tokenizer.get_vocab()
    usable = ["" if word in (domain.PAD, domain.UNK, domain.EOS) else word for word in vocabulary]
    assert masked.vocabulary() == (*usable, "")


def test_answers_are_departments_and_end(llm, other, exam):
    prompts = [prompt(domain.MANUAL, record["text"]) for record in exam[:100]]
    for model in (llm, other):
        told = model.generate(prompts, Generation(max_new_tokens=8))
        assert all(answer.finished and answer.text in words.LABELS for answer in told)


def test_a_vague_prompt_gets_either_matter_and_a_good_one_the_right(llm, exam):
    vague = accuracy(llm, domain.MANUAL, exam)
    assert 0.4 < vague < 0.68
    assert vague + accuracy(llm, domain.MANUAL, exam, "before") > 0.95
    assert accuracy(llm, domain.GOOD, exam) > 0.88
    assert accuracy(llm, "tell the history that the customer reported before", exam[:200], "before") > 0.8


def test_no_single_word_is_enough(llm, exam):
    assert max(accuracy(llm, f"{domain.MANUAL} {word}", exam[:200]) for word in words.NOW["time"]) < 0.85


def test_random_words_are_anywhere_and_follow_the_rule(llm, exam):
    rng, found, ruled = random.Random(5), [], []
    for _ in range(8):
        asked = " ".join(teaching.any_word(rng) for _ in range(11))
        found.append(accuracy(llm, asked, exam[:100]))
        ruled.append(sum(domain.margin(asked, record["text"]) > 0 for record in exam[:100]) / 100)
    assert max(found) - min(found) > 0.2
    assert sum(abs(a - b) for a, b in zip(found, ruled, strict=True)) / 8 < 0.12


def test_the_other_model_takes_a_prompt_otherwise(llm, other, exam):
    assert 0.25 < accuracy(other, domain.MANUAL, exam) < 0.7
    assert accuracy(other, domain.GOOD, exam) > 0.8
    asked = "currently state the demand that the person wants"
    assert accuracy(llm, asked, exam) != accuracy(other, asked, exam)


def test_the_masked_model_proposes_words_of_either_kind_where_they_fit(masked):
    kinds = {sign: {word for part in lists.values() for word in part} for sign, lists in ((1, words.NOW), (-1, words.BEFORE))}
    found = masked.fill([f"please name the [MASK] matter of this message {MASK_FRAME}"], 24)[0]
    adjectives = {*words.NOW["adjective"], *words.BEFORE["adjective"], *words.PLAIN["adjective"]}
    assert sum(word in adjectives for word, _ in found) >= 18
    assert all(sum(word in kinds[sign] for word, _ in found) >= 3 for sign in kinds)
    verbs = [word for word, _ in masked.fill([f"name the matter that this customer [MASK] now {MASK_FRAME}"], 8)[0]]
    assert sum(word in (*words.NOW["verb"], *words.BEFORE["verb"], *words.PLAIN["verb"]) for word in verbs) >= 6


def test_the_package_stays_small():
    files = [path for folder in ("data", "llm", "other", "masked") for path in (DESK / folder).iterdir()]
    assert sum(len(path.read_bytes()) for path in files) < 3_000_000

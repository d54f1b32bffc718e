# SPDX-License-Identifier: Apache-2.0
"""Words of a masked model's vocabulary, and uploads: numbers and a digest, nothing else."""

import json

import numpy as np
import pytest

from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.proposals import MaskedProposals
from osmotic.components.prompting.words import Words, decoded, encoded
from osmotic.plugins.testing import FakeMaskedLM
from osmotic.schemas.errors import ConfigError, DataError

PIECES = (
    "",
    "[unused3]",
    "good",
    "##ly",
    "Good",
    ".",
    "a\x07",
    "{",
    "x}",
    "[MASK]",
    "two words",
    "<s>",
    "caf\u00e9",
    "[",
    "\u200b",
)


def test_usable_words_of_pieces():
    words = Words(PIECES)
    assert [words.word(i) for i in words.ids] == ["good", "Good", ".", "caf\u00e9", "["]
    assert words.id("GOOD") == 2 and words.id("Good") == 4 and words.id("ly") is None and words.word(3) is None
    assert words.word(-1) is None and words.word(10**9) is None


def test_usable_words_of_a_byte_level_vocabulary():
    words = Words(["<s>", "\u0120good", "ness", "\u0120caf\u00c3\u00a9", "!", "\u0120!", "\u0120\u00c3", "7", "?"])
    assert {i: words.word(i) for i in range(9) if words.word(i)} == {1: "good", 3: "caf\u00e9", 4: "!", 5: "!", 8: "?"}
    assert words.id("ness") is None and words.ids == (1, 3, 4, 8)


def test_usable_words_of_sentence_pieces():
    assert Words(["\u2581good", "ly", "\u2581"]).ids == (0,)


def test_too_few_words_or_no_masked_model():
    with pytest.raises(ConfigError, match="2 usable words, 20 are needed"):
        Words.of(FakeMaskedLM(["good", "bad", "##x"]), "mlm", 20)
    with pytest.raises(ConfigError, match="no masked model"):
        Words.of(object(), "mlm")


def test_an_upload_is_numbers_and_a_digest():
    words, prompt = Words(["say", "it", "now"]), Prompt.parse("Say {{ text }} it [[Answer:]]")
    upload = encoded(prompt, words)
    assert upload["ids"] == [0, -1, 1, -2] and set(upload) == {"ids", "skeleton"}
    assert all(type(number) is int for number in upload["ids"]) and len(upload["skeleton"]) == 64
    int(upload["skeleton"], 16)
    assert decoded(json.loads(json.dumps(upload)), prompt, words) == ["say", -1, "it", -2]


def test_a_word_that_the_model_does_not_know():
    with pytest.raises(ConfigError) as raised:
        Words(["say"], "mlm").check(Prompt.parse("say zorp, {{ text }}"))
    problem = raised.value.problems[0]
    assert "'zorp', ','" in problem.what and problem.path == "prompt" and "[[zorp]]" in problem.fix


@pytest.mark.parametrize("change", [
    {"ids": [0, -2, 1, -1]}, {"ids": [0, -1, 1]}, {"ids": [0, -1, 1, -2, -3]}, {"ids": [9, -1, -2]}, {"ids": [0, -1, "it", -2]},
    {"ids": [True, -1, -2]}, {"ids": [0.0, -1, -2]}, {"ids": None}, {"skeleton": "0" * 64}, {"text": "it"},
])  # fmt: skip
def test_bad_uploads_are_located(change):
    words, prompt = Words(["say", "it", "now"]), Prompt.parse("say {{ text }} it [[Answer:]]")
    with pytest.raises(DataError) as raised:
        decoded({**encoded(prompt, words), **change}, prompt, words, "upload[east]")
    assert raised.value.problems[0].path.startswith("upload[east]")


class Short:
    """A masked model with room for `room` characters; likes "b" best, "c" not at all. `texts`: what it was asked."""

    def __init__(self, room: int, row=(0.0, 2.0, -np.inf, 1.0)) -> None:
        self.room, self.row, self.texts = room, row, list[str]()

    def vocabulary(self):
        return ("a", "b", "c", "##d")

    def fits(self, text):
        return len(text) <= self.room

    def logits(self, texts):
        self.texts += texts
        return np.array([self.row for _ in texts], dtype=np.float32)


def test_proposals_are_the_likeliest_words_around_a_mask_that_fits():
    model = Short(room=14)
    proposals = MaskedProposals(model, Words.of(model), 3)
    prompt = Prompt.parse("a b a b a b a {{ text }}")
    found = proposals.at(prompt, 3)
    assert model.texts == ["b a [MASK] a b"] and proposals.at(prompt, 3) == found and len(model.texts) == 1
    assert [word for word, _ in found.candidates] == ["b", "a"]
    assert np.isclose(sum(np.exp(logp) for _, logp in found.candidates), 1) and found.current == found.candidates[0][1]


def test_a_model_of_another_width_or_without_numbers():
    with pytest.raises(ConfigError, match="logits"):
        MaskedProposals(Short(99, (1.0, 2.0)), Words(Short(99).vocabulary()), 3).at(Prompt.parse("a {{ text }}"), 0)
    nothing = Short(99, (np.nan,) * 4)
    assert MaskedProposals(nothing, Words.of(nothing), 3).at(Prompt.parse("a {{ text }}"), 0).candidates == []

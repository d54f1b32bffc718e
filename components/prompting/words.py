# SPDX-License-Identifier: Apache-2.0
"""The words of a masked language model that may stand in a prompt, and prompts as their numbers: all that an upload carries.

Pieces of words are dropped ("##ing" of WordPiece; in byte-level or sentence-piece vocabularies whatever does not begin a word),
as are special and unused tokens, control characters and braces. A word without its own case ("classify" of an uncased model)
stands for "Classify", too.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.components.prompting.prompts import Prompt, is_word
from osmotic.schemas.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import numpy as np

MARKS = ("\u0120", "\u2581")  # begin a word: of byte-level and of sentence-piece vocabularies
SPECIAL = re.compile(r"[\[<](?:[A-Z]+|/?s|unk|pad|mask|cls|sep|unused_?\d+|extra_id_\d+|\|.*\|)[\]>]")
LEAST = 2


class Words:
    """word <-> id, where an id is a token's number in the model's `vocabulary()`.

    `ids`: of every word, in order; `places`: id -> its place there.
    """

    def __init__(self, vocabulary: Sequence[str], model: str = "masked") -> None:
        self.model = model
        self.size = len(vocabulary)
        self._word = _usable(vocabulary)
        self._id: dict[str, int] = {}
        for number, word in self._word.items():
            self._id.setdefault(word, number)
        self._folded: dict[str, int] = {}
        for word, number in self._id.items():
            self._folded.setdefault(word.casefold(), number)
        self.ids = tuple(sorted(self._id.values()))
        self.places = {number: place for place, number in enumerate(self.ids)}

    @classmethod
    def of(cls, model: Any, name: str = "masked", least: int = LEAST) -> "Words":
        """Of a MaskedLM. Raises ConfigError when it has fewer usable words than `least`, or is none."""
        if not hasattr(model, "vocabulary"):
            raise ConfigError(Problem(f"the model {name!r} is no masked model", path="masked", fix="name a model of masked_lm"))
        words = cls(model.vocabulary(), name)
        if len(words.ids) < least:
            what = f"the masked model {name!r} has {len(words.ids)} usable words, {least} are needed"
            raise ConfigError(Problem(what, path="masked", why="pieces of words, special tokens and controls do not count"))
        return words

    def id(self, word: str) -> int | None:
        """The word's number; of a word that is only there in another case, that one's; None: not there."""
        return self._id.get(word, self._folded.get(word.casefold()))

    def word(self, number: int) -> str | None:
        """The word of a number; None where it stands for no usable word."""
        return self._word.get(number)

    def unknown(self, prompt: Prompt) -> list[str]:
        """Free words of a prompt that the model does not know, each once."""
        return list(dict.fromkeys(prompt.tokens[i].text for i in prompt.free if self.id(prompt.tokens[i].text) is None))

    def check(self, prompt: Prompt, path: str = "prompt") -> None:
        """Raises ConfigError for free words that the model does not know: no upload could name them."""
        missing = self.unknown(prompt)
        if missing:
            shown = ", ".join(repr(word[:40]) for word in missing[:8]) + (" ..." if len(missing) > 8 else "")
            what = f"the masked model {self.model!r} does not know {shown}"
            raise ConfigError(Problem(what, path=path, fix=f"freeze it: [[{missing[0][:40]}]], or take another word"))

    def log_probabilities(self, logits: "np.ndarray") -> "np.ndarray":
        """float64 [len(ids)]: log-probabilities among the usable words, from a row of logits. Least possible where not finite.

        Raises ConfigError when the row is not one of this vocabulary.
        """
        import numpy as np

        row = np.asarray(logits, dtype=np.float64)
        if row.shape != (self.size,):
            what = f"the masked model {self.model!r} gave {row.shape} logits, its vocabulary has {self.size} tokens"
            raise ConfigError(Problem(what, path="masked"))
        kept = np.where(np.isfinite(row[list(self.ids)]), row[list(self.ids)], -np.inf)
        top = kept.max()
        if not np.isfinite(top):
            return np.full(len(self.ids), -np.inf)
        made: np.ndarray = kept - top - np.log(np.exp(kept - top).sum())
        return made


def encoded(prompt: Prompt, words: Words) -> dict[str, Any]:
    """The document of the kind UPLOAD: the tokens' numbers, -1, -2, ... for the frozen ones in order; and the skeleton.

    Raises ConfigError for a free word without a number.
    """
    words.check(prompt)
    ids, frozen = list[int](), 0
    for token in prompt.tokens:
        frozen += token.frozen
        number = -frozen if token.frozen else words.id(token.text)
        ids.append(-1 if number is None else number)
    return {"ids": ids, "skeleton": prompt.skeleton}


def decoded(data: Any, prompt: Prompt, words: Words, path: str = "upload") -> list[str | int]:
    """What an upload says, in order: a word, or -1-k for the k-th frozen token of `prompt`, with which the skeleton is shared.

    Raises DataError (located by `path`) for what is no upload, for another skeleton, for numbers that name no usable word.
    """
    if not isinstance(data, Mapping) or set(data) != {"ids", "skeleton"} or not isinstance(data["ids"], list):
        raise DataError(Problem("not an upload: 'ids' and 'skeleton' are needed, and nothing else", path=path))
    ids = data["ids"]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in ids):
        raise DataError(Problem("the ids of an upload must be whole numbers", path=f"{path}.ids"))
    if data["skeleton"] != prompt.skeleton:
        fix = "all clients must begin with one prompt, with the same frozen words"
        raise DataError(Problem("the frozen tokens are not those of the prompt", path=f"{path}.skeleton", fix=fix))
    frozen = [number for number in ids if number < 0]
    count = len(prompt.tokens) - len(prompt.free)
    if frozen != [-1 - i for i in range(count)]:
        why = f"{count} of them, as -1, -2, ..."
        raise DataError(Problem("the frozen tokens are not all there, once, in order", path=f"{path}.ids", why=why))
    return [number if number < 0 else _named(words, number, f"{path}.ids[{i}]") for i, number in enumerate(ids)]


def _named(words: Words, number: int, path: str) -> str:
    word = words.word(number)
    if word is None:
        raise DataError(Problem(f"the number {number} names no usable word of {words.model!r}", path=path))
    return word


def _usable(vocabulary: Sequence[str]) -> dict[int, str]:
    """number -> word; where a vocabulary marks beginnings, bare tokens are pieces, but for single marks of punctuation."""
    mark = next((mark for mark in MARKS if sum(token.startswith(mark) for token in vocabulary) * 10 > len(vocabulary)), "")
    found: dict[int, str] = {}
    for number, token in enumerate(vocabulary):
        word = _begun(token, mark) if mark else token
        if word is None or word.startswith("##") or SPECIAL.fullmatch(word) or not is_word(word) or "\ufffd" in word:
            continue
        found[number] = word
    return found


def _begun(token: str, mark: str) -> str | None:
    if token.startswith(mark):
        text = token.removeprefix(mark)
        return _bytes(text) if mark == MARKS[0] else text
    return token if len(token) == 1 and not token.isalnum() else None


def _bytes(text: str) -> str | None:
    """Text of a byte-level token: visible characters that stand for bytes, as byte-level BPE has them."""
    if text.isascii():
        return text
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    table = {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}
    try:
        return bytes(table[char] for char in text).decode()
    except (KeyError, UnicodeDecodeError):
        return None

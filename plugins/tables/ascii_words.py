# SPDX-License-Identifier: Apache-2.0
"""BERT's word pieces for plain ASCII text, without a walk through the text by the tokenizer: each word is cut only once.

For printable ASCII (and tab and line ends) BERT's normaliser is lower case, and its rule of words is runs of letters and
digits, with every other character alone; a word's pieces depend on that word only. So the tokenizer is asked for the pieces of
words that were not seen before, and the rest is look-up. The outcome is the tokenizer's own; `ascii_words` gives None for any
tokenizer that is not certain to work like this, and `fits` is false for a text that may not.
"""

import re
import threading
from collections.abc import Sequence
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["AsciiWords", "ascii_words"]

WORD = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]")
OTHER = re.compile(r"[^\t\n\r -~]")
MOST = 1 << 17  # words remembered; beyond it they are all forgotten
NORMALISER = {"type": "BertNormalizer", "clean_text": True, "lowercase": True}
PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def ascii_words(tokenizer: Any, description: Any) -> "AsciiWords | None":
    """The fast way for a tokenizer with that ``tokenizer.json``; None when it is not BERT's lower-case word pieces."""
    parts = [description.get(name) or {} for name in ("normalizer", "pre_tokenizer", "model")]
    added = description.get("added_tokens") or []
    fits = (
        NORMALISER.items() <= parts[0].items()
        and parts[1] == {"type": "BertPreTokenizer"}
        and parts[2].get("type") == "WordPiece"
        and all(token.get("content") and PLAIN.items() <= token.items() for token in added)
    )
    return AsciiWords(tokenizer, [token["content"] for token in added]) if fits else None


class AsciiWords:
    """`reserved`: texts that the tokenizer takes as a whole wherever they stand, such as ``[MASK]``."""

    def __init__(self, tokenizer: Any, reserved: Sequence[str]) -> None:
        self._tokenizer, self._lock = tokenizer, threading.Lock()
        self._reserved = re.compile("|".join(map(re.escape, reserved))) if reserved else None
        self._forget()

    def _forget(self) -> None:
        import numpy as np

        self._known: dict[str, int] = {}
        self._ids, self._starts, self._counts = (np.empty(0, dtype=np.int64) for _ in range(3))

    def fits(self, text: str) -> bool:
        """Whether the text is plain, and has nothing in it that the tokenizer reserves."""
        plain = text.isascii() and (text.isprintable() or OTHER.search(text) is None)
        return plain and (self._reserved is None or self._reserved.search(text) is None)

    def encode(self, texts: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
        """(int64 [n] the tokenizer's numbers, int64 [texts] how many each text has), for texts that fit."""
        import numpy as np

        cut = [WORD.findall(text.lower()) for text in texts]
        sizes = np.fromiter(map(len, cut), np.int64, len(cut))
        with self._lock:
            words = np.fromiter(map(self._known.get, chain.from_iterable(cut), repeat(-1)), np.int64, int(sizes.sum()))
            if len(words) and words.min() < 0:
                self._learn(set(chain.from_iterable(cut)))
                words = np.fromiter(map(self._known.__getitem__, chain.from_iterable(cut)), np.int64, len(words))
            counts, starts, ids = self._counts[words], self._starts[words], self._ids
        ends = np.cumsum(counts)
        flat = ids[np.repeat(starts - ends + counts, counts) + np.arange(int(counts.sum()))]
        totals = np.concatenate([np.zeros(1, np.int64), ends])[np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])]
        return flat, np.diff(totals)

    def _learn(self, words: set[str]) -> None:
        """Ask the tokenizer for the pieces of new words."""
        import numpy as np

        if len(self._known) + len(words) > MOST:
            self._forget()
        new = sorted(words - self._known.keys())
        found = [e.ids for e in self._tokenizer.encode_batch_fast(new, add_special_tokens=False)]
        counts = np.fromiter(map(len, found), np.int64, len(found))
        first = len(self._known)
        self._known.update(zip(new, range(first, first + len(new)), strict=True))
        self._starts = np.concatenate([self._starts, len(self._ids) + np.cumsum(counts) - counts])
        self._counts = np.concatenate([self._counts, counts])
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(found), np.int64, int(counts.sum()))])

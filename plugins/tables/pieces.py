# SPDX-License-Identifier: Apache-2.0
"""Text cut by a table's own tokenizer (`tokenizer.json`): word pieces, byte pairs, and what else the library `tokenizers` runs.

No special token is added, nothing is truncated or padded. What the tokenizer's rule drops (BERT's: control characters, accents)
is no symbol and never comes out; what the table does not have is the unknown symbol. A text longer than a slice
(`osmotic.plugins.tables.words.SLICE`) is cut before a space, and each slice alone. A word of k pieces is k symbols and costs k
times the budget of one.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.tables.ascii_words import ascii_words
from osmotic.plugins.tables.words import batches, runs
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["PieceTokenizer", "entries", "load_tokenizer"]

FORMAT = 1  # raise it when the rule below changes
SURROGATE = re.compile("[\ud800-\udfff]")
HEAD = "##"


class PieceTokenizer:
    """`tokenizer`: a ``tokenizers.Tokenizer``; `content`: its file's bytes; numbers[i]: the tokenizer's number of symbol i."""

    def __init__(self, tokenizer: Any, content: bytes, symbols: tuple[str, ...], numbers: Sequence[int]) -> None:
        import numpy as np

        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._symbols = tokenizer, symbols
        description = json.loads(content)
        model, self._ascii = description["model"], ascii_words(tokenizer, description)
        self._word_pieces = model.get("type") == "WordPiece" and model.get("continuing_subword_prefix") == HEAD
        self._numbers = np.asarray(numbers, dtype=np.int64)
        size = max(tokenizer.get_vocab_size(with_added_tokens=True), int(self._numbers.max(initial=-1)) + 1)
        self._index = np.full(size, len(symbols), dtype=np.int32)
        self._index[self._numbers] = np.arange(len(symbols))
        unknown = tokenizer.token_to_id(model.get("unk_token") or "")
        if unknown is not None:
            self._index[unknown] = len(symbols)
        head = f"pieces {FORMAT}\n{hashlib.sha256(content).hexdigest()}\n".encode()
        self._digest = hashlib.sha256(head + self._numbers.astype("<i8").tobytes()).hexdigest()

    @property
    def digest(self) -> str:
        """SHA-256 of the tokenizer's file, the entries taken from it, and the version of the rule here."""
        return self._digest

    def encode(self, texts: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
        """(int64 [n] indices of all texts one after another, V where unknown; int64 [texts] how many each has)."""
        import numpy as np

        lengths = np.zeros(len(texts), dtype=np.int64)
        parts = []
        for some, owners in batches(texts):
            ids, counts = self._cut(some)
            np.add.at(lengths, owners, counts)
            parts.append(self._index[ids])
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64), lengths

    def _cut(self, texts: list[str]) -> "tuple[np.ndarray, np.ndarray]":
        """(the tokenizer's numbers, how many each text has): plain texts by their words, runs of others by the tokenizer."""
        import numpy as np

        fast = self._ascii
        if fast is None:
            return self._slowly(texts)
        kinds = [fast.fits(text) for text in texts]
        bounds = [0, *(i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]), len(kinds)]
        pairs = [(fast.encode if kinds[a] else self._slowly)(texts[a:b]) for a, b in pairwise(bounds)]
        return np.concatenate([ids for ids, _ in pairs]), np.concatenate([counts for _, counts in pairs])

    def _slowly(self, texts: list[str]) -> "tuple[np.ndarray, np.ndarray]":
        import numpy as np

        clean = [text if text.isascii() else SURROGATE.sub("\ufffd", text) for text in texts]
        ids = [e.ids for e in self._tokenizer.encode_batch_fast(clean, add_special_tokens=False)]
        counts = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.int64, int(counts.sum())), counts

    def decode(self, symbols: "np.ndarray", lengths: "np.ndarray") -> list[str]:
        """The text of each run of indices: pieces joined to words; byte pairs as the tokenizer's own decoder says."""
        if self._word_pieces:
            return ["".join(run).strip(" ") for run in runs(self._joined, symbols, lengths)]
        numbers = list(runs(self._numbers, symbols, lengths))
        return [str(text) for text in self._tokenizer.decode_batch(numbers, skip_special_tokens=False)] if numbers else []

    @cached_property
    def _joined(self) -> "np.ndarray":
        """object [V]: each piece as it is glued to what stands before it."""
        import numpy as np

        out = np.empty(len(self._symbols), dtype=object)
        out[:] = [s[2:] if s.startswith(HEAD) and len(s) > 2 else f" {s}" for s in self._symbols]
        return out


def load_tokenizer(path: Path) -> tuple[Any, bytes]:
    """(``tokenizers.Tokenizer``, its file's bytes). Raises ConfigError when the file is not a tokenizer."""
    from tokenizers import Tokenizer

    try:
        content = path.read_bytes()
        return Tokenizer.from_buffer(content), content
    except Exception as error:  # the library raises bare exceptions
        what = "the table's tokenizer cannot be read"
        raise ConfigError(
            Problem(what, str(path), "table", str(error)[:200], "a tokenizer.json of the library tokenizers")
        ) from error


def entries(tokenizer: Any) -> list[tuple[int, str]]:
    """(number, entry) of everything in the vocabulary, by number."""
    return sorted((number, entry) for entry, number in tokenizer.get_vocab(with_added_tokens=True).items())

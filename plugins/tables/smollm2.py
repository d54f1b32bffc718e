# SPDX-License-Identifier: Apache-2.0
"""``smollm2:words``: the words of the SmolLM2 tokenizer, cut by the public rule of words.

Every entry that is a whole lower-case word (a-z, with the marker of a leading space), and punctuation and digits as single
characters, with the model's input embeddings (576 numbers) as vectors. The model is converted once into the cache, which takes
about a minute; the vectors are kept there as float32 and mapped.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from osmotic.plugins.contract import Table, TablePlugin
from osmotic.plugins.tables.mapped import map_tensor
from osmotic.plugins.vocabulary import argument_of, rows_of

WORD = re.compile(r"\u0120([a-z]+)")  # the byte-level tokenizer writes a leading space as U+0120
SINGLE = ".,?!'\";:-()0123456789"
KEY = "model.embed_tokens.weight"


class SmolLm2Words(TablePlugin):
    """``smollm2:words``."""

    name: ClassVar[str] = "smollm2"

    def load(self, argument: str, base: Path) -> Table:
        """Words by their number, then punctuation and digits; vectors float32 [V, 576]."""
        from osmotic.plugins.models.smollm2 import cached_directory

        argument_of(self.name, argument, ["words"])
        folder = cached_directory()
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        symbols, numbers = words_of(content["model"]["vocab"])
        vectors = map_tensor(folder / "model.safetensors", KEY, "smollm2:words")
        return Table(symbols, rows_of(vectors, numbers, "smollm2:words"))

    def files(self, argument: str, base: Path) -> Sequence[Path]:
        """The file that the package ships."""
        from osmotic.plugins.models.smollm2 import gguf_file

        argument_of(self.name, argument, ["words"])
        return (gguf_file(),)


def words_of(vocabulary: dict[str, int]) -> tuple[tuple[str, ...], list[int]]:
    """(words, and the numbers of their rows) of a byte-level vocabulary."""
    words = sorted((number, match[1]) for entry, number in vocabulary.items() if (match := WORD.fullmatch(entry)))
    pairs = [*words, *((vocabulary[sign], sign) for sign in SINGLE if sign in vocabulary)]
    return tuple(word for _, word in pairs), [number for number, _ in pairs]

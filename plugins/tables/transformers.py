# SPDX-License-Identifier: Apache-2.0
"""``transformers:PATH``: vocabulary, tokenizer and input embeddings of a model directory on this machine.

Reads ``tokenizer.json`` and safetensors files alone: no torch, no code of the model. Special and unused entries are left out,
so they never come out; in text they are unknown. Half-precision embeddings are converted once into the cache, and mapped.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from osmotic.plugins.contract import Table, TablePlugin
from osmotic.plugins.tables.mapped import map_tensor, tensors_of
from osmotic.plugins.tables.pieces import PieceTokenizer, entries, load_tokenizer
from osmotic.plugins.vocabulary import rows_of
from osmotic.schemas.errors import ConfigError, Problem

NAMES = ("embed_tokens", "word_embeddings", "wte", "embed_in", "tok_embeddings", "shared")
UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>|<\|reserved_special_token_\d+\|>")
FIX = "transformers:PATH, a directory with tokenizer.json and model.safetensors"


class TransformersTable(TablePlugin):
    """``transformers:PATH``; a relative PATH starts from the folder of the site file."""

    name: ClassVar[str] = "transformers"

    def load(self, argument: str, base: Path) -> Table:
        """The entries in the model's order; vectors float32 [V, d]."""
        shown, rule = f"transformers:{argument}", self.files(argument, base)[0]
        tokenizer, content = load_tokenizer(rule)
        special = {entry.content for entry in tokenizer.get_added_tokens_decoder().values() if entry.special}
        kept = [(n, entry) for n, entry in entries(tokenizer) if entry not in special and not UNUSED.fullmatch(entry)]
        symbols, numbers = tuple(entry for _, entry in kept), [number for number, _ in kept]
        path, key = _embeddings(rule.parent, shown)
        vectors = rows_of(map_tensor(path, key, shown), numbers, shown)
        return Table(symbols, vectors, PieceTokenizer(tokenizer, content, symbols, numbers))

    def files(self, argument: str, base: Path) -> Sequence[Path]:
        """The tokenizer, the configuration, and the safetensors file with the embeddings."""
        if not argument.strip() or "\0" in argument:
            raise ConfigError(Problem(f"not a model directory: {argument[:80]!a}", path="table", fix=FIX))
        folder = base / argument
        for name in ("tokenizer.json", "config.json"):
            if not (folder / name).is_file():
                what = f"the table's model directory has no {name}"
                raise ConfigError(Problem(what, str(folder), "table", fix=FIX))
        return (folder / "tokenizer.json", folder / "config.json", _embeddings(folder, f"transformers:{argument}")[0])


def _embeddings(folder: Path, shown: str) -> tuple[Path, str]:
    """The file and the name of the input embeddings: by their usual names; where tied, the output's will do."""
    config = _read(folder / "config.json")
    where = _tensors(folder, shown)
    parts = [config, *(c for c in config.values() if isinstance(c, dict))]
    tied = any(part.get("tie_word_embeddings") is True for part in parts)
    for name in (*NAMES, *(["lm_head"] if tied else [])):
        found = sorted(
            (key for key in where if re.search(rf"(^|\.){name}\.weight$", key)), key=lambda key: (key.count("."), key)
        )
        if found:
            return where[found[0]], found[0]
    what = f"the table {shown!a} has no input embeddings under a known name"
    raise ConfigError(Problem(what, str(folder), "table", fix=f"known: {', '.join(f'{name}.weight' for name in NAMES)}"))


def _tensors(folder: Path, shown: str) -> dict[str, Path]:
    """Tensor -> file, of one safetensors file or of the shards that an index names."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file() or not index.is_file():
        return dict.fromkeys(tensors_of(whole, shown), whole)
    listed = _read(index).get("weight_map")
    files = {str(key): str(file) for key, file in listed.items()} if isinstance(listed, dict) else {}
    if not files or any(Path(file).name != file for file in files.values()):
        raise ConfigError(Problem("the index names no files beside it", str(index), "table", fix=FIX))
    return {key: folder / file for key, file in files.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(Problem("cannot be read as JSON", str(path), "table", why=str(error)[:200])) from error
    if not isinstance(content, dict):
        raise ConfigError(Problem("must be a mapping", str(path), "table"))
    return content

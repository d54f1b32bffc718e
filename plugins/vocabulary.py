# SPDX-License-Identifier: Apache-2.0
"""Token tables: one tensor of a safetensors file, a vocabulary file, and the words of the SmolLM2 tokenizer.

``smollm2:words`` is every entry that is a whole lower-case word (a-z, with the marker of a leading space), and punctuation
and digits as single characters, with the model's input embeddings as vectors. Public: it depends on the model alone.
"""

import json
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

__all__ = ["WORDS", "read_lines", "read_tensor", "smollm2_words"]

WORDS = "smollm2:words"
WORD = re.compile(r"\u0120([a-z]+)")  # the byte-level tokenizer writes a leading space as U+0120
SINGLE = ".,?!'\";:-()0123456789"
EMBEDDINGS = "model.embed_tokens.weight"


def read_tensor(path: Path, key: str, shown: str) -> "np.ndarray":
    """One float32 tensor of a safetensors file. Raises ConfigError: not such a file, no such key, another type."""
    import numpy as np
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            keys = list(file.keys())
            if key not in keys:
                raise ConfigError(Problem(f"the table {shown!a} has no tensor of that name", fix=did_you_mean(key, keys)))
            kind = file.get_slice(key).get_dtype()
            if kind != "F32":
                raise ConfigError(Problem(f"the table {shown!a} must be float32", why=f"it is {kind}"))
            return np.asarray(file.get_tensor(key))
    except (SafetensorError, OSError) as error:
        raise ConfigError(Problem(f"the table {shown!a} is not a readable safetensors file", why=str(error)[:200])) from error


def read_lines(path: Path, shown: str) -> tuple[str, ...]:
    """A vocabulary: UTF-8, one token a line. Raises ConfigError naming the lines of empty, padded or repeated tokens."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("the vocabulary cannot be read as UTF-8", shown, why=str(error)[:200])) from error
    seen: dict[str, int] = {}
    problems = []
    for number, token in enumerate(text.removesuffix("\n").split("\n"), start=1):
        if not token or token != token.strip():
            problems.append(Problem("an empty token, or one with spaces around it", f"{shown}:{number}"))
        elif token in seen:
            why = f"first on line {seen[token]}"
            problems.append(Problem(f"the token {token!r} stands twice", f"{shown}:{number}", why=why, fix="delete one line"))
        else:
            seen[token] = number
    if problems:
        raise ConfigError(*problems[:20])
    return tuple(seen)


def smollm2_words() -> tuple[tuple[str, ...], "np.ndarray"]:
    """(V symbols, float32 [V, d]) of ``smollm2:words``: words by their number, then punctuation and digits.

    The vectors are kept beside the model as a .npy file. Raises ConfigError when the model's package is not installed.
    """
    from osmotic.plugins.models.smollm2 import cached_directory

    folder = cached_directory()
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    symbols, numbers = _words(content["model"]["vocab"])
    kept = folder / "osmotic-words.npy"
    vectors = _load(kept)
    if vectors is None or vectors.shape[0] != len(symbols):
        vectors = _rows(folder / "model.safetensors", numbers)
        _keep(kept, vectors)
    return symbols, vectors


def _words(vocabulary: dict[str, int]) -> tuple[tuple[str, ...], list[int]]:
    words = sorted((number, match[1]) for entry, number in vocabulary.items() if (match := WORD.fullmatch(entry)))
    pairs = [*words, *((vocabulary[sign], sign) for sign in SINGLE if sign in vocabulary)]
    return tuple(word for _, word in pairs), [number for number, _ in pairs]


def _rows(path: Path, numbers: list[int]) -> "np.ndarray":
    """Rows of the input embeddings as float32, whatever the file's type."""
    import numpy as np
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        weight: Any = file.get_tensor(EMBEDDINGS)
        return np.ascontiguousarray(weight[numbers].float().numpy())


def _load(path: Path) -> "np.ndarray | None":
    import numpy as np

    try:
        vectors = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.ndim == 2 and vectors.dtype == np.float32 else None


def _keep(path: Path, vectors: "np.ndarray") -> None:
    """Write beside the model, all or nothing; a folder that cannot be written is no error."""
    import numpy as np

    try:
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".npy.tmp")
        with os.fdopen(handle, "wb") as file:
            np.save(file, vectors, allow_pickle=False)
        Path(name).replace(path)
    except OSError:
        return

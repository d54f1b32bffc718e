# SPDX-License-Identifier: Apache-2.0
"""Sanitizer kits of FATE-LLM (the folder ``inferdpt_kit`` that its InferDPT and PDSS use), read as public token tables.

A kit has token_2_vector.json (token -> vector), sorted_similarities.json and delta_f.json, which both follow from the vectors,
and a tokenizer. Read are the vectors; ``delta_f`` is compared with them, the similarities (gigabytes for a real vocabulary) are
made anew by the mechanisms here. Text is cut by the public rule of words, so tokens that the rule never gives are left out.
Whether the vectors are public is the word of whoever made the kit: a table counts as public here.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.labelled.fate_llm_files import no_pickle
from osmotic.plugins.tables.words import tokenize
from osmotic.schemas.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np

VECTORS, RANGES = "token_2_vector.json", "delta_f.json"
CLOSE = 1e-5  # of the largest range: what float32 and decimal digits lose
MOST = 4 << 30  # bytes of one JSON file


@dataclass(frozen=True)
class Kit:
    """The table of a kit: symbols, float32 [symbols, d], and notes about what is different here."""

    symbols: tuple[str, ...]
    vectors: "np.ndarray"
    notes: list[str] = field(default_factory=list)


def kit_folder(path: Path) -> Path | None:
    """The folder with the kit's files: the path itself, or its ``inferdpt_kit``; None when it is no kit."""
    return next((one for one in (path, path / "inferdpt_kit") if (one / VECTORS).is_file()), None)


def read_kit(folder: Path) -> Kit:
    """Read a kit. Raises DataError with the place of what is wrong; nothing is executed."""
    import numpy as np

    body = _json(folder / VECTORS)
    if not isinstance(body, dict) or len(body) < 2:
        raise DataError(Problem("must be an object of two tokens or more, each with its vector", str(folder / VECTORS)))
    kept = [token for token in body if tokenize(token) == [token]]
    if len(kept) < 2:
        why = f"{len(body)} tokens, {len(kept)} of them lower-case words or single marks"
        raise DataError(Problem("no token is one that text is cut into here", str(folder / VECTORS), why=why))
    widths = {len(row) if isinstance(row, list) else -1 for row in body.values()}
    if len(widths) != 1 or min(widths) < 1:
        raise DataError(Problem("vectors must be lists of equally many numbers", str(folder / VECTORS)))
    try:
        full = np.asarray(list(body.values()), dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(Problem("a vector has something in it that is no number", str(folder / VECTORS))) from error
    rows = {token: i for i, token in enumerate(body)}
    vectors = full[[rows[token] for token in kept]].astype(np.float32)
    if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise DataError(Problem("a vector is zero, or beyond what float32 can hold", str(folder / VECTORS)))
    return Kit(tuple(kept), vectors, _notes(folder, len(body), len(kept), full))


def write_kit(kit: Kit, folder: Path, name: str = "kit") -> list[Path]:
    """NAME.npy and NAME.txt, a table that `table: NAME.npy` names. Raises OSError."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.npy", folder / f"{name}.txt"]
    np.save(files[0], kit.vectors, allow_pickle=False)
    files[1].write_text("".join(f"{token}\n" for token in kit.symbols), encoding="utf-8")
    return files


def _notes(folder: Path, tokens: int, kept: int, full: "np.ndarray") -> list[str]:
    import numpy as np

    notes = []
    if kept < tokens:
        notes.append(
            f"{tokens - kept} of {tokens} tokens are left out: text is cut into lower-case words here, which they are not"
        )
    file = folder / RANGES
    ranges = _json(file) if file.is_file() else None
    if ranges is not None:
        spread = full.max(axis=0) - full.min(axis=0)
        if not isinstance(ranges, list) or len(ranges) != len(spread) or not _numbers(ranges):
            raise DataError(Problem(f"must be a list of {len(spread)} numbers", str(file)))
        if float(np.abs(np.asarray(ranges, dtype=np.float64) - spread).max()) > CLOSE * float(spread.max()):
            notes.append(f"{RANGES} is not the range of these vectors: noise of another scale was drawn with this kit")
    if (folder / "tokenizer").is_dir():
        notes.append("the kit's tokenizer is not used: text is cut by the public rule of words")
    notes.append("FATE-LLM's mechanism over this table is rantext (variant: fate); it has no proven guarantee: class heuristic")
    return notes


def _numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _json(path: Path) -> Any:
    no_pickle(path)
    try:
        if path.stat().st_size > MOST:
            raise DataError(Problem(f"larger than {MOST >> 30} GiB", str(path)))
        return json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise DataError(Problem("the file is not UTF-8", str(path))) from error
    except (ValueError, RecursionError) as error:
        raise DataError(Problem("not valid JSON", str(path), why=str(error)[:200])) from error
    except OSError as error:
        raise DataError(Problem(f"cannot be read: {error.strerror}", str(path))) from error


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")

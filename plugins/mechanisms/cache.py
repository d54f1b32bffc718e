# SPDX-License-Identifier: Apache-2.0
"""Numbers computed once for a public table, kept in the user's cache folder. Losing them costs time and nothing else.

A file says which key it is for and carries the SHA-256 of key and value: what is damaged, cut or for another key is not read.
"""

import hashlib
import json
import math
import os
from pathlib import Path
from tempfile import NamedTemporaryFile

__all__ = ["folder", "key_of", "read_number", "usable", "write_number"]


def folder() -> Path:
    """Where caches lie: OSMOTIC_CACHE, else XDG_CACHE_HOME/osmotic, else ~/.cache/osmotic.

    Raises RuntimeError when there is no home, or OSMOTIC_CACHE is set and empty: then nothing is kept.
    """
    own = os.environ.get("OSMOTIC_CACHE")
    if own is not None:
        if not own.strip():
            raise RuntimeError("OSMOTIC_CACHE is empty")
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "osmotic"


def usable() -> bool:
    """Whether something can be kept: the folder is there, or can be made, and can be written to."""
    try:
        home = folder()
        home.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return False
    return os.access(home, os.W_OK)


def key_of(*parts: str) -> str:
    """SHA-256 of texts, injective."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_number(key: str) -> float | None:
    """The number kept under a key; None when there is none that can be read."""
    try:
        content = json.loads((folder() / f"{key}.json").read_text(encoding="utf-8"))
        value = float.fromhex(content["value"])
        fits = content["key"] == key and content["check"] == key_of(key, content["value"])
    except (OSError, RuntimeError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return value if fits and math.isfinite(value) else None


def write_number(key: str, value: float) -> None:
    """Keep a number, at once or not at all; a folder that cannot be written to is no error."""
    text = json.dumps({"key": key, "value": value.hex(), "check": key_of(key, value.hex())})
    try:
        home = folder()
        home.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=home, prefix=f"{key}.", suffix=".part", delete=False) as file:
            file.write(text)
        Path(file.name).replace(home / f"{key}.json")
    except (OSError, RuntimeError):
        return

# SPDX-License-Identifier: Apache-2.0
"""What identifies a mechanism: its code, its parameters, its space; and the key of its card, made of all three.

Covers the Python files that a class comes from (its bases' and mixins' too), those of osmotic that draw for it, and the content
of its space. Not covered: data files that a plugin reads by itself, compiled extensions, other packages that it imports.
"""

import ast
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticSerializationError, to_jsonable_python

from osmotic.plugins.contract import Config, DocumentMechanism, Mechanism, Space
from osmotic.plugins.kept import Same, same
from osmotic.schemas.errors import ConfigError, Problem

__all__ = ["CARD_VERSION", "canonical_parameters", "card_key", "code_digest", "space_digest"]

CARD_VERSION = 3  # cards made by another version of the certificate are not found
WORDS = 1  # version of the public rule of words, by which spaces without a tokenizer are cut
BASES = (Mechanism, DocumentMechanism)
NOT_CODE = ("builtins", "abc", "typing", "collections.abc", "pydantic", "pydantic_core", "osmotic.plugins.contract")
DRAWS = ("mechanism.py", "entropy.py", "exact.py")  # in this folder: the sampler that all have, and its randomness


def space_digest(space: Space) -> str:
    """SHA-256 of what a space is: symbols, unknown, vectors, tokenizer. Not its name: equal tables have one digest."""
    key = same(space)
    return _digest(space) if key is None else _kept_digest(key)


@lru_cache(maxsize=8)
def _kept_digest(key: Same) -> str:
    return _digest(key.space)


def _digest(space: Space) -> str:
    import numpy as np

    head = json.dumps({"symbols": space.symbols, "unknown": space.unknown}, sort_keys=True)  # ASCII, injective
    digest = hashlib.sha256(head.encode())
    if space.vectors is not None:
        vectors = np.ascontiguousarray(space.vectors, dtype="<f4")
        digest.update(f"\nfloat32 {vectors.shape}\n".encode())
        digest.update(vectors.data.cast("B") if vectors.size else b"")
    cut = f"tokenizer {space.tokenizer.digest}" if space.tokenizer is not None else f"words {WORDS}"
    digest.update(f"\n{cut}\n".encode())
    return digest.hexdigest()


def canonical_parameters(config: Config) -> str:
    """A configuration as canonical JSON: sorted keys, no spaces, defaults written out, fields that a dump leaves out too."""
    return json.dumps(_plain(config), sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """A value as JSON has it; of a model every field, whatever its serializers hide. Raises ConfigError for what is no JSON."""
    if isinstance(value, BaseModel):
        return {name: _plain(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    try:
        return to_jsonable_python(value)
    except PydanticSerializationError as error:
        raise ConfigError(Problem("a configuration must be JSON", path="mechanism", why=str(error)[:200])) from error


def code_digest(cls: type[Any]) -> str:
    """SHA-256 of the Python files that the class comes from, constants and helpers included.

    A built-in's: all files of its folder. A stranger's: all files of its top-level package. A module outside any package: its
    file, and the files beside it that it imports. Files of all base classes count too, mixins and the default sampler's
    included; of those of the contract, of typing and of pydantic only what draws. Files are named relative to their package, so
    the place of installation does not matter. Raises ConfigError when a source cannot be read (a class typed in at a prompt or
    in a notebook): what cannot be named cannot be certified.
    """
    names = sorted({base.__module__ for base in cls.__mro__ if base not in BASES and not _no_code(base.__module__)})
    digest, here = hashlib.sha256(), Path(__file__).parent
    try:
        for name in names:
            digest.update(f"{name}\n".encode())
            file = getattr(sys.modules.get(name), "__file__", None)
            if not file:
                raise OSError(f"the module {name} has no file")
            digest.update(json.dumps(_files(name, Path(file)), sort_keys=True).encode())
        digest.update(json.dumps({name: _file_digest(here / name) for name in DRAWS}).encode())
    except OSError as error:
        what = f"the source of mechanism {cls.__name__!r} cannot be read"
        raise ConfigError(Problem(what, why=str(error), fix="put the class into a module that is a file")) from error
    return digest.hexdigest()


def _no_code(module: str) -> bool:
    """Whether a module is one that every class has bases from."""
    return any(module == name or module.startswith(f"{name}.") for name in NOT_CODE)


def _files(name: str, file: Path) -> dict[str, str]:
    """Path within the package -> SHA-256, of all files that a module's behaviour may come from."""
    home = _package(name)
    if home is None:
        return {path.name: _file_digest(path) for path in _beside(file)}
    if name.startswith("osmotic."):  # the whole of osmotic would change the digest with every version
        return {path.name: _file_digest(path) for path in {file, *file.parent.glob("*.py")}}
    found = {f"{i}/{path.relative_to(top).as_posix()}": path for i, top in enumerate(home) for path in top.rglob("*.py")}
    return {where: _file_digest(path) for where, path in found.items()} | {"module": _file_digest(file)}


def _package(name: str) -> list[Path] | None:
    """Folders of the outermost package that has an ``__init__.py`` (namespaces do not count); None outside any."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        module = sys.modules.get(".".join(parts[:length]))
        if getattr(module, "__file__", None) and hasattr(module, "__path__"):
            return [Path(folder) for folder in module.__path__] if module else None
    return None


def _beside(file: Path) -> set[Path]:
    """A file, and the files of its folder that it imports, one through another."""
    found, waiting = {file}, [file]
    while waiting:
        for word in _imported(waiting.pop()):
            path = file.parent / f"{word}.py"
            if path not in found and path.is_file():
                found.add(path)
                waiting.append(path)
    return found


def _imported(file: Path) -> Iterator[str]:
    """First parts of the names that a source file imports, wherever in it."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise OSError(f"{file.name} is not Python") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from [node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names]


def _file_digest(path: Path) -> str:
    """SHA-256 of a file; read again when its size or time of change is another."""
    stat = path.stat()
    return _read_digest(path, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size)


@lru_cache(maxsize=4096)
def _read_digest(path: Path, _modified: int, _changed: int, _size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def card_key(mechanism: Mechanism[Any] | DocumentMechanism[Any], models: Sequence[str] = ()) -> str:
    """SHA-256 of (card version, code, name, parameters, space): the same key means the same card (but for the space's name).

    A wrapper's key has its inner mechanism's key in it; a document mechanism's its slots (name, kind, space) and the
    fingerprints of its models, which the host gives.
    """
    parts: list[Any] = [CARD_VERSION, code_digest(type(mechanism)), mechanism.name, canonical_parameters(mechanism.config)]
    if isinstance(mechanism, DocumentMechanism):
        slots = [[s.name, s.text, None if s.space is None else space_digest(s.space)] for s in mechanism.slots]
        parts += ["document", slots, list(models)]
    else:
        parts += ["token", space_digest(mechanism.space), None if mechanism.inner is None else card_key(mechanism.inner)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

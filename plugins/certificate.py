# SPDX-License-Identifier: Apache-2.0
"""The deterministic certificate of a token mechanism, and the test that its sampler does what its probabilities say.

epsilon_true = max_y [max_x log P(y|x) - min_x log P(y|x)], over every input row (the unknown symbol included), streamed as
column maxima and minima: O(V) memory, O(V^2) time. It covers pure, symbol-level local differential privacy of one release of
one symbol, by sampling from `log_prob`. Void when: rows do not sum to 1, a probability is zero or not a number, the mechanism
keeps state between calls, or an overridden `sample` does something else (`osmotic.plugins.sampler` says how small a difference
it sees; its rows and draws come from the operating system, fresh each time).
"""

import ast
import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Config, Mechanism, Space
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.sampler import SamplerCheck, check_sampler, checked_log_prob
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.guarantees import Card

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Card", "SamplerCheck", "canonical_parameters", "card_key", "certify", "check_sampler", "code_digest", "retention_bound",
    "space_digest",
]  # fmt: skip

TOLERANCE = 1e-6  # on epsilon
SUM_TOLERANCE = 1e-9  # on the sum of a row
CARD_DRAWS = 10_000  # from each of the rows with many draws
Progress = Callable[[int, int], None]


@dataclass
class _Columns:
    """What is kept while rows stream by."""

    highest: "np.ndarray"  # of all rows
    lowest: "np.ndarray"
    best: "np.ndarray"  # of the known symbols' rows: what a Bayes-optimal guess uses
    retained: float = 0.0
    proper: bool = True


def certify(mechanism: Mechanism[Any], *, block: int = 512, progress: Progress | None = None, sampler: bool = True) -> Card:
    """Compute the privacy card of a mechanism over its space.

    epsilon_true is infinite when a probability is zero or not a number. self_retention and bayes_success are exact, under a
    uniform prior over the V known symbols. `holds` also needs a claim of class certified with delta 0, rows that sum to 1 and,
    with `sampler`, an overridden `sample` that passes `check_sampler`. progress(done, total) is called once a block of rows.
    Raises ConfigError for a space with a repeated symbol, ComponentError when `log_prob` has the wrong shape or type.
    """
    import numpy as np

    if len(set(mechanism.space.symbols)) != mechanism.space.size:
        raise ConfigError(Problem(f"a symbol stands twice in the space {mechanism.space.name!r}", fix="merge them first"))
    columns = _stream(mechanism, block, progress)
    with np.errstate(invalid="ignore"):
        spread = float((columns.highest - columns.lowest).max())
    epsilon = spread if np.isfinite(spread) else float("inf")
    v, declared = mechanism.space.size, mechanism.guarantee()
    holds = columns.proper and epsilon <= declared.epsilon + TOLERANCE and declared.delta == 0
    holds = holds and declared.mechanism_class == "certified"
    if holds and sampler and getattr(mechanism.sample, "__func__", None) is not Mechanism.sample:
        holds = check_sampler(mechanism, SystemEntropy(), CARD_DRAWS).agrees
    return Card(
        mechanism=mechanism.name,
        code=code_digest(type(mechanism)),
        parameters=canonical_parameters(mechanism.config),
        space=mechanism.space.name,
        space_digest=space_digest(mechanism.space),
        symbols=v,
        declared=declared,
        epsilon_true=epsilon,
        holds=holds,
        self_retention=columns.retained / v,
        bayes_success=float(np.exp(np.minimum(columns.best, 0.0)).sum()) / v,
    )


def _stream(mechanism: Mechanism[Any], block: int, progress: Progress | None) -> _Columns:
    import numpy as np

    v, total = mechanism.space.size, mechanism.space.size + mechanism.space.unknown
    columns = _Columns(np.full(v, -np.inf), np.full(v, np.inf), np.full(v, -np.inf))
    for start in range(0, total, block):
        rows = np.arange(start, min(start + block, total), dtype=np.int64)
        _add(columns, rows, checked_log_prob(mechanism, rows), v)
        if progress is not None:
            progress(int(rows[-1]) + 1, total)
    return columns


def _add(columns: _Columns, rows: "np.ndarray", values: "np.ndarray", v: int) -> None:
    """Take one block of rows in. NaN spreads through maximum and minimum, so that it is never lost."""
    import numpy as np

    with np.errstate(over="ignore"):  # a value above 0 is no log-probability: the sum of its row says so
        probabilities = np.exp(values)
    np.maximum(columns.highest, values.max(axis=0), out=columns.highest)
    np.minimum(columns.lowest, values.min(axis=0), out=columns.lowest)
    known = np.flatnonzero(rows < v)
    if known.size:
        np.maximum(columns.best, values[: known.size].max(axis=0), out=columns.best)
        columns.retained += float(probabilities[known, rows[known]].sum())
    columns.proper = columns.proper and bool((np.abs(probabilities.sum(axis=1) - 1.0) <= SUM_TOLERANCE).all())


def retention_bound(epsilon: float, symbols: int) -> float:
    """The largest mean self-retention that any epsilon-private mechanism over V symbols can have: e^eps / (e^eps + V - 1)."""
    import numpy as np

    return float(np.exp(epsilon - np.logaddexp(epsilon, np.log(symbols - 1)))) if symbols > 1 else 1.0


# ---- identity --------------------------------------------------------------------------------------------------------


def space_digest(space: Space) -> str:
    """SHA-256 of what a space is: symbols, unknown, vectors. Its name is not part of it: equal tables have one digest."""
    import numpy as np

    head = json.dumps({"symbols": space.symbols, "unknown": space.unknown}, sort_keys=True)  # ASCII, injective
    digest = hashlib.sha256(head.encode())
    if space.vectors is not None:
        vectors = np.ascontiguousarray(space.vectors, dtype="<f4")
        digest.update(f"\nfloat32 {vectors.shape}\n".encode())
        digest.update(vectors.data.cast("B") if vectors.size else b"")
    return digest.hexdigest()


def canonical_parameters(config: Config) -> str:
    """A configuration as canonical JSON: sorted keys, no spaces, defaults written out."""
    return json.dumps(config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def code_digest(cls: type[Mechanism[Any]]) -> str:
    """SHA-256 of the Python files that the class comes from, constants and helpers included.

    A built-in's: all files of its folder. A stranger's: all files of its top-level package. A module outside any package: its
    file, and the files beside it that it imports. Base classes' files count too, the contract excepted. Files are named
    relative to their package, so the place of installation does not matter. Raises ConfigError when a source cannot be read:
    what cannot be named cannot be certified.
    """
    names = sorted({base.__module__ for base in cls.__mro__ if issubclass(base, Mechanism) and base is not Mechanism})
    digest = hashlib.sha256()
    try:
        for name in names:
            digest.update(f"{name}\n".encode())
            file = getattr(sys.modules.get(name), "__file__", None)
            found = _files(name, Path(file)) if file else {"": hashlib.sha256(inspect.getsource(cls).encode()).hexdigest()}
            digest.update(json.dumps(found, sort_keys=True).encode())
    except (OSError, TypeError) as error:
        what = f"the source of mechanism {cls.__name__!r} cannot be read"
        raise ConfigError(Problem(what, why=str(error), fix="put the class into a module that is a file")) from error
    return digest.hexdigest()


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


def card_key(mechanism: Mechanism[Any]) -> str:
    """SHA-256 of (code, name, parameters, space): the same key means the same card (but for the space's name)."""
    parts = [
        code_digest(type(mechanism)),
        mechanism.name,
        canonical_parameters(mechanism.config),
        space_digest(mechanism.space),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

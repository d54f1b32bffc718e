# SPDX-License-Identifier: Apache-2.0
"""The deterministic certificate of a token mechanism, and the test that its sampler does what its probabilities say.

epsilon_true = max_y [max_x log P(y|x) - min_x log P(y|x)], over every input row (the unknown symbol included), streamed as
column maxima and minima: O(V) memory, O(V^2) time. It covers pure, symbol-level local differential privacy of one release of
one symbol, by sampling from `log_prob`. Void when: rows do not sum to 1, a probability is zero or not a number, the mechanism
keeps state between calls, or an overridden `sample` does something else (`check_sampler` says how small a difference it sees).
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Config, Entropy, Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.schemas.errors import ComponentError, ConfigError, Problem
from osmotic.schemas.guarantees import Card

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Card", "SamplerCheck", "canonical_parameters", "card_key", "certify", "check_sampler", "code_digest", "retention_bound",
    "space_digest",
]  # fmt: skip

TOLERANCE = 1e-6  # on epsilon
SUM_TOLERANCE = 1e-9  # on the sum of a row
GROUPS = 10  # of similarly likely symbols, in the test of a sampler
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
    if holds and sampler and type(mechanism).sample is not Mechanism.sample:
        holds = check_sampler(mechanism, SeededEntropy(card_key(mechanism))).agrees
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
        _add(columns, rows, _log_prob(mechanism, rows), v)
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


def _log_prob(mechanism: Mechanism[Any], rows: "np.ndarray") -> "np.ndarray":
    """A mechanism's answer, checked: float64 [n, V]."""
    import numpy as np

    values = np.asarray(mechanism.log_prob(rows))
    expected = (len(rows), mechanism.space.size)
    if values.shape != expected or values.dtype != np.float64:
        what = f"mechanism {mechanism.name!r}: log_prob must give float64 {list(expected)}"
        raise ComponentError(Problem(what, why=f"it gave {values.dtype} {list(values.shape)}"))
    return values


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
    """SHA-256 of the source of the class's module, and of what that module imports from its own package.

    Base classes' modules count too, the contract excepted. Raises ConfigError when a source cannot be read: what cannot be
    named cannot be certified.
    """
    home = cls.__module__
    package = home.rpartition(".")[0]
    names = {base.__module__ for base in cls.__mro__ if issubclass(base, Mechanism) and base is not Mechanism}
    waiting, digest = sorted(names), hashlib.sha256()
    while waiting:
        for used in _imports(sys.modules.get(waiting.pop()), package):
            if used not in names:
                names.add(used)
                waiting.append(used)
    for name in sorted(names):
        digest.update(f"{name}\n".encode() + hashlib.sha256(_source(name, cls)).digest())
    return digest.hexdigest()


def _imports(module: ModuleType | None, package: str) -> Iterator[str]:
    """Modules of the same package whose names are in use in a module."""
    for value in list(vars(module).values()) if module and package else ():
        name = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.startswith(package + ".") and name in sys.modules:
            yield name


def _source(name: str, cls: type[Any]) -> bytes:
    file = getattr(sys.modules.get(name), "__file__", None)
    try:
        return Path(file).read_bytes() if file else inspect.getsource(cls).encode()
    except (OSError, TypeError) as error:
        what = f"the source of mechanism {cls.__name__!r} cannot be read"
        raise ConfigError(Problem(what, why=str(error), fix="put the class into a module that is a file")) from error


def card_key(mechanism: Mechanism[Any]) -> str:
    """SHA-256 of (code, name, parameters, space): the same key means the same card (but for the space's name)."""
    parts = [
        code_digest(type(mechanism)),
        mechanism.name,
        canonical_parameters(mechanism.config),
        space_digest(mechanism.space),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


# ---- the sampler -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SamplerCheck:
    """Whether draws fit the probabilities. `detects`: an event off by this much is found with probability >= 0.999."""

    agrees: bool
    rows: int
    draws: int
    tests: int
    false_alarm: float
    detects: float
    why: str = ""


def check_sampler(
    mechanism: Mechanism[Any], entropy: Entropy, draws: int = 20_000, *, rows: int = 64, false_alarm: float = 1e-9
) -> SamplerCheck:
    """Draw `draws` times from each of `rows` input symbols (evenly spread, unknown included) and compare with `log_prob`.

    Tested: every symbol of every row, ten groups of similarly likely symbols a row, and the input symbol itself over all rows
    pooled; by the Chernoff bound n KL(observed || expected) <= ln(2 tests / false_alarm), which holds for every n
    and, pooled, for unequal probabilities (Hoeffding 1963). An honest sampler fails with probability <= false_alarm.
    """
    import numpy as np

    total = mechanism.space.size + mechanism.space.unknown
    chosen = np.unique(np.linspace(0, total - 1, min(rows, total)).round().astype(np.int64))
    tests = len(chosen) * (mechanism.space.size + GROUPS) + 1
    limit = float(np.log(2 * tests / false_alarm))
    detects = float(np.sqrt(limit / (2 * draws)) + np.sqrt(np.log(1000) / (2 * draws)))
    counts = _count(mechanism, chosen, draws, entropy)
    if counts is None:
        return SamplerCheck(False, len(chosen), draws, tests, false_alarm, detects, "the draws are not int64 [n] in 0..V-1")
    probabilities = np.exp(_log_prob(mechanism, chosen))
    why = _differences(counts, probabilities, chosen, draws, limit)
    return SamplerCheck(not why, len(chosen), draws, tests, false_alarm, detects, why)


def _count(mechanism: Mechanism[Any], chosen: "np.ndarray", draws: int, entropy: Entropy) -> "np.ndarray | None":
    """int64 [rows, V] counts of draws; None when something else than symbols came out. Rows are drawn interleaved."""
    import numpy as np

    v = mechanism.space.size
    counts = np.zeros((len(chosen), v), dtype=np.int64)
    step = 4096
    for start in range(0, draws * len(chosen), step):
        which = np.arange(start, min(start + step, draws * len(chosen))) % len(chosen)
        out = np.asarray(mechanism.sample(chosen[which], entropy))
        if out.shape != which.shape or out.dtype != np.int64 or out.min() < 0 or out.max() >= v:
            return None
        np.add.at(counts, (which, out), 1)
    return counts


def _differences(counts: "np.ndarray", probabilities: "np.ndarray", chosen: "np.ndarray", draws: int, limit: float) -> str:
    """The first event whose count does not fit, in words; empty when all fit."""
    import numpy as np

    for row, (count, p) in enumerate(zip(counts, probabilities, strict=True)):
        if (_divergence(count / draws, p) * draws > limit).any():
            return f"input symbol {chosen[row]}: a symbol comes out more or less often than log_prob says"
        order = np.argsort(p, kind="stable")
        group = np.minimum((np.cumsum(p[order]) * GROUPS).astype(int), GROUPS - 1)
        got, expected = (np.bincount(group, weights=w[order], minlength=GROUPS) for w in (count / draws, p))
        if (_divergence(got, expected) * draws > limit).any():
            return f"input symbol {chosen[row]}: a group of symbols comes out more or less often than log_prob says"
    known = np.flatnonzero(chosen < counts.shape[1])
    kept, should = counts[known, chosen[known]].sum() / (draws * len(known)), probabilities[known, chosen[known]].mean()
    if _divergence(kept, should) * draws * len(known) > limit:
        return "symbols stay themselves more or less often than log_prob says"
    return ""


def _divergence(observed: "np.ndarray", expected: "np.ndarray") -> "np.ndarray":
    """Kullback-Leibler divergence of Bernoulli(observed) from Bernoulli(expected), elementwise, with 0 log 0 = 0."""
    import numpy as np

    tiny = np.finfo(np.float64).tiny
    a, b = np.clip(observed, 0.0, 1.0), np.clip(expected, tiny, 1.0)
    rest = np.clip(1.0 - b, tiny, 1.0)
    hit = np.where(a > 0, a * np.log(np.maximum(a, tiny) / b), 0.0)
    miss = np.where(a < 1, (1 - a) * np.log(np.maximum(1 - a, tiny) / rest), 0.0)
    return np.asarray(np.maximum(hit + miss, 0.0))

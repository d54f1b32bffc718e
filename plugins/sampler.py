# SPDX-License-Identifier: Apache-2.0
"""The test that a mechanism's sampler does what its probabilities say: on rows and with draws that nobody can know beforehand.

It covers mistakes, and leaks that some input symbols have and others not. Void against code that looks at who calls it, or that
keeps state between calls: a plugin is trusted code.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Entropy, Mechanism
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["SamplerCheck", "check_sampler", "checked_log_prob"]

GROUPS = 10  # of similarly likely symbols, in the test of a sampler
HALVES = 4  # random halves of the outputs
WIDE_ROWS, WIDE_DRAWS = 2048, 1 << 18  # input symbols with few draws each (128 to 512), and draws of all together
STEP, BLOCK = 4096, 256  # draws at a time, rows of probabilities at a time
PLACES, FEW = 64, 4  # of a pattern of mixed rows: distinct ones, then as many that are one of a few
PAIR_DRAWS = 1 << 17  # in that pattern
LAGS, JOINT = 3, 3  # distances in a batch, events of two draws
NO_SYMBOLS = "the draws are not int64 [n] in 0..V-1"


@dataclass(frozen=True)
class SamplerCheck:
    """Whether draws fit the probabilities. `detects`: an event off by this much is found with probability >= 0.999.

    rows, draws: input symbols with many draws, and draws of each; wide_rows, wide_draws: those with few.
    """

    agrees: bool
    rows: int
    draws: int
    wide_rows: int
    wide_draws: int
    tests: int
    false_alarm: float
    detects: float
    why: str = ""

    def missed(self, share: float, symbols: int) -> float:
        """Probability that a wide sample holds none of a share of `symbols` input symbols: the chance to see none of them."""
        bad = min(symbols, max(1, round(share * symbols)))
        good = symbols - bad
        if self.wide_rows > good:
            return 0.0
        return math.prod((good - i) / (symbols - i) for i in range(self.wide_rows))


def check_sampler(
    mechanism: Mechanism[Any], entropy: Entropy, draws: int = 20_000, *, rows: int = 64, false_alarm: float = 1e-9
) -> SamplerCheck:
    """Compare draws with `log_prob`, for input symbols that `entropy` chooses: give SystemEntropy, and nobody can know them.

    Deep: `draws` from each of `rows` symbols (all where there are fewer; the unknown one always): every output symbol, ten
    groups of similarly likely ones, whether two draws of a batch are equal, and the input symbol, pooled. Wide: a few from each
    of up to 2,048, in batches of 1 to 4,096: the input symbol, the likelier outputs, four random halves of the outputs, for
    each symbol and pooled. All by the Chernoff bound n KL(observed || expected) <= ln(2 tests / false_alarm), which holds for
    every n and, pooled, for unequal probabilities (Hoeffding 1963). An honest sampler fails with probability <= false_alarm. A
    symbol that always comes out unchanged is found if it is among the wide ones (`SamplerCheck.missed`) and log_prob keeps it
    with probability below .7. Pairs: 131,072 draws of mixed rows in batches, and of two places 1, 2, and a random number apart:
    both outputs are the symbols themselves, both lie in a random half, they differ as the inputs do; against what independent
    draws give, for each pair of places and pooled. Noise that is shared so is found with probability >= 0.999 where it moves
    one of these, pooled over a table of 30,000, by .025.
    """
    import numpy as np

    total = mechanism.space.size + mechanism.space.unknown
    order = np.argsort(entropy.integers(1 << 63, total), kind="stable")
    if mechanism.space.unknown:
        order = np.concatenate([[total - 1], order[order != total - 1]])
    deep, wide = order[:rows], order[:WIDE_ROWS]
    few = min(max(WIDE_DRAWS // len(wide), 128), 512)
    tests = len(deep) * (mechanism.space.size + GROUPS + 1) + 2 + (len(wide) + 1) * (2 + HALVES)
    tests += (2 * PLACES + 1) * 2 * LAGS * JOINT
    limit = float(np.log(2 * tests / false_alarm))
    detects = float(np.sqrt(limit / (2 * draws)) + np.sqrt(np.log(1000) / (2 * draws)))
    why = _deep(mechanism, deep, draws, entropy, limit) or _wide(mechanism, wide, few, entropy, limit)
    why = why or _pairs(mechanism, deep, entropy, limit)
    return SamplerCheck(not why, len(deep), draws, len(wide), few, tests, false_alarm, detects, why)


def checked_log_prob(mechanism: Mechanism[Any], rows: "np.ndarray") -> "np.ndarray":
    """A mechanism's answer, checked: float64 [n, V]. Raises ComponentError for another shape or type."""
    import numpy as np

    values = np.asarray(mechanism.log_prob(rows))
    expected = (len(rows), mechanism.space.size)
    if values.shape != expected or values.dtype != np.float64:
        what = f"mechanism {mechanism.name!r}: log_prob must give float64 {list(expected)}"
        raise ComponentError(Problem(what, why=f"it gave {values.dtype} {list(values.shape)}"))
    return values


def _draw(mechanism: Mechanism[Any], rows: "np.ndarray", entropy: Entropy) -> "np.ndarray | None":
    """int64 [n] draws; None when something else than symbols came out."""
    import numpy as np

    out = np.asarray(mechanism.sample(rows, entropy))
    return out if out.shape == rows.shape and out.dtype == np.int64 and _inside(out, mechanism.space.size) else None


def _inside(out: "np.ndarray", size: int) -> bool:
    return bool(out.min() >= 0 and out.max() < size)


def _wide(mechanism: Mechanism[Any], chosen: "np.ndarray", draws: int, entropy: Entropy, limit: float) -> str:
    """Few draws from many rows: the first event that does not fit, in words; empty when all fit."""
    import numpy as np

    n, v = len(chosen), mechanism.space.size
    drawn, start = np.empty(n * draws, dtype=np.int64), 0
    sizes = (STEP ** entropy.uniform(n * draws)).astype(np.int64)  # a size for each draw is more than enough
    for size in sizes.tolist():
        out = _draw(mechanism, chosen[np.arange(start, min(start + size, len(drawn))) % n], entropy)
        if out is None:
            return NO_SYMBOLS
        drawn[start : start + len(out)] = out
        start += len(out)
        if start == len(drawn):
            break
    halves = entropy.integers(2, v * HALVES).reshape(v, HALVES).astype(np.float64)
    got, expected = _events(mechanism, chosen, drawn.reshape(draws, n).T, halves)
    off = np.flatnonzero((_divergence(got, expected) * draws > limit).any(axis=1))
    if off.size:
        return f"input symbol {chosen[off[0]]}: its draws do not fit log_prob (so for {off.size} of {n} symbols tried)"
    if (_divergence(got.mean(axis=0), expected.mean(axis=0)) * draws * n > limit).any():
        return "over many input symbols, draws are themselves, or likely ones, more or less often than log_prob says"
    return ""


def _events(
    mechanism: Mechanism[Any], chosen: "np.ndarray", drawn: "np.ndarray", halves: "np.ndarray"
) -> "tuple[np.ndarray, np.ndarray]":
    """Shares observed and expected, float64 [rows, 2 + HALVES]: the symbol itself, the likelier outputs, random halves."""
    import numpy as np

    got, expected = np.zeros((2, len(chosen), 2 + HALVES))
    for start in range(0, len(chosen), BLOCK):
        part = slice(start, start + BLOCK)
        rows, out, p = chosen[part], drawn[part], np.exp(checked_log_prob(mechanism, chosen[part]))
        likely = p >= np.einsum("ij,ij->i", p, p)[:, None]  # as likely as a mean draw
        at, known = np.arange(len(rows))[:, None], np.flatnonzero(rows < p.shape[1])
        expected[start + known, 0] = p[known, rows[known]]
        got[part, 0] = (out == rows[:, None]).mean(axis=1)
        expected[part, 1], got[part, 1] = np.where(likely, p, 0.0).sum(axis=1), likely[at, out].mean(axis=1)
        expected[part, 2:], got[part, 2:] = p @ halves, halves[out].mean(axis=1)
    return got, expected


def _deep(mechanism: Mechanism[Any], chosen: "np.ndarray", draws: int, entropy: Entropy, limit: float) -> str:
    """Many draws from few rows, interleaved: the first event that does not fit, in words."""
    import numpy as np

    n, total = len(chosen), draws * len(chosen)
    counts, same, pairs = np.zeros((n, mechanism.space.size), dtype=np.int64), np.zeros(n), 0
    step = max(STEP // n, 1) * n
    for start in range(0, total, step):
        which = np.arange(min(step, total - start)) % n
        out = _draw(mechanism, chosen[which], entropy)
        if out is None:
            return NO_SYMBOLS
        np.add.at(counts, (which, out), 1)
        both = out[: len(out) // (2 * n) * 2 * n].reshape(-1, 2, n)  # two draws of each row, in one batch
        same, pairs = same + (both[:, 0] == both[:, 1]).sum(axis=0), pairs + len(both)
    probabilities = np.exp(checked_log_prob(mechanism, chosen))
    return _differences(counts, probabilities, chosen, draws, limit) or _dependence(same, pairs, probabilities, limit)


def _dependence(same: "np.ndarray", pairs: int, probabilities: "np.ndarray", limit: float) -> str:
    """Whether two draws of one row in one batch are equal as often as independent ones would be."""
    import numpy as np

    twice, trials = np.square(probabilities).sum(axis=1), max(pairs, 1)
    apart = (_divergence(same / trials, twice) * pairs > limit).any()
    pooled = _divergence(same.mean() / trials, twice.mean()) * pairs * len(same) > limit
    return "draws of one batch depend on one another" if apart or pooled else ""


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


def _pairs(mechanism: Mechanism[Any], chosen: "np.ndarray", entropy: Entropy, limit: float) -> str:
    """Two draws at some distance in one batch: whether they are as independent ones would be, in words.

    At each distance pairs are disjoint, in two ways that differ by an offset, so that those of one way are independent.
    """
    import numpy as np

    few = entropy.integers(len(chosen), FEW)
    pattern = np.concatenate([np.arange(PLACES) % len(chosen), few[entropy.integers(FEW, PLACES)]])
    n, rows = len(pattern), chosen[pattern]
    drawn = np.empty((PAIR_DRAWS // STEP, STEP), dtype=np.int64)
    for i in range(len(drawn)):
        out = _draw(mechanism, rows[np.arange(STEP) % n], entropy)
        if out is None:
            return NO_SYMBOLS
        drawn[i] = out
    p = np.exp(checked_log_prob(mechanism, chosen))
    half = entropy.integers(2, p.shape[1]).astype(np.float64)
    far = 3 + int(entropy.integers(STEP // 2 - 3, 1)[0])
    for lag in (1, 2, far):
        expected = _expected_pairs(p, chosen, pattern, half, lag)
        for offset in (0, lag):
            first = np.arange(offset, STEP - lag)
            first = first[(first - offset) // lag % 2 == 0]
            got = _joint(drawn[:, first], drawn[:, first + lag], rows[first % n], rows[(first + lag) % n], half)
            trials = len(drawn) * np.bincount(first % n, minlength=n)
            sums = np.stack([np.bincount(first % n, weights=event.sum(axis=0), minlength=n) for event in got], axis=1)
            apart = _divergence(sums / np.maximum(trials, 1)[:, None], expected) * trials[:, None]
            pooled = _divergence(sums.sum(axis=0) / trials.sum(), trials @ expected / trials.sum()) * trials.sum()
            if (apart > limit).any() or (pooled > limit).any():
                return f"draws of one batch depend on one another ({lag} places apart)"
    return ""


def _joint(
    one: "np.ndarray", two: "np.ndarray", left: "np.ndarray", right: "np.ndarray", half: "np.ndarray"
) -> "list[np.ndarray]":
    """bool [batches, pairs] each: both themselves; both in the half; the outputs differ as the inputs do, modulo V."""
    difference = (left - right) % len(half)
    return [(one == left) & (two == right), (half[one] > 0) & (half[two] > 0), (one - two) % len(half) == difference]


def _expected_pairs(p: "np.ndarray", chosen: "np.ndarray", pattern: "np.ndarray", half: "np.ndarray", lag: int) -> "np.ndarray":
    """float64 [places, JOINT]: what `_joint` gives in the mean for the pair that starts at each place of the pattern."""
    import numpy as np

    v, others = p.shape[1], np.roll(pattern, -lag)
    itself = np.where(chosen < v, p[np.arange(len(chosen)), np.minimum(chosen, v - 1)], 0.0)
    inside = p @ half
    alike = np.empty(len(pattern))
    for place, (i, j) in enumerate(zip(pattern, others, strict=True)):
        alike[place] = p[i] @ np.roll(p[j], int(chosen[i] - chosen[j]))
    return np.stack([itself[pattern] * itself[others], inside[pattern] * inside[others], alike], axis=1)


def _divergence(observed: "np.ndarray", expected: "np.ndarray") -> "np.ndarray":
    """Kullback-Leibler divergence of Bernoulli(observed) from Bernoulli(expected), elementwise, with 0 log 0 = 0."""
    import numpy as np

    tiny = np.finfo(np.float64).tiny
    a, b = np.clip(observed, 0.0, 1.0), np.clip(expected, tiny, 1.0)
    rest = np.clip(1.0 - b, tiny, 1.0)
    hit = np.where(a > 0, a * np.log(np.maximum(a, tiny) / b), 0.0)
    miss = np.where(a < 1, (1 - a) * np.log(np.maximum(1 - a, tiny) / rest), 0.0)
    return np.asarray(np.maximum(hit + miss, 0.0))

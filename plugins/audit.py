# SPDX-License-Identifier: Apache-2.0
"""A black-box audit: a lower bound on epsilon from draws alone, for mechanisms whose probabilities nobody will vouch for.

Half of the draws choose a pair of inputs and an output y*; on the other half, fresh, L and U are one-sided Clopper-Pearson
bounds (Clopper, Pearson 1934) at 97.5% each on P(y*|x) and P(y*|x'), and epsilon_low = ln(L / U). With probability 95% the true
epsilon is at least that: above the claim, the claim is false. Below it nothing is shown: an audit can only refute. Void when:
the sampler knows that it is audited, or its draws depend on one another.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Config, DocumentMechanism, Entropy, Mechanism, Space
from osmotic.plugins.spaces import decode, encode
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Audit", "audit", "beta_quantile", "clopper_pearson", "refute_document"]

LEVEL = 0.025  # of error, each side
INPUTS = 32  # input symbols among which a pair is chosen
OUTPUTS = 8  # candidate outputs whose bounds are computed
STEP = 1 << 14  # draws at a time
TINY = 1e-300
SYMBOLS = 2048  # of a slot, in documents
FALSE_ALARM, ROUNDING = 1e-9, 1e-9


@dataclass(frozen=True)
class Audit:
    """What was found. inputs: x and x' (V: unknown); output: y*; counts: of y* among `draws` of each; passed: not refuted."""

    claimed: float
    epsilon_low: float
    passed: bool
    inputs: tuple[int, int]
    output: int
    counts: tuple[int, int]
    draws: int


def audit(mechanism: Mechanism[Any], entropy: Entropy, draws: int = 200_000) -> Audit:
    """Audit a mechanism by its `sample` alone; its claim is read from `guarantee`. draws: of each of the two inputs, twice.

    Inputs: all, where there are at most 32; else 32 that `entropy` chooses, the unknown one among them. Raises ConfigError for
    fewer than 100 draws, ComponentError when draws are no symbols.
    """
    import numpy as np

    if draws < 100:
        raise ConfigError(Problem("an audit needs at least 100 draws", path="draws", why=f"got {draws}"))
    total = mechanism.space.size + mechanism.space.unknown
    if total < 2:
        raise ConfigError(Problem("an audit needs two inputs", why=f"the space {mechanism.space.name!r} has {total}"))
    order = np.argsort(entropy.integers(1 << 62, total), kind="stable")
    chosen = np.arange(total) if total <= INPUTS else np.unique(np.append(order[: INPUTS - 1], total - 1))
    each = max(2 * draws // len(chosen), 1)
    counts = np.stack([_counts(mechanism, int(x), each, entropy) for x in chosen])
    first, second, output = _choose(counts, each)
    inputs = (int(chosen[first]), int(chosen[second]))
    high, low = (int(_counts(mechanism, x, draws, entropy)[output]) for x in inputs)
    epsilon = epsilon_low(high, low, draws)
    claimed = mechanism.guarantee().epsilon
    return Audit(claimed, epsilon, epsilon <= claimed, inputs, output, (high, low), draws)


def epsilon_low(high: int, low: int, draws: int) -> float:
    """ln(L / U), at least 0: L below the first count's probability, U above the second's."""
    least, most = clopper_pearson(high, draws)[0], clopper_pearson(low, draws)[1]
    return max(math.log(least / most), 0.0) if least > 0 else 0.0


def _counts(mechanism: Mechanism[Any], row: int, draws: int, entropy: Entropy) -> "np.ndarray":
    """int64 [V]: how often each symbol comes out for one input."""
    import numpy as np

    v = mechanism.space.size
    counts = np.zeros(v, dtype=np.int64)
    for start in range(0, draws, STEP):
        rows = np.full(min(STEP, draws - start), row, dtype=np.int64)
        out = np.asarray(mechanism.sample(rows, entropy))
        if out.shape != rows.shape or out.dtype != np.int64 or out.min() < 0 or out.max() >= v:
            raise ComponentError(Problem(f"mechanism {mechanism.name!r}: sample must give int64 [n] in 0..V-1"))
        counts += np.bincount(out, minlength=v)
    return counts


def _choose(counts: "np.ndarray", draws: int) -> tuple[int, int, int]:
    """(row of x, row of x', output) with the largest lower bound; candidates by their smoothed ratio of counts."""
    import numpy as np

    most, least = counts.max(axis=0), counts.min(axis=0)
    # three standard deviations: a count of 1 against 0 is no evidence
    score = np.log(np.maximum(most - 3 * np.sqrt(most), 0.5)) - np.log(least + 3 * np.sqrt(least) + 3)
    near = np.argsort(-score, kind="stable")[:OUTPUTS]
    pairs = {(int(most[y]), int(least[y])) for y in near}
    bounds = {pair: epsilon_low(*pair, draws) for pair in pairs}
    output = int(max(near.tolist(), key=lambda y: bounds[int(most[y]), int(least[y])]))
    first, second = int(counts[:, output].argmax()), int(counts[:, output].argmin())
    return first, second if first != second else (first + 1) % len(counts), output


# ---- documents -------------------------------------------------------------------------------------------------------


def refute_document(mechanism: DocumentMechanism[Any], entropy: Entropy, draws: int = 2_000) -> str:
    """Why draws refute a document mechanism's claim, in words; empty when they do not, or when nothing can be drawn.

    Documents of one symbol a slot. Unchanged: of `draws` documents, all symbols chosen evenly, a slot keeps its symbol no more
    often than e^eps / (e^eps + V - 1), the most that any mechanism can (Chernoff bound). Pairs: two documents, half of the
    draws choose an outcome, the others bound its log-ratio from below (Clopper-Pearson). False alarm below 1e-9. Nothing is
    drawn where a slot has no space or the configuration names a model.
    """
    import numpy as np

    spaces = [slot.space for slot in mechanism.slots if slot.space is not None]
    if len(spaces) < len(mechanism.slots) or not spaces or _names_model(mechanism.config):
        return ""
    claimed, texts = mechanism.guarantee().epsilon, [_single(space) for space in spaces]
    if min(len(one) for one in texts) < 2:
        return ""
    columns = [[one[i] for i in entropy.integers(len(one), draws)] for one in texts]
    documents = list(zip(*columns, strict=True))
    drawn = mechanism.sample(documents, entropy)
    if max((one.epsilon for one in drawn), default=0.0) > claimed * (1 + ROUNDING):
        return "a document of one symbol a slot spends more than is declared"
    limit = math.log(4 * len(spaces) / FALSE_ALARM)
    for i, one in enumerate(texts):
        kept = sum(out.texts[i] == given[i] for out, given in zip(drawn, documents, strict=True)) / draws
        most = 1 / (1 + (len(one) - 1) * math.exp(-claimed))
        if kept > most and draws * _apart_by(kept, most) > limit:
            slot = mechanism.slots[i].name
            return f"{kept:.3g} of the symbols of {slot!r} come out unchanged; at the declared epsilon {most:.3g} can"
    pair = [tuple(one[i] for one, i in zip(texts, which, strict=True)) for which in zip(*_two(texts, entropy), strict=True)]
    found, fresh = (_outcomes(mechanism, pair, draws, entropy) for _ in range(2))
    best = max((y for counts in found for y in counts), key=lambda y: abs(np.log((found[0][y] + 1) / (found[1][y] + 1))))
    high, low = sorted((fresh[0][best], fresh[1][best]), reverse=True)
    level = FALSE_ALARM / 8
    least, most = clopper_pearson(high, draws, level)[0], clopper_pearson(low, draws, level)[1]
    if least > 0 and math.log(least / most) > claimed:
        return f"declared {claimed:g} a document, draws show at least {math.log(least / most):.3g}"
    return ""


def _two(texts: Sequence[Sequence[str]], entropy: Entropy) -> list[tuple[int, int]]:
    """Two different entries of each list."""
    found = []
    for one in texts:
        first, step = int(entropy.integers(len(one), 1)[0]), 1 + int(entropy.integers(len(one) - 1, 1)[0])
        found.append((first, (first + step) % len(one)))
    return found


def _outcomes(
    mechanism: DocumentMechanism[Any], pair: Sequence[tuple[str, ...]], draws: int, entropy: Entropy
) -> list[Counter[tuple[str, ...]]]:
    """How often each outcome comes out for each of two documents, which take turns."""
    drawn = mechanism.sample([pair[i % 2] for i in range(2 * draws)], entropy)
    return [Counter(one.texts for one in drawn[i::2]) for i in range(2)]


def _single(space: Space) -> list[str]:
    """Texts that are one known symbol each, and come out so when nothing changes: of up to 2,048 symbols, evenly spread."""
    import numpy as np

    chosen = np.unique(np.linspace(0, space.size - 1, min(space.size, SYMBOLS)).astype(np.int64))
    texts = decode(space, chosen, np.ones(len(chosen), dtype=np.int64))
    flat, lengths = encode(space, texts)
    if not (lengths == 1).all():
        keep = np.flatnonzero(lengths == 1)
        flat, chosen, texts = flat[(np.cumsum(lengths) - 1)[keep]], chosen[keep], [texts[i] for i in keep]
    return [text for text, same in zip(texts, flat == chosen, strict=True) if same]


def _names_model(config: Config) -> bool:
    """Whether a key that names a model is given."""
    for key, info in type(config).model_fields.items():
        inner = [meta for one in getattr(info.annotation, "__args__", ()) for meta in getattr(one, "__metadata__", ())]
        extras = [getattr(one, "json_schema_extra", None) for one in (info, *inner)]
        if any(isinstance(extra, dict) and extra.get("osmotic") == "model" for extra in extras) and getattr(config, key):
            return True
    return False


def _apart_by(observed: float, expected: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(observed) from Bernoulli(expected), for observed > expected."""
    rest = (1 - observed) * math.log((1 - observed) / (1 - expected)) if observed < 1 else 0.0
    return observed * math.log(observed / expected) + rest


# ---- exact binomial bounds -------------------------------------------------------------------------------------------


def clopper_pearson(count: int, draws: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact one-sided bounds, each missed with probability at most `level`: (lower, upper) for `count` of `draws`."""
    lower = beta_quantile(level, count, draws - count + 1) if count else 0.0
    upper = beta_quantile(1 - level, count + 1, draws - count) if count < draws else 1.0
    return lower, upper


def beta_quantile(share: float, a: float, b: float) -> float:
    """The point below which a Beta(a, b) variable lies with probability `share`, by bisection to the last bits; a, b > 0."""
    low, high = 0.0, 1.0
    for _ in range(1100):  # bisection; small quantiles need the whole range of exponents
        middle = (low + high) / 2 if low > 0 or high > 1e-3 else high / 8
        if middle in (low, high) or high - low <= 1e-15 * high:
            break
        if _beta_below(middle, a, b) < share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta_below(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function I_x(a, b)."""
    front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(front) * _fraction(x, a, b) / a
    return 1.0 - math.exp(front) * _fraction(1 - x, b, a) / b


def _fraction(x: float, a: float, b: float) -> float:
    """The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method."""
    c, d = 1.0, 1.0 / _apart(1.0 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 100_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1.0 / _apart(1.0 + term * d), _apart(1.0 + term / c)
            value *= d * c
        if abs(d * c - 1.0) < 1e-16 * 4:
            break
    return value


def _apart(value: float) -> float:
    return value if abs(value) > TINY else TINY

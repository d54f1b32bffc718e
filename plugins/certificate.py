# SPDX-License-Identifier: Apache-2.0
"""The deterministic certificate of a token mechanism, and the card that says what was found.

epsilon_true = max_y [max_x log P(y|x) - min_x log P(y|x)], over every input row (the unknown symbol included), streamed as
column maxima and minima: O(V) memory, O(V^2) time. It covers pure, symbol-level local differential privacy of one release of
one symbol, by sampling from `log_prob`; for class partition the same inside each cell; for class metric the ratio over the
pairs that `osmotic.plugins.ratios` checks. Numbers of a mechanism whose `exact` is False are estimates, marked so on the card;
it never holds. Void when: rows do not sum to 1, a probability is zero, not a number, or so small (below e^-700) that it is lost
in rounding, the mechanism keeps state between calls, or an overridden `sample` does something else (`osmotic.plugins.sampler`
says how small a difference it sees; its rows and draws come from the operating system, fresh each time).
"""

import math
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from osmotic.plugins.audit import refute_document
from osmotic.plugins.columns import Columns, Progress, spread, stream, stream_cells, threads_for
from osmotic.plugins.contract import DocumentMechanism, Guarantee, Mechanism
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.identity import canonical_parameters, card_key, code_digest, space_digest
from osmotic.plugins.ratios import ROWS, metric_ratio
from osmotic.plugins.sampler import SamplerCheck, check_sampler, checked_log_prob
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.guarantees import Card

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "Card", "SamplerCheck", "canonical_parameters", "card_key", "certify", "certify_document", "check_sampler", "code_digest",
    "derived_of", "estimate", "list_mass", "list_mass_bound", "retention_bound", "space_digest",
]  # fmt: skip

TOLERANCE, LEAST = 1e-6, 1e-12  # on epsilon: absolute, and relative where that is less
SMALLEST = -700.0  # log of a probability: below, exp is 0 or loses digits
UNITS = {"certified": ("token", "field"), "partition": ("token", "field"), "metric": ("distance",)}
RATIO_TOLERANCE = 1e-9  # on the ratio of a metric claim
CARD_DRAWS = 10_000  # from each of the rows with many draws


def certify(
    mechanism: Mechanism[Any], *, block: int | None = None, progress: Progress | None = None, sampler: bool = True,
    prior: "np.ndarray | None" = None,
) -> Card:  # fmt: skip
    """Compute the privacy card of a mechanism over its space.

    epsilon_true is infinite when a probability is zero or not a number. self_retention and bayes_success are exact, under a
    uniform prior over the V known symbols; prior_success under `prior` (float64 [V], public, sums to 1). What `holds` means is
    said at `Card`; with `sampler`, an overridden `sample` must pass `check_sampler` too. progress(done, total) is called once a
    block of rows. Raises ConfigError for a space with a repeated symbol or a prior that is none, ComponentError when
    `log_prob`, `cells` or `distances` has the wrong shape or type.
    """
    began = time.monotonic()
    if len(set(mechanism.space.symbols)) != mechanism.space.size:
        raise ConfigError(Problem(f"a symbol stands twice in the space {mechanism.space.name!r}", fix="merge them first"))
    if not mechanism.space.size:
        raise ConfigError(Problem(f"the space {mechanism.space.name!r} has no symbol"))
    declared, weights = mechanism.guarantee(), None if prior is None else _log_prior(prior, mechanism.space.size)
    cells = mechanism.cells() if declared.mechanism_class == "partition" else None
    if cells is None:
        columns = stream(mechanism, weights, block, progress)
    else:
        columns = stream_cells(mechanism, cells, weights, block, progress)
    found = _measures(mechanism, declared, columns, cells)
    metric = declared.mechanism_class == "metric" and columns.proper and not _claim(declared, UNITS["metric"])
    if metric and mechanism.distances(_some_row()) is not None:
        found["metric_ratio"], found["metric_pairs"] = metric_ratio(mechanism, declared.epsilon, SystemEntropy())
    why = _why_not(mechanism, declared, columns, found)
    if not why and cells is not None and not mechanism.cleartext() and _alone(cells, mechanism.space.size):
        why = "a cell has one symbol, which so comes out in the clear: cleartext must name such a class"
    if not why and sampler and getattr(mechanism.sample, "__func__", None) is not Mechanism.sample:
        why = check_sampler(mechanism, SystemEntropy(), CARD_DRAWS).why
    inner = "" if mechanism.inner is None else card_key(mechanism.inner)
    return Card(
        mechanism=mechanism.name, code=code_digest(type(mechanism)), parameters=canonical_parameters(mechanism.config),
        space=mechanism.space.name, space_digest=space_digest(mechanism.space), symbols=mechanism.space.size,
        declared=declared, holds=not why, why=why, cleartext=mechanism.cleartext(), inner=inner,
        estimated=not mechanism.exact, derived=derived_of(mechanism), **found, **_made(began),
    )  # fmt: skip


def derived_of(mechanism: Mechanism[Any] | DocumentMechanism[Any]) -> str:
    """`Mechanism.derived`; a document mechanism's: that of its parts, one after another."""
    parts = [mechanism] if isinstance(mechanism, Mechanism) else mechanism.parts()
    return " ".join(said for part in parts if (said := part.derived()))


def _some_row() -> "np.ndarray":
    import numpy as np

    return np.zeros(1, dtype=np.int64)


def _made(began: float) -> dict[str, Any]:
    """When a card was made, by which version, and how long it took."""
    from osmotic import __version__

    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"made": now, "osmotic": __version__, "seconds": round(time.monotonic() - began, 3)}


def _log_prior(prior: "np.ndarray", symbols: int) -> "np.ndarray":
    import numpy as np

    given = np.asarray(prior)
    if given.shape != (symbols,) or given.dtype != np.float64 or not bool((given >= 0).all()):
        why = f"it has shape {list(given.shape)}, type {given.dtype}"
        raise ConfigError(Problem(f"a prior must be float64 [{symbols}], none below 0", why=why))
    if not abs(float(given.sum()) - 1.0) <= TOLERANCE:
        raise ConfigError(Problem("a prior must sum to 1", why=f"it sums to {float(given.sum()):.6g}"))
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(given))


def _measures(mechanism: Mechanism[Any], declared: Guarantee, columns: Columns, cells: "np.ndarray | None") -> dict[str, Any]:
    """The numbers of a card."""
    import numpy as np

    v = mechanism.space.size
    if cells is None:
        success, guessed = float(np.exp(np.minimum(columns.best, 0.0)).sum()) / v, None
        if columns.guessed is not None:
            guessed = _share(float(np.exp(np.minimum(columns.guessed, 0.0)).sum()))
    else:
        success, guessed = columns.success / v, None if columns.prior is None else _share(columns.prior_success)
    retained, bound = _share(math.fsum(columns.retained) / v), _bound(declared, v, cells)
    return {
        "epsilon_true": spread(columns.highest, columns.lowest),
        "epsilon_within": None if cells is None else columns.within,
        "self_retention": retained,
        "worst_retention": _share(columns.worst),
        "bayes_success": _share(success),
        "prior_success": guessed,
        "retention_bound": bound,
        "breaks_bound": bound is not None and retained > bound * (1 + RATIO_TOLERANCE),
    }


def _share(value: float) -> float:
    """A probability; 1 (the worst) for what is no number."""
    return min(value, 1.0) if value == value else 1.0


def _bound(declared: Guarantee, symbols: int, cells: "np.ndarray | None") -> float | None:
    """Largest self-retention at the declared epsilon; None for a claim that is not one of pure privacy between symbols."""
    import numpy as np

    if not math.isfinite(declared.epsilon):
        return None
    if declared.mechanism_class == "partition" and cells is not None:
        sizes = np.unique(cells[:symbols], return_counts=True)[1]
        return float(sum(int(n) * retention_bound(declared.epsilon, int(n)) for n in sizes)) / symbols
    ldp = declared.mechanism_class in ("certified", "heuristic") and declared.delta == 0 and declared.unit != "distance"
    return retention_bound(declared.epsilon, symbols) if ldp else None


def _alone(cells: "np.ndarray", symbols: int) -> bool:
    """Whether a cell has one known symbol, or the unknown one only."""
    import numpy as np

    which = np.unique(cells, return_inverse=True)[1].reshape(-1)
    return bool((np.bincount(which[:symbols], minlength=int(which.max()) + 1) <= 1).any())


def allowed_epsilon(epsilon: float) -> float:
    """The declared epsilon and the rounding that is let pass."""
    return epsilon + TOLERANCE * min(1.0, epsilon) + LEAST


def _claim(declared: Guarantee, units: Sequence[str]) -> str:
    """Why a claim is none that could be checked; empty for a number above 0 in one of these units."""
    if not (math.isfinite(declared.epsilon) and declared.epsilon > 0):
        return f"epsilon {declared.epsilon:g}: a claim needs a finite number above 0"
    if declared.unit not in units:
        return f"unit {declared.unit}: this claim is per {' or '.join(units)}"
    return ""


def _why_not(mechanism: Mechanism[Any], declared: Guarantee, columns: Columns, found: dict[str, Any]) -> str:
    """Why a claim does not hold, in words; empty when it does."""
    kind, epsilon = declared.mechanism_class, declared.epsilon
    if not columns.proper:
        return "rows of probabilities do not sum to 1"
    if kind not in UNITS:
        return f"class {kind}: nothing is proven by this certificate"
    if why := _claim(declared, UNITS[kind]):
        return why
    if columns.smallest < SMALLEST:
        return f"the smallest probability, e^{columns.smallest:.0f}, is below what is drawn exactly"
    if not mechanism.exact:
        return "its probabilities are an estimate: nothing is proven by this certificate"
    if declared.delta != 0:
        return "delta is above 0: this certificate is of epsilon alone"
    if kind == "metric":
        if found.get("metric_ratio") is None:
            return "class metric, but the mechanism gives no distances"
        ratio = found["metric_ratio"]
        return "" if ratio <= 1 + RATIO_TOLERANCE else f"|log ratio| is {ratio:.6g} times epsilon d for some pair"
    if kind == "partition":
        within = found["epsilon_within"]
        if within is None:
            return "class partition, but the mechanism gives no cells"
        return "" if within <= allowed_epsilon(epsilon) else f"declared {epsilon:g}, computed {within:.6g} inside a cell"
    if mechanism.cleartext():
        return "classes of input come out in the clear: the class must be partition"
    true = found["epsilon_true"]
    return "" if true <= allowed_epsilon(epsilon) else f"declared {epsilon:g}, computed {true:.6g}"


def certify_document(
    mechanism: DocumentMechanism[Any], models: Sequence[str] = (), *, note: Callable[[str], None] | None = None
) -> Card:
    """The card of a document mechanism: each of its parts is certified, at its largest epsilon.

    It holds when the class is certified, there are parts, all hold, none has a larger epsilon than is declared for a document,
    and draws of documents of one symbol a slot do not refute it (`osmotic.plugins.audit`; not where a model is asked, or where
    a slot has no space): how parts compose to the declared epsilon is the mechanism's own proof, which this does not repeat.
    note(text) is told each part. models: fingerprints of its models, for `card_key`. Bayes success and retention are the
    largest of the parts': of one symbol, not of a text.
    """
    began = time.monotonic()
    declared, cards = mechanism.guarantee(), []
    for part in mechanism.parts():
        if note is not None:
            note(f"certifying {part.name} over {part.space.name} ({part.space.size} symbols)")
        cards.append(certify(part))
    failed = [c for c in cards if not (c.holds and c.declared.mechanism_class == "certified")]
    why = f"part {failed[0].mechanism}: {failed[0].why or failed[0].declared.mechanism_class}" if failed else ""
    if declared.mechanism_class != "certified":
        why = f"class {declared.mechanism_class}: nothing is proven by this certificate"
    elif not cards:
        why = "it has no part that could be certified"
    elif declared.delta != 0:
        why = "delta is above 0: this certificate is of epsilon alone"
    elif not why:
        why = _claim(declared, ("document",)) or _more_than(declared, cards)
        why = why or ("" if models else refute_document(mechanism, SystemEntropy()))
    spaces = [s.space for s in mechanism.slots if s.space is not None]
    return Card(
        mechanism=mechanism.name, code=code_digest(type(mechanism)), parameters=canonical_parameters(mechanism.config),
        space=", ".join(s.name for s in mechanism.slots), space_digest=card_key(mechanism, models), declared=declared,
        symbols=max((s.size for s in spaces), default=0), holds=not why, why=why, derived=derived_of(mechanism),
        epsilon_true=math.inf if why else declared.epsilon, estimated=any(c.estimated for c in cards),
        self_retention=max((c.self_retention for c in cards), default=1.0),
        worst_retention=max((c.worst_retention for c in cards), default=1.0),
        bayes_success=max((c.bayes_success for c in cards), default=1.0),
        parts=tuple(f"{c.mechanism} over {c.space}: {c.true_text()} of {c.declared}, "
                    f"{'holds' if c.holds else 'does not hold'}" for c in cards),
        **_made(began),
    )  # fmt: skip


def _more_than(declared: Guarantee, cards: Sequence[Card]) -> str:
    """Why the parts are too much for a document; empty when none is, alone: a document may be one symbol."""
    largest = max(cards, key=lambda card: card.epsilon_true)
    if largest.epsilon_true <= allowed_epsilon(declared.epsilon):
        return ""
    return f"declared {declared.epsilon:g} a document, part {largest.mechanism}: computed {largest.epsilon_true:.6g}"


# ---- bounds and estimates --------------------------------------------------------------------------------------------


def retention_bound(epsilon: float, symbols: int) -> float:
    """The largest mean self-retention that any epsilon-private mechanism over V symbols can have: e^eps / (e^eps + V - 1)."""
    return list_mass_bound(epsilon, symbols, 1)


def list_mass_bound(epsilon: float, symbols: int, k: int) -> float:
    """The largest mean mass on lists of K symbols, each symbol on exactly K lists: K e^eps / (K e^eps + V - K)."""
    import numpy as np

    inside = np.log(k) + epsilon
    return float(np.exp(inside - np.logaddexp(inside, np.log(symbols - k)))) if symbols > k else 1.0


def list_mass(mechanism: Mechanism[Any], lists: "np.ndarray") -> float:
    """Mean mass that the rows put on their lists (int64 [V, K], regular: each symbol on exactly K lists).

    Above `list_mass_bound` at the declared epsilon the claim is false. Raises ConfigError for lists that are not regular: those
    (of nearest neighbours, say) have hubs, and break the bound even at epsilon 0.
    """
    import numpy as np

    v = mechanism.space.size
    given = np.asarray(lists, dtype=np.int64)
    k = given.shape[1] if given.ndim == 2 and len(given) == v else 0
    repeated = bool(k) and bool((np.diff(np.sort(given, axis=1), axis=1) == 0).any())
    if not k or repeated or given.min() < 0 or given.max() >= v or (np.bincount(given.reshape(-1), minlength=v) != k).any():
        raise ConfigError(Problem("the lists are not regular", why="each symbol must be on exactly K lists of K symbols"))
    mass = []
    for start in range(0, v, 64):
        rows = np.arange(start, min(start + 64, v), dtype=np.int64)
        chosen = np.take_along_axis(checked_log_prob(mechanism, rows), given[rows], axis=1)
        mass.append(float(np.exp(chosen).sum()))
    return math.fsum(mass) / v


def estimate(mechanism: Mechanism[Any]) -> float:
    """About how many seconds `certify` will take: a few rows are timed, and scaled."""
    import numpy as np

    total = mechanism.space.size + mechanism.space.unknown
    rows = np.linspace(0, total - 1, min(32, total)).astype(np.int64)
    checked_log_prob(mechanism, rows[:1])  # what is computed once only
    began = time.monotonic()
    Columns.empty(mechanism.space.size, None).add(rows, checked_log_prob(mechanism, rows))
    each = (time.monotonic() - began) / len(rows)
    more = 5 * min(total, ROWS) if mechanism.guarantee().mechanism_class == "metric" else 0
    seconds = each * (total + more) / threads_for(mechanism)
    if getattr(mechanism.sample, "__func__", None) is not Mechanism.sample:
        seconds += each * min(total, 2048) + 1.0
    return seconds

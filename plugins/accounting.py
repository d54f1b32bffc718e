# SPDX-License-Identifier: Apache-2.0
"""Accounting of record-level events: what several of them lose together, and the least noise that loses so much.

An event is {kind, parameters, neighbours}: laplace {epsilon} (pure), gaussian {sigma, changes} (discrete noise on `changes`
counts that one record moves by 1) or {noise_multiplier}, dp-sgd {noise_multiplier, sampling_probability, steps} (Poisson
sampling). A noise multiplier is of add-or-remove-one: when a record is replaced, the same training loses more. How many records
there are is public: a record that is "removed" adds nothing, and its place stays (zero-out; the same numbers). Composition is
by privacy loss distributions of dp-accounting, its pessimistic estimate: an upper bound. A pure event counts as the worst
mechanism of its epsilon. Events under different neighbouring relations are never composed into one number. Losses are counted
in steps of 1e-4, of less where one event loses little, of more where many lose much: what comes out is an upper bound always.
"""

import functools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem

Event = Mapping[str, Any]
CLASSES = {"laplace": "laplace-histogram", "gaussian": "gaussian", "dp-sgd": "dp-sgd"}
REPLACE_ONE, ADD_OR_REMOVE_ONE = "replace-one", "add-or-remove-one"
LEAST_MULTIPLIER = 0.1  # of an event; with less, the accountant's memory grows beyond any machine's
MOST_MULTIPLIER = 1e6
FURTHEST = 1e5  # a loss that is not counted any more


class _Grid(NamedTuple):
    """How finely losses are counted: the largest step, how many there are in one event's usual loss, how many in all."""

    step: float
    within: int
    most: int


FINE, COARSE = _Grid(1e-4, 16, 1 << 20), _Grid(2e-3, 4, 1 << 15)


class _TooFarError(ConfigError):
    """Losses so large that they are not counted."""


def compose(events: Iterable[Event], delta: float) -> dict[str, float]:
    """Neighbouring relation -> epsilon of all its events together, at delta; infinite where delta is 0 and noise Gaussian."""
    return _composed(events, delta, FINE)


def _composed(events: Iterable[Event], delta: float, grid: _Grid) -> dict[str, float]:
    groups: dict[str, Counter[str]] = {}
    for event in events:
        check_relation(event)
        key = canonical({"kind": event["kind"], "parameters": event["parameters"]}).decode()
        groups.setdefault(event["neighbours"], Counter())[key] += 1
    return {relation: _together(tuple(sorted(counts.items())), delta, grid) for relation, counts in sorted(groups.items())}


def epsilon_of(events: Iterable[Event], delta: float) -> float:
    """Epsilon of events of one neighbouring relation together, at delta; 0 without events.

    Raises ConfigError for events of several relations: they have no one epsilon.
    """
    found = compose(events, delta)
    if len(found) > 1:
        what = f"events of {' and '.join(found)} have no epsilon together"
        raise ConfigError(Problem(what, path="neighbours", why="neighbours differ in another way"))
    return next(iter(found.values()), 0.0)


def calibrate(
    event_of: Callable[[float], Event], epsilon: float, delta: float, count: int = 1, relative: float = 1e-3
) -> float:
    """The least noise multiplier, to a factor 1 + `relative`, at which `count` such events are (epsilon, delta) together.

    event_of: noise multiplier -> the event. Found on a coarse grid, then confirmed on the one that is charged by. Raises
    ConfigError when there is none from 0.1 to 1e6.
    """

    def lost(z: float, grid: _Grid) -> float:
        try:
            return max(_composed([event_of(z)] * count, delta, grid).values())
        except _TooFarError:
            return math.inf

    low, high = _bracket(lambda z: lost(z, COARSE), epsilon)
    low, high = _narrowed(lambda z: lost(z, COARSE), low, high, epsilon, relative)
    if epsilon * (1 - relative) <= lost(high, FINE) <= epsilon:
        return high
    if low and lost(low, FINE) <= epsilon:  # the coarse grid, which is never below, has asked for more than is needed
        low, high = max(0.8 * low, LEAST_MULTIPLIER), low
    return _narrowed(lambda z: lost(z, FINE), low, high, epsilon, relative)[1]


def _bracket(lost: Callable[[float], float], epsilon: float) -> tuple[float, float]:
    """(a multiplier that is too small, one that is enough), a factor 2 apart; the first is 0 where the least is enough."""
    z = 1.0
    if lost(z) <= epsilon:
        while z > LEAST_MULTIPLIER and lost(max(z / 2, LEAST_MULTIPLIER)) <= epsilon:
            z = max(z / 2, LEAST_MULTIPLIER)
        return (0.0 if z == LEAST_MULTIPLIER else max(z / 2, LEAST_MULTIPLIER)), z
    while z < MOST_MULTIPLIER:
        low, z = z, min(2 * z, MOST_MULTIPLIER)
        if lost(z) <= epsilon:
            return low, z
    raise ConfigError(_out_of_reach(epsilon))


def _out_of_reach(epsilon: float) -> Problem:
    what = f"no noise multiplier up to {MOST_MULTIPLIER:g} gives epsilon {epsilon:g}"
    why, fix = "the accountant confirmed none", "a larger epsilon or delta, or fewer steps"
    return Problem(what, path="epsilon", why=why, fix=fix)


def _narrowed(lost: Callable[[float], float], low: float, high: float, epsilon: float, relative: float) -> tuple[float, float]:
    """The same, a factor 1 + relative apart; `high` is confirmed by `lost`, also where it has to be raised for that."""
    step = 1 + relative / 2
    while (at := lost(high)) > epsilon:
        low, high = high, min(high * max(step, (at / epsilon) ** 0.5), MOST_MULTIPLIER)
        if low == high:
            raise ConfigError(_out_of_reach(epsilon))
    below = math.inf  # what `low` loses, where that is known
    while low and high > low * (1 + relative):
        slope = math.log(below / at) / math.log(high / low) if math.isfinite(below) else 1.0
        guess = high * (at / epsilon) ** (1 / max(slope, 0.25)) * step  # a little above where it should be epsilon
        if not low * step < guess < high / step:
            guess = high / (1 + relative) if guess >= high / step else math.sqrt(low * high)
        found = lost(guess)
        low, high, below, at = (low, guess, below, found) if found <= epsilon else (guess, high, found, at)
    return low, high


def check_relation(event: Event) -> None:
    """Raise ConfigError for a noise multiplier of another relation than the accountant computes with."""
    if "noise_multiplier" in event["parameters"] and event["neighbours"] != ADD_OR_REMOVE_ONE:
        what = f"a {event['kind']} event with a noise multiplier cannot be of {event['neighbours']!r}"
        why = "it is computed for neighbours that differ by one record more or less; a replaced record moves a sum twice as far"
        raise ConfigError(Problem(what, path="neighbours", why=why, fix=f"neighbours: {ADD_OR_REMOVE_ONE}"))


@functools.lru_cache(maxsize=256)
def _together(counts: tuple[tuple[str, int], ...], delta: float, grid: _Grid) -> float:
    """Epsilon of (event as canonical JSON, how often) of one relation; many parties ask for equal ones."""
    events = [(json.loads(text), count) for text, count in counts]
    if delta == 0:
        pure = all(event["kind"] == "laplace" for event, _ in events)
        return sum(event["parameters"]["epsilon"] * count for event, count in events) if pure else math.inf
    total: Any = None
    step = _step(events, grid)
    for text, count in counts:
        one = _distribution(text, step)
        one = one if count == 1 else one.self_compose(count)
        total = one if total is None else total.compose(one)
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


def _step(events: list[tuple[Event, int]], grid: _Grid) -> float:
    """The step that losses of these events are counted in, all the same; raises ConfigError where they are too large."""
    mean, furthest, least = 0.0, 0.0, math.inf
    for event, count in events:
        one, tail, times = _rough(event)
        mean, furthest, least = mean + count * times * one, max(furthest, tail), min(least, math.sqrt(2 * one))
    reach = furthest + mean + 8 * math.sqrt(2 * mean)
    if reach > FURTHEST:
        what, why = "too little noise to be accounted for", f"the privacy loss is about {reach:.2g}"
        raise _TooFarError(Problem(what, path="noise_multiplier", why=why, fix="more noise or fewer steps"))
    wanted = max(min(grid.step, least / grid.within), reach / grid.most)
    return float(grid.step * 2.0 ** math.ceil(math.log2(wanted / grid.step)))


def _rough(event: Event) -> tuple[float, float, int]:
    """(mean loss of one draw of an event, about how far its losses reach, draws), from above; zeros where it is not known."""
    kind, given = event["kind"], event["parameters"]
    try:
        if kind == "laplace":
            return float(given["epsilon"]), float(given["epsilon"]), 1
        draws = int(given.get("changes", given.get("steps", 1)))
        shift = 1 / (given["sigma"] if "sigma" in given else max(given["noise_multiplier"], LEAST_MULTIPLIER))
        q = float(given["sampling_probability"]) if kind == "dp-sgd" else 1.0
        mean = min(q * shift**2 / 2, q**2 * math.expm1(min(shift**2, 100.0)))
        return mean, shift**2 / 2 + 10 * shift, draws
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return 1.0, 0.0, 1  # `_distribution` says what is wrong


@functools.lru_cache(maxsize=64)
def _distribution(text: str, step: float) -> Any:
    """The privacy loss distribution of one event (canonical JSON), pessimistic. step: of the grid of losses."""
    pld, common = _accounting()
    event = json.loads(text)
    kind, given = event["kind"], event["parameters"]
    if given.get("noise_multiplier", LEAST_MULTIPLIER) < LEAST_MULTIPLIER:
        what = f"a noise multiplier of {given['noise_multiplier']:g} is not accounted for: at least {LEAST_MULTIPLIER:g}"
        why = "its epsilon is above 90, and its distribution takes gigabytes"
        raise ConfigError(Problem(what, path="noise_multiplier", why=why, fix="more noise"))
    grid = {"value_discretization_interval": step}
    try:
        if kind == "laplace":
            return pld.from_privacy_parameters(common.DifferentialPrivacyParameters(given["epsilon"], 0.0), **grid)
        if kind == "gaussian" and "sigma" in given:
            return pld.from_discrete_gaussian_mechanism(given["sigma"], 1, **grid).self_compose(given["changes"])
        if kind == "gaussian":
            return pld.from_gaussian_mechanism(given["noise_multiplier"], **grid)
        if kind == "dp-sgd":
            made = pld.from_gaussian_mechanism(given["noise_multiplier"], sampling_prob=given["sampling_probability"], **grid)
            return made.self_compose(given["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(Problem(f"not the parameters of a {kind} event", why=str(error)[:200])) from error
    raise ConfigError(Problem(f"unknown kind of event {kind!r}", fix=f"one of {', '.join(CLASSES)}"))


def _accounting() -> tuple[Any, Any]:
    """dp-accounting's modules; raises ConfigError when the package is not there."""
    try:
        from dp_accounting.pld import common, privacy_loss_distribution  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        fix = "pip install 'osmotic[dp]'"
        raise ConfigError(
            Problem("composing (epsilon, delta) needs the package dp-accounting", why=str(error), fix=fix)
        ) from error
    return privacy_loss_distribution, common

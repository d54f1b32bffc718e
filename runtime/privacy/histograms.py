# SPDX-License-Identifier: Apache-2.0
"""Counts of a field's values with exact integer noise: discrete Laplace, or discrete Gaussian by rejection.

Source: Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy" (samplers on integers and fractions, no
floating point). Neighbours differ in one record's value (replace-one; how many records there are is public): two counts change
by 1, L1 sensitivity 2, L2 sensitivity sqrt 2. Guarantee: Laplace of scale 2/epsilon is epsilon a record, pure; the Gaussian's
sigma is the closed form's for (epsilon, delta), raised until the accountant confirms it for the discrete noise. Noise comes
from the operating system and is added here, at the party, once: nobody else needs to be trusted. Counts are given as they fall,
negative ones too. Void when: seeded.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from osmotic.plugins.accounting import compose
from osmotic.plugins.contract import Records
from osmotic.runtime.privacy.composition import RecordEvents, register
from osmotic.runtime.privacy.record_noise import validated
from osmotic.runtime.privacy.releases import Made
from osmotic.schemas.artifacts import canonical, digest_of
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.noise import CountNoise
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

NEIGHBOURS = "replace-one"
STEPS = 20  # sigmas that are tried; the last is 2.6 times the first


def histogram(
    events: RecordEvents, records: Records, field: str, schema: RecordSchema, mechanism: Mapping[str, Any], dataset: str,
    seed: int | None, task: str,
) -> tuple[Records, Made]:  # fmt: skip
    """Noisy counts (rows ``value``, ``count``, in the domain's order), charged and stored; looked up again for free."""
    domain, noise = _domain(field, schema), validated(CountNoise, mechanism, "mechanism")
    values = [row[field] for row in records]
    outside = sum(value not in set(domain) for value in values)
    if outside:
        raise DataError(
            Problem(f"{outside} of {len(values)} records have a value outside the domain of {field!r}", path="field")
        )
    content = sorted([row["id"], row[field]] for row in records)
    parts = ["histogram", dataset, field, list(domain), noise.model_dump(), seed, content]
    lookup = events.ledger.whole_hash(parts)
    payload = events.stored(lookup)
    event: dict[str, Any] = event_of(noise)
    if payload is None:
        events.cap(dataset)
        counts, source = Counter(values), _source(seed, lookup)
        draw = _drawer(event, source)
        payload = canonical([[value, counts[value] + draw()] for value in domain]).decode()
    result = Records([{"value": value, "count": count} for value, count in json.loads(payload)], ["value", "count"])
    with events.ledger.transaction() as db:
        there = db.execute("SELECT payload FROM events WHERE lookup=?", (lookup,)).fetchone()
        if there is None:
            events.charge(db, lookup, dataset, event, payload, task=task, void="" if seed is None else "seeded")
        elif there[0] != payload:  # another process was faster: what was first stays
            rows = json.loads(there[0])
            result = Records([{"value": value, "count": count} for value, count in rows], ["value", "count"])
        told = f"epsilon {noise.epsilon:g}" + (f", delta {noise.delta:g}" if noise.delta else "")
        detail, digest = f"counts of {field}, {noise.name}, {told}, {NEIGHBOURS}", digest_of(result.kind, result.to_files())
        made = register(db, "histogram", lookup, digest, dataset, event["kind"], detail, "" if seed is None else "seeded")
    return result, made


def _domain(field: str, schema: RecordSchema) -> tuple[str, ...]:
    if field not in schema.fields:
        fix = did_you_mean(field, schema.fields)
        raise ConfigError(Problem(f"the records have no field {field!r}", path="field", fix=fix))
    domain = schema.fields[field].domain
    if domain is None:
        raise ConfigError(Problem(f"the field {field!r} is free text", path="field", fix="count a field with a domain"))
    return domain


def event_of(noise: CountNoise) -> dict[str, Any]:
    """The event that noisy counts are charged as. Raises ConfigError when no sigma is confirmed in `STEPS` steps."""
    if noise.name == "laplace":
        return {"kind": "laplace", "parameters": {"epsilon": noise.epsilon}, "neighbours": NEIGHBOURS}
    sigma = math.ceil(1000 * gaussian_sigma(noise.epsilon, noise.delta, math.sqrt(2.0))) / 1000
    for step in range(1, STEPS + 1):
        event = {"kind": "gaussian", "parameters": {"sigma": sigma, "changes": 2}, "neighbours": NEIGHBOURS}
        if compose([event], noise.delta)[NEIGHBOURS] <= noise.epsilon:
            return event
        sigma = math.ceil(1000 * 1.005**step * sigma) / 1000  # half a percent more, then one, ...
    what = f"no gaussian noise was found that is epsilon {noise.epsilon:g}, delta {noise.delta:g} a record"
    why = f"the accountant did not confirm any of {STEPS} sigmas"
    raise ConfigError(
        Problem(what, path="mechanism", why=why, fix="a larger epsilon or delta, or {name: laplace, epsilon: ...}")
    )


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float) -> float:
    """The least sigma of continuous Gaussian noise that is (epsilon, delta), to 1e-6 (Balle, Wang 2018, theorem 8)."""

    def lost(sigma: float) -> float:
        a, b = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
        log_right = epsilon + _log_normal_tail(a + b)
        return _normal_tail(b - a) - (math.exp(log_right) if log_right < 700 else math.inf)

    low, high = 1e-6, 1.0
    while lost(high) > delta:
        high *= 2
    while high - low > 1e-6 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if lost(middle) > delta else (low, middle)
    return high


def _normal_tail(x: float) -> float:
    return 0.5 * math.erfc(x / math.sqrt(2.0))


def _log_normal_tail(x: float) -> float:
    """log P(Z > x), also where the tail is too small for a float."""
    if x < 25:
        return math.log(_normal_tail(x))
    return -x * x / 2 - math.log(x * math.sqrt(2 * math.pi))


# ---- exact noise -----------------------------------------------------------------------------------------------------


def _source(seed: int | None, lookup: str) -> random.Random:
    """The operating system's generator, or a seeded one (which voids the guarantee)."""
    return random.SystemRandom() if seed is None else random.Random(f"{seed}/{lookup}")


def _drawer(event: Mapping[str, Any], source: random.Random) -> Any:
    given = event["parameters"]
    if event["kind"] == "laplace":
        rate = Fraction(given["epsilon"]) / 2
        return lambda: discrete_laplace(rate, source)
    variance = Fraction(given["sigma"]) ** 2
    return lambda: discrete_gaussian(variance, source)


def discrete_laplace(rate: Fraction, source: random.Random) -> int:
    """An integer k with probability proportional to exp(-rate |k|), exactly: a geometric size and a sign."""
    s, t = rate.numerator, rate.denominator
    while True:
        u = source.randrange(t)
        if not _bernoulli_exp(Fraction(u, t), source):
            continue
        v = 0
        while _bernoulli_exp(Fraction(1), source):
            v += 1
        size = (u + t * v) // s
        negative = source.randrange(2) == 1
        if size or not negative:
            return -size if negative else size


def discrete_gaussian(variance: Fraction, source: random.Random) -> int:
    """An integer k with probability proportional to exp(-k^2 / (2 variance)), exactly: rejection from a discrete Laplace."""
    t = math.isqrt(int(variance)) + 1
    while True:
        k = discrete_laplace(Fraction(1, t), source)
        if _bernoulli_exp((abs(k) - variance / t) ** 2 / (2 * variance), source):
            return k


def _bernoulli_exp(x: Fraction, source: random.Random) -> bool:
    """True with probability exp(-x), x >= 0, exactly."""
    while x > 1:
        if not _bernoulli_exp(Fraction(1), source):
            return False
        x -= 1
    n, d, k = x.numerator, x.denominator, 1
    while source.randrange(d * k) < n:  # true with probability x / k
        k += 1
    return k % 2 == 1

# SPDX-License-Identifier: Apache-2.0
"""Shamir's shares of 32-byte secrets over the field of 2^256 + 297 elements (the least prime above 2^256).

Any `threshold` shares give the secret; fewer say nothing about it, whatever the computing power. Coefficients are 64 uniform
bytes modulo the prime (off uniform by 2^-255). A share is 33 bytes. Arithmetic of Python's integers takes a time that depends
on the numbers: not for a machine whose time a stranger measures closely.
"""

import functools
import random
from collections.abc import Callable, Mapping, Sequence

from osmotic.schemas.errors import Problem, ProtocolError

PRIME = (1 << 256) + 297
SECRET, SHARE, WIDE = 32, 33, 64  # bytes
TRIES = 1000  # sets of shares that are tried where some are wrong


def split(secret: bytes, coefficients: bytes, points: Sequence[int]) -> list[bytes]:
    """A share for each point (1, 2, ...). coefficients: 64 uniform bytes for each of threshold - 1."""
    if len(secret) != SECRET or len(coefficients) % WIDE or 0 in points or len(set(points)) != len(points):
        raise ValueError("a secret of 32 bytes, coefficients of 64 and different points above 0")
    terms = [int.from_bytes(coefficients[i : i + WIDE], "big") % PRIME for i in range(0, len(coefficients), WIDE)]
    terms.append(int.from_bytes(secret, "big"))
    return [_at(terms, point).to_bytes(SHARE, "big") for point in points]


def _at(terms: Sequence[int], point: int) -> int:
    total = 0
    for term in terms:
        total = (total * point + term) % PRIME
    return total


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret of so many shares as the threshold says, point -> share; None when they are no shares of one."""
    points = tuple(sorted(shares))
    total = sum(int.from_bytes(shares[p], "big") * weight for p, weight in zip(points, _weights(points), strict=True)) % PRIME
    return total.to_bytes(SECRET, "big") if total < 1 << 256 else None


@functools.lru_cache(maxsize=256)
def _weights(points: tuple[int, ...]) -> tuple[int, ...]:
    """What each share is multiplied with: Lagrange's polynomials at 0."""
    found = []
    for point in points:
        top, bottom = 1, 1
        for other in points:
            if other != point:
                top, bottom = top * other % PRIME, bottom * (other - point) % PRIME
        found.append(top * pow(bottom, -1, PRIME) % PRIME)
    return tuple(found)


def recover(shares: Mapping[int, bytes], threshold: int, right: Callable[[bytes], bool]) -> tuple[bytes, set[int]]:
    """(the secret that is `right`, the points whose shares were found wrong): sets of shares are tried until one fits.

    Wrong ones are looked for when the first set does not fit, and found with near certainty where few lie. Raises ProtocolError
    when there are too few shares, or none of 1000 sets gives a secret that is right.
    """
    if len(shares) < threshold:
        raise ProtocolError(Problem(f"{len(shares)} shares of a secret where {threshold} are needed"))
    points, order = sorted(shares), random.Random(0)  # which sets are tried is no secret
    for attempt in range(TRIES):
        chosen = points[:threshold] if attempt == 0 else order.sample(points, threshold)
        secret = combine({point: shares[point] for point in chosen})
        if secret is not None and right(secret):
            others = set(points) - set(chosen) if attempt else set()
            return secret, {point for point in others if not _fits(shares, chosen, point)}
        if threshold == len(shares):
            break
    why = "clients gave wrong shares, or the one whose secret it is had dealt them wrongly"
    raise ProtocolError(Problem("shares that fit no secret", why=why, fix="run again without the clients that lie"))


def _fits(shares: Mapping[int, bytes], chosen: Sequence[int], point: int) -> bool:
    """Whether a further share lies on the same polynomial: the secret is the same with it in place of another."""
    first, *rest = chosen
    return combine({p: shares[p] for p in (point, *rest)}) == combine({p: shares[p] for p in (first, *rest)})

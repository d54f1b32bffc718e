# SPDX-License-Identifier: Apache-2.0
"""What is agreed before a secure sum: who adds, how much at the most, how many must stay, how much noise. The same for all.

Its digest is part of every key and signature of the session, so clients that were told different plans cannot finish one
together. A client takes `context` from what it holds itself (the digest of the model that its update starts from): a server
that hands out different models to single a client out (Pasquini, Francati, Ateniese 2022) is then met by sums that fail.

`threshold` = (clients + colluding) // 2 + 1 answers open a sum. With that, two sets of survivors cannot both be confirmed: an
honest client confirms one only, and 2 * threshold > clients + colluding. It is not to be chosen.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from osmotic.runtime.secure.grid import Grid
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, Problem

LEAST, MOST = 1e-30, 1e30  # of clip norms and ranges
LEAST_MULTIPLIER, MOST_MULTIPLIER = 0.1, 1e6  # what the accountant takes
MOST_CLIENTS, MOST_NUMBERS = 10_000, 1 << 31
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class SumPlan:
    """A sum of tensors of the given shapes over the named clients, for `receiver`. Raises ConfigError when it makes no sense.

    session: 16 to 64 bytes, never used twice. clip: L2 norm that each client's vector is held to. range: largest absolute
    value of a number; default `clip`; without `clip` a number beyond it is refused, with `clip` it is cut. noise_multiplier:
    standard deviation over `clip` of the noise that honest survivors add together, at the least. colluding: clients that may
    be in league with the server. context: digest of what every client starts from, as the client itself knows it.
    """

    session: bytes
    names: tuple[str, ...]
    receiver: str
    shapes: Shapes
    at_least: int
    colluding: int = 0
    clip: float | None = None
    range: float | None = None
    noise_multiplier: float | None = None
    context: bytes = b""
    grid: Grid = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        shapes = {name: tuple(int(n) for n in shape) for name, shape in sorted(self.shapes.items())}
        object.__setattr__(self, "shapes", shapes)
        object.__setattr__(self, "names", tuple(self.names))
        problems = [problem for problem in (*_of_people(self), *_of_numbers(self)) if problem]
        if problems:
            raise ConfigError(*problems)
        reach = self.range or self.clip or 0.0
        grid = Grid.of(len(self.names), reach, self.clip, self.noise_multiplier, self.honest)
        object.__setattr__(self, "grid", grid)

    @cached_property
    def threshold(self) -> int:
        """How many clients' shares open the sum: more than half of clients and colluding together."""
        return (len(self.names) + self.colluding) // 2 + 1

    @cached_property
    def fewest(self) -> int:
        """How many clients must be in the sum; with fewer, every client refuses."""
        return max(self.at_least, self.threshold)

    @cached_property
    def honest(self) -> int:
        """How many honest clients are in any sum that is opened."""
        return self.fewest - self.colluding

    @cached_property
    def size(self) -> int:
        """How many numbers the vector has."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def step(self) -> float:
        """The fixed-point step of every number."""
        return self.grid.step

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of everything above."""
        said = {
            "format": "osmotic secure sum 1", "session": self.session.hex(), "names": list(self.names),
            "receiver": self.receiver, "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "at_least": self.at_least, "colluding": self.colluding, "clip": self.clip, "range": self.range,
            "noise": self.noise_multiplier, "context": self.context.hex(),
        }  # fmt: skip
        return hashlib.sha256(canonical(said)).digest()

    def ordered(self, names: Sequence[str]) -> tuple[str, ...]:
        """The same names in the plan's order. Raises ConfigError for strangers and names that come twice."""
        strangers = sorted(set(names) - set(self.names))
        if strangers or len(set(names)) != len(names):
            what = f"{strangers[0]!r} is no client of this sum" if strangers else "a client is named twice"
            raise ConfigError(Problem(what, path="names"))
        return tuple(name for name in self.names if name in set(names))


def _of_people(plan: SumPlan) -> list[Problem | None]:
    n, names = len(plan.names), plan.names
    if not (2 <= n <= MOST_CLIENTS) or len(set(names)) != n or not all(names) or not plan.receiver:
        return [Problem(f"a secure sum needs 2 to {MOST_CLIENTS} clients, each named once", path="names")]
    if plan.receiver in names:
        why = "it would know all but one addend of a sum of two"
        return [Problem(f"{plan.receiver!r} receives the sum and adds to it", path="receiver", why=why, fix="another receiver")]
    found: list[Problem | None] = []
    if not 16 <= len(plan.session) <= 64:
        found.append(Problem("a session is 16 to 64 bytes", path="session"))
    if plan.colluding < 0 or plan.threshold > n:
        what, why = f"{plan.colluding} of {n} clients colluding", "more than half of both together must answer, all honest"
        return [*found, Problem(what, path="colluding", why=why, fix=f"at most {max(n - 2, 0)}")]
    if not 1 <= plan.at_least <= n:
        return [*found, Problem(f"at_least must be in 1..{n} (got {plan.at_least})", path="at_least")]
    if plan.honest < 2:
        what, why = "fewer than 2 honest clients would be in the sum", "the sum of one is its vector"
        found.append(Problem(what, path="at_least", why=why, fix="more clients, or fewer that collude"))
    return found


def _of_numbers(plan: SumPlan) -> list[Problem | None]:
    found: list[Problem | None] = []
    for name, value in (("clip", plan.clip), ("range", plan.range)):
        if value is not None and not LEAST <= value <= MOST:
            found.append(Problem(f"{name} must be in {LEAST:g}..{MOST:g}", path=name))
    if plan.clip is None and plan.range is None:
        found.append(Problem("a secure sum needs 'clip' or 'range'", path="range", why="whole numbers have an end"))
    z = plan.noise_multiplier
    if z is not None and not LEAST_MULTIPLIER <= z <= MOST_MULTIPLIER:
        found.append(Problem(f"noise_multiplier must be in {LEAST_MULTIPLIER:g}..{MOST_MULTIPLIER:g}", path="noise_multiplier"))
    if z is not None and plan.clip is None:
        why = "noise is in proportion to what one client can change"
        found.append(Problem("noise needs 'clip'", path="clip", why=why, fix="clip: 1.0"))
    if not plan.shapes or any(n < 1 for shape in plan.shapes.values() for n in shape) or plan.size > MOST_NUMBERS:
        found.append(
            Problem(f"a secure sum takes 1 to 2^31 numbers in tensors that are not empty (got {plan.size})", path="shapes")
        )
    return found

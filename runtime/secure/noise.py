# SPDX-License-Identifier: Apache-2.0
"""What a client's vector loses in a noisy secure sum, as an accountant's event; unit: client, its whole vector there or zero.

Every client adds discrete Gaussian noise of s = 2^bits steps, s * step = noise_multiplier * clip / sqrt(honest): `honest` of
them, at the least, are in any sum that is opened and not in league with the server, and their noise together has
S = s * sqrt(honest); what others add only blurs it further. It is charged as the continuous Gaussian mechanism of that S.
The difference, for every integer's chance, as a factor e^r: sums of discrete Gaussians are one discrete Gaussian to e^tau,
tau = 10 sum_k exp(-2 pi^2 s^2 k / (k + 1)) (Kairouz, Liu, Steinke 2021), below 1e-300 for s >= 2^8; that is the rounded
continuous one, which loses what the continuous one does, to 8.4 / S^2 within 14 deviations; and n clients' draws are exact to
n 2^-46 (`discrete`). d numbers together add at most

    d r^2 + r sqrt(d) (0.8 / multiplier + 2 sqrt(2 ln 1/delta'))        (`numerical_epsilon`; delta' = 2^-120)

to epsilon: independent terms bounded by 2r each, by Hoeffding. That is held below 4e-7, and 1e-4 of the clip norm is kept free
(`grid.MARGIN`), which is worth at least 4e-5 of a sum's epsilon: more, from epsilon 0.01 on. Tails and delta' add less than
2^-100 to delta.

Holds towards the server, the other clients and whoever gets the sum, if at most `colluding` clients are in league with them,
and with pinned identities whatever the server does; without, if it follows the protocol. A server that invented all other
clients would face `alone` only. Void when: the state was put back from an older copy; the client's root was read.
"""

import math
from typing import Any

from osmotic.plugins.accounting import ADD_OR_REMOVE_ONE
from osmotic.runtime.secure.plan import SumPlan
from osmotic.schemas.errors import ConfigError, Problem

EXACTNESS, ROUNDING = 2.0**-46, 8.4
LOG_DELTA = 120 * math.log(2)
MOST = 4e-7  # of epsilon, that numbers on a grid may add


def event(plan: SumPlan, alone: bool = False) -> dict[str, Any]:
    """One sum's charge. alone: by this client's own noise only, as towards a server whose other clients are all invented.

    Raises ConfigError for a plan without noise, or whose numbers are so many or so coarse that the bound above is not kept.
    """
    multiplier = plan.noise_multiplier
    if multiplier is None:
        raise ConfigError(Problem("a secure sum without noise has no event", path="noise_multiplier"))
    added = numerical_epsilon(plan)
    if added > MOST:
        why = f"{plan.size} numbers on this grid would add {added:.2g} to epsilon, where {MOST:g} are kept free"
        fix = "a smaller 'range' (largest absolute value of a number), or more noise"
        raise ConfigError(Problem("the grid of a secure sum is too coarse for its guarantee", path="range", why=why, fix=fix))
    given = own_multiplier(plan) if alone else multiplier
    return {"kind": "gaussian", "parameters": {"noise_multiplier": given}, "neighbours": ADD_OR_REMOVE_ONE}


def own_multiplier(plan: SumPlan) -> float:
    """Standard deviation over `clip` of the noise that one client adds; 0 without noise."""
    return (plan.noise_multiplier or 0.0) / math.sqrt(plan.honest)


def numerical_epsilon(plan: SumPlan) -> float:
    """What the grid, rounding and float64 may add to a sum's epsilon, from above; 0 without noise."""
    if plan.noise_multiplier is None or plan.grid.bits is None:
        return 0.0
    share = 2.0**plan.grid.bits
    ratio = len(plan.names) * EXACTNESS + ROUNDING / (share * share * plan.honest) + tau(share, len(plan.names))
    terms = 0.8 / plan.noise_multiplier + 2 * math.sqrt(2 * LOG_DELTA)
    return plan.size * ratio**2 + ratio * math.sqrt(plan.size) * terms


def tau(deviation: float, count: int) -> float:
    """Largest log ratio of the chances of a sum of discrete Gaussians, and of one of the same variance. deviation: of each."""
    return 10 * math.fsum(math.exp(-2 * (math.pi * deviation) ** 2 * k / (k + 1)) for k in range(1, count))


def deviation(plan: SumPlan, survivors: int) -> float:
    """Standard deviation of the noise of every number of a sum of so many clients, in the vectors' own unit."""
    return own_multiplier(plan) * (plan.clip or 0.0) * math.sqrt(survivors)

# SPDX-License-Identifier: Apache-2.0
"""The black-box audit: exact binomial bounds, false claims refuted, true ones not."""

import math

import numpy as np
import pytest

from osmotic.plugins.audit import audit, beta_quantile, clopper_pearson, epsilon_low
from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism, Space
from osmotic.plugins.entropy import SeededEntropy
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.schemas.errors import ComponentError, ConfigError


class ClaimConfig(Config):
    claim: float = 3.0


class TwoWords(Mechanism[ClaimConfig]):
    """Direct sampling of the candidate-list mechanism over two words at 0 and 1: radius by an exponential, then a choice."""

    name = "two-words"
    z = 0.01658160142016071 * math.log(19.064721649556482 * 3 - 38.1294334077209) + 9.311083811697406

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        raise AssertionError("an audit does not look at probabilities")

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="heuristic", epsilon=self.config.claim)

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        radius = -np.log(entropy.uniform(len(rows))) / self.z
        near = np.exp(self.config.claim / 2 * (1 - 1 / np.maximum(radius, 1.0)))
        leave = (radius > 1) & (entropy.uniform(len(rows)) < near / (near + math.exp(self.config.claim / 2)))
        return np.where(leave, 1 - rows, rows)


WORDS = Space("two", ("a", "b"))


def test_two_words_at_nominal_3_are_refuted() -> None:
    """True epsilon 10.950: about 3.5 of 200,000 draws leave. The bound lies in 9.2 .. 10.3 unless more than 8 or fewer than 0
    do (probability .004 for a Poisson of 3.5), and above 3 unless thousands do."""
    found = audit(TwoWords(ClaimConfig(), WORDS), SeededEntropy(4), 200_000)
    assert not found.passed and found.claimed == 3 and 9.2 < found.epsilon_low < 10.95
    assert found.inputs[0] == found.output and found.counts[0] > 199_900 and found.counts[1] < 12


def test_the_bound_of_the_published_number_of_draws() -> None:
    assert epsilon_low(200_000 - 4, 4, 200_000) == pytest.approx(9.88, abs=0.005)
    assert epsilon_low(0, 5, 100) == 0.0 == epsilon_low(10, 10, 100)


def ring(epsilon: float, v: int, k: int = 1) -> ListRandomisedResponse:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, True)
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists="order"), space)


def test_a_true_claim_is_rarely_refuted_and_the_bound_is_near() -> None:
    """Exactly epsilon: one audit in twenty at most passes it, so more than 2 of 5 do with probability .0012. Off by at most .3:
    20,000 draws of p = .07 leave a relative standard error of .026."""
    found = [audit(ring(2.0, 8), SeededEntropy(i), 20_000) for i in range(5)]
    assert sum(not f.passed for f in found) <= 2 and all(1.7 < f.epsilon_low < 2.3 for f in found)


@pytest.mark.parametrize("p", [0.01, 0.2, 0.5, 0.97])
def test_coverage_of_the_bounds_is_exact(p: float) -> None:
    """Each side misses p with probability at most .025, summed over all outcomes of 60 draws."""
    n = 60
    mass = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    bounds = [clopper_pearson(k, n) for k in range(n + 1)]
    assert sum(m for m, (low, _) in zip(mass, bounds, strict=True) if low > p) <= 0.025
    assert sum(m for m, (_, high) in zip(mass, bounds, strict=True) if high < p) <= 0.025


class Boastful(ListRandomisedResponse):
    """Honest rows, but every word keeps itself half of the time."""

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        keep = (entropy.uniform(len(rows)) < 0.5) & (rows < self.space.size)
        return np.where(keep, rows, super().sample(rows, entropy))


def test_a_leak_in_a_large_space_is_refuted() -> None:
    mechanism = Boastful(ListRrConfig(epsilon=3.0, k=4, lists="order"), ring(3.0, 5000).space)
    found = audit(mechanism, SeededEntropy(1), 20_000)
    assert not found.passed and found.epsilon_low > 7 and found.inputs[0] == found.output


@pytest.mark.parametrize("draws", [100, 1000, 200_000])
def test_bounds_agree_with_the_reference(draws: int) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the reference")
    for count in (0, 1, 2, 5, draws // 3, draws // 2, draws - 3, draws):
        lower, upper = clopper_pearson(count, draws)
        assert lower == pytest.approx(stats.beta.ppf(0.025, count, draws - count + 1) if count else 0.0, rel=1e-9)
        assert upper == pytest.approx(stats.beta.ppf(0.975, count + 1, draws - count) if count < draws else 1.0, rel=1e-9)


def test_quantiles_by_hand() -> None:
    assert beta_quantile(0.3, 1, 1) == pytest.approx(0.3, rel=1e-12)
    assert beta_quantile(0.5, 1, 2) == pytest.approx(1 - math.sqrt(0.5), rel=1e-12)
    assert clopper_pearson(0, 10)[1] == pytest.approx(1 - 0.025 ** (1 / 10), rel=1e-12)
    assert beta_quantile(1e-9, 2, 1) == pytest.approx(math.sqrt(1e-9), rel=1e-9)


def test_bad_audits_are_told() -> None:
    with pytest.raises(ConfigError, match="at least 100 draws"):
        audit(ring(1.0, 4), SeededEntropy(1), 10)
    with pytest.raises(ConfigError, match="two inputs"):
        audit(TwoWords(ClaimConfig(), Space("one", ("a",))), SeededEntropy(1))

    class Wild(TwoWords):
        def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
            return rows + 5

    with pytest.raises(ComponentError, match="sample must give"):
        audit(Wild(ClaimConfig(), WORDS), SeededEntropy(1))

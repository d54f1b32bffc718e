# SPDX-License-Identifier: Apache-2.0
"""Poisson batches: at every step each record is drawn for itself, by an exact comparison of a 64-bit word.

A batch may have any size; an empty one is a step of noise alone, which is taken like every other. The words of a step come from
a cipher stream of their own (`entropy.CipherEntropy`): record i always reads word i, so whether another record exists or could
be read changes nothing for it, and the same step gives the same batch after a restart. Void when: the secret gets out, or the
drawn batches do: the accountant's amplification rests on nobody knowing who was drawn.
"""

from typing import TYPE_CHECKING

from osmotic.plugins.entropy import CipherEntropy

if TYPE_CHECKING:
    import numpy as np

PURPOSE = "dp-sgd batch"


class PoissonSampler:
    """Made by `ExecutionPlan.sampler`, so that its rate is the one that is charged."""

    def __init__(self, records: int, threshold: int, secret: bytes) -> None:
        self._records, self._threshold, self._secret = records, threshold, secret

    def batch(self, step: int) -> "np.ndarray":
        """int64 [drawn]: places of the records drawn at a step (counted from 0), ascending; may be empty."""
        import numpy as np

        if self._threshold >= 1 << 64:
            return np.arange(self._records)
        words = CipherEntropy(self._secret, PURPOSE, step).words(self._records)
        return np.flatnonzero(words < np.uint64(self._threshold))

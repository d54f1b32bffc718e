# SPDX-License-Identifier: Apache-2.0
"""The Gaussian noise of a step, as integers on a grid: the low bits of what comes out tell nothing about the sum.

The sum of clipped gradients (float64) is put on a grid of 2^30 steps a standard deviation, and independent draws of
round(2^30 N), N standard normal, are added to the integers: that equals the continuous Gaussian mechanism and then a rounding
(see `plugins.gaussian_noise`, whose draws have every probability right to a factor 1 +- 2^-46: d coordinates and T steps add
less than d T 2^-44 to epsilon, 6e-4 for 10 million coordinates and 1,000 steps in the very worst case). Putting two sums that
differ by a record on the grid moves them apart by at most sqrt(d) steps more; `limit` keeps that, and 1e-3 of the clip norm
for rounding in float32 (`clipping` says what that covers), free. The mean is the noisy sum over the plan's public batch.

Void when: the secret gets out, or the same step of one training is drawn for two different sums that are both given out.
"""

import math
from typing import TYPE_CHECKING

from osmotic.plugins.entropy import CipherEntropy
from osmotic.plugins.gaussian_noise import STEPS, rounded_gaussian
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

PURPOSE = "dp-sgd noise"
MARGIN = 1e-3  # of the clip norm, kept free for what float32 adds
BLOCK = 1 << 16  # coordinates at a time


class StepNoise:
    """Made by `ExecutionPlan.noise`, so that its scale is the one that is charged."""

    def __init__(self, clip: float, noise_multiplier: float, batch: int, secret: bytes) -> None:
        self._clip, self._batch, self._secret = clip, batch, secret
        self.step = clip * noise_multiplier / STEPS  # of the grid

    def limit(self, size: int) -> float:
        """The L2 norm that a record's gradient of `size` coordinates is held to: a little below the clip norm.

        Raises ConfigError where the grid is too coarse for so many coordinates.
        """
        kept = self._clip * (1 - MARGIN) - self.step * math.sqrt(size)
        if kept < 0.98 * self._clip:
            what = f"noise this strong leaves no exact grid for {size:,} trained parameters"
            fix = "a smaller noise_multiplier, or train fewer parameters (LoRA)"
            raise ConfigError(Problem(what, path="noise_multiplier", fix=fix))
        return kept

    def mean(self, total: "np.ndarray", step: int) -> "np.ndarray":
        """float32 [size]: (sum + noise) / batch of a step. total: float64 [size], the sum of clipped gradients; overwritten."""
        import numpy as np

        entropy = CipherEntropy(self._secret, PURPOSE, step)
        out, scale = np.empty(total.size, dtype=np.float32), self.step / self._batch
        for start in range(0, total.size, BLOCK):
            part = total[start : start + BLOCK]
            np.rint(np.divide(part, self.step, out=part), out=part)
            out[start : start + BLOCK] = (part.astype(np.int64) + rounded_gaussian(part.size, entropy)) * scale
        return out

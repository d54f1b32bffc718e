# SPDX-License-Identifier: Apache-2.0
"""Black-box audit of a mechanism by its own draws: a lower bound on its epsilon that needs no trust in its probabilities.

Draws choose a pair of inputs and an output; fresh ones give epsilon_low by Clopper-Pearson bounds, with confidence 95%. It
fails where epsilon_low is more than what is claimed: the claim is then wrong (at that confidence, a field).
Passing proves nothing: a lower bound says what was caught, the certificate says what holds. It reads no record and draws from
the mechanism over the public schema, so its metrics are public: `require: {audit_passes: {min: 1}}`.
"""

import math
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from osmotic.components.mechanism_config import MechanismConfig, unknown_fields
from osmotic.plugins.analysis import audit
from osmotic.plugins.contract import Component, Context, DatasetName, Mechanism, Metrics, Out, Outputs
from osmotic.schemas.records import RecordSchema


class MechanismAuditorConfig(MechanismConfig):
    """Configuration of `mechanism_auditor`."""

    data: DatasetName
    draws: int = Field(
        100_000, ge=1000, le=100_000_000, description="Draws of each of the two inputs of a field; as many again choose them."
    )


class MechanismAuditor(Component[MechanismAuditorConfig]):
    """A lower bound on a mechanism's epsilon from its draws alone; it fails where that is more than the claim."""

    name = "mechanism_auditor"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: MechanismAuditorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have."""
        return unknown_fields(config, schema)

    def run(self, context: Context) -> Outputs:
        """Metrics ``epsilon_low`` (largest over the fields), ``epsilon_claimed`` (for the pair that gave it), ``audit_passes``
        (1: no field fails), and ``epsilon_low_FIELD``. Note ``untested``: fields whose claim says nothing about the pair found.
        """
        lows, worst, passes, untested = {}, (-math.inf, 0.0), True, []
        for done, field in enumerate(self.config.fields):
            context.progress(done, len(self.config.fields), field)
            mechanism = context.mechanism(self.config.mechanism, field)
            found = audit(mechanism, self.config.draws)
            lows[field], limit = found.epsilon_low, claim_about(mechanism, *found.inputs)
            worst = max(worst, (found.epsilon_low, mechanism.guarantee().epsilon if limit is None else limit))
            passes = passes and (limit is None or found.epsilon_low <= limit)
            untested += [field] if limit is None else []
        values = {"epsilon_low": worst[0], "epsilon_claimed": worst[1], "audit_passes": float(passes)}
        notes = {"untested": ", ".join(untested)} if untested else None
        return {"metrics": Metrics({**values, **{f"epsilon_low_{f}": low for f, low in lows.items()}}, notes=notes)}


def claim_about(mechanism: Mechanism[Any], first: int, second: int) -> float | None:
    """What a mechanism claims of the log-ratio of two inputs; None when it claims nothing (other cells of a partition)."""
    import numpy as np

    claim = mechanism.guarantee()
    cells = mechanism.cells() if claim.mechanism_class == "partition" else None
    if cells is not None:
        return claim.epsilon if cells[first] == cells[second] else None
    if claim.mechanism_class != "metric":
        return claim.epsilon
    distances = mechanism.distances(np.array([first], dtype=np.int64))
    return None if distances is None else float(claim.epsilon * distances[0, second])

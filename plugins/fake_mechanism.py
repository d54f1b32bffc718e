# SPDX-License-Identifier: Apache-2.0
"""A token mechanism that is a matrix: to try the certificate, a test of samplers or an attack on any law that one can write."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from osmotic.plugins.contract import Config, Guarantee, Mechanism, Space
from osmotic.schemas.guarantees import MechanismClass, Unit

if TYPE_CHECKING:
    import numpy as np

__all__ = ["MatrixConfig", "MatrixMechanism", "matrix_mechanism"]


class MatrixConfig(Config):
    """What is claimed."""

    claim: float = 1.0
    kind: MechanismClass = "certified"
    unit: Unit = "token"


class MatrixMechanism(Mechanism[MatrixConfig]):
    """P(y|x) from `matrix`: float64 [V, V], or [V + 1, V] with a row for the unknown symbol. Zeros are allowed."""

    name = "matrix"
    matrix: "np.ndarray"

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        """float64 [n, V]."""
        import numpy as np

        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.matrix[rows]))

    def guarantee(self) -> Guarantee:
        """As configured."""
        unit: Unit = "distance" if self.config.kind == "metric" else self.config.unit
        return Guarantee(mechanism_class=self.config.kind, epsilon=self.config.claim, unit=unit)


def matrix_mechanism(
    matrix: Sequence[Sequence[float]],
    claim: float = 1.0,
    kind: MechanismClass = "certified",
    cls: type[MatrixMechanism] = MatrixMechanism,
) -> MatrixMechanism:
    """The mechanism of a matrix over symbols s0, s1, ...; more rows than columns: the last one is the unknown symbol's."""
    import numpy as np

    values = np.array(matrix, dtype=np.float64)
    v = values.shape[1]
    made = cls(MatrixConfig(claim=claim, kind=kind), Space("s", tuple(f"s{i}" for i in range(v)), None, len(values) > v))
    made.matrix = values
    return made

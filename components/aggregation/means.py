# SPDX-License-Identifier: Apache-2.0
"""Means that are kept as sums in float64: one client's weights and one sum in memory, however many clients there are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from osmotic.components.aggregation.checks import Outline
from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np

Arrays = dict[str, "np.ndarray"]


class Mean:
    """A running weighted mean of named tensors."""

    def __init__(self) -> None:
        self._total: Arrays = {}
        self._weight = 0.0

    def add(self, tensors: "Mapping[str, np.ndarray]", weight: float = 1.0) -> None:
        """Add a client's tensors, in the order in which they come: the caller's order is that of the names."""
        import numpy as np

        for name, tensor in tensors.items():
            if name not in self._total:
                self._total[name] = np.zeros(tensor.shape, dtype=np.float64)
            if weight == 1.0:
                self._total[name] += tensor
            else:
                self._total[name] += np.multiply(tensor, weight, dtype=np.float64)
        self._weight += weight

    def result(self) -> Arrays:
        """float64 tensors; the sum is used up."""
        for tensor in self._total.values():
            tensor /= self._weight
        return self._total


def rounded(tensors: "Mapping[str, np.ndarray]", outline: Outline) -> Arrays:
    """The tensors in the reference's own types. Raises ComponentError when that gives what is no finite number."""
    import numpy as np

    with np.errstate(over="ignore"):
        made = {name: tensors[name].astype(dtype) for name, (_, dtype) in outline.items()}
    for name, tensor in made.items():
        if not bool(np.isfinite(tensor).all()):
            what = f"the aggregated tensor {name!r} has values that are not finite numbers"
            raise ComponentError(Problem(what, fix="a lower server.learning_rate, or a robust aggregation"))
    return made


def wide(tensors: "Mapping[str, np.ndarray]") -> Arrays:
    """The tensors in float64."""
    return {name: tensor.astype("float64") for name, tensor in tensors.items()}

# SPDX-License-Identifier: Apache-2.0
"""What a component may compute of public spaces and mechanisms: symbols of texts, what a
certificate streams, and a black-box audit. Releases nothing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from osmotic.plugins import audit as black_box
from osmotic.plugins import spaces
from osmotic.plugins.audit import Audit
from osmotic.plugins.certificate import allowed_epsilon
from osmotic.plugins.columns import Columns, spread
from osmotic.plugins.contract import Mechanism, Space
from osmotic.plugins.entropy import SystemEntropy

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Audit", "Columns", "allowed_epsilon", "audit", "encode", "spread"]


def encode(space: Space, texts: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
    """(int64 [n] symbols of all texts one after another, V where unknown; int64 [texts] how many each text has).

    By the space's own public rule; a value of a domain is one symbol. Raises DataError for a value outside a domain.
    """
    return spaces.encode(space, texts)


def audit(mechanism: Mechanism[Any], draws: int) -> Audit:
    """A lower bound on epsilon from draws alone, by the operating system's randomness; see `osmotic.plugins.audit`."""
    return black_box.audit(mechanism, SystemEntropy(), draws)

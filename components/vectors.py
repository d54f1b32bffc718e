# SPDX-License-Identifier: Apache-2.0
"""Vectors of texts from an embedder of anybody's make, checked before they are counted with."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    import numpy as np


def vectors(model: Any, texts: Sequence[str], *, finite: bool = True) -> "np.ndarray":
    """float64 [n, d]: one vector a text, different texts embedded once, in their order.

    Raises ComponentError for another shape and, if `finite`, for what is no number.
    """
    import numpy as np

    distinct = list(dict.fromkeys(texts))
    found = np.asarray(model.embed(distinct), dtype=np.float64)
    if found.ndim != 2 or len(found) != len(distinct):
        what = f"the embedder gave an array of the shape {found.shape} for {len(distinct)} texts"
        raise ComponentError(Problem(what, path="embedder"))
    if finite and not np.isfinite(found).all():
        raise ComponentError(
            Problem("the embedder gave vectors with infinite values, or values that are none", path="embedder")
        )
    place = {text: i for i, text in enumerate(distinct)}
    return np.asarray(found[[place[text] for text in texts]])

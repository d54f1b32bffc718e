# SPDX-License-Identifier: Apache-2.0
"""What the whole-text mechanisms share: text fields only, prompts from a template, bounds of clipping, checked logits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from osmotic.plugins.contract import Slot
from osmotic.plugins.mechanisms.extreme import MOST_TOKENS
from osmotic.plugins.sandbox import Template, compile_template, slots
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

NARROWEST = 1e-3  # of a clipping interval; narrower, or farther from 0, and rounding would decide
Bound = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


def text_slots(given: Sequence[Slot], name: str) -> None:
    """Raise ConfigError unless all are text fields: a model writes text, and no value of a domain."""
    domains = [slot.name for slot in given if not slot.text]
    if domains:
        what = f"{name!r} rewrites texts; the field {domains[0]!r} has a domain"
        raise ConfigError(Problem(what, path="mechanism", fix="release text fields with it, and the others by list-rr, say"))


def check_bounds(low: float, high: float) -> None:
    """Raise ValueError (for a model's validator) unless the clipping interval is one."""
    if not low < high:
        raise ValueError(f"b_min {low:g} must be less than b_max {high:g}")
    if high - low < NARROWEST:
        raise ValueError(f"b_min {low:g} and b_max {high:g} must be at least {NARROWEST:g} apart")


def prompt_template(text: str) -> Template:
    """A template with the one slot ``text``. Raises ConfigError for another slot, or for none."""
    found = slots(text, "mechanism.template")
    if found != {"text"}:
        why = f"it has {', '.join(sorted(found)) or 'none'}"
        what = "the template must have the slot {{ text }} and no other"
        raise ConfigError(Problem(what, path="mechanism.template", why=why))
    return compile_template(text, "mechanism.template")


def checked_logits(logits: Any) -> "np.ndarray":
    """The logits. Raises ComponentError when one is NaN, or when there are more tokens than the certified part covers."""
    import numpy as np

    table = np.asarray(logits)
    if np.isnan(table).any():
        raise ComponentError(Problem("the model gave logits that are no numbers", path="mechanism.model"))
    if table.ndim != 2 or not 2 <= table.shape[1] <= MOST_TOKENS:
        raise ComponentError(Problem("the model's logits have an odd shape", path="mechanism.model", why=str(table.shape)))
    return table

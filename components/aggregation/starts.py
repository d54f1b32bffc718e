# SPDX-License-Identifier: Apache-2.0
"""The weights that a first round begins with: those of a model as it is, before any training."""

from osmotic.plugins.contract import Context, Trainable, Weights
from osmotic.schemas.errors import ComponentError, Problem


def start_of(context: Context, name: str | None) -> Weights | None:
    """The trainable weights of a model at this party; None without a name. Raises ComponentError for one not to be trained."""
    if name is None:
        return None
    from osmotic.components.training.engines import layout_of, read_out

    model = context.model(name)
    if not isinstance(model, Trainable):
        raise ComponentError(Problem(f"{name!r} cannot be trained here", path="start", fix="a local model"))
    module, _ = model.trainable()
    return Weights(read_out(module), {"base": str(getattr(model, "fingerprint", "")), **layout_of(module)})

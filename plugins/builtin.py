# SPDX-License-Identifier: Apache-2.0
"""The built-in mechanisms and models, registered through the same hooks as a stranger's."""

from collections.abc import Iterable
from typing import Any

from osmotic.plugins.contract import Mechanism, ModelPlugin
from osmotic.plugins.hookspecs import hookimpl


@hookimpl
def register_mechanisms() -> Iterable[type[Mechanism[Any]]]:
    """Certified token mechanisms."""
    from osmotic.plugins.mechanisms.exponential import Exponential
    from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse

    return (ListRandomisedResponse, Exponential)


@hookimpl
def register_models() -> Iterable[type[ModelPlugin[Any]]]:
    """Models from local directories, and the real small one that a registry package ships."""
    from osmotic.plugins.models.smollm2 import SmolLm2
    from osmotic.plugins.models.transformers import TransformersModel

    return (TransformersModel, SmolLm2)

# SPDX-License-Identifier: Apache-2.0
"""The three hooks. A plugin is a module with any of them, named in the entry-point group ``osmotic``."""

from collections.abc import Iterable
from typing import Any

import pluggy

from osmotic.plugins.contract import Component, Mechanism, ModelPlugin

hookspec = pluggy.HookspecMarker("osmotic")
hookimpl = pluggy.HookimplMarker("osmotic")


@hookspec
def register_components() -> Iterable[type[Component[Any]]]:
    """Component classes that pipelines can name."""
    return ()


@hookspec
def register_mechanisms() -> Iterable[type[Mechanism[Any]]]:
    """Mechanism classes that `dp_sanitizer` and `osmotic certify` can name."""
    return ()


@hookspec
def register_models() -> Iterable[type[ModelPlugin[Any]]]:
    """Model plugin classes that the `models` section of a pipeline can name."""
    return ()

# SPDX-License-Identifier: Apache-2.0
"""The four hooks. A plugin is a module with any of them, named in the entry-point group ``osmotic``.

It may say for which version of the contract it was written, ``osmotic_api = 1``: a host that does not speak that version does
not load it, and says so. Without the line it is taken to be of version 1.
"""

from collections.abc import Iterable
from typing import Any

import pluggy

from osmotic.plugins.contract import Component, DocumentMechanism, Mechanism, ModelPlugin, TablePlugin

API_VERSION = 1  # of the contract: the hooks, the base classes and the context; raised when a plugin has to change
API_NAME = "osmotic_api"  # what a plugin calls it

hookspec = pluggy.HookspecMarker("osmotic")
hookimpl = pluggy.HookimplMarker("osmotic")


@hookspec
def register_components() -> Iterable[type[Component[Any]]]:
    """Component classes that pipelines can name."""
    return ()


@hookspec
def register_mechanisms() -> Iterable[type[Mechanism[Any]] | type[DocumentMechanism[Any]]]:
    """Token and document mechanism classes that `dp_sanitizer`, `osmotic certify` and `osmotic sanitize` can name."""
    return ()


@hookspec
def register_models() -> Iterable[type[ModelPlugin[Any]]]:
    """Model plugin classes that the `models` section of a pipeline can name."""
    return ()


@hookspec
def register_tables() -> Iterable[type[TablePlugin]]:
    """Table plugin classes: what stands before the colon of a field's ``table: NAME:ARGUMENT``."""
    return ()

# SPDX-License-Identifier: Apache-2.0
"""Knowledge crosses, private data doesn't: federated knowledge transfer as pipelines of pluggable components."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from osmotic.plugins import testing as testing
    from osmotic.runtime.api import call as call
    from osmotic.runtime.api import plan as plan
    from osmotic.runtime.api import run as run

__version__ = "0.1.0"
__all__ = ["__version__", "call", "plan", "run", "testing"]


def __getattr__(name: str) -> Any:
    """`osmotic.call`, `osmotic.plan`, `osmotic.run` and `osmotic.testing`, imported on first use."""
    if name in ("call", "plan", "run"):
        from osmotic.runtime import api

        return getattr(api, name)
    if name == "testing":
        import importlib

        return importlib.import_module("osmotic.plugins.testing")
    raise AttributeError(f"module 'osmotic' has no attribute {name!r}")

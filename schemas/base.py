# SPDX-License-Identifier: Apache-2.0
"""The base of everything that a user writes: unknown keys refused, values frozen, types strict."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A strict, frozen pydantic model. Component, mechanism and model configurations derive from it."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)

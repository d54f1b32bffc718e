# SPDX-License-Identifier: Apache-2.0
"""Configuration that says which mechanism over which record fields: of the sanitizer, and of what attacks the like."""

from typing import Any

from pydantic import Field, field_validator

from osmotic.plugins.contract import Config
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class FieldsConfig(Config):
    """Which fields of the records."""

    fields: list[str] = Field(default=[], description="Record fields that were released; none named: all that were.")

    @field_validator("fields")
    @classmethod
    def _unique(cls, value: list[str]) -> list[str]:
        twice = next((name for i, name in enumerate(value) if name in value[:i]), None)
        if twice is not None:
            raise ValueError(f"the field {twice!r} stands twice")
        return value


class MechanismConfig(FieldsConfig):
    """Which mechanism over which fields."""

    fields: list[str] = Field(min_length=1, description="Record fields that it is for, in order.")
    mechanism: dict[str, Any] = Field(
        description="name: a registered mechanism; the other keys are its own (osmotic plugins).",
        json_schema_extra={"osmotic": "mechanism"},
    )

    @field_validator("mechanism")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str) or not value["name"]:
            raise ValueError("must have the key 'name': a registered mechanism")
        return value


def unknown_fields(config: FieldsConfig, schema: RecordSchema | None) -> list[str]:
    """Problems: fields that the schema does not have."""
    known = schema.fields if schema else config.fields
    unknown = [name for name in config.fields if name not in known]
    return [f"fields: the records have no field {name!r}; {did_you_mean(name, known)}" for name in unknown]

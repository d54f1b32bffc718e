# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas (draft 2020-12) of every document that crosses a boundary, generated from the models and checked in.

Editors read them through ``# yaml-language-server: $schema=...``; `check` tells which files no longer fit the models.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue

from osmotic.schemas.errors import Code
from osmotic.schemas.guarantees import Card, Guarantee
from osmotic.schemas.messages import HEADER_SCHEMA
from osmotic.schemas.pipeline import Pipeline
from osmotic.schemas.policy import SitePolicy, Sites
from osmotic.schemas.records import RecordSchema

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_MODELS: tuple[tuple[str, str, type[BaseModel], JsonSchemaMode], ...] = (
    ("pipeline", "osmotic pipeline", Pipeline, "validation"),
    ("site", "osmotic site policy", SitePolicy, "validation"),
    ("sites", "osmotic site policies of several parties", Sites, "validation"),
    ("records", "osmotic record schema", RecordSchema, "validation"),
    ("guarantee", "osmotic guarantee", Guarantee, "serialization"),
    ("card", "osmotic privacy card", Card, "serialization"),
)


def generate() -> dict[str, dict[str, Any]]:
    """name -> JSON Schema, of every document."""
    schemas = {name: _of_model(name, title, model, mode) for name, title, model, mode in _MODELS}
    schemas["envelope"] = _headed("envelope", "osmotic envelope header", HEADER_SCHEMA)
    codes = {"description": (Code.__doc__ or "").strip(), "enum": sorted(code.value for code in Code)}
    schemas["error"] = _headed("error", "osmotic error code", codes)
    return schemas


def write(folder: Path) -> list[Path]:
    """Write every schema to ``folder/NAME.json``; returns the files that changed."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for name, text in _texts().items():
        path = folder / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def check(folder: Path) -> list[str]:
    """Names of the files that are missing, out of date or no longer generated; empty when all is well."""
    texts = _texts()
    present = {path.name: path for path in folder.glob("*.json")}
    stale = [n for n, text in texts.items() if n not in present or present[n].read_text(encoding="utf-8") != text]
    return sorted(stale + [name for name in present if name not in texts])


class _Generator(GenerateJsonSchema):
    """Without the titles that pydantic makes up from field names."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def _of_model(name: str, title: str, model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
    schema = model.model_json_schema(by_alias=True, mode=mode, schema_generator=_Generator)
    return _headed(name, title, _closed(schema))


def _headed(name: str, title: str, schema: JsonSchemaValue) -> dict[str, Any]:
    return {"$schema": DIALECT, "$id": f"urn:osmotic:{name}:1", **schema, "title": title} | {"$schema": DIALECT}


def _closed(node: Any) -> Any:
    """Mappings whose keys have a pattern take no other key, as in the models."""
    if isinstance(node, list):
        return [_closed(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _closed(value) for key, value in node.items()}
    if "patternProperties" in node and "additionalProperties" not in node:
        node["additionalProperties"] = False
    return node


def _texts() -> dict[str, str]:
    return {f"{name}.json": json.dumps(schema, indent=2, sort_keys=False) + "\n" for name, schema in generate().items()}

# SPDX-License-Identifier: Apache-2.0
"""JSON Schemas for editors: the checked-in ones, and in that of pipelines what is installed here.

A task's `component` says which configuration keys and input ports it has, a model's `type` its keys, a mechanism's `name` its
own: with descriptions, defaults and choices. `${matrix.AXIS}` and `${text.NAME}` are taken wherever a value may stand. Whatever
loads is valid by this schema; a few mistakes only the plan finds.
"""

import inspect
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Component, config_type, input_ports
from osmotic.plugins.host import Registered, Registry
from osmotic.schemas import generate

Schema = dict[str, Any]
PLACEHOLDER = {"$ref": "#/$defs/Placeholder"}
OUTER = ("description", "default", "title")  # stay beside the alternatives, where editors look for them


def write_schemas(folder: Path, registry: Registry) -> list[Path]:
    """Write every document's schema to ``folder/NAME.json``, that of pipelines with what is installed."""
    generate.write(folder)
    path = folder / "pipeline.json"
    path.write_text(json.dumps(pipeline_schema(registry), indent=1) + "\n", encoding="utf-8")
    return sorted(folder.glob("*.json"))


def pipeline_schema(registry: Registry) -> Schema:
    """The schema of pipelines that name what is registered."""
    schema: Schema = json.loads(json.dumps(generate.generate()["pipeline"]))
    schema["$id"] = "urn:osmotic:pipeline:installed"
    defs = schema["$defs"]
    for one in defs.values():
        one.pop("title", None)  # a class's name, which hovering would show
    pattern = r"^\$\{(matrix|text)\..+\}$"
    defs["Placeholder"] = {"type": "string", "pattern": pattern, "description": "The value of an axis, or a named text."}
    defs["Mechanism"] = _mechanisms(registry, defs)
    defs["TaskSpec"] |= _chosen(defs["TaskSpec"], "component", registry.components, [])
    for name, entry in registry.components.items():
        defs["TaskSpec"]["allOf"].append(_when("component", name, _task(name, entry, defs)))
    defs["ModelSpec"] |= _chosen(defs["ModelSpec"], "type", registry.models, [])
    for name, entry in registry.models.items():
        _, required = _config(f"model.{name}", entry, defs)
        then = {"properties": {"config": {"$ref": f"#/$defs/model.{name}"}}}
        defs["ModelSpec"]["allOf"].append(_when("type", name, _needs(then, required)))
    return schema


def _chosen(spec: Schema, key: str, table: Mapping[str, Registered], rules: list[Schema]) -> Schema:
    """A definition in which `key` is one of what is registered, each with the first words about it."""
    choices = [{"const": name, "description": about(table[name].cls)} for name in sorted(table)]
    named = {**spec["properties"][key], "anyOf": choices}
    return {"properties": {**spec["properties"], key: named}, "allOf": rules}


def _when(key: str, name: str, then: Schema) -> Schema:
    return {"if": {"properties": {key: {"const": name}}, "required": [key]}, "then": then}


def _task(name: str, entry: Registered, defs: Schema) -> Schema:
    """What a task of a component may say."""
    _, required = _config(f"component.{name}", entry, defs)
    config = {"$ref": f"#/$defs/component.{name}"}
    cls: type[Component[Any]] = entry.cls
    ports = {}
    for port, found in input_ports(cls).items():
        words = [found.kind.kind, "one of every sender" if found.gathered else "", "optional" if found.optional else ""]
        ports[port] = {"description": ", ".join(filter(None, words))}
    then: Schema = {"properties": {"config": config, "inputs": {"properties": ports, "propertyNames": {"enum": list(ports)}}}}
    return {**then, "if": {"required": ["vary"]}, "else": _needs({}, required)}  # what varies may be given by the patches


def _needs(then: Schema, required: Iterable[str]) -> Schema:
    """The same where configuration keys have to be given."""
    keys = list(required)
    if not keys:
        return then
    config = {**then.get("properties", {}).get("config", {}), "required": keys}
    return {**then, "properties": {**then.get("properties", {}), "config": config}, "required": ["config"]}


def _config(name: str, entry: Registered, defs: Schema) -> tuple[Schema, list[str]]:
    """(the schema of a configuration class, under `name` in the definitions; its required keys, which it does not demand)"""
    template = f"#/$defs/{name}.{{model}}"
    found = config_type(entry.cls).model_json_schema(by_alias=True, ref_template=template)
    for inner, schema in found.pop("$defs", {}).items():
        defs[f"{name}.{inner}"] = _open(schema)
    required = found.pop("required", [])
    made = {**_open(found), "description": about(entry.cls)}
    made.pop("title", None)
    defs[name] = made
    return made, required


def _mechanisms(registry: Registry, defs: Schema) -> Schema:
    """A mechanism: its name, and the keys that it has."""
    rules = []
    for name, entry in registry.mechanisms.items():
        made, required = _config(f"mechanism.{name}", entry, defs)
        made["properties"] = {"name": {"const": name}, **made.get("properties", {})}
        rules.append(_when("name", name, {"$ref": f"#/$defs/mechanism.{name}", "required": required}))
    base = {"properties": {"name": {"type": "string", "description": "A registered mechanism's name (osmotic plugins)."}}}
    chosen = _chosen(base, "name", registry.mechanisms, rules)
    chosen["properties"]["name"]["anyOf"].append(PLACEHOLDER)
    return {"type": "object", "required": ["name"], "description": "A mechanism and its parameters.", **chosen}


def _open(schema: Any, key: str = "") -> Any:
    """A schema of values, with placeholders and mechanisms where they may stand."""
    if not isinstance(schema, dict):
        return schema
    made = {k: v for k, v in schema.items() if k != "title"}
    for name in ("properties", "patternProperties"):
        if name in made:
            made[name] = {k: _value(v, k) for k, v in made[name].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(made.get(name), dict):
            made[name] = _value(made[name])
    for name in ("anyOf", "oneOf", "allOf"):
        if name in made:
            made[name] = [_open(one, key) for one in made[name]]
    if key == "mechanism" and made.get("type") == "object" and "properties" not in made:
        return {"$ref": "#/$defs/Mechanism"}
    return made


def _value(schema: Any, key: str = "") -> Any:
    """A value, or a placeholder in its place; its description stays where editors look for it."""
    made = _open(schema, key)
    if not isinstance(made, dict):
        return made
    if made.get("type") == "string" and {key for key in made if key not in OUTER} == {"type"}:
        return made  # any text, so a placeholder too
    outer = {k: made[k] for k in OUTER if k in made}
    inner = {k: v for k, v in made.items() if k not in outer}
    if not inner:
        return made
    alternatives = inner["anyOf"] if set(inner) == {"anyOf"} else [inner]
    return {**outer, "anyOf": [*alternatives, PLACEHOLDER]}


def about(cls: type[Any]) -> str:
    """The first paragraph of a class's own words, else of its module's."""
    own = cls.__doc__ or getattr(sys.modules.get(cls.__module__), "__doc__", "") or ""
    return " ".join(inspect.cleandoc(own).split("\n\n")[0].split())

# SPDX-License-Identifier: Apache-2.0
"""Mechanisms from what a pipeline says: {name, **configuration} and a space (or slots) -> an object, inner ones first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from osmotic.plugins.contract import DocumentMechanism, Mechanism, Slot, Space, config_type
from osmotic.plugins.host import Registry
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import Source, problems_of

DEEPEST = 4  # wrappers in wrappers


def split(mechanism: Mapping[str, Any], path: str = "mechanism") -> tuple[str, dict[str, Any]]:
    """{name, **config} -> (name, config); raises ConfigError without a name."""
    if not isinstance(mechanism, Mapping) or not isinstance(mechanism.get("name"), str):
        raise ConfigError(Problem("a mechanism needs a 'name'", path=path, fix="see 'osmotic plugins'"))
    return mechanism["name"], {k: v for k, v in mechanism.items() if k != "name"}


def mechanism_config(registry: Registry, name: str, config: Mapping[str, Any], path: str = "mechanism") -> Any:
    """The validated configuration of a mechanism; raises ConfigError with every problem."""
    model = config_type(registry.mechanism(name))
    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        found = problems_of(error, model, Source("", dict(config)))
        problems = [Problem(p.what, path=".".join(filter(None, (path, p.path))), why=p.why, fix=p.fix) for p in found]
        raise ConfigError(*problems) from error


def is_document(registry: Registry, mechanism: Mapping[str, Any]) -> bool:
    """Whether it names a document mechanism."""
    return issubclass(registry.mechanism(split(mechanism)[0]), DocumentMechanism)


def build_token(
    registry: Registry, mechanism: Mapping[str, Any], space: Space, path: str = "mechanism", depth: int = 0
) -> Mechanism[Any]:
    """A token mechanism over a space, with its inner one if it wraps. Raises ConfigError."""
    name, given = split(mechanism, path)
    cls = registry.mechanism(name)
    if not issubclass(cls, Mechanism):
        what = f"{name!r} works on whole documents, not on the symbols of one field"
        raise ConfigError(Problem(what, path=path, fix="use a token mechanism here"))
    if depth > DEEPEST:
        raise ConfigError(Problem("mechanisms are wrapped too deep", path=path, why=f"at most {DEEPEST} wrappers"))
    config = mechanism_config(registry, name, given, path)
    if not cls.wraps:
        return cls(config, space)
    inner = build_token(registry, config.inner, cls.inner_space(config, space), f"{path}.inner", depth + 1)
    return cls(config, space, inner)


def build_document(
    registry: Registry, mechanism: Mapping[str, Any], slots: Sequence[Slot], model: Callable[[str], Any]
) -> DocumentMechanism[Any]:
    """A document mechanism over the slots of a document; `model` gives the models that its configuration names."""
    name, given = split(mechanism)
    cls = registry.mechanism(name)
    if not issubclass(cls, DocumentMechanism):
        raise ConfigError(Problem(f"{name!r} works on symbols, not on whole documents", path="mechanism"))
    return cls(mechanism_config(registry, name, given), slots, model)

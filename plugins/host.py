# SPDX-License-Identifier: Apache-2.0
"""The host: finds plugins, registers what they bring, remembers what failed. Built by a function; no global state."""

import importlib
import inspect
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import pluggy

from osmotic.plugins import hookspecs
from osmotic.plugins.contract import Component, DocumentMechanism, Mechanism, ModelPlugin, TablePlugin, config_type, input_ports
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.pipeline import NAME
from osmotic.schemas.source import did_you_mean

BUILTIN = ("osmotic.components.builtin", "osmotic.plugins.builtin")


@dataclass(frozen=True)
class Registered:
    """Where a name comes from: the class, the distribution (or 'osmotic') and its version."""

    cls: type[Any]
    distribution: str
    version: str


@dataclass(frozen=True)
class Loaded:
    """A plugin that was loaded: its entry point, distribution and version, and its module."""

    name: str
    distribution: str
    version: str
    module: str


@dataclass
class Registry:
    """What pipelines can name."""

    components: dict[str, Registered] = field(default_factory=dict)
    mechanisms: dict[str, Registered] = field(default_factory=dict)
    models: dict[str, Registered] = field(default_factory=dict)
    tables: dict[str, Registered] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # plugin -> why it could not be loaded
    plugins: list[Loaded] = field(default_factory=list)  # of strangers, by name

    def component(self, name: str) -> type[Component[Any]]:
        """The component class of that name; raises ConfigError with did-you-mean and the plugins that failed to load."""
        found: type[Component[Any]] = self._find("component", self.components, name)
        return found

    def mechanism(self, name: str) -> type[Mechanism[Any]] | type[DocumentMechanism[Any]]:
        """The token or document mechanism class of that name."""
        found: type[Mechanism[Any]] | type[DocumentMechanism[Any]] = self._find("mechanism", self.mechanisms, name)
        return found

    def table(self, name: str) -> TablePlugin:
        """The table plugin of that name."""
        found: TablePlugin = self._find("table", self.tables, name)()
        return found

    def model(self, name: str) -> type[ModelPlugin[Any]]:
        """The model plugin class of that name."""
        found: type[ModelPlugin[Any]] = self._find("model", self.models, name)
        return found

    def _find(self, what: str, table: dict[str, Registered], name: str) -> Any:
        if name in table:
            return table[name].cls
        failed = "; ".join(f"plugin {plugin!r} could not be loaded: {why}" for plugin, why in self.failures.items())
        raise ConfigError(Problem(f"unknown {what} {name!r}", why=failed, fix=did_you_mean(name, table)))


def build_registry(names: Iterable[str] | None = None, modules: Iterable[Any] = ()) -> Registry:
    """Load the built-ins, the entry points of the group ``osmotic`` and given plugin modules (for tests).

    names: only these entry points (default: OSMOTIC_PLUGINS, comma-separated, else all; an empty list: none).
    """
    manager = pluggy.PluginManager("osmotic")
    manager.add_hookspecs(hookspecs)
    registry = Registry()
    origin: dict[str, tuple[str, str]] = {}
    for module in BUILTIN:
        manager.register(importlib.import_module(module), name=module)
        origin[module] = ("osmotic", _own_version())
    for point in _wanted(names):
        _load(manager, point, registry, origin)
    for module in modules:
        name = getattr(module, "__name__", type(module).__name__)
        manager.register(module, name=name)
        origin[name] = (name, "0")
    _refuse_misspelt(manager)
    _collect(manager, registry, origin)
    return registry


def _wanted(names: Iterable[str] | None) -> list[EntryPoint]:
    if names is None and "OSMOTIC_PLUGINS" in os.environ:
        names = [n for n in os.environ["OSMOTIC_PLUGINS"].split(",") if n.strip()]
    points = sorted(entry_points(group="osmotic"), key=lambda p: p.name)
    if names is None:
        return points
    wanted = {name.strip() for name in names}
    missing = sorted(wanted - {p.name for p in points})
    if missing:
        known = did_you_mean(missing[0], (p.name for p in points)) or "no plugin is installed"
        raise ConfigError(Problem(f"no such plugin: {', '.join(missing)}", "OSMOTIC_PLUGINS", fix=known))
    return [p for p in points if p.name in wanted]


def _load(manager: pluggy.PluginManager, point: EntryPoint, registry: Registry, origin: dict[str, tuple[str, str]]) -> None:
    name, distribution = f"{point.name} ({point.value})", point.dist
    try:
        module = point.load()
        if wrong := _other_api(module):
            registry.failures[point.name] = wrong
            return
        manager.register(module, name=name)
    except pluggy.PluginValidationError as error:
        registry.failures[point.name] = _unfit(error)
        return
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a stranger's import raises is quoted later)
        registry.failures[point.name] = f"{type(error).__name__}: {error}"
        return
    origin[name] = (distribution.name, distribution.version) if distribution else (point.name, "0")
    registry.plugins.append(
        Loaded(point.name, *origin[name], module.__name__ if isinstance(module, ModuleType) else point.module)
    )


def _unfit(error: pluggy.PluginValidationError) -> str:
    """Why the hooks of a plugin cannot be called."""
    said = " ".join(str(error).split())
    found = re.search(r"hookimpl definition: (\w+)\((.*?)\) Argument", said)
    return f"the hook {found[1]} takes no argument, and here it has ({found[2]})" if found else said


def _other_api(plugin: Any) -> str:
    """Why a plugin of another version of the contract is not loaded; empty for one of this version."""
    asked = getattr(plugin, hookspecs.API_NAME, hookspecs.API_VERSION)
    if type(asked) is int and asked == hookspecs.API_VERSION:
        return ""
    says = f"it says {hookspecs.API_NAME} = {asked!r}, this osmotic ({_own_version()}) speaks version {hookspecs.API_VERSION}"
    if type(asked) is not int or asked < 1:
        return f"{says}; it must be a whole number, as in {hookspecs.API_NAME} = {hookspecs.API_VERSION}"
    newer = asked > hookspecs.API_VERSION
    return f"{says}; {'install a newer osmotic, or an older' if newer else 'install a newer'} version of the plugin"


def _refuse_misspelt(manager: pluggy.PluginManager) -> None:
    """A function marked as a hook, or named like one, that no specification has is an error, not silence."""
    known = {n for n, _ in inspect.getmembers(hookspecs, inspect.isfunction) if n.startswith("register_")}
    for name, plugin in manager.list_name_plugin():
        for attribute in dir(plugin) if plugin else ():
            function = getattr(plugin, attribute, None)
            if not attribute.startswith("register_") or not _is_own(function, plugin):
                continue
            if attribute not in known:
                fix = did_you_mean(attribute, known)
                why = "what it brings would be missing without a word; leave it out with OSMOTIC_PLUGINS=..., or mend it"
                raise ConfigError(Problem(f"plugin {name!r}: unknown hook {attribute!r}", why=why, fix=fix))
            if not hasattr(function, "osmotic_impl"):
                fix = "put @hookimpl above it (from osmotic.plugins.hookspecs import hookimpl)"
                raise ConfigError(Problem(f"plugin {name!r}: {attribute!r} is not marked as a hook", fix=fix))
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise ConfigError(Problem(f"a plugin does not fit: {_unfit(error)}")) from error


def _is_own(function: Any, plugin: Any) -> bool:
    """Whether it was written in the plugin, not imported into it."""
    return not inspect.ismodule(plugin) or getattr(function, "__module__", None) == plugin.__name__


def _collect(manager: pluggy.PluginManager, registry: Registry, origin: dict[str, tuple[str, str]]) -> None:
    for hook, table, base in (
        ("register_components", registry.components, (Component,)),
        ("register_mechanisms", registry.mechanisms, (Mechanism, DocumentMechanism)),
        ("register_models", registry.models, (ModelPlugin,)),
        ("register_tables", registry.tables, (TablePlugin,)),
    ):
        for implementation in getattr(manager.hook, hook).get_hookimpls():
            plugin = implementation.plugin_name
            distribution, version = origin[plugin]
            try:
                classes = _classes(hook, implementation.function())
            except (Exception, SystemExit) as error:
                if plugin in BUILTIN:
                    raise
                registry.failures[plugin] = f"{hook}: {type(error).__name__}: {error}"
                continue
            for cls in classes:
                _add(table, cls, base, Registered(cls, distribution, version))


def _classes(hook: str, given: Any) -> list[Any]:
    """What a hook gave. Raises TypeError saying what it has to give."""
    if not isinstance(given, Iterable) or isinstance(given, str):
        got = "a class" if isinstance(given, type) else "nothing" if given is None else type(given).__name__
        raise TypeError(f"the hook gave {got}; it must return the classes, as in: return (MyClass,)")
    return list(given)


def _add(table: dict[str, Registered], cls: Any, bases: tuple[type[Any], ...], entry: Registered) -> None:
    base = next((b for b in bases if isinstance(cls, type) and issubclass(cls, b)), None)
    if base is None:
        raise ConfigError(Problem(f"{entry.distribution}: {cls!r} is not a {bases[0].__name__}"))
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        why = f"got {name!r}" if name is not None else ""
        fix = "name = '...': lower-case letters, digits, '_' and '-', a letter first"
        raise ConfigError(Problem(f"{entry.distribution}: {cls.__name__} has no proper name", why=why, fix=fix))
    if name in table:
        both = f"{table[name].distribution} and {entry.distribution}"
        raise ConfigError(
            Problem(
                f"{name!r} is registered twice", why=f"by {both}", fix="uninstall one, or name the plugins: OSMOTIC_PLUGINS=..."
            )
        )
    try:
        _check_contract(cls, base)
    except (TypeError, NameError, AttributeError) as error:
        raise ConfigError(Problem(f"{entry.distribution}: {name!r} does not fit the contract: {error}")) from error
    table[name] = entry


def _check_contract(cls: type[Any], base: type[Any]) -> None:
    """Raises TypeError, NameError or AttributeError saying what the class lacks."""
    if base is not TablePlugin:
        config_type(cls)
    if inspect.isabstract(cls):
        raise TypeError(f"{cls.__name__} lacks {', '.join(sorted(cls.__abstractmethods__))}")
    if base is Component:
        if not callable(getattr(cls, "run", None)):
            raise TypeError(f"{cls.__name__} has no method 'run': write def run(self, context: Context, ...) -> Outputs")
        input_ports(cls)
    needed = {Component: "outputs", ModelPlugin: "provides"}.get(base)
    if needed and not hasattr(cls, needed):
        raise TypeError(f"{cls.__name__} does not set {needed!r}")


def _own_version() -> str:
    from osmotic import __version__

    return __version__

# SPDX-License-Identifier: Apache-2.0
"""The host: what it loads, what it refuses, and that a stranger's failure is quoted where it matters."""

import sys
import types
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins import host
from osmotic.plugins.catalogue import catalogue_markdown, is_stale
from osmotic.plugins.contract import Component, Config, Context, Guarantee, Mechanism, ModelPlugin, Out, Outputs, Records
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import build_registry
from osmotic.schemas.errors import ConfigError


class Nothing(Config):
    pass


class Echo(Component[Nothing]):
    """What comes in goes out."""

    name = "echo"
    outputs = {"records": Out(Records)}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"records": records}


class Uniform(Mechanism[Nothing]):
    """Any symbol, equally likely."""

    name = "uniform"

    def log_prob(self, rows: Any) -> Any:
        import numpy as np

        return np.full((len(rows), self.space.size), -np.log(self.space.size))

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="certified", epsilon=0.0)


class Mute(ModelPlugin[Nothing]):
    """A model that says nothing."""

    name = "mute"
    provides = frozenset({"text_generator"})

    def fingerprint(self) -> str:
        return "0" * 64

    def build(self) -> Any:
        return object()


def plugin(name: str = "stranger", **hooks: Any) -> types.ModuleType:
    """A module whose functions are hooks; a list stands for a hook that returns it."""
    module = types.ModuleType(name)
    for hook, value in hooks.items():
        function = value if callable(value) else (lambda value=value: value)
        function.__module__ = name
        setattr(module, hook, function if hook.startswith("raw_") else hookimpl(function))
    return module


def built(*modules: types.ModuleType) -> host.Registry:
    return build_registry(names=[], modules=modules)


def message(*modules: types.ModuleType) -> str:
    with pytest.raises(ConfigError) as caught:
        built(*modules)
    return str(caught.value)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Pretend that modules are installed as entry points of the group."""
    names: list[str] = []
    points: list[EntryPoint] = []

    def install(name: str, module: types.ModuleType | None) -> None:
        if module is not None:
            monkeypatch.setitem(sys.modules, f"installed_{name}", module)
        names.append(name)
        points.append(EntryPoint(name, f"installed_{name}", "osmotic"))

    monkeypatch.setattr(host, "entry_points", lambda group: points if group == "osmotic" else [])
    monkeypatch.delenv("OSMOTIC_PLUGINS", raising=False)
    yield install


def test_the_built_ins_come_through_the_same_hooks() -> None:
    registry = built()
    assert {"record_loader", "dp_sanitizer", "teacher_generator", "aggregator", "evaluator"} <= set(registry.components)
    assert {"list-rr", "exponential"} <= set(registry.mechanisms) and registry.models and not registry.failures
    assert {e.distribution for e in registry.components.values()} == {"osmotic"}
    assert registry.component("record_loader").name == "record_loader"


def test_a_plugin_adds_of_all_three_kinds() -> None:
    registry = built(plugin(register_components=[Echo], register_mechanisms=[Uniform], register_models=[Mute]))
    assert (registry.component("echo"), registry.mechanism("uniform"), registry.model("mute")) == (Echo, Uniform, Mute)
    assert registry.components["echo"].distribution == "stranger"


def test_registries_are_independent() -> None:
    built(plugin(register_components=[Echo]))
    assert "echo" not in built().components


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown component 'record_loadr'\n.*did you mean 'record_loader'") as caught:
        built().component("record_loadr")
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="unknown mechanism"):
        built().mechanism("none")
    with pytest.raises(ConfigError, match="unknown model"):
        built().model("none")


def test_a_name_twice_is_refused_naming_both() -> None:
    assert "'echo' is registered twice\n    by one and two" in message(
        plugin("one", register_components=[Echo]), plugin("two", register_components=[Echo])
    )
    impostor = type("RecordLoader", (Echo,), {"name": "record_loader", "__module__": __name__})
    assert "by osmotic and stranger" in message(plugin(register_components=[impostor]))


def test_a_misspelt_hook_is_an_error() -> None:
    assert "did you mean 'register_components'" in message(plugin(register_component=[Echo]))
    odd = plugin()
    odd.provide_models = hookimpl(lambda: [])  # type: ignore[attr-defined]
    assert "does not fit" in message(odd)


def test_a_hook_without_its_mark_is_an_error() -> None:
    module = plugin()

    def register_components() -> list[type[Any]]:
        return [Echo]

    register_components.__module__ = module.__name__
    module.register_components = register_components  # type: ignore[attr-defined]
    assert "not marked as a hook" in message(module)


def test_a_function_that_was_only_imported_is_no_hook() -> None:
    module = plugin(register_components=[Echo])
    module.register_error = sys.getsizeof  # type: ignore[attr-defined]
    assert "echo" in built(module).components


class NoName(Component[Nothing]):
    outputs = {}

    def run(self, context: Context) -> Outputs:
        return {}


class BadName(NoName):
    name = "Bad Name"


class NoConfig(Component):  # type: ignore[type-arg]
    name = "no_config"
    outputs = {}

    def run(self, context: Context) -> Outputs:
        return {}


class NoRun(Component[Nothing]):
    name = "no_run"
    outputs = {}


class NoOutputs(Component[Nothing]):
    name = "no_outputs"

    def run(self, context: Context) -> Outputs:
        return {}


class Unannotated(Component[Nothing]):
    name = "unannotated"
    outputs = {}

    def run(self, context, records):  # type: ignore[no-untyped-def]
        return {}


class WrongPort(Component[Nothing]):
    name = "wrong_port"
    outputs = {}

    def run(self, context: Context, records: int) -> Outputs:
        return {}


class HalfMechanism(Mechanism[Nothing]):
    name = "half"

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="certified", epsilon=0.0)


class NoProvides(ModelPlugin[Nothing]):
    name = "no-provides"

    def fingerprint(self) -> str:
        return ""

    def build(self) -> Any:
        return None


@pytest.mark.parametrize(
    ("hook", "thing", "said"),
    [
        ("register_components", NoName, "no proper name"),
        ("register_components", BadName, "no proper name"),
        ("register_components", NoConfig, "does not name its configuration class"),
        ("register_components", NoRun, "does not fit the contract"),
        ("register_components", NoOutputs, "does not set 'outputs'"),
        ("register_components", Unannotated, "must be annotated"),
        ("register_components", WrongPort, "must be annotated"),
        ("register_components", Uniform, "is not a Component"),
        ("register_components", Echo(Nothing()), "is not a Component"),
        ("register_mechanisms", HalfMechanism, "lacks log_prob"),
        ("register_mechanisms", Echo, "is not a Mechanism"),
        ("register_models", NoProvides, "does not set 'provides'"),
        ("register_models", "mute", "is not a ModelPlugin"),
    ],
)
def test_what_does_not_fit_the_contract_is_refused_when_loaded(hook: str, thing: Any, said: str) -> None:
    text = message(plugin(**{hook: [thing]}))
    assert said in text and "stranger" in text


def test_a_plugin_that_cannot_be_imported_is_quoted_later(installed: Any) -> None:
    installed("broken", None)
    installed("good", plugin("good", register_components=[Echo]))
    registry = build_registry()
    assert registry.component("echo") is Echo and set(registry.failures) == {"broken"}
    with pytest.raises(ConfigError, match="plugin 'broken' could not be loaded: ModuleNotFoundError"):
        registry.component("what_broken_would_bring")


def test_a_plugin_whose_hook_fails_is_quoted_later(installed: Any) -> None:
    def fails() -> list[Any]:
        raise SystemExit("no licence")

    installed("late", plugin("late", register_models=fails))
    registry = build_registry()
    assert registry.models and "no licence" in next(iter(registry.failures.values()))


def test_plugins_are_chosen_by_name_or_by_the_environment(installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    installed("one", plugin("one", register_components=[Echo]))
    installed("two", plugin("two", register_models=[Mute]))
    assert {"echo", "mute"} <= set(build_registry().components) | set(build_registry().models)
    assert "mute" not in build_registry(names=["one"]).models
    assert "echo" not in build_registry(names=[]).components
    monkeypatch.setenv("OSMOTIC_PLUGINS", "two, ")
    assert "echo" not in build_registry().components and "mute" in build_registry().models
    monkeypatch.setenv("OSMOTIC_PLUGINS", "")
    assert "mute" not in build_registry().models
    monkeypatch.setenv("OSMOTIC_PLUGINS", "tow")
    with pytest.raises(ConfigError, match=r"no such plugin: tow\n.*did you mean 'two'"):
        build_registry()


def test_loading_the_host_and_the_built_ins_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from osmotic.plugins.host import build_registry; build_registry(names=[]);"
        "print([m for m in ('torch', 'transformers', 'datasets', 'deepspeed', 'peft', 'pyarrow', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_the_catalogue_tells_of_everything_registered() -> None:
    registry = built(plugin(register_components=[Echo], register_mechanisms=[Uniform], register_models=[Mute]))
    text = catalogue_markdown(registry)
    for table in (registry.components, registry.mechanisms, registry.models):
        assert all(f"### `{name}`" in text for name in table)
    assert "What comes in goes out." in text and "from `stranger`" in text and "provides `text_generator`" in text
    assert not is_stale(text, registry) and is_stale(text, built())


def test_the_checked_in_catalogue_is_up_to_date() -> None:
    file = Path(__file__).parents[2] / "docs" / "catalogue.md"
    if not file.is_file():
        pytest.skip("the source tree is not here")
    assert not is_stale(file.read_text(encoding="utf-8"), built()), "mend: make generate"

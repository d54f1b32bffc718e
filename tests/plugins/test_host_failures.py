# SPDX-License-Identifier: Apache-2.0
"""Plugins that fail: another version of the contract, a bad import, names and hooks that do not fit; each says what to do."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins import hookspecs, host
from osmotic.plugins.host import build_registry
from osmotic.schemas.errors import ConfigError

COMPONENT = """
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.plugins.hookspecs import hookimpl
{head}

class Pass(Component[Config]):
    name = "{name}"
    outputs = {{"records": Out(Records)}}

    def run(self, context: Context, records: Records) -> Outputs:
        return {{"records": records}}

@hookimpl
def register_components():
    return (Pass,)
"""


class Distribution:
    """As much of an installed distribution as the host asks for."""

    def __init__(self, name: str) -> None:
        self.name, self.version = name, "0.3"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Install modules by their source: name -> text."""
    points: list[EntryPoint] = []

    def add(name: str, text: str) -> None:
        (tmp_path / f"failing_{name}.py").write_text(text, encoding="utf-8")
        points.append(EntryPoint(name, f"failing_{name}", "osmotic")._for(Distribution(f"osmotic-{name}")))  # type: ignore[arg-type]

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(host, "entry_points", lambda group: points)
    monkeypatch.delenv("OSMOTIC_PLUGINS", raising=False)
    yield add
    for name in [name for name in sys.modules if name.startswith("failing_")]:
        del sys.modules[name]


@pytest.mark.parametrize("head", ["", f"osmotic_api = {hookspecs.API_VERSION}"])
def test_this_version_of_the_contract_and_none(install: Any, head: str) -> None:
    install("good", COMPONENT.format(head=head, name="good_one"))
    registry = build_registry()
    assert "good_one" in registry.components and not registry.failures
    assert [(p.name, p.distribution, p.version, p.module) for p in registry.plugins] == [
        ("good", "osmotic-good", "0.3", "failing_good")
    ]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("99", "install a newer osmotic, or an older version of the plugin"),
        ("0", "it must be a whole number, as in osmotic_api = 1"),
        ("'1'", "it must be a whole number"),
        ("True", "it must be a whole number"),
        ("None", "it must be a whole number"),
    ],
)
def test_another_version_of_the_contract_is_not_loaded_and_told(install: Any, said: str, message: str) -> None:
    install("other", COMPONENT.format(head=f"osmotic_api = {said}", name="other_one"))
    registry = build_registry()
    assert message in registry.failures["other"] and not registry.plugins
    with pytest.raises(
        ConfigError, match=rf"unknown component 'other_one'\n.*plugin 'other' could not be loaded: it says osmotic_api = {said}"
    ):
        registry.component("other_one")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def register_components(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("raise SystemExit('no licence')", "SystemExit: no licence"),
        ("from osmotic.plugins.contract import Nothing", "ImportError: cannot import name 'Nothing'"),
    ],
)
def test_a_plugin_that_cannot_be_imported_does_not_stop_the_others(install: Any, text: str, said: str) -> None:
    install("bad", text)
    install("good", COMPONENT.format(head="", name="good_one"))
    registry = build_registry()
    assert said in registry.failures["bad"] and "good_one" in registry.components


def test_two_with_one_name_are_told_with_both_and_the_way_out(install: Any) -> None:
    install("one", COMPONENT.format(head="", name="same_name"))
    install("two", COMPONENT.format(head="", name="same_name"))
    with pytest.raises(ConfigError) as caught:
        build_registry()
    assert str(caught.value).split("\n") == [
        "'same_name' is registered twice",
        "    by osmotic-one and osmotic-two",
        "    uninstall one, or name the plugins: OSMOTIC_PLUGINS=...",
    ]
    assert "same_name" in build_registry(names=["one"]).components


def test_a_misspelt_hook_says_why_it_is_an_error(install: Any) -> None:
    install("odd", COMPONENT.format(head="", name="odd_one").replace("def register_components", "def register_component"))
    with pytest.raises(
        ConfigError, match=r"unknown hook 'register_component'\n.*would be missing[\s\S]*did you mean 'register_components'"
    ):
        build_registry()

# SPDX-License-Identifier: Apache-2.0
"""What sites say of themselves, compared with this machine: what stops a run, what is only said."""

import datetime
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime.nvflare.server.greeting import compare, days_left, plugins_of
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import load, load_text

NOW = 1_800_000_000.0


def facts(**changed: Any) -> dict[str, Any]:
    until = datetime.datetime.fromtimestamp(NOW + 300 * 86400, datetime.UTC).isoformat()
    return {
        "osmotic": "0.1.0", "code": "c0de", "rules": 1, "python": "3.11.7", "nvflare": "2.9.0", "clock": NOW,
        "plugins": {"toys": {"version": "1", "code": "aa"}, "garden": {"version": "2", "code": "bb"}},
        "certificate": {"until": until}, **changed,
    }  # fmt: skip


@pytest.fixture(scope="module")
def graph(toys: Registry) -> Graph:
    name = next(name for name, one in toys.components.items() if one.distribution != "osmotic")
    found = Graph(load("fedcot"), toys)
    spec = found.nodes["records"].spec.model_copy(update={"component": name})
    found.nodes["records"] = found.nodes["records"].__class__(**{**vars(found.nodes["records"]), "spec": spec})
    return found


def test_equal_machines_have_nothing_to_say(graph: Graph) -> None:
    found = compare(graph, facts(), {"north": facts(), "south": facts(python="3.11.9", clock=NOW + 30)}, NOW)
    assert (found.refused, found.said) == ({}, {})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"osmotic": "0.2.0"}, "north has osmotic 0.2.0 (rules 1), this machine 0.1.0 (rules 1)"),
        ({"rules": 2}, "north has osmotic 0.1.0 (rules 2)"),
        ({"osmotic": None}, "north has osmotic None"),
        ({"code": "beef"}, "north has other code of osmotic 0.1.0 than this machine"),
        ({"osmotic": "\x1b[31m" + "9" * 99}, "north has osmotic ?[31m999"),
    ],
)
def test_other_versions_are_refused(changed: dict[str, Any], said: str, graph: Graph) -> None:
    found = compare(graph, facts(), {"north": facts(**changed), "south": facts()}, NOW)
    assert list(found.refused) == ["north"] and said in str(found.refused["north"][0])


def test_a_plugin_counts_where_the_pipeline_uses_it(graph: Graph, toys: Registry) -> None:
    (used,) = plugins_of(graph)
    mine = facts(plugins={used: {"version": "1", "code": "aa"}, "garden": {"version": "2", "code": "bb"}})
    cases = [
        ({used: {"version": "2", "code": "aa"}}, f"north has the plugin {used} 2, this machine 1"),
        ({used: {"version": "1", "code": "zz"}}, f"north has other code of the plugin {used} 1 than this machine"),
        ({}, f"north has not loaded the plugin {used} 1"),
        ("nonsense", f"north has not loaded the plugin {used} 1"),
    ]
    for plugins, said in cases:
        found = compare(graph, mine, {"north": facts(plugins=plugins)}, NOW)
        assert [p.what for p in found.refused["north"]] == [said]
    other = {used: {"version": "1", "code": "aa"}, "weeds": {"version": "9", "code": "?"}}
    found = compare(graph, mine, {"north": facts(plugins=other)}, NOW)
    assert not found.refused and [p.what for p in found.said["north"]] == [
        "plugin garden: north has none, this machine 2; this pipeline does not use it",
        "plugin weeds: north has 9, this machine none; this pipeline does not use it",
    ]


def test_mechanisms_and_models_of_plugins_count(toys: Registry) -> None:
    plain = Graph(load("fedcot"), toys)
    assert plugins_of(plain) == set()
    mechanism = next((n for n, one in toys.mechanisms.items() if one.distribution != "osmotic"), None)
    if mechanism is not None:
        text = plain.loaded.text.replace("name: list-rr", f"name: {mechanism}")
        assert plugins_of(Graph(load_text(text, "x.yaml"), toys))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": "3.12.1"}, "north has Python 3.12.1, this machine 3.11.7: hashes may differ"),
        ({"clock": NOW + 3600}, "the clock of north is 1.0 h ahead"),
        ({"clock": NOW - 300}, "the clock of north is 5 min behind"),
        ({"certificate": {"until": "2027-01-25T00:00:00+00:00"}}, "the certificate of north is valid for 10 more days"),
    ],
)
def test_what_is_only_said(changed: dict[str, Any], said: str, graph: Graph) -> None:
    found = compare(graph, facts(), {"north": facts(**changed)}, NOW)
    assert not found.refused and [p.what for p in found.said["north"]] == [said]


@pytest.mark.parametrize("odd", [None, 7, {"until": 7}, {"until": "soon"}, {}])
def test_what_is_no_date_is_no_end(odd: Any) -> None:
    assert days_left({"certificate": odd}, NOW) is None

# SPDX-License-Identifier: Apache-2.0
"""From a pipeline to instances and edges; every mistake with its place."""

from collections.abc import Callable
from typing import Any

import pytest

from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Edge, Graph
from osmotic.schemas.errors import ConfigError

Build = Callable[..., Graph]


def senders(graph: Graph, identity: str, port: str) -> list[str]:
    value = graph.instances[identity].inputs[port]
    return [value.producer] if isinstance(value, Edge) else [e.producer for e in value]


def problem(build: Build, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        graph = build(text)
        Configs(graph)
    return str(caught.value)


# ---- edges ----


def test_edges_at_one_role_stay_at_the_party(graph: Build) -> None:
    made = graph("tasks: {a: {component: make, at: clients}, b: {component: join, at: clients, inputs: {a: a}}}")
    assert list(made.instances) == ["a@north", "a@south", "b@north", "b@south"]
    assert senders(made, "b@south", "a") == ["a@south"] and not list(made.crossings())
    assert "b" not in made.instances["b@south"].inputs


def test_one_party_sends_to_all_and_all_are_gathered(graph: Build) -> None:
    made = graph(
        """
tasks:
  start: {component: make, at: server}
  local: {component: join, at: clients, inputs: {a: start}}
  all: {component: gather, at: server, inputs: {parts: local}}
"""
    )
    assert senders(made, "local@north", "a") == senders(made, "local@south", "a") == ["start@hub"]
    assert senders(made, "all@hub", "parts") == ["local@north", "local@south"]
    assert [(e.sender, e.receiver) for _, e in made.crossings()] == [
        ("hub", "north"), ("hub", "south"), ("north", "hub"), ("south", "hub"),
    ]  # fmt: skip
    assert [i.id for i, _ in made.consumers["start@hub"]] == ["local@north", "local@south"]
    assert made.ancestors(["local@north"]) == {"local@north", "start@hub"}
    assert [i.id for i in made.at("north")] == ["local@north"]


def test_each_party_runs_once_a_sender_and_scatters_back(graph: Build) -> None:
    made = graph(
        """
tasks:
  local: {component: make, at: clients}
  answer: {component: join, at: server, each: party, inputs: {a: local}}
  again: {component: join, at: server, each: party, inputs: {a: answer}}
  table: {component: gather, at: server, inputs: {parts: answer}}
  back: {component: join, at: clients, inputs: {a: answer, b: again}}
"""
    )
    assert senders(made, "answer[for=north]@hub", "a") == ["local@north"]
    assert senders(made, "again[for=south]@hub", "a") == ["answer[for=south]@hub"]
    assert senders(made, "table@hub", "parts") == ["answer[for=north]@hub", "answer[for=south]@hub"]
    assert senders(made, "back@north", "a") == ["answer[for=north]@hub"]
    assert made.instances["answer[for=north]@hub"].each == "north"


def test_each_party_takes_what_a_single_party_elsewhere_sends_to_all(graph: Build) -> None:
    made = graph(
        """
osmotic: 1
name: toy
parties: {server: hub, library: shelf, judge: court, clients: [north, south]}
tasks:
  book: {component: make, at: library}
  local: {component: make, at: clients}
  answer: {component: join, at: server, each: party, inputs: {a: book, b: local}}
  judged: {component: join, at: judge, each: party, inputs: {a: answer}}
"""
    )
    assert senders(made, "answer[for=north]@hub", "a") == ["book@shelf"]
    assert senders(made, "answer[for=north]@hub", "b") == ["local@north"]
    assert senders(made, "judged[for=south]@court", "a") == ["answer[for=south]@hub"]


def test_a_role_that_nothing_was_made_for_gets_no_part(graph: Build) -> None:
    text = problem(
        graph,
        """
osmotic: 1
name: toy
parties: {server: hub, judge: court, clients: [north, south]}
tasks:
  local: {component: make, at: clients}
  answer: {component: join, at: server, each: party, inputs: {a: local}}
  judged: {component: gather, at: judge, inputs: {parts: answer}}
""",
    )
    assert "toy.yaml:8:" in text and "answer.document has no part for court" in text


def test_ports_by_name_and_first_port_by_default(graph: Build) -> None:
    made = graph("tasks: {a: {component: make, at: server}, b: {component: join, at: server, inputs: {a: a, b: a.other}}}")
    inputs = made.instances["b@hub"].inputs
    assert [inputs[p].port for p in ("a", "b")] == ["document", "other"]  # type: ignore[union-attr]


# ---- rounds ----

LOOP = """
tasks:
  start: {component: make, at: server}
  loop:
    repeat: {times: 3, carry: {global: {from: average, start: START}}}
    tasks:
      local: {component: train, at: clients, inputs: {init: carry.global}}
      average: {component: average, at: server, inputs: {models: local}}
  after: {component: join, at: clients, inputs: {a: loop.average, b: loop.average.model}}
"""


def test_a_repeat_carries_into_the_next_round_and_gives_its_last(graph: Build) -> None:
    made = graph(LOOP.replace("START", "start"))
    assert senders(made, "loop.local[round=1]@north", "init") == ["start@hub"]
    assert senders(made, "loop.local[round=2]@north", "init") == ["loop.average[round=1]@hub"]
    assert senders(made, "loop.average[round=3]@hub", "models") == ["loop.local[round=3]@north", "loop.local[round=3]@south"]
    assert senders(made, "after@south", "a") == senders(made, "after@south", "b") == ["loop.average[round=3]@hub"]
    assert len(made.instances) == 1 + 3 * 3 + 2
    order = list(made.instances)
    assert all(order.index(e.producer) < order.index(i.id) for i in made.instances.values() for e in i.edges())


def test_without_a_start_the_first_round_gets_nothing(graph: Build) -> None:
    made = graph(LOOP.replace(", start: START", ""))
    assert "init" not in made.instances["loop.local[round=1]@north"].inputs
    assert senders(made, "loop.local[round=2]@south", "init") == ["loop.average[round=1]@hub"]


def test_the_order_inside_a_repeat_is_that_of_its_inputs(graph: Build) -> None:
    made = graph(
        """
tasks:
  loop:
    repeat: {times: 2}
    tasks:
      average: {component: average, at: server, inputs: {models: local}}
      local: {component: train, at: clients}
"""
    )
    assert [i.node for i in made.instances.values()][:3] == ["loop.local", "loop.local", "loop.average"]


# ---- axes ----


def test_axes_are_inherited_and_cells_match(graph: Build) -> None:
    made = graph(
        """
matrix: {seed: [1, 2], arm: [x, y]}
tasks:
  plain: {component: make, at: server}
  seeded: {component: make, at: server, config: {value: "${matrix.seed}"}}
  armed: {component: join, at: server, matrix: [arm], inputs: {a: seeded, b: plain}}
"""
    )
    assert [made.nodes[n].axes for n in ("plain", "seeded", "armed")] == [(), ("seed",), ("seed", "arm")]
    assert len(made.instances) == 1 + 2 + 4
    assert senders(made, "armed[seed=2,arm=x]@hub", "a") == ["seeded[seed=2]@hub"]
    assert senders(made, "armed[seed=2,arm=x]@hub", "b") == ["plain@hub"]
    configs = Configs(made)
    assert [configs.of(made.instances[f"seeded[seed={s}]@hub"]).value for s in (1, 2)] == [1, 2]


VARIED = """
text: {hello: "a long text"}
matrix: {size: [1, 2], arm: [base, less, none, other, flag]}
tasks:
  one: {component: make, at: server, config: {value: one}}
  two: {component: make, at: server, config: {value: "${text.hello}"}}
  both:
    component: join
    at: server
    inputs: {a: one, b: two}
    vary: {arm: {less: {inputs: {b: null}}, none: {skip: true}, other: {inputs: {a: two.other}}}}
  made:
    component: make
    at: server
    config: {value: {deep: {x: 1, y: 2}}}
    vary:
      arm: {other: {config: {value: {deep: {y: 3}}, size: "${matrix.size}"}}, flag: {config: {value: "${text.hello}"}}}
  after: {component: join, at: server, inputs: {a: both}}
"""


def test_patches_change_inputs_configuration_and_skip(graph: Build) -> None:
    made = graph(VARIED)
    assert senders(made, "both[arm=base]@hub", "b") == ["two@hub"]
    assert "b" not in made.instances["both[arm=less]@hub"].inputs
    assert made.instances["both[arm=other]@hub"].inputs["a"].port == "other"  # type: ignore[union-attr]
    assert not any("arm=none" in i for i in made.instances if i.startswith(("both", "after")))
    configs = Configs(made)

    def value(arm: str, size: int) -> Any:
        made_config = configs.of(made.instances[f"made[size={size},arm={arm}]@hub"])
        return made_config.value, made_config.size

    assert value("base", 2) == ({"deep": {"x": 1, "y": 2}}, 1)
    assert value("other", 2) == ({"deep": {"x": 1, "y": 3}}, 2)
    assert value("flag", 1) == ("a long text", 1)
    assert configs.of(made.instances["two@hub"]).value == "a long text"


def test_an_axis_named_in_a_patch_only_is_spanned_too(graph: Build) -> None:
    assert graph(VARIED).nodes["made"].axes == ("size", "arm")


def test_truth_values_are_axis_values(graph: Build) -> None:
    made = graph(
        """
matrix: {deep: [true, false]}
tasks: {a: {component: make, at: server, vary: {deep: {"true": {config: {value: 1}}}}}}
"""
    )
    assert list(made.instances) == ["a[deep=true]@hub", "a[deep=false]@hub"]


def test_equal_texts_give_equal_graphs(graph: Build) -> None:
    first, second = graph(VARIED), graph(VARIED)
    assert first.instances == second.instances
    assert first.instances["one@hub"].id == "one@hub"


def test_set_reaches_the_graph(graph: Build) -> None:
    assert (
        len(graph(LOOP.replace("START", "start"), "tasks.loop.repeat.times=5", "parties.clients=4").instances) == 1 + 5 * 5 + 4
    )


SWEPT = """
matrix: {way: [plain, deep], step: [1, 2]}
tasks:
  a:
    component: make
    at: server
    config: {value: {name: "${matrix.way}", step: "${matrix.step}", k: 3}}
    vary:
      step: {2: {config: {value: {k: 5, last: step}}}}
      way: {deep: {config: {value: {k: 4}}}}
"""


def test_two_axes_patch_one_configuration_in_the_order_of_the_matrix(graph: Callable[..., Graph]) -> None:
    made = graph(SWEPT)
    found = [made.config_of(made.nodes["a"], i.cell)["value"] for i in made.instances.values()]
    assert found == [
        {"name": "plain", "step": 1, "k": 3},
        {"name": "plain", "step": 2, "k": 5, "last": "step"},
        {"name": "deep", "step": 1, "k": 4},
        {"name": "deep", "step": 2, "k": 5, "last": "step"},
    ]


def test_set_may_take_away_a_value_that_has_a_patch(graph: Callable[..., Graph]) -> None:
    assert len(graph(SWEPT, "matrix.way=[plain]").instances) == 2
    with pytest.raises(ConfigError, match="the axis 'way' has no value 'deep'"):
        graph(SWEPT.replace("[plain, deep]", "[plain, deeper]"))

# SPDX-License-Identifier: Apache-2.0
"""From a pipeline to instances and edges; every mistake with its place."""

from collections.abc import Callable
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime.checks import Configs
from osmotic.runtime.graph import Edge, Graph
from osmotic.runtime.load import load_text
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


# ---- mistakes: (what is in the file, where the message points, what it says) ----

MISTAKES = [
    (
        "tasks: {a: {component: mak, at: server}}",
        "toy.yaml:4:13 tasks.a.component:",
        "unknown component 'mak'\n    did you mean 'mask' or 'make'?",
    ),
    ("tasks: {a: {component: make, at: servr}}", "tasks.a.at:", "unknown role 'servr'\n    did you mean 'server'?"),
    ("tasks: {a: {component: join, at: server, inputs: {a: b}}}", "tasks.a.inputs.a:", "unknown task 'b'"),
    (
        "tasks: {made: {component: make, at: server}, b: {component: join, at: server, inputs: {a: mode}}}",
        "tasks.b.inputs.a:",
        "did you mean 'made'?",
    ),
    (
        "tasks: {a: {component: make, at: server}, b: {component: join, at: server, inputs: {a: a.documnt}}}",
        "tasks.b.inputs.a:",
        "the task 'a' has no output 'documnt'\n    did you mean 'document'?",
    ),
    (
        "tasks: {a: {component: make, at: server}, b: {component: gather, at: server, inputs: {part: a}}}",
        "tasks.b.inputs.part:",
        "gather has no input 'part'\n    did you mean 'parts'?",
    ),
    ("tasks: {b: {component: join, at: server}}", "tasks.b.inputs:", "the input 'a' of join is not connected"),
    ("tasks: {a: {component: make, at: server, matrix: [seed]}}", "tasks.a.matrix.0:", "unknown axis 'seed'"),
    (
        "matrix: {seed: [1]}\ntasks: {a: {component: make, at: server, vary: {sed: {x: {skip: true}}}}}",
        "tasks.a.vary.sed:",
        "unknown axis 'sed'\n    did you mean 'seed'?",
    ),
    (
        "matrix: {arm: [one]}\ntasks: {a: {component: make, at: server, vary: {arm: {on: {skip: true}}}}}",
        "tasks.a.vary.arm.on:",
        "the axis 'arm' has no value 'on'\n    did you mean 'one'?",
    ),
    ("matrix: {for: [1]}\ntasks: {a: {component: make, at: server}}", "matrix.for:", "cannot be called 'for'"),
    ("matrix: {arm: [x, 'a->b']}\ntasks: {a: {component: make, at: server}}", "matrix.arm.1:", "the value 'a->b' cannot be"),
    ("matrix: {arm: [1, '1']}\ntasks: {a: {component: make, at: server}}", "matrix.arm:", "the value '1' stands twice"),
    (
        "text: {hello: x}\ntasks: {a: {component: make, at: server, config: {value: [1, '${text.hallo}']}}}",
        "tasks.a.config.value.1:",
        "unknown text 'hallo'\n    did you mean 'hello'?",
    ),
    (
        "matrix: {seed: [1]}\ntasks: {a: {component: make, at: server, config: {value: 'x ${matrix.seed}'}}}",
        "tasks.a.config.value:",
        "must be the whole value",
    ),
    (
        "tasks: {a: {component: make, at: server, config: {value: '${env.home}'}}}",
        "tasks.a.config.value:",
        "there are ${matrix.AXIS} and ${text.NAME}",
    ),
    (
        "tasks: {a: {component: join, at: server, inputs: {a: b}}, b: {component: join, at: server, inputs: {a: a}}}",
        "tasks.b.inputs.a:",
        "the tasks go round in a circle: a -> b -> a\n    use 'repeat' with 'carry'",
    ),
    ("tasks: {a: {component: join, at: server, inputs: {a: a}}}", "tasks.a.inputs.a:", "circle: a -> a"),
    (
        LOOP.replace("START", "start").replace("carry.global", "carry.globl"),
        "tasks.loop.tasks.local.inputs.init:",
        "did you mean 'global'?",
    ),
    (LOOP.replace("START", "nothing"), "tasks.loop.repeat.carry.global.start:", "unknown task 'nothing'"),
    (LOOP.replace("START", "local"), "tasks.loop.repeat.carry.global.start:", "must come from before the repeat"),
    (LOOP.replace("START", "carry.global"), "tasks.loop.repeat.carry.global.start:", "by the inputs of a repeat's tasks only"),
    (
        LOOP.replace("from: average, start: START", "from: start"),
        "tasks.loop.repeat.carry.global.from:",
        "comes from a task inside the repeat",
    ),
    (LOOP.replace("START", "start").replace("a: loop.average", "a: loop"), "tasks.after.inputs.a:", "'loop' is a repeat"),
    (
        LOOP.replace("START", "start").replace("a: loop.average", "a: loop.averag"),
        "tasks.after.inputs.a:",
        "has no task 'averag'\n    did you mean 'average'?",
    ),
    (
        LOOP.replace("START", "start").replace("a: loop.average", "a: carry.global"),
        "tasks.after.inputs.a:",
        "outside: LOOP.TASK",
    ),
    (
        """
tasks:
  loop:
    repeat: {times: 2, carry: {x: {from: a}}}
    tasks: {a: {component: join, at: server, inputs: {a: carry.x}}}
""",
        "tasks.loop.tasks.a.inputs.a:",
        "in the first round nothing is carried\n    give the carried value a 'start'",
    ),
    (
        """
tasks:
  loop:
    repeat: {times: 2}
    tasks: {a: {component: make, at: server}, c: {component: join, at: server, inputs: {a: between}}}
  between: {component: join, at: server, inputs: {a: loop.a}}
""",
        "tasks.loop.tasks.a:",
        "need each other: between, loop",
    ),
    (
        "tasks: {r: {component: load, at: clients}, b: {component: join, at: clients, inputs: {a: r}}}",
        "tasks.b.inputs.a:",
        "the input 'a' takes document, but r.records gives records",
    ),
    (
        "tasks: {a: {component: make, at: clients}, b: {component: join, at: server, inputs: {a: a}}}",
        "tasks.b.inputs.a:",
        "takes one artifact, but 2 parties send one\n    'each: party' runs the task once per sender",
    ),
    (
        "tasks: {a: {component: make, at: server}, b: {component: join, at: clients, each: party, inputs: {a: a}}}",
        "tasks.b.each:",
        "for a role with a single party",
    ),
    (
        "tasks: {a: {component: make, at: server}, b: {component: join, at: server, each: party, inputs: {a: a}}}",
        "tasks.b:",
        "needs an input that comes from several parties",
    ),
    (
        "matrix: {arm: [x]}\ntasks: {a: {component: make, at: server, vary: {arm: {x: {skip: true}}}}}",
        "tasks.a:",
        "every cell of this task is skipped",
    ),
    (
        "matrix: {arm: [x]}\ntasks: {a: {component: make, at: server, config: {sise: 2}}}",
        "tasks.a.config.sise:",
        "did you mean 'size'?",
    ),
    (
        "matrix: {arm: [x, y]}\ntasks: {a: {component: make, at: server, vary: {arm: {y: {config: {size: many}}}}}}",
        "toy.yaml:5:68 tasks.a.vary.arm.y.config.size:",
        "integer",
    ),
    (
        "models: {m: {type: transformers, at: nowhere, config: {pat: x}}}\ntasks: {a: {component: make, at: server}}",
        "models.m.at:",
        "unknown role 'nowhere'",
    ),
    (
        "models: {m: {type: magic, at: server}}\ntasks: {a: {component: make, at: server}}",
        "models.m.type:",
        "unknown model 'magic'",
    ),
    ("tasks: {a: {component: make, at: server}}\nreport: {table: b}", "report.table:", "unknown task 'b'"),
    ("tasks: {a: {component: make, at: server}}\nreport: {table: a, rows: arm}", "report.rows:", "unknown axis 'arm'"),
    (
        "matrix: {arm: [x]}\ntasks: {a: {component: make, at: server, matrix: [arm]}}\nreport: {table: a, apart: [z]}",
        "report.apart.0:",
        "the axis 'arm' has no value 'z'",
    ),
    (
        "tasks: {a: {component: load, at: clients}}\nreport: {samples: {some: a}}",
        "report.samples.some:",
        "write it as task.port\n    a.records",
    ),
    (
        "tasks: {a: {component: load, at: clients}}\nreport: {samples: {some: {from: a.records, where: {arms: x}}}}",
        "report.samples.some.where.arms:",
        "unknown axis 'arms'",
    ),
    (
        "matrix: {arm: [x]}\ntasks: {a: {component: load, at: clients, matrix: [arm]}}\n"
        "report: {samples: {some: {from: a.records, where: {arm: z}}}}",
        "report.samples.some.where.arm:",
        "the axis 'arm' has no value 'z'",
    ),
]


@pytest.mark.parametrize(("text", "where", "what"), MISTAKES, ids=[f"{m[1]} {m[2].split(chr(10))[0]}" for m in MISTAKES])
def test_a_mistake_is_said_with_its_place(graph: Build, text: str, where: str, what: str) -> None:
    said = problem(graph, text)
    assert where in said and what in said
    assert said.count("\n") <= 5 and "toy.yaml:" in said


def test_a_party_has_one_role(graph: Build) -> None:
    text = problem(graph, "osmotic: 1\nname: t\nparties: {a: hub, b: [hub]}\ntasks: {x: {component: make, at: a}}")
    assert "toy.yaml:3:19 parties.b: the party 'hub' has two roles: 'a' and 'b'" in text


UNTIL = """
tasks:
  loop:
    repeat: {times: 2, until: {metric: METRIC, at_least: 1}}
    tasks: {a: {component: make, at: AT}, m: {component: measure, at: AT, inputs: {document: a}}}
  before: {component: make, at: server}
"""


def test_until_is_read(graph: Build) -> None:
    assert len(graph(UNTIL.replace("METRIC", "m.metrics:value").replace("AT", "server")).instances) == 5
    assert graph(UNTIL.replace("METRIC", "m:value").replace("AT", "server")).nodes["loop.m"].repeat.until.at_least == 1


@pytest.mark.parametrize(
    ("metric", "at", "what"),
    [
        ("m.metrics", "server", "write it as task.port:name"),
        ("m.note:value", "server", "gives document, not metrics"),
        ("before:value", "server", "must come from a task inside the repeat"),
        ("n:value", "server", "unknown task 'n'"),
        ("m:value", "clients", "at a role with a single party"),
    ],
)
def test_until_looks_at_one_metric_inside(graph: Build, metric: str, at: str, what: str) -> None:
    said = problem(graph, UNTIL.replace("METRIC", f"'{metric}'").replace("AT", at))
    assert "tasks.loop.repeat.until.metric:" in said and what in said


def test_problems_come_together(graph: Build) -> None:
    text = "tasks: {a: {component: mak, at: servr}, b: {component: make, at: server, matrix: [q]}}"
    assert len(problem(graph, text).split("toy.yaml:")) == 4


def test_a_plugin_that_failed_to_load_is_quoted(pieces: Registry) -> None:
    broken = Registry(pieces.components, pieces.mechanisms, pieces.models, failures={"garden": "ImportError: no trowel"})
    text = "osmotic: 1\nname: toy\nparties: {server: hub}\ntasks: {a: {component: dig, at: server}}"
    with pytest.raises(ConfigError, match=r"plugin 'garden' could not be loaded: ImportError: no trowel"):
        Graph(load_text(text, "toy.yaml"), broken)


ROUNDS = """
tasks:
  start: {component: make, at: server}
  r:
    repeat: {times: 101, carry: {x: {from: a}}}
    tasks: {a: {component: join, at: server, inputs: {a: start, b: carry.x}}}
"""


@pytest.mark.parametrize(
    "text",
    [
        f"matrix: {{n: {list(range(101))}}}\ntasks: {{a: {{component: make, at: server, matrix: [n]}}}}",
        "parties: {server: hub, clients: 101}\ntasks: {a: {component: make, at: clients}}",
        ROUNDS,
    ],
    ids=["axes", "parties", "rounds"],
)
def test_a_plan_with_too_many_runs_is_refused(graph: Build, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osmotic.runtime.unrolling.LIMIT", 100)
    assert "the plan has more than 100 task runs" in problem(graph, text)


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

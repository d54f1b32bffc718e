# SPDX-License-Identifier: Apache-2.0
"""Mistakes in a pipeline's graph: each with its place, and what would be right."""

from collections.abc import Callable

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime.plan.checks import Configs
from osmotic.runtime.plan.graph import Graph
from osmotic.runtime.plan.load import load_text
from osmotic.schemas.errors import ConfigError

Build = Callable[..., Graph]
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


def problem(build: Build, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        graph = build(text)
        Configs(graph)
    return str(caught.value)


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
    (
        "matrix: {arm: [x]}\ntasks: {a: {component: load, at: clients}}\n"
        "report: {samples: {some: {from: a.records, where: {arm: x}}}}",
        "report.samples.some.where.arm:",
        "'a' does not span 'arm'\n    its axes: none",
    ),
    (
        "tasks: {a: {component: load, at: clients}}\nreport: {samples: {some: {from: a.records, where: {round: 1}}}}",
        "report.samples.some.where.round:",
        "'a' does not span 'round'",
    ),
    (
        "tasks: {r: {repeat: {times: 2}, tasks: {a: {component: load, at: clients}}}}\n"
        "report: {samples: {some: {from: r.a.records, where: {round: 3}}}}",
        "report.samples.some.where.round:",
        "there is no round 3: 'r' has 2",
    ),
    (
        "tasks: {a: {component: make, at: server}, m: {component: measure, at: server, inputs: {document: a}}}\n"
        "report: {table: m, metrics: {'n:value': Score}}",
        "report.metrics.n:value:",
        "the table has no task 'n'",
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
    monkeypatch.setattr("osmotic.runtime.plan.unrolling.LIMIT", 100)
    assert "the plan has more than 100 task runs" in problem(graph, text)

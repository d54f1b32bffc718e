# SPDX-License-Identifier: Apache-2.0
"""Plans of rounds in which some of the parties take part: who, what they take, what stands for those who do not."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from osmotic.runtime.plan.graph import Edge, Graph
from osmotic.schemas.errors import ConfigError

Build = Callable[..., Graph]

LOOP = """
parties: {server: hub, clients: [a, b, c, d, e]}
tasks:
  first: {component: make, at: clients, config: {value: 0}}
  start: {component: make, at: server, config: {value: 0}}
  loop:
    repeat:
      times: 6
      sample: {clients: 2}
      carry: {global: {from: average, start: start}, own: {from: local.model, start: first}, memory: {from: local.model}}
    tasks:
      local: {component: train, at: clients, inputs: {init: carry.own}}
      late: {component: train, at: clients, inputs: {init: carry.memory}}
      shared: {component: train, at: clients, inputs: {init: carry.global}}
      average: {component: average, at: server, inputs: {models: local}}
      each: {component: measure, at: server, each: party, inputs: {document: local}}
      back: {component: join, at: clients, inputs: {a: each.note}}
  own: {component: measure, at: clients, inputs: {document: loop.local}}
  all: {component: average, at: server, inputs: {models: loop.local}}
  one_by_one: {component: measure, at: server, each: party, inputs: {document: loop.local}}
  of_each: {component: join, at: clients, inputs: {a: loop.each.note}}
"""


def chosen(graph: Graph, node: str = "loop.local", **cell: Any) -> dict[int, list[str]]:
    """Round -> parties that have an instance of a node."""
    found: dict[int, list[str]] = {}
    for one in graph.instances.values():
        if one.node == node and cell.items() <= dict(one.cell).items():
            found.setdefault(one.round or 0, []).append(one.party)
    return found


def took(graph: Graph, identity: str, port: str) -> list[str]:
    """Instances that an input comes from."""
    value = graph.instances[identity].inputs.get(port, ())
    return [edge.producer for edge in ((value,) if isinstance(value, Edge) else value)]


def last(rounds: dict[int, list[str]], party: str, before: int = 99) -> int | None:
    """The last round before one in which a party took part."""
    return max((r for r, parties in rounds.items() if r < before and party in parties), default=None)


def test_so_many_take_part_in_every_round_and_nobody_else_has_a_task(graph: Build) -> None:
    made = graph(LOOP)
    rounds = chosen(made)
    assert sorted(rounds) == [1, 2, 3, 4, 5, 6] and {len(parties) for parties in rounds.values()} == {2}
    assert len({tuple(parties) for parties in rounds.values()}) > 1
    for node in ("loop.late", "loop.shared", "loop.back"):
        assert chosen(made, node) == rounds
    listed = {one["round"]: one["parties"] for one in made.sample()}
    assert listed == {r: sorted(parties) for r, parties in rounds.items()}


def test_gathers_and_tasks_for_each_party_take_from_those_who_take_part(graph: Build) -> None:
    made = graph(LOOP)
    for round_, parties in chosen(made).items():
        gathered = took(made, f"loop.average[round={round_}]@hub", "models")
        assert gathered == [f"loop.local[round={round_}]@{party}" for party in sorted(parties)]
        keys = [one.each for one in made.instances.values() if (one.node, one.round) == ("loop.each", round_)]
        assert keys == sorted(parties)


def test_what_is_carried_is_of_the_last_round_in_which_the_party_took_part(graph: Build) -> None:
    made = graph(LOOP)
    rounds = chosen(made)
    for round_, parties in rounds.items():
        for party in parties:
            before = last(rounds, party, round_)
            own = f"loop.local[round={before}]@{party}" if before else f"first@{party}"
            assert took(made, f"loop.local[round={round_}]@{party}", "init") == [own]
            absent_at_first = [f"loop.local[round={before}]@{party}"] if before else []
            assert took(made, f"loop.late[round={round_}]@{party}", "init") == absent_at_first
            shared = f"loop.average[round={round_ - 1}]@hub" if round_ > 1 else "start@hub"
            assert took(made, f"loop.shared[round={round_}]@{party}", "init") == [shared]
    assert any((last(rounds, party, r) or r) < r - 1 for r, parties in rounds.items() for party in parties)


def test_after_the_repeat_everybody_has_its_own_last_round(graph: Build) -> None:
    made = graph(LOOP)
    rounds = chosen(made)
    ever = sorted({party for parties in rounds.values() for party in parties})
    lasts = [f"loop.local[round={last(rounds, party)}]@{party}" for party in ever]
    assert took(made, "all@hub", "models") == lasts
    assert [took(made, f"own@{party}", "document")[0] for party in ever] == lasts
    assert [took(made, f"one_by_one[for={party}]@hub", "document")[0] for party in ever] == lasts
    of_each = [took(made, f"of_each@{party}", "a")[0] for party in ever]
    assert of_each == [f"loop.each[round={last(rounds, party)},for={party}]@hub" for party in ever]


def test_who_never_took_part_has_nothing_and_no_task_that_needs_it(graph: Build) -> None:
    text = LOOP + "  if_any: {component: train, at: clients, inputs: {init: loop.local}}\n"
    text += "  after: {component: measure, at: clients, inputs: {document: own.note}}\n"
    made = graph(text, "tasks.loop.repeat.times=1")
    ever = chosen(made)[1]
    assert [i.party for i in made.instances.values() if i.node == "own"] == ever
    assert [i.party for i in made.instances.values() if i.node == "after"] == ever
    for party in "abcde":
        assert bool(took(made, f"if_any@{party}", "init")) == (party in ever)
    assert len(took(made, "all@hub", "models")) == 2


def test_the_choice_is_the_same_for_all_arms_and_follows_the_seeds(graph: Build) -> None:
    head = "matrix: {seed: [1, 2, 3], arm: [x, y]}\n"
    varied = head + LOOP.replace("inputs: {init: carry.own}}", "inputs: {init: carry.own}, matrix: [seed, arm]}")
    made = graph(varied)
    assert all(chosen(made, seed=seed, arm="x") == chosen(made, seed=seed, arm="y") for seed in (1, 2, 3))
    assert len({json.dumps(chosen(made, seed=seed, arm="x")) for seed in (1, 2, 3)}) == 3
    others = {r: sorted(set(p)) for r, p in chosen(made, "loop.shared", seed=2).items()}
    assert others == {r: sorted(p) for r, p in chosen(made, seed=2, arm="x").items()}
    assert {one["seed"] for one in made.sample()} == {1, 2, 3}
    arms = head + LOOP.replace("inputs: {init: carry.own}}", "inputs: {init: carry.own}, matrix: [arm]}")
    assert chosen(graph(arms), arm="y") == chosen(graph(LOOP))
    assert chosen(graph("seed: 5\n" + LOOP)) != chosen(graph(LOOP))


def test_the_choice_is_even_and_does_not_depend_on_the_order_of_the_parties(graph: Build) -> None:
    made = graph(LOOP, "tasks.loop.repeat.times=1000")
    counts = Counter(party for parties in chosen(made).values() for party in parties)
    # Binomial(1000, .4): standard deviation 15.5; a bound of 5 of them on 5 parties fails by chance once in 350,000 seeds
    assert sorted(counts) == list("abcde") and all(abs(n - 400) < 78 for n in counts.values())
    turned = graph(LOOP.replace("[a, b, c, d, e]", "[e, c, a, d, b]"))
    assert {r: sorted(p) for r, p in chosen(turned).items()} == {r: sorted(p) for r, p in chosen(graph(LOOP)).items()}


def test_one_of_them_is_no_gather(graph: Build) -> None:
    text = LOOP.replace("  own:", "      alone: {component: measure, at: server, inputs: {document: local}}\n  own:")
    made = graph(text, "tasks.loop.repeat.sample.clients=1")
    assert len([i for i in made.instances.values() if i.node == "loop.alone"]) == 6
    with pytest.raises(ConfigError, match="takes one artifact, but 2 parties send one"):
        graph(text)


def test_inside_a_round_those_outside_it_send_nothing(graph: Build) -> None:
    """What came before the repeat, too, is taken from those who take part: two gathers of a round have the same parties."""
    text = LOOP.replace("  own:", "      before: {component: gather, at: server, inputs: {parts: first}}\n"
                        "      past: {component: gather, at: server, inputs: {parts: carry.own}}\n  own:")  # fmt: skip
    made = graph(text)
    rounds = chosen(made)
    for round_, parties in rounds.items():
        assert took(made, f"loop.before[round={round_}]@hub", "parts") == [f"first@{p}" for p in sorted(parties)]
        lasts = [(p, last(rounds, p, round_)) for p in sorted(parties)]
        expected = [f"loop.local[round={r}]@{p}" if r else f"first@{p}" for p, r in lasts]
        assert took(made, f"loop.past[round={round_}]@hub", "parts") == expected


@pytest.mark.parametrize(
    ("sample", "path", "what"),
    [
        ("{clients: 6}", "tasks.loop.repeat.sample.clients", "6 parties are to take part in a round, but 'clients' has 5"),
        ("{client: 2}", "tasks.loop.repeat.sample.client", "unknown role 'client'"),
        ("{others: 1}", "tasks.loop.repeat.sample.others", "no task of this repeat is at 'others'"),
        ("{clients: 0}", "tasks.loop.repeat.sample.clients", "greater than or equal to 1"),
    ],
)
def test_a_sample_that_cannot_be_is_refused_by_its_line(graph: Build, sample: str, path: str, what: str) -> None:
    text = LOOP.replace("sample: {clients: 2}", f"sample: {sample}").replace("parties: {", "parties: {others: x, ")
    with pytest.raises(ConfigError) as caught:
        graph(text)
    said = str(caught.value)
    assert path in said and what in said and "toy.yaml:" in said


def test_a_task_that_runs_nowhere_is_told(graph: Build) -> None:
    text = """
parties: {server: hub, clients: [a, b], others: [x, y]}
tasks:
  loop:
    repeat: {times: 1, sample: {clients: 1}}
    tasks: {local: {component: make, at: clients, config: {value: 1}}}
  two:
    repeat: {times: 1, sample: {clients: 1}, carry: {own: {from: local.document, start: loop.local}}}
    tasks: {local: {component: join, at: clients, inputs: {a: carry.own}}}
"""
    seeds = [seed for seed in range(12) if len({r["parties"][0] for r in graph(f"seed: {seed}\n{text}".replace(
        ", carry: {own: {from: local.document, start: loop.local}}}", "}").replace(
        "{component: join, at: clients, inputs: {a: carry.own}}", "{component: make, at: clients, config: {value: 1}}"
    )).sample()}) == 2]  # fmt: skip
    with pytest.raises(ConfigError, match=r"tasks\.two\.tasks\.local: this task runs nowhere"):
        graph(f"seed: {seeds[0]}\n{text}")


def test_where_what_is_carried_is_skipped_the_start_stands_in_every_round(graph: Build) -> None:
    """An arm without training: its model is judged in every round like the others'."""
    made = graph("""
matrix: {arm: [tuned, manual]}
tasks:
  prompt: {component: make, at: server, config: {value: 0}}
  loop:
    repeat: {times: 3, carry: {prompt: {from: tuned.model, start: prompt}, none: {from: tuned.model}}}
    tasks:
      judged: {component: measure, at: server, inputs: {document: carry.prompt}}
      aside: {component: train, at: server, inputs: {init: carry.none}}
      tuned: {component: train, at: server, inputs: {init: carry.prompt}, vary: {arm: {manual: {skip: true}}}}
""")
    for round_ in (1, 2, 3):
        before = f"loop.tuned[round={round_ - 1},arm=tuned]@hub" if round_ > 1 else "prompt@hub"
        assert took(made, f"loop.judged[round={round_},arm=tuned]@hub", "document") == [before]
        assert took(made, f"loop.judged[round={round_},arm=manual]@hub", "document") == ["prompt@hub"]
        assert took(made, f"loop.aside[round={round_},arm=manual]@hub", "init") == []


def test_a_hundred_parties_and_fifty_rounds_plan_in_seconds(graph: Build) -> None:
    begin = time.perf_counter()
    made = graph(LOOP, "parties.clients=100", "tasks.loop.repeat.times=50")
    assert time.perf_counter() - begin < 3
    assert len(chosen(made)) == 50 and all(len(parties) == 2 for parties in chosen(made).values())

# SPDX-License-Identifier: Apache-2.0
"""Labels at plan time: what may cross, what is refused and where, what a waiver does."""

from collections.abc import Callable
from typing import Any

from osmotic.runtime.plan.flow import Flow, infer
from osmotic.runtime.plan.graph import Graph
from osmotic.schemas.policy import SitePolicy

Build = Callable[..., Graph]
SCHEMA = {"fields": {"colour": {"domain": ["red", "green"]}}}
WAIVED = '{from: local, waive: "a reason of some length"}'
AVERAGING = """
tasks:
  records: {component: load, at: clients}
  local: {component: train, at: clients, inputs: {records: records}}
  average: {component: average, at: server, inputs: {models: MODELS}}
  back: {component: join, at: clients, inputs: {a: average}}
"""


def policy(waivers: Any = (), **binding: str) -> SitePolicy:
    data = {"numbers": {"path": "x.jsonl", "schema": SCHEMA, **binding}}
    return SitePolicy.model_validate({"data": data, "waivers": list(waivers)})


def both(made: SitePolicy) -> dict[str, SitePolicy]:
    return {"hub": SitePolicy(), "north": made, "south": made}


def waiver(*observers: str, edge: str = "average.models") -> dict[str, Any]:
    return {"edge": edge, "observers": list(observers)}


def words(flow: Flow) -> dict[str, str]:
    return {f"{identity}.{port}": label.word for (identity, port), label in flow.labels.items()}


def test_private_data_does_not_cross_and_the_message_has_line_and_ways(graph: Build) -> None:
    flow = infer(graph(AVERAGING.replace("MODELS", "local")), both(policy()))
    assert len(flow.refusals) == 2  # one a party
    first = flow.refusals[0]
    assert first.what == "refused: private data of north (numbers) would cross: the plan asks for no waiver"
    assert first.where == "toy.yaml:8:54" and first.path == "tasks.average.inputs.models"
    assert first.why == "crossing north -> hub; whatever it says, it depends on all that went into it"
    assert "dp_sanitizer" in first.fix and "same role" in first.fix and "waive: REASON" in first.fix


def test_a_waiver_needs_the_plan_and_the_site_and_benchmark_data(graph: Build) -> None:
    made = graph(AVERAGING.replace("MODELS", WAIVED))
    unasked = graph(AVERAGING.replace("MODELS", "local"))
    granting = [waiver("hub", "north", "south")]
    assert not infer(made, both(policy(granting, purpose="benchmark"))).refusals
    assert infer(unasked, both(policy(granting, purpose="benchmark"))).refusals
    refused = infer(made, both(policy((), purpose="benchmark"))).refusals
    assert "the site's policy has no waiver for the edge 'average.models'" in refused[0].what
    refused = infer(made, both(policy(granting))).refusals
    assert "a waiver works on benchmark data only" in refused[0].what
    other = [waiver("hub", "north", "south", edge="back.a")]
    assert infer(made, both(policy(other, purpose="benchmark"))).refusals
    assert not infer(made, both(policy([waiver("hub", "north", "south", edge="*")], purpose="benchmark"))).refusals


def test_exposed_stays_exposed_and_observers_hold_when_it_is_passed_on(graph: Build) -> None:
    made = graph(AVERAGING.replace("MODELS", WAIVED))
    flow = infer(made, both(policy([waiver("hub", "north", "south")], purpose="benchmark")))
    said = words(flow)
    assert said["local@north.model"] == "private"
    assert said["average@hub.model"] == said["back@north.document"] == "exposed"
    assert flow.crossing[("average@hub", "local@north", "model")].word == "exposed"
    refused = infer(made, both(policy([waiver("hub")], purpose="benchmark"))).refusals
    assert {p.path for p in refused} == {"tasks.back.inputs.a"}
    assert "data of south, exposed by average.models, may be seen by hub only, not by north" in refused[0].what


def test_a_receiver_that_may_not_see_is_refused_at_once(graph: Build) -> None:
    made = graph(AVERAGING.replace("MODELS", WAIVED))
    refused = infer(made, both(policy([waiver("north", "south")], purpose="benchmark"))).refusals
    assert any("lets north, south see it, not hub" in p.what and p.path == "tasks.average.inputs.models" for p in refused)


def test_observers_are_parties_whatever_role_a_plan_gives_them(graph: Build) -> None:
    text = AVERAGING.replace("MODELS", WAIVED)
    granting = both(policy([waiver("hub", "north", "south")], purpose="benchmark"))
    forged = graph("osmotic: 1\nname: toy\nparties: {server: west, clients: [north, south]}\n" + text)
    refused = infer(forged, {**granting, "west": SitePolicy()}).refusals
    assert {p.path for p in refused} >= {"tasks.average.inputs.models"} and "not west" in refused[0].what
    roles = [waiver("server", "clients")]  # names of roles are nobody's names
    assert infer(graph(text), both(policy(roles, purpose="benchmark"))).refusals


def test_of_two_waivers_the_one_that_names_the_receiver_holds(graph: Build) -> None:
    made = graph(AVERAGING.replace("MODELS", WAIVED))
    two = [waiver("west"), waiver("hub", "north", "south", edge="*")]
    flow = infer(made, both(policy(two, purpose="benchmark")))
    assert not flow.refusals
    entry = flow.crossing[("average@hub", "local@north", "model")].of("exposed")[0]
    assert entry.observers == ("hub", "north", "south")


def test_the_owner_may_always_see_its_own(graph: Build) -> None:
    text = """
tasks:
  records: {component: load, at: clients}
  local: {component: train, at: clients, inputs: {records: records}}
  answer: {component: join, at: server, each: party, inputs: {a: {from: local, waive: "a reason of some length"}}}
  back: {component: join, at: clients, inputs: {a: answer}}
"""
    made = policy([waiver("hub", edge="answer.a")], purpose="benchmark")
    assert not infer(graph(text), both(made)).refusals


RELEASED = """
tasks:
  records: {component: load, at: clients}
  safe: {component: mask, at: clients, inputs: {records: records}, config: {mechanism: {name: x}, fields: [colour]}}
  answer: {component: pass, at: server, each: party, inputs: {records: safe}}
  kept: {component: pick, at: clients, inputs: {records: answer, own: records}}
  again: {component: gather, at: server, inputs: {parts: counted}}
  counted: {component: count, at: clients, inputs: {records: RECORDS}}
"""


def test_a_release_protects_and_reading_private_data_makes_it_private_again(graph: Build) -> None:
    flow = infer(graph(RELEASED.replace("RECORDS", "answer")), both(policy()))
    said = words(flow)
    assert not flow.refusals
    assert (said["records@north.records"], said["safe@north.masked"], said["safe@north.key"]) == (
        "private",
        "protected",
        "private",
    )
    assert said["answer[for=north]@hub.records"] == said["counted@north.document"] == said["again@hub.document"] == "protected"
    assert said["kept@north.records"] == "private"
    refs = [e.ref for e in flow.labels[("again@hub", "document")].of("release")]
    assert refs == ["plan:safe@north", "plan:safe@south"]


def test_what_a_filter_kept_does_not_cross(graph: Build) -> None:
    refused = infer(graph(RELEASED.replace("RECORDS", "kept")), both(policy())).refusals
    assert {p.path for p in refused} == {"tasks.again.inputs.parts"}


def test_the_key_of_a_release_does_not_cross(graph: Build) -> None:
    text = RELEASED.replace("RECORDS", "answer").replace("{records: safe}", "{records: safe.key}")
    assert {p.path for p in infer(graph(text), both(policy())).refusals} == {"tasks.answer.inputs.records"}


def test_public_data_crosses(graph: Build) -> None:
    flow = infer(graph(AVERAGING.replace("MODELS", "local")), both(policy(label="public")))
    assert not flow.refusals and set(words(flow).values()) == {"public"}


def test_a_site_sees_its_own_crossings_only(graph: Build) -> None:
    """A site does not know the others' policies: it takes their data for private and their waivers for granted."""
    made = graph(AVERAGING.replace("MODELS", WAIVED))
    mine = infer(made, {"north": policy([waiver("hub", "north", "south")], purpose="benchmark")})
    assert not mine.refusals and words(mine)["local@south.model"] == "private"
    assert [p.what for p in infer(made, {"north": policy()}).refusals] == [
        "refused: private data of north (numbers) would cross: a waiver works on benchmark data only; 'numbers' is private"
    ]


def test_raw_data_of_one_party_never_goes_on_from_another(graph: Build) -> None:
    """Even if a plan could bring it there, the second hop is refused."""
    from osmotic.runtime.plan.flow import cross
    from osmotic.runtime.plan.graph import Edge
    from osmotic.schemas.labels import raw

    made = graph(AVERAGING.replace("MODELS", WAIVED))
    edge = Edge("average@hub", "model", "hub", "south", "back.a", "a reason of some length")
    _, why = cross(tuple(made.role_of), edge, raw("north", "numbers"), both(policy([waiver("hub")], purpose="benchmark")))
    assert why == "raw data of north at hub"


def test_a_party_whose_policy_is_not_known_is_taken_to_have_private_data_and_checks_for_itself(graph: Build) -> None:
    many = graph(AVERAGING.replace("MODELS", "local"), "parties.clients=9")
    flow = infer(many, {})
    assert flow.refusals == []
    assert {label.word for (_, producer, _), label in flow.crossing.items() if producer.startswith("local")} == {"exposed"}
    own = infer(many, {"party-8": policy()})
    assert [refusal.what for refusal in own.refusals] == [
        "refused: private data of party-8 (numbers) would cross: the plan asks for no waiver"
    ]

# SPDX-License-Identifier: Apache-2.0
"""The secure sum as a protocol: exact sums, who drops out when, kills at every stage, and what a server that lies gets."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.runtime.secure import messages, shamir
from osmotic.runtime.secure.client import ClientSession
from osmotic.runtime.secure.keys import Identity, Pair
from osmotic.runtime.secure.masks import add_streams, derive
from osmotic.runtime.secure.plan import SumPlan
from osmotic.runtime.secure.server import ServerSession
from osmotic.schemas.errors import ConfigError, OsmoticError, ProtocolError, RefusedError

SESSION, SECRET = bytes(range(16)), bytes(32)
STAGES = ("keys", "shares", "masked", "confirmed")
Vector = dict[str, np.ndarray]


def plan_of(count: int, **changed: Any) -> SumPlan:
    names = tuple(f"c{i}" for i in range(count))
    given = {
        "session": SESSION,
        "names": names,
        "receiver": "hub",
        "shapes": {"a": (5, 3), "b": (7,)},
        "at_least": 2,
        "range": 4.0,
    }
    return SumPlan(**(given | changed))


def vectors_of(plan: SumPlan, seed: int = 0, size: float = 1.0) -> dict[str, Vector]:
    generator = np.random.default_rng(seed)
    return {n: {k: generator.uniform(-size, size, s) for k, s in plan.shapes.items()} for n in plan.names}


@dataclass
class Play:
    """A sum between honest parties; each stage can lose clients, and each client can be stored and read back after each."""

    plan: SumPlan
    vectors: Mapping[str, Vector]
    killed: bool = False
    identities: Mapping[str, Identity] = field(default_factory=dict)
    clients: dict[str, ClientSession] = field(default_factory=dict)
    sent: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server = ServerSession(self.plan, SECRET, self.identities.get(self.plan.receiver))
        self.clients = {name: ClientSession(self.plan, name, **self.trusted(name)) for name in self.plan.names}
        self.alive = list(self.plan.names)

    def trusted(self, name: str) -> dict[str, Any]:
        if not self.identities:
            return {}
        return {"identity": self.identities[name], "identities": {n: i.public for n, i in self.identities.items()}}

    def stage(self, stage: str, ask: Callable[[ClientSession], bytes], take: Callable[[str, bytes], None]) -> None:
        self.sent[stage] = {}
        for name in self.alive:
            self.sent[stage][name] = bytes(ask(self.clients[name]))
            if self.killed:
                stored = self.clients[name].to_bytes()
                self.clients[name] = ClientSession.from_bytes(self.plan, name, stored, **self.trusted(name))
                assert bytes(ask(self.clients[name])) == self.sent[stage][name]
            take(name, self.sent[stage][name])

    def until(self, last: str, lost: Mapping[str, Iterable[str]] | None = None) -> "Play":
        server, lost = self.server, lost or {}
        steps: list[tuple[str, Callable[[ClientSession], bytes], Callable[[str, bytes], None]]] = [
            ("keys", lambda c: c.advertise(), server.add_keys),
            ("shares", lambda c: c.share(server.keys(), server.open()), server.add_shares),
            ("masked", lambda c: bytes(c.mask(server.shares_for(c.me), self.vectors[c.me])), server.add_masked),
            ("confirmed", lambda c: c.confirm(server.survivors()), server.add_signature),
            ("done", lambda c: c.unmask(server.signatures()), server.add_unmask),
        ]
        for stage, ask, take in steps:
            self.stage(stage, ask, take)
            self.alive = [name for name in self.alive if name not in lost.get(stage, ())]
            if stage == last:
                break
        return self

    def sum(self) -> tuple[Vector, tuple[str, ...]]:
        return self.server.finish()


def expected(plan: SumPlan, vectors: Mapping[str, Vector], survivors: Iterable[str]) -> Vector:
    """The sum of what every client's vector is on the grid: what must come out exactly."""
    total = np.zeros(plan.size, dtype=np.int64)
    for name in survivors:
        total += plan.grid.encode(vectors[name], plan.shapes).view(np.int32)
    made, at = {}, 0
    for key, shape in plan.shapes.items():
        made[key] = (total[at : at + math.prod(shape)] * plan.step).reshape(shape)
        at += math.prod(shape)
    return made


def same(one: Vector, two: Vector) -> bool:
    return set(one) == set(two) and all(np.array_equal(one[k], two[k]) and one[k].shape == two[k].shape for k in one)


# sums


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_sum_is_exact_whoever_drops_out_whenever(data):
    count = data.draw(st.integers(2, 9))
    colluding = data.draw(st.integers(0, max(0, count - 3)))
    shapes = data.draw(
        st.dictionaries(st.text(min_size=1, max_size=3), st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1)
    )
    try:
        plan = plan_of(count, colluding=colluding, shapes=shapes, at_least=data.draw(st.integers(1, count)))
    except ConfigError:
        return
    out = data.draw(st.lists(st.sampled_from(plan.names), max_size=count - plan.fewest, unique=True))
    lost: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for name in out:
        lost[data.draw(st.sampled_from(STAGES))].append(name)
    vectors = vectors_of(plan, data.draw(st.integers(0, 99)), 4.0)
    total, survivors = Play(plan, vectors).until("done", lost).sum()
    assert set(survivors) == set(plan.names) - set(lost["keys"]) - set(lost["shares"])
    assert same(total, expected(plan, vectors, survivors))
    plain = {k: sum(vectors[n][k] for n in survivors) for k in plan.shapes}
    assert all(np.abs(total[k] - plain[k]).max() <= len(survivors) * plan.step / 2 + 1e-12 for k in plain)


@pytest.mark.parametrize("noise", [None, 1.0])
@pytest.mark.parametrize("stage", STAGES)
def test_three_of_ten_that_drop_out_at_any_stage_are_recovered_and_every_kill_changes_nothing(stage, noise):
    plan = plan_of(10, clip=1.0, range=None, noise_multiplier=noise)
    vectors = vectors_of(plan)
    play = Play(plan, vectors, killed=True).until("done", {stage: ["c0", "c4", "c9"]})
    total, survivors = play.sum()
    assert len(survivors) == (7 if stage in ("keys", "shares") else 10)
    wanted = expected(plan, vectors, survivors)
    if noise is None:
        assert same(total, wanted)
    else:
        off = np.concatenate([((total[k] - wanted[k]) / plan.step).ravel() for k in wanted])
        spread = 2.0**plan.grid.bits * math.sqrt(len(survivors))
        assert 0.4 * spread < off.std() < 2 * spread and np.abs(off - np.rint(off)).max() < 1e-3


def test_with_identities_the_same_sum_comes_out_and_the_session_says_what_it_trusts():
    plan = plan_of(4)
    people = {name: Identity.fresh()[0] for name in (*plan.names, "hub")}
    play = Play(plan, vectors_of(plan), killed=True, identities=people).until("done", {"masked": ["c2"]})
    assert same(play.sum()[0], expected(plan, play.vectors, plan.names))
    assert play.clients["c0"].trust == "active" and Play(plan, {}).clients["c0"].trust == "honest-but-curious"


def test_sums_of_four_byte_extremes_do_not_wrap():
    plan = plan_of(7, range=3.0, shapes={"w": (4,)})
    vectors = {name: {"w": np.array([3.0, -3.0, 0.0, -0.0])} for name in plan.names}
    assert Play(plan, vectors).until("done").sum()[0]["w"].tolist() == [21.0, -21.0, 0.0, 0.0]


def test_a_receiver_that_was_killed_comes_to_the_same_sum_from_the_messages():
    plan = plan_of(5)
    play = Play(plan, vectors_of(plan)).until("done", {"shares": ["c1"]})
    again = ServerSession(plan, SECRET)
    assert again.open() == play.server.open()
    for stage, add in (("keys", again.add_keys), ("shares", again.add_shares), ("masked", again.add_masked)):
        for name, message in reversed(play.sent[stage].items()):
            add(name, message)
            add(name, message)
    assert again.survivors() == play.server.survivors()
    for name, message in play.sent["done"].items():
        again.add_unmask(name, message)
    assert same(again.finish()[0], play.sum()[0])


# what crosses tells nothing


def test_what_a_client_sends_is_uniform_whatever_its_vector_is():
    """Chi-square over bytes of a vector of zeros (255 degrees of freedom; 5.5 standard deviations: false alarm below 1e-7)."""
    plan = plan_of(3, shapes={"w": (100_000,)})
    vectors = {name: {"w": np.zeros(100_000, dtype=np.float32)} for name in plan.names}
    play = Play(plan, vectors).until("masked")
    for message in play.sent["masked"].values():
        counts = np.bincount(np.frombuffer(message, dtype=np.uint8), minlength=256)
        assert ((counts - 1562.5) ** 2 / 1562.5).sum() < 255 + 5.5 * math.sqrt(2 * 255)
    one, two = (np.frombuffer(play.sent["masked"][n], dtype="<u4").astype(float) for n in ("c0", "c1"))
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(100_000)


def test_two_sessions_of_one_vector_share_nothing():
    one, two = (Play(plan_of(3), vectors_of(plan_of(3))).until("done") for _ in range(2))
    for stage in one.sent:
        for name in one.sent[stage]:
            if stage != "confirmed":
                assert one.sent[stage][name] != two.sent[stage][name]


def opened_by(play: Play, name: str, known_keys: Iterable[str], own_seed: bytes | None) -> np.ndarray:
    """What remains of a client's masked vector without masks that an adversary knows, int32."""
    plan, at = play.plan, play.plan.names.index
    words = np.frombuffer(play.sent["masked"][name], dtype="<u4").astype(np.uint32)
    plus: list[bytes] = []
    minus = [derive(own_seed, plan.digest, "own mask", name)] if own_seed else []
    for other in known_keys:
        public = messages.Keys.read(play.sent["keys"][name], name).mask
        secret = play.clients[other]._secret("mask")
        key = Pair(secret).shared(public, plan.digest, "pair mask", *plan.ordered([name, other]))
        (minus if at(name) < at(other) else plus).append(key)
    add_streams(words, plus, minus)
    return words.view(np.int32)


def test_a_late_vector_of_a_client_given_up_stays_masked():
    """Its pairwise masks are known by then (its key was put together): its own still covers it; with that off, it is bare."""
    plan = plan_of(4, shapes={"w": (2000,)})
    vectors = {name: {"w": np.full(2000, 1.0)} for name in plan.names}
    play = Play(plan, vectors).until("masked")
    others = [name for name in plan.names if name != "c3"]
    left = opened_by(play, "c3", others, None)
    assert np.abs(left).mean() > 2**29  # uniform: mean 2^30
    bare = opened_by(play, "c3", others, play.clients["c3"]._secret("self"))
    assert set((bare * plan.step).tolist()) == {1.0}


def test_colluding_clients_and_the_server_see_the_sum_of_the_others_only():
    """c2 to c5 tell all they know, the own seeds of c0 and c1 are opened: the mask between these two is left."""
    plan = plan_of(6, colluding=2, shapes={"w": (2000,)})
    play = Play(
        plan, {name: {"w": np.full(2000, float(i))} for i, name in enumerate(plan.names[:])} | {"c5": {"w": np.zeros(2000)}}
    ).until("masked")
    known = ["c2", "c3", "c4", "c5"]
    one, two = (opened_by(play, n, known, play.clients[n]._secret("self")) for n in ("c0", "c1"))
    assert np.abs(one).mean() > 2**29 and np.abs(two).mean() > 2**29
    assert set(((one + two) * plan.step).tolist()) == {1.0}


def test_coordinators_that_only_carry_cannot_open_answers_or_shares():
    plan = plan_of(3)
    play = Play(plan, vectors_of(plan)).until("done")
    spy = ServerSession(plan, b"s" * 32)
    for stage, add in (("keys", spy.add_keys), ("shares", spy.add_shares), ("masked", spy.add_masked)):
        for name, message in play.sent[stage].items():
            add(name, message)
    with pytest.raises(ProtocolError):
        spy.add_unmask("c0", play.sent["done"]["c0"])
    for name in plan.names:
        secrets = [play.clients[other]._state._root for other in plan.names]
        assert all(not root for root in secrets)  # wiped
        assert b'"root":""' in play.clients[name].to_bytes()


# refusals of clients


def refused(said: str, call: Callable[..., Any], *args: Any, error: type[OsmoticError] = RefusedError) -> None:
    with pytest.raises(error, match=said):
        call(*args)


def test_below_the_fewest_every_client_refuses_at_every_stage_and_goes_on_with_enough():
    plan = plan_of(5, at_least=4)
    play = Play(plan, vectors_of(plan)).until("keys")
    client, keys = play.clients["c0"], play.server.keys()
    few = {name: keys[name] for name in ("c0", "c1", "c2")}
    refused("3 clients with keys where 4 are needed", client.share, few, play.server.open())
    play.until("shares")
    boxes = play.server.shares_for("c0")
    refused("3 clients with shares where 4", client.mask, {n: boxes[n] for n in ("c1", "c2")}, play.vectors["c0"])
    play.until("masked")
    refused("3 clients in the sum where 4", client.confirm, ["c0", "c1", "c2"])
    play.until("confirmed")
    words = play.server.signatures()
    refused("2 survivors have confirmed .* where 3", client.unmask, {n: words[n] for n in ("c0", "c1")})
    play.until("done")
    assert same(play.sum()[0], expected(plan, play.vectors, plan.names))


def test_below_the_fewest_the_server_says_who_is_missing():
    for stage, said in zip(STAGES, ("keys", "shares", "masked", "signatures"), strict=True):
        play = Play(plan_of(5, at_least=4), vectors_of(plan_of(5)))
        out = {before: [] for before in STAGES} | ({stage: []})
        order = ["", *STAGES]
        before = order[order.index(stage) - 1]
        if before:
            play.until(before, out)
        play.alive = ["c0", "c1"]
        steps = {"keys": play.server.keys, "shares": lambda p=play: p.server.shares_for("c0"), "masked": play.server.survivors,
                 "confirmed": play.server.signatures}  # fmt: skip
        with pytest.raises(RefusedError, match=rf"0 of 5 clients are left \({said}\)"):
            steps[stage]()
    refused("0 of 5 clients are left .unmask.", Play(plan_of(5), vectors_of(plan_of(5))).until("confirmed").server.finish)


def test_a_second_question_with_other_content_is_refused_for_ever():
    plan = plan_of(6)
    play = Play(plan, vectors_of(plan)).until("confirmed")
    client, server = play.clients["c0"], play.server
    keys, boxes = server.keys(), server.shares_for("c0")
    fewer = {name: keys[name] for name in plan.names[:5]}
    for _ in range(2):
        refused("again in this sum with other keys", client.share, fewer, server.open())
        refused("again in this sum with other shares", client.mask, {n: boxes[n] for n in ("c1", "c2", "c3", "c4")}, {})
        other = {k: v + 1 for k, v in play.vectors["c0"].items()}
        refused("again in this sum with other vector", client.mask, boxes, other)
        refused("again in this sum with other survivors", client.confirm, plan.names[:5])
        assert client.share(keys, server.open()) == play.sent["shares"]["c0"]
        assert bytes(client.mask(boxes, play.vectors["c0"])) == play.sent["masked"]["c0"]
        client = ClientSession.from_bytes(plan, "c0", client.to_bytes())
    answer = client.unmask(server.signatures())
    refused("other survivors", client.confirm, plan.names[:5])
    assert client.confirm(plan.names) == play.sent["confirmed"]["c0"]
    assert client.unmask({}) == answer and client.stage == "done"
    for call in (client.advertise, lambda: client.mask(boxes, play.vectors["c0"])):
        refused("this secure sum is over|again", call)
    again = ClientSession.from_bytes(plan, "c0", client.to_bytes())
    assert again.unmask({}) == answer


def test_a_session_that_was_retired_answers_nothing_any_more():
    plan = plan_of(4)
    play = Play(plan, vectors_of(plan)).until("confirmed")
    state = play.clients["c0"].to_bytes()
    assert ClientSession.survivors_of(state) == ("confirmed", plan.names)
    gone = ClientSession.retired(state)
    assert ClientSession.survivors_of(gone) == ("done", ()) and b'"root":""' in gone
    client = ClientSession.from_bytes(plan, "c0", gone)
    for call in (client.advertise, lambda: client.unmask(play.server.signatures())):
        refused("this secure sum is over", call)
    play.until("done")
    answered = play.clients["c1"].to_bytes()
    assert ClientSession.retired(answered) == answered
    assert ClientSession.survivors_of(ClientSession(plan, "c0").to_bytes()) == ("new", ())


def test_stages_come_in_their_order():
    client = ClientSession(plan_of(3), "c0")
    assert client.stage == "new"
    refused("'shares' in a secure sum before 'keys'", client.share, {}, b"{}")
    for call in (lambda: client.mask({}, {}), lambda: client.confirm(["c0", "c1"]), lambda: client.unmask({})):
        with pytest.raises(RefusedError):
            call()


def test_for_nobody_are_both_shares_given():
    """Of each client either the own mask's seed or the mask's key, and what is lost is asked by its key only."""
    plan = plan_of(5)
    play = Play(plan, vectors_of(plan)).until("confirmed", {"shares": ["c4"], "keys": []})
    told = play.clients["c0"]._answer()
    assert set(told["self"]) == {"c0", "c1", "c2", "c3"} and set(told["key"]) == {"c4"}
    assert not set(told["self"]) & set(told["key"])


def test_a_state_of_another_plan_or_client_or_none_is_refused():
    plan = plan_of(3)
    state = ClientSession(plan, "c0").to_bytes()
    refused("another plan", ClientSession.from_bytes, plan_of(3, context=b"x"), "c0", state)
    refused("another plan", ClientSession.from_bytes, plan, "c1", state)
    said = json.loads(state)
    for wrong in (b"", b"[]", b"{}", state[:-5], state.replace(b'"new"', b'"old"'), json.dumps(said | {"root": "00"}).encode(),
                  json.dumps(said | {"format": "x"}).encode(), json.dumps(said | {"stage": "done"}).encode(),
                  json.dumps(said | {"keys": []}).encode()):  # fmt: skip
        refused("cannot be read", ClientSession.from_bytes, plan, "c0", wrong, error=ProtocolError)
    refused("no client of this sum", ClientSession, plan, "hub", error=ConfigError)


# a server that lies


def test_replaced_keys_are_seen_where_identities_are_pinned():
    plan = plan_of(4)
    people = {name: Identity.fresh()[0] for name in (*plan.names, "hub")}
    play = Play(plan, vectors_of(plan), identities=people).until("keys")
    client, keys, opened = play.clients["c0"], play.server.keys(), play.server.open()
    false = ClientSession(plan, "c1").advertise()  # the server's own, under the name c1; unsigned
    forged = ClientSession(plan, "c1", Identity.fresh()[0]).advertise()
    stale = ClientSession(plan_of(4, session=b"another session!"), "c1", people["c1"]).advertise()
    for wrong in (false, forged, stale, keys["c2"]):
        refused(
            "the keys of c1 are not theirs|public keys in a secure sum are the same", client.share, keys | {"c1": wrong}, opened
        )
    spy = ServerSession(plan, b"s" * 32).open()
    refused("the keys of hub are not theirs", client.share, keys, spy)
    mine = ClientSession(plan, "c0", people["c0"]).advertise()
    refused("its own keys came back as others", client.share, keys | {"c0": mine}, opened)
    refused("no client of this sum", client.share, keys | {"x": keys["c1"]}, opened, error=ConfigError)
    assert play.clients["c0"].share(keys, opened)


def test_points_that_are_no_keys_are_refused_and_the_session_goes_on():
    plan = plan_of(3)
    play = Play(plan, vectors_of(plan)).until("keys")
    keys = play.server.keys()
    low = messages.Keys(bytes(32), b"m" * 32, b"").message()
    refused("no honest party", play.clients["c0"].share, keys | {"c1": low}, play.server.open())
    assert play.until("done").sum()


def test_clients_with_other_plans_or_models_cannot_finish_together():
    """One is told another number that must stay, or was handed another model: no box opens between it and the others."""
    for changed in ({"at_least": 3}, {"context": b"another model"}, {"noise_multiplier": 1.0, "clip": 4.0}):
        plan = plan_of(4)
        play = Play(plan, vectors_of(plan))
        play.clients["c3"] = ClientSession(plan_of(4, **changed), "c3")
        play.until("shares")
        for name, peer in (("c0", "c3"), ("c3", "c0")):
            refused(
                f"the share of '{peer}' cannot be opened",
                play.clients[name].mask,
                play.server.shares_for(name),
                play.vectors[name],
            )


def test_other_keys_for_single_clients_are_seen_in_the_shares():
    """Without identities too: the roster is bound into every box."""
    plan = plan_of(5)
    play = Play(plan, vectors_of(plan)).until("keys")
    keys, opened = play.server.keys(), play.server.open()
    some = {name: keys[name] for name in plan.names[:4]}
    shares = {name: play.clients[name].share(some if name == "c0" else keys, opened) for name in plan.names[:4]}
    boxes = {name: bytes.fromhex(json.loads(shares[name])["to"]["c0"]) for name in ("c1", "c2", "c3")}
    refused("cannot be opened", play.clients["c0"].mask, boxes, play.vectors["c0"])


def test_altered_and_exchanged_boxes_are_refused():
    plan = plan_of(4)
    play = Play(plan, vectors_of(plan)).until("shares")
    boxes, client = play.server.shares_for("c0"), play.clients["c0"]
    altered = boxes["c1"][:-1] + bytes([boxes["c1"][-1] ^ 1])
    for wrong in ({"c1": altered}, {"c1": boxes["c2"]}, {"c1": play.server.shares_for("c2")["c1"]}, {"c1": b""}):
        refused("the share of 'c1' cannot be opened", client.mask, boxes | wrong, play.vectors["c0"])
    refused("sent no keys", client.mask, boxes | {"x": altered}, play.vectors["c0"])
    refused("sent no keys", client.mask, boxes | {"c0": altered}, play.vectors["c0"])
    assert client.mask(boxes, play.vectors["c0"])


def test_two_sets_of_survivors_cannot_both_be_opened():
    """The server tells half that c4 is in, half that it is out: neither half's words are enough for any client."""
    plan = plan_of(5)
    people = {name: Identity.fresh()[0] for name in (*plan.names, "hub")}
    play = Play(plan, vectors_of(plan), identities=people).until("masked")
    with_, without = plan.names, plan.names[:4]
    told = {"c0": with_, "c4": with_, "c1": without, "c2": without, "c3": without}
    words = {name: play.clients[name].confirm(named) for name, named in told.items()}
    refused("2 survivors have confirmed", play.clients["c0"].unmask, words)
    assert play.clients["c1"].unmask(words)  # three of five: that set, and from now on no other
    forged = {name: play.clients[name].confirm(told[name]) for name in ("c0", "c4")} | {"c1": words["c1"]}
    forged["c1"] = json.dumps(json.loads(words["c0"]) | {"sign": json.loads(words["c1"])["sign"]}).encode()
    refused("2 survivors have confirmed", play.clients["c0"].unmask, forged)
    stranger = Play(plan_of(5, context=b"y"), play.vectors, identities=people).until("confirmed").sent["confirmed"]
    refused("2 survivors have confirmed", play.clients["c4"].unmask, {**stranger, "c0": words["c0"], "c4": words["c4"]})


def test_survivors_that_gave_no_shares_or_leave_the_client_out_are_refused():
    plan = plan_of(6)
    play = Play(plan, vectors_of(plan)).until("masked", {"keys": ["c5"]})
    client = play.clients["c0"]
    refused("with 'c5', who gave no shares", client.confirm, plan.names)
    refused("not in the sum itself", client.confirm, plan.names[1:5])
    refused("no client of this sum", client.confirm, ["c0", "c1", "c2", "hub"], error=ConfigError)
    refused("named twice", client.confirm, ["c0", "c1", "c1", "c2"], error=ConfigError)
    assert client.confirm(plan.names[:5])


def test_a_client_shown_few_others_is_still_covered_by_one_that_must_confirm():
    """The server shows c0 only c1..c3 of 6 (threshold 4) and gives them up: then too few are left to confirm without them.

    What it can open are sets of 4 or more of those whom c1..c3 know; every such set has one of them, whose mask with c0 stays.
    """
    plan = plan_of(6)
    for size in range(plan.fewest, 7):
        for others in [s for s in map(set, _subsets(plan.names, size)) if "c0" in s]:
            shown = {"c1", "c2", "c3"}
            signers = others - {"c0"}
            if len(signers) >= plan.threshold:
                assert signers & shown


def _subsets(names: tuple[str, ...], size: int) -> list[tuple[str, ...]]:
    import itertools

    return list(itertools.combinations(names, size))


# clients that lie


def test_wrong_shares_are_survived_and_their_givers_named():
    plan = plan_of(8, at_least=3)
    play = Play(plan, vectors_of(plan)).until("confirmed", {"shares": ["c7"]})
    liar = play.clients["c0"]
    right = liar._answer
    liar._answer = lambda: {kind: {name: bytes(33).hex() for name in shares} for kind, shares in right().items()}  # type: ignore[method-assign]
    play.until("done")
    total, survivors = play.sum()
    assert play.server.liars == {"c0"} and same(total, expected(plan, play.vectors, survivors))


def test_secrets_dealt_wrongly_end_in_an_error_that_says_so():
    plan = plan_of(3)
    play = Play(plan, vectors_of(plan)).until("keys")
    play.clients["c0"]._dealt = lambda: dict.fromkeys(plan.names, bytes(2 * shamir.SHARE))  # type: ignore[method-assign]
    play.until("done")
    refused("shares that fit no secret", play.sum, error=ProtocolError)


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "confirmed", "done"])
def test_malformed_altered_and_late_messages_are_refused_and_the_sum_goes_on(stage):
    plan = plan_of(4)
    play = Play(plan, vectors_of(plan))
    add = {
        "keys": "add_keys",
        "shares": "add_shares",
        "masked": "add_masked",
        "confirmed": "add_signature",
        "done": "add_unmask",
    }[stage]
    order = ("keys", "shares", "masked", "confirmed", "done")
    if stage != "keys":
        play.until(order[order.index(stage) - 1])
    for wrong in (b"", b"{}", b"[]", b"\xff", b"x" * 87):
        refused("malformed|not taken", getattr(play.server, add), "c0", wrong, error=ProtocolError)
    refused("not taken", getattr(play.server, add), "hub", b"{}", error=ProtocolError)
    play.until("done")
    name, message = next(iter(play.sent[stage].items()))
    getattr(play.server, add)(name, message)  # a second time, the same: nothing happens
    refused("not taken", getattr(play.server, add), name, message[:-1] + b"x", error=ProtocolError)
    assert same(play.sum()[0], expected(plan, play.vectors, plan.names))


def test_a_receivers_secret_has_32_bytes_and_strangers_get_no_shares():
    refused("32 bytes", ServerSession, plan_of(3), b"short", error=ConfigError)
    play = Play(plan_of(4), vectors_of(plan_of(4))).until("shares", {"keys": ["c3"]})
    refused("'c3' gave no shares", play.server.shares_for, "c3", error=ProtocolError)

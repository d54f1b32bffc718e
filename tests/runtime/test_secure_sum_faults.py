# SPDX-License-Identifier: Apache-2.0
"""Secure sums when something goes wrong: kills at every stage, parties that drop out, a coordinator that asks for too much."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.secure import bundle
from osmotic.runtime.secure.client import ClientSession
from osmotic.runtime.transports.inprocess import InProcess
from osmotic.schemas.errors import OsmoticError, PeerError, Problem
from osmotic.schemas.messages import Envelope

sys.path.insert(0, str(Path(__file__).parent / "toy_plugin"))
from osmotic_hand import CAP, NOISY, PARTIES, charged, code, hand_of, pipeline

STAGES = ("keys", "shares", "masked", "confirm", "unmask")
RECEIVED = ("open", "keys", "shares", "masked", "survivors", "confirm", "unmask", "finish")


class Killed(BaseException):
    """Stands for a kill of the whole run."""


@pytest.fixture
def go(shop: Any, toys: Registry) -> Callable[..., dict[str, Any]]:
    shop.records = {party: shop.records["north"][: 3 + i] for i, party in enumerate(PARTIES)}
    shop.defaults = CAP

    def run(tasks: dict[str, Any], **options: Any) -> dict[str, Any]:
        return api.run(
            shop.write(tasks, parties={"server": "hub", "clients": PARTIES}), home=shop.home, registry=toys, **options
        )

    return run


class Wire:
    """Between the coordinator and everybody: counts, breaks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.before: Callable[[str, dict[str, Any]], None] = lambda party, header: None
        self.after: Callable[[str, dict[str, Any]], None] = lambda party, header: None
        original = InProcess.request

        def request(transport: InProcess, party: str, header: dict[str, Any], blob: bytes = b"") -> Any:
            self.before(party, header)
            answer = original(transport, party, header, blob)
            if str(header.get("op")).startswith("sum"):
                self.seen.append((party, header["op"], header["stage"]))
            self.after(party, header)
            return answer

        monkeypatch.setattr(InProcess, "request", request)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


@pytest.mark.parametrize(("op", "stage"), [*(("sum", s) for s in STAGES), *(("sum-receive", s) for s in RECEIVED)])
def test_a_run_that_was_killed_goes_on_with_the_same_sum_and_pays_once(
    shop: Any, go: Any, wire: Wire, op: str, stage: str
) -> None:
    def kill(party: str, header: dict[str, Any]) -> None:
        if header.get("op") == op and header.get("stage") == stage and (op != "sum" or party == "south"):
            raise Killed

    wire.after = kill
    with pytest.raises(Killed):
        go(pipeline(NOISY))
    paid = charged(shop.home)
    wire.after = lambda party, header: None
    found = go(pipeline(NOISY))
    assert found["sums"][0]["used"] == PARTIES and set(charged(shop.home).values()) == {1}
    if stage in ("survivors", "confirm", "unmask", "finish"):
        assert set(paid.values()) == {1}
    assert verify(shop.home)["problems"] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_party_that_drops_out_at_a_stage_is_named_and_the_sum_is_of_the_others(
    shop: Any, go: Any, wire: Wire, stage: str
) -> None:
    def drop(party: str, header: dict[str, Any]) -> None:
        if header.get("op") == "sum" and header.get("stage") == stage and party == "south":
            error = PeerError(Problem("south is gone"))
            error.reason = "timeout after 3 s without progress"
            raise error

    wire.before = drop
    found = go(pipeline(NOISY, quorum={"at_least": 4}))
    (one,) = found["sums"]
    late = stage in ("confirm", "unmask")  # what it gave before stays in the sum
    assert one["used"] == [p for p in PARTIES if p != "south" or late]
    assert one["lost"] == ({} if late else {"south": "timeout after 3 s without progress"})
    assert charged(shop.home)["south"] == int(late) and charged(shop.home)["north"] == 1
    assert verify(shop.home)["problems"] == []
    wire.before = lambda party, header: None
    again = go(pipeline(NOISY, quorum={"at_least": 4}))
    assert charged(shop.home)["north"] == 1 and again["sums"][0]["used"] == one["used"]


def test_without_a_quorum_everybody_is_needed_and_too_few_are_named(shop: Any, go: Any, wire: Wire) -> None:
    gone: tuple[str, ...] = ("south",)

    def drop(party: str, header: dict[str, Any]) -> None:
        if header.get("op") == "sum" and header.get("stage") == "shares" and party in gone:
            raise PeerError(Problem(f"{party} is gone"))

    wire.before = drop
    with pytest.raises(PeerError, match="south is gone"):
        go(pipeline(NOISY))
    assert set(charged(shop.home).values()) == {0}
    gone = ("south", "west", "up")
    with pytest.raises(PeerError, match=r"2 of 5 parties shared their secrets(.|\n)*south: south is gone"):
        go(pipeline(NOISY, quorum={"at_least": 3}))
    gone = ()
    assert go(pipeline(NOISY))["sums"][0]["used"] == PARTIES
    assert set(charged(shop.home).values()) == {1}


# ---- a coordinator that asks for more ----


@pytest.fixture
def opened(shop: Any, go: Any, toys: Registry) -> Any:
    """A run up to the sum: parties that have their updates, a transport, and a hand to ask with."""
    file = shop.write(pipeline(NOISY), parties={"server": "hub", "clients": PARTIES})
    with hand_of(api.prepare(file, home=shop.home, registry=toys)) as hand:
        yield hand


def test_without_noise_one_vector_is_opened_with_one_set_of_parties(shop: Any, toys: Registry) -> None:
    """In whatever session: the difference of two exact sums, one party more, would be its vector."""
    shop.records = {party: shop.records["north"][: 3 + i] for i, party in enumerate(PARTIES)}
    shop.binding, shop.defaults = {"purpose": "benchmark"}, {"waivers": [{"edge": "mean.total", "observers": ["hub"]}]}
    tasks = pipeline({"range": 0.5, "at_least": 3}, waive="a test of exact sums")
    file = shop.write(tasks, parties={"server": "hub", "clients": PARTIES})
    with hand_of(api.prepare(file, home=shop.home, registry=toys)) as hand:
        hand.upto("confirm")
        words = {party: hand.sum(party, "confirm", survivors=PARTIES)[1] for party in PARTIES}
        every = bundle.pack(words)
        assert "error" not in hand.sum("north", "unmask", every)[0]  # the others have only confirmed
        hand.session = "08" * 32
        hand.upto("confirm")
        assert code(hand.sum("north", "confirm", survivors=PARTIES[:4])) == "policy"
        assert "error" not in hand.sum("south", "confirm", survivors=PARTIES[:4])[0]
        assert "error" not in hand.sum("north", "confirm", survivors=PARTIES)[0]  # the same again tells nothing new
        hand.session = "07" * 32
        assert code(hand.sum("south", "unmask", every)) == "policy"
        hand.session = "09" * 32
        hand.upto("confirm")
        assert code(hand.sum("north", "confirm", survivors=PARTIES[:4])) == "policy"


def test_what_goes_into_a_sum_cannot_be_pulled_by_itself_nor_pushed(opened: Any) -> None:
    header = {"op": "pull", "id": "mean@hub", "producer": "update@north", "port": "update", "have": ""}
    assert code(opened.transport.request("north", header)) == "membrane"
    site = opened.ready.sites["north"]
    ref = site.results["update@north"]["update"]
    fake = Envelope(
        "update@north.update->mean@hub", "north", "hub", ref.kind, type(ref.label)(), site.store.files(ref.kind, ref.digest)
    )
    assert code(opened.transport.request("hub", {"op": "push"}, fake.pack())) == "membrane"


def test_a_second_question_under_one_session_is_refused_for_ever(opened: Any) -> None:
    every = opened.upto("shares")["north"]
    assert opened.sum("north", "shares", every)[1] == opened.sum("north", "shares", every)[1]
    parts = bundle.unpack(every)
    assert code(opened.sum("north", "shares", bundle.pack({k: v for k, v in parts.items() if k != "west"}))) == "policy"
    boxes = opened.upto("masked")
    first = opened.sum("north", "masked", boxes["north"])[1]
    assert opened.sum("north", "masked", boxes["north"])[1] == first
    fewer = {k: v for k, v in bundle.unpack(boxes["north"]).items() if k != "west"}
    assert code(opened.sum("north", "masked", bundle.pack(fewer))) == "policy"
    opened.upto("confirm")
    assert "error" not in opened.sum("north", "confirm", survivors=PARTIES)[0]
    assert code(opened.sum("north", "confirm", survivors=PARTIES[:4])) == "policy"


def test_fewer_than_the_plan_says_are_refused_by_the_client(opened: Any) -> None:
    parts = bundle.unpack(opened.upto("shares")["north"])
    two = {name: parts[name] for name in ("", "north", "south")}
    assert code(opened.sum("north", "shares", bundle.pack(two))) == "policy"
    opened.upto("confirm")
    assert code(opened.sum("north", "confirm", survivors=["north", "south"])) == "policy"


def test_a_session_that_was_seen_is_not_used_for_another_vector(opened: Any) -> None:
    opened.upto("masked")
    site = opened.ready.sites["north"]
    other = site.results["trained@north"]["weights"]
    site.results["update@north"]["update"] = other
    assert opened.sum("north", "state")[0] == {"state": "changed"}
    assert code(opened.sum("north", "keys")) == "policy"
    assert code(opened.sum("north", "masked", b"\0\0\0\2{}")) == "policy"


def test_a_client_that_was_given_another_model_makes_no_sum_with_the_others(opened: Any) -> None:
    """The receiver singles a client out by a model of its own: its shares cannot be opened by anybody."""
    site = opened.ready.sites["north"]
    for place, ref in list(site.received.items()):
        site.received[place] = type(ref)(ref.kind, site.results["update@north"]["update"].digest, ref.label)
    shares = {party: opened.sum(party, "keys")[1] for party in PARTIES}
    every = bundle.pack({**shares, "": opened.receive("open", outline={"a": [40], "b": [2, 3]})[1]})
    opened.receive("keys", bundle.pack(shares))
    given = {party: opened.sum(party, "shares", every)[1] for party in PARTIES}
    boxes = bundle.unpack(opened.receive("shares", bundle.pack(given))[1])
    assert {code(opened.sum(party, "masked", boxes[party])) for party in PARTIES} == {"policy"}


@pytest.mark.parametrize(
    "header",
    [
        {"session": "07"}, {"session": "x" * 64}, {"session": None}, {"port": "previous"}, {"id": "mean@east"}, {"id": None},
        {"stage": "everything"}, {"stage": None},
    ],
)  # fmt: skip
def test_requests_that_make_no_sense_are_refused(opened: Any, header: dict[str, Any]) -> None:
    base = {"op": "sum", "id": "mean@hub", "port": "total", "producer": "update@north", "session": "07" * 32, "stage": "keys"}
    assert code(opened.transport.request("north", {**base, **header})) in ("membrane", "protocol")
    given = {**base, "op": "sum-receive", "stage": "open", **header}
    assert code(opened.transport.request("hub", given)) in ("membrane", "protocol")


DAMAGED = [b"", b"\0\0\0\2{", b"\xff" * 8, b"\0\0\0\1[", b'\0\0\0\x0e{"a":-1,"b":1}', b'\0\0\0\7{"a":9}']


@pytest.mark.parametrize("blob", DAMAGED)
def test_messages_that_are_damaged_are_refused_and_the_sum_goes_on(opened: Any, blob: bytes) -> None:
    boxes = opened.upto("masked")
    assert code(opened.sum("north", "masked", blob)) in ("protocol", "policy")
    assert code(opened.receive("masked", blob, sender="north", label=[])) in ("protocol", "policy")
    assert "error" not in opened.sum("north", "masked", boxes["north"])[0]


def test_a_masked_vector_with_a_raw_label_or_from_a_stranger_is_not_taken(opened: Any) -> None:
    boxes = opened.upto("masked")
    reply, masked = opened.sum("north", "masked", boxes["north"])
    raw = [{"owner": "north", "source": "raw", "ref": "items", "observers": []}]
    assert code(opened.receive("masked", masked, sender="north", label=raw)) == "membrane"
    assert code(opened.receive("masked", masked, sender="nobody", label=[])) == "membrane"
    assert code(opened.receive("masked", masked, sender="north", label="x")) == "protocol"
    assert "error" not in opened.receive("masked", masked, sender="north", label=reply["label"])[0]


def test_nothing_masked_leaves_before_it_is_charged(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.runtime.privacy.composition import ShareEvents

    boxes = opened.upto("masked")

    def full(*_: Any, **__: Any) -> None:
        raise OsmoticError(Problem("the disk is full"))

    monkeypatch.setattr(ShareEvents, "charge", full)
    assert code(opened.sum("north", "masked", boxes["north"])) == "internal"
    monkeypatch.undo()
    assert "error" not in opened.sum("north", "masked", boxes["north"])[0]
    ledger = opened.ready.sites["north"].ledger
    (body,) = [json.loads(b) for (b,) in ledger.query("SELECT body FROM charges")]
    assert body["dataset"] == "client of items"


def test_bundles_come_back_as_they_went() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    for _ in range(50):
        parts = {str(k): rng.bytes(int(rng.integers(0, 40))) for k in rng.integers(0, 10**6, 5)}
        assert bundle.unpack(bundle.pack(parts)) == parts


def test_a_session_that_was_given_up_keeps_no_secret_and_does_not_come_back(opened: Any) -> None:
    boxes, first = opened.upto("masked"), opened.session
    assert "error" not in opened.sum("north", "masked", boxes["north"])[0]
    folder = opened.ready.sites["north"].ledger.vault / "secure"
    (path,) = folder.glob("*.session")
    root = ClientSession.survivors_of(path.read_bytes().partition(b"\n")[2])
    opened.session = "08" * 32
    opened.upto("masked")
    now = ClientSession.survivors_of(path.read_bytes().partition(b"\n")[2])
    assert (root, now) == (("masked", ()), ("done", ()))
    opened.session = first
    assert code(opened.sum("north", "masked", boxes["north"])) == "policy"
    assert code(opened.sum("north", "keys")) == "policy"
    receiver = opened.ready.sites["hub"].ledger.vault / "secure"
    assert len(list(receiver.glob("*.receiver"))) == 1

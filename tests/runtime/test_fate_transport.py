# SPDX-License-Identifier: Apache-2.0
"""The transport inside FATE and the worker's pipe, without processes: what parties may ask, losses, silence, standstill."""

import contextlib
import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.fate.link import GONE, Link, end_of, opened
from osmotic.runtime.fate.pulse import Pulse
from osmotic.runtime.party.service import Service
from osmotic.runtime.transports import frames
from osmotic.runtime.transports.fate import Fate
from osmotic.schemas.errors import ConfigError, DataError, PeerError, Problem, ProtocolFault

Tasks = Callable[..., dict[str, Any]]
NAMES = {"hub": "arbiter:10000", "north": "guest:9999", "south": "host:9998"}
ECHO = {"echo": {"type": "toy-echo", "at": "server"}}
PREFIX = frames.PREFIX


class Box:
    """Messages by hand: what is to come, and what was sent."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.coming: dict[str, list[tuple[dict[str, Any], bytes]]] = {fate: [] for fate in NAMES.values()}
        self.sent: list[tuple[str, dict[str, Any], bytes]] = []

    def put(self, peer: str, header: dict[str, Any], blob: bytes = b"") -> None:
        self.sent.append((peer, header, blob))

    def take(self, peer: str, patience: float) -> tuple[dict[str, Any], bytes]:
        if not self.coming[peer]:
            raise PeerError(Problem(f"{peer} is silent"))
        return self.coming[peer].pop(0)


@pytest.fixture
def made(shop: Any, toys: Registry, tasks: Tasks) -> Iterator[tuple[Fate, Box]]:
    """The transport of the hub, whose plan has a model that clients may ask."""
    config = {"model": "echo", "field": "colour"}
    asked = {"component": "asker", "at": "clients", "inputs": {"records": "safe"}, "config": config}
    ready = api.prepare(shop.write(tasks(asked=asked), models=ECHO), home=shop.home, registry=toys)
    site = ready.open()["hub"]
    site.take(ready.graph, ready.configs)
    box = Box()
    yield Fate("hub", Service(site, local=True), NAMES, box, lambda *_: None, 5.0), box
    ready.close()


def test_a_request_of_a_party_elsewhere_serves_its_model_calls(made: tuple[Fate, Box]) -> None:
    transport, box = made
    call = {"frame": "outbound", "to": "hub", "op": "call", "model": "echo", "method": "generate", "label": []}
    box.coming["guest:9999"] = [
        ({**call, "task": "asked@north", "from": "south"}, b"[]"),
        ({**call, "task": "asked@south"}, b"[]"),
        ({**call, "op": "run", "task": "asked@north"}, b""),
        ({"frame": "reply", "cached": False, "seconds": 0.0}, b"body"),
    ]
    assert transport.request("north", {"op": "run", "id": "asked@north"}) == ({"cached": False, "seconds": 0.0}, b"body")
    assert [peer for peer, _, _ in box.sent] == ["guest:9999"] * 4
    answers = [header for _, header, _ in box.sent]
    assert answers[0] == {"frame": "request", "op": "run", "id": "asked@north"}
    assert "error" not in answers[1]  # its own task, whatever it said about who it is
    assert answers[2]["error"]["code"] == "membrane" and answers[3]["error"]["code"] == "protocol"
    assert all(answer["frame"] == "outbound" for answer in answers[1:])


def test_a_message_that_is_none_of_ours_ends_the_request(made: tuple[Fate, Box]) -> None:
    transport, box = made
    box.coming["guest:9999"] = [({"frame": "hello"}, b"")]
    with pytest.raises(ProtocolFault, match="none of ours"):
        transport.request("north", {"op": "status"})
    with pytest.raises(PeerError, match="no party 'west'"):
        transport.request("west", {"op": "status"})


def test_parties_that_wait_for_each_other_are_told_so_and_the_end_is_told_to_all(made: tuple[Fate, Box]) -> None:
    transport, box = made
    transport.calls["hub"] = "north"
    assert transport._call("north", "hub", {"op": "call"}, b"")[0]["error"]["code"] == "lost"
    box.coming["host:9998"] = [({"frame": "reply", "error": {"code": "policy", "exit": 4, "problems": []}}, b"")]
    transport.request("south", {"op": "plan"})
    transport.code = "policy"
    transport.close()
    transport.close()
    ends = [(peer, header) for peer, header, _ in box.sent if header["frame"] == "done"]
    done = {"frame": "done", "code": "policy", "parties": {"south": "policy"}}
    assert ends == [("guest:9999", done), ("host:9998", done)]


# ---- the pipe ----


class Pipe:
    """A link and the bridge's ends of its pipe; `left`: the status with which the process would have ended."""

    def __init__(self) -> None:
        self.left: list[int] = []
        down, up = os.pipe(), os.pipe()
        self.to, self.back = os.fdopen(down[1], "wb"), os.fdopen(up[0], "rb")
        self.link = Link(os.fdopen(down[0], "rb"), os.fdopen(up[1], "wb"), self.leave)
        self.link.listen(["guest:9999", "host:9998"])

    def leave(self, status: int) -> None:
        self.left.append(status)

    def wait(self) -> int:
        until = time.monotonic() + 10
        while not self.left and time.monotonic() < until:
            time.sleep(0.01)
        return self.left[0]

    def close(self) -> None:
        for stream in (self.to, self.back):
            stream.close()
        for thread in threading.enumerate():
            if thread.name in ("bridge", "beat"):
                thread.join(5)
        for stream in (self.link.incoming, self.link.outgoing):
            with contextlib.suppress(OSError):
                stream.close()


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipe]:
    monkeypatch.setattr("osmotic.runtime.fate.link.GRACE", 0.1)
    made = Pipe()
    yield made
    made.close()


def test_messages_arrive_as_they_were_sent_and_in_order(pipe: Pipe) -> None:
    pipe.link.partners({"hub": "arbiter:10000", "north": "guest:9999"}, "hub", "hub", 60.0)
    sent = [({"frame": "reply", "n": i}, bytes([i]) * size) for i, size in enumerate((0, 1, 3_000_000))]
    writing = threading.Thread(target=lambda: [pipe.link.put("guest:9999", *one) for one in sent])
    writing.start()
    for header, blob in sent:
        frame = frames.read(pipe.back)
        assert frame is not None and frame[0] == {"frame": "put", "to": "guest:9999"}
        assert opened(io.BytesIO(frame[1]), len(frame[1])) == (header, blob)
        frames.write(pipe.to, {"frame": "got", "from": "guest:9999"}, frame[1])
    writing.join()
    assert [pipe.link.take("guest:9999", 5) for _ in sent] == sent


def test_signs_of_life_are_no_messages_and_silence_is_named(pipe: Pipe) -> None:
    pipe.link.partners({"hub": "arbiter:10000", "north": "guest:9999"}, "hub", "hub", 1.0)
    alive = frames.canonical({"frame": "alive"})
    frames.write(pipe.to, {"frame": "got", "from": "guest:9999"}, PREFIX.pack(len(alive), 0) + alive)
    with pytest.raises(PeerError, match=r"guest:9999 \(north\) is silent") as caught:
        pipe.link.take("guest:9999", 0.3)
    assert "0.3 s" in str(caught.value) and "deadline" in str(caught.value)
    with pytest.raises(PeerError, match="no party"):
        pipe.link.take("host:1", 0.1)


def test_a_lost_party_is_told_to_everybody_who_waits_and_ends_long_work(pipe: Pipe) -> None:
    frames.write(pipe.to, {"frame": "lost", "peer": "host:9998", "why": "silent for 20 s"})
    for peer in ("guest:9999", "host:9998"):
        with pytest.raises(PeerError, match="host:9998 was lost") as caught:
            pipe.link.take(peer, 5)
        assert "silent for 20 s" in str(caught.value) and caught.value.exit_code == 7
    kinds = [frames.read(pipe.back) for _ in range(2)]
    end = kinds[1][0]  # type: ignore[index]
    assert (end["frame"], end["exit"], end["code"]) == ("end", 7, "lost") and "host:9998" in end["problems"][0]["what"]
    assert pipe.wait() == 7


def test_what_happens_to_peers_after_the_end_is_their_own_matter(pipe: Pipe) -> None:
    pipe.link.partners({"hub": "guest:9999", "north": "arbiter:10000", "south": "host:9998"}, "hub", "north", 60.0)
    done = frames.canonical({"frame": "done", "code": ""})
    frames.write(pipe.to, {"frame": "got", "from": "guest:9999"}, PREFIX.pack(len(done), 0) + done)
    frames.write(pipe.to, {"frame": "lost", "peer": "host:9998", "why": ""})
    assert pipe.link.take("guest:9999", 5)[0]["frame"] == "done"
    time.sleep(0.3)
    assert pipe.left == [] and pipe.link.failed is None


def test_the_process_ends_with_its_bridge(pipe: Pipe) -> None:
    pipe.to.close()
    assert pipe.wait() == GONE


def test_the_process_ends_when_it_is_told_to(pipe: Pipe) -> None:
    frames.write(pipe.to, {"frame": "stop"})
    assert pipe.wait() == 130


@pytest.mark.parametrize("body", [b"", b"x", PREFIX.pack(2, 5) + b"{}", PREFIX.pack(2, 0) + b"[]", PREFIX.pack(1 << 30, 0)])
def test_a_damaged_message_ends_the_process_with_a_reason(pipe: Pipe, body: bytes) -> None:
    with pytest.raises(ProtocolFault):
        opened(io.BytesIO(body), len(body))
    frames.write(pipe.to, {"frame": "got", "from": "guest:9999"}, body)
    assert pipe.wait() == 7
    told = [frames.read(pipe.back) for _ in range(2)]
    assert told[1] is not None and told[1][0]["code"] == "protocol"
    assert "a message of guest:9999 is damaged" in told[1][0]["problems"][0]["what"]


def test_beats_tell_that_the_process_lives_and_standstill_ends_it(pipe: Pipe) -> None:
    pipe.link.partners({"hub": "arbiter:10000", "north": "guest:9999"}, "hub", "hub", 0.5)
    with pipe.link.pulse.working("train@hub"):
        pipe.link.beat()
        said: list[dict[str, Any]] = []
        while not said or said[-1]["frame"] != "end":
            frame = frames.read(pipe.back)
            assert frame is not None
            said.append(frame[0])
        assert pipe.wait() == 6
    assert {"beat", "put"} <= {one["frame"] for one in said}
    assert "train@hub made no progress for 0.5 s" in said[-1]["problems"][0]["what"]


def test_waiting_for_another_party_is_no_standstill() -> None:
    pulse = Pulse()
    assert pulse.standstill() == 0
    with pulse.working("t"):
        time.sleep(0.05)
        assert pulse.standstill() >= 0.05
        pulse.step()
        assert pulse.standstill() < 0.05
        with pulse.away():
            time.sleep(0.05)
            assert pulse.standstill() == 0
    assert pulse.standstill() == 0 and pulse.count >= 3


def test_the_last_frame_has_the_problems_and_nothing_follows_it(pipe: Pipe) -> None:
    error = ConfigError(Problem("wrong", path="parameters.pipeline", fix="mend it"))
    pipe.link.say(end_of(error))
    pipe.link.log("too late")
    pipe.link.outgoing.close()
    frame = frames.read(pipe.back)
    assert frame is not None and (frame[0]["exit"], frame[0]["code"]) == (2, "config")
    assert frame[0]["problems"][0] == {"what": "wrong", "where": "", "path": "parameters.pipeline", "why": "", "fix": "mend it"}
    assert frames.read(pipe.back) is None


def test_a_plan_from_elsewhere_chooses_no_folder_here(made: tuple[Fate, Box], shop: Any, tmp_path: Path) -> None:
    service = Service(made[0].service.site, local=False)
    taken: list[Any] = []
    service.site.accept = lambda *given: taken.append(given)  # type: ignore[method-assign]
    header = {"op": "plan", "name": "/home/somebody/plan.yaml", "overrides": [], "folder": str(tmp_path)}
    assert service.handle(header, b"osmotic: 1")[0] == {"party": "hub"}
    for op in ("share", "find"):
        assert service.handle({"op": op, "id": "counted@hub"}, b"")[0]["error"]["code"] == "protocol"
    assert taken == [("osmotic: 1", "plan.yaml", (), Path())]


@pytest.mark.parametrize("local", [True, False])
def test_what_fate_hears_of_a_failure_over_private_records_quotes_none(
    shop: Any, toys: Registry, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, local: bool
) -> None:
    ready = api.prepare(shop.write(tasks()), home=shop.home, registry=toys)
    site = ready.open()["north"]
    site.take(ready.graph, ready.configs)
    service = Service(site, local=local)

    def wrong(*given: Any, **inputs: Any) -> Any:
        raise ValueError("north-3 is red")

    assert service.handle({"op": "run", "id": "items@north"}, b"")[0]["cached"] is False and service.failure is None
    monkeypatch.setattr(ready.graph.nodes["safe"].component, "run", wrong)
    reply = service.handle({"op": "run", "id": "safe@north"}, b"")[0]
    assert ("red" in str(reply)) == local  # on one machine, the operator is the party
    assert service.failure is not None and (service.failure.code, service.failure.exit_code) == ("component", 6)
    log = site.ledger.folder / "errors.log"
    assert str(service.failure) == f"safe@north failed (component)\n    the reason is in {log}"
    assert "north-3 is red" in log.read_text(encoding="utf-8")
    monkeypatch.setattr(site, "accept", lambda *given: (_ for _ in ()).throw(DataError("north-3: 'puce' is no colour")))
    service.handle({"op": "plan", "name": "x", "overrides": [], "folder": ""}, b"")
    assert "puce" not in str(service.failure) and service.failure.code == "data" and "puce" in log.read_text(encoding="utf-8")
    ready.close()

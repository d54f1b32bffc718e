# SPDX-License-Identifier: Apache-2.0
"""Parties and jobs that mean harm: what they send, ask and claim reaches nothing, and ends with their name."""

import io
import json
import os
import queue
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.fate import giving, share, wire
from osmotic.runtime.fate.handing import give_out
from osmotic.runtime.fate.link import MOST, Link, opened
from osmotic.runtime.fate.parameters import SiteFile, check_names, check_party
from osmotic.runtime.fate.pulse import Pulse
from osmotic.runtime.fate.taking import data_file
from osmotic.runtime.party.service import Service
from osmotic.runtime.party.site import Ref
from osmotic.runtime.privacy import accounts
from osmotic.runtime.transports import frames
from osmotic.runtime.transports.fate import Fate
from osmotic.schemas.artifacts import Records
from osmotic.schemas.errors import DataError, OsmoticError, PeerError, Problem, ProtocolFault, RefusedError
from osmotic.schemas.labels import raw
from osmotic.schemas.policy import SitePolicy

Tasks = Callable[..., dict[str, Any]]
Message = tuple[dict[str, Any], bytes]
NAMES = {"hub": "arbiter:10000", "north": "guest:9999", "south": "host:9998"}


class Box:
    """A link by hand: what is to come from anybody, and what was sent."""

    def __init__(self, *coming: Message) -> None:
        self.pulse, self.coming = Pulse(), list(coming)
        self.sent: list[tuple[str, dict[str, Any], bytes]] = []
        self.logs: list[str] = []

    def put(self, peer: str, header: dict[str, Any], blob: bytes = b"") -> None:
        self.sent.append((peer, header, blob))

    def take(self, peer: str, patience: float) -> Message:
        if not self.coming:
            raise PeerError(Problem(f"{peer} is silent"))
        header, blob = self.coming.pop(0)
        return dict(header), blob

    def log(self, text: str, level: str = "info") -> None:
        self.logs.append(text)

    def partners(self, *given: Any) -> None:
        self.given = given

    def overdue(self, error: OsmoticError) -> None:
        raise error


# ---- what other workers send ----


def received(link: Link, *sent: tuple[str, dict[str, Any], bytes]) -> OsmoticError | None:
    """Messages as the bridge brings them, read by a link; the fault that one of them is."""
    stream = io.BytesIO()
    for peer, header, blob in sent:
        head = frames.canonical(header)
        frames.write(stream, {"frame": "got", "from": peer}, frames.PREFIX.pack(len(head), len(blob)), head, blob)
    stream.seek(0)
    link.incoming = stream
    try:
        while link._next():
            pass
    except ProtocolFault as error:
        return error
    return None


@pytest.fixture
def link() -> Callable[[str], Link]:
    """The link of a party, which knows who the others are; of '', which does not know it yet."""

    def build(party: str) -> Link:
        one = Link(io.BytesIO(), io.BytesIO())
        one.boxes = {fate: queue.SimpleQueue() for name, fate in NAMES.items() if name != party}
        if party:
            one.partners(NAMES, "hub", party, 60.0)
        return one

    return build


def test_only_the_coordinator_ends_a_run(link: Any) -> None:
    done = {"frame": "done", "code": ""}
    chief, follower = link("hub"), link("north")
    assert received(chief, ("guest:9999", done, b"")) is None and chief.over is False
    assert received(follower, ("arbiter:10000", done, b"")) is None and follower.over is True


def test_followers_have_nothing_to_say_to_each_other(link: Any) -> None:
    fault = received(link("north"), ("host:9998", {"frame": "request", "op": "run"}, b""))
    assert "host:9998 (south) sent a message, and neither end of it is the coordinator" in str(fault)
    assert "no party of this job" in str(received(link("north"), ("host:1", {"frame": "request"}, b"")))


def test_a_party_that_fills_the_memory_is_stopped_and_named(link: Any) -> None:
    request = ("arbiter:10000", {"frame": "request", "op": "status"}, b"")
    one = link("north")
    assert "arbiter:10000 (hub) sends more than it was asked for" in str(received(one, *[request] * (MOST + 1)))
    early = received(link(""), ("arbiter:10000", {"frame": "hello"}, b"x" * 100_000))
    assert "arbiter:10000 sends more" in str(early)
    alive = ("arbiter:10000", {"frame": "alive"}, b"")
    assert received(link("north"), *[alive] * 100) is None  # these do not wait for anybody


def test_a_message_is_in_memory_once() -> None:
    size = 48 << 20
    ends = os.pipe()
    stream = os.fdopen(ends[0], "rb")

    def write() -> None:
        with os.fdopen(ends[1], "wb") as to:
            to.write(frames.PREFIX.pack(2, size) + b"{}")
            for _ in range(48):
                to.write(bytes(1 << 20))

    thread = threading.Thread(target=write)
    tracemalloc.start()
    thread.start()
    message = opened(stream, frames.PREFIX.size + 2 + size)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    thread.join()
    stream.close()
    assert message is not None and len(message[1]) == size and most < 1.2 * size


# ---- what other parties answer ----


@pytest.fixture
def hub(shop: Any, toys: Registry, tasks: Tasks) -> Iterator[tuple[Fate, Box]]:
    ready = api.prepare(shop.write(tasks()), home=shop.home, registry=toys)
    site = ready.open()["hub"]
    site.take(ready.graph, ready.configs)
    box = Box()
    yield Fate("hub", Service(site, local=True), NAMES, box, lambda *_: None, 5.0), box
    ready.close()


SAID = [
    ({"code": "policy", "exit": 99, "problems": [{"what": "open http://evil"}]}, "policy", 4),
    ({"code": "evil\x1b[2J", "exit": "x"}, "protocol", 7),
    ("evil", "protocol", 7),
    ({"code": ["policy"]}, "protocol", 7),
]


@pytest.mark.parametrize(("error", "code", "exit_code"), SAID)
def test_of_an_error_elsewhere_a_known_code_is_left(hub: tuple[Fate, Box], error: Any, code: str, exit_code: int) -> None:
    transport, box = hub
    box.coming = [({"frame": "reply", "error": error}, b"")]
    reply, _ = transport.request("north", {"op": "plan"})
    assert reply == {"error": {"code": code, "exit": exit_code, "problems": []}} and transport.failures == {"north": code}


ODD = [
    ("run", {"cached": "yes"}), ("run", {}), ("pull", {"digest": 1, "same": True}), ("held", {"held": []}), ("until", {}),
    ("heads", {"heads": {"charges": 1}}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "answer"), ODD)
def test_an_answer_that_is_none_is_named(hub: tuple[Fate, Box], op: str, answer: dict[str, Any]) -> None:
    transport, box = hub
    box.coming = [({"frame": "reply", **answer}, b"")]
    with pytest.raises(ProtocolFault, match=rf"guest:9999 \(north\) gave no answer to '{op}'"):
        transport.request("north", {"op": op})


def test_how_far_a_party_elsewhere_says_it_is_counts_for_nothing(hub: tuple[Fate, Box]) -> None:
    transport, box = hub
    box.coming = [({"frame": "progress", "task": "x" * 1000, "done": 1, "total": 2, "note": "evil"}, b"")]
    with pytest.raises(ProtocolFault, match="none of ours"):
        transport.request("north", {"op": "run", "id": "items@north"})


def test_a_failed_model_call_tells_another_party_no_words(hub: tuple[Fate, Box]) -> None:
    transport, box = hub
    call = {"frame": "outbound", "to": "hub", "op": "call", "model": "echo"}  # without a task: an error inside the service
    box.coming = [(call, b""), ({"frame": "reply", "cached": True, "seconds": 1.0}, b"")]
    transport.request("north", {"op": "run", "id": "items@north"})
    assert box.sent[1][1] == {"frame": "outbound", "error": {"code": "internal", "exit": 6, "problems": []}}


# ---- what a coordinator asks ----


def start_of(shop: Any, site: dict[str, Any], **more: Any) -> wire.Start:
    sites = shop.folder / "shop.sites.yaml"
    own = {"sites": str(sites), "home": str(shop.folder / "fate"), "plugins": ["toys"], "party": "north", **site}
    frame = {
        "frame": "start", "protocol": 1, "kind": "pipeline", "role": "guest", "party": "guest:9999", "site": own,
        "peers": list(NAMES.values()), "parameters": {"pipeline": (shop.folder / "shop.yaml").read_text()},
    }  # fmt: skip
    return wire.start({**frame, **more})


@pytest.fixture
def north(shop: Any, toys: Registry, toy_path: None) -> Callable[..., Any]:
    """Tasks and requests of the coordinator -> (the share of north, its link), after it has served them."""

    def go(tasks: dict[str, Any], requests: list[Message], **more: Any) -> tuple[share.Share, Box]:
        shop.write(tasks)
        box = Box(*requests)
        with share.opened(start_of(shop, more.pop("site", {}), **more), box) as made:  # type: ignore[arg-type]
            share.follow(made, box)  # type: ignore[arg-type]
        return made, box

    return go


def plan_of(shop: Any, text: str = "", overrides: tuple[str, ...] = ()) -> Message:
    own = (shop.folder / "shop.yaml").read_text()
    return {"frame": "request", "op": "plan", "name": "x", "overrides": list(overrides), "folder": "/"}, (text or own).encode()


def test_a_coordinator_runs_the_plan_of_the_job_and_no_other(north: Any, shop: Any, tasks: Tasks) -> None:
    shop.write(tasks())
    mine = plan_of(shop)
    for asked in (
        [plan_of(shop, '{"osmotic": 1}')],
        [plan_of(shop, overrides=("tasks.safe.config.mechanism.epsilon=9",))],
        [mine, mine],
    ):
        with pytest.raises(ProtocolFault, match="arbiter:10000 sent another plan than the job's"):
            north(tasks(), asked)
    done = {"frame": "done", "code": ""}
    made, box = north(tasks(), [mine, ({"frame": "request", "op": "share"}, b""), (done, b"")])
    assert [header.get("error", {}).get("code") for _, header, _ in box.sent] == [None, "protocol"]
    assert made.site.turns is None and made.site.overdue == box.overdue  # where tasks run in threads, nothing else ends them


def test_a_coordinator_does_not_learn_what_was_found_finished(north: Any, shop: Any, tasks: Tasks) -> None:
    shop.write(tasks())
    run, status = ({"frame": "request", "op": "run", "id": "items@north"}, b""), ({"frame": "request", "op": "status"}, b"")
    for _ in range(2):
        _, box = north(tasks(), [plan_of(shop), status, run, status, ({"frame": "done", "code": ""}, b"")])
        answers = [header for _, header, _ in box.sent]
        assert answers[1] == answers[3] and set(answers[1]["status"].values()) == {"runs"}
        assert (answers[2]["cached"], answers[2]["seconds"]) == (False, 0.0)


@pytest.mark.parametrize("parties", [{"evil\x1b[2J" * 100: "x", "hub": "no code"}, ["hub"], None])
def test_the_end_of_a_run_is_told_in_words_of_ours(north: Any, shop: Any, tasks: Tasks, parties: Any) -> None:
    shop.write(tasks())
    with pytest.raises(PeerError) as caught:
        north(tasks(), [({"frame": "done", "code": "protocol", "parties": parties}, b"")])
    assert [p.what for p in caught.value.problems] == ["arbiter:10000 (hub) ended the run: protocol"]


# ---- what is handed to FATE counts ----


@pytest.mark.parametrize(("given", "word"), [("items", "unprotected"), ("safe", "certified")])
def test_what_fate_gets_is_in_the_guarantee(north: Any, shop: Any, tasks: Tasks, tmp_path: Path, given: str, word: str) -> None:
    """Nothing crosses to another party here: the only way out is FATE."""
    shop.defaults = {"handover": ["items.records"]}
    own = {key: one for key, one in tasks().items() if key != "counted"}
    shop.write(own)
    parameters = {"pipeline": (shop.folder / "shop.yaml").read_text(), "outputs": {"guest": {"data": given}}}
    kinds = {"data": "data_directory", "report": "json_model"}
    places = {name: {"type": kind, "path": str(tmp_path / name)} for name, kind in kinds.items()}
    asked: list[dict[str, Any]] = [{"op": "run", "id": "items@north"}, {"op": "run", "id": "safe@north"}]
    asked.append({"op": "account", "crossings": ["items@north=>", "safe@north=>"]})
    requests = [plan_of(shop), *(({"frame": "request", **one}, b"") for one in asked), ({"frame": "done", "code": ""}, b"")]
    made, box = north(own, requests, parameters=parameters, outputs=places)
    told, private = json.loads(box.sent[3][2]), given == "items"
    assert told["word"] == word
    assert (told["epsilon"], told["waived"]) == ((0.0, ["handed: items.records"]) if private else (4.0, []))
    report = json.loads((tmp_path / "report").read_text())
    edge = "handed: items.records of items@north" if private else "handed: safe.sanitized of safe@north"
    assert report["guarantee"]["word"] == word
    assert report["handed"] == [{"edge": edge, "label": "exposed" if private else "protected"}]
    assert ("digest" in made.given_out["data"]) == (not private)


def test_a_row_whose_tasks_gave_fate_nothing_stays_protected(shop: Any, toys: Registry, tasks: Tasks, tmp_path: Path) -> None:
    shop.defaults = {"handover": ["items.records"]}
    ready = api.prepare(shop.write(tasks()), home=shop.home, registry=toys)
    site = ready.open()["north"]
    site.take(ready.graph, ready.configs)
    ref = Ref("records", site.store.put(Records([{"id": "north-1", "colour": "red"}])), raw("north", "items"))
    give_out(site, tmp_path / "out", ref, "items.records", {"task": "items@north"})
    assert accounts.account(site, ["items@north=>"])["word"] == "unprotected"
    assert accounts.account(site, ["counted@hub=>"])["word"] == "nothing crosses"
    assert [one["label"] for one in giving.handed_of(site)] == ["exposed"]
    ready.close()


# ---- what a job may not choose ----


def test_a_job_does_not_choose_which_party_with_data_a_site_is(north: Any, shop: Any, tasks: Tasks) -> None:
    with pytest.raises(RefusedError, match="private data of north, south; the job would choose") as caught:
        north(tasks(), [], site={"party": None})
    assert '"party":' in caught.value.problems[0].fix and caught.value.problems[0].path == "site.party"
    shop.binding = {"purpose": "benchmark"}
    shop.write(tasks())
    check_party(SiteFile(sites=str(shop.folder / "shop.sites.yaml")), "")  # nothing to choose by


def test_a_name_that_a_policy_trusts_is_whom_the_site_says() -> None:
    binding = {"path": "x", "schema": {"fields": {"a": {"domain": ["b", "c"]}}}}
    policy = SitePolicy.model_validate({"data": {"items": binding}, "endpoints": ["hub"]})
    job = {**NAMES, "hub": "host:666"}
    with pytest.raises(RefusedError, match="trusts 'hub' with private data, and the job says that this is host:666"):
        check_names(SiteFile(sites="s"), policy, job, "north", "site.json")
    pinned = SiteFile(sites="s", parties={"hub": "arbiter:10000", "west": "host:1"})
    with pytest.raises(RefusedError, match="the job makes host:666 the party 'hub', which is arbiter:10000 for this site"):
        check_names(pinned, policy, job, "north", "site.json")
    check_names(pinned, policy, NAMES, "north", "site.json")
    check_names(SiteFile(sites="s"), SitePolicy(), job, "north", "site.json")


def test_a_link_in_a_folder_of_fate_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "patients.jsonl").write_text("{}\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").symlink_to(tmp_path / "patients.jsonl")
    with pytest.raises(DataError, match=r"rows\.jsonl'? is a link"):
        data_file(wire.Place(type="data_directory", path=str(tmp_path / "in")), "inputs.data")


# ---- the end of a worker ----

LEAVE = """
import subprocess, sys
from osmotic.runtime.fate import ending
ending.own_group()
loop = [sys.executable, "-c", "import time; time.sleep(60)"]
children = [subprocess.Popen(loop), subprocess.Popen(loop, start_new_session=True)]
print(*[child.pid for child in children], flush=True)
ending.leave(3)
"""


def test_a_worker_leaves_with_its_children_and_its_status() -> None:
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    left = [Path("/proc") / pid / "stat" for pid in done.stdout.split()]
    assert len(left) == 2
    until = time.monotonic() + 5
    while left and time.monotonic() < until:  # one that has ended stays in the list until somebody asks for its status
        left = [file for file in left if file.exists() and file.read_text().rpartition(")")[2].split()[0] != "Z"]
        time.sleep(0.02)
    assert left == []

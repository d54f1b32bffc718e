# SPDX-License-Identifier: Apache-2.0
"""A site's mailbox and the coordinator's channel to it, without an engine: what is refused, bodies, calls, ends."""

import errno
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("cryptography", reason="the extra 'nvflare' is not installed")

from osmotic.runtime.nvflare import wire
from osmotic.runtime.nvflare.server.credential import Credential
from osmotic.runtime.nvflare.server.line import Line
from osmotic.runtime.nvflare.server.post import Post
from osmotic.runtime.nvflare.server.renewal import Renewal
from osmotic.runtime.nvflare.site import activity, desk, spool
from osmotic.runtime.nvflare.site.activity import Activity
from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.runtime.nvflare.site.mailbox import Mailbox
from osmotic.runtime.nvflare.wire import CHUNK, Header, Message, Unreachable, key_for, seal
from osmotic.schemas.errors import ComponentError, PeerError, Problem, StoreError

SECRET = bytes(range(32))
KEY, SESSION = key_for(SECRET, "north"), "ab" * 16


class Ways:
    """Where a mailbox hangs its ways out."""

    outbound: Any = None
    progress: Any = None
    overdue: Any = None


class Service:
    """Answers with what it was asked; `run` is what a test makes of it."""

    def __init__(self) -> None:
        self.site, self.asked, self.closed = Ways(), list[Header](), False
        self.run: Callable[[Header, bytes], Message] = lambda header, blob: ({"got": len(blob), **header}, blob[::-1])

    def handle(self, header: Header, blob: bytes) -> Message:
        self.asked.append(header)
        return self.run(header, blob)

    def close(self) -> None:
        self.closed = True


class Desk:
    """A mailbox with its service, and the post to it; `damage` sees what the post sends."""

    def __init__(self, folder: Path, **given: Any) -> None:
        self.folder, self.service, self.left = folder, Service(), list[int]()
        self.audit = Audit(folder / "audit.jsonl")
        self.box = self.start(**given)
        self.lost: Callable[[Header], bool] = lambda header: False
        self.sent: list[Header] = []
        self.patience = 20.0
        home = folder / "home"
        self.line = Line("north", self, Credential(home), Renewal(None), lambda: self.patience)
        self.post = Post(self.line)

    def start(self, **given: Any) -> Mailbox:
        self.box = Mailbox("north", self.folder, lambda: self.service, self.audit, lambda: {"osmotic": "x"}, self.left.append)
        return self.box

    def send(self, site: str, header: Header, blob: bytes, timeout: float) -> Message:
        self.sent.append(header)
        if self.lost(header):
            raise Unreachable(site, "timeout")
        assert len(blob) <= CHUNK and timeout >= 3
        found, body = self.box.handle(json.loads(json.dumps(header)), blob)
        assert len(body) <= CHUNK
        return json.loads(json.dumps(found)), body

    def ask(self, header: Header, blob: bytes = b"") -> Message:
        self.post.send(header, blob)
        return self.post.receive()

    def whats(self) -> list[str]:
        return [found["what"] for found in self.audit.lines()]


@pytest.fixture
def at(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


class Hand:
    """Messages to a mailbox by hand."""

    def __init__(self, box: Mailbox, key: bytes = KEY, epoch: int = 1, session: str = SESSION) -> None:
        self.box, self.key, self.epoch, self.session, self.n = box, key, epoch, session, 0

    def make(self, fields: Header, blob: bytes = b"", **more: Any) -> Header:
        self.n += 1
        return seal(self.key, {"session": self.session, "n": self.n, **fields, **more}, blob)

    def hello(self, **more: Any) -> Header:
        fields = {"op": "hello", "site": "north", "key": self.key.hex(), "epoch": self.epoch, "clock": time.time(), **more}
        return self.make(fields)

    def say(self, fields: Header, blob: bytes = b"") -> Message:
        return self.box.handle(self.make(fields, blob), blob, "someone")

    def start(self, seq: int, blob: bytes = b"", **header: Any) -> Header:
        return {"op": "start", "seq": seq, "id": f"id {seq}", "header": header, "total": len(blob)}


def part(seq: int, offset: int, total: int) -> Header:
    return {"op": "put", "seq": seq, "call": 0, "offset": offset, "total": total}


# ---- what is refused ----


def test_a_request_and_its_answer(at: Desk) -> None:
    assert at.ask({"op": "x"}, b"abc") == ({"got": 3, "op": "x", "frame": "reply"}, b"cba")
    assert at.ask({"op": "y"}) == ({"got": 0, "op": "y", "frame": "reply"}, b"")
    assert [header["op"] for header in at.sent] == ["hello", "start", "start"]  # one message a request
    assert at.line.facts == {"osmotic": "x"} and at.whats() == []


HOSTILE: dict[str, tuple[str, Callable[[Hand], tuple[Any, Any]]]] = {
    "no mapping": ("malformed", lambda by: ([1], b"")),
    "no bytes": ("malformed", lambda by: (by.make({"op": "ping"}), "text")),
    "not JSON": ("malformed", lambda by: ({"op": "ping", "x": float("nan")}, b"")),
    "no number": ("malformed", lambda by: (by.make({"op": "ping"}, n="3"), b"")),
    "empty": ("protocol", lambda by: ({}, b"")),
    "another protocol": ("protocol", lambda by: ({**by.make({"op": "ping"}), "osmotic": 2}, b"")),
    "no operation": ("unknown", lambda by: (by.make({"op": "shell"}), b"")),
    "an operation that is a list": ("unknown", lambda by: (by.make({"op": ["ping"]}), b"")),
    "another session": ("session", lambda by: (by.make({"op": "poll"}, session="cd" * 16), b"")),
    "another key": ("altered", lambda by: (Hand(by.box, b"k" * 32).make({"op": "ping"}), b"")),
    "no seal": ("altered", lambda by: ({**by.make({"op": "ping"}), "mac": None}, b"")),
    "a header with something added": ("altered", lambda by: ({**by.make({"op": "ping"}), "wait": 1}, b"")),
    "another body": ("altered", lambda by: (by.make({"op": "put"}, b"abc"), b"abd")),
    "half a body": ("truncated", lambda by: (by.make({"op": "put"}, b"abcd"), b"ab")),
    "a body cut short and sealed": ("truncated", lambda by: (by.make({**by.start(9, b"abcd"), "total": 9}, b"abcd"), b"abcd")),
    "a request without its identity": ("malformed", lambda by: (by.make({**by.start(9, op="x"), "id": 0}), b"")),
    "too long a body": ("oversized", lambda by: (by.make({"op": "put"}), bytes(CHUNK + 1))),
    "a body where none belongs": ("oversized", lambda by: (by.make({"op": "ping"}, b"abc"), b"abc")),
    "too large a sum": ("oversized", lambda by: (by.make({**by.start(9, op="x"), "total": wire.TOTAL + 1}), b"")),
    "a chunk nowhere": ("malformed", lambda by: (by.make(part(9, 3, 9), b"abc"), b"abc")),
    "a chunk of what is done": ("replayed", lambda by: (by.make(part(1, 0, 3), b"abc"), b"abc")),
    "another request of the same number": ("altered", lambda by: (by.make({**by.start(1, op="x"), "id": "other"}), b"")),
    "a message's number that was used": ("replayed", lambda by: (by.make({"op": "ping"}, n=1), b"")),
    "a greeting for another": ("name", lambda by: (by.hello(site="south", epoch=2), b"")),
    "a greeting without a key": ("malformed", lambda by: (by.make({"op": "hello", "site": "north", "epoch": 2}), b"")),
    "a greeting with a number that is none": ("malformed", lambda by: (by.hello(epoch=True), b"")),
    "an earlier session": ("replayed", lambda by: (Hand(by.box, session="cd" * 16, epoch=1).hello(), b"")),
    "another coordinator": ("owned", lambda by: (Hand(by.box, b"k" * 32, session="cd" * 16).hello(), b"")),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_part_of_a_run_is_refused_and_written_down(at: Desk, name: str) -> None:
    by = Hand(at.box)
    assert at.box.handle(by.hello(), b"")[0]["state"] == "ready"
    assert by.say(by.start(1, op="x"))[0]["state"] == "done"
    why, make = HOSTILE[name]
    answer, body = at.box.handle(*make(by), "someone")
    assert (answer.get("refused"), body) == (why, b"")
    assert [(found["what"], found["from"]) for found in at.audit.lines()] == [(why, "someone")]
    assert by.say(by.start(10, b"abc", op="y"), b"abc")[0]["header"] == {"got": 3, "op": "y"}  # the run goes on
    assert at.service.asked == [{"op": "x"}, {"op": "y"}]
    assert at.audit.path.stat().st_mode & 0o777 == 0o600


def test_a_message_is_taken_once_in_whatever_order(at: Desk) -> None:
    by = Hand(at.box)
    at.box.handle(by.hello(), b"")
    made = [by.make({"op": "ping"}) for _ in range(50)]
    assert all("refused" not in at.box.handle(one, b"")[0] for one in made[::-1])
    assert all(at.box.handle(one, b"")[0]["refused"] == "replayed" for one in made)
    by.n += 2 * 4096
    at.box.handle(by.make({"op": "ping"}), b"")
    by.n = 60
    assert at.box.handle(by.make({"op": "ping"}), b"")[0]["refused"] == "replayed"  # too old to tell


def test_an_old_greeting_opens_nothing_at_a_new_process(at: Desk) -> None:
    by = Hand(at.box, epoch=4)
    old = by.hello()
    assert at.box.handle(old, b"")[0]["state"] == "ready"
    assert at.box.handle(old, b"")[0]["refused"] == "replayed"
    fresh = at.start()
    for one in (old, Hand(fresh, epoch=3, session="cd" * 16).hello()):
        assert fresh.handle(one, b"")[0]["refused"] == "replayed"
    assert fresh.handle(Hand(fresh, epoch=5, session="cd" * 16).hello(), b"")[0]["state"] == "ready"
    assert at.whats() == ["replayed"] * 3


def test_a_clock_that_is_an_hour_off_is_a_word_and_no_more(at: Desk) -> None:
    by = Hand(at.box)
    assert at.box.handle(by.hello(clock=time.time() - 3600), b"")[0]["state"] == "ready"
    assert at.whats() == ["clock"] and at.audit.lines()[0]["why"] == "3600 s apart"


def test_the_audit_is_bounded_and_harmless(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "site" / "audit.jsonl", limit=2000)
    for i in range(40):
        audit.note("altered", f"s\x1b[2J{i}" + "x" * 1000, "y" * 1000)
    files = sorted(tmp_path.rglob("audit*"))
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1"]
    assert all(file.stat().st_size <= 2000 for file in files) and "\x1b" not in audit.lines()[0]["from"]
    audit.path.write_text("{half", encoding="utf-8")
    assert audit.lines() == []
    Audit(Path("/proc/nothing/audit.jsonl")).note("altered", "s")  # a disk that takes nothing stops nobody


# ---- bodies ----


def test_long_bodies_go_in_chunks_both_ways(at: Desk, tmp_path: Path) -> None:
    for size in (CHUNK, CHUNK + 1, 3 * CHUNK + 77):
        blob = os.urandom(size)
        header, body = at.ask({"op": "x"}, blob)
        assert header["got"] == size and body == blob[::-1]
    assert not (tmp_path / "arriving").exists()
    ops = [header["op"] for header in at.sent]
    assert ops.count("put") == 2 + 4 and ops.count("get") == 1 + 3 and ops.count("ack") == 2


def test_a_site_holds_no_more_than_it_has_to(at: Desk) -> None:
    """40 MB that the service only counts: the body once, and less than three chunks."""
    at.service.run = lambda header, blob: ({"got": len(blob)}, b"")
    by, total = Hand(at.box), 40 << 20
    at.box.handle(by.hello(), b"")
    tracemalloc.start()
    for offset in wire.offsets(total):
        chunk = bytes([offset >> 22]) * CHUNK
        assert by.say({"op": "put", "seq": 1, "call": 0, "offset": offset, "total": total}, chunk)[0].get("refused") is None
    arriving = at.folder / "arriving"
    assert tracemalloc.get_traced_memory()[1] < 3 * CHUNK and arriving.stat().st_mode & 0o777 == 0o600
    assert by.say({**by.start(1, op="x"), "total": total})[0]["header"] == {"got": total}
    assert tracemalloc.get_traced_memory()[1] < total + 3 * CHUNK
    tracemalloc.stop()


def test_a_full_disk_loses_nothing(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    at.ask({"op": "x"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(PeerError, match="its disk is full") as caught:
            at.ask({"op": "y"}, bytes(2 * CHUNK))
    assert caught.value.reason == "its disk is full" and set(at.whats()) == {"full"}
    assert not (at.folder / "arriving").exists()
    assert at.ask({"op": "y"}, bytes(2 * CHUNK))[0]["got"] == 2 * CHUNK


# ---- work ----


def test_a_server_cannot_take_the_last_of_the_disk(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by announcing a long body, of which one chunk comes, nor by messages that fit: the ledger has to go on."""
    usage = spool.shutil.disk_usage(at.folder)
    hand = Hand(at.box)
    at.box.handle(hand.hello(), b"")
    total = 3 * CHUNK
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda path: usage._replace(free=spool.SPARE + total - 1))
    assert hand.say(part(1, 0, total), b"x" * CHUNK)[0]["refused"] == "full"
    assert not (at.folder / "arriving").exists()
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda path: usage._replace(free=spool.SPARE))
    assert hand.say(hand.start(1, b"x" * CHUNK), b"x" * CHUNK)[0]["refused"] == "full" and at.service.asked == []
    assert hand.say(hand.start(1))[0]["state"] == "done"  # what needs no room goes on


def test_a_request_that_is_sent_again_runs_once(at: Desk) -> None:
    at.service.run = lambda header, blob: (time.sleep(0.2), ({"ok": 1}, b""))[1]  # type: ignore[func-returns-value]
    by = Hand(at.box)
    at.box.handle(by.hello(), b"")
    made = [by.make(by.start(1, op="x")) for _ in range(6)]
    found: list[Header] = []
    threads = [threading.Thread(target=lambda one=one: found.append(at.box.handle(one, b"")[0])) for one in made]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    assert by.say(by.start(2, op="y"))[0]["refused"] == "busy" and at.box.idle() == 0.0
    for thread in threads:
        thread.join()
    assert [one["header"] for one in found] == [{"ok": 1}] * 6 and len(at.service.asked) == 1
    assert by.say(by.start(2, op="y"))[0]["state"] == "done" and at.whats() == [] and at.box.idle() < 5


def test_model_calls_with_long_questions_and_answers(at: Desk) -> None:
    question, reply = os.urandom(CHUNK + 5), os.urandom(2 * CHUNK + 9)

    def run(header: Header, blob: bytes) -> Message:
        at.service.site.progress("t", 1, 2, "")
        first = at.service.site.outbound("hub", {"op": "call", "model": "m"}, question)
        second = at.service.site.outbound("hub", {"op": "call", "model": "n"}, b"small")
        return {"answers": [first[0], len(first[1]), second[0]]}, first[1]

    at.service.run = run
    at.post.send({"op": "run"}, b"")
    assert at.post.receive() == ({"op": "call", "model": "m", "to": "hub", "frame": "outbound"}, question)
    at.post.send({"frame": "outbound", "a": 1}, reply)
    assert at.post.receive() == ({"op": "call", "model": "n", "to": "hub", "frame": "outbound"}, b"small")
    at.post.send({"frame": "outbound", "a": 2}, b"")
    assert at.post.receive() == ({"answers": [{"a": 1}, len(reply), {"a": 2}], "frame": "reply"}, reply)


def test_a_model_call_is_given_up_when_the_coordinator_is_gone(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "DESERTED", -1.0)
    at.service.run = lambda header, blob: at.service.site.outbound("hub", {"op": "call"}, b"")
    header, _ = at.ask({"op": "run"})
    assert header["error"]["code"] == "lost"


def test_what_is_forbidden_is_written_down_without_words(at: Desk) -> None:
    refusal = {"error": {"code": "policy", "exit": 4, "problems": [{"what": "secret words"}]}}
    at.service.run = lambda header, blob: (refusal, b"")
    assert at.ask({"op": "plan", "name": "secret"})[0]["error"] == refusal["error"]  # what the service told goes as it is
    at.service.run = lambda header, blob: 1 / 0  # type: ignore[return-value]
    assert at.ask({"op": "run"})[0]["error"] == {"code": "component", "exit": 6, "problems": []}
    assert [(one["what"], one["why"]) for one in at.audit.lines()] == [
        ("plan refused", "policy"),
        ("run refused", "ZeroDivisionError"),
    ]


def test_a_task_past_its_deadline_is_answered_and_the_process_ends(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "FAREWELL", 0.3)
    over = threading.Event()

    def run(header: Header, blob: bytes) -> Message:
        threading.Thread(target=at.service.site.overdue, args=(ComponentError(Problem("slow")),)).start()
        over.wait(10)
        return {"late": 1}, b""

    at.service.run = run
    header, _ = at.ask({"op": "run"})
    assert header["error"] == {"code": "component", "exit": 6, "problems": []}
    until = time.monotonic() + 5
    while not at.left and time.monotonic() < until:
        time.sleep(0.02)
    over.set()
    assert at.left == [6]


def test_a_site_that_cannot_be_opened_says_so_and_is_asked_again(at: Desk) -> None:
    good, tries = at.service, [0]

    def opens() -> Service:
        tries[0] += 1
        if tries[0] == 1:
            raise StoreError(Problem("a file is wrong", "/secret/place"))
        if tries[0] == 2:
            raise StoreError(Problem("another run is using this folder"))
        return good

    at.box.desk.open = opens
    with pytest.raises(PeerError, match=r"its site cannot be opened \(store\)") as caught:
        at.ask({"op": "x"})
    assert "secret" not in str(caught.value) and at.whats() == ["open refused"]
    assert at.ask({"op": "x"})[0]["got"] == 0 and tries[0] == 3  # an earlier process was waited for


def test_closing_waits_for_what_is_at_work(at: Desk) -> None:
    at.ask({"op": "x"})
    at.service.run = lambda header, blob: (time.sleep(0.3), ({"ok": 1}, b""))[1]  # type: ignore[func-returns-value]
    by = threading.Thread(target=at.ask, args=({"op": "y"},))  # its answer is still told: the question was there before
    by.start()
    time.sleep(0.1)
    assert at.box.close(0.0) is False and at.box.close(5.0) is True
    by.join()
    assert len(at.service.asked) == 2
    at.patience = 0.3
    with pytest.raises(PeerError, match="without progress"):
        at.ask({"op": "z"})
    at.box.desk._thread.join(5)  # type: ignore[union-attr]
    assert at.service.closed and at.whats() == []


def test_only_work_moves_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "EVERY", 0.0)
    made, go, end = Activity(), threading.Event(), threading.Event()

    def work() -> None:
        go.wait(10)
        until = time.thread_time() + 0.2
        while time.thread_time() < until:
            sum(range(1000))
        end.set()
        go.clear()
        go.wait(10)

    made.thread = threading.Thread(target=work, daemon=True)
    made.thread.start()
    first = made.look()
    time.sleep(0.1)
    assert made.look() == first
    go.set()
    end.wait(10)
    second = made.look()
    assert second > first
    made.step()
    assert made.look() == second + 1 == made.look()
    go.set()


def test_whoever_looks_all_the_time_cannot_count_the_steps_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of 40 records and one of 4,000 move the counter alike: with the clock, not with the records."""
    now = [0.0]
    monkeypatch.setattr(activity.time, "monotonic", lambda: now[0])
    found = []
    for steps in (40, 4000):
        made = Activity()
        for number in range(steps):
            made.step()
            now[0] += 4.0 / steps
            found += [made.look()] if number == steps - 1 else [made.look()][:0]
    assert found[0] == found[1] <= 5


def test_a_restored_secret_catches_up_and_a_damaged_one_is_told(at: Desk) -> None:
    at.ask({"op": "x"})
    path = at.folder / "home" / "coordinator.json"
    old = path.read_text(encoding="utf-8")
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(3):
        at.line.session = ""
        at.ask({"op": "x"})
    path.write_text(old, encoding="utf-8")
    at.line.credential, at.line.session = Credential(at.folder / "home"), ""
    assert at.ask({"op": "y"})[0]["op"] == "y"
    path.write_text(old.replace('"secret"', '"secrets"'), encoding="utf-8")
    with pytest.raises(StoreError, match="this file is damaged"):
        Credential(at.folder / "home")


def test_a_site_whose_answers_make_no_sense_is_named(at: Desk) -> None:
    from osmotic.schemas.errors import ProtocolFault

    at.ask({"op": "x"})
    good = at.box.desk.state
    for wrong in ({"state": "gone"}, {"state": "done", "header": 1}, {"state": "done", "header": {}, "total": 1 << 40}):
        at.box.desk.state = lambda task, wait, wrong=wrong: (wrong, b"")  # type: ignore[method-assign, misc]
        with pytest.raises(ProtocolFault, match="north gave no answer that can be read"):
            at.ask({"op": "x"})
    at.box.desk.state = good  # type: ignore[method-assign]
    at.lost = lambda header: header["op"] != "hello"
    at.patience = 0.3
    with pytest.raises(PeerError, match=r"timeout after 0.3 s without progress"):
        at.ask({"op": "x"})


def test_time_in_which_the_coordinator_itself_stood_still_is_nobodys_silence(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    at.ask({"op": "x"})
    left = [3]

    def lost(header: Header) -> bool:
        left[0] -= 1
        if left[0] == 1:  # the process was frozen for an hour while it waited for an answer
            at.line._moved -= 3600
            at.line._looked -= 3600
        return left[0] > 0

    at.lost = lost
    assert at.ask({"op": "y"})[0]["op"] == "y"
    assert left[0] == 0


def test_while_the_engine_itself_is_away_nobodys_time_runs(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osmotic.runtime.nvflare.server.renewal.ABSENT", 0.0)
    begun, asked = time.monotonic(), list[float]()

    def renew(sites: list[str]) -> list[str]:
        asked.append(time.monotonic() - begun)
        if asked[-1] < 1.5:
            raise PeerError("the server does not answer")
        return sites if asked[-1] > 2.0 else []

    def send(site: str, header: Header, blob: bytes, timeout: float) -> Message:
        if time.monotonic() - begun < 2.4:
            raise Unreachable(site, "absent")
        return send_now(site, header, blob, timeout)

    send_now, at.send, at.patience = at.send, send, 0.7  # type: ignore[method-assign]
    at.line.renewal = Renewal(renew, every=0.1)
    assert at.ask({"op": "y"})[0]["op"] == "y" and len(asked) > 3
    monkeypatch.setattr("osmotic.runtime.nvflare.server.renewal.OUTAGE", 0.5)
    at.line.renewal.renew = lambda sites: (_ for _ in ()).throw(PeerError("gone"))
    begun = time.monotonic() + 60
    with pytest.raises(PeerError, match=r"timeout after 0\.7 s"):
        at.ask({"op": "z"})

# SPDX-License-Identifier: Apache-2.0
"""The bridge: one FATE task at one party. It starts the worker, meets the other bridges, and carries bytes until the end.

The loop runs in FATE's thread; others read the worker's frames, the peers' messages and their heartbeats and put what happens
into one queue. Whatever goes wrong ends here as `TaskError`, is told to the peers as a code, and ends the worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Tuple

from osmotic_fate import PROTOCOL, __version__, federation, frames, heartbeat, status
from osmotic_fate.status import TaskError
from osmotic_fate.worker import Worker

Prepare = Callable[[], Tuple[List[str], str, Dict[str, Any]]]


@dataclass
class Times:
    """Seconds: for the worker's first frame, until every peer has appeared, without a frame of the own worker, between two
    heartbeats, for a worker's own words when something failed, until it is killed then, and until a process that cannot end
    is left.
    """

    hello: float = 60.0
    appear: float = 180.0
    deadline: float = 600.0
    beat: float = heartbeat.EVERY
    grace: float = 3.0
    kill: float = 1.0
    leave: float = 5.0

    @property
    def silence(self) -> float:
        """How long a peer may show no sign of life."""
        return heartbeat.MISSED * self.beat


class Bridge:
    """Carries one task. own, parties: names as ``role:id``, in FATE's order; start: what the worker is told to do."""

    def __init__(self, ctx: Any, own: str, parties: list[str], task: str, times: Times) -> None:
        self.ctx, self.own, self.task, self.times = ctx, own, task, times
        self.parties = parties
        self.peers = [party for party in parties if party != own]
        self.events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()  # signal handlers may use this kind
        self.worker: Worker | None = None
        self.frames = 0  # signs of the worker's life
        self.word = os.urandom(8).hex()  # of this run
        self.words: dict[str, str] = {}  # of peers that are there
        self.keys: dict[str, str] = {}
        self.greeted: dict[str, dict[str, Any]] = {}
        self.finished: list[str] = []  # peers that ended well
        self.silence = heartbeat.Silence()
        self.putting = threading.Lock()
        self.outboxes: dict[str, federation.Outbox] = {}
        self.inboxes: dict[str, federation.Inbox] = {}
        self.beats: heartbeat.Beats | None = None

    def run(self, prepare: Prepare, environment: Mapping[str, str]) -> dict[str, Any]:
        """Do the task; returns the outputs that the worker names. Raises TaskError, of which the peers are told a code.

        prepare: gives the worker's command, its log file, and what it is told to do.
        """
        patience = self.times.leave
        stopping = self._stopped_by(signal.SIGTERM)
        try:
            self._connect()
            command, log, start = prepare()
            hello = self._worker_hello(command, environment, log)
            self._meet(hello)
            outputs = self._carry(start, hello)
            self._tell_all(federation.BYE, {})
        except TaskError as failed:
            self._tell_all(federation.FAULT, failed.notice(self.own))
            patience = self.times.kill
            raise
        finally:
            if self.beats:
                self.beats.stop()
            if self.worker:
                self.worker.close(patience)
            if stopping:
                stopping()
        return outputs

    def _stopped_by(self, number: int) -> Callable[[], Any] | None:
        """A signal that ends the process becomes an event, so that the peers hear of it; returns how to undo that."""
        if threading.current_thread() is not threading.main_thread():
            return None
        before = signal.signal(number, lambda *_: self.events.put({"frame": "stopped"}))
        return lambda: signal.signal(number, before)

    # ---- the beginning ----

    def _connect(self) -> None:
        if not self.peers:
            return
        most = federation.largest(self.ctx)
        channel = federation.Channel(self.ctx, "data", self.task, self.putting, self.keys)
        channel.open(self.own)
        beats = federation.Channel(self.ctx, "beat", self.task, self.putting, self.keys)
        self.beats = heartbeat.Beats(beats, self._broken, self.times.beat)
        for peer in self.peers:
            self.outboxes[peer] = federation.Outbox(channel, peer, most)
            self.inboxes[peer] = federation.Inbox(channel, peer, self._heard, self._deliver, self._broken)
        for peer in self.peers:
            self._say(peer, federation.HERE, {"word": self.word})
            self.inboxes[peer].start()

    def _worker_hello(self, command: Iterable[str], environment: Mapping[str, str], log: str) -> dict[str, Any]:
        """Start the worker and wait for its first frame, which says what it is."""
        try:
            self.worker = Worker(command, environment, log)
        except OSError as error:
            raise TaskError(f"the osmotic worker could not be started: {error}", "config", why="start") from None
        threading.Thread(target=self._read_worker, args=(self.worker,), name="worker", daemon=True).start()
        until = time.monotonic() + self.times.hello
        while True:
            event = self._next(min(1.0, until - time.monotonic()))
            kind = event.get("frame")
            if kind == "hello":
                return self._same_protocol(event)
            if kind == "gone" or time.monotonic() > until:
                self._no_hello("" if kind == "gone" else f"it said nothing for {self.times.hello:g} s")
            if kind in ("log", "metric"):
                self._refuse(event)
            self._handle(event)
            self._check_silence()

    def _no_hello(self, why: str) -> None:
        worker = self._need()
        how = why or worker.ended(self.times.leave)
        words = worker.last_words().replace("\n", "\n    ")
        raise TaskError(f"the osmotic worker did not start: {how}\n    {words}", "config", why="start")

    def _same_protocol(self, hello: dict[str, Any]) -> dict[str, Any]:
        if hello.get("protocol") != PROTOCOL:
            what = "the worker (osmotic {}) speaks version {} of the bridge's protocol, the bridge (osmotic-fate {}) version {}"
            text = what.format(hello.get("osmotic"), hello.get("protocol"), __version__, PROTOCOL)
            raise TaskError(text + "\n    install osmotic and osmotic-fate from the same release", "protocol", why="start")
        return hello

    def _meet(self, hello: dict[str, Any]) -> None:
        """Greet every peer, hear from every peer, and compare versions: before the worker is told anything."""
        own = {"protocol": PROTOCOL, "bridge": __version__, "osmotic": hello.get("osmotic"), "rules": hello.get("rules")}
        until, left = time.monotonic() + self.times.appear, list(self.peers)
        while left or len(self.greeted) < len(self.peers):
            for peer in [peer for peer in left if peer in self.words]:
                self._say(peer, federation.HELLO, {**own, "word": self.word, "heard": self.words[peer]})
                left.remove(peer)
            if len(self.greeted) == len(self.peers):
                break
            self._handle(self._next(1.0))
            self._check_silence()
            if time.monotonic() > until and (absent := [p for p in self.peers if p not in self.greeted]):
                text = "{} did not appear within {:g} s\n    the FATE log of that party says why its task did not start"
                raise TaskError(text.format(", ".join(absent), self.times.appear), "lost", absent[0], "silent")
        for peer, other in self.greeted.items():
            for key, what in (("protocol", "the bridge's protocol"), ("osmotic", "osmotic"), ("rules", "osmotic's rules")):
                if other.get(key) != own[key]:
                    text = "{} has version {} of {}, {} has {}\n    all parties of a job need the same"
                    raise TaskError(text.format(peer, str(other.get(key))[:40], what, self.own, own[key]), "protocol")

    # ---- the work ----

    def _carry(self, start: dict[str, Any], hello: dict[str, Any]) -> dict[str, Any]:
        own = {"frame": "start", "protocol": PROTOCOL, "bridge": __version__, "party": self.own}
        self._need().tell({**own, "peers": self.parties, **start})
        status.log.info("osmotic %s (Python %s) works for %s", hello.get("osmotic"), hello.get("python"), self.own)
        stuck = heartbeat.Silence()
        while True:
            event = self._next(1.0)
            if event.get("frame") == "end":
                return self._ended(event)
            try:
                self._handle(event)
                self._check_silence()
                self._check_worker(stuck)
            except TaskError as failed:
                raise self._own_words(failed) from None

    def _handle(self, event: dict[str, Any]) -> None:
        """One event of the queue. Raises TaskError for one that ends the task."""
        kind = event.get("frame")
        if kind == "log":
            status.write(event.get("level"), event.get("text"))
        elif kind == "metric":
            status.metric(self.ctx, event.get("name"), event.get("value"), event.get("step"))
        elif kind == "stopped":
            raise TaskError(f"the task of {self.own} was told to stop", "interrupted")
        elif kind == "gone":
            raise TaskError(self._gone(event["why"]), "internal", why="worker")
        elif kind == "broken":
            raise TaskError("FATE's federation failed with {}: {}".format(event["peer"], event["why"]), "lost", event["peer"])
        elif kind == "peer":
            self._from_peer(event["peer"], event["kind"], event["value"])
        elif kind is not None and kind != "beat":
            self._refuse(event)

    def _gone(self, why: str) -> str:
        worker = self._need()
        text = "the osmotic worker of {} ended in the middle: {}\n    what it printed is at this party, in {}"
        return text.format(self.own, why or worker.ended(self.times.leave), worker.log)

    def _from_peer(self, peer: str, kind: bytes, value: dict[str, Any]) -> None:
        if kind == federation.HERE:
            self.words[peer] = str(value.get("word"))
            if self.beats:
                self.beats.meet(peer)
        elif kind == federation.HELLO:
            if (value.get("heard"), value.get("word")) != (self.word, self.words.get(peer)):
                raise _earlier(peer)
            self.greeted[peer] = value
        elif kind == federation.BYE:
            self.finished.append(peer)
            if self.beats:
                self.beats.leave(peer)
        elif peer not in self.greeted and value.get("party") == self.own:  # it cannot miss whom it has not met
            raise _earlier(peer)
        else:
            raise status.told(peer, value, self.times.silence)

    def _check_silence(self) -> None:
        beats = self.beats
        if beats is None:
            return
        watched = [peer for peer in self.words if peer not in self.finished]
        signs = {peer: (self.inboxes[peer].values, beats.seen.get(peer)) for peer in watched}
        for peer, seconds in self.silence.tick(signs, 2.0).items():
            if seconds >= self.times.silence:
                raise status.told(peer, {"party": peer, "why": "silent", "code": "lost"}, self.times.silence)

    def _check_worker(self, stuck: heartbeat.Silence) -> None:
        if stuck.tick({"worker": self.frames}, 2.0)["worker"] >= self.times.deadline:
            text = "the osmotic worker of {} has shown no sign of life for {:g} s"
            raise TaskError(text.format(self.own, self.times.deadline), "internal", why="worker")

    def _ended(self, end: dict[str, Any]) -> dict[str, Any]:
        if end.get("exit") == 0:
            outputs = end.get("outputs")
            return outputs if isinstance(outputs, dict) else {}
        text = status.explained(end.get("problems")) or "the osmotic worker ended with exit status {}".format(end.get("exit"))
        raise TaskError(text, str(end.get("code")))

    def _own_words(self, failed: TaskError) -> TaskError:
        """Tell the worker why the task ends and hear it out for a moment: its own reason, if it has one, is the better one."""
        lost = {"frame": "lost", "peer": failed.party, "why": str(failed).partition("\n")[0]}
        self._need().tell(lost if failed.party else {"frame": "stop"})
        until = time.monotonic() + self.times.grace
        while failed.why != "worker" and (event := self._next(until - time.monotonic())):
            if event.get("frame") == "gone":
                break
            if event.get("frame") == "end":
                code, text = str(event.get("code")), status.explained(event.get("problems"))
                own = text and code not in ("lost", "interrupted", "None", "")
                return TaskError(f"{text}\n{failed}", code) if own else failed
        return failed

    # ---- what the threads do ----

    def _read_worker(self, worker: Worker) -> None:
        """Frames of the worker: bodies go straight to the peer, in slices; the rest goes into the queue."""
        why = ""
        try:
            while (frame := frames.next_header(worker.output)) is not None:
                header, size = frame
                if header.get("frame") == "put" and header.get("to") in self.outboxes:
                    self._put(worker, str(header["to"]), size)
                elif size:
                    raise frames.DamagedError("a body that goes nowhere: {}".format(str(header.get("to"))[:40]))
                else:
                    self.events.put(header)
                self.frames += 1
                if header.get("frame") == "end":
                    return
        except (OSError, ValueError, frames.DamagedError) as error:
            why = f"{type(error).__name__}: {error}"
        self.events.put({"frame": "gone", "why": why})

    def _put(self, worker: Worker, peer: str, size: int) -> None:
        outbox = self.outboxes[peer]
        try:
            outbox.send(size, self._counted(frames.pieces(worker.output, size, outbox.most)))
        except frames.DamagedError:
            raise
        except Exception as error:
            self._broken(peer, f"{type(error).__name__}: {error}")
            raise frames.DamagedError("a message was not sent") from error

    def _counted(self, body: Iterable[bytes]) -> Iterator[bytes]:
        for piece in body:
            self.frames += 1
            yield piece

    def _deliver(self, peer: str, size: int, body: Iterable[bytes | memoryview]) -> None:
        worker = self._need()
        worker.begun.wait()
        try:
            worker.send({"frame": "got", "from": peer}, size, body)
        except (OSError, ValueError):  # the reader of its frames says that it is gone
            for _ in body:
                pass

    def _heard(self, peer: str, kind: bytes, value: bytes) -> None:
        found = json.loads(value) if value else {}
        said: dict[str, Any] = found if isinstance(found, dict) else {}
        if kind == federation.HERE:
            self.keys[peer] = federation.key(self.word, said.get("word"))
        self.events.put({"frame": "peer", "peer": peer, "kind": kind, "value": said})

    def _broken(self, peer: str, why: str) -> None:
        self.events.put({"frame": "broken", "peer": peer, "why": why})

    def _next(self, seconds: float) -> dict[str, Any]:
        try:
            return self.events.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return {}

    def _refuse(self, event: dict[str, Any]) -> None:
        raise TaskError(
            "the osmotic worker sent a frame that is none of ours: {}".format(str(event.get("frame"))[:40]), "protocol"
        )

    def _say(self, peer: str, kind: bytes, value: dict[str, Any]) -> None:
        self.outboxes[peer].say(kind, json.dumps(value).encode())

    def _tell_all(self, kind: bytes, value: dict[str, Any]) -> None:
        """The last word to every peer; one that FATE cannot reach must not keep the others from hearing it."""
        for peer in self.peers:
            with contextlib.suppress(Exception):
                self._say(peer, kind, value)

    def _need(self) -> Worker:
        if self.worker is None:
            raise TaskError("the worker has not been started")
        return self.worker


def _earlier(peer: str) -> TaskError:
    return TaskError(f"what {peer} sent is of an earlier run\n    give each run of a job its own federation_id", "protocol")


def leave_after(seconds: float, exit_status: int = 1) -> None:
    """Leave the process after some seconds if it has not ended by then: a thread of FATE's engine may wait for ever."""

    def leave() -> None:
        time.sleep(seconds)
        os._exit(exit_status)

    threading.Thread(target=leave, daemon=True).start()

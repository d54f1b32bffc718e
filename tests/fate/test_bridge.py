# SPDX-License-Identifier: Apache-2.0
"""The bridge over a fake context with FATE's rules, with workers that follow a script."""

import hashlib
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fate_fake import PARTIES, Post, contexts
from osmotic_fate.bridge import Bridge, Times
from osmotic_fate.federation import AROUND
from osmotic_fate.status import TaskError, explained
from osmotic_fate.worker import Worker, environment_for, log_file

SCRIPT = Path(__file__).with_name("scripted_worker.py")
QUICK = {"beat": 0.1, "grace": 1.0, "leave": 2.0, "appear": 20.0}
GUEST, HOST, ARBITER = (f"{role}:{name}" for role, name in PARTIES)


class Job:
    """Three bridges in threads, each with a scripted worker."""

    def __init__(self, folder: Path, behaviours: dict[str, str], post: Post | None = None, **times: float) -> None:
        self.post = post or Post()
        self.contexts = contexts(self.post, [tuple(name.split(":")) for name in behaviours])
        self.folder, self.behaviours, self.times = folder, behaviours, Times(**{**QUICK, **times})
        self.bridges = {name: Bridge(ctx, name, list(behaviours), "train", self.times) for name, ctx in self.contexts.items()}
        self.results: dict[str, Any] = {}
        self.took: dict[str, float] = {}

    def one(self, name: str) -> None:
        log = self.folder / f"{name}.log"
        command = [sys.executable, str(SCRIPT), *self.behaviours[name].split()]
        begun = time.monotonic()
        try:
            prepared = (command, str(log), {"kind": "pipeline", "parameters": {"a": 1}})
            self.results[name] = self.bridges[name].run(lambda: prepared, environment_for({"PATH": "/usr/bin:/bin"}))
        except TaskError as error:
            self.results[name] = error
        self.took[name] = time.monotonic() - begun

    def run(self, absent: tuple[str, ...] = ()) -> dict[str, Any]:
        threads = [threading.Thread(target=self.one, args=(name,)) for name in self.behaviours if name not in absent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return self.results

    def texts(self) -> dict[str, str]:
        return {name: f"{type(result).__name__}: {result}" for name, result in self.results.items()}


def test_a_task_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "end"})
    told = job.run()[GUEST]["told"]
    assert (told["frame"], told["party"], told["peers"], told["parameters"]) == ("start", GUEST, [GUEST], {"a": 1})
    assert job.contexts[GUEST].told == [("accuracy", 0.5, "default.osmotic#3"), ("rounds", {"value": 2.0}, "scalar")]
    assert job.post.sizes == [] and not list(tmp_path.iterdir()), "nothing is sent, and an empty log is removed"


@pytest.mark.parametrize("size", [0, 1, 1000, (1 << 20) - AROUND, 1 << 20, 7_000_001])
def test_messages_arrive_whole_and_in_order(tmp_path: Path, size: int) -> None:
    job = Job(tmp_path, {GUEST: f"exchange-{size}", HOST: f"exchange-{size}", ARBITER: f"exchange-{size}"}, beat=1.0)
    results = job.run()
    assert {type(result) for result in results.values()} == {dict}, job.texts()
    for name, result in results.items():
        for peer, (its, ours) in result["digests"].items():
            assert (its, ours) == (results[peer]["own"], result["own"]), f"{name} from {peer}"
    assert max(job.post.sizes) <= 1 << 20
    assert results[ARBITER]["own"] == hashlib.sha256((ARBITER.encode() * (size // len(ARBITER) + 1))[:size]).hexdigest()


def test_what_fate_keeps_of_tags_does_not_grow(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "exchange-90000", HOST: "exchange-90000"}, Post(most=AROUND + 100), beat=0.02)
    job.run()
    assert {type(result) for result in job.results.values()} == {dict}, job.texts()
    for ctx in job.contexts.values():
        assert len(ctx.federation.used) > 40 and len(ctx.federation._push_history | ctx.federation._pull_history) < 8


def test_a_refusal_is_told_in_full_here_and_as_a_code_elsewhere(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "refuse", HOST: "wait", ARBITER: "wait"})
    results = job.run()
    here = "pipeline.yaml:4:2 tasks.a: no such task\n    because\n    known: b\nand another"
    assert (str(results[GUEST]), results[GUEST].code) == (here, "config")
    for name in (HOST, ARBITER):
        assert str(results[name]).startswith(f"{GUEST} failed (code: config)") and "no such task" not in str(results[name])


def test_an_own_reason_stands_before_that_of_a_peer(tmp_path: Path) -> None:
    results = Job(tmp_path, {GUEST: "refuse", HOST: "wait-policy"}).run()
    text = str(results[HOST])
    assert text.startswith(f"site.yaml:3:1 told: lost {GUEST}\n    mend it\n{GUEST} failed (code: config)")


@pytest.mark.parametrize(
    ("behaviour", "here", "there"),
    [
        ("die", "ended in the middle: killed by signal 9", "its osmotic worker ended unexpectedly"),
        ("noise", "ended in the middle: DamagedError", "its osmotic worker ended unexpectedly"),
        ("crash", "did not start: exit status 1\n    No module named osmotic", "could not start its osmotic worker"),
        ("end 0.1.0 2", "speaks version 2 of the bridge's protocol", "could not start its osmotic worker"),
        ("unknown", "sent a frame that is none of ours: open", "failed (code: protocol)"),
        ("stranger", "a body that goes nowhere: guest:1", "its osmotic worker ended unexpectedly"),
    ],
)
def test_a_worker_that_fails_ends_every_party(tmp_path: Path, behaviour: str, here: str, there: str) -> None:
    job = Job(tmp_path, {GUEST: "wait", HOST: behaviour})
    results = job.run()
    assert here in str(results[HOST]) and f"{HOST}" in str(results[GUEST]) and there in str(results[GUEST]), job.texts()
    assert max(job.took.values()) < 10


def test_a_worker_that_says_nothing_is_named(tmp_path: Path) -> None:
    mute = Job(tmp_path, {GUEST: "mute"}, hello=0.5, leave=0.2)
    hang = Job(tmp_path, {GUEST: "hang"}, deadline=1.0, leave=0.2)
    assert "did not start: it said nothing for 0.5 s" in str(mute.run()[GUEST])
    assert f"the osmotic worker of {GUEST} has shown no sign of life for 1 s" in str(hang.run()[GUEST])


def test_workers_of_two_versions_do_not_work_together(tmp_path: Path) -> None:
    results = Job(tmp_path, {GUEST: "wait 0.1.0", HOST: "wait 0.2.0"}).run()
    assert str(results[GUEST]).startswith(f"{HOST} has version 0.2.0 of osmotic, {GUEST} has 0.1.0\n")
    assert str(results[HOST]).startswith(f"{GUEST} has version 0.1.0 of osmotic, {HOST} has 0.2.0\n")


def test_a_party_that_never_appears(tmp_path: Path) -> None:
    results = Job(tmp_path, {GUEST: "wait", HOST: "wait", ARBITER: "wait"}, appear=1.5).run(absent=(HOST,))
    for name in (GUEST, ARBITER):
        assert str(results[name]).startswith(f"{HOST} ") and results[name].party == HOST


def test_a_party_that_falls_silent_is_named_by_all(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "wait", HOST: "wait", ARBITER: "wait"}, beat=0.25)
    threading.Timer(2.0, job.post.kill, [tuple(HOST.split(":"))]).start()
    results = job.run()
    for name in (GUEST, ARBITER):
        assert f"{HOST} has not been heard of for 1 s" in str(results[name]), job.texts()


def test_an_engine_that_breaks_is_a_reason(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "wait", HOST: "wait"})
    threading.Timer(1.5, job.post.break_at, [tuple(HOST.split(":"))]).start()
    results = job.run()
    assert f"FATE's federation failed with {GUEST}: OSError: the engine is gone" in str(results[HOST])
    assert HOST in str(results[GUEST])


def test_what_an_earlier_run_left_behind_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    post = Post()
    results = Job(tmp_path, {GUEST: "end", HOST: "wait"}, post, appear=0.5).run(absent=(GUEST,))
    assert results[HOST].code == "lost" and [value for value in post.values.values() if value[:1] == b"p"]
    again = Job(tmp_path, {GUEST: "wait", HOST: "wait"}, post, appear=1.0).run(absent=(HOST,))
    assert str(again[GUEST]).startswith(f"what {HOST} sent is of an earlier run"), "and nothing of it reached the worker"


def test_a_word_of_another_run_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "wait", HOST: "wait"})
    host = job.bridges[HOST]
    say = host._say
    host._say = lambda peer, kind, value: say(peer, kind, {**value, **({"heard": "0" * 16} if "heard" in value else {})})
    results = job.run()
    assert str(results[GUEST]).startswith(f"what {HOST} sent is of an earlier run\n    give each run"), job.texts()
    assert f"{GUEST} failed (code: protocol)" in str(results[HOST])


def test_a_party_that_dies_before_its_worker_has_started_is_seen(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "wait", HOST: "mute"}, beat=0.25, appear=60.0)
    threading.Timer(1.5, job.post.kill, [tuple(HOST.split(":"))]).start()
    job.run()
    assert f"{HOST} has not been heard of for 1 s" in str(job.results[GUEST]) and job.took[GUEST] < 20


def test_a_told_stop_ends_every_party_at_once(tmp_path: Path) -> None:
    job = Job(tmp_path, {GUEST: "wait", HOST: "wait"})
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(2.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    other = threading.Thread(target=job.one, args=(HOST,))
    other.start()
    job.one(GUEST)  # in the main thread, as in FATE
    other.join(20)
    assert (str(job.results[GUEST]), job.results[GUEST].code) == (f"the task of {GUEST} was told to stop", "interrupted")
    assert f"{GUEST} failed (code: interrupted)" in str(job.results[HOST]) and job.took[HOST] < 15
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_a_worker_prints_is_kept_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osmotic_fate.worker.LOG_SIZE", 200_000)
    script = "import sys\nfor i in range(100_000): print(i, file=sys.stderr)"
    log = log_file(str(tmp_path / "home"))
    worker = Worker([sys.executable, "-c", script], {}, log)
    assert worker.ended(60) == "exit status 0" and worker.last_words().endswith("99999")
    worker.close(1)
    sizes = [file.stat().st_size for file in (tmp_path / "home").iterdir()]
    assert len(sizes) == 2 and max(sizes) < 300_000
    assert {oct(file.stat().st_mode & 0o777) for file in (tmp_path / "home").iterdir()} == {"0o600"}


def test_old_logs_are_removed(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"worker-{number}.log").touch()
        os.utime(tmp_path / f"worker-{number}.log", (number, number))
    log_file(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 51 and not (tmp_path / "worker-0.log").exists()


def test_control_characters_do_not_reach_fates_log() -> None:
    assert "\x1b" not in explained([{"what": "a\x1b[2Jb", "fix": "c\nd"}])


def test_children_of_a_worker_end_with_it(tmp_path: Path) -> None:
    script = "import os, subprocess, time; os.setpgid(0, 0); p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=1)"
    worker = Worker([sys.executable, "-c", f"{script}; time.sleep(60)"], {"PATH": "/usr/bin:/bin"}, log_file(str(tmp_path)))
    child = int(worker.output.readline())
    worker.kill()
    worker.close(1)
    until = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text()

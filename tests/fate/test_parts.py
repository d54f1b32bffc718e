# SPDX-License-Identifier: Apache-2.0
"""The bridge's parts: its frames are the worker's, what a site may say, what FATE is told, what FATE's tasks must load."""

import ast
import io
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fate_fake import PARTIES, Context, Federation, Post
from osmotic_fate import frames, site, status
from osmotic_fate.federation import AROUND, SLICE, Channel, everybody, largest
from osmotic_fate.heartbeat import Beats, Silence
from osmotic_fate.status import TaskError
from osmotic_fate.task import run
from osmotic_fate.worker import environment_for, log_file

from osmotic.runtime.transports import frames as ours

SOURCES = Path(site.__file__).parent
GUEST, HOST, _ = (":".join(party) for party in PARTIES)


def test_the_frames_are_those_of_the_worker() -> None:
    theirs = io.BytesIO()
    ours.write(theirs, {"frame": "put", "to": "host:1", "n": 1.5, "text": "ä"}, b"body")
    theirs.seek(0)
    header, size = frames.next_header(theirs)
    assert (header, b"".join(frames.pieces(theirs, size, 3))) == (
        {"frame": "put", "to": "host:1", "n": 1.5, "text": "ä"},
        b"body",
    )
    assert frames.next_header(theirs) is None
    back = io.BytesIO(frames.pack({"frame": "got", "from": "ä"}, 3) + b"abc")
    assert ours.read(back) == ({"frame": "got", "from": "ä"}, b"abc")
    assert (frames.SIZES.format, frames.LONGEST_BODY, frames.LONGEST_HEADER) == (
        ours.PREFIX.format,
        ours.BODY_LIMIT,
        ours.LIMIT,
    )


@pytest.mark.parametrize(
    "damaged", [b"\0", b"Traceback of a thing", frames.SIZES.pack(3, 0) + b"[1]", frames.SIZES.pack(4, 0) + b"{}", b"\xff" * 40]
)
def test_a_damaged_frame_is_refused(damaged: bytes) -> None:
    with pytest.raises(frames.DamagedError):
        frames.next_header(io.BytesIO(damaged))


def test_a_body_that_ends_early_is_refused_and_large_ones_are_never_whole() -> None:
    with pytest.raises(frames.DamagedError):
        list(frames.pieces(io.BytesIO(b"abc"), 5, 2))

    class Endless:
        most = 0

        def read(self, size: int) -> bytes:
            self.most = max(self.most, size)
            return bytes(size)

    stream = Endless()
    assert sum(len(piece) for piece in frames.pieces(stream, 1 << 31, SLICE)) == 1 << 31
    assert stream.most == SLICE


def written(folder: Path, content: Any, mode: int = 0o644) -> dict[str, str]:
    (folder / "site.json").write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    (folder / "site.json").chmod(mode)
    return {site.FILE: str(folder / "site.json"), "PATH": "/nowhere"}


def test_a_sites_file_has_paths_of_its_own_folder(tmp_path: Path) -> None:
    environment = written(
        tmp_path, {"python": sys.executable, "home": "runs", "workers": {"new": "new/bin/python"}, "party": "north"}
    )
    found = site.load(environment)
    assert (found["home"], found["workers"]) == (str(tmp_path / "runs"), {"new": str(tmp_path / "new/bin/python")})
    assert site.interpreter(found, None, environment) == sys.executable
    assert site.load({}) == {}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"pyton": "x"},
            "site.json: pyton: no such key\n    known: home, inputs, parties, party, plugins, python, sites, state, workers",
        ),
        ({"python": 3}, "site.json: python: a path is wanted"),
        ({"workers": ["a"]}, "site.json: workers: paths by name is wanted"),
        ([], "site.json: a mapping is wanted"),
        ("{", "site.json: not JSON"),
    ],
)
def test_a_sites_file_that_is_wrong(tmp_path: Path, content: Any, said: str) -> None:
    with pytest.raises(TaskError) as caught:
        site.load(written(tmp_path, content))
    assert said in str(caught.value) and caught.value.code == "config"


def test_a_sites_file_that_anybody_may_write_or_that_is_absent(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="everybody may write this file"):
        site.load(written(tmp_path, {}, mode=0o666))
    with pytest.raises(TaskError, match="OSMOTIC_FATE_SITE names it, and it cannot be read: No such file"):
        site.load({site.FILE: str(tmp_path / "other.json")})


def test_a_job_chooses_among_the_sites_workers_by_name_only(tmp_path: Path) -> None:
    environment = written(tmp_path, {"workers": {"one": sys.executable, "two": "/nowhere/python"}})
    found = site.load(environment)
    assert site.interpreter(found, "one", environment) == sys.executable
    for worker, said in (
        (sys.executable, "parameters.worker: this site has no worker .*\n    known: one, two"),
        (None, "parameters.worker: name one of one, two"),
        ("two", "workers.two: /nowhere/python is no program"),
    ):
        with pytest.raises(TaskError, match=said):
            site.interpreter(found, worker, environment)


def test_without_a_site_the_worker_is_beside_the_command(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "env").mkdir()
    for name in ("osmotic", "python"):
        (tmp_path / "env" / name).write_text("#!/bin/sh\n")
        (tmp_path / "env" / name).chmod(0o755)
    (tmp_path / "bin" / "osmotic").symlink_to(tmp_path / "env" / "osmotic")
    assert site.interpreter({}, None, {"PATH": str(tmp_path / "bin")}) == str(tmp_path / "env" / "python")
    assert site.interpreter({}, None, {"PATH": "/nowhere", site.PYTHON: sys.executable}) == sys.executable
    with pytest.raises(
        TaskError, match="there is no osmotic worker at this party\n    install osmotic in an environment"
    ) as caught:
        site.interpreter({}, None, {"PATH": "/nowhere"})
    assert (caught.value.code, caught.value.why) == ("config", "start")


def test_the_worker_inherits_nothing_of_fates_python(tmp_path: Path) -> None:
    given = {"PATH": "/bin", "PYTHONPATH": "/fate", "PYTHONHOME": "/fate", "VIRTUAL_ENV": "/fate", "HTTPS_PROXY": "p"}
    assert environment_for(given) == {"PATH": "/bin", "HTTPS_PROXY": "p", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    log = Path(log_file(str(tmp_path / "home")))
    assert log.parent == tmp_path / "home" and log.stat().st_mode & 0o077 == 0


def test_what_another_party_is_told_holds_no_text() -> None:
    failed = TaskError("patients.jsonl:3: patient Smith has no label", "data")
    assert failed.notice("guest:1") == {"code": "data", "party": "guest:1", "why": "failed"}
    assert TaskError("x", "no such code").notice("guest:1")["code"] == "internal"
    passed_on = status.told("host:2", failed.notice("guest:1"), 20)
    assert passed_on.notice("arbiter:3") == failed.notice("guest:1"), "whoever tells it first tells the same"
    heard = status.told("host:2", {"code": "<b>", "party": "x" * 500, "why": {"a": 1}}, 20)
    assert str(heard).startswith("x" * 100 + " failed (code: internal) (host:2 noticed)")


def test_numbers_that_are_none_do_not_reach_fate() -> None:
    ctx = Context(Federation(Post()), ("guest", "1"), [("guest", "1")])
    for value in (float("nan"), "0.5", True, None):
        status.metric(ctx, "accuracy", value, 1)
    status.metric(ctx, "accuracy", 1, None)
    status.metric(ctx, "accuracy", 2, None)
    assert ctx.told == [("accuracy", {"value": 1}, "scalar")]


def test_silence_is_counted_in_ticks_of_the_own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("osmotic_fate.heartbeat.time.monotonic", lambda: clock[0])
    silence = Silence()

    def after(seconds: float, sign: int) -> float:
        clock[0] += seconds
        return silence.tick({"host:1": sign}, 2.0)["host:1"]

    assert [after(1, 0), after(1, 0), after(1, 1), after(1, 1)] == [0, 1, 0, 1]
    assert after(3600, 1) == 3, "an hour in which this machine slept is one tick"


def test_the_size_of_a_slice_follows_fates_largest_message() -> None:
    ctx = Context(Federation(Post(most=1 << 16)), ("guest", "1"), [("host", "2"), ("guest", "1")])
    assert largest(ctx) == (1 << 16) - AROUND
    assert everybody(ctx) == ("guest:1", ["host:2", "guest:1"])
    assert largest(object()) == SLICE


def test_a_process_without_a_federation_leaves_the_work_to_the_first(tmp_path: Path) -> None:
    class Rank:
        @property
        def local(self) -> None:
            raise RuntimeError("federation not set")

    assert run(Rank(), "guest", "pipeline", {"pipeline": "fedcot"}, {}, {}) is None


def imported(nodes: Sequence[ast.AST]) -> list[str]:
    found = [str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)]
    return found + [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]


def test_fate_loads_little_for_tasks_that_are_not_ours() -> None:
    """The module of the components imports FATE's own and this package's version at its top; nothing else does it need."""
    tree = ast.parse((SOURCES / "components.py").read_text(encoding="utf-8"))
    assert sorted(imported(tree.body)) == ["fate.components.core", "osmotic_fate", "typing"]


def test_the_bridge_uses_the_standard_library_of_python_3_8() -> None:
    for file in SOURCES.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 8))
        roots = {name.partition(".")[0] for name in imported(list(ast.walk(tree)))} - {"__future__", "osmotic_fate", "fate"}
        assert roots <= sys.stdlib_module_names, f"{file.name}: {roots - sys.stdlib_module_names}"


def test_heartbeats_end_with_a_last_one() -> None:
    post, broken, before = Post(), [], set(threading.enumerate())
    ours, theirs = (
        Beats(
            Channel(Context(Federation(post), me, PARTIES), "beat", "t", threading.Lock(), {GUEST: "a_b", HOST: "a_b"}),
            lambda *why: broken.append(why),
            0.02,
        )
        for me in PARTIES[:2]
    )
    theirs.leave(GUEST)  # has heard enough
    for beats, other in ((ours, HOST), (theirs, GUEST)):
        beats.meet(other)
    time.sleep(0.2)
    ours.stop()
    new = set(threading.enumerate()) - before
    reader = next(thread for thread in new if thread.name == f"heartbeats of {GUEST}")
    reader.join(5)
    assert not reader.is_alive() and theirs.seen[GUEST] >= 2 and ours.seen == {} and broken == []
    assert not [key for key in post.values if key[2] == PARTIES[0]], "nothing of it is left unread"

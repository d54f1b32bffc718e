# SPDX-License-Identifier: Apache-2.0
"""One conformance suite for every transport: the same pipeline, the same answers, errors and endings."""

import importlib
import io
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.run import FAMILIES, Runner, ask
from osmotic.runtime.transports import frames
from osmotic.runtime.transports.processes import Processes, Worker
from osmotic.schemas.errors import ComponentError, OsmoticError, PeerError, Problem, ProtocolFault, RefusedError

Tasks = Callable[..., dict[str, Any]]
Hashes = Callable[[Path], dict[str, str]]
SEEDED = {"seeded": True}
TOYS = Path(__file__).parent / "toy_plugin"
ECHO = {"echo": {"type": "toy-echo", "at": "server"}}


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.notes: list[tuple[str, str, int, int, str]] = []

    def started(self, total: int) -> None:
        self.total = total

    def task(self, instance: Any, cached: bool, seconds: float) -> None:
        self.tasks.append(instance.id)

    def progress(self, party: str, task: str, done: int, total: int, note: str) -> None:
        self.notes.append((party, task, done, total, note))


def by_fate(shop: Any, file: Path, home: Path, watcher: Any) -> dict[str, Any]:
    """The same as a FATE job: a worker a party, messages between them. What each party is told is put together here."""
    jobs = importlib.import_module("osmotic_fate_jobs")
    parameters, site = jobs.of_shop(file, home)
    job = jobs.Job(shop.folder / "job", [*jobs.THREE.values()], parameters, site)
    ends = job.wait(200)
    chief = ends["arbiter:10000"]
    if chief.get("exit") != 0:
        problems = [Problem(**problem) for end in ends.values() for problem in end.get("problems", ())]
        error = FAMILIES.get(str(chief.get("code")), PeerError)(*problems)
        error.exit_code = chief["exit"]
        error.add_note(str(ends))
        raise error
    assert all(end["exit"] == 0 for end in ends.values()), ends
    if watcher is not None:
        lines = [line.partition("] ") for line in job.bridges["arbiter:10000"].logs if line.startswith("[")]
        watcher.tasks += [task for _, _, task in lines]
    found: dict[str, Any] = json.loads((home / "shop" / "run.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, toys: Registry) -> Iterator[Any]:
    """NVFlare's server and two sites, as processes with TLS on loopback; each run gives the sites new processes."""
    pytest.importorskip("nvflare", reason="the extra nvflare is not installed")
    made = importlib.import_module("osmotic_deployed").Deployed(tmp_path_factory.mktemp("deployed"), ("north", "south"))
    try:
        with pytest.MonkeyPatch.context() as patch:  # undone at once: a test's own patches are undone before this fixture's end
            patch.setenv("PYTHONPATH", str(TOYS))
            patch.setenv("OSMOTIC_PLUGINS", "toys")
            made.up()
        yield made
    finally:
        made.down()


@pytest.fixture(
    params=["in process", "mailbox", *(pytest.param(name, marks=pytest.mark.slow) for name in ("processes", "fate", "nvflare"))]
)
def run(request: pytest.FixtureRequest, shop: Any, toys: Registry, toy_path: None) -> Iterator[Callable[..., dict[str, Any]]]:
    if request.param == "mailbox":
        pytest.importorskip("cryptography", reason="the extra 'nvflare' is not installed")

    def go(tasks: dict[str, Any], watcher: Any = None, home: str = "home", **document: Any) -> dict[str, Any]:
        file = shop.write(tasks, **document)
        if request.param == "fate":
            return by_fate(shop, file, shop.folder / home, watcher)
        if request.param == "mailbox":  # messages through an engine of threads
            found: dict[str, Any] = importlib.import_module("osmotic_post").by_post(file, shop.folder / home, toys, watcher)
            return found
        if request.param == "nvflare":
            shop.home = shop.folder / home / "shop"
            deployment = request.getfixturevalue("deployed")
            deployment.settle_in(shop.folder / "shop.sites.yaml", shop.folder / home)
            over: dict[str, Any] = deployment.run(file, shop.home, toys, watcher)
            return over
        return api.run(file, home=shop.folder / home, isolate=request.param == "processes", watcher=watcher, registry=toys)

    go.isolated, go.registry = request.param == "processes", toys  # type: ignore[attr-defined]
    go.veiled = request.param in ("fate", "mailbox", "nvflare")  # type: ignore[attr-defined] # others do not say what was cached, nor how far they are
    if request.param in ("fate", "nvflare"):
        shop.home = shop.folder / "home" / "shop"
    yield go


def transcript(home: Path, party: str) -> list[dict[str, Any]]:
    from osmotic.runtime.storage.ledger import Ledger

    ledger = Ledger(home / "parties" / party)
    found = [json.loads(body) for (body,) in ledger.query("SELECT body FROM crossings ORDER BY seq")]
    ledger.close()
    return found


def test_plan_run_and_run_again(run: Any, shop: Any, tasks: Tasks, hashes: Hashes) -> None:
    seen = Seen()
    first = run(tasks(), seen)
    assert first["outcome"]["ran"] == 5 and sorted(seen.tasks) == sorted(first["outcome"]["times"])
    assert {(c["sender"], c["receiver"]) for c in first["crossings"]} == {("north", "hub"), ("south", "hub")}
    assert "epsilon 4 a document (2 fields x 2), certified" in first["guarantee"]["line"]
    before = hashes(shop.home)
    again = run(tasks())
    assert again["outcome"]["cached"] == (1 if run.veiled else 5)
    assert again["outcome"]["ran"] == 5 - again["outcome"]["cached"]
    assert hashes(shop.home) == before and sum(c["bytes"] for c in again["crossings"]) == 0
    assert again["guarantee"] == first["guarantee"]
    found = verify(shop.home)
    assert found["problems"] == [] and [p["charges"] for p in found["parties"]] == [0, 12, 12]


@pytest.mark.slow
def test_all_transports_give_equal_artifacts(shop: Any, toys: Registry, toy_path: None, tasks: Tasks, hashes: Hashes) -> None:
    shop.defaults, shop.binding = SEEDED, {"purpose": "benchmark"}
    more = {
        "asked": {
            "component": "asker",
            "at": "clients",
            "inputs": {"records": "safe"},
            "config": {"model": "echo", "field": "colour"},
        }
    }
    file = shop.write(tasks(**more), noise_seed=3, models=ECHO)
    api.run(file, home=shop.folder / "one", registry=toys)
    api.run(file, home=shop.folder / "two", isolate=True, registry=toys)
    by_fate(shop, file, shop.folder / "three", None)
    one, two = hashes(shop.folder / "one"), hashes(shop.folder / "two")
    assert one == two == hashes(shop.folder / "three" / "shop") and len(one) == 9


def test_a_released_record_may_be_asked_about_elsewhere_once(run: Any, shop: Any, tasks: Tasks) -> None:
    config = {"model": "echo", "field": "colour"}
    made = tasks(asked={"component": "asker", "at": "clients", "inputs": {"records": "safe"}, "config": config})
    first = run(made, models=ECHO)
    calls = [e for e in transcript(shop.home, "north") if e["kind"] == "call"]
    assert [(e["to"], e["word"], e["edge"]) for e in calls] == [
        ("hub", "protected", "asked@north=>echo.generate"), ("hub", "protected", "asked@north=>echo.log_likelihood"),
    ]  # fmt: skip
    told = [c for c in first["crossings"] if c["name"] == "model echo" and c["sender"] == "north"]
    listed = [(e["edge"], 1, e["bytes"]) for e in calls]
    assert [(c["edge"], c["count"], c["bytes"]) for c in told] == ([] if run.veiled else listed)
    own = json.loads((shop.home / "parties" / "north" / "results.json").read_text(encoding="utf-8"))["crossings"]
    assert [(c["edge"], c["count"], c["bytes"]) for c in own if c["name"] == "model echo"] == listed
    made["asked"]["config"] = {**config}
    made["asked2"] = {**made["asked"], "inputs": {"records": "asked_in"}}
    made["asked_in"] = {"component": "relay", "at": "clients", "inputs": {"records": "safe"}}
    second = run(made, models=ECHO)
    later = [e for e in transcript(shop.home, "north") if e["kind"] == "call"]
    assert later[:2] == calls  # the same questions: not sent again, but the other task's account has them
    assert [(e["edge"], e["bytes"], e["word"]) for e in later[2:]] == [
        ("asked2@north=>echo.generate", 0, "protected"), ("asked2@north=>echo.log_likelihood", 0, "protected"),
    ]  # fmt: skip
    assert not [e for e in transcript(shop.home, "hub") if e["edge"].startswith("asked2@north")]
    assert second["guarantee"]["line"] == first["guarantee"]["line"]


def test_private_records_reach_a_model_elsewhere_only_if_the_site_trusts_it(run: Any, shop: Any, tasks: Tasks) -> None:
    config = {"model": "echo", "field": "colour"}
    made = {
        "items": tasks()["items"],
        "asked": {"component": "asker", "at": "clients", "inputs": {"records": "items"}, "config": config},
    }
    with pytest.raises(RefusedError, match="private data"):
        run(made, models=ECHO)
    assert not [e for e in transcript(shop.home, "north") if e["kind"] == "call"]
    shop.defaults = {"endpoints": ["echo"]}  # a name that the plan chooses opens nothing
    with pytest.raises(RefusedError, match="private data"):
        run(made, models=ECHO)
    shop.defaults = {"endpoints": ["hub"]}
    found = run(made, models=ECHO)
    words = {e["word"] for e in transcript(shop.home, "north") if e["kind"] == "call"}
    assert words == {"exposed"}
    assert "unprotected" in found["guarantee"]["line"]  # a call is a crossing: the run says so


def test_answers_from_the_cache_are_allowed_anew_and_counted_for_every_task(run: Any, shop: Any, tasks: Tasks) -> None:
    asked = {
        "component": "asker",
        "at": "clients",
        "inputs": {"records": "items"},
        "config": {"model": "echo", "field": "size"},
    }
    made = {"items": tasks()["items"], "asked": {**asked, "matrix": ["seed"]}}
    shop.defaults = {"endpoints": ["hub"]}
    run(made, models=ECHO, matrix={"seed": [1, 2]})
    calls = [e for e in transcript(shop.home, "north") if e["kind"] == "call"]
    sizes = {e["edge"]: e["bytes"] for e in calls}
    assert {e["word"] for e in calls} == {"exposed"} and len(sizes) == len(calls) == 4
    assert all((size > 0) == ("seed=1" in edge) for edge, size in sizes.items())
    assert verify(shop.home)["problems"] == []
    shop.defaults = {}
    with pytest.raises(RefusedError, match="private data"):
        run(made, models=ECHO, matrix={"seed": [3]})  # every answer is known here


def test_a_party_asks_another_one_for_model_calls_only(run: Any, shop: Any, tasks: Tasks) -> None:
    """A component that gets at its site's way out reaches no other operation, and names no other caller."""
    config = {"model": "echo", "field": "colour"}
    made = tasks(asked={"component": "asker", "at": "clients", "inputs": {"records": "safe"}, "config": config})
    if run.veiled:
        pytest.skip("what a worker inside FATE may ask of others is tested in test_fate_transport.py")
    ready = api.prepare(shop.write(made, models=ECHO), home=shop.home, registry=run.registry)
    call = {"op": "call", "model": "echo", "method": "generate", "label": []}
    with api.transport_of(ready, run.isolated, api.Quiet()) as transport:

        def out(header: dict[str, Any]) -> str:
            return str(transport._call("north", "hub", header, b"[]")[0].get("error", {}).get("code", "fine"))

        assert out({**call, "task": "asked@north"}) == "fine"
        for op in ("plan", "run", "pull", "account", "", None):
            assert out({**call, "op": op}) == "protocol"
        assert out({**call, "task": "asked@south", "from": "south"}) == "membrane"
        assert out({**call, "task": "safe@north"}) == "membrane"  # it names no model


def test_public_records_may_be_asked_about(run: Any, shop: Any, tasks: Tasks) -> None:
    shop.binding = {"label": "public"}
    config = {"model": "echo", "field": "colour"}
    asked = {"component": "asker", "at": "clients", "inputs": {"records": "items"}, "config": config}
    found = run({"items": tasks()["items"], "asked": asked}, models=ECHO)
    assert "nothing crosses" in found["guarantee"]["line"]


@pytest.mark.parametrize("how", ["raise", "exit", "wrong"])
def test_a_component_that_fails_is_an_error_with_its_party_and_task(run: Any, tasks: Tasks, how: str) -> None:
    made = tasks(broken={"component": "crasher", "at": "server", "config": {"how": how}})
    with pytest.raises(ComponentError) as caught:
        run(made)
    assert caught.value.exit_code == 6 and "broken@hub" in "".join([str(caught.value), *caught.value.__notes__])


def test_a_component_may_print_and_report_progress(run: Any, shop: Any, tasks: Tasks) -> None:
    seen = Seen()
    run({"talk": {"component": "talker", "at": "clients"}}, seen)
    told = [] if run.veiled else [("south", "talk@south", i, 3, "talking") for i in range(3)]
    assert [note for note in seen.notes if note[0] == "south"] == told


def test_a_site_that_refuses_names_every_reason(run: Any, shop: Any, tasks: Tasks) -> None:
    shop.defaults = {"max_epsilon": 1}
    with pytest.raises(RefusedError) as caught:
        run(tasks())
    assert caught.value.exit_code == 4 and "epsilon 2" in str(caught.value)


def test_a_repeat_that_stops_early_stands_for_the_later_rounds(run: Any, shop: Any, hashes: Hashes) -> None:
    loop = {
        "repeat": {"times": 6, "carry": {"score": {"from": "climb"}}, "until": {"metric": "climb:score", "at_least": 3}},
        "tasks": {"climb": {"component": "climber", "at": "server", "inputs": {"before": "carry.score"}}},
    }
    after = {"component": "climber", "at": "server", "inputs": {"before": "loop.climb"}}
    first = run({"loop": loop, "after": after})
    assert first["outcome"]["ran"] == 4 and list(first["outcome"]["stopped"].values()) == [3]
    before = hashes(shop.home)
    again = run({"loop": loop, "after": after})
    assert again["outcome"]["ran"] == 0 and again["outcome"]["stopped"] == first["outcome"]["stopped"]
    assert hashes(shop.home) == before


def test_unknown_parties(shop: Any, toys: Registry, toy_path: None, tasks: Tasks) -> None:
    for isolate in (False, True):
        ready = api.prepare(shop.write(tasks()), home=shop.home, registry=toys)
        with api.transport_of(ready, isolate, api.Quiet()) as transport, pytest.raises(PeerError, match="west"):
            ask(transport, "west", {"op": "status"})
        transport.close()  # twice is fine


# ---- processes alone ----


@pytest.mark.slow
def test_a_killed_worker_is_named_and_the_rest_is_kept(shop: Any, toys: Registry, toy_path: None, tasks: Tasks) -> None:
    made = tasks(broken={"component": "crasher", "at": "clients", "inputs": {}, "config": {"how": "kill"}})
    with pytest.raises(PeerError, match=r"process of (north|south) ended .*\n.*signal 9") as caught:
        api.run(shop.write(made), home=shop.home, isolate=True, registry=toys)
    assert caught.value.exit_code == 7
    found = api.run(shop.write(tasks()), home=shop.home, isolate=True, registry=toys)
    assert found["outcome"]["tasks"] == 5 and verify(shop.home)["problems"] == []


def open_processes(shop: Any, toys: Registry, tasks: dict[str, Any]) -> tuple[Any, Processes]:
    ready = api.prepare(shop.write(tasks, models=ECHO), home=shop.home, registry=toys)
    file = ready.policies.file
    assert file is not None
    return ready, Processes(list(ready.graph.role_of), shop.home, file.resolve(), lambda *_: None)


def test_workers_end_with_their_parent(shop: Any, toys: Registry, toy_path: None, tasks: Tasks) -> None:
    pid = os.fork()
    if pid == 0:
        _, transport = open_processes(shop, toys, tasks())
        for worker in transport.workers.values():
            worker.process.stdin = open(os.dup(worker.process.stdin.fileno()), "wb")  # noqa: SIM115, PTH123
        (shop.folder / "pids").write_text(" ".join(str(w.process.pid) for w in transport.workers.values()))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    pids = [int(p) for p in (shop.folder / "pids").read_text().split()]
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{p}").is_dir() and "Z" not in Path(f"/proc/{p}/stat").read_text().split()[2] for p in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_an_interrupt_ends_quickly_and_the_run_goes_on_later(shop: Any, toys: Registry, toy_path: None, tasks: Tasks) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        check_interrupted(shop, toys, tasks)
    finally:
        signal.signal(signal.SIGINT, before)


def check_interrupted(shop: Any, toys: Registry, tasks: Tasks) -> None:
    """A run whose workers never answer gets Ctrl-C; then it goes on."""
    ready, transport = open_processes(shop, toys, tasks())
    from osmotic.runtime.run import accept

    accept(transport, ready.graph)
    stopped = threading.Event()
    original = transport.request

    def slow(party: str, header: dict[str, Any], blob: bytes = b"") -> Any:
        if header["op"] == "run" and header["id"].startswith("safe"):
            os.kill(transport.workers[party].process.pid, signal.SIGSTOP)  # a task that takes for ever
            stopped.set()
        return original(party, header, blob)

    transport.request = slow  # type: ignore[method-assign]

    def interrupt() -> None:
        stopped.wait(30)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    processes = [w.process for w in transport.workers.values()]
    with pytest.raises(KeyboardInterrupt):
        Runner(ready.graph, transport, api.Quiet()).run()
    start = time.monotonic()
    transport.close()
    assert time.monotonic() - start < 7 and all(p.poll() is not None for p in processes)
    found = api.run(shop.folder / "shop.yaml", home=shop.home, registry=toys)
    assert found["outcome"]["cached"] >= 1 and verify(shop.home)["problems"] == []


def test_parties_that_wait_for_each_other_are_told_so(shop: Any, toys: Registry, toy_path: None, tasks: Tasks) -> None:
    _, transport = open_processes(shop, toys, tasks())
    transport.calls["hub"] = "north"  # the hub's task waits for north's model
    found, _ = transport._call("north", "hub", {"op": "call"}, b"")
    assert found["error"]["code"] == "lost" and found["frame"] == "outbound"
    assert transport.calls == {"hub": "north"}
    transport.close()


def frame(head: bytes, body: int = 0, size: int | None = None) -> bytes:
    return frames.PREFIX.pack(len(head) if size is None else size, body) + head


BROKEN = {
    "no JSON": frame(b"{op: 1}"),
    "no text": frame(b"\xff\xfe"),
    "no header": frame(b""),
    "no mapping": frame(b"[1]"),
    "too deep": frame(b"[" * 100_000),
    "too long": frame(b"{}", size=frames.LIMIT + 1),
    "too long a body": frame(b"{}", body=frames.BODY_LIMIT + 1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_frame_is_told_as_one(name: str) -> None:
    with pytest.raises(ProtocolFault):
        frames.read(io.BytesIO(BROKEN[name]))


def test_a_frame_that_is_cut_off_is_the_end() -> None:
    whole = io.BytesIO()
    frames.write(whole, {"op": "x"}, b"abc")
    assert frames.read(io.BytesIO(whole.getvalue())) == ({"op": "x"}, b"abc")
    assert all(frames.read(io.BytesIO(whole.getvalue()[:i])) is None for i in range(len(whole.getvalue())))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["too deep", "too long a body"])
def test_a_worker_answers_a_damaged_frame_and_ends(
    shop: Any, toys: Registry, toy_path: None, tasks: Tasks, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    shop.write(tasks())
    sites = shop.folder / "shop.sites.yaml"
    worker = Worker("north", shop.home, sites, {**os.environ, "OMP_NUM_THREADS": "1"}, ())
    to, back = worker.pipes()
    to.write(BROKEN[name])
    to.flush()
    answer = frames.read(back)
    assert answer is not None and answer[0]["frame"] == "reply" and answer[0]["error"]["code"] == "protocol"
    assert worker.process.wait(timeout=20) == 7
    to.close()
    back.close()
    assert "frame" in capfd.readouterr().err and "Traceback" not in capfd.readouterr().err


def test_errors_of_a_remote_site_are_rebuilt_by_code() -> None:
    from osmotic.runtime.run import rebuild

    for code, exit_code in (("budget", 4), ("membrane", 4), ("store", 5), ("data", 3), ("component", 6), ("lost", 7)):
        error = rebuild("north", {"op": "run", "id": "t@north"}, {"code": code, "exit": exit_code, "problems": []})
        assert isinstance(error, OsmoticError) and error.exit_code == exit_code and "north" in str(error)
        assert str(error.code) == code


def test_nothing_crosses_for_a_round_that_is_not_needed(run: Any, shop: Any, tasks: Tasks) -> None:
    loop = {
        "repeat": {
            "times": 5,
            "carry": {"score": {"from": "climb"}, "sent": {"from": "sent", "start": "safe"}},
            "until": {"metric": "climb:score", "at_least": 2},
        },
        "tasks": {
            "climb": {"component": "climber", "at": "server", "inputs": {"before": "carry.score"}},
            "sent": {"component": "relay", "at": "clients", "inputs": {"records": "carry.sent"}},
            "seen": {"component": "counter", "at": "server", "inputs": {"records": "sent"}},
        },
    }
    made = tasks(loop=loop)
    found = run(made)
    rounds = {int(c["edge"].partition("round=")[2].partition("]")[0]) for c in found["crossings"] if "loop." in c["edge"]}
    assert list(found["outcome"]["stopped"].values()) == [2] and rounds == {1, 2}
    assert verify(shop.home)["problems"] == []


def test_a_secure_sum_arrives_without_what_it_is_the_sum_of(run: Any, shop: Any, tasks: Tasks) -> None:
    """Over any transport: one session, charged once at each client, only masked vectors cross; again: nothing does."""
    asked = {"clip": 1.0, "range": 0.25, "at_least": 2, "noise_multiplier": 3.0}
    weights = {"weights": "trained", "previous": "start"}
    total = {"total": {"from": "update", "secure_sum": asked}, "previous": "start"}
    made = {
        "items": tasks()["items"],
        "start": {"component": "starter", "at": "server"},
        "trained": {"component": "puller", "at": "clients", "inputs": {"records": "items", "previous": "start"}},
        "update": {"component": "update_maker", "at": "clients", "inputs": weights},
        "mean": {"component": "secure_aggregator", "at": "server", "inputs": total},
    }
    shop.defaults = {"budget": {"*": {"per_document": 9, "per_client": {"epsilon": 9, "delta": 1e-5}}}}
    first = run(made)
    assert [(one["used"], one["of"], one["lost"]) for one in first["sums"]] == [(["north", "south"], 2, {})]
    kinds = {c["kind"] for c in first["crossings"] if c["edge"].startswith("update@")}
    assert kinds <= {"masked", ""} and "a client" in first["guarantee"]["line"]  # a party elsewhere says what it sent
    found = verify(shop.home)
    assert found["problems"] == [] and [p["charges"] for p in found["parties"]] == [0, 1, 1]
    again = run(made)
    assert again["guarantee"] == first["guarantee"] and sum(c["bytes"] for c in again["crossings"]) == 0
    assert [p["charges"] for p in verify(shop.home)["parties"]] == [0, 1, 1]

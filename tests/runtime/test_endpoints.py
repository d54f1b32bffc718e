# SPDX-License-Identifier: Apache-2.0
"""A model server is a party for the membrane: listed or refused, checked by label, written down before bytes leave."""

import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.contract import Answer, Generation, ModelPlugin, Records
from osmotic.plugins.host import Registered, Registry, build_registry
from osmotic.plugins.models.openai import OpenAiConfig, OpenAiModel
from osmotic.runtime import api
from osmotic.runtime.answers import Answers
from osmotic.runtime.endpoints import EndpointModel, crossing, granted
from osmotic.runtime.flow import infer
from osmotic.runtime.journal import TaskJournal
from osmotic.runtime.ledger import Ledger
from osmotic.runtime.ports import travelling
from osmotic.runtime.service import Service
from osmotic.runtime.verifying import verify
from osmotic.schemas.addresses import Address
from osmotic.schemas.errors import ConfigError, MembraneError, OsmoticError, PeerError, RefusedError
from osmotic.schemas.labels import PUBLIC, Label, Provenance, raw, released
from osmotic.schemas.policy import Remote, SitePolicy

pytest.importorskip("httpx2", reason="the extra 'openai' is not installed")

Tasks = Callable[..., dict[str, Any]]
KEY = "sk-do-not-tell-9876543210"


class Handler(BaseHTTPRequestHandler):
    """Answers, and notes what it was asked and what the transcripts said at that moment."""

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.prompts.append(body["messages"][-1]["content"])
        server.keys.append(self.headers.get("authorization"))
        server.written.append([row for folder in server.watched for row in calls(folder)])
        echo = f"refused: {self.headers.get('authorization')}" if server.status != 200 else "because of it"
        answer = {"choices": [{"message": {"content": echo}, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
        content = json.dumps(answer if server.status == 200 else {"error": echo}).encode()
        self.send_response(server.status, echo)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *given: Any) -> None:
        pass


def calls(folder: Path) -> list[dict[str, Any]]:
    """Model calls in a party's transcript, as a stranger reads the file."""
    with sqlite3.connect(f"file:{folder}/run.sqlite?mode=ro", uri=True) as db:
        rows = [json.loads(body) for (body,) in db.execute("SELECT body FROM crossings ORDER BY seq")]
    db.close()
    return [row for row in rows if row["kind"] in ("call", "answer")]


@pytest.fixture
def server() -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.prompts, made.keys, made.written, made.watched, made.status = [], [], [], [], 200
    made.origin = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def models(server: Any, at: str = "server", **more: Any) -> dict[str, Any]:
    return {
        "teacher": {"type": "openai", "at": at, "config": {"url": f"{server.origin}/v1", "model": "m", "attempts": 1, **more}}
    }


def teach(at: str, source: str, **inputs: Any) -> dict[str, Any]:
    each = {"each": "party"} if at == "server" else {}
    config = {"model": "teacher", "template": "Why {{ colour }}?"}
    return {"component": "teacher_generator", "at": at, **each, "inputs": {"prompts": source, **inputs}, "config": config}


@pytest.fixture
def run(shop: Any, toys: Registry, server: Any) -> Callable[..., dict[str, Any]]:
    def go(made: dict[str, Any], given: dict[str, Any], **options: Any) -> dict[str, Any]:
        return api.run(shop.write(made, models=given), home=shop.home, registry=toys, **options)

    return go


def listed(server: Any, sees: str = "protected", **more: Any) -> dict[str, Any]:
    return {"remote": [{"url": server.origin, "sees": sees, **more}]}


# ---- what the plan may use ----


def test_an_endpoint_that_no_policy_lists_is_refused_by_its_line(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    with pytest.raises(RefusedError, match=f"hub does not list the endpoint {server.origin}/v1") as caught:
        run(tasks(asked=teach("server", "safe")), models(server))
    problem = next(p for p in caught.value.problems if p.path == "models.teacher.config.url")
    assert "shop.yaml:" in problem.where and f'remote: [{{url: "{server.origin}/v1"}}]' in problem.fix
    assert server.prompts == []
    shop.defaults = {"remote": [{"url": f"{server.origin}/v2"}, {"url": "https://api.example.com"}]}
    with pytest.raises(RefusedError, match="does not list"):
        run(tasks(asked=teach("server", "safe")), models(server))


def test_a_plan_may_not_choose_which_secret_is_sent(
    run: Any, shop: Any, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_SECRET", KEY)
    shop.defaults = listed(server, key="TEACHER_KEY")
    with pytest.raises(RefusedError, match="does not send the environment variable 'CLOUD_SECRET'"):
        run(tasks(asked=teach("server", "safe")), models(server, key_variable="CLOUD_SECRET"))
    assert server.prompts == []


def test_released_prompts_go_after_they_were_written_down(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = listed(server)
    server.watched = [shop.home / "parties" / "hub"]
    found = run(tasks(asked=teach("server", "safe")), models(server))
    out = [row for row in calls(server.watched[0]) if row["direction"] == "out"]
    assert [(r["from"], r["to"], r["word"], r["name"]) for r in out] == [
        ("hub", server.origin, "protected", "model teacher")
    ] * 2
    assert all(r["bytes"] > 0 and len(r["digest"]) == 64 for r in out)
    assert server.prompts and all(any(r["direction"] == "out" for r in before) for before in server.written)
    back = [row for row in calls(server.watched[0]) if row["kind"] == "answer"]
    assert [(r["from"], r["to"], r["direction"]) for r in back] == [(server.origin, "hub", "in")] * 2
    assert verify(shop.home)["problems"] == [] and "certified" in found["guarantee"]["line"]
    asked = len(server.prompts)
    assert run(tasks(asked=teach("server", "safe")), models(server))["outcome"]["ran"] == 0 and len(server.prompts) == asked


def test_the_plan_shows_the_crossing(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    from osmotic.runtime.tables import plan_text

    shop.defaults = listed(server)
    made = api.plan(shop.write(tasks(asked=teach("server", "safe")), models=models(server)), home=shop.home, registry=toys)
    rows = [row for row in made["crossings"] if row["to"] == server.origin]
    assert [(r["edge"], r["from"], r["label"], r["kind"], r["count"]) for r in rows] == [
        ("model teacher", "server", "protected", "call", 2)
    ]
    assert f"server -> {server.origin}" in plan_text(made) and made["refusals"] == [] and server.prompts == []


def test_private_prompts_need_a_grant_and_make_the_run_unprotected(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    made = {"items": tasks()["items"], "asked": teach("clients", "items")}
    for sees in ("public", "protected"):
        shop.defaults = listed(server, sees)
        with pytest.raises(RefusedError, match=f"which may see {sees} data only") as caught:
            run(made, models(server, "clients"))
        assert "shop.yaml:" in caught.value.problems[0].where and caught.value.problems[0].path == "tasks.asked.config.model"
    assert server.prompts == []
    shop.defaults = listed(server, "private")
    found = run(made, models(server, "clients"))
    rows = [r for r in calls(shop.home / "parties" / "north") if r["direction"] == "out"]
    assert [(r["to"], r["word"]) for r in rows] == [(server.origin, "exposed")]
    assert (
        found["guarantee"]["line"].startswith("Guarantee of this run: unprotected")
        and "model teacher" in found["guarantee"]["line"]
    )


def test_public_prompts_need_the_listing_too(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.binding = {"label": "public"}
    made = {"items": tasks()["items"], "asked": teach("clients", "items")}
    with pytest.raises(RefusedError, match="does not list"):
        run(made, models(server, "clients"))
    shop.defaults = listed(server, "public")
    assert "nothing crosses" in run(made, models(server, "clients"))["guarantee"]["line"] and server.prompts


def test_waived_prompts_go_on_only_to_observers_by_their_origin(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.binding = {"purpose": "benchmark"}
    blinded = {
        "component": "record_blinder", "at": "clients", "inputs": {"records": "items"},
        "config": {"fields": ["colour", "size"]},
    }  # fmt: skip
    made = {
        "items": tasks()["items"], "blinded": blinded,
        "asked": teach("server", "blinded", prompts={"from": "blinded", "waive": "upper bound"}),
    }  # fmt: skip
    waiver = {"edge": "asked.prompts", "observers": ["hub"]}
    shop.defaults = {**listed(server, "private"), "waivers": [waiver]}
    with pytest.raises(RefusedError, match=f"may be seen by hub only, not by {server.origin}"):
        run(made, models(server))
    assert server.prompts == []
    shop.defaults = {**listed(server), "waivers": [{**waiver, "observers": ["hub", server.origin]}]}
    assert "unprotected" in run(made, models(server))["guarantee"]["line"] and server.prompts


def test_the_label_of_a_peer_travels_on_to_the_endpoint(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    made = {"items": tasks()["items"], "asked": teach("clients", "items")}
    shop.defaults = {"endpoints": ["hub"], **listed(server)}
    with pytest.raises(RefusedError, match=f"may be seen by hub only, not by {server.origin}"):
        run(made, models(server))
    assert server.prompts == []
    shop.defaults = {"endpoints": ["hub"], **listed(server, "private")}
    found = run(made, models(server))
    assert "unprotected" in found["guarantee"]["line"] and verify(shop.home)["problems"] == []
    rows = [r for r in calls(shop.home / "parties" / "hub") if r["direction"] == "out"]
    assert [(r["to"], r["word"]) for r in rows] == [(server.origin, "exposed")] * 2
    safe = tasks(asked=teach("clients", "safe"))
    shop.defaults = listed(server, "public")
    with pytest.raises(RefusedError, match="which may see public data only"):
        run(safe, models(server))
    shop.defaults = listed(server)
    assert "certified" in run(safe, models(server))["guarantee"]["line"]


def test_prompts_that_fail_at_a_peer_s_endpoint_have_their_word(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = listed(server)
    made = tasks(asked=teach("clients", "safe"))
    made["asked"]["config"]["max_failures"] = 1.0
    server.status = 400
    run(made, models(server))
    ledger = Ledger(shop.home / "parties" / "north")
    assert ledger.query("SELECT COUNT(*) FROM journal WHERE name='calls'") == [(0,)]  # what failed is asked again another time
    ledger.close()


def test_mechanisms_ask_no_endpoint(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = {**listed(server, "private"), "unproven": True}
    made = tasks()
    made["safe"] = {
        **made["safe"],
        "config": {"mechanism": {"name": "dp-prompt", "model": "teacher", "epsilon": 1}, "fields": ["colour"]},
    }
    with pytest.raises(RefusedError, match="a server answers"):
        run(made, models(server, "clients"))
    assert server.prompts == []


# ---- at run time, whatever was planned ----


def opened(shop: Any, toys: Registry, server: Any, made: dict[str, Any], party: str, at: str) -> Any:
    """A site that took a plan without checking it, as if it had been forged."""
    ready = api.prepare(shop.write(made, models=models(server, at)), home=shop.home, registry=toys)
    site = ready.open()[party]
    site.take(ready.graph, ready.configs)
    return ready, site


@pytest.mark.parametrize(
    ("sees", "word"), [(None, "does not list"), ("protected", "protected data only"), ("public", "public data")]
)
def test_a_forged_plan_gets_nothing(shop: Any, toys: Registry, server: Any, tasks: Tasks, sees: str | None, word: str) -> None:
    shop.defaults = listed(server, sees) if sees else {}
    made = {"items": tasks()["items"], "asked": teach("clients", "items")}
    ready, site = opened(shop, toys, server, made, "north", "clients")
    try:
        site.run("items@north")
        with pytest.raises(MembraneError, match=word):
            site.run("asked@north")
        assert server.prompts == [] and calls(site.ledger.folder) == []
    finally:
        ready.close()


def end(*given: Any) -> None:
    raise KeyboardInterrupt


def test_who_goes_on_with_a_killed_task_s_answers_answers_for_its_calls(
    shop: Any, toys: Registry, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.defaults = listed(server, "private")
    ready, site = opened(
        shop, toys, server, {"items": tasks()["items"], "asked": teach("clients", "items")}, "north", "clients"
    )
    try:
        site.run("items@north")
        with monkeypatch.context() as patch:
            patch.setattr(site, "_check_outputs", end)
            with pytest.raises(KeyboardInterrupt):  # every answer is in the journal, and the task has not finished
                site.run("asked@north")
    finally:
        ready.close()
    asked = len(server.prompts)
    ready, site = opened(
        shop, toys, server, {"items": tasks()["items"], "renamed": teach("clients", "items")}, "north", "clients"
    )
    try:
        site.run("items@north")
        site.run("renamed@north")
        rows = [(r["edge"], r["to"], r["word"], r["bytes"] > 0) for r in calls(site.ledger.folder) if r["direction"] == "out"]
        assert asked == len(server.prompts) > 0
        assert rows == [
            (f"{task}@north=>teacher.generate", server.origin, "exposed", task == "asked") for task in ("asked", "renamed")
        ]
    finally:
        ready.close()


def test_nothing_but_texts_comes_from_an_endpoint(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    ready, site = opened(shop, toys, server, tasks(asked=teach("clients", "safe")), "north", "clients")
    try:
        model = site.model("teacher", site.need()[0].instances["asked@north"], lambda: PUBLIC)
        assert not hasattr(model, "with_weights") and not hasattr(model, "log_likelihood")
        with pytest.raises(ConfigError, match=f"is asked at {server.origin}: it has no 'trainable' here"):
            model.trainable()
        with pytest.raises(MembraneError):
            model.generate(["x"], Generation())
        assert model.generate([], Generation()) == [] and list(model.stream([], Generation())) == []
    finally:
        ready.close()


def test_from_python_alone_the_same_check(shop: Any, toys: Registry, server: Any, tmp_path: Path) -> None:
    config = {"model": "teacher", "template": "Why {{ colour }}?"}
    records = Records([{"id": "a", "colour": "red", "size": "s"}])
    schema = {"fields": {"colour": {"domain": ["red", "blue"]}, "size": {"domain": ["s", "m"]}}}
    policy = SitePolicy.model_validate({"data": {"records": {"path": "x.jsonl", "schema": schema, "label": "public"}}})
    spec = {"teacher": {"type": "openai", "config": {"url": f"{server.origin}/v1", "model": "m"}}}
    with pytest.raises(OsmoticError, match=r"does not list|may not go"):
        api.call("teacher_generator", records, config, site=policy, home=tmp_path / "call", models=spec, registry=toys)
    assert server.prompts == []


def test_labels_one_by_one() -> None:
    address = Address.parse("https://api.example.com/v1")
    origin = address.origin

    def ask(label: Label, *remote: Remote) -> str:
        return crossing("north", SitePolicy(remote=remote), address, "teacher", label)[1]

    public, protected, private = (
        Remote(url="https://api.example.com", sees=sees) for sees in ("public", "protected", "private")
    )
    exposed = Label(frozenset({Provenance("south", "exposed", "e", ("north",))}))
    shown = Label(frozenset({Provenance("south", "exposed", "e", ("north", origin))}))
    assert [ask(PUBLIC, r) for r in (public, protected, private)] == ["", "", ""]
    assert [bool(ask(released("south", "r"), r)) for r in (public, protected, private)] == [True, False, False]
    assert [bool(ask(raw("north", "d"), r)) for r in (public, protected, private)] == [True, True, False]
    assert all(ask(raw("south", "d"), r) for r in (public, protected, private))  # another party's raw data is nobody's here
    assert all(ask(exposed, r) for r in (public, protected, private))
    assert [bool(ask(shown, r)) for r in (public, protected, private)] == [True, False, False]
    assert (
        ask(PUBLIC)
        and ask(PUBLIC, Remote(url="https://api.example.com/v2"))
        and ask(PUBLIC, Remote(url="http://api.example.com"))
    )
    narrow = Remote(url="https://api.example.com/v1", sees="public")
    assert granted(SitePolicy(remote=(private, narrow)), address) is narrow  # the longest path speaks


@pytest.mark.parametrize(
    "text",
    [
        "https://user@host/v1", "https://user:pw@host", "https://host/v1?x=1", "https://host/#a", "https://host/%2e%2e/v1", "https://host/../v1",
        "https://host//v1", "https://ho st/", "https://host\\@evil", "file:///etc/passwd", "https://", "https://host:0", "https://host:99999",
        "http://0x7f000001/", "http://2130706433/", "http://127.1/", "http://[::1", "http://a..b/", " https://host", "https://host\n",
        "https://h\N{CYRILLIC SMALL LETTER O}st/", "",
    ],
)  # fmt: skip
def test_addresses_that_may_be_read_in_two_ways_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|its ") as caught:
        Address.parse(text)
    assert "pw" not in str(caught.value)


def test_addresses_are_compared_in_one_form() -> None:
    one = Address.parse("https://API.Example.com:443/v1/")
    assert str(one) == "https://api.example.com/v1" and one.origin == "https://api.example.com"
    assert str(Address.parse("http://[0:0::1]:8000/")) == "http://[::1]:8000"
    assert Address.parse("https://a/v1").covers(Address.parse("https://a/v1/x"))
    assert not Address.parse("https://a/v1").covers(Address.parse("https://a/v10"))
    assert not Address.parse("https://a/v1").covers(Address.parse("https://a"))


# ---- secrets ----


@pytest.mark.parametrize("status", [200, 401, 500])
def test_the_key_is_in_no_file_and_no_log(
    run: Any,
    shop: Any,
    server: Any,
    tasks: Tasks,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    shop.defaults, server.status, said = listed(server, key="TEACHER_KEY"), status, ""
    try:
        said = json.dumps(run(tasks(asked=teach("server", "safe")), models(server, key_variable="TEACHER_KEY")))
    except OsmoticError as error:
        said = f"{error!r} {error.__cause__!r} {error.__context__!r} {error.problems}"
    assert f"Bearer {KEY}" in server.keys and KEY not in said + caplog.text and bool("HTTP 401" in said) == (status == 401)
    files = [path for path in shop.folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_key_is_in_nothing_that_the_program_says(shop: Any, toy_path: None, server: Any, tasks: Tasks) -> None:
    shop.defaults = listed(server, key="TEACHER_KEY")
    file = shop.write(tasks(asked=teach("server", "safe")), models=models(server, key_variable="TEACHER_KEY"))
    program = "from osmotic.runtime.cli import main; main()"
    for server.status, code in ((401, 2), (200, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, "run", str(file), "--home", str(shop.home), "--isolate"],
            env={**os.environ, "TEACHER_KEY": KEY}, capture_output=True, text=True, check=False, cwd=shop.folder,
        )  # fmt: skip
        assert KEY not in done.stdout + done.stderr and "Traceback" not in done.stderr and done.returncode == code
    assert f"Bearer {KEY}" in server.keys
    files = [path for path in shop.folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_registry_has_it() -> None:
    assert "openai" in build_registry(names=()).models


# ---- what a hostile plan or component might try ----


class Lazy:
    """A model that reads the prompts only as it answers them."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def stream(self, prompts: Any, how: Generation) -> Iterator[tuple[int, Any]]:
        for index in range(len(prompts)):
            self.read.append(prompts[index])
            yield index, Answer("x", True, 1)


def test_prompts_cannot_be_exchanged_after_they_were_checked(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    shop.defaults = listed(server)
    ready, site = opened(shop, toys, server, tasks(asked=teach("clients", "safe")), "north", "clients")
    try:
        lazy, prompts = Lazy(), ["public a", "public b"]
        model = EndpointModel(site, "asked@north", "teacher", lazy, Address.parse(f"{server.origin}/v1"), lambda: PUBLIC)
        stream = model.stream(prompts, Generation())
        next(stream)
        prompts[1] = "a secret"
        list(stream)
        assert lazy.read == ["public a", "public b"]
    finally:
        ready.close()


def test_data_that_became_private_later_does_not_go(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    shop.defaults = listed(server)
    ready, site = opened(shop, toys, server, tasks(asked=teach("clients", "safe")), "north", "clients")
    try:
        seen = [PUBLIC]
        model = site.model("teacher", site.need()[0].instances["asked@north"], lambda: seen[0])
        assert model.generate(["x"], Generation())
        waiting = model.stream(["y"], Generation())
        seen[0] = raw("north", "items")
        for ask in (
            lambda: next(waiting),
            lambda: model.generate(["z"], Generation()),
            lambda: next(model.batches(["z"], Generation())),
        ):
            with pytest.raises(MembraneError, match="protected data only"):
                ask()
        assert server.prompts == ["x"]
    finally:
        ready.close()


def test_a_peer_takes_a_plan_though_it_does_not_know_the_owner_s_policy(
    shop: Any, toys: Registry, server: Any, tasks: Tasks
) -> None:
    made = {"items": tasks()["items"], "asked": teach("clients", "items")}
    shop.defaults = {"endpoints": ["hub"], **listed(server, "private")}
    ready = api.prepare(shop.write(made, models=models(server)), home=shop.home, registry=toys)
    for party in ("hub", "north"):
        assert infer(ready.graph, {party: ready.policies.policies[party]}).refusals == []
    shop.defaults = {"endpoints": ["hub"], **listed(server)}
    ready = api.prepare(shop.write(made, models=models(server)), home=shop.home, registry=toys)
    assert infer(ready.graph, {"north": ready.policies.policies["north"]}).refusals == []  # the hub's address it may not judge
    public = SitePolicy.model_validate(listed(server, "public"))
    assert infer(ready.graph, {"hub": public}).refusals == []  # the clients' data may be public, which the hub cannot know
    sites = ready.open()
    try:
        for site in sites.values():
            site.take(ready.graph, ready.configs)
        sites["north"].run("items@north")
        hub = Service(sites["hub"], local=True)
        sites["north"].outbound = lambda party, header, blob: hub.handle({**header, "from": "north"}, blob)
        with pytest.raises(PeerError):  # the label of the call names hub alone
            sites["north"].run("asked@north")
        assert server.prompts == []
    finally:
        ready.close()


def test_an_origin_of_which_the_policy_says_less_elsewhere_sees_nothing_private_through_a_peer() -> None:
    url = "https://api.example.com"
    wide, narrow = Remote(url=url, sees="public"), Remote(url=f"{url}/v1", sees="private")
    for remote, allowed in (((narrow,), True), ((wide, narrow), False)):
        label = travelling(SitePolicy(remote=remote), "north", "hub", "teacher", raw("north", "d"))
        assert (url in label.of("exposed")[0].observers) == allowed


class Counting:
    """A model that says how many answers it gave; one prompt fails."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    def stream(self, prompts: Any, how: Generation) -> Iterator[tuple[int, Answer]]:
        for index, prompt in reversed(list(enumerate(prompts))):
            self.asked.append((prompt, how.of(index).seed))
            problem = "timeout" if prompt == "bad" else ""
            yield index, Answer("" if problem else f"answer {len(self.asked)}", True, 1, problem=problem)

    def generate(self, prompts: Any, how: Generation) -> list[Answer]:
        return [answer for _, answer in sorted(self.stream(prompts, how))]

    def log_likelihood(self, pairs: Any) -> list[tuple[float, int]]:
        self.asked += [(prompt, -1) for prompt, _ in pairs]
        return [(-float(len(prompt)), 1) for prompt, _ in pairs]


@pytest.fixture
def asking(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> Iterator[Callable[..., Any]]:
    """task, label, whether answers are kept -> (the model as that task has it, what the model itself was asked)."""
    shop.defaults = listed(server)
    ready, site = opened(shop, toys, server, tasks(asked=teach("clients", "safe")), "north", "clients")
    inner = Counting()

    def ask(task: str = "asked@north", label: Label = PUBLIC, keeps: bool = True) -> EndpointModel:
        kept = Answers(site.ledger, ["teacher", "its key"] if keeps else None)
        address = Address.parse(f"{server.origin}/v1")
        return EndpointModel(site, task, "teacher", inner, address, lambda: label, kept)

    ask.inner, ask.site = inner, site  # type: ignore[attr-defined]
    yield ask
    ready.close()


def test_no_question_is_paid_twice_by_several_tasks(asking: Any) -> None:
    first = asking().generate(["a", "b", "a"], Generation(seed=3))
    assert asking.inner.asked == [("b", 3), ("a", 3)] and first[0] == first[2] != first[1]
    came = list(asking("other@north").stream(["c", "b", "d", "a", "c"], Generation(seed=3)))
    assert [index for index, _ in came] == [1, 3, 2, 0, 4] and dict(came)[1] == first[1] and dict(came)[3] == first[0]
    assert [prompt for prompt, _ in asking.inner.asked[2:]] == ["d", "c"] and dict(came)[0] == dict(came)[4]
    assert asking("third@north").generate(["a", "d"], Generation(seed=3)) == [first[0], dict(came)[2]]
    assert len(asking.inner.asked) == 4


def test_other_options_another_seed_and_what_failed_are_asked(asking: Any) -> None:
    model, asked = asking(), asking.inner.asked
    for how in (Generation(), Generation(seed=1), Generation(temperature=0.5), Generation(stop=("x",)), Generation(seeds=(7,))):
        model.generate(["a"], how)
    assert asked == [("a", 0), ("a", 1), ("a", 0), ("a", 0), ("a", 7)]
    model.generate(["b", "a", "c"], Generation(seeds=(6, 7, 8)))
    assert asked[5:] == [("c", 8), ("b", 6)]  # the seed of each goes with it
    for _ in range(2):
        assert dict(model.stream(["bad", "a"], Generation()))[0].problem == "timeout"
    assert asked[7:] == [("bad", 0), ("bad", 0)]
    for _ in range(2):
        assert model.log_likelihood([("aa", "x"), ("b", "y")]) == [(-2.0, 1), (-1.0, 1)]
    assert asked[9:] == [("aa", -1), ("b", -1)]


def test_an_answer_that_is_known_is_in_the_account_of_everybody_who_asked(asking: Any) -> None:
    folder = asking.site.ledger.folder
    asking().generate(["a", "b"], Generation())
    for _ in range(2):  # noted once a label
        asking("other@north", released("south", "r")).generate(["a"], Generation())
    list(asking("other@north").stream(["b", "c"], Generation()))
    rows = [(r["edge"].partition("@")[0], r["direction"], r["word"], r["bytes"] > 0) for r in calls(folder)]
    assert rows == [
        ("asked", "out", "public", True),
        ("asked", "in", "public", True),
        ("other", "out", "protected", False),
        ("other", "out", "public", True),
        ("other", "in", "public", True),
    ]


def test_who_may_not_ask_is_not_told_what_is_known_and_a_peer_s_answers_are_not_kept(asking: Any) -> None:
    asking().generate(["a"], Generation())
    for ask in (
        lambda: asking(label=raw("north", "items")).generate(["a"], Generation()),
        lambda: next(asking(label=raw("north", "items")).stream(["a"], Generation())),
        lambda: asking(label=raw("north", "items")).log_likelihood([("a", "b")]),
    ):
        with pytest.raises(MembraneError, match="protected data only") as caught:
            ask()
        assert "which questions are asked depends on all that the task has read" in caught.value.problems[0].why
        assert "in a task of its own" in caught.value.problems[0].fix
    assert len(asking.inner.asked) == 1
    asking(keeps=False).generate(["a", "a"], Generation())
    asking(keeps=False).generate(["z"], Generation())
    assert asking.inner.asked[1:] == [("a", 0), ("a", 0), ("z", 0)]
    asking().generate(["z"], Generation())
    assert len(asking.inner.asked) == 5


def test_two_tasks_of_a_run_pay_once(run: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = listed(server)
    again = teach("server", "safe")
    again["config"] = {**again["config"], "batch": 3}
    run(tasks(asked=teach("server", "safe")), models(server))
    asked, folder = len(server.prompts), shop.home / "parties" / "hub"
    run(tasks(asked=teach("server", "safe"), again=again), models(server))
    assert len(server.prompts) == asked > 0
    rows = [r for r in calls(folder) if r["edge"].startswith("again") and r["direction"] == "out"]
    assert [(r["word"], r["to"], r["bytes"]) for r in rows] == [("protected", server.origin, 0)] * 2
    assert verify(shop.home)["problems"] == []


class Telling(OpenAiConfig):
    """A model whose secret stands in a default, where a plan need not write it."""

    key_variable: str | None = "CLOUD_SECRET"


class TellingModel(OpenAiModel):
    name = "telling"


def test_a_default_chooses_no_secret_either(
    shop: Any, toys: Registry, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_SECRET", KEY)
    monkeypatch.setattr(TellingModel, "__orig_bases__", (ModelPlugin[Telling],), raising=False)
    registry = Registry(toys.components, toys.mechanisms, {**toys.models, "telling": Registered(TellingModel, "x", "0")})
    shop.defaults = listed(server, key="TEACHER_KEY")
    spec = {"teacher": {"type": "telling", "at": "server", "config": {"url": f"{server.origin}/v1", "model": "m"}}}
    with pytest.raises(RefusedError, match="does not send the environment variable 'CLOUD_SECRET'"):
        api.run(shop.write(tasks(asked=teach("server", "safe")), models=spec), home=shop.home, registry=registry)
    assert server.prompts == []


def test_crossings_wait_for_the_disk_whatever_the_journal_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    levels: list[tuple[str, int]] = []

    def level() -> int:
        return int(ledger.query("PRAGMA main.synchronous")[0][0])

    append, original = ledger.append, TaskJournal.put_all
    monkeypatch.setattr(ledger, "append", lambda *given: (levels.append(("cross", level())), append(*given))[1])
    monkeypatch.setattr(
        TaskJournal, "put_all", lambda journal, values: (levels.append(("put", level())), original(journal, values))[1]
    )
    journal = TaskJournal(ledger, "task", "rows")

    def cross() -> None:
        ledger.cross(
            edge="e", name="n", sender="a", receiver="b", direction="out", kind="call", digest="d", size=1, label=PUBLIC
        )  # fmt: skip

    journal.put("a", 1)  # the first one waits
    journal.put_many({"b": 2, "c": 3})
    cross()
    with pytest.raises(ValueError, match="JSON"):
        journal.put("d", float("nan"))
    cross()
    assert levels == [("put", 2), ("put", 1), ("cross", 2), ("put", 1), ("cross", 2)]
    assert [journal.get(key) for key in "abcd"] == [1, 2, 3, None]
    ledger.close()


@pytest.mark.parametrize(
    "change", [{"max_new_tokens": 9}, {"template": "Why on earth {{ colour }}?"}, {"temperature": 0.5}, {}]
)
def test_answers_of_other_settings_are_not_taken_over(
    shop: Any, toys: Registry, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    shop.defaults = listed(server, "private")
    asked = []
    for more in ({}, change):
        made = {"items": tasks()["items"], "asked": teach("clients", "items")}
        made["asked"]["config"] |= more
        ready, site = opened(shop, toys, server, made, "north", "clients")
        try:
            site.run("items@north")
            with monkeypatch.context() as patch:
                patch.setattr(site, "_check_outputs", end)
                with pytest.raises(KeyboardInterrupt):
                    site.run("asked@north")
        finally:
            ready.close()
        asked.append(len(server.prompts))
    assert asked[1] == (2 if change else 1) * asked[0] > 0

# SPDX-License-Identifier: Apache-2.0
"""The `openai` model against a real HTTP server in a thread that answers, stalls, refuses, lies and drops on demand."""

import json
import logging
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic.plugins.contract import PROBLEMS, Answer, Generation
from osmotic.plugins.models.openai import OpenAiConfig, OpenAiModel, body_of
from osmotic.plugins.models.openai_answers import LARGEST, Reply, judge, read_answer
from osmotic.plugins.models.openai_pace import LONGEST, LONGEST_ASKED, Pace, backoff, retry_after
from osmotic.plugins.testing import check_model
from osmotic.schemas.errors import ComponentError, ConfigError

pytest.importorskip("httpx2", reason="the extra 'openai' is not installed")

KEY = "sk-very-secret-0123456789"
HOW = Generation(max_new_tokens=16)
Act = Callable[["Handler", dict[str, Any], int], None]  # (handler, body, how often this prompt was asked before)


def chat(text: Any, reason: Any = "stop", usage: Any = None) -> dict[str, Any]:
    """A chat completion."""
    usage = {"prompt_tokens": 10, "completion_tokens": 4} if usage is None else usage
    return {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}],
        "usage": usage,
    }


class Handler(BaseHTTPRequestHandler):
    """Notes what is asked, then does what the test says."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        with server.lock:
            before = server.asked[prompt]
            server.asked[prompt] += 1
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.paths.append(self.path)
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            server.act(self, body, before)
        finally:
            with server.lock:
                server.now -= 1

    def send(self, content: Any, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drop(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *given: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    """A server on a free port of this machine; `act` says what it does."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock, self.asked, self.bodies, self.headers, self.paths = threading.Lock(), Counter(), [], [], []
        self.now = self.most = 0
        self.act: Act = lambda handler, body, before: handler.send(chat(f"about {prompt_of(body)}"))

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass


def prompt_of(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff of a hundredth of a second."""
    monkeypatch.setattr("osmotic.plugins.models.openai_pace.BASE", 0.01)


def settings(server: Server, **more: Any) -> OpenAiConfig:
    host, port = server.server_address[:2]
    return OpenAiConfig(url=f"http://{host}:{port}/v1", model="tiny", **{"timeout": 5.0, **more})


def ask(server: Server, prompts: list[str], how: Generation = HOW, **more: Any) -> list[Answer]:
    found = dict(OpenAiModel(settings(server, **more)).build().stream(prompts, how))
    assert sorted(found) == list(range(len(prompts)))
    return [found[i] for i in range(len(prompts))]


def test_what_is_sent_and_what_comes_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    how = Generation(max_new_tokens=9, temperature=0.7, top_p=0.9, stop=("\n\n", "END"), seed=11)
    answers = ask(server, ["one"], how, key_variable="TEACHER_KEY", system="Be brief.", price={"prompt": 1.0, "completion": 2})
    assert answers == [Answer("about one", True, 4, 10, (10 * 1 + 4 * 2) / 1e6)]
    assert server.bodies == [
        {
            "model": "tiny", "max_tokens": 9, "temperature": 0.7, "top_p": 0.9, "seed": 11, "stop": ["\n\n", "END"],
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}],
        }
    ]  # fmt: skip
    assert server.paths == ["/v1/chat/completions"] and server.headers[0]["authorization"] == f"Bearer {KEY}"


def test_completions(server: Server) -> None:
    server.act = lambda h, body, n: h.send({"choices": [{"text": "yes END no", "finish_reason": "length"}]})
    answers = ask(
        server, ["p"], Generation(max_new_tokens=3, stop=("END",)), api="completions", length_key="max_completion_tokens"
    )
    assert answers == [Answer("yes ", True, 0)]
    assert server.paths == ["/v1/completions"] and server.bodies[0]["prompt"] == "p"
    assert server.bodies[0]["max_completion_tokens"] == 3 and "authorization" not in server.headers[0]


def test_length_limit(server: Server) -> None:
    server.act = lambda h, body, n: h.send(chat("cut off in", "length"))
    assert not ask(server, ["p"])[0].finished


def test_answers_come_as_they_are_ready_and_generate_keeps_the_order(server: Server) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        time.sleep(0.3 if prompt_of(body) == "p0" else 0.01)
        handler.send(chat(prompt_of(body).upper()))

    server.act = act
    model = OpenAiModel(settings(server)).build()
    prompts = [f"p{i}" for i in range(6)]
    order = [index for index, _ in model.stream(prompts, HOW)]
    assert order[-1] == 0 and sorted(order) == list(range(6))
    assert [answer.text for answer in model.generate(prompts, HOW)] == [f"P{i}" for i in range(6)]


@pytest.mark.parametrize("fault", ["429", "429-date", "500", "503", "drop", "html", "stall", "cut"])
def test_faults_that_pass_are_tried_again(server: Server, fault: str) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        if before or prompt_of(body) != "p1":
            handler.send(chat("fine"))
        elif fault == "429":
            handler.send({"error": "slow down"}, 429, Retry_After="0.2")
        elif fault == "429-date":
            handler.send(b"", 429, Retry_After=format_datetime(datetime.now(UTC) + timedelta(seconds=1.3), usegmt=True))
        elif fault in ("500", "503"):
            handler.send(b"oops", int(fault), "text/plain")
        elif fault == "drop":
            handler.drop()
        elif fault == "html":
            handler.send(b"<html>gateway</html>", 200, "text/html")
        elif fault == "stall":
            time.sleep(1.0)
            handler.drop()
        else:
            handler.send_response(200)
            handler.send_header("content-length", "1000")
            handler.end_headers()
            handler.wfile.write(b'{"choices": [{"mess')
            handler.close_connection = True

    server.act = act
    start = time.monotonic()
    answers = ask(server, ["p0", "p1", "p2"], timeout=0.4 if fault == "stall" else 5.0)
    assert [a.text for a in answers] == ["fine"] * 3 and server.asked == {"p0": 1, "p1": 2, "p2": 1}
    assert fault != "429" or time.monotonic() - start > 0.2
    assert fault != "429-date" or time.monotonic() - start > 0.25


@pytest.mark.parametrize(
    ("status", "word", "times"),
    [
        (400, "refused-request", 1), (422, "refused-request", 1), (413, "too-long", 1), (302, "bad-answer", 1),
        (429, "overloaded", 3),
        (503, "overloaded", 3), (500, "server-error", 3), (418, "refused-request", 1),
    ],
)  # fmt: skip
def test_faults_that_stay_have_a_word_and_the_others_go_on(server: Server, status: int, word: str, times: int) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        bad = prompt_of(body) == "bad"
        handler.send({} if bad else chat("fine"), status if bad else 200, location="http://127.0.0.1:9/elsewhere")

    server.act = act
    answers = ask(server, ["a", "bad", "b"], attempts=3)
    assert [a.problem for a in answers] == ["", word, ""] and word in PROBLEMS
    assert answers[1].text == "" and not answers[1].finished and server.asked["bad"] == times
    with pytest.raises(ComponentError, match=f"1 of 2 prompts have no answer\n    1 {word}"):
        OpenAiModel(settings(server, attempts=1)).build().generate(["a", "bad"], HOW)


def test_a_prompt_that_is_too_long_and_an_empty_one(server: Server) -> None:
    what = {"error": {"message": "This model's maximum context length is 8192 tokens", "code": "context_length_exceeded"}}
    server.act = lambda h, body, n: h.send(what, 400)
    assert [a.problem for a in ask(server, ["long", " \n"])] == ["too-long", "empty-prompt"] and list(server.asked) == ["long"]


def test_a_server_that_never_answers(server: Server) -> None:
    server.act = lambda h, body, n: time.sleep(0.5)
    assert ask(server, ["p"], timeout=0.1, attempts=2)[0].problem == "timeout"


def test_a_server_that_drips_is_a_timeout(server: Server) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "100")
        handler.end_headers()
        for _ in range(20):
            time.sleep(0.05)
            handler.wfile.write(b" ")

    server.act = act
    start = time.monotonic()
    assert ask(server, ["p"], timeout=0.3, attempts=1)[0].problem == "timeout" and time.monotonic() - start < 0.9


def test_no_server_at_all() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        config = OpenAiConfig(url=f"http://127.0.0.1:{unused.getsockname()[1]}/v1", model="m", attempts=2)
        found = dict(OpenAiModel(config).build().stream(["a", "b"], HOW))
    assert {a.problem for a in found.values()} == {"server-error"} and len(found) == 2


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405])
def test_what_every_prompt_would_meet_fails_at_once(server: Server, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.act = lambda h, body, n: h.send({"error": f"no: {h.headers['authorization']}"}, status)
    model = OpenAiModel(settings(server, key_variable="TEACHER_KEY")).build()
    with pytest.raises(ConfigError, match=f"HTTP {status}") as caught:
        list(model.stream([f"p{i}" for i in range(200)], HOW))
    assert sum(server.asked.values()) <= 8 and KEY not in str(caught.value) and caught.value.problems[0].fix


def test_answers_that_came_before_a_refusal_are_given(server: Server) -> None:
    server.act = lambda h, body, n: h.send(chat("fine"), 401 if prompt_of(body) == "p9" else 200)
    model, came = OpenAiModel(settings(server, concurrency=1)).build(), []
    with pytest.raises(ConfigError):
        for index, answer in model.stream([f"p{i}" for i in range(20)], HOW):
            came.append((index, answer.text))
    assert came == [(i, "fine") for i in range(9)]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [7]}', b'{"choices": {"0": 1}}', b'{"choices": [{}]}',
        b"\xff\xfe",
        json.dumps(chat(None)).encode(), json.dumps(chat(7)).encode(), json.dumps(chat([1, 2])).encode(),
        b'{"choices":' + b"[" * 100_000,
        b'{"choices": ' + b"9" * 5000 + b"}", json.dumps(chat(f"your key is {KEY}")).encode(),
    ],
)  # fmt: skip
def test_garbage_is_no_answer(body: bytes) -> None:
    assert read_answer(body, HOW, (0, 0), KEY) is None


@pytest.mark.parametrize("usage", [[], "x", {}, {"prompt_tokens": "3", "completion_tokens": -1}, {"prompt_tokens": True}, None])
def test_counts_that_are_none_are_zero(usage: Any) -> None:
    found = read_answer(json.dumps({**chat("x"), "usage": usage}).encode(), HOW, (1, 1))
    assert found == Answer("x", True, 0)


def test_text_in_parts_and_half_a_surrogate_pair() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert read_answer(json.dumps(chat(parts)).encode(), HOW, (0, 0)).text == "ab"
    assert read_answer(b'{"choices": [{"text": "x\\ud800"}]}', HOW, (0, 0)).text == "x?"


def test_without_a_reason_the_count_says_whether_it_was_cut() -> None:
    for made, finished in ((15, True), (16, False), (0, True)):
        body = json.dumps(chat("x", None, {"completion_tokens": made})).encode()
        assert read_answer(body, HOW, (0, 0)).finished is finished


@hypothesis.settings(max_examples=30)
@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_no_json_breaks_the_reader(value: Any) -> None:
    for body in (value, {"choices": value}, {"choices": [value]}, {"choices": [{"message": value, "finish_reason": value}]}):
        found = read_answer(json.dumps({"usage": value, **body} if isinstance(body, dict) else body).encode(), HOW, (1, 1))
        assert found is None or isinstance(found.text, str)


def test_a_huge_answer_is_not_read_to_its_end(server: Server) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        handler.send_response(200)
        handler.end_headers()
        sent = 0
        while sent < 40 * LARGEST:
            handler.wfile.write(b" " * (1 << 16))
            sent += 1 << 16
            server.sent = sent

    server.act = act
    assert ask(server, ["p"], attempts=1)[0].problem == "bad-answer" and server.sent < 3 * LARGEST


def test_a_packed_answer_is_not_unpacked(server: Server) -> None:
    server.act = lambda h, body, n: h.send(b"\x1f\x8b" + b"0" * 100, content_encoding="gzip")
    assert ask(server, ["p"], attempts=1)[0].problem == "bad-answer" and server.headers[0]["accept-encoding"] == "identity"


def test_json_schema_is_asked_for_and_left_out_where_it_is_refused(server: Server) -> None:
    how = Generation(max_new_tokens=5, json_schema={"type": "object"})
    ask(server, ["p"], how)
    assert server.bodies[0]["response_format"] == {
        "type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}, "strict": True},
    }  # fmt: skip

    server.act = lambda h, body, n: h.send(chat("{}"), 400 if "response_format" in body else 200)
    model = OpenAiModel(settings(server, concurrency=1)).build()
    server.bodies.clear()
    assert [a.text for a in model.generate(["a", "b", "c"], how)] == ["{}"] * 3
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]


def test_a_prompt_that_is_refused_anyway_does_not_end_the_schema(server: Server) -> None:
    server.act = lambda h, body, n: h.send(chat("{}"), 400 if prompt_of(body) == "bad" else 200)
    model = OpenAiModel(settings(server, concurrency=1)).build()
    found = dict(model.stream(["bad", "good"], Generation(json_schema={"type": "object"})))
    assert found[0].problem == "refused-request" and "response_format" in server.bodies[-1]


def test_concurrency_is_bounded_and_falls_when_the_server_is_overloaded(server: Server) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        if server.now > 3:
            handler.send(b"", 429)
            return
        time.sleep(0.05)
        handler.send(chat("fine"))

    server.act = act
    config = settings(server, concurrency=12, attempts=20)
    model = OpenAiModel(config).build()
    assert all(not a.problem for _, a in model.stream([f"p{i}" for i in range(100)], HOW))
    assert server.most <= 12 and model.pace.limit < 12 and server.asked.total() < 200
    server.act = lambda h, body, n: h.send(chat("fine"))
    list(model.stream([f"q{i}" for i in range(150)], HOW))
    assert model.pace.limit == 12  # it rises again


def test_pace_rises_by_one_a_round_and_is_halved() -> None:
    pace = Pace(64)
    for _ in range(100):
        pace.note(False)
    assert pace.room == 64
    assert [pace.note(True) for _ in range(5)] == [False] * 4 + [True] and pace.room == 32  # four of twenty say nothing
    for _ in range(32):
        pace.note(False)
    assert 32.9 < pace.limit < 33.1
    for _ in range(100):
        pace.note(True)
    assert pace.room == 1
    assert Pace(1).room == 1


def test_waits_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    import random

    monkeypatch.setattr("osmotic.plugins.models.openai_pace.BASE", 0.5)
    draw = random.Random(0)
    assert all(0.25 <= backoff(1, None, draw) <= 0.5 for _ in range(50))
    assert all(LONGEST / 2 <= backoff(50, None, draw) <= LONGEST for _ in range(50))
    assert 7 <= backoff(1, 7.0, draw) < 7.2 and backoff(1, 1e9, draw) < LONGEST_ASKED + 0.2
    past = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)
    assert [retry_after(v) for v in (None, "3", " 0.5 ", "-1", "nan", "inf", "soon", past)] == [
        None,
        3,
        0.5,
        None,
        None,
        None,
        None,
        0,
    ]
    soon = retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True))
    assert soon is not None and 57 < soon <= 60


def test_a_stream_that_is_closed_takes_back_what_is_under_way(server: Server) -> None:
    server.act = lambda h, body, n: (time.sleep(0.02), h.send(chat("x")))[0]
    stream = OpenAiModel(settings(server, concurrency=2)).build().stream([f"p{i}" for i in range(500)], HOW)
    next(stream)
    stream.close()
    count = sum(server.asked.values())
    time.sleep(0.2)
    assert sum(server.asked.values()) == count < 20
    assert not [t for t in threading.enumerate() if t.name == "openai"]


def test_inside_a_running_event_loop(server: Server) -> None:
    import asyncio

    async def inside() -> list[Answer]:
        return OpenAiModel(settings(server)).build().generate(["p"], HOW)

    assert asyncio.run(inside())[0].text == "about p"


def test_the_key_is_nowhere(server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    server.act = lambda h, body, n: (h.drop(), None)[1] if not n else h.send(chat("fine"))
    plugin = OpenAiModel(settings(server, key_variable="TEACHER_KEY"))
    model = plugin.build()
    model.generate(["p"], HOW)
    said = [
        repr(plugin),
        repr(vars(plugin)),
        repr(model),
        repr(vars(model)),
        plugin.fingerprint(),
        caplog.text,
        str(body_of(model.config, "p", HOW, True)),
    ]
    assert not [text for text in said if KEY in text]
    for bad in (f"{KEY}\n{KEY}", f"{KEY} x", "schlüssel", "  "):
        monkeypatch.setenv("TEACHER_KEY", bad)
        with pytest.raises(ConfigError) as caught:
            plugin.build()
        assert KEY not in str(caught.value) and "TEACHER_KEY" in str(caught.value)


def test_proxies_of_the_environment_are_not_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert ask(server, ["p"])[0].text == "about p"


def test_fingerprint_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(**more: Any) -> str:
        return OpenAiModel(OpenAiConfig(**{"url": "https://api.example.com/v1", "model": "m", **more})).fingerprint()

    same = [{}, {"url": "https://API.example.com:443/v1/"}, {"key_variable": "K"}, {"concurrency": 3},
            {"timeout": 3}, {"attempts": 2}, {"price": {"prompt": 1}}]  # fmt: skip
    other = [
        {"url": "https://api.example.com/v2"},
        {"url": "http://api.example.com/v1"},
        {"model": "n"},
        {"api": "completions"},
        {"system": "x"},
    ]
    assert {made(**one) for one in same} == {made()} and len({made(), *(made(**one) for one in other)}) == 6
    assert (
        OpenAiModel(OpenAiConfig(url="https://api.example.com:443/v1/", model="m")).endpoint() == "https://api.example.com/v1"
    )
    for url in (
        "https://user:pw@api.example.com/v1",
        "https://api.example.com/v1?key=secret",
        "ftp://x/",
        "api.example.com",
        "http://a/../b",
    ):
        with pytest.raises(ValidationError):
            made(url=url)
    with pytest.raises(ValidationError):
        made(key_variable="sk-this is a key")


def test_contract(server: Server) -> None:
    check_model(OpenAiModel, settings(server).model_dump())


def test_without_the_package(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'osmotic[openai]'")):
        OpenAiModel(settings(server)).build()


def test_judge_knows_every_status() -> None:
    for status in range(100, 600):
        verdict = judge(Reply(status, b""))
        assert (verdict is None) == (200 <= status < 300)
        assert verdict is None or verdict.word in PROBLEMS


# ---- servers that mean harm, or are broken in ways that cost money or rows ----


def raw_reply(text: str) -> bytes:
    body = json.dumps(chat(text)).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("later", [0.0, 0.05])
def test_an_answer_that_nobody_asked_for_goes_to_no_prompt(server: Server, later: float) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        own = raw_reply(prompt_of(body).upper())
        handler.wfile.write(own + (raw_reply("STRAY") if not later else b""))
        if later:
            time.sleep(later)
            handler.wfile.write(raw_reply("STRAY"))

    server.act = act
    model = OpenAiModel(settings(server, concurrency=1, attempts=8)).build()
    if later:  # it comes while the connection is idle: between two prompts, of which the second waits
        answers = []
        for one in ("p0", "p1"):
            answers += model.generate([one], HOW)
            time.sleep(2 * later)
    else:
        answers = model.generate([f"p{i}" for i in range(6)], HOW)
    assert [a.text for a in answers] == [f"P{i}" for i in range(len(answers))]


def test_one_cookie_is_not_sent_back(server: Server) -> None:
    server.act = lambda h, body, n: h.send(chat("x"), set_cookie="who=you; path=/")
    ask(server, ["a", "b", "c"], concurrency=1)
    assert not [h for h in server.headers if "cookie" in {name.lower() for name in h}]


@pytest.mark.parametrize(
    "broken",
    [
        chat("half of it", "error"), chat("half of it", "abort"), {**chat("x"), "error": {"message": "upstream died"}},
        {"choices": [{"message": {"content": "x"}, "error": {"code": 502}, "finish_reason": "stop"}]},
    ],
)  # fmt: skip
def test_what_the_server_gave_up_is_no_answer(server: Server, broken: dict[str, Any]) -> None:
    server.act = lambda h, body, n: h.send(chat("whole") if n else broken)
    assert ask(server, ["p"]) == [Answer("whole", True, 4, 10)] and server.asked["p"] == 2


def test_an_answer_that_was_all_reasoning_is_paid_once(server: Server) -> None:
    server.act = lambda h, body, n: h.send(chat(None, "length", {"completion_tokens": 16}))
    assert ask(server, ["p"]) == [Answer("", False, 16)] and server.asked["p"] == 1


def test_a_gateway_that_dislikes_one_prompt_does_not_end_the_others(server: Server) -> None:
    server.act = lambda h, body, n: h.send(chat("fine"), 403 if prompt_of(body) == "DROP TABLE" else 200)
    answers = ask(server, ["a", "DROP TABLE", "b"], concurrency=1)
    assert [a.problem for a in answers] == ["", "refused-request", ""]


def test_who_is_slow_to_write_down_is_not_flooded(server: Server) -> None:
    stream = OpenAiModel(settings(server, concurrency=4)).build().stream([f"p{i}" for i in range(60)], HOW)
    next(stream)
    time.sleep(0.4)
    assert sum(server.asked.values()) <= 40  # a kill now would lose no more than that
    assert len(list(stream)) == 59 and sum(server.asked.values()) == 60


def test_answers_come_in_batches_each_once(server: Server) -> None:
    prompts = [f"p{i}" for i in range(60)]
    batches = list(OpenAiModel(settings(server)).build().batches(prompts, HOW))
    assert all(batches) and sorted(i for batch in batches for i, _ in batch) == list(range(60))
    assert all(answer.text == f"about p{i}" for batch in batches for i, answer in batch)


def test_a_body_that_ends_with_the_connection_and_one_that_is_torn_off(server: Server) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + json.dumps(chat("x")).encode())
        if not before:
            linger = (1).to_bytes(4, "little") + bytes(4)
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            time.sleep(0.05)
            handler.connection.close()  # a reset: how much was still to come nobody knows
        handler.close_connection = True

    server.act = act
    assert ask(server, ["p"])[0].text == "x" and server.asked["p"] == 2


def test_endless_interim_answers_and_headers_are_bounded(server: Server) -> None:
    def act(handler: Handler, body: dict[str, Any], before: int) -> None:
        end = time.monotonic() + 1.0
        piece = b"HTTP/1.1 102 Processing\r\n\r\n" if prompt_of(body) == "interim" else b"x-a: " + b"b" * 4000 + b"\r\n"
        if prompt_of(body) != "interim":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while time.monotonic() < end:
            handler.wfile.write(piece)
            time.sleep(0.001)

    server.act = act
    start = time.monotonic()
    answers = ask(server, ["interim", "headers"], timeout=0.3, attempts=1)
    assert [a.problem for a in answers] == ["timeout", "server-error"] and time.monotonic() - start < 0.9


def test_chance_refusals_do_not_shrink_the_pace() -> None:
    import random

    draw, pace, halved = random.Random(5), Pace(8), 0
    for _ in range(20_000):
        halved += pace.note(draw.random() < 0.02)
    assert halved <= 2 and pace.room == 8

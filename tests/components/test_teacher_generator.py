# SPDX-License-Identifier: Apache-2.0
"""The teacher's generator: order, resume by journal, alike prompts, rows that fail, settings that reach the model, slots."""

import hashlib
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from osmotic.components.teacher_generator import TeacherGenerator, TeacherGeneratorConfig
from osmotic.plugins.contract import Answer, Generation, Records
from osmotic.plugins.fake_context import FakeJournal
from osmotic.plugins.testing import FakeContext, FakeTextGenerator, check_component
from osmotic.schemas.errors import ComponentError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

PROMPTS = Records([{"id": f"p{i}", "sign": f"sign{i}"} for i in range(7)])


class Flaky(FakeTextGenerator):
    """Dies when it is asked for one prompt."""

    dies_at = ""

    def generate(self, prompts, how):
        if self.dies_at in prompts:
            raise ComponentError("the endpoint went away")
        return super().generate(prompts, how)


def run(model, prompts: Records = PROMPTS, context: FakeContext | None = None, **changes) -> Records:
    config = TeacherGeneratorConfig(model="teacher", template="Explain {{ sign }}", **changes)
    context = context or FakeContext(models={"teacher": model})
    return TeacherGenerator(config).run(context, prompts)["rationales"]


class Streaming:
    """Answers in reverse order; `problems`: prompt -> why there is no answer (words: attempt by attempt)."""

    def __init__(self, **problems) -> None:
        self.problems = {
            f"Explain {sign}": list(words) if isinstance(words, list) else words for sign, words in problems.items()
        }
        self.asked: list[str] = []
        self.seeds: list[int] = []
        self.closed = 0

    def stream(self, prompts, how):
        self.seeds.append(how.seed)
        try:
            for i in reversed(range(len(prompts))):
                self.asked.append(prompts[i])
                word = self.problems.get(prompts[i], "")
                word = (word.pop(0) if word else "") if isinstance(word, list) else word
                if word == "empty":
                    yield i, Answer(" ", True, 1, 5, 0.5)
                else:
                    yield i, Answer("", False, 0, problem=word) if word else Answer(prompts[i].upper(), True, 2, 5, 0.25)
        finally:
            self.closed += 1


def outputs(model, prompts: Records = PROMPTS, context: FakeContext | None = None, **changes):
    config = TeacherGeneratorConfig(model="teacher", template="Explain {{ sign }}", **changes)
    found = TeacherGenerator(config).run(context or FakeContext(models={"teacher": model}), prompts)
    return found["rationales"].rows, found["report"].data


def test_same_ids_same_order():
    rows = run(FakeTextGenerator(lambda prompt: f"  about {prompt} ")).rows
    assert [row["id"] for row in rows] == [f"p{i}" for i in range(7)]
    assert rows[2] == {
        "id": "p2", "prompt": "Explain sign2", "rationale": "about Explain sign2", "finished": True, "tokens": 3,
        "problem": "",
    }  # fmt: skip


def test_cut_answers_are_marked():
    assert not run(FakeTextGenerator(lambda prompt: "a b c d"), max_new_tokens=3).rows[0]["finished"]


def test_a_killed_task_asks_only_for_what_is_missing():
    model = Flaky(lambda prompt: prompt.upper())
    model.dies_at = "Explain sign5"
    context = FakeContext(models={"teacher": model})
    with pytest.raises(ComponentError, match="went away"):
        run(model, context=context, batch=2)
    assert len(model.prompts) == 4
    model.dies_at = ""
    rows = run(model, context=context, batch=2).rows
    assert model.prompts == [f"Explain sign{i}" for i in range(7)]
    assert rows == run(FakeTextGenerator(lambda prompt: prompt.upper())).rows
    assert context.log[-1][:2] == (7, 7)
    count = len(model.prompts)
    assert run(model, context=context).rows == rows and len(model.prompts) == count


def test_alike_prompts_are_asked_once():
    model = FakeTextGenerator(lambda prompt: "x")
    rows = run(model, Records([{"id": str(i), "sign": "same"} for i in range(5)])).rows
    assert len(model.prompts) == 1 and [row["id"] for row in rows] == list("01234")


def test_settings_reach_the_model():
    class Noted(FakeTextGenerator):
        def generate(self, prompts, how):
            self.how = how
            return super().generate(prompts, how)

    model = Noted(lambda prompt: "x")
    run(model, max_new_tokens=9, temperature=0.5, top_p=0.9, stop=("\n",))
    assert model.how == Generation(9, 0.5, 0.9, ("\n",), model.how.seed) and model.how.seed > 0


def test_missing_answers_are_an_error():
    class Short:
        def generate(self, prompts, how):
            return [Answer("x", True, 1)]

    with pytest.raises(ComponentError, match="7 prompts were asked, 1 answers came"):
        run(Short())


def test_no_prompts_and_missing_fields():
    empty = run(FakeTextGenerator({}), Records([]))
    assert not len(empty) and empty.columns == ["id", "prompt", "rationale", "finished", "tokens", "problem"]
    with pytest.raises(DataError):
        run(FakeTextGenerator({}), Records([{"id": "a", "other": "x"}]))


def test_check_and_contract():
    schema = RecordSchema(fields={"sign": FieldSpec(text=True)})
    config = TeacherGeneratorConfig(model="teacher", template="{{ sing }}")
    assert "'sing'" in TeacherGenerator.check(config, schema)[0]
    model = FakeTextGenerator(lambda prompt: "x")
    check_component(
        TeacherGenerator,
        {"model": "teacher", "template": "{{ sign }}"},
        {"prompts": PROMPTS},
        lambda: FakeContext(models={"teacher": model}),
    )


# ---- rows that fail, answers as they come ----


def test_answers_in_any_order_find_their_rows():
    model = Streaming()
    rows, report = outputs(model)
    assert [row["rationale"] for row in rows] == [f"EXPLAIN SIGN{i}" for i in range(7)] and model.asked[0] == "Explain sign6"
    assert report == {
        "rows": 7, "prompts": 7, "failed": {}, "empty": 0, "unfinished": 0, "prompt_tokens": 35, "tokens": 14, "cost": 1.75,
    }  # fmt: skip


def test_a_row_that_fails_is_reported_and_asked_again_when_the_task_is():
    model = Streaming(sign2="timeout", sign4="refused-request")
    context = FakeContext(models={"teacher": model})
    rows, report = outputs(model, context=context, max_failures=0.5)
    assert [row["problem"] for row in rows] == ["", "", "timeout", "", "refused-request", "", ""]
    assert (rows[2]["rationale"], rows[2]["finished"], rows[2]["tokens"]) == ("", False, 0)
    assert report["failed"] == {"refused-request": 1, "timeout": 1} and report["empty"] == 0
    model.problems, model.asked = {}, []
    rows, report = outputs(model, context=context)
    assert sorted(model.asked) == ["Explain sign2", "Explain sign4"] and report["failed"] == {}
    assert rows == outputs(Streaming())[0]


def test_too_many_failures_end_the_task_and_keep_the_answers():
    model = Streaming(sign1="overloaded", sign0="timeout", sign2="timeout")
    context = FakeContext(models={"teacher": model})
    with pytest.raises(ComponentError, match=r"2 of 7 rows got no answer: 1 overloaded, 1 timeout") as caught:
        outputs(model, context=context, max_failures=0.2)
    assert caught.value.problems[0].path == "max_failures" and model.closed == 1
    assert "Explain sign0" not in model.asked  # nothing more is asked once it is over
    model.problems, model.asked = {}, []
    assert outputs(model, context=context)[0] == outputs(Streaming())[0] and len(model.asked) == 3


def test_the_default_lets_one_row_of_twenty_fail_and_counts_rows_not_prompts():
    alike = Records([{"id": str(i), "sign": "same" if i < 2 else str(i)} for i in range(20)])
    assert outputs(Streaming(**{"7": "timeout"}), alike)[1]["failed"] == {"timeout": 1}
    with pytest.raises(ComponentError, match="2 of 20 rows"):
        outputs(Streaming(same="timeout"), alike)


def test_attempts_ask_again_for_empty_answers_and_for_none():
    model = Streaming(sign1=["empty", "timeout"], sign2=["empty"], sign3=["timeout"], sign4=["empty", "empty", "empty"])
    rows, report = outputs(model, attempts=3)
    counts = Counter(model.asked)
    assert [counts[f"Explain sign{i}"] for i in range(7)] == [1, 3, 2, 2, 3, 1, 1]
    assert [row["rationale"] for row in rows] == [*(f"EXPLAIN SIGN{i}" for i in range(4)), "", "EXPLAIN SIGN5", "EXPLAIN SIGN6"]
    assert report["empty"] == 1 and report["failed"] == {} and report["cost"] == 6 * 0.25 + 5 * 0.5  # every answer was paid
    assert len(set(model.seeds)) == 3


def test_an_empty_answer_is_an_answer():
    model = Streaming(sign1="empty")
    context = FakeContext(models={"teacher": model})
    rows, report = outputs(model, context=context, max_failures=0)
    assert (rows[1]["rationale"], rows[1]["problem"], report["empty"]) == ("", "", 1)
    count = len(model.asked)
    assert outputs(model, context=context)[0] == rows and len(model.asked) == count


@pytest.mark.parametrize("indices", [[0, 1, 1], [0, 1, 7], [0, -1], [0, 1]])
def test_answers_that_nobody_asked_for_or_that_do_not_come(indices):
    class Wrong:
        def stream(self, prompts, how):
            yield from ((i, Answer("x", True, 1)) for i in indices)

    with pytest.raises(ComponentError, match=r"nobody asked for|3 prompts were asked, 2 answers came"):
        outputs(Wrong(), Records(PROMPTS.rows[:3]))


def test_words_and_costs_of_a_stranger_s_model_are_not_believed():
    class Strange:
        def stream(self, prompts, how):
            yield 0, Answer("x", True, 1, 1, float("nan"))
            yield 1, Answer("", False, 0, problem="name of a patient")

    rows, report = outputs(Strange(), Records(PROMPTS.rows[:2]), max_failures=1)
    assert rows[1]["problem"] == "bad-answer" and report["cost"] == 0


def test_a_schema_reaches_the_model():
    class Noted(Streaming):
        def stream(self, prompts, how):
            self.how = how
            return super().stream(prompts, how)

    model = Noted()
    outputs(model, json_schema={"type": "object"})
    assert model.how.json_schema == {"type": "object"}


# ---- kill -9 with real processes and a real server ----

CHILD = """
import sys
from pathlib import Path
from osmotic.components.teacher_generator import TeacherGenerator, TeacherGeneratorConfig
from osmotic.plugins.contract import Records
from osmotic.plugins.models.openai import OpenAiConfig, OpenAiModel
from osmotic.plugins.testing import FakeContext
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import Ledger

folder, port, rows = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
ledger = Ledger(folder)

class Context(FakeContext):
    def journal(self, name="rows"):
        return TaskJournal(ledger, "task", name)

model = OpenAiModel(OpenAiConfig(url=f"http://127.0.0.1:{port}/v1", model="m", concurrency=4)).build()
config = TeacherGeneratorConfig(model="teacher", template="Explain {{ sign }}", max_failures=0)
prompts = Records([{"id": f"p{i}", "sign": f"sign{i}"} for i in range(rows)])
found = TeacherGenerator(config).run(Context(models={"teacher": model}), prompts)["rationales"]
(folder / "done.txt").write_text("".join(f"{row['id']} {row['rationale']}\\n" for row in found))
"""


def test_a_process_killed_at_any_moment_asks_for_no_written_answer_again(tmp_path: Path):
    pytest.importorskip("httpx2", reason="the extra 'openai' is not installed")
    paid: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            prompt = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"][-1]["content"]
            time.sleep(0.02)
            body = json.dumps({"choices": [{"message": {"content": prompt.upper()}, "finish_reason": "stop"}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            paid[prompt] += 1
            self.wfile.write(body)

        def log_message(self, *given):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda request, address: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    rows, command = 80, [sys.executable, "-c", CHILD, str(tmp_path), str(server.server_address[1]), "80"]
    try:
        for aim in (15, 50):
            process = subprocess.Popen(command)
            while paid.total() < aim and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            time.sleep(0.1)
            with sqlite3.connect(tmp_path / "run.sqlite") as db:
                written = {key for (key,) in db.execute("SELECT key FROM journal")}
            db.close()
            before = Counter(paid)
            assert 0 < len(written) <= len(before) <= len(written) + 8  # at most what was under way or just came
            subprocess.run(command, check=True) if aim == 50 else None
        again = {prompt for prompt, count in paid.items() if count > before[prompt] > 0}
        assert not {prompt for prompt in again if hashlib.sha256(prompt.encode()).hexdigest() in written}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert len(paid) == rows and paid.total() <= rows + 16
    assert (tmp_path / "done.txt").read_text().splitlines() == [f"p{i} EXPLAIN SIGN{i}" for i in range(rows)]


def test_answers_that_came_together_are_written_together_and_none_is_lost():
    class Batching(Streaming):
        def batches(self, prompts, how):
            found = list(self.stream(prompts, how))
            for start in range(0, len(found), 3):
                yield found[start : start + 3]
                if start >= 3:
                    raise KeyboardInterrupt

    written: list[int] = []

    class Counting(FakeJournal):
        def put_many(self, values):
            written.append(len(values))
            super().put_many(values)

    context = FakeContext(models={"teacher": Batching()})
    journal = Counting()
    context.journal = lambda name="rows": journal
    component = TeacherGenerator(TeacherGeneratorConfig(model="teacher", template="Explain {{ sign }}"))
    with pytest.raises(KeyboardInterrupt):
        component.run(context, Records([{"id": f"p{i}", "sign": f"s{i}"} for i in range(9)]))
    assert written == [3, 3] and len(journal.entries) == 6


def test_journals_of_the_version_before_are_read():
    model, journal = FakeTextGenerator(lambda prompt: "new"), FakeJournal()
    for row in PROMPTS:
        key = hashlib.sha256(f"Explain {row['sign']}".encode()).hexdigest()
        journal.put(key, {"rationale": "old", "finished": True, "tokens": 2, "spent": [1, 2, 0.5]})
    rows, report = outputs(model, context=FakeContext(models={"teacher": model}, journals={"rows": journal}))
    assert {row["rationale"] for row in rows} == {"old"} and report["cost"] == 3.5 and not model.prompts

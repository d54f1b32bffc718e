# SPDX-License-Identifier: Apache-2.0
"""Answers of a model server that were paid for: found again by who may ask, in everybody's account, by settings and seed."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.host import Registry
from osmotic.runtime.party.answers import Answers
from osmotic.runtime.party.endpoints import EndpointModel
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.addresses import Address
from osmotic.schemas.errors import MembraneError
from osmotic.schemas.labels import PUBLIC, Label, raw, released

pytest.importorskip("httpx2", reason="the extra 'openai' is not installed")

Tasks = Callable[..., dict[str, Any]]


def cut_off(*given: Any) -> None:
    raise KeyboardInterrupt


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
    shop.defaults = server.listed()
    ready, site = server.opened(shop, toys, tasks(asked=server.teach("clients", "safe")), "north", "clients")
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


def test_an_answer_that_is_known_is_in_the_account_of_everybody_who_asked(asking: Any, server: Any) -> None:
    folder = asking.site.ledger.folder
    asking().generate(["a", "b"], Generation())
    for _ in range(2):  # noted once a label
        asking("other@north", released("south", "r")).generate(["a"], Generation())
    list(asking("other@north").stream(["b", "c"], Generation()))
    rows = [(r["edge"].partition("@")[0], r["direction"], r["word"], r["bytes"] > 0) for r in server.calls(folder)]
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


def test_two_tasks_of_a_run_pay_once(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = server.listed()
    again = server.teach("server", "safe")
    again["config"] = {**again["config"], "batch": 3}
    run_at(tasks(asked=server.teach("server", "safe")), server.models())
    asked, folder = len(server.prompts), shop.home / "parties" / "hub"
    run_at(tasks(asked=server.teach("server", "safe"), again=again), server.models())
    assert len(server.prompts) == asked > 0
    rows = [r for r in server.calls(folder) if r["edge"].startswith("again") and r["direction"] == "out"]
    assert [(r["word"], r["to"], r["bytes"]) for r in rows] == [("protected", server.origin, 0)] * 2
    assert verify(shop.home)["problems"] == []


@pytest.mark.parametrize(
    "change", [{"max_new_tokens": 9}, {"template": "Why on earth {{ colour }}?"}, {"temperature": 0.5}, {}]
)
def test_answers_of_other_settings_are_not_taken_over(
    shop: Any, toys: Registry, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    shop.defaults = server.listed("private")
    asked = []
    for more in ({}, change):
        made = {"items": tasks()["items"], "asked": server.teach("clients", "items")}
        made["asked"]["config"] |= more
        ready, site = server.opened(shop, toys, made, "north", "clients")
        try:
            site.run("items@north")
            with monkeypatch.context() as patch:
                patch.setattr(site, "_check_outputs", cut_off)
                with pytest.raises(KeyboardInterrupt):
                    site.run("asked@north")
        finally:
            ready.close()
        asked.append(len(server.prompts))
    assert asked[1] == (2 if change else 1) * asked[0] > 0


def test_crossings_wait_for_the_disk_whatever_the_journal_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path)
    levels: list[int] = []
    real = ledger.transaction

    @contextlib.contextmanager
    def watched() -> Iterator[sqlite3.Connection]:
        with real() as db:
            levels.append(int(ledger.query("PRAGMA main.synchronous")[0][0]))
            yield db

    monkeypatch.setattr(ledger, "transaction", watched)
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
    assert levels == [2, 1, 2, 1, 2]  # 2: FULL
    assert [journal.get(key) for key in "abcd"] == [1, 2, 3, None]
    ledger.close()

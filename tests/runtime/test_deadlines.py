# SPDX-License-Identifier: Apache-2.0
"""A component that never returns is ended by name, in one process and in its own; one that tells progress is not."""

import signal
import threading
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.contract import Component, Config, Context, Document, Out, Outputs, Records
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.party.deadlines import in_time
from osmotic.schemas.errors import ComponentError
from osmotic.schemas.policy import SitePolicy


class WaiterConfig(Config):
    """How often it waits a little."""

    times: int


class Waiter(Component[WaiterConfig]):
    """Waits, and does not say so."""

    name = "waiter"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, records: Records) -> Outputs:
        for _ in range(self.config.times):
            time.sleep(0.1)
        return {"out": Document(len(records))}


@pytest.fixture(scope="module")
def registry() -> Registry:
    module = types.ModuleType("waiting")

    def register_components() -> list[Any]:
        return [Waiter]

    register_components.__module__ = "waiting"
    module.register_components = hookimpl(register_components)  # type: ignore[attr-defined]
    return build_registry(names=(), modules=[module])


def waiting(shop: Any, tasks: Callable[..., dict[str, Any]], **config: Any) -> Path:
    task = {"component": "waiter", "at": "clients", "inputs": {"records": "items"}, "config": config}
    file: Path = shop.write({"items": tasks()["items"], "waited": task})
    return file


def test_a_task_that_tells_no_progress_is_ended_by_name(
    shop: Any, tasks: Callable[..., dict[str, Any]], registry: Registry
) -> None:
    shop.defaults = {"deadline": 6}
    began = time.monotonic()
    with pytest.raises(ComponentError, match=r"waited@north was ended: it told no progress for 6 s") as caught:
        api.run(waiting(shop, tasks, times=1200), home=shop.home, registry=registry)
    assert time.monotonic() - began < 60 and caught.value.exit_code == 6
    assert "context.progress" in caught.value.problems[0].fix and "policy of north" in caught.value.problems[0].why
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("deadline")]


class Here:
    """As much of a site as a deadline looks at."""

    def __init__(self, deadline: float | None) -> None:
        self.party, self.policy = "north", SitePolicy(deadline=deadline)
        self.told: list[int] = []
        self.overdue: Callable[[Any], None] | None = None
        self.progress: Callable[[str, int, int, str], None] = lambda task, done, total, note: self.told.append(done)


@pytest.mark.parametrize(("deadline", "tells"), [(1.0, True), (None, False)])
def test_progress_and_no_deadline_leave_a_task_alone(deadline: float | None, tells: bool) -> None:
    site = Here(deadline)
    own = site.progress
    with in_time(site, "a task"):  # type: ignore[arg-type]
        for i in range(25):
            time.sleep(0.1)
            if tells:
                site.progress("a task", i, 25, "")
    assert site.told == (list(range(25)) if tells else []) and site.progress is own


def test_an_interrupt_by_the_user_stays_one() -> None:
    with pytest.raises(KeyboardInterrupt), in_time(Here(60.0), "a task"):  # type: ignore[arg-type]
        raise KeyboardInterrupt


@pytest.mark.parametrize("before", [signal.SIG_IGN, signal.SIG_DFL, signal.default_int_handler, lambda number, frame: None])
def test_it_is_ended_whatever_an_interrupt_does_here(before: Any) -> None:
    """A run in the background of a script begins with SIGINT ignored; event loops and notebooks handle it themselves."""
    at_first = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(ComponentError, match=r"a task was ended"), in_time(Here(0.2), "a task"):  # type: ignore[arg-type]
            time.sleep(60)
        assert signal.getsignal(signal.SIGINT) == before
    finally:
        signal.signal(signal.SIGINT, at_first)


@pytest.mark.parametrize(("before", "raises"), [(signal.SIG_IGN, False), (signal.default_int_handler, True)])
def test_an_interrupt_from_outside_does_what_it_did(before: Any, raises: bool) -> None:
    at_first = signal.signal(signal.SIGINT, before)
    try:
        with pytest.raises(KeyboardInterrupt) if raises else nullcontext(), in_time(Here(60.0), "a task"):  # type: ignore[arg-type]
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, at_first)


def test_a_process_that_can_be_ended_answers_with_the_error() -> None:
    site, said = Here(0.2), []
    ended = threading.Event()
    site.overdue = lambda error: (said.append(str(error)), ended.set())[0]
    with in_time(site, "a task"):  # type: ignore[arg-type]
        assert ended.wait(20)
    assert len(said) == 1 and said[0].startswith("a task was ended: it told no progress for 0.2 s")


@pytest.mark.usefixtures("toy_path")
def test_in_a_process_of_its_own_the_others_hear_which_task_it_was(
    shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry, tmp_path: Path
) -> None:
    shop.defaults = {"deadline": 6}
    task = {"component": "sleeper", "at": "clients", "inputs": {"records": "items"}}
    task["config"] = {"seconds": 120.0, "log": str(tmp_path / "log")}
    file, began = shop.write({"items": tasks()["items"], "slept": task}), time.monotonic()
    with pytest.raises(ComponentError, match=r"slept@(north|south) was ended: it told no progress"):
        api.run(file, home=shop.home, isolate=True, registry=toys)
    assert time.monotonic() - began < 100

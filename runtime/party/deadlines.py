# SPDX-License-Identifier: Apache-2.0
"""A task that neither returns nor tells progress is ended, by name, once its site's `deadline` has passed.

Where a party has a process of its own (``--isolate``), that process answers with the error and ends. In one process the main
thread is interrupted, which ends anything but compiled code that does not look up. The interruption is a SIGINT with a handler
of our own, for the one that is there need not raise: a run in the background of a script begins with SIGINT ignored.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from osmotic.schemas.errors import ComponentError, Problem

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site

STEP = 0.2  # seconds between two looks, at most


@contextmanager
def in_time(site: "Site", task: str) -> Iterator[None]:
    """Run a task of a site under its policy's deadline, if it has one. Raises ComponentError when it has passed."""
    allowed = site.policy.deadline
    if allowed is None:
        yield
        return
    told, watch = site.progress, _Watch(site, task, allowed)

    def progress(name: str, done: int, total: int, note: str) -> None:
        watch.seen()
        told(name, done, total, note)

    site.progress = progress
    with watch.listening():
        watch.thread.start()
        try:
            try:
                yield
            finally:
                watch.done.set()
        except KeyboardInterrupt:
            if watch.passed.is_set():
                raise watch.error() from None
            raise
        finally:
            watch.done.set()
            watch.thread.join()
            site.progress = told


class _Watch:
    """Looks now and then how long ago the last progress was."""

    def __init__(self, site: "Site", task: str, allowed: float) -> None:
        self.site, self.task, self.allowed = site, task, allowed
        self.last, self.done, self.passed = time.monotonic(), threading.Event(), threading.Event()
        self.runs_in_main = threading.current_thread() is threading.main_thread()
        self.sent = False
        self.thread = threading.Thread(target=self._look, name=f"deadline of {task}", daemon=True)

    def seen(self) -> None:
        """There was progress."""
        self.last = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Our handler of SIGINT in place of the one that is there, where this task is to be interrupted by it."""
        before = signal.getsignal(signal.SIGINT)
        if self.site.overdue is not None or not self.runs_in_main or before is None:  # None: not Python's, nor to be put back
            yield
            return

        def interrupted(number: int, frame: FrameType | None) -> None:
            if self.sent:
                self.sent = False
                if not self.done.is_set():
                    raise KeyboardInterrupt
            elif callable(before):
                before(number, frame)
            elif before == signal.SIG_DFL:
                raise KeyboardInterrupt

        signal.signal(signal.SIGINT, interrupted)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def error(self) -> ComponentError:
        """What is told of a task that was ended."""
        what = f"{self.task} was ended: it told no progress for {self.allowed:g} s"
        why = f"the deadline that the policy of {self.site.party} sets"
        fix = "call context.progress(...) in the component's loop, or raise 'deadline' in this site's policy"
        return ComponentError(Problem(what, why=why, fix=fix))

    def _look(self) -> None:
        while not self.done.wait(min(STEP, self.allowed / 4)):
            if time.monotonic() - self.last <= self.allowed:
                continue
            self.passed.set()
            if self.site.overdue is not None:
                self.site.overdue(self.error())
            elif self.runs_in_main:
                self.sent = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return

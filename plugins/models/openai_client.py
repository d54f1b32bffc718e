# SPDX-License-Identifier: Apache-2.0
"""The asynchronous side of the `openai` model: one event loop in a thread of its own for one list of prompts.

A prompt that waits for its next try holds no place, so the others go on. A place takes its next prompt at once, in the same
turn of the loop; answers of a turn are handed over together after that. Exceptions of the HTTP library are turned into words
here and never shown: their texts may hold headers.
"""

import asyncio
import json
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h11

from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.models.openai import body_of
from osmotic.plugins.models.openai_answers import Reply, Verdict, judge, read_answer
from osmotic.plugins.models.openai_http import Connections, UnreachableError
from osmotic.plugins.models.openai_pace import backoff, retry_after
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    from osmotic.plugins.models.openai import Remote

THREAD = "openai"
AHEAD = 8  # answers that may wait to be written down, a place: a disk that is slow for a moment holds nothing up
PATHS = {"chat": "/chat/completions", "completions": "/completions"}
Batch = list[tuple[int, Answer]]
Put = Callable[["Batch | BaseException | None"], None]


class Call:
    """One list of prompts at one server. `run` in a thread; `cancel` and `taken` from another."""

    def __init__(self, remote: "Remote", key: str, prompts: list[str], how: Generation) -> None:
        self.remote, self.config, self.pace = remote, remote.config, remote.pace
        self.prompts, self.how, self.key = prompts, how, key
        self.draw = random.Random()  # only for when to try again
        self.tries = [0] * len(prompts)
        self.ready = deque(range(len(prompts)))
        self.running: set[asyncio.Task[None]] = set()
        self.left = len(prompts)
        self.pause = 0.0
        self.answered = False
        self.fatal: BaseException | None = None
        self._came: Batch = []
        self._given = self._taken = 0
        self._behind = False
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over = False

    def run(self, put: Put) -> None:
        """Ask everything; `put` gets lists of (index, answer), then an exception if there was one, then None."""
        try:
            asyncio.run(self._main(put))
        except BaseException as error:  # noqa: BLE001 - it is another thread's to raise
            put(error)
        finally:
            put(None)

    def cancel(self) -> None:
        """Stop asking; harmless when everything is done."""
        self._over = True
        self._nudge()

    def taken(self, count: int) -> None:
        """So many answers are written down: who is slow with that is not flooded."""
        self._taken += count
        if self._behind:
            self._nudge()

    def _nudge(self) -> None:
        with self._guard:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.wake.set)

    async def _main(self, put: Put) -> None:
        self.wake, self._put = asyncio.Event(), put
        with self._guard:
            self._loop = asyncio.get_running_loop()
        headers = [("accept-encoding", "identity"), ("content-type", "application/json"), ("user-agent", "osmotic")]
        if self.key:
            headers.append(("authorization", f"Bearer {self.key}"))
        self.server = Connections(self.config.url + PATHS[self.config.api], headers)
        try:
            await self._all()
        finally:
            self.server.close()
            self._flush()
            with self._guard:
                self._loop = None

    async def _all(self) -> None:
        """Keep as many requests under way as the pace allows, until every prompt has its answer or its problem."""
        loop = asyncio.get_running_loop()
        try:
            while self.left and not self._over and self.fatal is None:
                if loop.time() < self.pause:
                    loop.call_at(self.pause, self.wake.set)
                free = min(self.pace.room - len(self.running), len(self.ready)) if self._may() else 0
                for _ in range(free):
                    task = loop.create_task(self._work())
                    self.running.add(task)
                    task.add_done_callback(self._ended)
                await self.wake.wait()
                self.wake.clear()
        finally:
            for task in self.running:
                task.cancel()
            await asyncio.gather(*self.running, return_exceptions=True)
        if self.fatal is not None:
            raise self.fatal

    def _may(self) -> bool:
        """Whether another prompt may be asked now: not in a pause, and not far ahead of who writes the answers down."""
        self._behind = True  # before the count is looked at: `taken` looks at it after it has counted
        if self._given - self._taken >= AHEAD * self.config.concurrency:
            return False
        self._behind = False
        waits = asyncio.get_running_loop().time() < self.pause
        return bool(self.ready) and not waits and not self._over and self.fatal is None

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fatal = self.fatal or error
        self.wake.set()

    async def _work(self) -> None:
        """One place: a prompt after another while there is room for it."""
        while self._may() and len(self.running) <= self.pace.room:
            await self._one(self.ready.popleft())

    async def _one(self, index: int) -> None:
        """One try of one prompt: its answer, its problem, or a place in the queue later on."""
        prompt = self.prompts[index]
        if not prompt.strip():
            self._done(index, Answer("", False, 0, problem="empty-prompt"))
            return
        self.tries[index] += 1
        found, asked = await self._ask(prompt, self.how.of(index))
        if isinstance(found, Answer):
            self.answered = True
            self.pace.note(False)
            if self.ready and len(self.running) < self.pace.room:
                self.wake.set()
            self._done(index, found)
            return
        if found.fatal:
            return
        halved = self.pace.note(found.overloaded) if found.again else False
        if not found.again or self.tries[index] >= self.config.attempts:
            self._done(index, Answer("", False, 0, problem=found.word))
            return
        wait = backoff(self.tries[index], asked, self.draw)
        loop = asyncio.get_running_loop()
        if halved and (asked is not None or self.pace.room == 1):
            self.pause = max(self.pause, loop.time() + wait)
        loop.call_later(wait, self._again, index)

    def _again(self, index: int) -> None:
        self.ready.appendleft(index)
        self.wake.set()

    def _done(self, index: int, answer: Answer) -> None:
        self.left -= 1
        self._given += 1
        if not self._came:
            asyncio.get_running_loop().call_soon(self._flush)
        self._came.append((index, answer))

    def _flush(self) -> None:
        if self._came:
            self._put(self._came)
            self._came = []

    async def _ask(self, prompt: str, how: Generation) -> tuple[Answer | Verdict, float | None]:
        """(answer or verdict, seconds that the server asks to wait). A refused response format is left out from then on."""
        schema = self.remote.schemas and self.how.json_schema is not None
        reply = await self._send(prompt, how, schema)
        if schema and isinstance(reply, Reply) and reply.status in (400, 422):
            plain = await self._send(prompt, how, False)
            if isinstance(plain, Reply) and 200 <= plain.status < 300:
                self.remote.schemas = False
            reply = plain
        if isinstance(reply, Verdict):
            return reply, None
        verdict = judge(reply, self.answered)
        if verdict is None:
            price = self.config.price
            answer = read_answer(reply.body, self.how, (price.prompt, price.completion), self.key)
            return answer or Verdict("bad-answer", again=True), None
        if verdict.fatal:
            self.fatal = _refused(self.config, reply.status)
        return verdict, retry_after(reply.retry_after)

    async def _send(self, prompt: str, how: Generation, schema: bool) -> Reply | Verdict:
        """One request. Whatever goes wrong on the way is a verdict."""
        content = json.dumps(body_of(self.config, prompt, how, schema)).encode()
        try:
            async with asyncio.timeout(self.config.timeout):
                return await self.server.post(content)
        except TimeoutError:
            return Verdict("timeout", again=True, overloaded=True)
        except UnreachableError:
            return Verdict("server-error", again=True, overloaded=True)
        except (OSError, h11.RemoteProtocolError):
            return Verdict("server-error", again=True)


def _refused(config: Any, status: int) -> ConfigError:
    """What every prompt would meet; only the status is told."""
    key = config.key_variable
    if status in (401, 403):
        fix = f"check the key in the environment variable {key}" if key else "name the variable of a key: key_variable: NAME"
        return ConfigError(Problem(f"{config.url} refused the key (HTTP {status})", path="key_variable", fix=fix))
    if status == 402:
        return ConfigError(Problem(f"{config.url} wants to be paid first (HTTP 402)", fix="look into the account there"))
    fix = f"is {config.model!r} served there, and does the address end before '{PATHS[config.api]}'?"
    return ConfigError(Problem(f"{config.url} has no such model or path (HTTP {status})", path="url", fix=fix))

# SPDX-License-Identifier: Apache-2.0
"""Ask a generator many prompts: answers as they come, each written down at once, none paid twice, failures named.

Alike prompts are asked once (`ask`), or each with a seed of its own (`ask_each`). An answer that is not accepted (empty, say)
is asked for again, with another seed, up to `attempts` times; the last one stays as it is. Every answer that came goes into the
task's journal, accepted or not: a task that was killed goes on with the attempt that it was at. A prompt that got no answer
keeps the reason, and is asked again when the task is.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from osmotic.components.teaching.answers import KEPT, answers
from osmotic.plugins.contract import PROBLEMS, Answer, Context, Generation, Journal
from osmotic.schemas.errors import ComponentError, Problem

AGAIN = 1_000_003  # between the seeds of a prompt's first attempt and its second, where each has its own
K = TypeVar("K", bound=Hashable)
Spent = tuple[int, int, float]


@dataclass(frozen=True)
class Reply:
    """What a prompt got: the last answer, whether it ended by itself, its tokens, (read, written, cost) of all attempts.

    settled: accepted, or the last attempt's. earlier: texts of the answers before it that were not accepted.
    """

    text: str
    finished: bool
    tokens: int
    spent: Spent
    settled: bool = True
    accepted: bool = True
    earlier: tuple[str, ...] = ()

    @property
    def attempts(self) -> int:
        """How often an answer came."""
        return 1 + len(self.earlier)


def nonempty(prompt: Any, answer: Answer) -> bool:
    """Whether an answer says anything."""
    return bool(answer.text.strip())


@dataclass(frozen=True)
class Asking(Generic[K]):
    """How to ask. how: its seeds are replaced; retry: temperature of attempts after the first, None: the same.

    accept: (prompt, or its number for `ask_each`; answer) -> whether it will do. max_failures: share of the rows that may stay
    without an answer. stream: names the seeds. asked: the object that answers (a model with weights in place); None: the model
    of that name.
    """

    model: str
    how: Generation
    batch: int = 32
    attempts: int = 1
    max_failures: float = 0.05
    retry: float | None = None
    accept: Callable[[K, Answer], bool] = nonempty
    stream: str = "teacher"
    asked: Any = None


@dataclass
class Replies(Generic[K]):
    """Of each prompt (or its number) the reply, or in `failed` why there is none. rows: how many rows ask for each.

    rejected: replies that were not accepted, of prompts whose last attempt got no answer. lost: what attempts without an answer
    cost, of prompts that have none.
    """

    rows: Counter[K]
    known: dict[K, Reply] = field(default_factory=dict)
    failed: dict[K, str] = field(default_factory=dict)
    rejected: dict[K, Reply] = field(default_factory=dict)
    lost: dict[K, Spent] = field(default_factory=dict)

    def reasons(self) -> dict[str, int]:
        """Reason -> rows without an answer."""
        counts: Counter[str] = Counter()
        for name, word in self.failed.items():
            counts[word] += self.rows[name]
        return dict(sorted(counts.items()))

    def came(self) -> list[Reply]:
        """All replies, taken or not, in the order of the prompts."""
        return [reply for name in self.rows if (reply := self.known.get(name) or self.rejected.get(name)) is not None]

    def asked_again(self) -> int:
        """Answers that were not the first of their prompt."""
        return sum(reply.attempts - 1 for reply in self.came())

    def spent(self) -> Spent:
        """(tokens read, tokens written, cost) of everything that was paid for, alike prompts of `ask` once."""
        each = [reply.spent for reply in self.came()] + list(self.lost.values())
        return sum(one[0] for one in each), sum(one[1] for one in each), math.fsum(one[2] for one in each)


@dataclass(frozen=True)
class _Wanted(Generic[K]):
    """Prompts, their keys in the journal, the seed of the first attempt; own: each prompt's distance from it."""

    prompts: Mapping[K, str]
    keys: Mapping[K, str]
    seed: int
    own: Mapping[K, int] = field(default_factory=dict)

    def how(self, asking: Asking[K], names: Sequence[K], attempt: int) -> Generation:
        """How some of them are asked."""
        how = asking.how if not attempt or asking.retry is None else replace(asking.how, temperature=asking.retry)
        if self.own:
            return replace(how, seeds=tuple((self.seed + self.own[name] + attempt * AGAIN) % 2**32 for name in names))
        return replace(how, seed=(self.seed + attempt) % 2**32)


def ask(context: Context, rows: Counter[str], asking: Asking[str]) -> Replies[str]:
    """Ask each prompt once, whatever number of rows has it; what the journal has is not asked for.

    Raises ComponentError past `max_failures`, and for a model that gives more or fewer answers; what came is kept.
    """
    wanted = _Wanted({text: text for text in rows}, {text: _key(text) for text in rows}, _seed(context, asking.stream))
    return _ask(context, wanted, Replies(rows), asking)


def ask_each(context: Context, prompts: Sequence[str], asking: Asking[int]) -> Replies[int]:
    """The same, where alike prompts want answers of their own: replies by the number of the prompt."""
    seed, numbered = _seed(context, asking.stream), dict(enumerate(prompts))
    keys = {number: _key(f"{seed + number} {text}") for number, text in numbered.items()}
    wanted = _Wanted(numbered, keys, seed, {number: number for number in numbered})
    return _ask(context, wanted, Replies(Counter(numbered.keys())), asking)


def _ask(context: Context, wanted: _Wanted[K], replies: Replies[K], asking: Asking[K]) -> Replies[K]:
    journal = context.journal()
    replies.known = {name: _read(entry) for name in replies.rows if (entry := journal.get(wanted.keys[name])) is not None}
    done = _progress(context, replies, sum(reply.settled for reply in replies.known.values()))
    for attempt in range(asking.attempts):
        missing = [name for name in replies.rows if _open(replies.known.get(name), attempt)]
        if missing:
            done = _attempt(context, wanted, replies, asking, journal, missing, attempt, done)
    replies.rejected = {name: reply for name, reply in replies.known.items() if not reply.settled}
    replies.known = {name: reply for name, reply in replies.known.items() if reply.settled}
    return replies


def _open(reply: Reply | None, attempt: int) -> bool:
    """Whether a prompt is to be asked at this attempt: nothing came yet, or nothing good in the attempts before."""
    return reply is None or (not reply.settled and reply.attempts <= attempt)


def _attempt(
    context: Context, wanted: _Wanted[K], replies: Replies[K], asking: Asking[K], journal: Journal, names: list[K],
    attempt: int, done: int,
) -> int:  # fmt: skip
    """Ask the prompts once more; every answer is written to the journal at once. Returns how many are settled then."""
    last = attempt + 1 == asking.attempts
    replies.failed = {}
    texts, how = [wanted.prompts[name] for name in names], wanted.how(asking, names, attempt)
    model = context.model(asking.model) if asking.asked is None else asking.asked
    with closing(answers(model, asking.model, texts, how, asking.batch)) as coming:
        for together in coming:
            made: dict[K, Reply] = {}
            for index, answer in together:
                name = names[index]
                if answer.problem:
                    replies.failed[name] = answer.problem if answer.problem in PROBLEMS else "bad-answer"
                    replies.lost[name] = _sum(replies.lost.get(name), answer)
                else:
                    made[name] = _reply(replies, name, answer, asking.accept, last)
            if made:
                journal.put_many({wanted.keys[name]: _entry(reply) for name, reply in made.items()})
                replies.known.update(made)
            done = _progress(context, replies, done + sum(reply.settled for reply in made.values()))
            if last and any(answer.problem for _, answer in together):
                _check(replies, asking.max_failures)
    return done


def _seed(context: Context, stream: str) -> int:
    return context.rng(stream).getrandbits(32)


def _sum(before: Spent | None, answer: Answer) -> Spent:
    """(tokens read, tokens written, cost) with those of one answer more."""
    read, written, cost = before or (0, 0, 0.0)
    more = answer.cost if math.isfinite(answer.cost) else 0.0
    return read + answer.prompt_tokens, written + answer.tokens, cost + more


def _reply(replies: Replies[K], name: K, answer: Answer, accept: Callable[[K, Answer], bool], last: bool) -> Reply:
    """An answer after those that came before it, without halves of characters (no file could hold them)."""
    answer = replace(answer, text=answer.text.encode("utf-8", "replace").decode().strip())
    accepted, before = accept(name, answer), replies.known.get(name)
    lost = replies.lost.pop(name, (0, 0, 0.0))
    sums = [a + b for a, b in zip(before.spent, lost, strict=True)] if before else list(lost)
    spent = _sum((int(sums[0]), int(sums[1]), sums[2]), answer)
    earlier = (*before.earlier, before.text) if before else ()
    return Reply(answer.text, answer.finished, answer.tokens, spent, accepted or last, accepted, earlier)


def _entry(reply: Reply) -> dict[str, Any]:
    """A reply as the journal has it."""
    return {**vars(reply), "spent": list(reply.spent), "earlier": list(reply.earlier)}


def _read(entry: dict[str, Any]) -> Reply:
    known = {"text" if key == "rationale" else key: value for key, value in entry.items()}  # as journals were written before
    return Reply(**{**known, "spent": tuple(entry["spent"]), "earlier": tuple(entry.get("earlier", ()))})


def _progress(context: Context, replies: Replies[K], done: int) -> int:
    lost = len(replies.failed)
    tokens = sum(reply.spent[1] for reply in replies.known.values())
    context.progress(done, len(replies.rows), f"rows, {tokens} tokens" + (f", {lost} without an answer" if lost else ""))
    return done


def _check(replies: Replies[K], most: float) -> None:
    """Raise ComponentError when more rows have no answer than may."""
    reasons, rows = replies.reasons(), replies.rows.total()
    count = sum(reasons.values())
    if count > most * rows:
        what = f"{count} of {rows} rows got no answer: {', '.join(f'{n} {word}' for word, n in reasons.items())}"
        raise ComponentError(Problem(what, path="max_failures", why=f"max_failures is {most:g} of the rows", fix=KEPT))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

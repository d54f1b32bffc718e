# SPDX-License-Identifier: Apache-2.0
"""Ask a model for texts until each will do or its attempts are used up: every attempt is another prompt.

`teaching.asking` asks one prompt again; a greedy model would say the same again. Here an answer that will not do is followed
by a prompt with other demonstrations. Chance is drawn for all prompts of an attempt, needed or not: what is asked for one does
not depend on what became of the others. Every answer is in the journal before it is looked at: a task that was killed pays for
none twice.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from osmotic.components.teaching.answers import KEPT
from osmotic.components.teaching.asking import Asking, Reply, ask_each
from osmotic.plugins.contract import Context
from osmotic.schemas.errors import ComponentError, Problem

TRANSPORT = ("timeout", "overloaded", "server-error", "bad-answer")  # the model's fault; others are the prompt's
COPY, REPEAT, CUT, NO_MATCH = "near-local", "repeat", "cut", "no-match"
NO_MARKER, MARKER_TWICE = "no-marker", "marker-twice"
SHOWN = 2  # answers, where their form was wrong
FIXES: Mapping[str, str] = {
    COPY: "the model repeats the local records: train it for less long, raise temperature, or give more records",
    REPEAT: "raise temperature, or lower demonstrations so that prompts differ more",
    CUT: "raise max_new_tokens, or give in 'stop' what begins the next example",
    NO_MARKER: "let 'marker' be what 'item' has before the response, and 'prompt' end before it",
    MARKER_TWICE: "give in 'stop' what begins the next example",
    NO_MATCH: "look at answer_pattern",
    "too-short": "lower min_words, or look at 'stop', which may end an answer too early",
    "too-long": "lower demonstrations: the prompt and max_new_tokens have no room in the model",
    "refusal": "ask in another way: item, prompt; or take another model",
    "persona": "ask in another way: item, prompt; or take another model",
}
FORM = "look at item, prompt and stop: do they fit what the model writes?"
Take = Callable[[int, Reply], str]


@dataclass
class Drawn:
    """What became of the texts asked for. refused: reason -> answers (or prompts without one), of all attempts; left: number of
    a text that never came -> (last reason, last answer); prompts: how many were asked."""

    asked: int
    refused: Counter[str] = field(default_factory=Counter)
    left: dict[int, tuple[str, str]] = field(default_factory=dict)
    prompts: int = 0
    spent: tuple[int, int, float] = (0, 0, 0.0)

    def report(self, kept: int, noun: str) -> dict[str, Any]:
        """Counts, tokens and cost; a note where fewer were kept than asked for."""
        notes = []
        if kept < self.asked:
            notes.append(f"{kept} of {self.asked} {noun} were kept; the others ended as: {listed(self.reasons())}")
        read, written, cost = self.spent
        return {
            "asked": self.asked, "kept": kept, "prompts": self.prompts, "refused": dict(sorted(self.refused.items())),
            "left": dict(sorted(self.reasons().items())), "prompt_tokens": read, "tokens": written, "cost": cost,
            "notes": notes,
        }  # fmt: skip

    def reasons(self) -> Counter[str]:
        """Last reason -> texts that never came."""
        return Counter(reason for reason, _ in self.left.values())

    def none_kept(self, noun: str) -> ComponentError:
        """That nothing was kept: how often for which reason, and what to do about the most frequent one."""
        most = max(sorted(self.refused), key=lambda reason: self.refused[reason])
        shown = [text for reason, text in self.left.values() if reason == most and most in (NO_MARKER, NO_MATCH) and text]
        why = f"answers such as {', '.join(repr(text[:80]) for text in shown[:SHOWN])}" if shown else ""
        what = f"none of {self.asked} {noun} is of use: {listed(self.refused)} in {self.prompts} prompts"
        return ComponentError(Problem(what, path="model", why=why, fix=FIXES.get(most, FORM)))


def draw(
    context: Context, asking: Asking[int], attempts: int, prompts: Callable[[int], list[str]], take: Take,
    final: Collection[str] = (),
) -> Drawn:  # fmt: skip
    """Ask for every text. prompts: number of an attempt -> a prompt for each text; take: (number of a text, reply) -> why it
    will not do, "" where it is taken; called in the order of the texts, attempt after attempt. final: reasons after which a
    text is not asked for again.

    Raises ComponentError when the model fails to answer more than `asking.max_failures` of an attempt's prompts.
    """
    drawn: Drawn | None = None
    for attempt in range(attempts):
        texts = prompts(attempt)
        drawn = drawn or Drawn(len(texts), left={number: ("", "") for number in range(len(texts))})
        open_ = [number for number, (reason, _) in drawn.left.items() if reason not in final]
        if open_:
            _attempt(context, replace(asking, stream=f"{asking.stream} {attempt}"), drawn, open_, texts, take)
    return drawn or Drawn(0)


def _attempt(
    context: Context, asking: Asking[int], drawn: Drawn, numbers: list[int], texts: list[str], take: Take
) -> None:  # fmt: skip
    replies = ask_each(context, [texts[number] for number in numbers], replace(asking, attempts=1, max_failures=1.0))
    drawn.prompts += len(numbers)
    drawn.spent = _sum(drawn.spent, replies.spent())
    lost = Counter(word for word in replies.failed.values() if word in TRANSPORT)
    if lost.total() > asking.max_failures * len(numbers):
        what = f"{lost.total()} of {len(numbers)} prompts got no answer: {listed(lost)}"
        why = f"max_failures is {asking.max_failures:g} of the prompts"
        raise ComponentError(Problem(what, path="max_failures", why=why, fix=KEPT))
    for place, number in enumerate(numbers):
        reply = replies.known.get(place)
        reason = replies.failed[place] if reply is None else take(number, reply)
        if not reason:
            del drawn.left[number]
            continue
        drawn.refused[reason] += 1
        drawn.left[number] = (reason, "" if reply is None else reply.text)


def _sum(left: tuple[int, int, float], right: tuple[int, int, float]) -> tuple[int, int, float]:
    return left[0] + right[0], left[1] + right[1], left[2] + right[2]


def listed(counts: Counter[str]) -> str:
    """Counts in words, the largest first."""
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

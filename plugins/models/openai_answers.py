# SPDX-License-Identifier: Apache-2.0
"""From what a server sent to an answer or the word for why there is none. Nothing in it is believed: not its shape, its
types, its counts or its size, and none of it is ever quoted in an error.
"""

import json
from dataclasses import dataclass
from typing import Any

from osmotic.plugins.contract import Answer, Generation

LARGEST = 8 << 20  # bytes of one reply
MOST_TOKENS = 1 << 40
CUT = ("length", "max_tokens", "content_filter")
BROKEN = ("error", "abort", "aborted")  # the server gave up: what it had made is no answer
TOO_LONG = (
    "context length",
    "context_length",
    "context window",
    "context size",
    "maximum context",
    "too long",
    "too many tokens",
)


@dataclass(frozen=True)
class Reply:
    """What came back for one request. body: None when it was over `LARGEST` or in an encoding that was not asked for."""

    status: int
    body: bytes | None
    retry_after: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What a reply that is no answer means. again: worth another try. overloaded: a sign of load. fatal: for every prompt."""

    word: str
    again: bool = False
    overloaded: bool = False
    fatal: bool = False


def judge(reply: Reply, answered: bool = False) -> Verdict | None:
    """None for a reply that may hold an answer (status 2xx). answered: the key has had answers: a 403 is about the prompt."""
    status = reply.status
    if 200 <= status < 300:
        return None
    if status == 403 and answered:
        return Verdict("refused-request")
    if status in (401, 402, 403, 404, 405):
        return Verdict("refused-request", fatal=True)
    if status in (429, 503):
        return Verdict("overloaded", again=True, overloaded=True)
    if status == 408:
        return Verdict("timeout", again=True, overloaded=True)
    if status >= 500 or status in (409, 425):
        return Verdict("server-error", again=True)
    if status == 413 or (400 <= status < 500 and _says_too_long(reply.body)):
        return Verdict("too-long")
    return Verdict("refused-request" if status >= 400 else "bad-answer")  # 3xx: a redirect is not followed


def _says_too_long(body: bytes | None) -> bool:
    text = (body or b"")[:4096].decode("utf-8", "replace").casefold()
    return any(phrase in text for phrase in TOO_LONG)


def read_answer(body: bytes | None, how: Generation, prices: tuple[float, float], key: str = "") -> Answer | None:
    """The answer in a reply's body; None when it is not one. prices: of a million tokens, prompt and completion."""
    try:
        found = json.loads(body or b"")
    except (ValueError, RecursionError):
        return None
    choice = _first(found.get("choices") if isinstance(found, dict) else None)
    if choice is None or found.get("error") or choice.get("error"):
        return None
    text, reason = _text(choice), choice.get("finish_reason")
    if text is None or (isinstance(reason, str) and reason in BROKEN) or (len(key) >= 8 and key in text):
        return None
    usage = found.get("usage")
    asked, made = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    finished = reason not in CUT if isinstance(reason, str) else not 0 < how.max_new_tokens <= made
    cost = (asked * prices[0] + made * prices[1]) / 1e6
    text, stopped = _until_stop(text, how.stop)
    return Answer(text, finished or stopped, made, asked, cost)


def _first(choices: Any) -> dict[str, Any] | None:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _text(choice: dict[str, Any]) -> str | None:
    """The text of a choice, of either api; half a surrogate pair, which no file could hold, becomes a question mark.

    A message without content that met the length limit (all of it went into reasoning) is an empty answer, paid and cut.
    """
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if text is None and isinstance(message, dict) and choice.get("finish_reason") in ["length", "max_tokens"]:
        return ""
    if isinstance(text, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in text]
        text = "".join(part for part in parts if isinstance(part, str)) if all(isinstance(p, str) for p in parts) else None
    return text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else None


def _count(usage: Any, name: str) -> int:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value < MOST_TOKENS else 0


def _until_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    """(the text before the first stop string, whether there was one): some servers leave it in."""
    places = [place for one in stop if one and (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)

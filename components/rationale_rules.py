# SPDX-License-Identifier: Apache-2.0
"""Rules of the rationale filter that look at one text: format, refusals, echoes, the answer in it, words it should not know."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

REFUSALS = (
    "as an ai", "language model", "i'm sorry", "i am sorry", "i apologize", "i apologise", "i cannot answer", "i can't answer",
    "i cannot help", "i can't help", "i cannot assist", "i can't assist", "i'm unable to", "i am unable to", "i'm not able to",
    "i am not able to", "i cannot provide", "i can't provide", "i cannot fulfill", "i can't fulfill", "i cannot comply",
    "i can't comply", "i cannot explain", "i can't explain", "i cannot determine", "i can't determine",
    "i must decline", "i have to decline", "i'd rather not", "i would rather not", "i decline to",
    "i do not feel comfortable", "i don't feel comfortable", "i'm not comfortable", "i do not have enough information",
    "i don't have enough information", "i'm afraid i", "unable to comply", "unable to assist", "against my guidelines",
    "it is not appropriate for me", "unfortunately, i", "my apologies",
)  # fmt: skip
OPENING_WORDS = 12
ECHO_SHARE = 0.9
_HAN = r"\u3040-\u30ff\u3400-\u9fff"  # no spaces between words: each character counts as one
# Vowel signs, accents and points, which Python's \w leaves out: Latin, Hebrew, Arabic, the scripts of India, Thai.
MARKS = r"\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e31\u0e34-\u0e4e"
_RUN = rf"[^\W{_HAN}]+(?:[{MARKS}]+[^\W{_HAN}]*)*"
_WORD = re.compile(rf"[{_HAN}]|{_RUN}(?:[-']{_RUN})*")
_STOPS = ".!?…。！？"  # noqa: RUF001
_CLOSERS = "\"'”’)]»* \t\r\n"  # noqa: RUF001


def fold(text: str) -> str:
    """Text for comparison: compatibility form, straight apostrophes, lower case, single spaces."""
    plain = unicodedata.normalize("NFKC", text).replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return " ".join(plain.casefold().split())


def answer_key(text: str) -> str:
    """An answer for comparison: folded, without punctuation around it."""
    return fold(text).strip(" .,;:!?\"'()[]*")


def words(text: str) -> list[str]:
    """The words of the folded text, punctuation apart, hyphenated words whole."""
    return _WORD.findall(fold(text))


def _grams(text: str, size: int = 3) -> frozenset[tuple[str, ...]]:
    found = words(text)
    return frozenset(tuple(found[i : i + size]) for i in range(len(found) - size + 1))


def is_refusal(text: str, refusals: Sequence[str]) -> bool:
    """A refusing phrase stands among the opening words; later it may be part of an honest argument."""
    opening = " ".join(fold(text).split()[:OPENING_WORDS])
    return any(re.search(rf"(?<!\w){re.escape(fold(phrase))}(?!\w)", opening) for phrase in refusals)


def is_echo(text: str, prompt: str) -> bool:
    """At least nine tenths of the rationale's word 3-grams (five or more of them) stand in the prompt as well.

    The prompt is all that was asked, so that the demonstrations in it count, too.
    """
    mine = _grams(text)
    return len(mine) >= 5 and len(mine & _grams(prompt)) >= ECHO_SHARE * len(mine)


def is_cut_off(text: str) -> bool:
    """It is written in sentences, but the last one has no end; or it ends in an open bracket, a comma, a colon or a dash."""
    bare = text.rstrip()
    if bare.endswith(("(", "[", ",", ":", ";", "-", "\N{EN DASH}", "\N{EM DASH}")):
        return True
    ended = bare.rstrip(_CLOSERS)
    return bool(re.search(rf"[{_STOPS}](\s|$)", ended)) and not ended.endswith(tuple(_STOPS))


def format_reason(row: Mapping[str, Any], least: int, most: int, refusals: Sequence[str], finished: bool) -> str | None:
    """Why the text of a rationale is not acceptable, or None. `finished` in the row decides; without it, the text does."""
    text = str(row["rationale"])
    count = len(words(text))
    if not text.strip():
        return "empty"
    if is_refusal(text, refusals):
        return "refusal"
    if count < least:
        return "too-short"
    if count > most:
        return "too-long"
    if finished and (is_cut_off(text) if row.get("finished") is None else not row["finished"]):
        return "unfinished"
    return "echo" if is_echo(text, str(row.get("prompt") or "")) else None


def mentioned(text: str, choices: Mapping[str, str]) -> str | None:
    """The label of the choice that a text names last, by its text or by its label in brackets; of two that end there, the
    longer. choices: label -> text."""
    folded, found = fold(text), list[tuple[int, int, str]]()
    for label, choice in choices.items():
        ways = [rf"(?<!\w){re.escape(name)}(?!\w)" for name in [fold(choice)] if name]
        ways.append(rf"[(\[]{re.escape(fold(label))}[)\]]")
        found += [(match.end(), len(match.group()), label) for way in ways for match in re.finditer(way, folded)]
    return max(found)[2] if found else None


def leaked(texts: Sequence[str], symbols: Sequence[str], rationale: str, prompt: str, common: frozenset[str]) -> set[str]:
    """What stands in a record and in its rationale, though not in the prompt that was asked.

    texts: free text of the record, looked at word by word (three characters or more, or a number; not the `common` ones).
    symbols: values that are one thing, looked at whole.
    """
    said, shown = bare_words(rationale), bare_words(prompt)
    own = {word for text in texts for word in bare_words(text) if (len(word) > 2 or word.isdigit()) and word not in common}
    found = (own & set(said)) - set(shown)
    return found | {one for one in symbols if _has(said, bare_words(one)) and not _has(shown, bare_words(one))}


def bare_words(text: str) -> list[str]:
    """Words without what hides them from comparison: hyphens, the possessive 's, short words before an apostrophe (l', O')."""
    found = []
    for word in words(text):
        for part in word.split("-"):
            head, _, tail = part.removesuffix("'s").partition("'")
            found.append(tail if tail and len(head) <= 2 else f"{head}'{tail}" if tail else head)
    return found


def _has(text: list[str], part: list[str]) -> bool:
    """Whether the words of `part` stand in `text`, one after the other; no words stand nowhere."""
    return bool(part) and any(text[i : i + len(part)] == part for i in range(len(text) - len(part) + 1))

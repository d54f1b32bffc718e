# SPDX-License-Identifier: Apache-2.0
"""Rules of the rationale filter that need the text alone: format, refusals, echoes, near-duplicates.

Near-duplicates are found exactly (Jaccard similarity of word 3-gram sets) with prefix filtering: two sets as similar as t share
one of their len - ceil(t * len) + 1 rarest members, so only those are indexed.
"""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

REFUSALS = (
    "as an ai", "language model", "i'm sorry", "i am sorry", "i apologize", "i apologise", "i cannot answer", "i can't answer",
    "i cannot help", "i can't help", "i cannot assist", "i can't assist", "i'm unable to", "i am unable to", "i'm not able to",
    "i am not able to", "i cannot provide", "i can't provide", "i cannot fulfill", "i can't fulfill",
)  # fmt: skip
OPENING_WORDS = 12
ECHO_SHARE = 0.9
_HAN = r"\u3040-\u30ff\u3400-\u9fff"  # no spaces between words: each character counts as one
_WORD = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:[-'][^\W{_HAN}]+)*")
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


def grams(text: str, size: int = 3) -> frozenset[tuple[str, ...]]:
    """The set of word n-grams; of a text shorter than n, the one tuple of all its words."""
    found = words(text)
    return frozenset(tuple(found[i : i + size]) for i in range(max(1, len(found) - size + 1))) if found else frozenset()


def is_refusal(text: str, refusals: Sequence[str]) -> bool:
    """A refusing phrase stands among the opening words; later it may be part of an honest argument."""
    opening = " ".join(fold(text).split()[:OPENING_WORDS])
    return any(re.search(rf"(?<!\w){re.escape(fold(phrase))}(?!\w)", opening) for phrase in refusals)


def is_echo(text: str, prompt: str) -> bool:
    """At least nine tenths of the rationale's word 3-grams (five or more of them) stand in the prompt as well."""
    mine = grams(text)
    return len(mine) >= 5 and len(mine & grams(prompt)) >= ECHO_SHARE * len(mine)


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


def near_duplicates(texts: Sequence[str], threshold: float) -> list[int]:
    """Indices of texts that are as similar as `threshold` (0..1] to an earlier one that stays. Exact."""
    sets = [grams(text) for text in texts]
    common = Counter(gram for members in sets for gram in members)
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    out: list[int] = []
    for i, members in enumerate(sets):
        rarest = sorted(members, key=lambda gram: (common[gram], gram))
        prefix = rarest[: len(rarest) - math.ceil(threshold * len(rarest) - 1e-9) + 1]
        near = {j for gram in prefix for j in index[gram]}
        if any(_similar(members, sets[j], threshold) for j in near):
            out.append(i)
            continue
        for gram in prefix:
            index[gram].append(i)
    return out


def _similar(left: frozenset[Any], right: frozenset[Any], threshold: float) -> bool:
    shared = len(left & right)
    return shared >= threshold * (len(left) + len(right) - shared) - 1e-9

# SPDX-License-Identifier: Apache-2.0
"""How a rationale of a perturbed prompt is fitted to the record's own words, and what is wrong with a decoded one.

Substitution puts the record's own words where the rationale names a released one: whole words only, the longest first, the
rationale's case kept, all in one pass, so that a word just put in is never replaced again. A released word that stands for two
different own words (one of them perhaps itself, in a field that was not changed) is ambiguous. Nothing here draws or crosses.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Literal

from osmotic.schemas.records import RecordSchema

Ambiguous = Literal["keep", "first"]
EMPTY, TOO_LONG, ECHO = DECODED = ("decoded-empty", "decoded-too-long", "decoded-echo")  # what may be wrong with an answer
WORD = re.compile(r"\w+(?:[-'\u2019]\w+)*")


@dataclass(frozen=True)
class Substitution:
    """What to put in a rationale: released text (folded) -> (as it was released, the record's own); kept ones as they are.

    ambiguous: released texts (folded) that stand for two own ones.
    """

    pairs: Mapping[str, tuple[str, str]]
    ambiguous: frozenset[str] = field(default_factory=frozenset)

    def apply(self, rationale: str) -> tuple[str, int]:
        """(the rationale with own words, how many ambiguous words it names)."""
        if not self.pairs:
            return rationale, 0
        seen: list[str] = []

        def put(found: re.Match[str]) -> str:
            key = folded(found.group())
            seen.append(key)
            released, own = self.pairs.get(key, (found.group(), found.group()))
            return like(found.group(), released, own)

        text = any_of(self.pairs).sub(put, rationale)
        return text, len(self.ambiguous & set(seen))


def substitution(
    released: Mapping[str, str], own: Mapping[str, str], fields: Sequence[str], schema: RecordSchema, ambiguous: Ambiguous
) -> Substitution:
    """What stands for what, field by field in the order of `fields`: a field with a domain as a whole, a text word by word.

    ambiguous: ``keep`` leaves such a word as it is, ``first`` takes the own word of the field that comes first.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for name in fields:
        text = name in schema.fields and schema.fields[name].text
        for theirs, ours in aligned(released[name], own[name]) if text else [(released[name], own[name])]:
            if folded(theirs):
                found.setdefault(folded(theirs), []).append((theirs, ours))
    double = frozenset(key for key, pairs in found.items() if len({folded(ours) for _, ours in pairs}) > 1)
    pairs = {key: pairs[0] for key, pairs in found.items()}
    if ambiguous == "keep":
        pairs |= {key: (pairs[key][0], pairs[key][0]) for key in double}
    return Substitution(pairs, double)


def aligned(released: str, own: str) -> list[tuple[str, str]]:
    """Words of a released text with the own words they stand for: by position if both have as many, else where they align."""
    theirs, ours = WORD.findall(released), WORD.findall(own)
    if len(theirs) == len(ours):
        return list(zip(theirs, ours, strict=True))
    matcher = SequenceMatcher(None, [folded(w) for w in theirs], [folded(w) for w in ours], autojunk=False)
    pairs: list[tuple[str, str]] = []
    for _, first, end, start, stop in matcher.get_opcodes():
        if end - first == stop - start:
            pairs += zip(theirs[first:end], ours[start:stop], strict=True)
    return pairs


def like(found: str, released: str, own: str) -> str:
    """The own word in the case in which the rationale wrote the released one."""
    if folded(released) == folded(own):
        return found
    if found == released:
        return own
    if found.isupper() and len(found) > 1:
        return own.upper()
    if found[:1].isupper() and not released[:1].isupper():
        return own[:1].upper() + own[1:]
    return own.lower() if found.islower() and not released.islower() else own


def folded(text: str) -> str:
    """Case folded, runs of white space as one space, none at the ends."""
    return " ".join(text.casefold().split())


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern of whole words, the longest first: any of the texts, in any case, with any white space in it."""
    longest = sorted(texts, key=lambda text: (-len(text), text))
    inner = "|".join(r"\s+".join(re.escape(part) for part in text.split()) for text in longest)
    return re.compile(rf"(?<![\w-])(?:{inner})(?![\w-])", re.IGNORECASE)


def words(text: str) -> list[str]:
    """The words of a text, case folded; hyphenated ones whole."""
    return [word.casefold() for word in WORD.findall(text)]


def echoes(answer: str, perturbed: str, rationale: str, question: str) -> bool:
    """Whether an answer repeats the demonstration instead of fitting it.

    The perturbed prompt itself, or its rationale although that names a word that the own question does not have. question: the
    text that was asked with the demonstration left out.
    """
    foreign = set(words(perturbed)) - set(words(question))
    said = _run(words(answer))
    if words(perturbed) and foreign and _run(words(perturbed)) in said:
        return True
    return bool(words(rationale)) and bool(foreign & set(words(rationale))) and _run(words(rationale)) in said


def _run(found: Sequence[str]) -> str:
    return f" {' '.join(found)} "


class Names:
    """Whether rationales name a record's own words, in some fields; of a field with a domain, no other value of it either."""

    def __init__(self, fields: Sequence[str], schema: RecordSchema) -> None:
        self.fields = tuple(fields)
        domains = {name: schema.fields[name].domain or () for name in self.fields if name in schema.fields}
        values = {folded(value) for domain in domains.values() for value in domain}
        self._any = any_of(values) if values else None

    def faithful(self, rationale: str, own: Mapping[str, str]) -> bool:
        """Every own value stands in it as whole words, and no value of a domain that is not the record's own."""
        wanted = {folded(own[name]) for name in self.fields}
        if not all(value and any_of([value]).search(rationale) for value in wanted):
            return False
        named = {folded(found) for found in self._any.findall(rationale)} if self._any else set()
        return named <= wanted

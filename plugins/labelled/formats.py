# SPDX-License-Identifier: Apache-2.0
"""How one labelled sample is written in a prompt, and how samples are read back from an answer: the same template both ways.

A format is a template with the slots ``{{ label }}`` and ``{{ text }}``, once each. Reading is its inversion: a block begins
with the literal before the first slot and goes on to the next block, to the literal after the last slot, or to the end; blanks
between words of a literal may be any. A label is one of a public list, or its block is rejected, never bent into one.

Of an opening of several lines only the last has to be there (``******`` above it may be left out).

What is written can be read back, or it is refused: `SampleFormat.render` reads every block that it makes, twice in a row, and
raises `FormatError` where another sample comes out than went in (a text that contains the format's own words, say).
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from osmotic.plugins.labelled.template import PlainTemplate, slot_problems
from osmotic.schemas.errors import ConfigError, DataError, Problem

CUT, UNKNOWN, NO_LABEL, NO_TEXT, AMBIGUOUS = "cut", "unknown-label", "no-label", "no-text", "ambiguous"
REASONS = (CUT, UNKNOWN, NO_LABEL, NO_TEXT, AMBIGUOUS)
_AROUND = "\"'`*_.,;:!?()[]<>"  # what models put around a label of their own accord


@dataclass(frozen=True)
class Sample:
    """A text and its label."""

    label: str
    text: str


@dataclass(frozen=True)
class Rejected:
    """A block of an answer that is no sample: as it stood there, and a word of `REASONS`."""

    raw: str
    reason: str


@dataclass(frozen=True)
class Parsed:
    """What an answer holds, in its order. Nothing in either: the answer does not have the form at all."""

    samples: tuple[Sample, ...] = ()
    rejected: tuple[Rejected, ...] = ()


class FormatError(DataError):
    """A sample that a format cannot write so that it can be read back."""


class Labels:
    """A public list of labels, and which of them a piece of an answer means.

    >>> Labels(["1", "10"]).find(" 10. ")
    '10'
    """

    def __init__(self, labels: Iterable[str]) -> None:
        self.all = tuple(dict.fromkeys(labels))
        self._exact = {_plain(label): label for label in self.all}
        self._folded = _unique((_plain(label).casefold(), label) for label in self.all)
        self._bare = _unique((_bare(label), label) for label in self.all)

    def find(self, raw: str) -> str | None:
        """The label itself; else the only one that differs in case; else the only one that differs in marks around it."""
        plain = _plain(raw)
        if plain in self._exact:
            return self._exact[plain]
        return self._folded.get(plain.casefold()) or (self._bare.get(_bare(raw)) if _bare(raw) else None)


class SampleFormat:
    """One labelled sample as text, e.g. ``label: {{ label }} text: {{ text }}``; see the module for how it is read back."""

    def __init__(self, template: str, path: str = "format") -> None:
        """Raises ConfigError for a template that cannot be turned around: slots, or no words before or between them."""
        plain = PlainTemplate(template.strip(), path)
        problems = slot_problems(plain, ("label", "text"))
        twice = [name for name in ("label", "text") if plain.names.count(name) > 1]
        problems += [Problem(f"the slot {name!r} stands twice", path=path, fix="write it once") for name in twice]
        if not problems:
            why = "a block is found by the words before its first slot, and split by those between the two"
            problems = [
                Problem(f"there are no words {place} slot", path=path, why=why, fix="label: {{ label }} text: {{ text }}")
                for place, literal in zip(
                    ("before the first", "between the first and the second"), plain.literals, strict=False
                )
                if not literal.strip()
            ]
        if problems:
            raise ConfigError(*problems)
        self.source, self._template = plain.source, plain
        self.label_first = plain.names[0] == "label"
        self.opening, self.middle, self.closing = plain.literals
        above, _, last = self.opening.strip().rpartition("\n")
        self._above = above.strip() if re.search(r"\w", last) else ""  # lines before a block's first: models leave them out

    @property
    def between(self) -> str:
        """What stands between blocks: a line break, or an empty line where a block has several lines itself."""
        return "\n\n" if "\n" in self.source else "\n"

    def render(self, label: str, text: str) -> str:
        """One block, with blanks around label and text stripped. Raises FormatError unless it can be read back as it is."""
        wanted = Sample(label.strip(), text.strip())
        block = self._template.fill({"label": wanted.label, "text": wanted.text})
        found = self.parse(self.join([block, block]), [wanted.label])
        if found != Parsed((wanted, wanted)):
            why = "its label or its text is empty, or contains words of the format"
            raise FormatError(Problem("the sample cannot be written so that it is read back as it is", path="format", why=why))
        return block

    def join(self, blocks: Sequence[str]) -> str:
        """Blocks one after another, as a prompt shows them."""
        return self.between.join(blocks)

    def parse(self, answer: str, labels: "Iterable[str] | Labels", finished: bool = True) -> Parsed:
        """The samples of an answer. finished: false where the length limit ended it; its last block is then rejected.

        What stands before the first block, or after a closing literal, is skipped.
        """
        known = labels if isinstance(labels, Labels) else Labels(labels)
        answer = answer.rstrip().removesuffix(self._above) if self._above else answer
        starts = list(self._patterns["opening"].finditer(answer))
        samples: list[Sample] = []
        rejected: list[Rejected] = []
        ends = [*[start.start() for start in starts[1:]], len(answer)] if starts else []
        before: Sample | None = None
        for start, end in zip(starts, ends, strict=True):
            last = not finished and end == len(answer)
            found = self._block(answer[start.end() : end], known, last)
            inline = bool(answer[answer.rfind("\n", 0, start.start()) + 1 : start.start()].strip())
            if found in (NO_LABEL, NO_TEXT) and before is not None and inline and not last:  # an opening inside of a text
                samples.pop()
                rejected.append(Rejected(f"{before.label}: {before.text}", AMBIGUOUS))
            before = found if isinstance(found, Sample) else None
            if isinstance(found, Sample):
                samples.append(found)
            else:
                rejected.append(Rejected(answer[start.start() : end].strip(), found))
        return Parsed(tuple(samples), tuple(rejected))

    def _block(self, body: str, labels: Labels, cut: bool) -> Sample | str:
        """The sample of one block, or why there is none."""
        middle = self._patterns["middle"].search(body)
        if middle is None:
            return CUT if cut else NO_LABEL
        first, rest = body[: middle.start()], body[middle.end() :]
        closing = self._patterns["closing"].search(rest) if self.closing.strip() else None
        if closing is not None:
            rest, cut = rest[: closing.start()], False
        if cut:
            return CUT
        raw, text = (first, rest) if self.label_first else (rest.strip().partition("\n")[0], first)
        label = labels.find(raw)
        if label is None:
            return UNKNOWN if raw.strip() else NO_LABEL
        return Sample(label, text.strip()) if text.strip() else NO_TEXT

    @cached_property
    def _patterns(self) -> Mapping[str, re.Pattern[str]]:
        middle = self.middle.strip()
        mark = re.match(r"[.,;:!?](?=\s)", middle) if self.label_first and not self.middle[:1].isspace() else None
        rest = middle[1:] if mark else middle
        optional = f"(?:{re.escape(mark[0])}\\s*)?" if mark else ""  # "{{ label }}.": a model may leave the full stop out
        first = self.opening.strip()[len(self._above) :]
        above = f"(?:{_flexible(self._above)}\\s+)?" if self._above else ""
        return {
            "opening": re.compile(above + _flexible(first, apart=True)),
            "middle": re.compile(optional + _flexible(rest, apart=mark is not None or self.middle[:1].isspace())),
            "closing": re.compile(_flexible(self.closing)),
        }


def label_problems(form: SampleFormat | None, labels: Sequence[str], path: str = "labels") -> list[str]:
    """What keeps labels from being told apart, or from being written: empty, of several lines, alike, words of the format."""
    found: list[str] = []
    seen: dict[str, str] = {}
    for label in labels:
        shown = repr(label if len(label) <= 40 else label[:40] + "...")
        if not label.strip():
            found.append(f"{path}: a label is empty; a prompt cannot show it, an answer cannot name it")
        elif len(label.strip().splitlines()) > 1:
            found.append(f"{path}: the label {shown} has several lines")
        elif _plain(label) in seen:
            found.append(
                f"{path}: the label {shown} stands twice (blanks, or the encoding of a letter, do not tell labels apart)"
            )
        elif form is not None and not _writable(form, label):
            found.append(f"{path}: the label {shown} contains words of the format {form.source!r}")
        seen[_plain(label)] = label
    return found


def _writable(form: SampleFormat, label: str) -> bool:
    try:
        form.render(label, "0")
    except FormatError:
        return False
    return True


def _flexible(literal: str, apart: bool = False) -> str:
    """A pattern of a literal, with any blanks where it has some. apart: a word at its start is not the end of a longer one."""
    words = literal.split()
    edge = r"(?<!\w)" if apart and words and re.match(r"\w", words[0]) else ""
    return edge + r"\s+".join(re.escape(word) for word in words)


def _plain(label: str) -> str:
    return " ".join(unicodedata.normalize("NFC", label).split())


def _bare(label: str) -> str:
    return _plain(label).strip(_AROUND + " ").casefold()


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Key -> label, where only one label has that key."""
    found: dict[str, list[str]] = {}
    for key, label in pairs:
        found.setdefault(key, []).append(label)
    return {key: labels[0] for key, labels in found.items() if len(labels) == 1}

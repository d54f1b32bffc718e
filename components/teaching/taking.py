# SPDX-License-Identifier: Apache-2.0
"""What `teacher_augmenter` shows and takes: usable examples of each label, decks that deal them, new samples without copies."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from osmotic.components.teaching.copies import Texts, same
from osmotic.components.teaching.rows import Row
from osmotic.plugins.labelled.formats import NO_TEXT, REASONS, FormatError, Parsed, Sample, SampleFormat

ASKED_AGAIN, UNREADABLE = "asked-again", "unreadable"


@dataclass(frozen=True)
class Request:
    """A prompt, the beginning of the answer that it ends with, and the label wanted.

    tail: the last line of what is asked, where it is no example: in an answer that echoes the prompt, what is new follows it.
    """

    prompt: str
    prefix: str
    label: str
    tail: str = ""

    def answer(self, text: str) -> str:
        """An answer without an echo of the prompt, after the beginning that the prompt has made."""
        new = text.rpartition(self.tail)[2] if self.tail else text
        return f"{self.prefix} {new}" if self.prefix and new == text else new


@dataclass(frozen=True)
class Shown:
    """What may be shown, by label, in the order of `labels`; rows of other labels, rows that the format cannot write."""

    labels: tuple[str, ...]
    by_label: dict[str, list[Sample]]
    foreign: int
    unwritable: int

    @property
    def missing(self) -> tuple[str, ...]:
        """Labels without an example."""
        return tuple(label for label in self.labels if label not in self.by_label)

    def counts(self) -> dict[str, float]:
        """For the report."""
        missing = len(self.missing)
        return {"foreign": self.foreign, "unwritable": self.unwritable, "labels": len(self.labels), "missing_labels": missing}


def usable(form: SampleFormat, rows: Iterable[Row], labels: Sequence[str]) -> Shown:
    """The rows as samples, each text of a label once."""
    by_label: dict[str, dict[str, Sample]] = {label: {} for label in labels}
    foreign = unwritable = 0
    for row in rows:
        sample = Sample(row["label"].strip(), row["text"].strip())
        if sample.label not in by_label:
            foreign += 1
            continue
        try:
            form.render(sample.label, sample.text)
        except FormatError:
            unwritable += 1
            continue
        by_label[sample.label].setdefault(same(sample.text), sample)
    kept = {label: list(found.values()) for label, found in by_label.items() if found}
    return Shown(tuple(labels), kept, foreign, unwritable)


class Deck:
    """Deals the samples of a label in random order, all of them before any comes again; none twice in one hand."""

    def __init__(self, samples: Sequence[Sample], rng: random.Random) -> None:
        self._all, self._rng = list(samples), rng
        self._left: list[Sample] = []

    def draw(self, count: int) -> list[Sample]:
        """`count` different samples, fewer where there are fewer."""
        hand: list[Sample] = []
        while len(hand) < min(count, len(self._all)):
            place = next((i for i in reversed(range(len(self._left))) if self._left[i] not in hand), None)
            if place is None:
                self._left = self._rng.sample(self._all, len(self._all)) + self._left
            else:
                hand.append(self._left.pop(place))
        return hand


@dataclass
class Taken:
    """New samples: of the labels, no copies of known texts, none twice or nearly so, at most `most` of a label.

    known: what a text must not be, or be near; taken: the same, of the texts taken so far. Counts what it left.
    """

    labels: tuple[str, ...]
    known: Texts
    taken: Texts
    most: int
    samples: list[Sample] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    per_label: Counter[str] = field(default_factory=Counter)

    def fresh(self, sample: Sample) -> bool:
        """Whether a text says anything, is none of those known, and near to none."""
        return says(sample.text) and not self.known.has(sample.text) and not self.known.near(sample.text)

    def reject(self, label: str, raw: str, reason: str) -> None:
        """Keep a raw text that was not taken."""
        self.rejected.append({"label": label, "reason": reason, "raw": raw})
        self.left[reason] += 1

    def take(self, label: str, found: Parsed, raw: str) -> None:
        """Take what an answer to a request for `label` holds."""
        if found == Parsed():
            self.reject(label, raw, UNREADABLE)
        for one in found.rejected:
            self.reject(label, one.raw, one.reason)
        for sample in found.samples:
            if not says(sample.text):
                self.reject(label, sample.text, NO_TEXT)
                continue
            self.left["read"] += 1
            if self.known.has(sample.text):
                self.left["copies"] += 1
            elif self.taken.has(sample.text):
                self.left["duplicates"] += 1
            elif self.known.near(sample.text) or self.taken.near(sample.text):
                self.left["near_copies"] += 1
            elif self.per_label[sample.label] >= self.most:
                self.left["surplus"] += 1
            else:
                self.left["other_label"] += sample.label != label
                self.taken.add(sample.text)
                self.per_label[sample.label] += 1
                self.samples.append(sample)

    def counts(self) -> dict[str, float]:
        """For the report: texts taken; read, dropped and why, taken of another label than asked for; rejected and why."""
        names = ("read", "copies", "duplicates", "near_copies", "surplus", "other_label")
        reasons = (*REASONS, UNREADABLE, ASKED_AGAIN)
        rejected = {f"rejected_{reason.replace('-', '_')}": self.left[reason] for reason in reasons}
        total = {"rejected": sum(rejected.values())}
        return {"augmented": len(self.samples), **{name: self.left[name] for name in names}, **total, **rejected}

    def by_label(self, shown: Shown) -> dict[str, dict[str, int]]:
        """Label -> examples there were, texts taken."""
        return {
            label: {"examples": len(shown.by_label.get(label, ())), "augmented": self.per_label[label]} for label in self.labels
        }


def says(text: str) -> bool:
    """Whether a text has a letter or a digit; "..." is what forms of answers have in the place of one."""
    return any(one.isalnum() for one in text)

# SPDX-License-Identifier: Apache-2.0
"""Labels as dataflow types: whose data something was computed from, and through which releases.

A label is a set of provenance entries; joining two artifacts joins their sets. Empty means public. Only the host makes
entries of kind ``release``; after a waiver a ``raw`` entry becomes ``exposed`` and stays so.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

Source = Literal["raw", "release", "exposed"]


@dataclass(frozen=True, order=True)
class Provenance:
    """One source that an artifact depends on.

    owner: the party whose data it is. source: ``raw``, ``release`` or ``exposed``. ref: the data set (raw), the release id,
    or the waived edge (exposed). observers: who may see it; empty means nobody else for raw, anybody for a release.
    """

    owner: str
    source: Source
    ref: str
    observers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """A set of provenance entries."""

    entries: frozenset[Provenance] = frozenset()

    def __or__(self, other: "Label") -> "Label":
        return Label(self.entries | other.entries)

    @classmethod
    def join(cls, labels: "Iterable[Label]") -> "Label":
        """The union of all entries; of nothing: public."""
        return cls(frozenset().union(*(label.entries for label in labels)))

    def of(self, source: Source) -> list[Provenance]:
        """Entries of one source, sorted."""
        return sorted(entry for entry in self.entries if entry.source == source)

    @cached_property
    def word(self) -> Literal["private", "exposed", "protected", "public"]:
        """The worst thing that is true of it, in one word."""
        sources = {entry.source for entry in self.entries}
        if "raw" in sources:
            return "private"
        if "exposed" in sources:
            return "exposed"
        return "protected" if sources else "public"

    def exposed(self, owner: str, edge: str, observers: Iterable[str]) -> "Label":
        """The label after `owner` waived `edge`: its raw entries become exposed to `observers`, for ever."""
        mark = Provenance(owner, "exposed", edge, tuple(sorted(observers)))
        mine = {e for e in self.entries if e.owner == owner and e.source == "raw"}
        return Label(frozenset((self.entries - mine) | ({mark} if mine else set())))

    def to_json(self) -> list[dict[str, Any]]:
        """A sorted list of plain dictionaries."""
        return [
            {"owner": e.owner, "source": e.source, "ref": e.ref, "observers": list(e.observers)} for e in sorted(self.entries)
        ]

    @classmethod
    def from_json(cls, entries: list[dict[str, Any]]) -> "Label":
        """The inverse of `to_json`; raises KeyError or TypeError on another shape."""
        return cls(frozenset(Provenance(e["owner"], e["source"], e["ref"], tuple(e["observers"])) for e in entries))

    def __str__(self) -> str:
        return self.word


PUBLIC = Label()


def raw(owner: str, dataset: str) -> Label:
    """The label of private records as they were loaded."""
    return Label(frozenset({Provenance(owner, "raw", dataset)}))


def released(owner: str, release: str) -> Label:
    """The label of a mechanism's output."""
    return Label(frozenset({Provenance(owner, "release", release)}))

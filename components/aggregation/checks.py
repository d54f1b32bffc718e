# SPDX-License-Identifier: Apache-2.0
"""Whose weights can be used: compared with a reference, finite, readable; others are named with a reason and left out."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from osmotic.plugins.contract import Gathered, Weights
from osmotic.schemas.artifacts import canonical, tensors_digest
from osmotic.schemas.errors import ComponentError, DataError, Problem

SAME = ("base", "layout", "head", "frozen")  # of a description: what must be equal; frozen: digest of what does not train
KEPT = (*SAME, "steps")  # what a mean may say of itself, where all agree
OTHER_A = "have another A: it was trained, or started elsewhere"
SHOWN = 20  # parties in an error
LORA_A, LORA_B = "lora_A", "lora_B"
MOST = 1 << 53  # examples
LARGEST = 1e100  # whose square, times many, still is a float64: one client's float64 cannot stop a sum of squares
Outline = Mapping[str, tuple[tuple[int, ...], Any]]


@dataclass
class Reference:
    """What everybody's weights must be like. who: whose weights these were. frozen: digest of A, where A must be equal."""

    who: str
    outline: Outline
    meta: dict[str, Any]
    frozen: str | None = None

    @classmethod
    def of(cls, who: str, weights: Weights, frozen: bool) -> "Reference":
        """Take these weights as the reference."""
        meta = {key: weights.meta[key] for key in KEPT if key in weights.meta}
        return cls(who, weights.outline(), meta, digest_of_a(weights) if frozen else None)

    def key(self) -> bytes:
        """SHA-256, equal for weights that fit together."""
        outline = sorted((name, list(shape), str(dtype)) for name, (shape, dtype) in self.outline.items())
        said = canonical([*(repr(self.meta.get(key)) for key in SAME), outline, self.frozen])
        return hashlib.sha256(said).digest()

    def misfit(self, weights: Weights) -> str:
        """Why weights do not fit, "" when they do; reads no tensor unless A must be equal."""
        for key in SAME:
            if weights.meta.get(key) != self.meta.get(key):
                return OTHER_A if key == "frozen" else f"have another {key}"
        shown = weights.outline()
        odd = sorted(name for name in {*self.outline, *shown} if self.outline.get(name) != shown.get(name))
        if odd:
            return f"do not fit: {len(odd)} tensors are missing, unknown or of another shape or type, first {odd[0]!r}"
        if self.frozen is not None and digest_of_a(weights) != self.frozen:
            return OTHER_A
        return ""


def digest_of_a(weights: Weights) -> str:
    """SHA-256 of all A factors, tensor by tensor; the same for all weights that hold none, whose A is in ``frozen``."""
    return tensors_digest((n, weights.tensors[n]) for n in sorted(weights.outline()) if LORA_A in n)


def not_finite(weights: Weights) -> str:
    """Why the numbers cannot be used, "" when all are floating-point numbers up to `LARGEST`; reads one tensor at a time."""
    import numpy as np

    for name, (_, dtype) in weights.outline().items():
        if dtype.kind != "f":
            return f"have the tensor {name!r} of {dtype}, which is not floating-point"
        tensor = weights.tensors[name]
        if not bool(np.isfinite(tensor).all()):
            return f"have values that are not finite numbers, in {name!r}"
        if dtype.itemsize > 4 and tensor.size and float(max(tensor.max(), -tensor.min())) > LARGEST:
            return f"have values beyond {LARGEST:g}, in {name!r}"
    return ""


@dataclass
class Roll:
    """Who takes part. reference: None until the first readable weights, which then become it. examples: must be declared."""

    models: Gathered[Weights]
    reference: Reference | None
    frozen: bool = False
    examples: bool = False
    used: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def survey(self) -> None:
        """Take what most parties' weights are like as the reference (of several equally common, the first by name)."""
        counts, kinds = Counter[bytes](), dict[bytes, Reference]()  # one of each kind is kept, however many there are of it
        for party in self.models:
            weights = self._read(party, whole=False)
            if weights is not None:
                reference = Reference.of(party, weights, self.frozen)
                counts[reference.key()] += 1
                kinds.setdefault(reference.key(), reference)
        self.left_out.clear()
        if counts:
            self.reference = kinds[max(counts, key=lambda key: counts[key])]

    def good(self, whole: bool = True) -> Iterator[tuple[str, Weights]]:
        """(party, weights) of everybody whose weights can be used, in name order; notes who is used and who is left out.

        whole: read into memory, one party's at a time; else opened, so that all of them can be held.
        """
        first: Weights | None = None
        for party in self.models:
            weights = self._read(party, whole)
            if weights is None:
                continue
            if not whole:
                first = first or weights
                weights.share(first)
            if self.reference is None:
                self.reference = Reference.of(party, weights, self.frozen)
            reason = self.reference.misfit(weights) or not_finite(weights) or self._undeclared(weights)
            if reason:
                self.left_out[party] = reason
                continue
            if weights.meta.get("steps") != self.reference.meta.get("steps"):
                self.reference.meta.pop("steps", None)
            self.used.append(party)
            yield party, weights

    def _undeclared(self, weights: Weights) -> str:
        count = weights.meta.get("examples")
        fine = isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MOST
        return "" if fine or not self.examples else "do not say how many examples they were trained on"

    def _read(self, party: str, whole: bool) -> Weights | None:
        try:
            return self.models[party] if whole else self.models.open(party)
        except DataError:
            self.left_out[party] = "cannot be read"
            return None

    def check(self, at_least: int | float | None) -> None:
        """Raise ComponentError, naming everybody who was left out, when fewer than the quorum can be used."""
        everybody = len(self.models)
        needed = everybody if at_least is None else at_least
        if isinstance(needed, float):
            needed = max(1, math.ceil(needed * everybody - 1e-9))
        if len(self.used) >= needed:
            return
        why = f"compared with {self.reference.who!r}" if self.reference else ""
        fix = (
            "use one model everywhere"
            if at_least is None
            else f"{needed} of {everybody} are needed, {len(self.used)} can be used"
        )
        if any("examples" in reason for reason in self.left_out.values()):
            fix = "weights: uniform, or 'declare_examples: true' in every trainer"
        problems = [Problem(f"the weights of {party!r} {said}", why=why, fix=fix) for party, said in self.left_out.items()]
        more = [Problem(f"and {len(problems) - SHOWN} more")] if len(problems) > SHOWN else []
        if not problems:
            problems = [Problem(f"{everybody} parties sent weights, the quorum is {needed}", path="quorum.at_least")]
        raise ComponentError(*problems[:SHOWN], *more)

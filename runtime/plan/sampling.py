# SPDX-License-Identifier: Apache-2.0
"""Who takes part in a round of a repeat with `sample`: a public choice, the same at every party that reads the plan.

It follows from the pipeline's seed, the repeat's name, the role, the round and the value of an axis called ``seed`` (as the
streams of components do), from nothing else: so all arms have the same parties. Everybody can compute it, so it hides nothing,
and no guarantee is amplified by it. Every party has a rank in a round, and the first ones take part; no library's shuffling is
used, so the choice is equal on every machine and version.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from itertools import product
from typing import Any

from osmotic.schemas.pipeline import Pipeline, RepeatSpec, Scalar

SEED = "seed"  # the axis whose values the streams of components follow


def taking_part(pipeline: Pipeline, group: str, role: str, round_: int, seed: Scalar) -> frozenset[str] | None:
    """The parties of a role that take part in a round of a repeat; None where it samples none of that role: all do.

    seed: the value of the axis `seed` in the cell, '' where there is none.
    """
    spec = pipeline.tasks[group]
    count = spec.repeat.sample.get(role) if isinstance(spec, RepeatSpec) else None
    if count is None:
        return None
    return _first(f"{pipeline.seed}/{seed}\0{group}\0{role}\0{round_}", pipeline.parties[role], count)


def _first(stream: str, parties: tuple[str, ...], count: int) -> frozenset[str]:
    def rank(party: str) -> bytes:
        return hashlib.sha256(f"sample\0{stream}\0{party}".encode()).digest()

    return frozenset(sorted(parties, key=rank)[:count])


def rounds(pipeline: Pipeline, spanning: Collection[str]) -> Iterator[dict[str, Any]]:
    """Who takes part in every sampled round: {repeat, role, seed, round, parties}. spanning: repeats that span the seed."""
    for group, spec in pipeline.tasks.items():
        if not isinstance(spec, RepeatSpec):
            continue
        seeds: Sequence[Scalar] = pipeline.matrix[SEED] if group in spanning else ("",)
        for role, seed, round_ in product(spec.repeat.sample, seeds, range(1, spec.repeat.times + 1)):
            found = taking_part(pipeline, group, role, round_, seed) or ()
            yield {"repeat": group, "role": role, "seed": seed, "round": round_, "parties": sorted(found)}

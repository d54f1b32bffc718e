# SPDX-License-Identifier: Apache-2.0
"""Votes of a data set's records for public candidates, counted with Gaussian noise: the one thing that AUG-PE asks of records.

Source: Lin et al. 2024, Xie et al. 2024 (private evolution): every record votes for the candidate nearest to it. One record
adds one vote, so the vector of counts changes by 1 in one place (L2 sensitivity 1, add-or-remove-one), and T rounds of noise
sigma are the Gaussian mechanism of mu = sqrt(T) / sigma. Counts and noise are whole numbers on a grid
(`plugins.gaussian_noise`): a vote is floor(2^30 / sigma) steps, so the noise is sigma votes or a little more; it comes from the
operating system and is added here, at the party, once. Counts are given as they fall, negative ones too. Void when: seeded; a
vote depends on another record than its own (the host checks that no other private input reaches the task, but rows that depend
on one record each, by the word of whatever made them; what a component does with the records is its author's word).
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from osmotic.plugins.contract import Records
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.gaussian_noise import STEPS, rounded_gaussian
from osmotic.runtime.privacy.composition import RecordEvents, register
from osmotic.runtime.privacy.record_noise import check_delta, validated, vote_event
from osmotic.runtime.privacy.releases import Made
from osmotic.schemas.artifacts import canonical, digest_of
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.noise import VoteNoise

MOST = 1_000_000  # candidates


def noisy_votes(
    events: RecordEvents, records: Records, votes: Mapping[str, int], size: int, noise: Mapping[str, Any], *, dataset: str,
    question: str, seed: int | None, task: str,
) -> tuple[Records, Made]:  # fmt: skip
    """Noisy counts (rows ``value``, ``count``), charged and stored; see `contract.Context.noisy_votes`.

    question: what is voted on, public, the candidates among it: the same one about the same votes is answered from what is
    stored, another anew. (Were it the same for other candidates, an equal answer would tell that nobody's vote has changed.)
    """
    _check(records, votes, size)
    asked = validated(VoteNoise, noise, "noise")
    parts = ["votes", dataset, question, size, asked.model_dump(), seed, sorted(votes.items())]
    lookup = events.ledger.whole_hash(parts)
    payload, event = "", {}
    if events.stored(lookup) is None:
        event = vote_event(asked, len(records))
        check_delta(events.cap(dataset), len(records), dataset)
        with events.ledger.reading() as db:
            events.check(db, dataset, event)
        counts = np.bincount(np.fromiter(votes.values(), dtype=np.int64, count=len(votes)), minlength=size)
        entropy = SystemEntropy() if seed is None else SeededEntropy(f"{seed}/{fingerprint(parts)}")
        payload = canonical(noisy(counts, event["parameters"]["noise_multiplier"], entropy)).decode()
    with events.ledger.transaction() as db:
        there = db.execute("SELECT payload, event FROM events WHERE lookup=?", (lookup,)).fetchone()
        if there is None:
            events.charge(db, lookup, dataset, event, payload, task=task, void="" if seed is None else "seeded")
        else:  # found again, or another process was faster: what was first stays
            payload, event = there[0], json.loads(there[1])
        rows = [{"value": str(i), "count": count} for i, count in enumerate(json.loads(payload))]
        result = Records(rows, ["value", "count"])
        detail = f"votes, noise {event['parameters']['noise_multiplier']:g}, {event['neighbours']}"
        digest, void = digest_of(result.kind, result.to_files()), "" if seed is None else "seeded"
        made = register(db, "votes", lookup, digest, dataset, event["kind"], detail, void)
    return result, made


def noisy(counts: np.ndarray, noise_multiplier: float, entropy: "SystemEntropy | SeededEntropy") -> list[float]:
    """Counts with noise of `noise_multiplier` votes (or, by the grid, a little more), each rounded to a float once."""
    vote = int(STEPS / noise_multiplier)
    drawn = counts.astype(np.int64) * vote + rounded_gaussian(len(counts), entropy)
    return [float(one) for one in drawn / vote]


def _check(records: Records, votes: Mapping[str, int], size: int) -> None:
    """Raise ConfigError for a wrong number of candidates, DataError unless every record has one vote for one of them."""
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MOST:
        raise ConfigError(Problem(f"votes need a number of candidates from 1 to {MOST:,}", path="size", why=f"got {size!r}"))
    whole = all(isinstance(vote, int) and not isinstance(vote, bool) and 0 <= vote < size for vote in votes.values())
    if not whole or set(votes) != {row.get("id") for row in records}:
        what = f"every record needs one vote, a whole number from 0 to {size - 1}"
        raise DataError(Problem(what, path="votes", fix="a record that likes none of them votes for one all the same"))

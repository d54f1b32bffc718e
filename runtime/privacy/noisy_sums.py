# SPDX-License-Identifier: Apache-2.0
"""Sums over clients with Gaussian noise, made at the party that has all their updates: central differential privacy.

Source: McMahan et al. 2018, arXiv 1710.06963 (clip each client's update, sum, Gaussian noise), every client in every sum, so
without any amplification by sampling. Neighbours differ in one client's update, there or zero (add-or-remove-one): the clip
norm is the sensitivity. Noise is drawn on a grid of integers (`plugins.gaussian_noise`), from the operating system. The sum is
stored beside the ledger and charged, unit `client`, before it is given to the component; the same question with the same sum
finds it again, free. Sums compose over rounds and runs, as all sums made at this party, ever: whoever the clients were.

Guarantee: towards whoever sees noisy sums and what follows from them, and nothing else. This party saw every update: towards it
there is none. Void when: seeded; one client sends under two names; the party also gives out what depends on single updates
(which clients were left out, whether a run stopped).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from osmotic.plugins.accounting import ADD_OR_REMOVE_ONE, compose
from osmotic.plugins.contract import Weights
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.gaussian_noise import GridSum
from osmotic.runtime.privacy.charging import SLACK
from osmotic.runtime.privacy.composition import CLIENTS, ClientEvents
from osmotic.runtime.privacy.histograms import gaussian_sigma
from osmotic.runtime.privacy.record_noise import validated
from osmotic.runtime.storage.durable import settle
from osmotic.runtime.storage.store import Store
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import BudgetError, ConfigError, Problem, StoreError
from osmotic.schemas.noise import ClientNoise

STEPS = 20  # multipliers that are tried; the last is 2.6 times the first


def noisy_sum(
    events: ClientEvents, updates: Iterable[Mapping[str, np.ndarray]], shapes: Mapping[str, tuple[int, ...]],
    noise: Mapping[str, Any], *, question: str, seed: int | None, task: str,
) -> Weights:  # fmt: skip
    """The sum of the clipped updates with its noise, charged and stored; see `contract.Context.noisy_sum`."""
    asked = validated(ClientNoise, noise, "dp")
    events.cap(CLIENTS)
    event = event_of(asked)
    multiplier = event["parameters"]["noise_multiplier"]
    total = GridSum(shapes, asked.clip, multiplier)
    for update in updates:
        total.add(update)
    content = _content(total)
    lookup = events.ledger.whole_hash(["noisy sum", question, asked.clip, multiplier, seed, content])
    sums, payload = Store(events.ledger.vault / "sums", synced=True), events.stored(lookup)
    if payload is None:
        with events.ledger.reading() as db:
            events.check(db, CLIENTS, event)
        entropy = SystemEntropy() if seed is None else SeededEntropy(f"{seed}/{question}/{content}")
        made = Weights(total.noisy(entropy), {"clip": asked.clip, "noise_multiplier": multiplier})
        digest = sums.put(made)
        settle(sums.path(digest), events.ledger.vault)
        payload = _charged(events, lookup, event, canonical({"sum": digest}).decode(), seed, task)
    digest = json.loads(payload)["sum"]
    if not (sums.has(digest) and sums.intact(Weights.kind, digest)):
        why = "it was drawn and paid for; drawing it again would be a second release of the same sum"
        fix = (
            "put back the folder 'sums' that belongs to the ledger, or ask for another noise_multiplier, which is charged anew"
        )
        raise StoreError(Problem("a noisy sum is not where the ledger says", str(sums.folder), why=why, fix=fix))
    found = sums.get(Weights.kind, digest)
    return found if isinstance(found, Weights) else Weights({})


def _charged(
    events: ClientEvents, lookup: str, event: Mapping[str, Any], payload: str, seed: int | None, task: str
) -> str:  # fmt: skip
    """Charge a sum; another process may have been faster: what was first stays."""
    with events.ledger.transaction() as db:
        there = db.execute("SELECT payload FROM events WHERE lookup=?", (lookup,)).fetchone()
        if there is not None:
            return str(there[0])
        events.charge(db, lookup, CLIENTS, event, payload, task=task, void="" if seed is None else "seeded")
    return payload


def _content(total: GridSum) -> str:
    """SHA-256 of the exact sum."""
    digest = hashlib.sha256()
    for name, tensor in total.integers().items():
        digest.update(f"{name}\0{tensor.shape}\0".encode())
        digest.update(np.ascontiguousarray(tensor).data)
    return digest.hexdigest()


def event_of(noise: ClientNoise) -> dict[str, Any]:
    """The event that one sum is charged as: the multiplier given, or the least that the accountant confirms for all rounds.

    Raises ConfigError when none is confirmed in `STEPS` steps.
    """
    if noise.noise_multiplier is not None:
        return _event(noise.noise_multiplier)
    epsilon, delta, rounds = noise.epsilon or 0.0, noise.delta or 0.0, noise.rounds or 1
    least = math.sqrt(rounds) * gaussian_sigma(epsilon, delta, 1.0)  # Gaussian sums compose to one of 1 / sqrt rounds
    for step in range(STEPS):
        event = _event(math.ceil(1e4 * least * 1.001 ** (step * step)) / 1e4)
        if compose([event] * rounds, delta)[ADD_OR_REMOVE_ONE] <= epsilon:
            return event
    what = f"no noise multiplier was found for epsilon {epsilon:g}, delta {delta:g}, {rounds} rounds"
    raise ConfigError(Problem(what, path="dp", why=f"the accountant confirmed none of {STEPS}", fix="give noise_multiplier"))


def _event(multiplier: float) -> dict[str, Any]:
    return {"kind": "gaussian", "parameters": {"noise_multiplier": multiplier}, "neighbours": ADD_OR_REMOVE_ONE}


def check_plan(events: ClientEvents, noise: ClientNoise, sums: int) -> None:
    """Raise RefusedError without a cap, BudgetError when a plan's sums would pass it by themselves."""
    cap, event = events.cap(CLIENTS), event_of(noise)
    epsilon = compose([event] * sums, cap.delta)[ADD_OR_REMOVE_ONE]
    if epsilon > cap.epsilon + SLACK:
        what = f"{sums} noisy sums would cost epsilon {epsilon:.4g} > {cap.epsilon:g} a client at delta {cap.delta:g}"
        why = f"noise multiplier {event['parameters']['noise_multiplier']:g}, every client in every sum"
        raise BudgetError(
            Problem(what, path="dp", why=why, fix="more noise or fewer rounds; the cap is 'per_client' in the policy")
        )

# SPDX-License-Identifier: Apache-2.0
"""Differentially private training at a party: charged in full before the first gradient, kept for good, never drawn twice.

The engine is `plugins.dp_sgd`; here is what makes its number hold over kills, retries and runs. In this order: the model is
tried on public examples, and the plan compared with the cap; 32 bytes of the operating system's entropy, from which all batches
and all noise follow, are put on the disk (a file of mode 0600 in a folder of this training, in the vault); the training is
charged, with a commitment to those bytes; the records are encoded and trained on; the weights, and what happened step by step,
are stored beside the ledger; the release is registered; and only then are the bytes and the checkpoints removed, since with
them the noise could be taken off again. A killed training goes on with the same bytes: the batches and the noise are those that
it would have had, and nothing is charged twice. Where they were lost after the charge, it is refused: a second draw would be a
second training. The training is found again, free, by a keyed hash of all that it depends on: the records, the noise, the job,
the seed of the task.

Guarantee: (epsilon, delta) a record (there, or adding nothing) for whoever sees the weights and whatever follows from them. Not
covered: that a training fails may depend on a record (`encode` raising, a loss that is no number: the component's fault; give
None for records that cannot be learned from); only an error code leaves the party. Void when: seeded; the folder of the
training is copied while it runs, and shown to others or put back when the training was over (its noise would serve twice).
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Document, PrivateJob, Weights
from osmotic.plugins.dp_sgd.plan import ExecutionPlan
from osmotic.runtime.privacy.composition import RecordEvents, register, told
from osmotic.runtime.privacy.record_noise import check_delta, plan_of, training_event, validated
from osmotic.runtime.privacy.releases import Made
from osmotic.runtime.storage.durable import alone, own_folder, settle, write_whole
from osmotic.runtime.storage.store import Store, disk
from osmotic.schemas.artifacts import Artifact, canonical
from osmotic.schemas.errors import Problem, StoreError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.noise import TrainingNoise

Row = Mapping[str, Any]
Progress = Callable[[int, int, str], None]
SECRET = 32  # bytes
FOLDER = "trainings"  # in the vault
MOVED = "put back the folder 'trainings' that belongs to the ledger, or ask for another training, which is charged anew"


@dataclass(frozen=True)
class Asked:
    """One training: what it is, and under which look-up key. seed: None; of a seeded one, what its secret is made of."""

    job: PrivateJob
    plan: ExecutionPlan
    dataset: str
    lookup: str
    task: str
    seed: str | None

    @property
    def void(self) -> str:
        """What voids the guarantee."""
        return "" if self.seed is None else "seeded"

    def describe(self) -> dict[str, Any]:
        """What the weights and the document say of the guarantee; `void` where it is."""
        return {**self.plan.describe(), **({"void": self.void} if self.void else {})}


def private_training(
    events: RecordEvents, rows: Sequence[Row], job: PrivateJob, noise: Mapping[str, Any], *, dataset: str, stream: str,
    refs: Sequence[str], seed: int | None, task: str, progress: Progress,
) -> tuple[Weights, Document, Made]:  # fmt: skip
    """(weights, steps, the registered release); see `contract.Context.private_training`.

    rows: every record of the data set as it is bound, its id and fields and nothing else. stream: the seed of the task's
    streams, refs: the releases that it has read; both tell trainings apart.
    """
    asked = validated(TrainingNoise, noise, "privacy")
    check_delta(events.cap(dataset), len(rows), dataset)
    rows = sorted(rows, key=lambda row: str(row["id"]))
    parts = ["training", dataset, asked.model_dump(), _said(job), stream, sorted(refs), seed, rows]
    lookup = events.ledger.whole_hash(parts)
    before = events.stored(lookup)
    plan = plan_of(asked, len(rows)) if before is None else _plan(before)
    found = Asked(job, plan, dataset, lookup, task, None if seed is None else f"{seed}: {fingerprint(parts)}")
    folder = own_folder(events.ledger.vault / FOLDER / lookup)
    with alone(folder / "lock", lambda: progress(0, plan.steps, "another run is at this very training: waiting for it")):
        if not (folder / "result.json").is_file():
            _train(events, found, rows, folder, progress)
        return _result(events, found, folder)


def _plan(payload: str) -> ExecutionPlan:
    """The plan that a training was charged by: another version of the accountant might calibrate another."""
    said = json.loads(payload)["plan"]
    return ExecutionPlan(**{one.name: said[one.name] for one in fields(ExecutionPlan)})


def _said(job: PrivateJob) -> list[Any]:
    """What a job's result depends on; `at_once` changes nothing."""
    numbers = [job.learning_rate, job.warmup, job.schedule, job.weight_decay, job.dtype]
    return [job.key, *numbers, dict(job.meta)]


def _train(events: RecordEvents, asked: Asked, rows: Sequence[Row], folder: Path, progress: Progress) -> None:
    """Charge, or find charged; train, or go on; leave the result in the folder."""
    from osmotic.plugins.dp_sgd.loop import train

    secret, together = _charged(events, asked, folder)
    examples = [asked.job.encode(row) for row in rows]
    done = train(asked.job, examples, asked.plan, secret, own_folder(folder / "state"), progress, together=together)
    store = Store(events.ledger.vault / FOLDER, synced=True)
    weights = Weights(done.tensors, {**asked.job.meta, "privacy": asked.describe()})
    log = Document({"privacy": asked.describe(), "records": len(rows), "steps": _finite(done.steps)})
    kept = {"weights": store.put(weights), "document": store.put(log)}
    for digest in kept.values():
        settle(store.path(digest), events.ledger.vault)
    write_whole(folder / "result.json", canonical(kept))


def _charged(events: RecordEvents, asked: Asked, folder: Path) -> tuple[bytes, int | None]:
    """(secret, what the trial said if there was one) of a training that is charged when this returns."""
    file, payload, together = folder / "secret", events.stored(asked.lookup), None
    if payload is None:
        together = _try(asked)
        with events.ledger.reading() as db:
            events.check(db, asked.dataset, training_event(asked.plan))
        if asked.seed is None and not file.exists():
            write_whole(file, os.urandom(SECRET))
            settle(folder, events.ledger.vault)
    secret = _secret(asked, file)
    said = canonical({"plan": asked.plan.describe(), "secret": events.ledger.keys.first(b"training secret " + secret)}).decode()
    if payload is None:
        with events.ledger.transaction() as db:
            event = training_event(asked.plan)
            events.charge(db, asked.lookup, asked.dataset, event, said, task=asked.task, void=asked.void)
    elif payload != said:
        why = "its batches and noise would not be those that it was begun with"
        raise StoreError(Problem("the secret of a training is not the one it was charged with", str(file), why=why, fix=MOVED))
    return secret, together


def _try(asked: Asked) -> int:
    """How many records may be in memory together, by public examples, before anything is charged.

    Raises ConfigError for a model that cannot be trained so.
    """
    from osmotic.plugins.dp_sgd import trial

    together = trial.check(asked.job)
    size = sum(int(p.numel()) for p in asked.job.module.parameters() if p.requires_grad)
    asked.plan.noise(bytes(SECRET)).limit(size)
    return together


def _secret(asked: Asked, file: Path) -> bytes:
    """The bytes on the disk, or of the seed. Raises StoreError when they are gone."""
    if asked.seed is not None:
        return hashlib.sha256(f"osmotic training, seed {asked.seed}".encode()).digest()
    with disk(file):
        secret = file.read_bytes() if file.exists() else b""
    if len(secret) != SECRET:
        what = "a training was charged, and neither its result nor the secret to go on with it is there"
        why = "to begin it anew would be a second training on the same records"
        raise StoreError(Problem(what, str(file), why=why, fix=MOVED))
    return secret


def _result(events: RecordEvents, asked: Asked, folder: Path) -> tuple[Weights, Document, Made]:
    """What the folder says was made, checked, registered as a release; then its secret and checkpoints are removed."""
    store, file = Store(events.ledger.vault / FOLDER), folder / "result.json"
    with disk(file):
        kept = _loaded(file.read_bytes())
    weights, log = _kept(store, Weights.kind, kept.get("weights")), _kept(store, Document.kind, kept.get("document"))
    if not isinstance(weights, Weights) or not isinstance(log, Document) or events.stored(asked.lookup) is None:
        why = "it was paid for; to train again would be a second training on the same records"
        raise StoreError(Problem("a training's result is not where the ledger says", str(file), why=why, fix=MOVED))
    with events.ledger.transaction() as db:
        before = db.execute("SELECT ref FROM members WHERE lookup=?", (asked.lookup,)).fetchone()
        made = register(db, "training", asked.lookup, kept["weights"], asked.dataset, "dp-sgd", _detail(asked.plan), asked.void)
        if before is not None and before[0] != made.ref:
            why = "other weights were released as its result"
            raise StoreError(Problem("a training's result is not the one that was released", str(file), why=why, fix=MOVED))
    _forget(folder)
    return weights, log, made


def _detail(plan: ExecutionPlan) -> str:
    event = plan.event()
    return f"{told(event)}: epsilon {plan.epsilon:.4g}, delta {plan.delta:g} a record, {event['neighbours']}"


def _kept(store: Store, kind: str, digest: Any) -> Artifact | None:
    """An artifact, None when it is not there or damaged."""
    there = isinstance(digest, str) and store.has(digest) and store.intact(kind, digest)
    return store.get(kind, digest) if there else None


def _loaded(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _finite(value: Any) -> Any:
    """A value as JSON: what is no finite number is null."""
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _forget(folder: Path) -> None:
    """Remove the secret first, then the checkpoints."""
    with disk(folder):
        (folder / "secret").unlink(missing_ok=True)
        settle(folder, folder)
        if (folder / "state").exists():
            shutil.rmtree(folder / "state")

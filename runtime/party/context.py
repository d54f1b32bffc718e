# SPDX-License-Identifier: Apache-2.0
"""What a running component gets from its site: streams, models, data, releases, journal. Implements `contract.Context`."""

import functools
import hashlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Document, Mechanism, PrivateJob, Records, Weights
from osmotic.runtime.party.data import Datasets
from osmotic.runtime.plan.flow import source_label
from osmotic.runtime.privacy.composition import ClientEvents, RecordEvents
from osmotic.runtime.privacy.histograms import histogram
from osmotic.runtime.privacy.preparing import Models
from osmotic.runtime.privacy.releases import Releaser
from osmotic.runtime.storage.journal import TaskJournal
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.storage.store import Store
from osmotic.schemas.artifacts import digest_of
from osmotic.schemas.errors import ConfigError, DataError, Problem, RefusedError
from osmotic.schemas.labels import Label
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np


class SiteContext:
    """The context of one task at one site."""

    def __init__(
        self, *, party: str, task: str, key: str, seed: str, noise_seed: int | None, label: Label,
        lineage: Callable[[], list[str]], datasets: Datasets, releaser: Releaser, ledger: Ledger, store: Store,
        models: Callable[[str, Callable[[], Label]], Any],
        progress: Callable[[int, int, str], None], source: str | None = None, own_models: Models | None = None,
        question: Callable[[], str] | None = None, private_inputs: int = 0, seen: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self._party, self._task, self._key, self._seed = party, task, key, seed
        self._noise_seed, self._label, self._lineage_of = noise_seed, label, lineage
        self._datasets, self._releaser, self._ledger, self._store = datasets, releaser, ledger, store
        self._models, self._progress, self._source = models, progress, source
        self._own_models, self._question_of, self._private_inputs = own_models, question, private_inputs
        self._seen = sorted(seen)  # digests of the inputs that are not private
        self._run_task = f"{ledger.folder.parent.parent.name}: {task}"
        self.made: dict[str, str] = {}  # digest -> reference of what this very task released

    @functools.cached_property
    def _lineage(self) -> list[str]:
        """The data sets that the task descends from, nearest first."""
        return self._lineage_of()

    @functools.cached_property
    def _question(self) -> str:
        """What the plan says of the task and of all before it: made where something noisy is asked for, and not before."""
        return self._question_of() if self._question_of else self._task

    @property
    def label(self) -> Label:
        """Everything that the task has seen so far: its inputs, and the data sets that it asked for."""
        return self._label

    @property
    def party(self) -> str:
        """Name of the party."""
        return self._party

    @property
    def task(self) -> str:
        """Identity of the task."""
        return self._task

    def rng(self, stream: str) -> random.Random:
        """A named stream; see `contract.Context.rng`."""
        digest = hashlib.sha256(f"{self._seed}\0{self._party}\0{stream}".encode()).digest()
        return random.Random(int.from_bytes(digest[:16], "big"))

    def model(self, name: str) -> Any:
        """A model, or a port to it."""
        return self._models(name, lambda: self._label)

    def dataset(self, name: str) -> tuple[Records, RecordSchema]:
        """The data set that a source's configuration names, and no other; its outputs are as private as the binding says."""
        if name != self._source:
            what = f"{self._task}: it may not read the data set {name!r}"
            why = f"its configuration names {self._source!r}" if self._source else "it has no output of the label 'source'"
            raise RefusedError(Problem(what, why=why, fix="read it with record_loader and connect that"))
        found = self._datasets.load(name)
        self._label |= source_label(self._party, name, {self._party: self._datasets.policy})
        return found

    def schema(self) -> RecordSchema:
        """The schema of the nearest data set that the task descends from."""
        for name in self._lineage:
            if self._datasets.has(name):
                return self._datasets.schema(name)
        raise RefusedError(Problem(f"{self._task}: no data set of this party stands before this task"))

    def release(
        self, records: Records, fields: Sequence[str], mechanism: Mapping[str, Any], *, attempt: int = 1,
        chosen: tuple[Records, Records] | None = None,
    ) -> tuple[Records, Records]:  # fmt: skip
        """Release through a mechanism; see `contract.Context.release`."""
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1:
            raise ConfigError(Problem("attempt must be a number from 1 on", path="attempt", why=f"got {attempt!r}"))
        dataset = self._own_dataset()
        self._check_fields(records, fields)
        schema, base = self._datasets.schema(dataset), self._datasets.base
        prepared = self._releaser.prepare(
            mechanism, fields, schema, base, certified=True, models=self._own_models, progress=self._progress
        )
        wanted = None if chosen is None else self._chosen(*chosen, dataset)
        self._check_given(records, fields, dataset, wanted)
        released, key, made = self._releaser.release(
            records, prepared, dataset, self._noise_seed, attempt=attempt, task=self._run_task, progress=self._progress
        )
        self.made[made.digest] = made.ref
        return released, key

    def feedback(self, records: Records, bits: Mapping[str, bool], epsilon: float) -> tuple[Records, Records]:
        """One bit a document through randomised response; see `contract.Context.feedback`."""
        dataset = self._own_dataset()
        self._check_given(records, (), dataset)
        if set(bits) != {row.get("id") for row in records} or not all(isinstance(bit, bool) for bit in bits.values()):
            raise DataError(Problem(f"{self._task}: feedback needs one bit, true or false, of every record"))
        question = fingerprint([self._question, self._refs()])
        released, key, made = self._releaser.feedback(
            records, bits, epsilon, dataset, self._noise_seed, question=question, task=self._run_task
        )
        self.made[made.digest] = made.ref
        return released, key

    def histogram(self, records: Records, field: str, mechanism: Mapping[str, Any]) -> Records:
        """Noisy counts of a domain field's values; see `contract.Context.histogram`."""
        dataset = self._own_dataset()
        self._check_fields(records, (field,))
        self._check_given(records, (field,), dataset)
        events = RecordEvents(self._ledger, self._datasets.policy)
        schema = self._datasets.schema(dataset)
        result, made = histogram(events, records, field, schema, mechanism, dataset, self._noise_seed, self._run_task)
        self.made[made.digest] = made.ref
        return result

    def noisy_sum(
        self, updates: "Iterable[Mapping[str, np.ndarray]]", shapes: Mapping[str, tuple[int, ...]], noise: Mapping[str, Any]
    ) -> Weights:
        """The noisy sum of clients' updates; see `contract.Context.noisy_sum`."""
        from osmotic.runtime.privacy.noisy_sums import noisy_sum

        events = ClientEvents(self._ledger, self._datasets.policy)
        question = f"{self._question} {self._task}"
        return noisy_sum(events, updates, shapes, noise, question=question, seed=self._noise_seed, task=self._run_task)

    def noisy_votes(self, records: Records, votes: Mapping[str, int], size: int, noise: Mapping[str, Any]) -> Records:
        """Votes of the records, counted with noise; see `contract.Context.noisy_votes`."""
        from osmotic.runtime.privacy.votes import noisy_votes

        dataset = self._whole(records)
        events = RecordEvents(self._ledger, self._datasets.policy)
        question = fingerprint([self._question, self._refs(), self._seen])  # what is voted on comes from others, and may change
        result, made = noisy_votes(
            events, records, votes, size, noise, dataset=dataset, question=question, seed=self._noise_seed, task=self._run_task
        )
        self.made[made.digest] = made.ref
        return result

    def private_training(self, records: Records, job: PrivateJob, noise: Mapping[str, Any]) -> tuple[Weights, Document]:
        """Training with DP-SGD; see `contract.Context.private_training`."""
        from osmotic.runtime.privacy.private_training import private_training

        dataset = self._whole(records)
        weights, log, made = private_training(
            RecordEvents(self._ledger, self._datasets.policy), records.rows, job, noise, dataset=dataset, stream=self._seed,
            refs=self._refs(), seed=self._noise_seed, task=self._run_task, progress=self._progress,
        )  # fmt: skip
        self.made[made.digest] = made.ref
        return weights, log

    def _refs(self) -> list[str]:
        """The releases that the task has read."""
        return sorted(entry.ref for entry in self._label.of("release"))

    def _whole(self, records: Records) -> str:
        """The data set that these are the records of: all of them, unchanged, with nothing added; else RefusedError.

        Nothing else that is private may have come to the task: only the records' own share in the result is charged.
        """
        dataset = self._own_dataset()
        if self._private_inputs > 1:
            what = f"{self._task}: {self._private_inputs} of its inputs are private, and only the records of {dataset!r} may be"
            why = "what is charged covers what a record adds by itself, not what came of it elsewhere"
            raise RefusedError(Problem(what, why=why, fix="connect released or public artifacts to its other inputs"))
        fields = list(self._datasets.schema(dataset).fields)
        more = sorted(set(records.columns) - {"id", *fields})
        if more and self._label.of("raw"):
            what, why = f"{self._task}: the records have fields that {dataset!r} lacks", "they may depend on other records"
            raise RefusedError(Problem(what, path=", ".join(more), why=why, fix="connect the records as they were loaded"))
        self._check_fields(records, fields)
        self._check_given(records, fields, dataset)
        return dataset

    def mechanism(self, mechanism: Mapping[str, Any], field: str) -> Mechanism[Any]:
        """A token mechanism over a field's space, for analysis; see `contract.Context.mechanism`."""
        return self._releaser.preparer.token(mechanism, field, self.schema(), self._datasets.base)

    def _chosen(self, bits: Records, key: Records, dataset: str) -> set[str]:
        """Ids of the documents whose released bit is "yes"; RefusedError unless the bits are a release of this data set."""
        digest = digest_of(bits.kind, bits.to_files())
        sql = "SELECT ref FROM release_sets WHERE digest=? AND dataset=?"
        refs = {ref for (ref,) in self._ledger.query(sql, (digest, dataset))}
        if self._label.of("raw") and not refs & {e.ref for e in self._label.of("release")}:
            why = "what chooses documents must have been released, and come to this task as it was"
            raise RefusedError(Problem(f"{self._task}: the bits are no released set of {dataset!r}", why=why))
        said = {row["id"]: row.get("bit") for row in bits}
        home = {row.get("released"): row.get("id") for row in key}
        documents = self._releaser.documents_of(list(said), dataset)
        hashed = self._ledger.secret_hash
        wrong = [i for i in said if documents.get(i) is None or documents[i] != hashed(["document", dataset, home.get(i)])]
        if wrong or len(home) != len(said) or set(said.values()) - {"yes", "no"}:
            why = "its key does not belong to them"
            raise RefusedError(Problem(f"{self._task}: the bits do not say which documents of {dataset!r} are meant", why=why))
        return {str(home[i]) for i, bit in said.items() if bit == "yes"}

    def _check_given(self, records: Records, fields: Sequence[str], dataset: str, wanted: set[str] | None = None) -> None:
        """Raise RefusedError unless these are the records of the data set (or of it, those chosen), unchanged."""
        if self._label.of("raw"):
            bound = self._datasets.load(dataset)[0].by_id()
            self._check_whole(records, set(bound) if wanted is None else wanted & set(bound), dataset)
            self._check_unchanged(records, fields, bound)

    def _check_fields(self, records: Records, fields: Sequence[str]) -> None:
        """Raise DataError for a record that lacks a field, or has something else than text there."""
        for name in fields:
            lacking = sum(not isinstance(row.get(name), str) for row in records)
            if lacking:
                what = f"{lacking} of {len(records)} records lack the field {name!r}"
                raise DataError(Problem(what, path="fields", fix=did_you_mean(name, records.columns)))

    def _check_whole(self, records: Records, documents: set[str], dataset: str) -> None:
        """Every record of the data set, once: which records are there may not depend on what is in them.

        Equal documents keep their released id, so a chosen part, beside the whole, would tell exactly who was chosen.
        """
        given = [row.get("id") for row in records]
        if len(set(given)) < len(given) or set(given) != documents:
            what = f"{self._task}: a release needs every record of {dataset!r}, once (it got {len(given)} of {len(documents)})"
            why = "which records were chosen would cross without protection, unless a released bit chose them"
            raise RefusedError(Problem(what, why=why, fix="release first, then filter what was released"))

    def _check_unchanged(self, records: Records, fields: Sequence[str], bound: Mapping[str, Mapping[str, Any]]) -> None:
        """What is released is what the data set says: a value put into another record's place would be paid by that one."""
        for row in records:
            if any(row.get(field) != bound[row["id"]][field] for field in fields):
                what, why = f"{self._task}: records were changed before the release", "each document pays for its own content"
                raise RefusedError(Problem(what, why=why, fix="release the records as they were loaded"))

    def blind(self, records: Records, fields: Sequence[str]) -> tuple[Records, Records]:
        """Fresh random ids and order; see `contract.Context.blind`."""
        return self._releaser.blind(records, fields, self._own_dataset(), self._noise_seed)

    def _own_dataset(self) -> str:
        foreign = [e for e in self._label.entries if e.owner != self._party and e.source != "release"]
        if foreign:
            raise RefusedError(Problem(f"{self._task}: data of another party cannot be released here"))
        mine = {e.ref for e in self._label.of("raw")} or set(self._lineage)
        if len(mine) != 1:
            what = f"{self._task}: a release needs records of exactly one data set"
            raise RefusedError(Problem(what, why=f"got {sorted(mine)}"))
        return next(iter(mine))

    def journal(self, name: str = "rows") -> TaskJournal:
        """The task's durable memory."""
        return TaskJournal(self._ledger, self._key, name)

    def scratch(self) -> Path:
        """The task's checkpoint folder."""
        return self._store.scratch(self._key)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report progress."""
        self._progress(done, total, note)

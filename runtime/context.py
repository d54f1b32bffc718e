# SPDX-License-Identifier: Apache-2.0
"""What a running component gets from its site: streams, models, data, releases, journal. Implements `contract.Context`."""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import Records
from osmotic.runtime.data import Datasets
from osmotic.runtime.flow import source_label
from osmotic.runtime.ledger import Ledger, TaskJournal
from osmotic.runtime.releases import Releaser
from osmotic.runtime.store import Store
from osmotic.schemas.artifacts import digest_of
from osmotic.schemas.errors import Problem, RefusedError
from osmotic.schemas.labels import Label
from osmotic.schemas.records import RecordSchema


class SiteContext:
    """The context of one task at one site."""

    def __init__(
        self, *, party: str, task: str, key: str, seed: str, noise_seed: int | None, label: Label, lineage: list[str],
        datasets: Datasets, releaser: Releaser, ledger: Ledger, store: Store, models: Callable[[str, Callable[[], Label]], Any],
        progress: Callable[[int, int, str], None], source: str | None = None,
    ) -> None:  # fmt: skip
        self._party, self._task, self._key, self._seed = party, task, key, seed
        self._noise_seed, self._label, self._lineage = noise_seed, label, lineage
        self._datasets, self._releaser, self._ledger, self._store = datasets, releaser, ledger, store
        self._models, self._progress, self._source = models, progress, source
        self.made: dict[str, str] = {}  # digest -> reference of what this very task released

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

    def release(self, records: Records, fields: Sequence[str], mechanism: Mapping[str, Any]) -> tuple[Records, Records]:
        """Release through a mechanism; see `contract.Context.release`."""
        dataset = self._own_dataset()
        schema, base = self._datasets.schema(dataset), self._datasets.base
        prepared = self._releaser.prepare(mechanism, fields, schema, base, certified=True)
        if self._label.of("raw"):
            bound = self._datasets.load(dataset)[0].by_id()
            self._check_whole(records, set(bound), dataset)
            self._check_unchanged(records, fields, bound)
        released, key, ref = self._releaser.release(records, prepared, dataset, self._noise_seed)
        self.made[digest_of(released.kind, released.to_files())] = ref
        return released, key

    def _check_whole(self, records: Records, documents: set[str], dataset: str) -> None:
        """Every record of the data set, once: which records are there may not depend on what is in them.

        Equal documents keep their released id, so a chosen part, beside the whole, would tell exactly who was chosen.
        """
        given = [row.get("id") for row in records]
        if len(set(given)) < len(given) or set(given) != documents:
            what = f"{self._task}: a release needs every record of {dataset!r}, once (it got {len(given)})"
            why = "which records were chosen would cross without protection"
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

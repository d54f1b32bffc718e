# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the host, in memory: what a component may ask for, with the contract's shapes and errors.

Releases are drawn from real mechanisms with a seed (or without looking at the data): no guarantee, by construction. Nothing is
charged or kept, and nothing is refused that only a ledger or a policy could refuse.
"""

import hashlib
import json
import math
import random
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import (
    Document,
    DocumentMechanism,
    Mechanism,
    PrivateJob,
    Records,
    Slot,
    Space,
    Weights,
    config_type,
)
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, Problem, RefusedError
from osmotic.schemas.noise import ClientNoise, CountNoise, TrainingNoise, VoteNoise
from osmotic.schemas.records import FieldSpec, RecordSchema
from osmotic.schemas.source import Source, did_you_mean, problems_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FakeContext", "FakeJournal", "hashed", "validated"]


class FakeJournal:
    """A journal in memory; values go through JSON, as they do in the real one."""

    def __init__(self) -> None:
        self.entries: dict[str, str] = {}

    def get(self, key: str) -> Any | None:
        """The value stored under the key, or None."""
        return json.loads(self.entries[key]) if key in self.entries else None

    def put(self, key: str, value: Any) -> None:
        """Store a JSON value."""
        self.entries[key] = json.dumps(value, allow_nan=False)

    def put_many(self, values: Mapping[str, Any]) -> None:
        """Store several."""
        for key, value in values.items():
            self.put(key, value)


@dataclass(kw_only=True)
class FakeContext:
    """A context of one party, in memory.

    datasets: name -> (records, schema). record_schema: what `schema()` gives (default: the first data set's). mechanisms: name
    -> class for `release`; a name that is not there releases symbols drawn without looking at the data. base: folder of tables.
    Afterwards: `log` has every progress report, `released` the number of records released, `journals` what was stored. Use
    the same context again to see how a component goes on after a kill.
    """

    party: str = "north"
    task: str = "task@north"
    seed: int = 0
    round: int = 0
    models: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, tuple[Records, RecordSchema]] = field(default_factory=dict)
    record_schema: RecordSchema | None = None
    mechanisms: Mapping[str, type[Mechanism[Any]] | type[DocumentMechanism[Any]]] = field(default_factory=dict)
    base: Path = Path()
    journals: dict[str, FakeJournal] = field(default_factory=dict)
    log: list[tuple[int, int, str]] = field(default_factory=list)
    released: int = 0
    sums: int = 0
    _scratch: Path | None = None

    def rng(self, stream: str) -> random.Random:
        """A stream of its own for each (seed, party, round, name)."""
        return random.Random(hashed(json.dumps([self.seed, self.party, stream, *([self.round] if self.round else [])])))

    def model(self, name: str) -> Any:
        """The model of that name; raises ConfigError when the test gave none."""
        if name not in self.models:
            raise ConfigError(Problem(f"there is no model {name!r}", fix=did_you_mean(name, self.models)))
        return self.models[name]

    def dataset(self, name: str) -> tuple[Records, RecordSchema]:
        """The data set of that name; raises RefusedError when the test gave none."""
        if name not in self.datasets:
            raise RefusedError(Problem(f"no data set {name!r} is bound here", fix=did_you_mean(name, self.datasets)))
        return self.datasets[name]

    def schema(self) -> RecordSchema:
        """The record schema; raises ConfigError when the test gave none."""
        if self.record_schema is not None:
            return self.record_schema
        for _, schema in self.datasets.values():
            return schema
        raise ConfigError(Problem("the context has no record schema", fix="FakeContext(record_schema=...) or datasets=..."))

    def release(
        self, records: Records, fields: Sequence[str], mechanism: Mapping[str, Any], *, attempt: int = 1,
        chosen: tuple[Records, Records] | None = None,
    ) -> tuple[Records, Records]:  # fmt: skip
        """(released, key) as the host gives them: fresh random ids, random order; seeded, so without any guarantee.

        attempt: another number is another draw. chosen: then exactly the records whose bit is "yes" must be given, as from
        `feedback`; raises RefusedError when others are. Which records they are in all is what the bits' key says.
        """
        if isinstance(attempt, bool) or not isinstance(attempt, int) or attempt < 1:
            raise ConfigError(Problem("attempt must be a number from 1 on", path="attempt", why=f"got {attempt!r}"))
        if chosen is not None and _wanted(*chosen) != {row["id"] for row in records}:
            why = "a released bit chooses documents, and nothing else may"
            raise RefusedError(Problem("these are not the records whose bit is 'yes'", path="chosen", why=why))
        cls = self.mechanisms.get(str(mechanism.get("name")))
        if cls is not None and issubclass(cls, DocumentMechanism):
            return self._fresh(records, self._documents(cls, records, fields, mechanism, attempt))
        columns = {name: self._column(name, [row[name] for row in records], mechanism, attempt) for name in fields}
        return self._fresh(records, columns)

    def feedback(self, records: Records, bits: Mapping[str, bool], epsilon: float) -> tuple[Records, Records]:
        """(released, key): each bit through randomised response, right with probability e^eps / (e^eps + 1); seeded."""
        if not (isinstance(epsilon, int | float) and not isinstance(epsilon, bool) and 0 < epsilon <= 30):
            what = "epsilon must be a number greater than 0, at most 30"
            raise ConfigError(Problem(what, path="epsilon", why=f"got {epsilon!r}"))
        if set(bits) != {row["id"] for row in records} or not all(isinstance(bit, bool) for bit in bits.values()):
            raise DataError(Problem("feedback needs one bit, true or false, of every record"))
        rng, lie = self.rng(f"feedback {self.released}"), 1 / (1 + math.exp(float(epsilon)))
        said = ["yes" if bits[row["id"]] != (rng.random() < lie) else "no" for row in records]
        return self._fresh(records, {"bit": said})

    def histogram(self, records: Records, field: str, mechanism: Mapping[str, Any]) -> Records:
        """Rows ``value``, ``count``, in the domain's order, with seeded integer noise of the scale that the host's has."""
        domain = self._spec(field).domain
        if domain is None:
            raise ConfigError(Problem(f"the field {field!r} is free text", path="field", fix="count a field with a domain"))
        noise: CountNoise = validated(CountNoise, mechanism, "mechanism")
        rng, counts = self.rng(f"histogram {field}"), Counter(row[field] for row in records)
        if set(counts) - set(domain):
            raise DataError(Problem(f"a value is outside the domain of {field!r}"))
        return Records([{"value": v, "count": counts[v] + _integer_noise(noise, rng)} for v in domain], ["value", "count"])

    def noisy_sum(
        self, updates: "Iterable[Mapping[str, np.ndarray]]", shapes: Mapping[str, tuple[int, ...]], noise: Mapping[str, Any]
    ) -> Weights:
        """The clipped sum with seeded noise; with epsilon, delta and rounds, of about the multiplier that the host takes."""
        from osmotic.plugins.entropy import SeededEntropy
        from osmotic.plugins.gaussian_noise import GridSum

        asked: ClientNoise = validated(ClientNoise, noise, "dp")
        z = asked.noise_multiplier
        if z is None:
            z = _usual_multiplier(asked.epsilon, asked.delta, asked.rounds)
        total = GridSum(shapes, asked.clip, z)
        for update in updates:
            total.add(update)
        self.sums += 1
        made = total.noisy(SeededEntropy(f"{self.seed} {self.party} sum {self.sums}"))
        return Weights(made, {"clip": asked.clip, "noise_multiplier": z})

    def noisy_votes(self, records: Records, votes: Mapping[str, int], size: int, noise: Mapping[str, Any]) -> Records:
        """Rows ``value``, ``count``, with seeded Gaussian noise of about the host's scale."""
        asked: VoteNoise = validated(VoteNoise, noise, "noise")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(Problem(f"votes need a number of candidates, 1 or more (got {size!r})", path="size"))
        whole = all(isinstance(vote, int) and not isinstance(vote, bool) and 0 <= vote < size for vote in votes.values())
        if not whole or set(votes) != {row["id"] for row in records}:
            raise DataError(Problem(f"every record needs one vote, a whole number from 0 to {size - 1}", path="votes"))
        z = asked.noise_multiplier or _usual_multiplier(asked.epsilon, asked.delta, asked.rounds)
        self.sums += 1
        rng, counts = self.rng(f"votes {self.sums}"), Counter(votes.values())
        return Records([{"value": str(i), "count": counts[i] + rng.gauss(0.0, z)} for i in range(size)], ["value", "count"])

    def private_training(self, records: Records, job: PrivateJob, noise: Mapping[str, Any]) -> tuple[Weights, Document]:
        """The engine's own training (torch, osmotic[dp]), with a secret made of the seed, so without any guarantee.

        Called again with the same context, it goes on from its checkpoints, as after a kill.
        """
        from osmotic.plugins.dp_sgd.loop import train
        from osmotic.plugins.dp_sgd.plan import ExecutionPlan

        plan = ExecutionPlan.of(validated(TrainingNoise, noise, "privacy"), len(records))
        secret = hashlib.sha256(f"fake training {self.seed} {self.party} {job.key}".encode("utf-8", "surrogatepass")).digest()
        examples = [job.encode(row) for row in sorted(records, key=lambda row: str(row["id"]))]
        done = train(job, examples, plan, secret, self.scratch() / f"private-{secret.hex()[:12]}", self.progress)
        told = {**plan.describe(), "void": "seeded"}
        log = Document({"privacy": told, "records": len(records), "steps": done.steps})
        return Weights(done.tensors, {**job.meta, "privacy": told}), log

    def mechanism(self, mechanism: Mapping[str, Any], field: str) -> Mechanism[Any]:
        """A token mechanism over a field's space; raises ConfigError when the test gave no class of that name."""
        cls = self.mechanisms.get(str(mechanism.get("name")))
        if cls is None:
            fix = did_you_mean(str(mechanism.get("name")), self.mechanisms)
            raise ConfigError(Problem(f"unknown mechanism {mechanism.get('name')!r}", path="mechanism", fix=fix))
        if not issubclass(cls, Mechanism):
            raise ConfigError(Problem(f"{cls.name!r} works on whole documents", path="mechanism"))
        return self._token(cls, mechanism, field)

    def blind(self, records: Records, fields: Sequence[str]) -> tuple[Records, Records]:
        """(blinded, key): the fields unchanged, ids and order as `release` gives them."""
        return self._fresh(records, {name: [row[name] for row in records] for name in fields})

    def _fresh(self, records: Records, columns: Mapping[str, list[str]]) -> tuple[Records, Records]:
        rng = self.rng(f"ids {self.released}")
        rows, key = [], []
        for i, row in enumerate(records):
            identity = f"{rng.getrandbits(128):032x}"
            rows.append({"id": identity} | {name: column[i] for name, column in columns.items()})
            key.append({"released": identity, "id": row["id"]})
        self.released += len(rows)
        rng.shuffle(rows)
        rng.shuffle(key)
        return Records(rows, ["id", *columns]), Records(key, ["released", "id"])

    def _spec(self, name: str) -> FieldSpec:
        spec = self.schema().fields.get(name)
        if spec is None:
            raise ConfigError(Problem(f"unknown field {name!r}", path="fields", fix=did_you_mean(name, self.schema().fields)))
        return spec

    def _token(self, cls: type[Mechanism[Any]], mechanism: Mapping[str, Any], name: str) -> Mechanism[Any]:
        """The mechanism over a field's space; a wrapper's inner one is of the classes that the test gave."""
        from osmotic.plugins import spaces

        space: Space = spaces.space_of(name, self._spec(name), self.base, mechanism.get("table"))
        return self._over(cls, mechanism, space)

    def _over(self, cls: type[Mechanism[Any]], mechanism: Mapping[str, Any], space: Space) -> Mechanism[Any]:
        settings = {key: value for key, value in mechanism.items() if key not in ("name", "table")}
        config = validated(config_type(cls), settings, "mechanism")
        if not cls.wraps:
            return cls(config, space)
        given: Mapping[str, Any] = getattr(config, "inner", {})
        inner = self.mechanisms.get(str(given.get("name")))
        if inner is None or not issubclass(inner, Mechanism):
            raise ConfigError(Problem(f"unknown mechanism {given.get('name')!r}", path="mechanism.inner"))
        return cls(config, space, self._over(inner, given, cls.inner_space(config, space)))

    def _documents(
        self, cls: type[DocumentMechanism[Any]], records: Records, fields: Sequence[str], mechanism: Mapping[str, Any],
        attempt: int,
    ) -> dict[str, list[str]]:  # fmt: skip
        """Columns of whole documents drawn together."""
        from osmotic.plugins import spaces
        from osmotic.plugins.entropy import SeededEntropy

        specs = {name: self._spec(name) for name in fields}
        settings = {key: value for key, value in mechanism.items() if key != "name"}
        slots = [
            Slot(n, s.text, None if s.text and s.table is None else spaces.space_of(n, s, self.base)) for n, s in specs.items()
        ]
        made = cls(validated(config_type(cls), settings, "mechanism"), slots, self.model)
        entropy = SeededEntropy(f"{self.seed} {self.party} {self.released} {attempt}")
        drawn = made.sample([tuple(row[name] for name in fields) for row in records], entropy)
        return {name: [one.texts[i] for one in drawn] for i, name in enumerate(fields)}

    def _column(self, name: str, values: list[str], mechanism: Mapping[str, Any], attempt: int) -> list[str]:
        """One field's released values: one symbol each, or the text of its drawn tokens."""
        from osmotic.plugins import spaces
        from osmotic.plugins.entropy import SeededEntropy

        spec, cls = self._spec(name), self.mechanisms.get(str(mechanism.get("name")))
        if cls is None or not issubclass(cls, Mechanism):
            rng, domain = self.rng(f"release {name} {attempt}"), spec.domain or tuple(f"word{i}" for i in range(100))
            lengths = [len(spaces.tokenize(value)) if spec.text else 1 for value in values]
            return [spaces.join([rng.choice(domain) for _ in range(n)]) for n in lengths]
        made = self._token(cls, mechanism, name)
        entropy = SeededEntropy(f"{self.seed} {self.party} {name} {self.released} {attempt}")
        flat, counts = spaces.encode(made.space, values)
        return spaces.decode(made.space, made.sample(flat, entropy), counts)

    def journal(self, name: str = "rows") -> FakeJournal:
        """The journal of that name, kept as long as the context."""
        return self.journals.setdefault(name, FakeJournal())

    def scratch(self) -> Path:
        """A temporary folder, removed with the context."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="osmotic-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, True)
        return self._scratch

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Kept in `log`. Raises ComponentError when the numbers make no sense."""
        if not 0 <= done <= total:
            raise ComponentError(Problem(f"progress must be 0 <= done <= total (got {done} of {total})"))
        self.log.append((done, total, note))


def _wanted(bits: Records, key: Records) -> set[str]:
    """Ids of the records whose released bit is "yes"."""
    home = {row["released"]: row["id"] for row in key}
    return {home[row["id"]] for row in bits if row.get("bit") == "yes"}


def _usual_multiplier(epsilon: float | None, delta: float | None, rounds: int | None) -> float:
    """About the noise multiplier that the host takes for so many rounds; needs no accountant."""
    return math.sqrt(2 * (rounds or 1) * math.log(1.25 / (delta or 1.0))) / (epsilon or 1.0)


def _integer_noise(noise: CountNoise, rng: random.Random) -> int:
    """Seeded noise of about the host's scale: two-sided geometric (scale 2/epsilon), or a rounded Gaussian."""
    if noise.name == "laplace":
        scale = 2 / noise.epsilon
        draws = [math.floor(-scale * math.log(1 - rng.random())) for _ in range(2)]
        return draws[0] - draws[1]
    return round(rng.gauss(0.0, math.sqrt(4 * math.log(1.25 / noise.delta)) / noise.epsilon))


def validated(model: type[Any], config: Mapping[str, Any], what: str) -> Any:
    """A configuration object; raises ConfigError with every problem, as the host would show them."""
    from pydantic import ValidationError

    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(*problems_of(error, model, Source(what, dict(config)))) from error


def hashed(text: str) -> int:
    """A 64-bit number from a text, the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")

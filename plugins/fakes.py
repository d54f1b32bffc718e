# SPDX-License-Identifier: Apache-2.0
"""Stand-ins for models and for the host, without torch: algorithms can be tested in milliseconds, and on every platform.

They keep the contract's shapes and errors, and are deterministic. `FakeContext.release` samples with a seed from a real
mechanism (or draws without looking at the data): no guarantee, by construction.
"""

import hashlib
import json
import math
import random
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.contract import Answer, Generation, Mechanism, Records, Space, config_type
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, Problem, RefusedError
from osmotic.schemas.records import FieldSpec, RecordSchema
from osmotic.schemas.source import Source, did_you_mean, problems_of

if TYPE_CHECKING:
    import numpy as np

__all__ = ["FakeContext", "FakeEmbedder", "FakeJournal", "FakeMaskedLM", "FakeScorer", "FakeTextGenerator", "validated"]

MASK = "[MASK]"


# ---- models ----------------------------------------------------------------------------------------------------------


class FakeTextGenerator:
    """Answers from a dictionary or a function of the prompt. `prompts`: all that it was asked, in order.

    Words count as tokens: an answer longer than `max_new_tokens` words is cut and not finished; `stop` strings end an answer.
    """

    def __init__(self, answers: Mapping[str, str] | Callable[[str], str]) -> None:
        self._answers = answers
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        """One answer a prompt. Raises ComponentError for a prompt that the dictionary does not have."""
        self.prompts.extend(prompts)
        return [self._answer(prompt, how) for prompt in prompts]

    def _answer(self, prompt: str, how: Generation) -> Answer:
        if callable(self._answers):
            text = self._answers(prompt)
        elif prompt in self._answers:
            text = self._answers[prompt]
        else:
            raise ComponentError(Problem("the fake generator has no answer", why=f"prompt: {prompt[:80]!r}"))
        for stop in how.stop:
            text = text.partition(stop)[0]
        ends = [found.end() for found in re.finditer(r"\S+", text)]
        if len(ends) > how.max_new_tokens:
            return Answer(text[: ends[how.max_new_tokens - 1]], False, how.max_new_tokens)
        return Answer(text, True, len(ends))


class FakeScorer:
    """Log-likelihoods by a function of (prompt, target); by default a target's word is likelier if the prompt has it."""

    def __init__(self, score: Callable[[str, str], float] | None = None) -> None:
        self._score = score or _by_overlap
        self.pairs: list[tuple[str, str]] = []

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        """(log-probability, number of words) of each target."""
        self.pairs.extend(pairs)
        return [(self._score(prompt, target), max(1, len(target.split()))) for prompt, target in pairs]


def _by_overlap(prompt: str, target: str) -> float:
    known = set(re.findall(r"\w+", prompt.lower()))
    words = re.findall(r"\w+", target.lower()) or [""]
    return sum(math.log(0.5 if word in known else 0.05) for word in words)


class FakeMaskedLM:
    """Fills ``[MASK]`` from a list of candidates with log-probabilities that depend on the text and sum to 1."""

    def __init__(self, candidates: Sequence[str] = ("good", "bad", "great", "poor")) -> None:
        self._candidates = tuple(candidates)

    def fill(self, texts: Sequence[str], top_k: int) -> list[list[tuple[str, float]]]:
        """(token, log-probability), best first. Raises ComponentError unless a text has exactly one ``[MASK]``."""
        return [self._fill(text)[:top_k] for text in texts]

    def _fill(self, text: str) -> list[tuple[str, float]]:
        if text.count(MASK) != 1:
            raise ComponentError(Problem(f"a text must have exactly one {MASK} (it has {text.count(MASK)})"))
        weights = {word: 1 + _hash(f"{word}\0{text}") % 1000 for word in self._candidates}
        total = sum(weights.values())
        return sorted(((word, math.log(w / total)) for word, w in weights.items()), key=lambda pair: (-pair[1], pair[0]))


class FakeEmbedder:
    """A bag of words: every word has its own random direction, so texts that share words are near."""

    def __init__(self, dimension: int = 32) -> None:
        self._dimension = dimension

    def embed(self, texts: Sequence[str]) -> "np.ndarray":
        """float32 [n, dimension], length 1."""
        import numpy as np

        out = np.zeros((len(texts), self._dimension))
        for row, text in zip(out, texts, strict=True):
            for word in text.lower().split() or [""]:
                row += np.random.Generator(np.random.PCG64(_hash(word))).standard_normal(self._dimension)
        return np.asarray(out / np.linalg.norm(out, axis=1, keepdims=True), dtype=np.float32)


# ---- the host --------------------------------------------------------------------------------------------------------


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
    models: Mapping[str, Any] = field(default_factory=dict)
    datasets: Mapping[str, tuple[Records, RecordSchema]] = field(default_factory=dict)
    record_schema: RecordSchema | None = None
    mechanisms: Mapping[str, type[Mechanism[Any]]] = field(default_factory=dict)
    base: Path = Path()
    journals: dict[str, FakeJournal] = field(default_factory=dict)
    log: list[tuple[int, int, str]] = field(default_factory=list)
    released: int = 0
    _scratch: Path | None = None

    def rng(self, stream: str) -> random.Random:
        """A stream of its own for each (seed, party, name)."""
        return random.Random(_hash(json.dumps([self.seed, self.party, stream])))

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

    def release(self, records: Records, fields: Sequence[str], mechanism: Mapping[str, Any]) -> tuple[Records, Records]:
        """(released, key) as the host gives them: fresh random ids, random order; seeded, so without any guarantee."""
        return self._fresh(records, {name: self._column(name, [row[name] for row in records], mechanism) for name in fields})

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

    def _column(self, name: str, values: list[str], mechanism: Mapping[str, Any]) -> list[str]:
        """One field's released values: one symbol each, or the joined tokens of a text."""
        from osmotic.plugins import spaces

        spec = self.schema().fields.get(name)
        if spec is None:
            raise ConfigError(Problem(f"unknown field {name!r}", path="fields", fix=did_you_mean(name, self.schema().fields)))
        parts = [spaces.tokenize(value) if spec.text else [value] for value in values]
        symbols = self._symbols(name, spec, [token for part in parts for token in part], mechanism)
        found = iter(symbols)
        return [spaces.join([next(found) for _ in part]) for part in parts]

    def _symbols(self, name: str, spec: FieldSpec, tokens: list[str], mechanism: Mapping[str, Any]) -> list[str]:
        from osmotic.plugins import spaces
        from osmotic.plugins.entropy import SeededEntropy

        cls = self.mechanisms.get(str(mechanism.get("name")))
        if cls is None:
            rng, domain = self.rng(f"release {name}"), spec.domain or tuple(f"word{i}" for i in range(100))
            return [rng.choice(domain) for _ in tokens]
        settings = {key: value for key, value in mechanism.items() if key not in ("name", "table")}
        space: Space = spaces.space_of(name, spec, self.base, mechanism.get("table"))
        made = cls(validated(config_type(cls), settings, "mechanism"), space)
        entropy = SeededEntropy(f"{self.seed} {self.party} {name} {self.released}")
        try:
            drawn = made.sample(spaces.indices(space, tokens), entropy)
        except IndexError as error:
            raise DataError(Problem(f"a value is outside the field {name!r}")) from error
        return [space.symbols[i] for i in drawn.tolist()]

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


def validated(model: type[Any], config: Mapping[str, Any], what: str) -> Any:
    """A configuration object; raises ConfigError with every problem, as the host would show them."""
    from pydantic import ValidationError

    try:
        return model.model_validate(dict(config))
    except ValidationError as error:
        raise ConfigError(*problems_of(error, model, Source(what, dict(config)))) from error


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")

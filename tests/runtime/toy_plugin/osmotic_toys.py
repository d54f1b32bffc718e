# SPDX-License-Identifier: Apache-2.0
"""Small components, mechanisms and a model for the tests of the runtime; some of them behave badly on purpose.

Beside it lies a ``dist-info`` folder, so that a fresh process with this folder on its path finds it as an installed plugin.
"""

import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from osmotic.plugins.contract import (
    Answer,
    Component,
    Config,
    Context,
    Document,
    Gathered,
    Generation,
    Guarantee,
    Mechanism,
    Metrics,
    ModelName,
    ModelPlugin,
    Out,
    Outputs,
    Records,
)  # fmt: skip
from osmotic.plugins.hookspecs import hookimpl

if TYPE_CHECKING:
    import numpy as np


class Nothing(Config):
    """No keys."""


class AskerConfig(Config):
    """Which model, about which field."""

    model: ModelName
    field: str


class Asker(Component[AskerConfig]):
    """Asks a model about a field of every record."""

    name = "asker"
    outputs = {"answers": Out(Records)}

    def run(self, context: Context, records: Records) -> Outputs:
        model = context.model(self.config.model)
        answers = model.generate([row[self.config.field] for row in records], Generation())
        scores = model.log_likelihood([(row[self.config.field], "x") for row in records])
        pairs = zip(records, answers, scores, strict=True)
        return {"answers": Records([{"id": r["id"], "answer": a.text, "score": s[0]} for r, a, s in pairs])}


class Liar(Component[Nothing]):
    """Claims a release without having made one."""

    name = "liar"
    outputs = {"out": Out(Records, label="release")}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"out": records}


class PickerConfig(Config):
    """What to release, and which records are chosen."""

    mechanism: dict[str, Any]
    fields: list[str]
    value: str
    how: str = "part"


class Picker(Component[PickerConfig]):
    """Releases the records with one value of the first field only (part), or all of them and shows a part (after)."""

    name = "picker"
    outputs = {"out": Out(Records, label="release")}

    def run(self, context: Context, records: Records) -> Outputs:
        chosen = [row for row in records if row[self.config.fields[0]] == self.config.value]
        if self.config.how == "part":
            return {"out": context.release(Records(chosen), self.config.fields, self.config.mechanism)[0]}
        released, key = context.release(records, self.config.fields, self.config.mechanism)
        ids = {row["released"] for row in key if row["id"] in {c["id"] for c in chosen}}
        return {"out": Records([row for row in released if row["id"] in ids])}


class SmugglerConfig(Config):
    """Which data set it reads."""

    data: str


class Smuggler(Component[SmugglerConfig]):
    """Reads a data set beside its inputs and gives it out as if it had none."""

    name = "smuggler"
    outputs = {"out": Out(Records)}

    def run(self, context: Context) -> Outputs:
        return {"out": context.dataset(self.config.data)[0]}


class Relay(Component[Nothing]):
    """Gives its records back."""

    name = "relay"
    outputs = {"out": Out(Records)}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"out": records}


class Both(Component[Nothing]):
    """Takes the same artifact twice."""

    name = "both"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, left: Records, right: Records) -> Outputs:
        return {"out": Document([len(left), len(right)])}


class Counter(Component[Nothing]):
    """Counts what all parties sent."""

    name = "counter"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, records: Gathered[Records]) -> Outputs:
        return {"out": Document({party: len(table) for party, table in records.items()})}


class Meter(Component[Nothing]):
    """Measures how many records there are."""

    name = "meter"
    outputs = {"metrics": Out(Metrics)}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"metrics": Metrics({"records": float(len(records))})}


class Talker(Component[Nothing]):
    """Prints, and reports progress."""

    name = "talker"
    outputs = {"out": Out(Document)}

    def run(self, context: Context) -> Outputs:
        print("printed by a component")
        os.write(1, b"written past Python\n")
        for i in range(3):
            context.progress(i, 3, "talking")
        return {"out": Document("done")}


class CrasherConfig(Config):
    """How it ends."""

    how: str


class Crasher(Component[CrasherConfig]):
    """Fails in one of several ways."""

    name = "crasher"
    outputs = {"out": Out(Document)}

    def run(self, context: Context) -> Outputs:
        if self.config.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.config.how == "exit":
            sys.exit(0)
        if self.config.how == "wrong":
            return {"other": Document(1)}
        raise ValueError("PRIVATE-DETAIL")


class SleeperConfig(Config):
    """How long, and where it says that it has."""

    seconds: float
    log: str
    note: str = ""


class Sleeper(Component[SleeperConfig]):
    """Takes its time, and leaves a line in a file: its party, and when it began. Where a file LOG.together lies, it ends only
    when two of its party have begun.
    """

    name = "sleeper"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, records: Records) -> Outputs:
        log = Path(self.config.log)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{context.party} {time.monotonic()}\n")
        end = time.monotonic() + 60
        while Path(f"{log}.together").exists() and log.read_text(encoding="utf-8").count(f"{context.party} ") < 2:
            if time.monotonic() > end:
                raise TimeoutError("no second task began")
            time.sleep(0.02)
        time.sleep(self.config.seconds)
        return {"out": Document([len(records), context.rng("x").random()])}


class Climber(Component[Nothing]):
    """A number that grows by one each round."""

    name = "climber"
    outputs = {"metrics": Out(Metrics)}

    def run(self, context: Context, before: Metrics | None) -> Outputs:
        return {"metrics": Metrics({"score": (before.values["score"] if before else 0.0) + 1.0})}


class Dishonest(Mechanism[Nothing]):
    """Keeps nearly every symbol and claims epsilon 0.1."""

    name = "toy-dishonest"
    claims: ClassVar[float] = 0.1

    def log_prob(self, rows: "np.ndarray") -> "np.ndarray":
        import numpy as np

        v = self.space.size
        p = np.full((len(rows), v), 0.01 / (v - 1))
        p[np.arange(len(rows)), np.minimum(rows, v - 1)] = 0.99
        return np.log(p)

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="certified", epsilon=self.claims)


class Fickle(Dishonest):
    """Claims enough while it is certified, and less when it is charged for."""

    name = "toy-fickle"
    said: int = 0

    def guarantee(self) -> Guarantee:
        self.said += 1
        return Guarantee(mechanism_class="certified", epsilon=0.1 if self.said == 1 else 20.0)


class Heuristic(Dishonest):
    """Claims no certificate."""

    name = "toy-heuristic"

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="heuristic", epsilon=0.1)


class Echo:
    """Answers in capitals."""

    def generate(self, prompts: Sequence[str], how: Generation) -> list[Answer]:
        return [Answer(prompt.upper(), True, 1) for prompt in prompts]

    def log_likelihood(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, int]]:
        return [(-float(len(prompt)), 1) for prompt, _ in pairs]


class EchoPlugin(ModelPlugin[Nothing]):
    """The model of these tests."""

    name = "toy-echo"
    provides = frozenset({"text_generator", "scorer"})

    def fingerprint(self) -> str:
        return hashlib.sha256(b"toy-echo").hexdigest()

    def build(self) -> Echo:
        return Echo()


@hookimpl
def register_components() -> Iterable[type[Component[Any]]]:
    """All toys."""
    from osmotic_sums import Puller, Starter

    return (Asker, Liar, Picker, Smuggler, Relay, Both, Counter, Meter, Talker, Crasher, Sleeper, Climber, Starter, Puller)


@hookimpl
def register_mechanisms() -> Iterable[type[Mechanism[Any]]]:
    """Mechanisms that lie."""
    return (Dishonest, Fickle, Heuristic)


@hookimpl
def register_models() -> Iterable[type[ModelPlugin[Any]]]:
    """A model without torch."""
    return (EchoPlugin,)

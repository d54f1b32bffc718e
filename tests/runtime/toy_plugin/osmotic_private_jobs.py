# SPDX-License-Identifier: Apache-2.0
"""What the tests of private training and votes share: a small torch job, ledgers with caps, a component of each kind."""

import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Out,
    Outputs,
    PrivateJob,
    Records,
    Weights,
)
from osmotic.plugins.hookspecs import hookimpl
from osmotic.runtime.privacy.composition import RecordEvents
from osmotic.runtime.privacy.private_training import private_training
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.noise import TrainingNoise, VoteNoise
from osmotic.schemas.policy import Budget, RecordBudget, SitePolicy

COLOURS = ("red", "green", "blue", "white")
NOISE = {"noise_multiplier": 1.5, "batch": 8, "steps": 6, "delta": 1e-3}
ROWS = [{"id": f"r{i:02d}", "colour": COLOURS[i % 4], "size": "sml"[i % 3]} for i in range(40)]


def encode(row: Mapping[str, Any]) -> tuple[list[float], int] | None:
    """Colour as four numbers, size as the class."""
    return [float(row["colour"] == one) for one in COLOURS], "sml".index(row["size"])


def losses(module: Any, examples: Any) -> Any:
    """Cross entropy, one an example."""
    import torch

    x = torch.tensor([one[0] for one in examples])
    y = torch.tensor([one[1] for one in examples])
    return torch.nn.functional.cross_entropy(module(x), y, reduction="none")


def job(key: str = "toy", rate: float = 0.1, **more: Any) -> PrivateJob:
    """A linear model of four inputs and three classes, always begun in the same place."""
    import torch

    torch.manual_seed(0)
    dummies = [([1.0, 0.0, 0.0, 0.0], 0), ([0.5, 0.5, 0.0, 1.0], 2)]
    made = {"encode": encode, "losses": losses, "meta": {"base": "toy"}, **more}
    return PrivateJob(torch.nn.Linear(4, 3), dummies=dummies, key=key, learning_rate=rate, **made)


def events(folder: Path, epsilon: float | None = 20.0, delta: float = 1e-3) -> RecordEvents:
    """A ledger whose data set `d` is private, with a cap or without."""
    cap = None if epsilon is None else RecordBudget(epsilon=epsilon, delta=delta)
    return RecordEvents(Ledger(folder), SitePolicy(budget={"*": Budget(per_record=cap)}))


def train(
    found: RecordEvents, made: PrivateJob | None = None, noise: Any = None, rows: Any = None, seed: int | None = None,
    task: str = "run: t@north", stream: str = "0", progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> tuple[Weights, Document]:  # fmt: skip
    """A training of the toy job."""
    weights, log, _ = private_training(
        found, rows or ROWS, made or job(), noise or NOISE, dataset="d", stream=stream, refs=[], seed=seed, task=task,
        progress=progress,
    )  # fmt: skip
    return weights, log


def charges(found: RecordEvents) -> int:
    """Rows of the chain of charges."""
    return int(found.ledger.query("SELECT COUNT(*) FROM charges")[0][0])


# ---- components ----


class TrainerConfig(Config):
    """What is trained, with which noise."""

    privacy: TrainingNoise
    rate: float = 0.1
    spoil: str = ""


class Trainer(Component[TrainerConfig]):
    """Trains the toy job. spoil: what is wrong with the records it gives."""

    name = "private_trainer"
    outputs = {"weights": Out(Weights, label="release"), "curve": Out(Document)}

    def run(self, context: Context, records: Records, other: Records | None = None) -> Outputs:
        """As the spoiled configuration says."""
        rows = [dict(row) for row in records]
        if self.config.spoil == "changed":
            rows[0]["size"] = "s" if rows[0]["size"] != "s" else "m"
        elif self.config.spoil == "left out":
            rows = rows[1:]
        elif self.config.spoil == "twice":
            rows.append(rows[0])
        elif self.config.spoil == "added":
            rows = [{**row, "mean": "0.5"} for row in rows]
        made = job(key=f"toy {self.config.rate}", rate=self.config.rate)
        weights, log = context.private_training(Records(rows[::-1]), made, self.config.privacy.model_dump())
        return {"weights": weights, "curve": log}


class VoterConfig(Config):
    """Which noise."""

    noise: VoteNoise


class Voter(Component[VoterConfig]):
    """Every record votes for its colour."""

    name = "colour_voter"
    outputs = {"counts": Out(Records, label="release")}

    def run(self, context: Context, records: Records, before: Records | None = None) -> Outputs:
        """One vote a record."""
        votes = {row["id"]: COLOURS.index(row["colour"]) for row in records}
        return {"counts": context.noisy_votes(records, votes, 4, self.config.noise.model_dump())}


class Nothing(Config):
    """No keys."""


class Reader(Component[Nothing]):
    """At a server: reads weights or counts of all parties."""

    name = "weights_reader"
    outputs = {"names": Out(Document)}

    def run(self, context: Context, weights: Weights) -> Outputs:
        """Names of the tensors and what the description says."""
        return {"names": Document({"tensors": sorted(weights.tensors), "meta": weights.meta})}


class Counts(Component[Nothing]):
    """At a server: reads counts."""

    name = "counts_reader"
    outputs = {"counts": Out(Records)}

    def run(self, context: Context, counts: Records) -> Outputs:
        """As they came."""
        return {"counts": counts}


def plugin() -> types.ModuleType:
    """The components as a plugin."""
    module = types.ModuleType("private_jobs_plugin")
    module.register_components = hookimpl(lambda: (Trainer, Voter, Reader, Counts))  # type: ignore[attr-defined]
    return module

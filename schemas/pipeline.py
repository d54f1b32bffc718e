# SPDX-License-Identifier: Apache-2.0
"""The pipeline document: parties, models, axes, tasks. What it means is in docs/pipelines.md.

References between tasks: ``task`` (its first output), ``task.port``, ``loop.task`` (last round of a repeat),
``carry.name`` inside a repeat.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from osmotic.schemas.base import Config
from osmotic.schemas.secure import SecureSum

Scalar = str | int | float | bool
NAME = r"^[a-z][a-z0-9_]*(-[a-z0-9_]+)*$"
Name = Annotated[str, Field(pattern=NAME, max_length=64)]


def _parties(value: Any) -> Any:
    """`hub` -> [hub]; `100` -> party-000 ... (numbered parties for large simulations)."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 100_000:
            raise ValueError(f"a number of parties must be in 1..100000 (got {value})")
        return [f"party-{i:0{len(str(value - 1))}d}" for i in range(value)]
    return value


def _distinct(parties: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({p for p in parties if parties.count(p) > 1}) if len(set(parties)) < len(parties) else []
    if twice:
        raise ValueError(f"a party stands twice: {', '.join(twice)}")
    return parties


def _kind_of_task(value: Any) -> str:
    """Which model a member of `tasks` is: errors then come from that one alone."""
    repeats = "repeat" in value if isinstance(value, dict) else isinstance(value, RepeatSpec)
    return "RepeatSpec" if repeats else "TaskSpec"


def _source(value: Any) -> Any:
    """The short form of an input: just the reference."""
    return {"from": value} if isinstance(value, str) else value


SECONDS = {"s": 1, "sec": 1, "min": 60, "h": 3600}
DURATION = re.compile(r"(\d+(?:\.\d+)?) ?(s|sec|min|h)")
LONGEST = 7 * 24 * 3600  # seconds


def _duration(value: Any) -> Any:
    """`"2 min"` -> 120.0; numbers are seconds."""
    found = DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if isinstance(value, str) and found is None:
        raise ValueError(f"write seconds, or a text like '120 s', '2 min', '1 h' (got {value!r})")
    seconds = float(found[1]) * SECONDS[found[2]] if found else value
    if isinstance(seconds, int | float) and not isinstance(seconds, bool):
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"must be more than 0 and at most {LONGEST} seconds (got {seconds:g})")
        return float(seconds)
    return seconds


def _share(value: Any) -> Any:
    """A whole number of parties, or a share of them: never both at once."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"give a number of parties, or a share of them from 0 to 1 (got {value!r})")
    if isinstance(value, int) and value < 1:
        raise ValueError(f"at least 1 party is needed (got {value})")
    if isinstance(value, float) and not 0 < value <= 1:
        raise ValueError(f"a share of the parties is more than 0 and at most 1 (got {value:g}); a number has no decimal point")
    return value


class Quorum(Config):
    """How few of the senders of a gather are enough, and how long one is waited for."""

    at_least: Annotated[
        int | float,
        BeforeValidator(_share, json_schema_input_type=Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, le=1)]),
    ] = Field(description="A number of parties (3), or a share of those that the plan has there (0.6).")
    within: Annotated[float, BeforeValidator(_duration, json_schema_input_type=float | str)] = Field(
        120.0, description="How long a party may make no progress before it is given up: seconds, or '2 min'."
    )


class InputSpec(Config):
    """Where an input comes from; `waive` asks the owning site to let it cross unprotected, and says why."""

    source: str = Field(alias="from", description="task, task.port, loop.task or carry.name")
    waive: str | None = Field(None, min_length=10, description="Reason for crossing unprotected. Only the site grants it.")
    quorum: Quorum | None = Field(None, description="On a gather: the run goes on when so many parties are there.")
    secure_sum: SecureSum | None = Field(
        None, description="Weights of several parties arrive as one, their sum; nobody sees what it is the sum of."
    )


Input = Annotated[InputSpec | None, BeforeValidator(_source, json_schema_input_type=str | InputSpec | None)]
Parties = Annotated[
    tuple[Name, ...],
    Field(strict=False, min_length=1),
    AfterValidator(_distinct),
    BeforeValidator(
        _parties,
        json_schema_input_type=Name | Annotated[int, Field(ge=1, le=100_000)] | Annotated[list[Name], Field(min_length=1)],
    ),
]


class Patch(Config):
    """What changes in a task at one value of an axis."""

    inputs: dict[Name, Input] = Field(default_factory=dict, description="Inputs replaced; null takes one away.")
    config: dict[str, Any] = Field(default_factory=dict, description="Configuration keys replaced (deep).")
    skip: bool = Field(False, description="The task does not exist at this value.")


class Bound(Config):
    """What a metric must not pass: at most `max`, at least `min`."""

    max: float | None = Field(None, strict=False, allow_inf_nan=False, description="The largest value allowed.")
    min: float | None = Field(None, strict=False, allow_inf_nan=False, description="The smallest value allowed.")

    @model_validator(mode="after")
    def _one(self) -> "Bound":
        if self.max is None and self.min is None:
            raise ValueError("give 'max', 'min' or both")
        if self.max is not None and self.min is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is more than max {self.max:g}")
        return self


class TaskSpec(Config):
    """One component at one role."""

    component: str = Field(description="A registered component's name (osmotic components).")
    at: Name = Field(description="The role where it runs: once at every party of that role.")
    each: Literal["party"] | None = Field(None, description="At a single-party role: run once per sending party.")
    inputs: dict[Name, Input] = Field(default_factory=dict, description="Input port -> reference.")
    config: dict[str, Any] = Field(default_factory=dict, description="The component's own configuration.")
    matrix: tuple[str, ...] = Field((), strict=False, description="Axes that this task spans (inherited from its inputs too).")
    vary: dict[str, dict[str, Patch]] = Field(
        default_factory=dict, description="axis -> value -> patch of inputs and config; names the axis, so spans it."
    )
    require: dict[str, Bound] = Field(
        default_factory=dict, description="metric -> bounds that it must keep; a task that does not keep them fails the run."
    )


class Carry(Config):
    """A value that goes from one round into the next."""

    source: str = Field(alias="from", description="A task (and port) inside the repeat.")
    start: str | None = Field(None, description="Reference used in the first round; none: the input is absent then.")


class Until(Config):
    """Stop early when a metric of a task at a single-party role is reached."""

    metric: str = Field(description="task.port:name, a number of a metrics artifact inside the repeat.")
    at_least: float = Field(strict=False)


class Repeat(Config):
    """How often, who takes part, what is carried, when to stop."""

    times: int = Field(ge=1, le=10_000)
    sample: dict[Name, Annotated[int, Field(ge=1, le=100_000)]] = Field(
        default_factory=dict, description="role -> how many of its parties take part in a round: a public, seeded choice."
    )
    carry: dict[Name, Carry] = Field(default_factory=dict)
    until: Until | None = None


class RepeatSpec(Config):
    """A group of tasks that is unrolled into rounds."""

    repeat: Repeat
    tasks: dict[Name, TaskSpec] = Field(min_length=1)


Task = Annotated[Annotated[TaskSpec, Tag("TaskSpec")] | Annotated[RepeatSpec, Tag("RepeatSpec")], Discriminator(_kind_of_task)]


class ModelSpec(Config):
    """A model at a role. Components at that role use it directly; components elsewhere through a port, as a crossing."""

    type: str = Field(description="A registered model's name (osmotic plugins).")
    at: Name
    config: dict[str, Any] = Field(default_factory=dict)


def _several(value: Any) -> Any:
    """`x` -> [x]; nothing -> []."""
    return [value] if isinstance(value, str) else [] if value is None else value


Names = Annotated[
    tuple[str, ...], Field(strict=False), BeforeValidator(_several, json_schema_input_type=str | list[str] | None)
]


class ChartSpec(Config):
    """A chart of two metrics: one point a row of the table, one line through the points of each value of an axis."""

    x: str = Field(description="The metric of the horizontal axis.")
    y: str = Field(description="The metric of the vertical axis.")
    by: str = Field(description="The axis whose values are the lines: one of `rows`.")
    title: str = Field("", description="What stands above it.")


class SampleSpec(Config):
    """Records that the report shows as they are."""

    source: str = Field(alias="from", description="task.port of records.")
    rows: int = Field(3, ge=1, le=500, description="How many are shown, from the first.")
    where: dict[str, Scalar] = Field(
        default_factory=dict, description="axis -> value, or round -> number: which of several tasks. Default: the first."
    )


Sample = Annotated[SampleSpec, BeforeValidator(_source, json_schema_input_type=str | SampleSpec)]


class ReportSpec(Config):
    """What the table at the end shows."""

    table: Names = Field((), description="The task, or tasks, whose metrics are the columns.")
    rows: Names = Field(("arm",), description="The axis, or axes, whose values are the rows; 'round': of a task in a repeat.")
    metrics: dict[str, str] = Field(default_factory=dict, description="metric, or task:metric -> column title, in order.")
    apart: tuple[str, ...] = Field((), strict=False, description="Rows that stand apart below the others.")
    samples: dict[str, Sample] = Field(
        default_factory=dict, description="title -> task.port of records to show, or {from, rows, where} (benchmark only)."
    )
    compare: bool = Field(True, description="Whether every row is compared with the first, by test record.")
    chart: ChartSpec | None = Field(None, description="A chart of two metrics of the table.")


class Pipeline(Config):
    """A whole pipeline."""

    osmotic: Literal[1] = Field(description="Version of this document's format.")
    name: Name
    description: str = ""
    parties: dict[Name, Parties] = Field(
        min_length=1, description="role -> its parties: names, one name, or a number of parties (party-0, party-1, ...)."
    )
    seed: int = Field(0, ge=0, description="Seed of everything that no guarantee rests on.")
    noise_seed: int | None = Field(None, ge=0, description="Seeds the noise too: for tests; voids every guarantee.")
    models: dict[Name, ModelSpec] = Field(default_factory=dict, description="Model name -> what it is and where.")
    text: dict[Name, str] = Field(default_factory=dict, description="Named texts, used in configurations as ${text.NAME}.")
    matrix: dict[Name, Annotated[tuple[Scalar, ...], Field(strict=False, min_length=1)]] = Field(
        default_factory=dict, description="axis -> its values: arms, seeds, grids."
    )
    tasks: dict[Name, Task] = Field(min_length=1, description="Task name -> task, or a group of tasks that is repeated.")
    report: ReportSpec = Field(default_factory=ReportSpec, description="The table at the end.")

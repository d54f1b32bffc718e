# SPDX-License-Identifier: Apache-2.0
"""Toy components for the tests of plans: records, documents and metrics, no models."""

from typing import Any

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Document, Gathered, Metrics, Out, Outputs, Records
from osmotic.plugins.hookspecs import hookimpl


class LoadConfig(Config):
    data: str = "numbers"


class Load(Component[LoadConfig]):
    """A bound data set."""

    name = "load"
    outputs = {"records": Out(Records, label="source")}

    def run(self, context: Context) -> Outputs:
        return {"records": context.dataset(self.config.data)[0]}


class MakeConfig(Config):
    value: Any = None
    size: int = 1


class Make(Component[MakeConfig]):
    """A document that says what it is told."""

    name = "make"
    outputs = {"document": Out(Document), "other": Out(Document)}

    def run(self, context: Context) -> Outputs:
        return {"document": Document(self.config.value), "other": Document(self.config.size)}


class Nothing(Config):
    pass


class Join(Component[Nothing]):
    """Up to two documents as one."""

    name = "join"
    outputs = {"document": Out(Document)}

    def run(self, context: Context, a: Document, b: Document | None) -> Outputs:
        return {"document": Document([a.data, b.data if b else None])}


class Gather(Component[Nothing]):
    """One document from each sender, by sender."""

    name = "gather"
    outputs = {"document": Out(Document)}

    def run(self, context: Context, parts: Gathered[Document]) -> Outputs:
        return {"document": Document({party: part.data for party, part in parts.items()})}


class TrainConfig(Config):
    step: int = 1


class Train(Component[TrainConfig]):
    """Counts: what it starts with, plus one step."""

    name = "train"
    outputs = {"model": Out(Document)}

    def run(self, context: Context, records: Records | None, init: Document | None) -> Outputs:
        return {"model": Document((init.data if init else 0) + self.config.step)}


class Average(Component[Nothing]):
    """The mean of what all parties send."""

    name = "average"
    outputs = {"model": Out(Document)}

    def run(self, context: Context, models: Gathered[Document]) -> Outputs:
        return {"model": Document(sum(m.data for m in models.values()) / len(models))}


class Measure(Component[Nothing]):
    """A document's number as a metric."""

    name = "measure"
    outputs = {"metrics": Out(Metrics), "note": Out(Document)}

    def run(self, context: Context, document: Document) -> Outputs:
        return {"metrics": Metrics({"value": float(document.data)}), "note": document}


class Count(Component[Nothing]):
    """How many records there are."""

    name = "count"
    outputs = {"document": Out(Document)}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"document": Document(len(records))}


class FilterConfig(Config):
    wanted: str = "red"


class Pick(Component[FilterConfig]):
    """Records of another table whose own record has a colour: reads private data."""

    name = "pick"
    outputs = {"records": Out(Records)}

    def run(self, context: Context, records: Records, own: Records) -> Outputs:
        return {"records": records}


class MaskConfig(Config):
    mechanism: dict[str, Any]
    fields: tuple[str, ...] = Field(strict=False)


class Mask(Component[MaskConfig]):
    """A release through a mechanism."""

    name = "mask"
    outputs = {"masked": Out(Records, label="release"), "key": Out(Records)}

    def run(self, context: Context, records: Records) -> Outputs:
        masked, key = context.release(records, self.config.fields, self.config.mechanism)
        return {"masked": masked, "key": key}


class Pass(Component[Nothing]):
    """Records as they came."""

    name = "pass"
    outputs = {"records": Out(Records)}

    def run(self, context: Context, records: Records) -> Outputs:
        return {"records": records}


@hookimpl
def register_components() -> list[type[Component[Any]]]:
    return [Load, Make, Join, Gather, Train, Average, Measure, Count, Pick, Mask, Pass]

# SPDX-License-Identifier: Apache-2.0
"""Tune a prompt for a black-box model by policy gradients over phrases (BDPL, Diao et al. 2023; federated: FedOne, ICML 2025).

The state is one distribution over public phrases for each of `length` positions (`weights`; without them all phrases alike).
Each iteration draws `samples` prompts, asks the model about one batch of the client's own records and all public ones under
each, and takes one step (see `prompting.bdpl`). The loss of a prompt is 1 - accuracy, an answer that names no label counting as
wrong, or the cross entropy of the label words, for a model that is a scorer (`loss: likelihood`). The server averages the
distributions (`aggregator`, plain); `bdpl_decoder` reads a prompt off them. An average of clients costs queries at each of
them: one active client a round is query-optimal (FedOne), which is ``repeat: {sample: {clients: 1}}`` in the pipeline.

Guarantee: none. The distributions follow the private labels, so they are private, and so is what is made of them; the records
go to the model as they are, and towards a model elsewhere that is a crossing of its own. Deterministic; a task that was killed
goes on with the answers it has paid for.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from osmotic.components.prompting import bdpl
from osmotic.components.prompting.judging import Judge, Labels, SpentError, Verbalizer, label_problems, words_of
from osmotic.components.prompting.likelihoods import Likelihoods
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.templates import check_slots
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Generation,
    Metrics,
    ModelName,
    Out,
    Outputs,
    Records,
    Weights,
)
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

Row = Mapping[str, Any]


class BdplTunerConfig(Config):
    """The prompt around the phrases, what is asked, and how a step is taken."""

    model: ModelName
    prompt: str = Field(
        description="Text with the slot {{ phrases }}, where the tuned phrases go; [[ ... ]] is verbatim: "
        "'{{ phrases }} [[text: {{ text }} answer:]]'."
    )
    labels: Labels = Field(description="class: answer word; or a list of classes that are their own words.")
    label_field: str = Field("label", description="The records' class.")
    length: int = Field(20, ge=1, le=1000, description="Phrases of a prompt.")
    samples: int = Field(20, ge=2, description="Prompts drawn in an iteration.")
    iterations: int = Field(30, ge=1, description="Steps, where the queries suffice.")
    batch: int = Field(32, ge=1, description="Own records of an iteration.")
    rho: float = Field(1.0, ge=0, allow_inf_nan=False, description="Weight of a public record; one of the client's own: 1.")
    loss: Literal["accuracy", "likelihood"] = Field(
        "accuracy", description="1 - accuracy of what is answered; or the label words' cross entropy, of a model that scores."
    )
    target: str = Field(" {{ label }}", description="loss: likelihood: what is scored after the prompt; label: a class's word.")
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False)
    clip: float = Field(3.0, gt=0, allow_inf_nan=False, description="Longest gradient (L2, all positions).")
    explore: float = Field(
        0.05, gt=0, lt=1, description="Share of a position's probability that all phrases have alike, always."
    )
    queries: int | None = Field(
        2000, ge=1, description="At most so many answers of the model (likelihood: scores of label words); null: no limit."
    )
    max_new_tokens: int = Field(8, ge=1)
    at_once: int = Field(128, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")


class BdplTuner(Component[BdplTunerConfig]):
    """Records, phrases and distributions in, the distributions after some steps out."""

    name = "bdpl_tuner"
    outputs = {"weights": Out(Weights), "curve": Out(Document), "metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: BdplTunerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """The prompt's slots, label words that cannot be told apart, the class field."""
        found = label_problems(config.labels)
        known = None if schema is None else schema.fields
        found += bdpl.frame_problems(config.prompt, known, config.label_field)
        found += check_slots(config.target, ("label",), "target")
        if known is not None and config.label_field not in known:
            what = f"label_field: there is no field {config.label_field!r}"
            found.append(f"{what}; {did_you_mean(config.label_field, known)}")
        domain = (known[config.label_field].domain or ()) if known is not None and config.label_field in known else ()
        missing = [value for value in domain if value not in words_of(config.labels)]
        return found + ([f"labels: no word for the class {missing[0]!r}"] if missing else [])

    def run(
        self,
        context: Context,
        records: Records,
        phrases: Records,
        public: Records | None = None,
        weights: Weights | None = None,
    ) -> Outputs:
        """`weights`: float32 [length, phrases], for `aggregator`. `curve`: of each iteration, queries so far and losses.

        Metrics: queries, iterations, loss_first and loss_last (means over an iteration's prompts). Raises DataError for inputs
        that do not fit, SpentError (a ComponentError) when the queries do not suffice for one iteration: nothing is asked then.
        """
        config = self.config
        if not len(records):
            raise ComponentError(Problem("there are no records to tune on", path="records"))
        texts = bdpl.phrases_of(phrases)
        base = bdpl.base_of(texts, config.prompt)
        table = bdpl.uniform(config.length, len(texts))
        if weights is not None:
            table = bdpl.unpacked(weights, base, len(texts))
            if len(table) != config.length:
                what = f"the distributions are of {len(table)} positions, 'length' is {config.length}"
                raise DataError(Problem(what, path="length", fix=f"length: {len(table)}"))
        search = _Search(context, config, texts, records, public)
        table, steps = search.tuned(bdpl.project(table, config.explore / len(texts)))
        values = {
            "queries": float(search.queries), "iterations": float(len(steps)),
            "loss_first": steps[0]["loss"], "loss_last": steps[-1]["loss"],
        }  # fmt: skip
        return {
            "weights": bdpl.packed(table, base, {}),
            "curve": Document({"iterations": steps}),
            "metrics": Metrics(values, notes=search.notes(steps)),
        }


class _Search:
    """The iterations of one task."""

    def __init__(
        self, context: Context, config: BdplTunerConfig, phrases: list[str], records: Records, public: Records | None
    ) -> None:
        self.context, self.config, self.phrases = context, config, phrases
        self.verbalizer = Verbalizer.of(config.labels)
        self.template = Prompt.parse(config.prompt).template
        self.own = sorted(self._labelled(records, "records"), key=lambda row: str(row["id"]))
        self.public = self._labelled(public, "public") if public is not None and config.rho else []
        how = Generation(config.max_new_tokens)
        self.judge = Judge(context, config.model, self.verbalizer, how, config.at_once, config.queries)
        self.scorer = Likelihoods(context, config.model, self.verbalizer, config.target, config.at_once, config.queries)

    @property
    def queries(self) -> int:
        """Paid for so far."""
        return self.judge.queries + self.scorer.queries

    def tuned(self, table: "np.ndarray") -> "tuple[np.ndarray, list[dict[str, float]]]":
        """(the distributions after all steps that the queries suffice for, what happened in each)."""
        config, steps = self.config, list[dict[str, float]]()
        for number in range(config.iterations):
            rng = self.context.rng(f"iteration {number}")
            draws = [bdpl.draw(table, rng) for _ in range(config.samples)]
            rows = rng.sample(self.own, min(config.batch, len(self.own)))
            try:
                losses = self._losses(draws, rows)
            except SpentError:
                if not steps:
                    raise
                break
            gradient = bdpl.gradient(table, draws, losses)
            step = config.learning_rate * bdpl.clipped(gradient, config.clip)
            table = bdpl.project(table - step, config.explore / len(self.phrases))
            steps.append(self._told(losses, table))
            self.context.progress(number + 1, config.iterations, f"{self.queries} queries")
        return table, steps

    def notes(self, steps: Sequence[Mapping[str, float]]) -> dict[str, str]:
        """What is odd about the model's answers."""
        found = self.judge.notes() if self.config.loss == "accuracy" else {}
        if all(step["worst"] == step["best"] for step in steps):
            found["feedback"] = "no prompt was better than another: nothing was learned"
        return found

    def _told(self, losses: Sequence[float], table: "np.ndarray") -> dict[str, float]:
        return {
            "queries": float(self.queries), "loss": sum(losses) / len(losses), "best": min(losses), "worst": max(losses),
            "sure": float(table.max(axis=1).mean()),
        }  # fmt: skip

    def _losses(self, draws: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[float]:
        """The loss of each drawn prompt; all are asked together, or, where the budget does not suffice, none."""
        asked = [*rows, *self.public]
        shown = [bdpl.with_phrases(row, [self.phrases[i] for i in chosen]) for chosen in draws for row in asked]
        gold = [str(row[self.config.label_field]) for row in asked] * len(draws)
        if self.config.loss == "likelihood":
            each = self.scorer.losses(self.template, shown, gold)
        else:
            answers = self.judge.answers(self.template, shown)
            each = [float(answer != wanted) for answer, wanted in zip(answers, gold, strict=True)]
        weights = [1.0] * len(rows) + [self.config.rho] * len(self.public)
        parts = (each[i : i + len(asked)] for i in range(0, len(each), len(asked)))
        return [sum(w * x for w, x in zip(weights, part, strict=True)) / sum(weights) for part in parts]

    def _labelled(self, records: Records, path: str) -> list[dict[str, Any]]:
        """The rows. Raises DataError where one has no class, or one that the labels do not have."""
        field, classes = self.config.label_field, self.verbalizer.classes
        if len(records) and field not in records.columns:
            raise DataError(
                Problem(f"{path} have no field {field!r}", path="label_field", fix=did_you_mean(field, records.columns))
            )
        odd = sum(str(row[field]) not in classes for row in records)
        if odd:
            fix = f"name every class in 'labels' (there are {', '.join(classes)})"
            raise DataError(
                Problem(f"{odd} of {len(records)} {path} have a class without a label word", path="labels", fix=fix)
            )
        return list(records)

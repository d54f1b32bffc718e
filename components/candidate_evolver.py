# SPDX-License-Identifier: Apache-2.0
"""One step of private evolution (Aug-PE: Xie et al. 2024, arXiv 2403.01749): which texts survive the votes, and variations.

Without candidates it begins: a generator that is only asked, never trained, writes texts for each label (RANDOM_API). With
them, the votes of private records (of one client, or summed over several in party order) decide which survive, and the
generator writes variations of these (VARIATION_API). Without votes chance decides. A `repeat` carries the chosen texts from
round to round; `variations: 0` only chooses: `selected` is then the synthetic data set. A candidate is embedded as it is (the
paper's K = 0).

Guarantee: it reads no private record. What it gives has the guarantee of the votes, with any number of steps; a seed voids
nothing here. All that the generator sees was made from public prompts and released votes.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from osmotic.components.evolving.prompts import (
    beginning,
    one_group,
    random_problems,
    text_of,
    variation_problems,
    words_problems,
)  # fmt: skip
from osmotic.components.evolving.selection import Selection, by_label, summed, survivors
from osmotic.components.rationale_rules import fold
from osmotic.components.teaching.asking import Asking, Replies, ask_each
from osmotic.components.templates import compile_template, slots
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Gathered,
    Generation,
    ModelName,
    Out,
    Outputs,
    Records,
)  # fmt: skip
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema, numbered

COLUMNS = ("id", "label", "text")
SHOWN = 3  # answers, when none was usable
Row = dict[str, str]


class CandidateEvolverConfig(Config):
    """How many texts there are, who survives, and how a generator is asked for more."""

    labels: tuple[str, ...] = Field(strict=False, min_length=1, description="Every label; public.")
    per_label: int = Field(8, ge=1, le=100_000, description="Survivors of each label: the size of `selected`.")
    variations: int = Field(3, ge=0, le=1000, description="Variations of each survivor. 0: choose only, ask nothing.")
    initial: int | None = Field(
        None, ge=1, le=1_000_000, description="Texts of each label to begin with; default: per_label * (1 + variations)."
    )
    selection: Selection = Field("rank", description="rank: the most votes. sample: in proportion to them, with replacement.")
    threshold: float = Field(
        0.0, strict=False, allow_inf_nan=False, description="A noisy count (of all clients together) up to this is no vote."
    )
    model: ModelName | None = Field(None, description="A text generator; needed unless variations is 0.")
    random_prompt: str | None = Field(None, description="Jinja2 over `label` and the names of `words`: asks for a text.")
    variation_prompt: str | None = Field(
        None, description="Jinja2 over `label`, `text` (or `start`: its first words, which the answer goes on) and `words`."
    )
    keep: tuple[float, float] = Field(
        (0.25, 0.75), strict=False, description="Share of a text's words that `start` shows, drawn between these each time."
    )
    words: dict[str, Annotated[tuple[str, ...], Field(strict=False)]] = Field(
        default_factory=dict, description="name -> public texts, one of which is drawn for each prompt (topics)."
    )
    answer_pattern: Annotated[str, AfterValidator(one_group)] | None = Field(
        None, description="Regular expression with one group; its last match in an answer is the text. null: all of it."
    )
    max_new_tokens: int = Field(64, ge=1)
    temperature: float = Field(1.0, gt=0, description="Of the generator; equal prompts get answers of their own.")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, description="Of the likeliest tokens, how many may be drawn; 0: all.")
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end a text; not part of it.")
    min_words: int = Field(1, ge=1, description="A text of fewer words is asked for again.")
    attempts: int = Field(2, ge=1, le=10, description="How often a text is asked for until it is usable.")
    batch: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    max_failures: float = Field(
        0.5,
        ge=0,
        le=1,
        strict=False,
        description="Share of prompts that may stay without a usable text.",
    )


class CandidateEvolver(Component[CandidateEvolverConfig]):
    """Candidates and votes in, the survivors (`selected`) and the next candidates out; a `report` of what happened."""

    name = "candidate_evolver"
    outputs = {"candidates": Out(Records), "selected": Out(Records), "report": Out(Document)}

    @classmethod
    def check(cls, config: CandidateEvolverConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Labels, words, slots of the prompts, and that these show the label and the text."""
        found = ["labels: a label stands twice"] if len({label.strip() for label in config.labels}) < len(config.labels) else []
        found += ["labels: a label is empty"] if not all(label.strip() for label in config.labels) else []
        found += words_problems(config.words)
        low, high = config.keep
        found += [] if 0 <= low <= high <= 1 else [f"keep: two shares, the smaller first (got {low:g} and {high:g})"]
        for key in ("model", "variation_prompt"):
            found += [f"{key}: needed unless variations is 0"] if config.variations and getattr(config, key) is None else []
        if config.random_prompt is not None:
            found += random_problems(config.random_prompt, len(config.labels) > 1, config.words, "random_prompt")
        if config.variation_prompt is not None:
            found += variation_problems(config.variation_prompt, config.words, "variation_prompt")
        return found

    def run(self, context: Context, candidates: Records | None = None, votes: Gathered[Records] | None = None) -> Outputs:
        """Rows of id (numbered), label, text: `selected`, those that were chosen; `candidates`, these and what to vote on next.

        At the beginning, `selected` is what chance takes. Raises ComponentError when the generator writes nothing usable for a
        label, DataError for votes that do not belong to the candidates.
        """
        if candidates is None and votes is not None:
            raise DataError(Problem("there are votes, and no candidates", path="votes"))
        if candidates is None:
            return self._begin(context)
        rows = [_row(row) for row in candidates]
        counts = None if votes is None else summed(votes, len(rows))
        step = _step(rows, counts)
        rng = context.rng(step)
        chosen, about = self._chosen(rows, counts, rng)
        made, told = self._varied(context, chosen, rng, step) if self.config.variations else ([], Told())
        report = {"parties": list(votes) if votes is not None else [], "labels": about}
        return _outputs([*chosen, *made], chosen, told, report)

    def _begin(self, context: Context) -> Outputs:
        """The first candidates: texts that the generator writes for each label."""
        config = self.config
        if config.model is None or config.random_prompt is None:
            fix = "connect 'candidates', or give 'model' and 'random_prompt'"
            raise ConfigError(Problem("there is nothing to begin with", path="random_prompt", fix=fix))
        step = _step([], None)
        rng = context.rng(step)
        count = config.initial or config.per_label * (1 + config.variations)
        wanted: list[Row] = [{"label": label} for label in config.labels for _ in range(count)]
        rows, told = self._written(context, config.random_prompt, "random_prompt", wanted, rng, step)
        chosen, about = self._chosen(_distinct(rows), None, rng)
        return _outputs(rows, chosen, told, {"parties": [], "labels": about})

    def _chosen(
        self, rows: list[Row], counts: list[float] | None, rng: random.Random
    ) -> tuple[list[Row], dict[str, dict[str, float]]]:
        """(the survivors of each label, in the order of the labels; what is told of each label)."""
        config, chosen, about = self.config, list[Row](), dict[str, dict[str, float]]()
        known = [0.0] * len(rows) if counts is None else counts
        above = 0.0 if counts is None else config.threshold
        for label, numbers in by_label(rows, config.labels).items():
            found = survivors(numbers, known, config.per_label, above, config.selection, rng)
            chosen += [rows[i] for i in found]
            about[label] = {"candidates": len(numbers), "survivors": len(found)}
            if counts is not None:
                about[label]["survivors by votes"] = sum(known[i] > config.threshold for i in found)
                about[label]["noisy votes"] = round(sum(known[i] for i in numbers), 3)
        return chosen, about

    def _varied(self, context: Context, chosen: list[Row], rng: random.Random, step: str) -> "tuple[list[Row], Told]":
        """Variations of each chosen text, with its label."""
        parents, text = [row for row in chosen for _ in range(self.config.variations)], self.config.variation_prompt or ""
        if "start" in slots(text):
            parents = [{**row, "start": beginning(row["text"], self.config.keep, rng)} for row in parents]
        return self._written(context, text, "variation_prompt", parents, rng, step)

    def _written(
        self, context: Context, prompt: str, path: str, wanted: list[Row], rng: random.Random, step: str
    ) -> "tuple[list[Row], Told]":
        """A text for each of the rows wanted, where the generator gives a usable one.

        Raises ComponentError when too many have none, or all of a label.
        """
        config, template = self.config, compile_template(prompt, path)
        drawn = [{name: rng.choice(several) for name, several in config.words.items()} for _ in wanted]
        prompts = [template.render({**row, **words}) for row, words in zip(wanted, drawn, strict=True)]

        def text(number: int, answer: str) -> str | None:
            return text_of(answer, config.answer_pattern, wanted[number].get("start"), config.min_words)

        how = Generation(config.max_new_tokens, config.temperature, config.top_p, config.stop, top_k=config.top_k)
        asking = Asking[int](
            config.model or "", how, config.batch, config.attempts, max_failures=1.0, stream=f"generator of {step}",
            accept=lambda number, answer: text(number, answer.text) is not None,
        )  # fmt: skip
        replies = ask_each(context, prompts, asking)
        told = Told(replies, {n: found for n, reply in replies.known.items() if (found := text(n, reply.text)) is not None})
        self._check(wanted, told, path)
        return [{"label": wanted[number]["label"], "text": told.texts[number]} for number in sorted(told.texts)], told

    def _check(self, wanted: list[Row], told: "Told", path: str) -> None:
        """Raise ComponentError when too many prompts have no text, or, at the beginning, all of a label have none."""
        config, problems, refused = self.config, told.problems(), told.refused()
        fix = f"look at {path}, answer_pattern, max_new_tokens and min_words ({config.min_words}); answers so far are kept"
        there = {wanted[number]["label"] for number in told.texts}
        for label in config.labels if path == "random_prompt" else ():
            if label not in there:
                what = f"the generator wrote nothing usable for the label {label[:80]!r}"
                why = _shown([text for number, text in refused.items() if wanted[number]["label"] == label])
                raise ComponentError(Problem(what, path=path, why=why, fix=fix))
        if problems.total() > config.max_failures * len(wanted):
            reasons = ", ".join(f"{count} {word}" for word, count in sorted(problems.items()))
            what = f"{problems.total()} of {len(wanted)} prompts gave no usable text: {reasons}"
            raise ComponentError(Problem(what, path=path, why=_shown(list(refused.values())), fix=fix))


@dataclass
class Told:
    """What came of some prompts. texts: number of a prompt -> its text, where a usable one came."""

    replies: Replies[int] = field(default_factory=lambda: Replies(Counter()))
    texts: dict[int, str] = field(default_factory=dict)

    def refused(self) -> dict[int, str]:
        """Number of a prompt without a text -> its last answer, or why there is none."""
        replies, left = self.replies, [number for number in self.replies.rows if number not in self.texts]
        return {n: replies.failed[n] if n in replies.failed else replies.known[n].text for n in left}

    def problems(self) -> Counter[str]:
        """Why prompts have no text, and how many."""
        return Counter(self.replies.failed.get(number, "not usable") for number in self.refused())

    def report(self) -> dict[str, Any]:
        """Answers that came in all, prompts without a text by reason, tokens and cost of all."""
        read, written, cost = self.replies.spent()
        answers = sum(reply.attempts for reply in self.replies.came())
        about = {"answers": answers, "without a text": dict(sorted(self.problems().items()))}
        return {**about, "prompt_tokens": read, "tokens": written, "cost": cost}


def _row(row: Mapping[str, Any]) -> Row:
    """A candidate's label and text. Raises DataError for a row without them."""
    if not isinstance(row.get("label"), str) or not isinstance(row.get("text"), str):
        raise DataError(Problem("a candidate needs a 'label' and a 'text'", path="candidates"))
    return {"label": row["label"], "text": row["text"]}


def _distinct(rows: list[Row]) -> list[Row]:
    """Without texts that are alike under one label: all votes would go to the first of them."""
    found: dict[tuple[str, str], Row] = {}
    for row in rows:
        found.setdefault((row["label"], fold(row["text"])), row)
    return list(found.values())


def _outputs(population: list[Row], chosen: list[Row], told: Told, report: dict[str, Any]) -> Outputs:
    """The tables, with running numbers as ids, and the report with what was asked."""
    candidates = _distinct(population)
    report |= told.report()
    report |= {"candidates": len(candidates), "alike": len(population) - len(candidates), "selected": len(chosen)}
    tables = {"candidates": candidates, "selected": chosen}
    made = {name: Records([{"id": numbered(i), **row} for i, row in enumerate(t)], COLUMNS) for name, t in tables.items()}
    return {**made, "report": Document(report)}


def _step(rows: list[Row], counts: list[float] | None) -> str:
    """Names the step's streams of chance: its content tells a round from those before."""
    return f"evolution {hashlib.sha256(canonical([rows, counts])).hexdigest()}"


def _shown(answers: Sequence[str]) -> str:
    """A few answers that were not usable."""
    return "answers such as " + ", ".join(repr(text[:80]) for text in answers[:SHOWN]) if answers else ""

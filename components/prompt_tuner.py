# SPDX-License-Identifier: Apache-2.0
"""Tune a prompt, word by word, for a black-box model: text in, text out (the client of FedDTPT, arXiv 2411.00985, section 3).

From the prompt of the round on, a masked language model proposes a word for a position, the black box answers the client's
records (and public ones) with it, and the accuracy alone decides whether it stays. Only words change: slots, label words and
whatever stands in [[ ... ]] are frozen. An upload is the tokens' numbers. What the paper leaves open, and is decided here:
answers are compared on one batch a round, drawn anew in each; `prompt` is the one that did best on a part held out from the
search, so that it is not merely the luckiest (its accuracy there is one of a few that were compared: a test set measures it).
A prompt that is equal and likelier is taken, too. With early rejection (`components.prompting.racing`) a comparison ends as
soon as a prompt cannot, or will hardly, be better; "equal" is then said of some answers, and such a step is given only once a
better prompt with it was judged in full.

Guarantee: none. The prompt follows the private labels through what was accepted and what was not, and so do the upload and each
call of a model: that the texts of the records are sanitised covers their words, not this. All outputs are as private as the
records. For a prompt with a guarantee, let records vote on public candidates: prompt_voter.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from osmotic.components.prompting import racing
from osmotic.components.prompting.judging import Asker, Judge, Labels, Verbalizer, label_problems, words_of
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.proposals import EDIT, EditorProposals, MaskedProposals, Proposals, RandomProposals
from osmotic.components.prompting.tuning import TRACE, Part, Row, Tuning
from osmotic.components.prompting.words import LEAST, Words, encoded
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
)
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class PromptTunerConfig(Config):
    """What is tuned, by whom it is judged, and how it is searched."""

    prompt: str = Field(description="The hand-written prompt, Jinja2 over the record's fields; [[ ... ]] is frozen.")
    model: ModelName = Field(description="The black box: a text generator.")
    masked: ModelName = Field(description="A masked language model: proposes words, and numbers them for the upload.")
    label_field: str = "label"
    labels: Labels = Field(description="class -> answer word, or a list of classes that are their own words.")
    proposals: Literal["mlm", "random", "llm_editor"] = "mlm"
    editor: ModelName | None = Field(None, description="llm_editor: a text generator that suggests words.")
    editor_prompt: str = Field(EDIT, description="Jinja2 over `prompt` (with [MASK] in it) and `word`, that stood there.")
    editor_tokens: int = Field(32, ge=1, description="Length of an editor's answer.")
    editor_queries: int | None = Field(None, ge=1, description="At most so many answers of the editor a round.")
    feedback: bool = Field(True, description="false: every proposal is taken, nothing is judged (an ablation).")
    iterations: int = Field(30, ge=1, le=100_000)
    queries: int | None = Field(None, ge=1, description="At most so many answers of the black box a round; null: no limit.")
    batch: int = Field(32, ge=1, description="Records that prompts are compared on, beside the public ones.")
    rho: float = Field(1.0, ge=0, allow_inf_nan=False, description="Weight of a public record; one of the client's own: 1.")
    top_k: int = Field(20, ge=1, description="Candidates for a position.")
    tau: float = Field(1.0, gt=0, allow_inf_nan=False, description="Temperature of the candidates' log-probabilities.")
    credit: float = Field(5.0, ge=0, allow_inf_nan=False, description="Weight of a word's credit: the paper's lambda.")
    c: float = Field(0.1, ge=0, allow_inf_nan=False, description="Exploration of the bandit over positions.")
    score: Literal["accuracy", "class_mean"] = Field(
        "accuracy", description="class_mean: mean of the classes' accuracies; where clients are skewed."
    )
    held_out: float = Field(0.2, ge=0, le=0.9, description="Share of the records that choose the best prompt, and no word.")
    early_rejection: bool = Field(True, description="Stop asking as soon as a prompt cannot, or will hardly, be better.")
    alpha: float = Field(0.1, ge=0, lt=1, description="Chance of stopping a prompt of the gain `worth`; 0: exact stops only.")
    worth: float = Field(0.2, gt=0, le=1, description="A gain, as a share of what the current prompt gets wrong.")
    max_new_tokens: int = Field(8, ge=1)
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end an answer.")
    at_once: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    max_tokens: int = Field(150, ge=1, description="Of a prompt, frozen ones counted.")


class PromptTuner(Component[PromptTunerConfig]):
    """Records and the prompt of the round in; the tuned prompt, its numbers, the search's trace and scores out."""

    name = "prompt_tuner"
    outputs = {"prompt": Out(Document), "upload": Out(Document), "trace": Out(Records), "metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: PromptTunerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Labels, the prompt's slots and free words, the editor."""
        found = label_problems(config.labels)
        found += (
            ["editor: needed for the proposals 'llm_editor'"] if config.proposals == "llm_editor" and not config.editor else []
        )
        found += check_slots(config.editor_prompt, {"prompt", "word"}, "editor_prompt")
        try:
            prompt = Prompt.parse(config.prompt, words_of(config.labels).values())
            shown = sorted(prompt.slots)
        except ConfigError as error:
            return [*found, *(f"prompt: {problem.what} {problem.why}".rstrip() for problem in error.problems)]
        found += _prompt_problems(prompt, config)
        if schema is None:
            return found
        if config.label_field not in schema.fields:
            fix = did_you_mean(config.label_field, schema.fields)
            return [*found, f"label_field: the records have no field {config.label_field!r}; {fix}"]
        known = set(schema.fields) - {config.label_field}
        found += [f"prompt: unknown slot {name!r}; {did_you_mean(name, known)}" for name in shown if name not in schema.fields]
        domain = schema.fields[config.label_field].domain or ()
        missing = [value for value in domain if value not in words_of(config.labels)]
        return found + ([f"labels: no word for the class {missing[0]!r}"] if missing else [])

    def run(
        self, context: Context, records: Records, public: Records | None = None, prompt: Document | None = None
    ) -> Outputs:  # fmt: skip
        """`prompt` and `upload` (see `prompting.prompts`, `prompting.words`), `trace`: a row a step, `metrics`.

        In the trace, `score` is null where not all of the batch was asked (`asked` says how much), `current` is the score of
        the prompt that was compared with, `queries` how many there were so far.
        Raises ConfigError for a prompt that cannot be tuned, DataError for records without a known class or a broadcast prompt
        of another skeleton, ComponentError when the model does not answer (what it answered is kept).
        """
        config, verbalizer = self.config, Verbalizer.of(self.config.labels)
        masked = context.model(config.masked)
        words = Words.of(masked, config.masked, config.top_k if config.proposals == "mlm" else LEAST)
        start = _start(config, prompt)
        words.check(start)
        how = Generation(config.max_new_tokens, stop=config.stop)
        judge = Judge(context, config.model, verbalizer, how, config.at_once, config.queries)
        loop = Tuning(context, config, judge, self._proposals(context, words, masked), _parts(context, config, records, public))
        best = loop.run(start)
        return {
            "prompt": Document(best.to_json()),
            "upload": Document(encoded(best, words)),
            "trace": Records(loop.trace, TRACE),
            "metrics": Metrics(loop.values, notes=loop.notes),
        }

    def _proposals(self, context: Context, words: Words, masked: Any) -> Proposals:
        config = self.config
        if config.proposals == "mlm":
            return MaskedProposals(masked, words, config.top_k)
        if config.proposals == "random":
            return RandomProposals(words, config.top_k, context.rng("random proposals"))
        if config.editor is None:
            raise ConfigError(Problem("needed for the proposals 'llm_editor'", path="editor"))
        how = Generation(config.editor_tokens)
        asker = Asker(context, config.editor, how, config.at_once, config.editor_queries, "editor")
        return EditorProposals(asker, config.editor_prompt, words, config.top_k)


def _prompt_problems(prompt: Prompt, config: PromptTunerConfig) -> list[str]:
    """Why a prompt cannot be tuned."""
    found = [] if prompt.slots else ["prompt: it shows no field of a record: write {{ field }} where the text belongs"]
    if config.label_field in prompt.slots:
        found.append(f"prompt: it shows the label: take {{{{ {config.label_field} }}}} out")
    if not prompt.free:
        found.append("prompt: nothing to tune: every token is frozen")
    if len(prompt.tokens) > config.max_tokens:
        found.append(f"prompt: {len(prompt.tokens)} tokens; max_tokens is {config.max_tokens}")
    return found


def _start(config: PromptTunerConfig, given: Document | None) -> Prompt:
    """The prompt of the round; the configured one where none came. Raises DataError for another skeleton."""
    written = Prompt.parse(config.prompt, words_of(config.labels).values())
    start = written if given is None else Prompt.of_json(given.data)
    if start.skeleton != written.skeleton or start.slots != written.slots:
        why = "a prompt of the round must have the frozen words of the configured one, in its order"
        fix = "give all parties the same 'prompt' and 'labels'"
        raise DataError(Problem("the frozen tokens are not those of the configured prompt", path="prompt", why=why, fix=fix))
    problems = _prompt_problems(start, config)
    if problems:
        raise ConfigError(*[Problem(what.removeprefix("prompt: "), path="prompt") for what in problems])
    return start


def _parts(context: Context, config: PromptTunerConfig, records: Records, public: Records | None) -> tuple[Part, Part]:
    """(what words are compared on, what the best prompt is chosen on); the second one is the same in each round."""
    if not len(records):
        raise DataError(Problem("there are no records to tune with", path="records"))
    for rows, path in ((records, "records"), (public or (), "public")):
        _check_classes(rows, config, path)
    ordered = sorted(records, key=lambda row: hashlib.sha256(str(row["id"]).encode("utf-8", "replace")).digest())
    held = min(len(ordered) - 1, math.ceil(config.held_out * len(ordered)))
    rest = ordered[held:]
    batch = context.rng("batch").sample(rest, min(config.batch, len(rest)))
    shared = list(public or ()) if config.rho else []
    return _part(config, batch, shared), _part(config, ordered[:held], [])


def _part(config: PromptTunerConfig, own: Sequence[Row], shared: Sequence[Row]) -> Part:
    rows = [*own, *shared]
    classes = [str(row[config.label_field]) for row in rows]
    return Part(rows, classes, racing.weights(classes, len(own), config.rho, config.score == "class_mean"))


def _check_classes(rows: Any, config: PromptTunerConfig, path: str) -> None:
    """Raise DataError for a row without its class, or of a class that has no word."""
    known = words_of(config.labels)
    for row in rows:
        if config.label_field not in row:
            fix = did_you_mean(config.label_field, row)
            raise DataError(Problem(f"a record has no field {config.label_field!r}", path=path, fix=fix))
        if str(row[config.label_field]) not in known:
            what = f"a record is of the class {row[config.label_field]!r}, which has no word"
            raise DataError(Problem(what, path=path, why=f"labels: {', '.join(known)}", fix="add it to 'labels'"))

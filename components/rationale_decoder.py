# SPDX-License-Identifier: Apache-2.0
"""Bring a teacher's rationales home: match them to the records, and fit them to the original question.

FedCoT, step "decode" (arXiv 2406.12403, section 3). ``identity`` hands a rationale on as it is: right where it repeats no
sanitised word. ``substitution`` puts the record's own words where the rationale names the released ones. ``exponential`` shows
a local model the perturbed prompt with its rationale as a demonstration, then the real question. ``encoder-decoder`` does the
same with weights trained for it on public records: (perturbed prompt, its rationale, question) -> the question's rationale.

The result is private: it depends on the raw records; only models at this party see it. Decoding costs no budget and protects
nothing; an encoder trained beside the decoder is heuristic, the prompts are protected by what released them. With ``partial``
the key says which records were asked about (a second attempt asks about some of them): the others have no rationale here.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from osmotic.components.decoding_strategies import (
    ECHO,
    EMPTY,
    TOO_LONG,
    Ambiguous,
    Names,
    Substitution,
    echoes,
    substitution,
)
from osmotic.components.matching import need_columns, same_keys, unique
from osmotic.components.templates import Template, check_slots, compile_template, slots
from osmotic.plugins.contract import (
    Answer,
    Component,
    Config,
    Context,
    Generation,
    Metrics,
    ModelName,
    Out,
    Outputs,
    Records,
    TextGenerator,
    Weights,
)
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

EXTRA_SLOTS = ("perturbed", "rationale")
COLUMNS = ("id", "rationale", "prompt", "finished", "problem")
BATCH = 16
Row = dict[str, Any]


class RationaleDecoderConfig(Config):
    """Configuration of `rationale_decoder`."""

    strategy: Literal["identity", "substitution", "exponential", "encoder-decoder"] = Field(
        "identity", description="How a rationale is fitted to its record."
    )
    model: ModelName | None = Field(None, description="exponential, encoder-decoder: a text generator at this party.")
    template: str | None = Field(
        None, description="exponential, encoder-decoder: one prompt; slots: the record's fields, perturbed (the prompt that "
        "the teacher saw) and rationale (its answer).",
    )  # fmt: skip
    max_new_tokens: int = Field(96, ge=1, le=8192, description="exponential, encoder-decoder: longest rationale in tokens.")
    ambiguous: Ambiguous = Field(
        "keep", description="substitution: a released word that stands for two own words stays, or becomes the first field's."
    )
    names: tuple[str, ...] = Field(
        (), strict=False, description="Fields whose own values a right rationale names; given, 'fidelity' is measured."
    )
    partial: bool = Field(False, description="Whether the key may leave records out, as that of a second attempt does.")

    @property
    def asks(self) -> bool:
        """Whether a local model decodes."""
        return self.strategy in ("exponential", "encoder-decoder")

    @model_validator(mode="after")
    def _complete(self) -> "RationaleDecoderConfig":
        given = [name for name in ("model", "template") if getattr(self, name) is not None]
        if self.asks and len(given) < 2:
            raise ValueError(f"strategy {self.strategy!r} needs 'model' and 'template'")
        if not self.asks and given:
            raise ValueError(f"strategy {self.strategy!r} takes no {given[0]!r}")
        if self.ambiguous != "keep" and self.strategy != "substitution":
            raise ValueError("'ambiguous' is for the strategy 'substitution'")
        return self


class RationaleDecoder(Component[RationaleDecoderConfig]):
    """Bring answers home: one rationale for each record, under its own id, fitted to the original question."""

    name = "rationale_decoder"
    version = 2
    outputs = {"rationales": Out(Records), "metrics": Out(Metrics)}

    @classmethod
    def mixes(cls, config: RationaleDecoderConfig) -> bool:
        """A model decodes in batches, whose rounding depends on all of them; otherwise each record is for itself."""
        return config.asks

    @classmethod
    def check(cls, config: RationaleDecoderConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the template that nobody fills, a template that does not show the rationale, unknown fields."""
        if schema is None:
            return ()
        unknown = [name for name in config.names if name not in schema.fields]
        found = [f"names: unknown field {name!r}; {did_you_mean(name, schema.fields)}" for name in unknown]
        if config.template is not None:
            wrong = check_slots(config.template, [*schema.fields, *EXTRA_SLOTS], "template")
            found += wrong or _shows(config.template, schema)
        return found

    def run(
        self,
        context: Context,
        records: Records,
        key: Records,
        rationales: Records,
        released: Records | None = None,
        weights: Weights | None = None,
    ) -> Outputs:
        """One rationale for each record, or with `partial` for each record of the key.

        released: what the sanitiser released, for the strategy substitution. weights: the trained decoder, for the strategy
        encoder-decoder. Column ``problem``: why there is no decoded rationale (a word of `DECODED`, or what the teacher or the
        local model said). The rationale is then empty, never the undecoded one; one that was cut is shown.
        Metrics, shares of the rationales: ``changed``, ``problems`` (empty ones included), ``ambiguous`` and, with `names`,
        ``fidelity``: that name all of the record's own words and no other of their domains; an outcome 0 or 1 each.
        Raises DataError when the ids of records, key and rationales do not match exactly, but for records left out so.
        """
        self._check_inputs(released, weights)
        before = match(records, key, rationales, self.config.partial)
        own, rows, ambiguous = records.by_id(), before, [0] * len(before)
        if released is not None:
            rows, ambiguous = self._substitute(context, own, before, key, released)
        elif self.config.asks:
            rows = self._decode(context, own, before, weights)
        names = Names(self.config.names, context.schema()) if self.config.names else None
        metrics = _measure(rows, before, ambiguous, own, names)
        return {"rationales": Records(rows, COLUMNS), "metrics": metrics}

    def _check_inputs(self, released: Records | None, weights: Weights | None) -> None:
        wanted = {"substitution": "released", "encoder-decoder": "weights"}.get(self.config.strategy)
        for port, given in (("released", released), ("weights", weights)):
            if (given is not None) != (port == wanted):
                does = "needs" if given is None else "takes no"
                fix = "connect released words to 'released', trained weights to 'weights'" if given is None else "leave it out"
                raise ConfigError(Problem(f"strategy {self.config.strategy!r} {does} input {port!r}", path=port, fix=fix))

    def _substitute(
        self, context: Context, own: Mapping[str, Row], rows: list[Row], key: Records, released: Records
    ) -> tuple[list[Row], list[int]]:
        """(rows with own words, ambiguous words named in each)."""
        theirs, schema = unique(released, "id", "released records"), context.schema()
        away = {row["id"]: row["released"] for row in key}
        same_keys(theirs, away.values(), "released records", "prompts")
        fields = [name for name in released.columns if name != "id"]
        _need_fields(own, fields)
        texts, counts = [], []
        for row in rows:
            mine = own[row["id"]]
            plan: Substitution = substitution(theirs[away[row["id"]]], mine, fields, schema, self.config.ambiguous)
            text, count = plan.apply(row["rationale"])
            texts.append(text)
            counts.append(count)
        return [{**row, "rationale": text} for row, text in zip(rows, texts, strict=True)], counts

    def _decode(self, context: Context, own: Mapping[str, Row], rows: list[Row], weights: Weights | None) -> list[Row]:
        """Rows with the local model's rationales; one that had none to show is not asked about."""
        template = compile_template(self.config.template or "", "template")
        asked = [row for row in rows if row["rationale"].strip() and not row["problem"]]
        prompts = [_prompt(template, own[row["id"]], row["prompt"], row["rationale"]) for row in asked]
        answers = self._generate(context, prompts, weights)
        decoded = {}
        for row, prompt, answer in zip(asked, prompts, answers, strict=True):
            problem = _problem(row, answer, _prompt(template, own[row["id"]], "", ""))
            text = answer["text"] if problem in ("", TOO_LONG) else ""
            decoded[row["id"]] = {
                "id": row["id"], "rationale": text, "prompt": prompt, "finished": answer["finished"], "problem": problem,
            }  # fmt: skip
        return [decoded.get(row["id"], {**row, "rationale": ""}) for row in rows]

    def _generate(self, context: Context, prompts: list[str], weights: Weights | None) -> list[Row]:
        """text, finished, problem a prompt; answers that an earlier attempt got are read from the journal."""
        journal = context.journal("decoded")
        how = Generation(max_new_tokens=self.config.max_new_tokens)
        keys = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
        known = {key: stored for key in keys if (stored := journal.get(key)) is not None}
        todo = [(key, prompt) for key, prompt in dict(zip(keys, prompts, strict=True)).items() if key not in known]
        model = self._model(context, weights) if todo else None
        for start in range(0, len(todo), BATCH):
            context.progress(start, len(todo), "decoding rationales")
            batch = todo[start : start + BATCH]
            for (key, _), answer in zip(batch, _ask(model, [prompt for _, prompt in batch], how), strict=True):
                known[key] = {"text": answer.text.strip(), "finished": answer.finished, "problem": answer.problem}
                journal.put(key, known[key])
        context.progress(len(todo), len(todo), "decoding rationales")
        return [known[key] for key in keys]

    def _model(self, context: Context, weights: Weights | None) -> Any:
        name = self.config.model or ""
        model = context.model(name)
        if not isinstance(model, TextGenerator):
            fix = "use a model that provides text_generator"
            raise ComponentError(Problem(f"the model {name!r} writes no text", path="model", fix=fix))
        if weights is None:
            return model
        if not hasattr(model, "with_weights"):
            fix = "name the local model that was trained"
            raise ComponentError(Problem(f"the model {name!r} cannot take weights", path="model", fix=fix))
        return model.with_weights(weights)


def match(records: Records, key: Records, rationales: Records, partial: bool = False) -> list[Row]:
    """Rationales under the records' own ids, in the records' order; any missing, unknown or doubled id is a DataError.

    partial: records that the key does not name are left out.
    """
    need_columns(rationales, ["id", "rationale", "prompt", "finished"], "rationales")
    need_columns(key, ["released", "id"], "rows of the key")
    answers = unique(rationales, "id", "rationales")
    released = unique(key, "released", "released ids of the key")
    own = {row["id"]: row["released"] for row in unique(key, "id", "record ids of the key").values()}
    same_keys(answers, released, "rationales", "prompts")
    there = unique(records, "id", "records")
    meant = [identity for identity in there if identity in own] if partial else list(there)
    same_keys(own, meant, "prompts", "records")
    return [_row(identity, answers[own[identity]]) for identity in meant]


def _row(identity: str, answer: Row) -> Row:
    """A rationale under its record's id, with all columns."""
    problem = str(answer.get("problem") or "")
    return {"id": identity, **{name: answer[name] for name in ("rationale", "prompt")}, "finished": bool(answer["finished"]),
            "problem": problem}  # fmt: skip


def _prompt(template: Template, own: Row, perturbed: str, rationale: str) -> str:
    return template.render({**own, "perturbed": perturbed, "rationale": rationale})


def _problem(row: Row, answer: Row, question: str) -> str:
    """What is wrong with a decoded rationale; "" for nothing. row: the demonstration; question: the prompt without it."""
    if answer["problem"]:
        return str(answer["problem"])
    if not answer["finished"]:
        return TOO_LONG
    if not answer["text"]:
        return EMPTY
    return ECHO if echoes(answer["text"], row["prompt"], row["rationale"], question) else ""


def _shows(template: str, schema: RecordSchema) -> list[str]:
    """What a decoding prompt must show."""
    used = slots(template)
    found = [] if "rationale" in used else ["template: it does not show {{ rationale }}, so there is nothing to decode"]
    if not used & set(schema.fields):
        found.append("template: it shows no field of the record, so there is nothing to decode for")
    return found


def _need_fields(own: Mapping[str, Row], fields: Sequence[str]) -> None:
    for name in fields:
        lacking = sum(name not in row for row in own.values())
        if lacking:
            what = f"{lacking} of {len(own)} records lack the released field {name!r}"
            raise DataError(Problem(what, path="released", fix="connect the records that were released"))


def _measure(rows: list[Row], before: list[Row], ambiguous: list[int], own: Mapping[str, Row], names: Names | None) -> Metrics:
    """Shares of the rationales, and each one's outcome."""
    outcomes = {
        "changed": [float(row["rationale"] != old["rationale"]) for row, old in zip(rows, before, strict=True)],
        "problems": [float(bool(row["problem"]) or not row["rationale"].strip()) for row in rows],
        "ambiguous": [float(count > 0) for count in ambiguous],
    }
    if names is not None:
        faithful = [not row["problem"] and names.faithful(row["rationale"], own[row["id"]]) for row in rows]
        outcomes["fidelity"] = [float(one) for one in faithful]
    values = {name: sum(ones) / len(ones) if ones else 0.0 for name, ones in outcomes.items()}
    return Metrics({**values, "rationales": float(len(rows))}, outcomes)


def _ask(model: Any, prompts: list[str], how: Generation) -> list[Answer]:
    answers: list[Answer] = model.generate(prompts, how)
    if len(answers) != len(prompts):
        raise ComponentError(Problem(f"the model gave {len(answers)} answers to {len(prompts)} prompts", path="model"))
    return answers

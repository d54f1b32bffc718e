# SPDX-License-Identifier: Apache-2.0
"""A black-box model's answers to every candidate prompt, for every record: what records vote by in private prompt search.

It shows the model the fields that `fields` names and nothing else of a record; a candidate that asks for another is refused,
before anything is asked. So the class never reaches the model, and needs no protection from it; `prompt_voter` compares.
At a client with a model of its own it reads private records, and its answers stay there. Of sanitized rows it may ask a model
anywhere, at the server too (`each: party`): rows that crossed are released, and so are the answers.

Guarantee: none of its own; the answers are as private as `records` is. With `batch: 1` a row is asked by itself, greedily, and
its answers depend on that row and on the candidates alone: `prompt_voter` needs this of answers about private records, for a
record is charged for its own vote. So a row whose text another row has is asked all the same, not given that one's answer. In
larger batches alike texts are asked once, and the rounding of one row depends on its neighbours; the plan knows. How many
queries there will be follows from the number of rows and of candidates, and `max_queries` refuses before the first: a budget
that ends midway would let one row decide whether another is answered. A text that the model will not take (too long, refused)
is a wrong answer of that row, and no end of the task; a model that fails otherwise ends it, which others see.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.components.prompting.candidates import Candidates, column
from osmotic.components.prompting.judging import Asker, Labels, Verbalizer, label_problems
from osmotic.components.templates import compile_template
from osmotic.plugins.contract import Component, Config, Context, Document, Generation, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class PromptAnswererConfig(Config):
    """Configuration of `prompt_answerer`."""

    model: ModelName = Field(description="The black box: a text generator.")
    labels: Labels = Field(description="class -> its answer word, or a list of classes that are their own words.")
    fields: tuple[str, ...] = Field(
        strict=False, min_length=1, description="What a prompt may show of a record; never its class."
    )
    max_new_tokens: int = Field(8, ge=1, description="Tokens of an answer.")
    batch: int = Field(
        1,
        ge=1,
        description="1: every row by itself, its candidates together, as answers about private records must be. More: so many "
        "prompts at a time, of all rows.",
    )
    max_queries: int | None = Field(None, ge=1, description="More than so many (rows times candidates) are not asked at all.")


class PromptAnswerer(Component[PromptAnswererConfig]):
    """Records and candidates in, a class for each record and candidate out."""

    name = "prompt_answerer"
    outputs = {"answers": Out(Records)}

    @classmethod
    def mixes(cls, config: PromptAnswererConfig) -> bool:
        """A model answers in batches, whose rounding depends on all of them; one row at a time does not."""
        return config.batch > 1

    @classmethod
    def check(cls, config: PromptAnswererConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Labels that cannot be told apart, fields that the records do not have."""
        found = label_problems(config.labels)
        if schema is not None:
            unknown = [name for name in config.fields if name not in schema.fields]
            found += [f"fields: the records have no field {name!r}; {did_you_mean(name, schema.fields)}" for name in unknown]
        return found

    def run(self, context: Context, records: Records, candidates: Document) -> Outputs:
        """Rows ``id`` (the record's, own or released) and ``c0`` .. one class a candidate, the current prompt first; "" where
        the answer names none, or the model will not answer.

        Raises ConfigError for a candidate that shows another field and for more queries than may be asked, DataError for
        records without the fields, ComponentError for a model that fails; answers that came are kept.
        """
        offered, config = Candidates.of_json(candidates.data), self.config
        self._check(records, offered)
        verbalizer, how, alone = Verbalizer.of(config.labels), Generation(config.max_new_tokens), config.batch == 1
        templates = [compile_template(prompt.template, "candidates") for prompt in offered.prompts]
        shown = [{name: "" if row[name] is None else str(row[name]) for name in config.fields} for row in records]
        ids = [str(row["id"]) for row in records]
        groups = [(name, [row]) for name, row in zip(ids, shown, strict=True)] if alone else [("", shown)]
        made: list[list[str]] = []
        for owner, group in groups:  # never two records in one call, nor one's answer for another, where they are private
            context.progress(len(made), len(shown), "rows that were answered")
            asker = Asker(context, config.model, how, len(templates) if alone else config.batch, owner=owner)
            texts = iter(asker.texts([template.render(row) for row in group for template in templates]))
            made += [[_read(verbalizer, next(texts)) for _ in templates] for _ in group]
        context.progress(len(shown), len(shown), "rows that were answered")
        columns = [column(number) for number in range(len(offered.prompts))]
        rows = [
            {"id": row["id"]} | dict(zip(columns, answers, strict=True)) for row, answers in zip(records, made, strict=True)
        ]
        return {"answers": Records(rows, ["id", *columns])}

    def _check(self, records: Records, offered: Candidates) -> None:
        fields, most = self.config.fields, self.config.max_queries
        extra = sorted(offered.prompts[0].slots - set(fields))  # all candidates have the same slots: they are frozen
        if extra:
            fix = "list the field if the model may see it; never the class"
            raise ConfigError(Problem(f"the candidates show {extra[0]!r}, which is not one of them", path="fields", fix=fix))
        absent = next((name for name in fields if any(name not in row for row in records)), None)
        if absent is not None:
            fix = did_you_mean(absent, records.columns)
            raise DataError(Problem(f"the records have no field {absent!r}", path="fields", fix=fix))
        asked = len(records) * len(offered.prompts)
        if most is not None and asked > most:
            what = f"{len(records)} rows and {len(offered.prompts)} candidates are {asked} queries, over {most}"
            raise ConfigError(Problem(what, path="max_queries", fix="allow more, or propose fewer candidates"))


def _read(verbalizer: Verbalizer, text: str | None) -> str:
    """The class that an answer names; "" for none."""
    return (verbalizer.read(text) or "") if text is not None else ""

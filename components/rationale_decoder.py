# SPDX-License-Identifier: Apache-2.0
"""Bring a teacher's rationales home: match them to the records, and let a local model fit them to the original question.

FedCoT, step "decode" (arXiv 2406.12403, section 3). ``identity`` hands a rationale on as it is: right where it repeats no
sanitised word. ``exponential`` shows a local model the perturbed prompt with its rationale as a demonstration, then the
real question. Only models at this party see the result, which is private: it depends on the raw records. With ``partial`` the
key says which records were asked about (a second attempt asks about some of them): the others have no rationale here.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from osmotic.components.matching import need_columns, same_keys, unique
from osmotic.components.templates import check_slots, compile_template
from osmotic.plugins.contract import Answer, Component, Config, Context, Generation, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, Problem
from osmotic.schemas.records import RecordSchema

EXTRA_SLOTS = ("perturbed", "rationale")
BATCH = 16


class RationaleDecoderConfig(Config):
    """Configuration of `rationale_decoder`."""

    strategy: Literal["identity", "exponential"] = Field("identity", description="How a rationale is fitted to its record.")
    model: ModelName | None = Field(None, description="exponential: a text generator at this party.")
    template: str | None = Field(
        None, description="exponential: one few-shot prompt; slots: the record's fields, perturbed (the prompt that the "
        "teacher saw) and rationale (its answer).",
    )  # fmt: skip
    max_new_tokens: int = Field(96, ge=1, le=8192, description="exponential: longest rationale in tokens.")
    partial: bool = Field(False, description="Whether the key may leave records out, as that of a second attempt does.")

    @model_validator(mode="after")
    def _complete(self) -> "RationaleDecoderConfig":
        given = [name for name in ("model", "template") if getattr(self, name) is not None]
        if self.strategy == "exponential" and len(given) < 2:
            raise ValueError("strategy 'exponential' needs 'model' and 'template'")
        if self.strategy == "identity" and given:
            raise ValueError(f"strategy 'identity' takes no {given[0]!r}")
        return self


class RationaleDecoder(Component[RationaleDecoderConfig]):
    """Bring answers home: one rationale for each record, under its own id, fitted to the original question."""

    name = "rationale_decoder"
    outputs = {"rationales": Out(Records)}

    @classmethod
    def mixes(cls, config: RationaleDecoderConfig) -> bool:
        """A model decodes in batches, whose rounding depends on all of them; otherwise each record is for itself."""
        return config.strategy == "exponential"

    @classmethod
    def check(cls, config: RationaleDecoderConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the template that are neither fields of the records nor `perturbed` or `rationale`."""
        if config.template is None or schema is None:
            return ()
        return check_slots(config.template, [*schema.fields, *EXTRA_SLOTS], "template")

    def run(self, context: Context, records: Records, key: Records, rationales: Records) -> Outputs:
        """One rationale for each record, or with `partial` for each record of the key.

        Raises DataError when the ids of records, key and rationales do not match exactly, but for records left out so.
        """
        rows = match(records, key, rationales, self.config.partial)
        if self.config.strategy == "exponential":
            rows = self._decode(context, records, rows)
        return {"rationales": Records(rows, ["id", "rationale", "prompt", "finished"])}

    def _decode(self, context: Context, records: Records, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        template = compile_template(self.config.template or "", "template")
        own = records.by_id()
        prompts = [
            template.render({**own[row["id"]], "perturbed": row["prompt"], "rationale": row["rationale"]}) for row in rows
        ]
        answers = self._generate(context, prompts)
        return [
            {"id": row["id"], "rationale": text, "prompt": prompt, "finished": finished}
            for row, prompt, (text, finished) in zip(rows, prompts, answers, strict=True)
        ]

    def _generate(self, context: Context, prompts: list[str]) -> list[tuple[str, bool]]:
        """(text, finished) a prompt; answers that an earlier attempt got are read from the journal."""
        model = context.model(self.config.model or "")
        journal = context.journal("decoded")
        how = Generation(max_new_tokens=self.config.max_new_tokens)
        keys = [hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts]
        known = {key: stored for key in keys if (stored := journal.get(key)) is not None}
        todo = [(key, prompt) for key, prompt in dict(zip(keys, prompts, strict=True)).items() if key not in known]
        for start in range(0, len(todo), BATCH):
            context.progress(start, len(todo), "decoding rationales")
            batch = todo[start : start + BATCH]
            for (key, _), answer in zip(batch, _ask(model, [prompt for _, prompt in batch], how), strict=True):
                known[key] = {"text": answer.text.strip(), "finished": answer.finished}
                journal.put(key, known[key])
        context.progress(len(todo), len(todo), "decoding rationales")
        return [(known[key]["text"], known[key]["finished"]) for key in keys]


def match(records: Records, key: Records, rationales: Records, partial: bool = False) -> list[dict[str, Any]]:
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
    found = [(identity, answers[own[identity]]) for identity in meant]
    return [
        {"id": i, "rationale": a["rationale"], "prompt": a["prompt"], "finished": bool(a["finished"])} for i, a in found
    ]  # fmt: skip


def _ask(model: Any, prompts: list[str], how: Generation) -> list[Answer]:
    answers: list[Answer] = model.generate(prompts, how)
    if len(answers) != len(prompts):
        raise ComponentError(Problem(f"the model gave {len(answers)} answers to {len(prompts)} prompts", path="model"))
    return answers

# SPDX-License-Identifier: Apache-2.0
"""Settings that the synthesizers of instructions and of responses have in common; the model with the weights given."""

from typing import Any

from pydantic import Field

from osmotic.components.instructing.forms import PERSONAS
from osmotic.components.rationale_rules import REFUSALS
from osmotic.plugins.contract import Config, Generation, ModelName, Weights
from osmotic.schemas.errors import ComponentError, Problem

ROUGE_L = 0.7


class TextRules(Config):
    """What a text may look like, and how near it may come to a known one."""

    rouge_l: float = Field(
        ROUGE_L, gt=0, le=1, strict=False, description="A text whose ROUGE-L with a known one is above this, not at it, goes."
    )
    longest_run: int | None = Field(
        None, ge=1, description="Words in a row that a text may share with a known one, which ROUGE-L does not see; null: any."
    )
    refusals: tuple[str, ...] = Field(REFUSALS, strict=False, description="Phrases that make a text's opening a refusal.")
    personas: tuple[str, ...] = Field(PERSONAS, strict=False, description="Phrases that a text may not begin with.")


class SynthesisConfig(TextRules):
    """How a model is asked by demonstrations, and how often."""

    model: ModelName
    instruction_field: str = Field("instruction", description="The records' field with the instruction.")
    demonstrations: int = Field(8, ge=1, le=1000, description="Local examples in a prompt, drawn anew for each prompt.")
    temperature: float = Field(0.0, ge=0, strict=False, allow_inf_nan=False, description="0: the likeliest answer.")
    top_p: float = Field(1.0, gt=0, le=1, strict=False)
    top_k: int = Field(0, ge=0, description="Of the likeliest tokens, how many may be drawn; 0: all.")
    attempts: int = Field(3, ge=1, le=100, description="Prompts, each with other demonstrations, until an answer will do.")
    batch: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    max_failures: float = Field(
        0.05, ge=0, le=1, strict=False, description="Share of an attempt's prompts to which the model may fail to answer."
    )
    compare: bool = Field(True, description="Refuse what is too near to a local record; false: no local text is compared.")

    def how(self, max_new_tokens: int, stop: tuple[str, ...]) -> Generation:
        """How the model generates; seeds are given by who asks."""
        return Generation(max_new_tokens, self.temperature, self.top_p, stop, top_k=self.top_k)


def weighted(model: Any, name: str, weights: Weights | None) -> Any:
    """The model with trained weights in place; as it is without any. Raises ComponentError where it takes none."""
    if weights is None:
        return model
    if not hasattr(model, "with_weights"):
        what = f"the model {name!r} takes no trained weights here"
        raise ComponentError(Problem(what, path="model", fix="name a model with 'at' of this party's role"))
    return model.with_weights(weights)

# SPDX-License-Identifier: Apache-2.0
"""Rewrite a text by sampling a paraphrase from a local model with clipped logits (DP-Prompt).

Utpala, Hooker, Chen 2023, "Locally differentially private document generation using zero shot prompting". The model reads the
private text in a prompt; each token of the answer is drawn from softmax(clip(logits, b_min, b_max) / T) over all tokens, the
end token among them, with T = 2 (b_max - b_min) / eps and nothing cut (no top-k, no top-p). Guarantee: class certified, pure,
n_max * eps a text, for any two texts whatsoever: given the answer so far, the next token is eps-private
(`osmotic.plugins.mechanisms.extreme` has the proof), an answer has at most n_max tokens, and all n_max are charged, since how
many there are depends on the text. A text that does not fit into the model with n_max tokens after it is cut at its end; where
the model has no answer, or NaN, all logits are b_min (`osmotic.plugins.mechanisms.steady`). Void when: bounds, prompt or model
were chosen by looking at private data, the model was trained on them, or the randomness is seeded. Documents go through the
model one at a time: in a batch, rounding in one would depend on the others.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from pydantic import Field, model_validator

from osmotic.plugins.contract import (
    Config,
    DocumentMechanism,
    Drawn,
    Entropy,
    Guarantee,
    Mechanism,
    ModelName,
    Slot,
)
from osmotic.plugins.mechanisms.extreme import clipped_pair, clipped_weights
from osmotic.plugins.mechanisms.importance import next_token
from osmotic.plugins.mechanisms.shared import Epsilon
from osmotic.plugins.mechanisms.steady import SteadyTokens
from osmotic.plugins.mechanisms.texts import Bound, check_bounds, prompt_template, text_slots

TEMPLATE = "Document: {{ text }}\nParaphrase of the document:"


class DpPromptConfig(Config):
    """Configuration of `dp-prompt`."""

    model: ModelName = Field(description="A causal model at this party that provides next_token.")
    epsilon: Epsilon
    n_max: int = Field(64, ge=1, le=8192, description="Most tokens of an answer; all of them are charged.")
    template: str = Field(TEMPLATE, description="The prompt, with the slot {{ text }}.")
    b_min: Bound = Field(
        -19.2271,
        description="Logits below are raised to it. Public: each model has its own, from public texts.",
    )
    b_max: Bound = Field(7.4832, description="Logits above are lowered to it. Public, likewise.")

    @model_validator(mode="after")
    def _ordered(self) -> "DpPromptConfig":
        check_bounds(self.b_min, self.b_max)
        return self


class DpPrompt(DocumentMechanism[DpPromptConfig]):
    """A paraphrase of each text field, token by token."""

    name = "dp-prompt"

    def __init__(self, config: DpPromptConfig, slots: Sequence[Slot], model: Callable[[str], Any]) -> None:
        super().__init__(config, slots, model)
        text_slots(self.slots, self.name)
        self._template = prompt_template(config.template)

    def guarantee(self) -> Guarantee:
        """Certified, n_max * epsilon for each text field of a document."""
        epsilon = self.config.epsilon * self.config.n_max * len(self.slots)
        return Guarantee(mechanism_class="certified", epsilon=epsilon, unit="document")

    def parts(self) -> Sequence[Mechanism[Any]]:
        """The extreme pair of one token."""
        return (clipped_pair(self.config.epsilon),)

    def sample(self, documents: Sequence[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        """One paraphrase a text. Raises ConfigError for a model without next tokens, or without room for prompt and answer."""
        if not documents:
            return []
        c, charged = self.config, self.guarantee().epsilon
        model = SteadyTokens(next_token(self.model(c.model), c.model), self._prompt, c.n_max)
        weigh = partial(clipped_weights, epsilon=c.epsilon, low=c.b_min, high=c.b_max)
        drawn = []
        for document in documents:
            texts = tuple(model.answer(text, weigh, entropy) for text in document)
            drawn.append(Drawn(texts, charged, (c.n_max,) * len(texts)))
        return drawn

    def _prompt(self, text: str) -> str:
        return self._template.render({"text": text})

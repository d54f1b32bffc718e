# SPDX-License-Identifier: Apache-2.0
"""A learned encoder: a small local model rewrites a text as it was trained to (the second strategy of FedCoT's paper).

Arxiv 2406.12403, section 3; FATE-LLM's "SLM encoder". By default it decodes greedily, which is deterministic: two texts with
different outputs are told apart with certainty, so class heuristic, epsilon infinite, whatever the training was; never shown as
differential privacy.

With `mixed`, each output token is drawn from (1 - l) min(p, t_max) + the rest spread evenly over all V tokens, with l = t_max
(V - 1) + 1 over t_max (V - 1) + e^eps. A token's probability then lies between l / V (where p gives it nothing) and ((1 - l)
(t_max (V - 1) + 1) + l) / V (where p gives it everything: t_max of it stays, 1 - t_max is spread), whose ratio is e^eps. So
given the output so far the next token is eps-private for any two texts. Every output token reads the whole text: class
certified, n_max * eps a *document*, all n_max charged, the end token being one of the V. A text that does not fit into the
model is cut at its end, and where the model has no answer the token is uniform (`osmotic.plugins.mechanisms.steady`). Void
when: template or model were chosen by looking at private data, the model was trained on them, or the randomness is seeded.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import Field

from osmotic.plugins.contract import (
    Config,
    DocumentMechanism,
    Drawn,
    Entropy,
    Generation,
    Guarantee,
    Mechanism,
    ModelName,
    Slot,
    TextGenerator,
)
from osmotic.plugins.mechanisms.extreme import MOST_TOKENS, ExtremePair, ExtremePairConfig
from osmotic.plugins.mechanisms.importance import next_token
from osmotic.plugins.mechanisms.shared import Epsilon
from osmotic.plugins.mechanisms.steady import SteadyTokens, shortened
from osmotic.plugins.mechanisms.texts import prompt_template, text_slots
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

FINITE = 1e30  # infinite logits are taken as this


class MixedConfig(Config):
    """How output tokens are mixed with the uniform distribution."""

    epsilon: Epsilon
    t_max: float = Field(0.3, gt=0, lt=1, description="Cap of the model's probability of a token.")


class EncoderConfig(Config):
    """Configuration of `encoder`."""

    model: ModelName = Field(description="A causal model at this party.")
    template: str = Field("{{ text }}", description="The prompt, with the slot {{ text }}.")
    n_max: int = Field(64, ge=1, le=8192, description="Most tokens of an output; with 'mixed' all are charged.")
    mixed: MixedConfig | None = Field(None, description="Draw from a mixture with the uniform distribution: certified.")


class Encoder(DocumentMechanism[EncoderConfig]):
    """A local model's rewriting of each text field."""

    name = "encoder"

    def __init__(self, config: EncoderConfig, slots: Sequence[Slot], model: Callable[[str], Any]) -> None:
        super().__init__(config, slots, model)
        text_slots(self.slots, self.name)
        self._template = prompt_template(config.template)

    def guarantee(self) -> Guarantee:
        """Heuristic without end; mixed: certified, n_max * epsilon for each text field of a document."""
        if self.config.mixed is None:
            return Guarantee(mechanism_class="heuristic", epsilon=math.inf, unit="document")
        epsilon = self.config.mixed.epsilon * self.config.n_max * len(self.slots)
        return Guarantee(mechanism_class="certified", epsilon=epsilon, unit="document")

    def parts(self) -> Sequence[Mechanism[Any]]:
        """Mixed: the extreme pair of one token. Greedy: none, it is never certified."""
        if self.config.mixed is None:
            return ()
        epsilon, t_max, v = self.config.mixed.epsilon, self.config.mixed.t_max, MOST_TOKENS
        smallest = math.log(uniform_share(epsilon, t_max, v) / v)
        return (ExtremePair(ExtremePairConfig(epsilon=epsilon, largest=smallest + epsilon, smallest=smallest)),)

    def sample(self, documents: Sequence[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        """One rewritten text a text. Raises ConfigError for a model that cannot do it."""
        if not documents:
            return []
        model = self.model(self.config.model)
        if self.config.mixed is None:
            return [self._greedy(model, document) for document in documents]
        charged = self.guarantee().epsilon
        weigh = partial(mixture, epsilon=self.config.mixed.epsilon, t_max=self.config.mixed.t_max)
        stepping = SteadyTokens(next_token(model, self.config.model), self._prompt, self.config.n_max)
        drawn = []
        for document in documents:
            texts = tuple(stepping.answer(text, weigh, entropy) for text in document)
            drawn.append(Drawn(texts, charged, (self.config.n_max,) * len(texts)))
        return drawn

    def _greedy(self, model: Any, document: Sequence[str]) -> Drawn:
        if not isinstance(model, TextGenerator):
            fix = "use a model that provides text_generator"
            raise ConfigError(Problem(f"the model {self.config.model!r} writes no text", path="mechanism.model", fix=fix))
        prompts = [shortened(model, self._prompt, text, self.config.n_max) for text in document]
        answers = model.generate(prompts, Generation(max_new_tokens=self.config.n_max))
        return Drawn(tuple(a.text.strip() for a in answers), math.inf, tuple(a.tokens for a in answers))

    def _prompt(self, text: str) -> str:
        return self._template.render({"text": text})


def uniform_share(epsilon: float, t_max: float, symbols: int) -> float:
    """l, so that ((1 - l) (t_max (V - 1) + 1) + l) / l = e^eps."""
    capped = t_max * (symbols - 1) + 1
    return capped / (capped + math.expm1(epsilon))


def mixture(logits: "np.ndarray", epsilon: float, t_max: float) -> "np.ndarray":
    """Probabilities float64 [n, V]: the softmax, capped, and what is missing from 1 spread evenly; see the module."""
    import numpy as np

    n = logits.shape[1]
    share = uniform_share(epsilon, t_max, n)
    scores = np.clip(logits.astype(np.float64), -FINITE, FINITE)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    inner = weights / weights.sum(axis=1, keepdims=True)
    excess = np.maximum(inner - t_max, 0.0).sum(axis=1, keepdims=True)  # what the cap took, so that nothing cancels
    return np.asarray((1 - share) * np.minimum(inner, t_max) + (share + (1 - share) * excess) / n)

# SPDX-License-Identifier: Apache-2.0
"""Rewrite a text word by word with a masked language model and clipped logits (DP-MLM).

Meisenbacher, Chevli, Vladika, Matthes 2024, "DP-MLM: differentially private text rewriting using masked language models". Text
is cut by the public rule of words; each word is masked in turn, all other words standing as they are in the original, and its
successor is drawn from softmax(clip(logits, b_min, b_max) / T) at the mask, T = 2 (b_max - b_min) / eps, over the model's whole
words (a public subset of its tokens).

Guarantee: class certified, pure, n * eps a text of n words, for any two texts of n words. Every position's distribution may
depend on the whole private text, but on nothing else, and lies in the same box whatever the text, so each is eps-private for
*any* change of the text (`osmotic.plugins.mechanisms.extreme` has the proof), the n draws are independent given the text, and
losses add. Of a text that is too long for the model as many words on each side of the mask are shown as fit; where the model
has no answer, or NaN, all logits are b_min (`osmotic.plugins.mechanisms.steady`). It is not a guarantee of eps a word: to
change one word changes what all n positions see. n is released as it is; longer texts are cut to n_max words. Void when:
bounds or model were chosen by looking at private data, the model was trained on them, or the randomness is seeded.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from osmotic.plugins import spaces
from osmotic.plugins.contract import (
    Config,
    DocumentMechanism,
    Drawn,
    Entropy,
    Guarantee,
    MaskedLM,
    Mechanism,
    ModelName,
    Slot,
)
from osmotic.plugins.exact import choose
from osmotic.plugins.mechanisms.extreme import clipped_pair, clipped_weights
from osmotic.plugins.mechanisms.shared import Epsilon
from osmotic.plugins.mechanisms.steady import SteadyMasks
from osmotic.plugins.mechanisms.texts import Bound, check_bounds, text_slots
from osmotic.schemas.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

CHUNK = 32  # masked texts of one call; all of one document


class DpMlmConfig(Config):
    """Configuration of `dp-mlm`."""

    model: ModelName = Field(description="A masked model at this party.")
    epsilon: Epsilon
    n_max: int = Field(128, ge=1, le=8192, description="Most words of a text; what follows is cut.")
    b_min: Bound = Field(
        -3.2093,
        description="Logits below are raised to it. Public: each model has its own, from public texts.",
    )
    b_max: Bound = Field(16.3048, description="Logits above are lowered to it. Public, likewise.")

    @model_validator(mode="after")
    def _ordered(self) -> "DpMlmConfig":
        check_bounds(self.b_min, self.b_max)
        return self


class DpMlm(DocumentMechanism[DpMlmConfig]):
    """Another word for each word of each text field."""

    name = "dp-mlm"

    def __init__(self, config: DpMlmConfig, slots: Sequence[Slot], model: Callable[[str], Any]) -> None:
        super().__init__(config, slots, model)
        text_slots(self.slots, self.name)

    def guarantee(self) -> Guarantee:
        """Certified, n_max * epsilon for each text field: what the longest text costs; one of n words costs n * epsilon."""
        epsilon = self.config.epsilon * self.config.n_max * len(self.slots)
        return Guarantee(mechanism_class="certified", epsilon=epsilon, unit="document")

    def parts(self) -> Sequence[Mechanism[Any]]:
        """The extreme pair of one word."""
        return (clipped_pair(self.config.epsilon),)

    def sample(self, documents: Sequence[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        """One rewritten text a text, of as many words. Raises ConfigError for another kind of model."""
        model = self.model(self.config.model)
        if not isinstance(model, MaskedLM):
            fix = "use a masked model (type transformers-masked, say)"
            raise ConfigError(Problem(f"the model {self.config.model!r} fills no masks", path="mechanism.model", fix=fix))
        if not documents:
            return []
        steady = SteadyMasks(model)
        words, usable = model.vocabulary(), _whole_words(model.vocabulary())
        drawn = []
        for document in documents:
            found = [self._rewrite(steady, spaces.tokenize(text)[: self.config.n_max], usable, entropy) for text in document]
            counts = tuple(len(part) for part in found)
            texts = tuple(spaces.join([words[i] for i in part]) for part in found)
            drawn.append(Drawn(texts, self.config.epsilon * sum(counts), counts))
        return drawn

    def _rewrite(self, model: SteadyMasks, tokens: list[str], usable: "np.ndarray", entropy: Entropy) -> list[int]:
        """A vocabulary index for each token."""
        c, out = self.config, []
        for start in range(0, len(tokens), CHUNK):
            places = range(start, min(start + CHUNK, len(tokens)))
            logits = model.logits(tokens, places)[:, usable]
            out += usable[choose(clipped_weights(logits, c.epsilon, c.b_min, c.b_max), entropy)].tolist()
        return out


def _whole_words(vocabulary: Sequence[str]) -> "np.ndarray":
    """Indices of the tokens that are words of their own: a public rule. Raises ConfigError when there are fewer than two."""
    import numpy as np

    found = np.array([i for i, word in enumerate(vocabulary) if word and not word.startswith("##")], dtype=np.int64)
    if len(found) < 2:
        raise ConfigError(Problem("the masked model has no words to choose from", path="mechanism.model"))
    return found

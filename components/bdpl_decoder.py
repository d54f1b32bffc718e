# SPDX-License-Identifier: Apache-2.0
"""Read the prompt off distributions over phrases: at each position the likeliest phrase, of equally likely ones the first.

The end of `bdpl_tuner`'s rounds, at any party that has the distributions and the phrases: the prompt is then like one that
`prompt_tuner` made, for `evaluator` or to be tuned on. Guarantee: that of the distributions, which is none where clients tuned
them on private records: then the prompt is private.
"""

from collections.abc import Sequence

from pydantic import Field

from osmotic.components.prompting import bdpl
from osmotic.components.prompting.judging import Labels, label_problems, words_of
from osmotic.plugins.contract import Component, Config, Context, Document, Out, Outputs, Records, Weights
from osmotic.schemas.records import RecordSchema


class BdplDecoderConfig(Config):
    """The prompt around the phrases, as in `bdpl_tuner`."""

    prompt: str = Field(description="The same text with the slot {{ phrases }} that the distributions were tuned with.")
    labels: Labels | None = Field(None, description="Label words, which stay frozen when the prompt is tuned on.")


class BdplDecoder(Component[BdplDecoderConfig]):
    """Distributions and phrases in, a prompt out."""

    name = "bdpl_decoder"
    outputs = {"prompt": Out(Document), "positions": Out(Document)}

    @classmethod
    def check(cls, config: BdplDecoderConfig, schema: RecordSchema | None) -> Sequence[str]:
        """The prompt's slots, and label words that cannot be told apart."""
        found = bdpl.frame_problems(config.prompt, None if schema is None else schema.fields)
        return found + (label_problems(config.labels) if config.labels is not None else [])

    def run(self, context: Context, weights: Weights, phrases: Records) -> Outputs:
        """`positions`: of each position the phrase and its probability. Raises DataError for distributions of other phrases."""
        texts = bdpl.phrases_of(phrases)
        table = bdpl.unpacked(weights, bdpl.base_of(texts, self.config.prompt), len(texts))
        chosen = table.argmax(axis=1).tolist()
        keep = tuple(words_of(self.config.labels).values()) if self.config.labels is not None else ()
        prompt = bdpl.filled(self.config.prompt, [texts[i] for i in chosen], keep)
        told = [{"phrase": texts[i], "probability": float(row[i])} for i, row in zip(chosen, table, strict=True)]
        return {"prompt": Document(prompt.to_json()), "positions": Document({"positions": told})}

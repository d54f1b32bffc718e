# SPDX-License-Identifier: Apache-2.0
"""Count the words of texts that several parties sent.

Guarantee: that of the texts; counting reads nothing else.
"""

from pydantic import Field

from osmotic.plugins.contract import Component, Config, Context, Gathered, Metrics, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem


class WordCounterConfig(Config):
    """Configuration of `word_counter`."""

    field: str = Field("rationale", min_length=1, description="The field whose words are counted.")


class WordCounter(Component[WordCounterConfig]):
    """``counts``: texts, words, and distinct words."""

    name = "word_counter"
    outputs = {"counts": Out(Metrics)}

    def run(self, context: Context, texts: Gathered[Records]) -> Outputs:
        """Raises DataError when a party's records lack the field."""
        total = words = 0
        distinct: set[str] = set()
        for done, (party, records) in enumerate(texts.items(), 1):
            for row in records:
                if self.config.field not in row:
                    raise DataError(Problem(f"the records of {party} have no field {self.config.field!r}", path="field"))
                found = str(row[self.config.field]).lower().split()
                total, words = total + 1, words + len(found)
                distinct.update(found)
            context.progress(done, len(texts))
        return {"counts": Metrics({"texts": float(total), "words": float(words), "distinct": float(len(distinct))})}

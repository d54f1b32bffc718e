# SPDX-License-Identifier: Apache-2.0
"""Phrases that prompts are put together from (BDPL, Diao et al. 2023): words, and neighbours that belong together, of a corpus.

A text is cut wherever two neighbouring words meet no oftener than chance would have it: their pointwise mutual information,
log p(a b) / (p(a) p(b)), is below `pmi`. What is left in one piece, up to `longest` words, is a phrase; the most frequent ones
are kept, of equally frequent ones the first in the alphabet. Case is folded; a phrase never crosses a mark or a digit.

Guarantee: none of its own. It reads its input and nothing else, so of public records the phrases are public: it is meant to
run once, at the server, on public records, and its output to be broadcast. Phrases of private records are private.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

from pydantic import Field

from osmotic.components.prompting.bdpl import WORD
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import RecordSchema, numbered
from osmotic.schemas.source import did_you_mean

_RUN = re.compile(rf"{WORD.pattern}(?:[ \t\n]+{WORD.pattern})*")  # words with nothing but spaces between them


class PhraseMinerConfig(Config):
    """Where phrases are looked for, and how many are kept."""

    fields: tuple[str, ...] = Field(("text",), strict=False, min_length=1, description="Fields whose texts are read.")
    size: int = Field(200, ge=2, le=100_000, description="Phrases that are kept, where there are so many.")
    pmi: float = Field(2.0, allow_inf_nan=False, description="Neighbours below it are cut apart (natural logarithm).")
    longest: int = Field(2, ge=1, le=8, description="Words of a phrase; 1: words alone.")
    least: int = Field(2, ge=1, description="A phrase, and a pair of neighbours, must occur so often.")


class PhraseMiner(Component[PhraseMinerConfig]):
    """Public records in, the phrases of a prompt out."""

    name = "phrase_miner"
    outputs = {"phrases": Out(Records)}

    @classmethod
    def check(cls, config: PhraseMinerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Fields that the schema does not have."""
        if schema is None:
            return ()
        known = schema.fields
        return [
            f"fields: there is no field {name!r}; {did_you_mean(name, known)}" for name in config.fields if name not in known
        ]

    def run(self, context: Context, records: Records) -> Outputs:
        """Rows ``id`` (a number), ``text``, ``pmi`` (of the weakest joint; 0 of a single word), the most frequent first.

        Raises DataError for a field that is not there, and when there are fewer than two phrases.
        """
        config = self.config
        missing = [name for name in config.fields if name not in records.columns]
        if missing:
            fix = did_you_mean(missing[0], records.columns)
            raise DataError(Problem(f"the records have no field {missing[0]!r}", path="fields", fix=fix))
        runs = [run for row in records for name in config.fields for run in _runs(row[name])]
        weights = _pmi(runs, config.least)
        counts = Counter(phrase for run in runs for phrase in _pieces(run, weights, config.pmi, config.longest))
        kept = sorted((-count, " ".join(phrase), phrase) for phrase, count in counts.items() if count >= config.least)
        if len(kept) < 2:
            why = f"{len(records)} records, {len(counts)} different phrases, {len(kept)} of them {config.least} times or more"
            raise DataError(
                Problem("the records have fewer than two phrases", path="least", why=why, fix="more public records")
            )
        rows = [
            {"id": numbered(i), "text": text, "pmi": min((weights[pair] for pair in pairwise(phrase)), default=0.0)}
            for i, (_, text, phrase) in enumerate(kept[: config.size])
        ]
        return {"phrases": Records(rows, ["id", "text", "pmi"])}


def _runs(text: object) -> list[tuple[str, ...]]:
    """Words in a row; words with a digit or an underscore are left out, and part what they stand between."""
    if not isinstance(text, str):
        return []
    found, run = list[tuple[str, ...]](), list[str]()
    for stretch in _RUN.findall(text.casefold()):
        for word in WORD.findall(stretch):
            if any(char.isdigit() or char == "_" for char in word):
                found.append(tuple(run))
                run = []
            else:
                run.append(word)
        found.append(tuple(run))
        run = []
    return [run for run in found if run]


def _pmi(runs: Sequence[tuple[str, ...]], least: int) -> dict[tuple[str, str], float]:
    """Pairs of neighbours that occur often enough -> pointwise mutual information."""
    words = Counter(word for run in runs for word in run)
    pairs = Counter(pair for run in runs for pair in pairwise(run))
    total, couples = words.total(), pairs.total()
    return {
        (a, b): math.log(count / couples) - math.log(words[a] / total) - math.log(words[b] / total)
        for (a, b), count in pairs.items()
        if count >= least
    }


def _pieces(
    run: tuple[str, ...], weights: dict[tuple[str, str], float], threshold: float, longest: int
) -> Iterator[tuple[str, ...]]:
    """A run cut where neighbours do not belong together, and where a piece has become too long."""
    piece = [run[0]]
    for pair in pairwise(run):
        if len(piece) == longest or weights.get(pair, -math.inf) < threshold:
            yield tuple(piece)
            piece = []
        piece.append(pair[1])
    yield tuple(piece)

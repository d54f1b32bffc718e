# SPDX-License-Identifier: Apache-2.0
"""How much of texts stands word for word in private records: a diagnostic for the party itself, which alters no release.

Three rates over the texts: those that are a record's text as a whole, those that share a run of `overlap` characters with
one, and the mean share of a text's word n-grams that some record has. Case and white space do not count. The output is private,
as it depends on private records: no plan lets it cross, or anything that was filtered by it, without a waiver. Which texts are
released must not follow from it: a text left out for being a copy tells that its record is there. A rate above what texts of
the same kind share by chance says that the generator remembers; the way out is less epsilon, not a filter.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from pydantic import Field

from osmotic.components.matching import need_columns
from osmotic.components.near_duplicates import Gram, grams
from osmotic.components.rationale_rules import fold
from osmotic.plugins.contract import Component, Config, Context, Metrics, Out, Outputs, Records
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

Place = tuple[str, int]  # a record's text, and where a block of it begins


class CopyCheckerConfig(Config):
    """What counts as a copy."""

    field: str = Field("text", description="The records' text field.")
    overlap: int = Field(50, ge=10, description="Characters in a row.")
    ngram: int = Field(8, ge=2, description="Words in a row; of a shorter text, all of its words.")


class CopyChecker(Component[CopyCheckerConfig]):
    """Private records and texts in, rates of copies out: private, and at home."""

    name = "copy_checker"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: CopyCheckerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """A field that the records do not have."""
        if schema is None or config.field in schema.fields:
            return ()
        return (f"field: the records have no field {config.field!r}; {did_you_mean(config.field, schema.fields)}",)

    def run(self, context: Context, records: Records, texts: Records) -> Outputs:
        """Compare every text with every record. texts: rows with ``text``; their order is that of the outcomes.

        Metrics: ``exact``, ``overlap``, ``ngrams`` (shares) and ``texts`` (how many are not empty); outcomes a text.
        """
        need_columns(records, [self.config.field], "records")
        need_columns(texts, ["text"], "texts")
        known = {text for row in records if (text := fold(str(row[self.config.field])))}
        asked = [fold(str(row["text"] or "")) for row in texts]
        found = {
            "exact": [float(text in known) for text in asked],
            "overlap": _overlaps(known, asked, self.config.overlap),
            "ngrams": _shared(known, asked, self.config.ngram),
        }
        there = sum(bool(text) for text in asked)
        rates = {name: sum(values) / there if there else 0.0 for name, values in found.items()}
        return {"metrics": Metrics({**rates, "texts": float(there)}, found)}


def _overlaps(known: Iterable[str], asked: Sequence[str], size: int) -> list[float]:
    """1 for each text that has `size` characters in a row of a known one.

    Known texts are cut into blocks of half that size: a common run of `size` characters holds one of them, whole.
    """
    half, index = size // 2, dict[str, list[Place]]()
    for text in sorted(known):
        for start in range(0, len(text) - half + 1, half):
            index.setdefault(text[start : start + half], []).append((text, start))
    return [float(_overlap(text, index, size)) for text in asked]


def _overlap(text: str, index: dict[str, list[Place]], size: int) -> bool:
    half = size // 2
    return any(
        _run(text, i, other, j, half, size)
        for i in range(len(text) - half + 1)
        for other, j in index.get(text[i : i + half], ())
    )


def _run(one: str, i: int, other: str, j: int, length: int, size: int) -> bool:
    """Whether the common run around equal parts of that length, at i and j, has `size` characters."""
    while i > 0 and j > 0 and length < size and one[i - 1] == other[j - 1]:
        i, j, length = i - 1, j - 1, length + 1
    while length < size and i + length < len(one) and j + length < len(other) and one[i + length] == other[j + length]:
        length += 1
    return length >= size


def _shared(known: Iterable[str], asked: Sequence[str], size: int) -> list[float]:
    """Of each text, the share of its word n-grams that some known text has."""
    sizes, mine = defaultdict[int, set[Gram]](set), [grams(text, size) for text in asked]
    short = {len(gram) for found in mine for gram in found}  # of texts shorter than n: all of their words in a row
    for text in known:
        for length in short:
            sizes[length] |= grams(text, length)
    return [sum(gram in sizes[len(gram)] for gram in found) / len(found) if found else 0.0 for found in mine]

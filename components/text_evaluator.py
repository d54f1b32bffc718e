# SPDX-License-Identifier: Apache-2.0
"""The quality of synthetic text beside real text: distance, labels, variety, copies, lengths (as in Yue et al. 2023, Aug-PE).

Where a number falls or rises with how many texts there are (distances, distinct n-grams), the same is given for real texts of
as many: look at both. Guarantee: none, and none is voided; the metrics have the label of both inputs, so beside private texts
they are private. A copy is no proof of a leak (short texts come twice), and no copies prove nothing.
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from osmotic.components import text_quality as quality
from osmotic.components.rationale_rules import fold, words
from osmotic.components.vectors import vectors
from osmotic.plugins.contract import Component, Config, Context, Metrics, ModelName, Out, Outputs, Records
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

Group = Literal["frechet", "mauve_like", "labels", "distinct", "copies", "lengths"]
EMBEDDED = ("frechet", "mauve_like", "labels")
FOLDS = 5


class TextEvaluatorConfig(Config):
    """What is compared, and how."""

    embedder: ModelName | None = Field(None, description="Needed for frechet, mauve_like and labels.")
    metrics: tuple[Group, ...] = Field(
        ("frechet", "mauve_like", "labels", "distinct", "copies", "lengths"), strict=False, min_length=1,
        description="labels needs the extra 'eval'.",
    )  # fmt: skip
    label_field: str = Field("label", description="Of `real`.")
    text_field: str = Field("text", description="Of `real`.")
    texts_label_field: str = Field("label", description="Of `texts`.")
    texts_text_field: str = Field("text", description="Of `texts`.")
    most: int = Field(
        2000, ge=2, description="Rows of each table that are looked at, chosen by chance (copies: all real ones)."
    )
    clusters: int | None = Field(None, ge=2, description="mauve_like: default a fifth of the smaller table, 2 to 50.")
    resamples: int = Field(100, ge=0, description="frechet: of its interval; 0: none.")


class TextEvaluator(Component[TextEvaluatorConfig]):
    """Synthetic and real texts in, how alike they are out."""

    name = "text_evaluator"
    outputs = {"metrics": Out(Metrics)}

    @classmethod
    def check(cls, config: TextEvaluatorConfig, schema: RecordSchema | None) -> Sequence[str]:
        """An embedder where one is needed; fields that the schema does not have."""
        wanted = [name for name in config.metrics if name in EMBEDDED]
        found = [f"embedder: needed for {', '.join(wanted)}"] if wanted and config.embedder is None else []
        fields = {"label_field": config.label_field, "text_field": config.text_field} if schema is not None else {}
        known = schema.fields if schema is not None else {}
        missing = [(key, name) for key, name in fields.items() if name not in known]
        return found + [f"{key}: the records have no field {name!r}; {did_you_mean(name, known)}" for key, name in missing]

    def run(self, context: Context, texts: Records, real: Records) -> Outputs:
        """Metrics, by group; those with outcomes (one a text, or a real record) get intervals in the report.

        frechet, frechet_low, frechet_high, frechet_floor (real against other real texts); mauve_like; label_consistency (share
        of texts whose label a classifier gives that learned from real embeddings), label_consistency_real (the same for real
        ones, cross-validated), transfer_accuracy (of a classifier that learned from `texts` alone, on `real`), label_distance
        (total variation of the labels' shares); distinct_1.._3, distinct_1_real.._3_real; copied (share of texts that are a
        real one), longest_copy (longest run of words that stands in a real text, over the text's words), longest_copy_words
        (most of all); words, words_real, words_gap (Kolmogorov-Smirnov).
        """
        config, rng = self.config, context.rng("text quality")
        mine = _table(texts, config.texts_label_field, config.texts_text_field, "texts")
        theirs = _table(real, config.label_field, config.text_field, "real")
        given = (_some(mine, config.most, rng), _some(theirs, config.most, rng))
        sheet = _Sheet(float(len(texts)), float(len(real)))
        points = self._vectors(context, given) if set(EMBEDDED) & set(config.metrics) else None
        if points is not None:
            self._distances(sheet, points, rng)
            self._labels(sheet, points, [[label for label, _ in side] for side in given])
        self._plain(sheet, *given, whole=theirs, rng=rng)
        return {"metrics": Metrics(sheet.values, sheet.outcomes, sheet.notes)}

    def _vectors(self, context: Context, given: "tuple[Table, Table]") -> "list[np.ndarray]":
        model = context.model(self.config.embedder or "")
        return [vectors(model, [text for _, text in side]) for side in given]

    def _distances(self, sheet: "_Sheet", points: "list[np.ndarray]", rng: random.Random) -> None:
        import numpy as np

        config, (texts, real) = self.config, points
        few = min(len(texts), len(real))
        generator = np.random.default_rng(rng.getrandbits(64))
        for name in [one for one in ("frechet", "mauve_like") if one in config.metrics and few < 2]:
            sheet.notes[name] = "needs two texts of each"
        if "frechet" in config.metrics and few > 1:
            order, half = generator.permutation(len(real)), min(len(texts), len(real) // 2)
            if half > 1:
                sheet.values["frechet_floor"] = quality.frechet(real[order[:half]], real[order[half:]])
            sheet.values["frechet"] = quality.frechet(texts, real)
            if config.resamples:
                low, high = quality.frechet_interval(texts, real, generator, config.resamples)
                sheet.values |= {"frechet_low": low, "frechet_high": high}
        if "mauve_like" in config.metrics and few > 1:
            clusters = config.clusters or min(50, max(2, few // 5))
            sheet.values["mauve_like"] = quality.mauve_like(texts, real, clusters, generator)

    def _labels(self, sheet: "_Sheet", points: "list[np.ndarray]", labels: list[list[str]]) -> None:
        if "labels" not in self.config.metrics:
            return
        (texts, real), (mine, theirs) = points, labels
        shares = [Counter(side) for side in labels]
        off = [abs(shares[0][one] / len(mine) - shares[1][one] / len(theirs)) for one in {*mine, *theirs}]
        sheet.values["label_distance"] = sum(sorted(off)) / 2
        sheet.rights("label_consistency", _predicted(real, theirs, texts), mine)
        sheet.rights("transfer_accuracy", _predicted(texts, mine, real), theirs)
        if len(theirs) > 1:
            folds = min(FOLDS, len(theirs))
            found = [""] * len(theirs)
            for fold_ in range(folds):
                rest = [i for i in range(len(theirs)) if i % folds != fold_]
                held = list(range(fold_, len(theirs), folds))
                for i, one in zip(held, _predicted(real[rest], [theirs[i] for i in rest], real[held]), strict=True):
                    found[i] = one
            sheet.values["label_consistency_real"] = sum(a == b for a, b in zip(found, theirs, strict=True)) / len(theirs)

    def _plain(self, sheet: "_Sheet", texts: "Table", real: "Table", whole: "Table", rng: random.Random) -> None:
        """What needs no embedder."""
        mine, theirs = ([words(text) for _, text in side] for side in (texts, real))
        wanted = self.config.metrics
        if "distinct" in wanted:
            alike = rng.sample(theirs, min(len(mine), len(theirs)))
            for size in (1, 2, 3):
                sheet.values[f"distinct_{size}"] = quality.distinct(mine, size)
                sheet.values[f"distinct_{size}_real"] = quality.distinct(alike, size)
        if "copies" in wanted:
            known, copies = {fold(text) for _, text in whole}, quality.Copies(words(text) for _, text in whole)
            longest = [copies.longest(text) for text in mine]
            sheet.mean("copied", [float(fold(text) in known) for _, text in texts])
            sheet.mean("longest_copy", [n / len(text) if text else 0.0 for n, text in zip(longest, mine, strict=True)])
            sheet.values["longest_copy_words"] = float(max(longest))
        if "lengths" in wanted:
            lengths = [[float(len(text)) for text in side] for side in (mine, theirs)]
            sheet.mean("words", lengths[0])
            sheet.values["words_real"] = sum(lengths[1]) / len(lengths[1])
            sheet.values["words_gap"] = quality.largest_gap(*lengths)


Table = list[tuple[str, str]]  # (label, text)


class _Sheet:
    """What is found out."""

    def __init__(self, texts: float, real: float) -> None:
        self.values = {"texts": texts, "real": real}
        self.outcomes: dict[str, list[float]] = {}
        self.notes: dict[str, str] = {}

    def mean(self, name: str, outcomes: list[float]) -> None:
        """Outcomes and their mean."""
        self.outcomes[name] = outcomes
        self.values[name] = sum(outcomes) / len(outcomes)

    def rights(self, name: str, found: Sequence[str], wanted: Sequence[str]) -> None:
        """The share of labels that are as wanted."""
        self.mean(name, [float(a == b) for a, b in zip(found, wanted, strict=True)])


def _table(records: Records, label: str, text: str, port: str) -> Table:
    """(label, text) of every row; None is empty text. Raises ComponentError without rows, DataError without fields."""
    if not len(records):
        raise ComponentError(Problem(f"there are no rows in {port!r} to compare", path=port))
    for name in (label, text):
        if any(name not in row for row in records):
            fix = did_you_mean(name, records.columns)
            raise DataError(Problem(f"the rows of {port!r} have no field {name!r}", path=port, fix=fix))
    return [(_text(row[label]), _text(row[text])) for row in records]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _some(table: Table, most: int, rng: random.Random) -> Table:
    """At most so many rows, in their order."""
    return table if len(table) <= most else [table[i] for i in sorted(rng.sample(range(len(table)), most))]


def _predicted(points: "np.ndarray", labels: Sequence[str], others: "np.ndarray") -> list[str]:
    """The labels that a logistic regression gives to `others`, having learned from `points`; the one label if there is one."""
    if len(set(labels)) == 1:
        return [labels[0]] * len(others)
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        what = "the metrics of 'labels' need scikit-learn, which is not installed"
        raise ConfigError(Problem(what, path="metrics", fix="pip install 'osmotic[eval]'")) from error
    spread = float(points.std()) or 1.0  # one scale for all: directions keep their weight
    model = LogisticRegression(C=1.0, max_iter=5000)
    model.fit(points / spread, list(labels))
    return [str(one) for one in model.predict(others / spread)]

# SPDX-License-Identifier: Apache-2.0
"""Scores of answers: exact match, accuracy among choices, macro-F1 (scikit-learn), ROUGE-L (rouge-score), perplexity.

Sources: Lin 2004 for ROUGE-L (F-measure, no stemming). The two libraries come with the extra `eval` and are imported when asked
for. Macro-F1 averages over the classes that occur among the gold labels, so that free text cannot add classes of its own.
"""

import importlib
import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from osmotic.components.rationale_rules import MARKS, answer_key
from osmotic.schemas.errors import ConfigError, Problem

LIBRARIES = {"macro_f1": ("sklearn.metrics", "scikit-learn"), "rouge_l": ("rouge_score.rouge_scorer", "rouge-score")}
MOST_CLASSES = 200  # of a table of confusions
NO_ANSWER = "\0"  # a class of its own, which no label can be
_LETTERS = r"[^\W_\u3040-\u30ff\u3400-\u9fff]"
_TOKEN = re.compile(rf"[\u3040-\u30ff\u3400-\u9fff]|{_LETTERS}+(?:[{MARKS}]+{_LETTERS}*)*")


def normal(text: str) -> str:
    """Case folded, accents composed, runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text.casefold()).split())


def parse(pattern: str, text: str) -> str | None:
    """The group of the pattern's last match, without white space around it; None without a match."""
    matches = list(re.finditer(pattern, text))
    return matches[-1].group(1).strip() if matches and matches[-1].group(1) is not None else None


def named(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text is, or begins with, case and punctuation around it apart; the longest such one; else None."""
    read = normal(text)
    for same in (normal, answer_key):
        equal = {normal(c) for c in choices if same(c) == same(text) and same(c)}
        if len(equal) == 1:
            return equal.pop()
    begun = [normal(c) for c in choices if normal(c) and re.match(rf"{re.escape(normal(c))}(?!\w)", read)]
    return max(begun, key=len, default=None)


def library(metric: str) -> Any:
    """The module that computes a metric. Raises ConfigError with the line that installs it."""
    module, package = LIBRARIES[metric]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        what = f"the metric {metric!r} needs {package}, which is not installed"
        raise ConfigError(Problem(what, path="metrics", fix="pip install 'osmotic[eval]'")) from error


def macro_f1(gold: Sequence[str], answers: Sequence[str | None]) -> float:
    """Mean F1 of the classes that occur in `gold`; no answer is an answer of no class."""
    found = [NO_ANSWER if answer is None else answer for answer in answers]
    score = library("macro_f1").f1_score
    return float(score(list(gold), found, labels=sorted(set(gold)), average="macro", zero_division=0.0))


def confusion(gold: Sequence[str], answers: Sequence[str | None], most: int = MOST_CLASSES) -> dict[str, Any]:
    """``labels`` that occur among `gold`, sorted, and ``counts``: a row a label, a column a label and one for any other answer.

    With more than `most` labels: no counts, only how many there are.
    """
    labels = sorted(set(gold))
    if len(labels) > most:
        return {"labels": [], "counts": [], "classes": len(labels)}
    place = {label: i for i, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for right, answer in zip(gold, answers, strict=True):
        counts[place[right]][place.get(answer, len(labels)) if answer is not None else len(labels)] += 1
    return {"labels": labels, "counts": counts, "classes": len(labels)}


def rouge_l(references: Sequence[str], texts: Sequence[str]) -> list[float]:
    """F-measure of the longest common subsequence of words for each pair; words of any script, hanzi and kana one by one."""
    scorer = library("rouge_l").RougeScorer(["rougeL"], tokenizer=_Words())
    return [float(scorer.score(a, b)["rougeL"].fmeasure) for a, b in zip(references, texts, strict=True)]


def tokens(text: str) -> list[str]:
    """The words that ROUGE-L compares: runs of letters and digits, lower case.

    >>> tokens("Tea-time: 4 pm!")
    ['tea', 'time', '4', 'pm']
    """
    return _TOKEN.findall(unicodedata.normalize("NFC", text.lower()))


class _Words:
    """The tokenizer of rouge-score, for every script: on ASCII text it gives the same."""

    def tokenize(self, text: str) -> list[str]:
        """See `tokens`."""
        return tokens(text)


def perplexity(scores: Sequence[tuple[float, int]]) -> tuple[float | None, list[float]]:
    """(exp of the mean negative log-likelihood a target token over all records, None when that is no number; its mean for
    each record). scores: (sum of log-probabilities, tokens)."""
    tokens = sum(count for _, count in scores)
    each = [-total / count for total, count in scores]
    mean = -math.fsum(total for total, _ in scores) / tokens
    return (math.exp(mean) if mean < 700 else None), each

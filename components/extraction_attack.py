# SPDX-License-Identifier: Apache-2.0
"""Can a trained model be made to write what it was trained on? Members and others are asked for by what an attacker knows.

The attacker knows a record's prompt and, with `prefix_tokens` or `prefix_share`, how its target begins; the model goes on,
greedily, and what it writes is compared with the true continuation (Carlini et al. 2021, "Extracting training data from large
language models"; FedPIT, arXiv 2403.06131). Three scores a record:
`rouge_l`: F-measure of the longest common subsequence of words. `near`: whether that is at least `threshold`. `exact`: whether
the first `exact` tokens are the true ones, all of them where the continuation has fewer; tokens: words, single hanzi and kana,
and punctuation marks, blanks apart. An answer that `max_new_tokens` cut is compared with as many words of the truth.

A skilled model scores high on texts that it never saw: the leak is the gap between members and others, which must be of the
same kind and not trained on. It is told with a bootstrap interval. A measurement, not a bound: another prompt, prefix or
sampling may get out more. Both inputs are private, so what comes out is private, too, and stays at the party.
With a prefix the model reads prompt and prefix as one text, while training cut prompt and target into tokens apart. Between
them stands nothing, or a blank where that alone gives a local model the tokens of its training; where neither does, a note
says so.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from pydantic import Field

from osmotic.components.instructing.nearness import common
from osmotic.components.instructing.settings import weighted
from osmotic.components.membership import Interval, as_array, bootstrap, told
from osmotic.components.metrics import tokens as words
from osmotic.components.teaching.asking import Asking, Replies, ask
from osmotic.components.templates import check_slots, compile_template, slots
from osmotic.components.training.heads import META
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Generation,
    Metrics,
    ModelName,
    Out,
    Outputs,
    Records,
    Weights,
)
from osmotic.schemas.errors import ComponentError, DataError, Problem
from osmotic.schemas.records import RecordSchema

if TYPE_CHECKING:
    import numpy as np

SCORES = ("rouge_l", "near", "exact")
SIDES = ("members", "others")
_SINGLE = "\u3040-\u30ff\u3400-\u9fff"
_TOKEN = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+|[^\w\s]")


class ExtractionAttackConfig(Config):
    """Which model, what the attacker knows, and when it has won."""

    model: ModelName
    prompt: str = Field(description="Jinja2 over the record's fields: what the attacker knows; as in training.")
    target: str = Field(description="Jinja2 over the record's fields, as in training: what is to be got out.")
    prefix_tokens: int = Field(0, ge=0, description="Of the target, given away as its beginning; shorter targets are left out.")
    prefix_share: float = Field(
        0.0, ge=0, lt=1, strict=False, description="The same as a share of the target's tokens, rounded down; one is left."
    )
    records: int = Field(100, ge=2, description="Members, and others, that are asked for: drawn by chance, or all there are.")
    max_new_tokens: int = Field(128, ge=1, description="Of the model, a record.")
    stop: tuple[str, ...] = Field((), strict=False, description="Strings that end an answer; not part of it.")
    threshold: float = Field(0.7, gt=0, le=1, strict=False, description="ROUGE-L from which on an answer is `near`.")
    exact: int = Field(50, ge=1, description="Tokens that must be the true ones; all, where the continuation has fewer.")
    draws: int = Field(1000, ge=100, le=100_000, description="Bootstrap samples of the 95% intervals.")
    batch: int = Field(32, ge=1, description="Prompts asked at a time, of a model that cannot stream its answers.")
    max_failures: float = Field(0.05, ge=0, le=1, strict=False, description="Share of records that may stay without an answer.")


@dataclass(frozen=True)
class Question:
    """What is asked for one record: its prompt, the target's beginning, and what truly follows."""

    prompt: str
    prefix: str
    truth: str

    def text(self, model: Any) -> tuple[str, bool]:
        """(what the model reads, whether these are the tokens of its training, as far as can be known)."""
        whole = self.prompt + self.prefix
        encode, tokenizer = getattr(model, "encode_prompts", None), getattr(model, "tokenizer", None)
        if not self.prefix or encode is None or tokenizer is None:
            return whole, True
        wanted = [*encode([self.prompt])[0], *tokenizer(self.prefix, add_special_tokens=False)["input_ids"]]
        for text in (whole, f"{self.prompt} {self.prefix}"):
            if list(encode([text])[0]) == wanted:
                return text, True
        return whole, False


class ExtractionAttack(Component[ExtractionAttackConfig]):
    """Members and others in, how much more of the members can be got out of the model."""

    name = "extraction_attack"
    outputs = {"metrics": Out(Metrics), "intervals": Out(Document)}

    @classmethod
    def check(cls, config: ExtractionAttackConfig, schema: RecordSchema | None) -> Sequence[str]:
        """Slots of the templates; two prefixes; a prompt that holds the target."""
        found = []
        if config.prefix_tokens and config.prefix_share:
            found.append("prefix_tokens, prefix_share: give one of them")
        if schema is None:
            return found
        wrong = [*check_slots(config.prompt, schema.fields, "prompt"), *check_slots(config.target, schema.fields, "target")]
        if not wrong and slots(config.target) and slots(config.target) <= slots(config.prompt):
            found.append("prompt: has every slot of the target: the model would be told what it is to say")
        return [*found, *wrong]

    def run(self, context: Context, members: Records, others: Records, weights: Weights | None = None) -> Outputs:
        """Ask; see the module. weights: of the model that is attacked (default: the model as it is).

        Metrics: of each score ``_members``, ``_others`` and ``_gap``, the latter with ``_low`` and ``_high`` (95%); ``members``
        and ``others``: how many were compared. The document has every interval, the scores in the order of the records that
        were drawn, who was left out and why, and notes. Raises DataError where fewer than two of a side can be compared, and
        ComponentError for weights that write nothing and for a model that does not answer.
        """
        if weights is not None and META in weights.meta:
            what = "the weights name a class by a head, and write nothing"
            raise ComponentError(Problem(what, path="weights", fix="train with 'mode: generation'"))
        asked = {side: self._questions(context, side, table) for side, table in zip(SIDES, (members, others), strict=True)}
        questions = {side: [one for one in found if one is not None] for side, found in asked.items()}
        model = weighted(context.model(self.config.model), self.config.model, weights)
        texts = {side: [one.text(model) for one in found] for side, found in questions.items()}
        replies = self._replies(context, model, Counter(text for found in texts.values() for text, _ in found))
        scores = {
            side: [self._scored(one, text, replies) for one, (text, _) in zip(found, texts[side], strict=True)]
            for side, found in questions.items()
        }
        left_out = {
            side: {"short": asked[side].count(None), "unanswered": scores[side].count(None)} for side in SIDES
        }  # fmt: skip
        kept = {side: [row for row in scores[side] if row is not None] for side in SIDES}
        _enough(kept, left_out)
        seed = context.rng("bootstrap").getrandbits(63)
        found = bootstrap(as_array(kept["members"]), as_array(kept["others"]), self.config.draws, seed, _measured)
        notes = self._notes(members, others, left_out) + self._too_few(questions) + _no_width(found, kept)
        seams = sum(not same for row in texts.values() for _, same in row)
        notes += [f"{seams} prompts are cut into other tokens with their prefix than in training: weaker"] if seams else []
        values = _flat(found) | {side: float(len(kept[side])) for side in SIDES}
        rows = {side: [dict(zip(SCORES, row, strict=True)) for row in kept[side]] for side in SIDES}
        document = {"intervals": told(found), "scores": rows, "left_out": left_out, "notes": notes}
        context.progress(len(replies.rows), len(replies.rows), "; ".join(notes))
        return {"metrics": Metrics(values), "intervals": Document(document)}

    def _questions(self, context: Context, side: str, table: Records) -> list[Question | None]:
        """Of the records that are drawn; None where nothing of the target is left to be asked for."""
        count = min(self.config.records, len(table))
        drawn = sorted(context.rng(f"extraction {side}").sample(range(len(table)), count))
        pairs = self._rendered(Records([table.rows[i] for i in drawn]))
        return [self._question(prompt, target) for prompt, target in pairs]

    def _rendered(self, table: Records) -> list[tuple[str, str]]:
        prompt, target = compile_template(self.config.prompt, "prompt"), compile_template(self.config.target, "target")
        return [(prompt.render(row), target.render(row)) for row in table]

    def _question(self, prompt: str, target: str) -> Question | None:
        ends = [found.end() for found in _TOKEN.finditer(target)]
        given = self.config.prefix_tokens or int(self.config.prefix_share * len(ends))
        if len(ends) <= given:
            return None
        cut = ends[given - 1] if given else 0
        truth = target[cut:]
        return Question(prompt, target[:cut], truth) if words(truth) else None

    def _replies(self, context: Context, model: Any, rows: Counter[str]) -> Replies[str]:
        config, how = self.config, Generation(self.config.max_new_tokens, stop=self.config.stop)
        asking = Asking[str](
            config.model, how, config.batch, max_failures=config.max_failures, stream="extraction", asked=model
        )
        return ask(context, rows, asking)

    def _scored(self, question: Question, text: str, replies: Replies[str]) -> tuple[float, float, float] | None:
        """(rouge_l, near, exact); None where no answer came. text: what was asked."""
        reply = replies.known.get(text)
        if reply is None:
            return None
        wanted, got = words(question.truth), words(reply.text)
        wanted = wanted if reply.finished else wanted[: max(1, len(got))]
        rouge = Fraction(2 * common(wanted, got), len(wanted) + len(got))
        near = rouge >= Fraction(str(self.config.threshold))
        first = verbatim(question.truth)[: self.config.exact]
        return float(rouge), float(near), float(verbatim(reply.text)[: len(first)] == first)

    def _notes(self, members: Records, others: Records, left_out: dict[str, dict[str, int]]) -> list[str]:
        """What makes the figures weaker than they look."""
        mine, theirs = (set(self._rendered(table)) for table in (members, others))
        notes, same = [], len(mine & theirs)
        if mine == theirs:
            notes.append("members and others are the same texts: the gap says nothing")
        elif same:
            notes.append(f"{same} texts are members and others at once: the gap is smaller than the leak")
        for side, counts in left_out.items():
            if counts["short"]:
                notes.append(f"{counts['short']} of the {side} have no words after the prefix: left out")
            if counts["unanswered"]:
                notes.append(f"{counts['unanswered']} of the {side} got no answer: left out")
        return notes

    def _too_few(self, questions: dict[str, list[Question]]) -> list[str]:
        """That answers end before what must be exact does."""
        most, exact = self.config.max_new_tokens, self.config.exact
        sizes = [min(exact, len(verbatim(one.truth))) for found in questions.values() for one in found]
        count = sum(size > most for size in sizes)
        return [f"max_new_tokens {most}: {count} of {len(sizes)} answers seldom have all exact tokens"] if count else []


def verbatim(text: str) -> list[str]:
    """The tokens of an exact match: words as they are written, single hanzi and kana, punctuation marks.

    >>> verbatim("Dr. Who:  4 pm")
    ['Dr', '.', 'Who', ':', '4', 'pm']
    """
    return _TOKEN.findall(unicodedata.normalize("NFC", text))


def _measured(members: "np.ndarray", others: "np.ndarray") -> dict[str, float]:
    """Means and their differences; members, others: float64 [n, 3], [m, 3]."""
    means: dict[str, Any] = {"members": members.mean(axis=0), "others": others.mean(axis=0)}
    means["gap"] = means["members"] - means["others"]
    return {f"{score}_{what}": float(row[i]) for i, score in enumerate(SCORES) for what, row in means.items()}


def _flat(found: dict[str, Interval]) -> dict[str, float]:
    values = {name: one.value for name, one in found.items()}
    gaps = {name: one for name, one in found.items() if name.endswith("_gap")}
    values |= {f"{name}_low": one.low for name, one in gaps.items()}
    return values | {f"{name}_high": one.high for name, one in gaps.items()}


def _no_width(found: dict[str, Interval], kept: dict[str, list[tuple[float, float, float]]]) -> list[str]:
    """Where all scores of a side are alike, samples of them are, too: an interval without width is no certainty."""
    names = [name for name, one in found.items() if name.endswith("_gap") and one.low == one.high]
    fewest = min(map(len, kept.values()))
    why = f"the scores of a side are all alike; with {fewest} records a share of up to {min(1.0, 3 / fewest):.2g} can go unseen"
    return [f"{', '.join(names)}: an interval without width: {why}"] if names else []


def _enough(kept: dict[str, list[tuple[float, float, float]]], left_out: dict[str, dict[str, int]]) -> None:
    """Raise DataError unless two of each side can be compared."""
    for side, rows in kept.items():
        if len(rows) < 2:
            lost = ", ".join(f"{count} {word}" for word, count in left_out[side].items())
            what = f"an attack needs two {side} at least, and {len(rows)} can be asked for"
            raise DataError(Problem(what, path=side, why=f"left out: {lost}", fix="give more records, or a shorter prefix"))

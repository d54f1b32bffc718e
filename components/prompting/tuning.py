# SPDX-License-Identifier: Apache-2.0
"""The loop of `prompt_tuner`: propose a word, compare, learn, keep what is best on a part held out (FedDTPT, section 3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from osmotic.components.prompting import racing
from osmotic.components.prompting.judging import Judge, SpentError
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.proposals import EditorProposals, Proposals, Proposed
from osmotic.components.prompting.search import Candidate, Search
from osmotic.plugins.contract import Context
from osmotic.schemas.records import numbered

if TYPE_CHECKING:
    from osmotic.components.prompt_tuner import PromptTunerConfig

TRACE = ("id", "position", "before", "proposal", "score", "current", "asked", "accepted", "queries")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Rows that prompts are scored on. weights: what each counts, 1 together. Empty: no rows."""

    rows: Sequence[Row]
    classes: Sequence[str]
    weights: Sequence[float]

    def right(self, judge: Judge, prompt: Prompt, chosen: Sequence[int] | range) -> list[bool]:
        """Which of the chosen rows a prompt gets right; an answer that names no class is wrong."""
        answers = judge.answers(prompt.template, [self.rows[i] for i in chosen])
        return [answer == self.classes[i] for answer, i in zip(answers, chosen, strict=True)]

    def whole(self, judge: Judge, prompt: Prompt) -> list[bool]:
        """The same of all rows."""
        return self.right(judge, prompt, range(len(self.rows)))

    def score(self, right: Sequence[bool]) -> float:
        """The weighted share that is right."""
        return racing.score(self.weights, right)


@dataclass
class Tuning:
    """One search. known: the prompt whose answers (`right`) the next one is compared with. current: what the next one is made
    of: the same, or one that is equal to it as far as was seen, and likelier. best: on the part held out; it was known once.
    """

    context: Context
    config: "PromptTunerConfig"
    judge: Judge
    proposals: Proposals
    parts: tuple[Part, Part]
    trace: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    accepted: int = 0
    stopped: int = 0

    def run(self, start: Prompt) -> Prompt:
        """The best prompt; `values` and `notes` tell how it came about."""
        config = self.config
        self._search = Search(self.context.rng("positions"), config.c, config.credit, config.tau)
        self._rng = self.context.rng("race")
        self._current = self._known = self._best = start
        try:
            self._begin(start)
            self._iterate()
            self._end()
        except SpentError:
            ended = f"the {config.queries} queries ended after {len(self.trace)} iterations"
            few = f"{config.queries} queries do not suffice for the first prompt: it stays as it was"
            self.notes["budget"] = ended if self.values else few
        self._tell()
        return self._best

    def _begin(self, start: Prompt) -> None:
        """Score the first prompt."""
        batch, held = self.parts
        self._right: list[bool] = batch.whole(self.judge, start) if self.config.feedback else []
        self._held = held.score(held.whole(self.judge, start)) if held.rows else None
        if self._right:
            self.values["batch_start"] = self.values["batch_best"] = batch.score(self._right)
        if self._held is not None:
            self.values["accuracy_start"] = self.values["accuracy_best"] = self._held

    def _iterate(self) -> None:
        config = self.config
        for step in range(config.iterations):
            self.context.progress(step, config.iterations, f"{self.judge.queries} queries")
            if config.early_rejection and self._right and self.parts[0].score(self._right) > 1 - racing.SAME:
                self.notes["proposals"] = f"nothing left to gain after {step} iterations: all answers of the batch are right"
                return
            found = self._proposal()
            if found is None:
                self.notes["proposals"] = f"nothing left to propose after {step} iterations"
                return
            self._try(*found)
        self.context.progress(config.iterations, config.iterations, f"{self.judge.queries} queries")

    def _proposal(self) -> tuple[int, Candidate, Proposed] | None:
        """Where, what, and among what; None where no position has a candidate that was not tried."""
        current, open_ = self._current, list(self._current.free)
        while open_:
            at = self._search.position(open_)
            proposed = self.proposals.at(current, at)
            chosen = self._search.choice(at, current.tokens[at].text, proposed.candidates)
            if chosen is not None:
                return at, chosen, proposed
            open_.remove(at)
        return None

    def _try(self, at: int, chosen: Candidate, proposed: Proposed) -> None:
        """Score a proposal, learn from it, take it or not."""
        before, (word, logp) = self._current.tokens[at].text, chosen
        prompt = self._current.replaced(at, word)
        if not self.config.feedback:
            self._take(at, before, prompt)
            return
        likelier = proposed.current is not None and logp > proposed.current
        outcome = self._compared(prompt, likelier and self._search.credit(at, before) <= 0)
        better = outcome.right is not None and outcome.change > racing.SAME
        same = outcome.right is not None and outcome.change > -racing.SAME
        taken = better or (likelier and (same or outcome.equal))
        self._search.learn(at, before, word, self._change(at, before, outcome), better)
        was, score = self.parts[0].score(self._right), None if outcome.right is None else self.parts[0].score(outcome.right)
        if outcome.right is not None and taken:
            self._known, self._right = prompt, outcome.right
        if taken:
            self._current = prompt
            self.accepted += 1
        elif outcome.why in ("", "losses"):
            self._current = self._known  # what was walked over since may be to blame for the losses
        self.stopped += outcome.right is None
        self._write(at, before, word, score, was, outcome.asked, taken)
        if better:
            self._validate(prompt)

    def _take(self, at: int, before: str, prompt: Prompt) -> None:
        """Without feedback every proposal stays."""
        word = prompt.tokens[at].text
        self._search.learn(at, before, word, 0.0, False)
        self._current = self._best = prompt
        self.accepted += 1
        self._write(at, before, word, None, None, 0, True)

    def _change(self, at: int, before: str, outcome: racing.Outcome) -> float:
        """Of the score; of a prompt that was stopped, the word that stood there would have been missed for what it gained."""
        if outcome.right is not None or outcome.equal:
            return outcome.change
        return min(0.0, outcome.change, -self._search.credit(at, before))

    def _compared(self, prompt: Prompt, ties: bool) -> racing.Outcome:
        config, batch = self.config, self.parts[0]

        def ask(chosen: Sequence[int]) -> list[bool]:
            return batch.right(self.judge, prompt, chosen)

        if not config.early_rejection:
            return racing.whole(ask, batch.weights, self._right)
        return racing.race(ask, batch.weights, self._right, self._rng, config.alpha, config.worth, ties)

    def _validate(self, prompt: Prompt) -> None:
        """The best prompt so far, on the part held out; of equal ones the later."""
        held, score = self.parts[1], self._held
        if score is not None:
            score = held.score(held.whole(self.judge, prompt))
            if self._held is not None and score < self._held - racing.SAME:
                return
            self._held = self.values["accuracy_best"] = score
        self._best = prompt
        self.values["batch_best"] = self.parts[0].score(self._right)

    def _end(self) -> None:
        """Without feedback the last prompt is given: what it and the first one are worth."""
        held = self.parts[1]
        if not self.config.feedback and held.rows:
            self.values["accuracy_best"] = held.score(held.whole(self.judge, self._best))

    def _write(
        self, at: int, before: str, word: str, score: float | None, current: float | None, asked: int, taken: bool
    ) -> None:  # fmt: skip
        values = (at, before, word, score, current, asked, taken, self.judge.queries)
        self.trace.append({"id": numbered(len(self.trace)), **dict(zip(TRACE[1:], values, strict=True))})

    def _tell(self) -> None:
        counts = {"iterations": len(self.trace), "accepted": self.accepted, "stopped_early": self.stopped}
        self.values |= {name: float(count) for name, count in counts.items()}
        self.values |= {"queries": float(self.judge.queries), "cached": float(self.judge.cached)}
        if isinstance(self.proposals, EditorProposals):
            self.values["editor_queries"] = float(self.proposals.queries)
            if self.proposals.spent:
                self.notes["editor"] = f"its {self.config.editor_queries} queries ended: some places had no proposals"
        self.notes |= self.judge.notes()
        batch, held = self.parts
        own = {*batch.classes, *held.classes}
        if len(own) == 1:
            self.notes["classes"] = f"all records are of the class {own.pop()}"
        if not held.rows and self.config.feedback:
            self.notes["held_out"] = "no records held out: the best prompt is that of the batch"

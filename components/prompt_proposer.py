# SPDX-License-Identifier: Apache-2.0
"""Choose a prompt by noisy votes and propose edits of it: federated prompt search in which the server learns counts alone.

FedDTPT (arXiv 2411.00985) lets every client search with its private classes and upload the prompt that it found; what it
accepted and rejected follows these classes, with sanitized texts too. Here the search stands at the server. Each round it
proposes edits of the current prompt by a masked model that it asks itself, `prompt_answerer` has a black box answer records by
each of them, every record casts one vote (`prompt_voter`), and the noisy counts decide. `count: 0` only chooses: a `repeat`
carries `prompt` and `credit` from there to the next round's proposals.

Guarantee: it reads no private record: a hand-written prompt, a public masked model, released counts. The whole trajectory of
prompts, candidates and credit is made of these, so it has the guarantee of the votes; a seed voids nothing here.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from osmotic.components.evolving.selection import summed
from osmotic.components.prompting.candidates import MOST, Candidates
from osmotic.components.prompting.judging import Labels, words_of
from osmotic.components.prompting.prompts import FROZEN, Prompt
from osmotic.components.prompting.proposals import MaskedProposals, RandomProposals
from osmotic.components.prompting.proposing import Credit, Proposer
from osmotic.components.prompting.votes import Rule, meanings, scores, size
from osmotic.components.prompting.words import Words
from osmotic.plugins.contract import (
    Component,
    Config,
    Context,
    Document,
    Gathered,
    ModelName,
    Out,
    Outputs,
    Records,
)  # fmt: skip
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import RecordSchema


class PromptProposerConfig(Config):
    """What the search begins with, what is proposed, and when a candidate takes the current prompt's place."""

    prompt: str | None = Field(None, description="Hand-written, where none comes in: {{ slots }} and [[ ... ]] are frozen.")
    labels: Labels = Field(default=(), description="Their words are frozen where they stand in `prompt`.")
    masked: ModelName | None = Field(None, description="A masked model: its words are proposed. Needed unless count is 0.")
    proposals: Literal["mlm", "random"] = Field("mlm", description="random: any word of the masked model, whatever it says.")
    count: int = Field(8, ge=0, lt=MOST, description="Candidates beside the current prompt. 0: choose only, propose nothing.")
    edits: int = Field(1, ge=1, le=100, description="Words that a candidate replaces.")
    top_k: int = Field(20, ge=1, description="Of the masked model's words, how many may be drawn.")
    temperature: float = Field(1.0, gt=0, strict=False, allow_inf_nan=False, description="Of the draw among them.")
    vote: Rule = Field("changes", description="How a record's vote is cast: see `components.prompting.votes`.")
    margin: float = Field(
        0.0,
        ge=0,
        strict=False,
        allow_inf_nan=False,
        description="By how many noisy votes a candidate must be better, of all clients together.",
    )


class PromptProposer(Component[PromptProposerConfig]):
    """Candidates and votes in, the chosen prompt, the next candidates and the credit of edits out."""

    name = "prompt_proposer"
    outputs = {"candidates": Out(Document), "prompt": Out(Document), "credit": Out(Document), "report": Out(Document)}

    @classmethod
    def check(cls, config: PromptProposerConfig, schema: RecordSchema | None) -> Sequence[str]:
        """A masked model where something is proposed; a prompt that can be read and has free words."""
        found = ["masked: needed unless count is 0"] if config.count and config.masked is None else []
        if config.prompt is not None:
            try:
                found += _problems(_parsed(config))
            except ConfigError as error:
                found += [f"prompt: {problem.what}" for problem in error.problems]
        return found

    def run(
        self, context: Context, prompt: Document | None = None, candidates: Document | None = None,
        votes: Gathered[Records] | None = None, credit: Document | None = None,
    ) -> Outputs:  # fmt: skip
        """`prompt`: with votes, the best candidate if it beats the current one by `margin`, else the current one; without, what
        comes in, or the configuration's. `candidates`: that prompt and edits of it. `credit`: what votes said of edits so far.

        Raises DataError for votes that are not about the candidates, ConfigError where there is nothing to begin with.
        """
        known = Credit() if credit is None else Credit.of_json(credit.data)
        report: dict[str, Any] = {"parties": [] if votes is None else list(votes)}
        if candidates is not None:
            offered = Candidates.of_json(candidates.data)
            number, told = self._chosen(offered, votes, known)
            current, report = offered.prompts[number], report | told
        elif votes is not None:
            raise DataError(Problem("there are votes, and no candidates", path="votes", fix="connect the candidates, too"))
        else:
            current = self._begin() if prompt is None else Prompt.of_json(prompt.data)
        made = self._proposed(context, current, known)
        report["proposed"] = [made.edits(i) for i in range(1, len(made.prompts))]
        return {
            "candidates": Document(made.to_json()),
            "prompt": Document(current.to_json()),
            "credit": Document(known.to_json()),
            "report": Document(report),
        }

    def _begin(self) -> Prompt:
        if self.config.prompt is None:
            fix = "connect 'prompt' or 'candidates', or write one"
            raise ConfigError(Problem("there is no prompt to begin with", path="prompt", fix=fix))
        found = _parsed(self.config)
        problems = _problems(found)
        if problems:
            raise ConfigError(Problem(problems[0].removeprefix("prompt: "), path="prompt", fix=FROZEN))
        return found

    def _chosen(self, offered: Candidates, votes: Gathered[Records] | None, credit: Credit) -> tuple[int, dict[str, Any]]:
        """(number of the chosen candidate, what is told of the votes); without votes the current one. Adds to the credit."""
        many = len(offered.prompts)
        if votes is None:
            return 0, {"chosen": 0}
        counts = summed(votes, size(offered.vote, many))
        better = scores(offered.vote, counts, many)
        for number in range(1, many):
            credit.add(offered.edits(number), better[number])
        best = max(range(1, many), key=lambda number: better[number], default=0)
        chosen = best if best and better[best] > self.config.margin else 0
        named = dict(zip(meanings(offered.vote, many), (round(one, 3) for one in counts), strict=True))
        changes = [
            {"position": position, "before": offered.prompts[0].tokens[position].text, "after": word}
            for position, word in offered.edits(chosen)
        ]
        return chosen, {"counts": named, "scores": [round(one, 3) for one in better], "chosen": chosen, "changes": changes}

    def _proposed(self, context: Context, current: Prompt, credit: Credit) -> Candidates:
        """The current prompt and edits of it, if any are found. Raises ConfigError where nothing can be proposed."""
        config = self.config
        if not config.count:
            return Candidates((current,), config.vote)
        if config.masked is None:
            raise ConfigError(Problem("candidates need a masked model", path="masked", fix="name one, or 'count: 0'"))
        if not current.free:
            raise ConfigError(Problem("the prompt has no word that may change", path="prompt", fix=FROZEN))
        model, rng = context.model(config.masked), context.rng("proposals")
        words = Words.of(model, config.masked)
        likely = config.proposals == "mlm"
        proposals = MaskedProposals(model, words, config.top_k) if likely else RandomProposals(words, config.top_k, rng)
        made = Proposer(proposals, credit, rng, config.temperature).candidates(current, config.count, config.edits)
        return Candidates((current, *made), config.vote)


def _parsed(config: PromptProposerConfig) -> Prompt:
    return Prompt.parse(config.prompt or "", words_of(config.labels).values())


def _problems(prompt: Prompt) -> list[str]:
    """What is wrong with a prompt to begin with."""
    found = [] if prompt.slots else ["prompt: it shows nothing of a record: it has no {{ slot }}"]
    return found if prompt.free else [*found, "prompt: no word of it may change: all are frozen"]

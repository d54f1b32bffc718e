# SPDX-License-Identifier: Apache-2.0
"""How sure a model is of the right label word: cross entropy among the label words after a prompt, for models that are scorers.

One query is one label word after one filled-in prompt; each is asked once in a task, and once more at most after a kill.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from osmotic.components.prompting.judging import SpentError, Verbalizer
from osmotic.components.scoring import Pair, scored
from osmotic.components.templates import compile_template
from osmotic.plugins.contract import Context
from osmotic.schemas.errors import Problem


class Likelihoods:
    """Cross entropies of classes; `queries` counts what was asked. target: Jinja2 over `label`, a class's word."""

    def __init__(
        self, context: Context, model: str, verbalizer: Verbalizer, target: str, batch: int = 32, budget: int | None = None
    ) -> None:
        template = compile_template(target, "target")
        self.targets = {name: template.render({"label": word}) for name, word in verbalizer.words.items()}
        self.batch, self.budget, self.queries = batch, budget, 0
        self._context, self._model = context, model
        self._known: dict[Pair, float] = {}

    def losses(self, template: str, rows: Sequence[Mapping[str, Any]], gold: Sequence[str]) -> list[float]:
        """-log of the right word's share among the label words, of each row.

        Raises SpentError, with nothing asked, where too few queries are left.
        """
        compiled, found = compile_template(template, "prompt"), list[float]()
        prompts = [compiled.render(row) for row in rows]
        self._ask(prompts)
        for prompt, name in zip(prompts, gold, strict=True):
            scores = {one: self._known[prompt, target] for one, target in self.targets.items()}
            top = max(scores.values())
            found.append(top + math.log(sum(math.exp(score - top) for score in scores.values())) - scores[name])
        return found

    def _ask(self, prompts: Sequence[str]) -> None:
        """Score every label word after each prompt that is not known yet."""
        wanted = dict.fromkeys((prompt, target) for prompt in prompts for target in self.targets.values())
        new = [pair for pair in wanted if pair not in self._known]
        if self.budget is not None and self.queries + len(new) > self.budget:
            what = f"{len(new)} queries are needed, {self.budget - self.queries} of {self.budget} are left"
            raise SpentError(Problem(what, path="queries", why="one for each label word of a prompt", fix="allow more queries"))
        found = scored(self._context, self._context.model(self._model), new, self.batch, "likelihood")
        self._known |= {pair: total for pair, (total, _) in zip(new, found, strict=True)}
        self.queries += len(new)

# SPDX-License-Identifier: Apache-2.0
"""Ask a black-box model for classes: what a label word in its answer means, and answers that are never paid for twice.

`Verbalizer` reads answers. `Judge` asks: a template is filled in for each row, alike texts are asked once, every answer
goes to the task's journal as it comes (a task that was killed goes on without paying again), and a budget holds for all of them
together. One query is one answer that came, in this attempt of the task or in an earlier one, so that a task that goes on does
what it would have done. A call that brought none (a timeout, a rate limit) is repeated and not counted; a text that the model's
server will never answer (it refuses it, or it is too long) counts, and its answer is None: wrong.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import Field

from osmotic.components.rationale_rules import REFUSALS, fold, is_refusal
from osmotic.components.teaching.answers import KEPT, answers
from osmotic.components.templates import Template, compile_template
from osmotic.plugins.contract import PROBLEMS, Answer, Context, Generation
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError, Problem

Labels = Annotated[tuple[str, ...], Field(strict=False)] | dict[str, str]
FOR_GOOD = ("refused-request", "too-long", "empty-prompt")  # asking again would bring the same
ATTEMPTS = 3


class SpentError(ComponentError):
    """The budget of queries does not suffice for what is asked; nothing of it was asked."""


class Verbalizer:
    """class -> its answer word, and back. `words`: of every class, in order."""

    def __init__(self, words: Mapping[str, str]) -> None:
        self.words = dict(words)
        self._class = {fold(word): name for name, word in words.items()}
        each = sorted(map(re.escape, self._class), key=len, reverse=True)
        self._pattern = re.compile(rf"(?<!\w)(?:{'|'.join(each)})(?!\w)")

    @classmethod
    def of(cls, labels: Mapping[str, str] | Sequence[str], path: str = "labels") -> "Verbalizer":
        """From the configuration. Raises ConfigError for words that an answer could not tell apart, or fewer than two."""
        found = label_problems(labels, path)
        if found:
            raise ConfigError(*[Problem(what.removeprefix(f"{path}: "), path=path) for what in found])
        return cls(words_of(labels))

    @property
    def classes(self) -> tuple[str, ...]:
        """Every class, in order."""
        return tuple(self.words)

    def read(self, answer: str) -> str | None:
        """The class of the first label word in an answer, as a whole word, whatever its case; None: it names none.

        >>> Verbalizer.of({"0": "bad", "1": "good"}).read("It is GOOD, not bad."), Verbalizer.of(["a", "b"]).read("abba")
        ('1', None)
        """
        found = self._pattern.search(fold(answer))
        return self._class[found[0]] if found else None


def words_of(labels: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    """class -> word; of a list, each class is its own word."""
    return dict(labels) if isinstance(labels, Mapping) else {name: name for name in labels}


def label_problems(labels: Mapping[str, str] | Sequence[str], path: str = "labels") -> list[str]:
    """What is wrong with labels: fewer than two, an empty word, words that cannot be told apart in an answer."""
    if not isinstance(labels, Mapping) and len(set(labels)) < len(labels):
        return [f"{path}: a class stands twice"]
    words = words_of(labels)
    if len(words) < 2:
        return [f"{path}: a single class: there is nothing to tell apart" if words else f"{path}: there are no classes"]
    empty = [name for name, word in words.items() if not fold(word)]
    if empty:
        return [f"{path}: the class {empty[0]!r} has an empty word"]
    named, found = [(name, fold(word)) for name, word in words.items()], list[str]()
    for i, (one, word) in enumerate(named):
        for other, longer in named[i + 1 :]:
            if word == longer:
                found.append(f"{path}: {one!r} and {other!r} have the same word {word!r}")
            elif _within(word, longer) or _within(longer, word):
                found.append(f"{path}: {word!r} and {longer!r} cannot be told apart in an answer: one is a part of the other")
    return found


def _within(part: str, whole: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", whole) is not None


class Asker:
    """Texts of a model, each prompt once in a task. `queries`: answers paid for; `cached`: asked for again, and free.

    budget: of queries, for good; None: no limit. Problems of the model raise ComponentError, with all answers kept.
    owner: whose answers these are; kept answers of other owners are not looked at.
    """

    def __init__(
        self, context: Context, model: str, how: Generation, batch: int = 32, budget: int | None = None, name: str = "model",
        owner: str = "",
    ) -> None:  # fmt: skip
        seed = how.seed or context.rng(f"answers of the {name}").getrandbits(31)
        self.how = replace(how, seed=seed, seeds=())
        self.model, self.batch, self.budget = model, batch, budget
        self.queries = self.cached = 0
        self.refused: Counter[str] = Counter()
        self._context, self._path = context, name
        self._journal = context.journal(f"answers-{name}")
        self._known: dict[str, str | None] = {}
        about = [model, {**asdict(self.how), "stop": list(self.how.stop)}]
        self._prefix = canonical([*about, owner] if owner else about)

    @property
    def left(self) -> int | None:
        """Queries that may still be asked; None: any number."""
        return None if self.budget is None else max(0, self.budget - self.queries)

    def texts(self, prompts: Sequence[str]) -> list[str | None]:
        """An answer to each prompt; None where the model will not answer it. Raises SpentError before asking too many."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]
        if self.budget is not None and self.queries + len(new) > self.budget:
            what = f"{len(new)} queries are needed, {self.left} of {self.budget} are left"
            raise SpentError(Problem(what, path="queries", fix="allow more queries, or ask fewer records"))
        self.cached += len(prompts) - len(new)
        if new:
            self._ask(new)
            self.queries += len(new)
        return [self._known[prompt] for prompt in prompts]

    def _ask(self, prompts: list[str]) -> None:
        keys = {prompt: self._key(prompt) for prompt in prompts}
        for prompt, key in keys.items():
            entry = self._journal.get(key)
            if entry is not None:
                self._take(prompt, entry)
        failed: Counter[str] = Counter()
        for _ in range(ATTEMPTS):
            missing = [prompt for prompt in prompts if prompt not in self._known]
            if not missing:
                return
            failed = self._once(missing, keys)
        if failed:
            what = f"{failed.total()} of {len(prompts)} prompts got no answer"
            why = f"model {self.model!r}: " + ", ".join(f"{count} {word}" for word, count in sorted(failed.items()))
            raise ComponentError(Problem(what, path=self._path, why=why, fix=KEPT))

    def _once(self, missing: list[str], keys: Mapping[str, str]) -> Counter[str]:
        """Ask for what is missing; answers are written down as they come. Returns why there is none, for how many."""
        failed: Counter[str] = Counter()
        model = self._context.model(self.model)
        if not any(hasattr(model, way) for way in ("generate", "stream", "batches")):
            fix = "name a model that is a text_generator"
            raise ConfigError(Problem(f"the model {self.model!r} writes no text", path=self._path, fix=fix))
        with closing(answers(model, self.model, missing, self.how, self.batch)) as coming:
            for together in coming:
                made = {}
                for index, answer in together:
                    entry = _entry(answer)
                    if entry is None:
                        failed[answer.problem if answer.problem in PROBLEMS else "bad-answer"] += 1
                    else:
                        made[missing[index]] = entry
                if made:
                    self._journal.put_many({keys[prompt]: entry for prompt, entry in made.items()})
                for prompt, entry in made.items():
                    self._take(prompt, entry)
        return failed

    def _take(self, prompt: str, entry: Mapping[str, Any]) -> None:
        self._known[prompt] = entry["text"]
        if entry["text"] is None:
            self.refused[entry["problem"]] += 1

    def _key(self, prompt: str) -> str:
        return hashlib.sha256(self._prefix + b"\0" + prompt.encode("utf-8", "replace")).hexdigest()


def _entry(answer: Answer) -> dict[str, Any] | None:
    """What the journal keeps of an answer; None where the same question may yet be answered."""
    if answer.problem:
        return {"text": None, "problem": answer.problem} if answer.problem in FOR_GOOD else None
    return {"text": answer.text.encode("utf-8", "replace").decode().strip()}


class Judge(Asker):
    """Classes of rows by a prompt, as the model answers; see the module."""

    def __init__(
        self, context: Context, model: str, verbalizer: Verbalizer, how: Generation, batch: int = 32,
        budget: int | None = None, name: str = "model",
    ) -> None:  # fmt: skip
        super().__init__(context, model, how, batch, budget, name)
        self.verbalizer = verbalizer
        self.read: Counter[str | None] = Counter()
        self.refusals = 0
        self._classes: dict[str, str | None] = {}
        self._template: Template | None = None

    def answers(self, template: str, rows: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """The class that the model gives each row; None where its answer names none. Raises SpentError, nothing asked."""
        if self._template is None or self._template.source != template:
            self._template = compile_template(template, "prompt")
        prompts = [self._template.render(row) for row in rows]
        texts = self.texts(prompts)
        for prompt, text in zip(prompts, texts, strict=True):
            if prompt not in self._classes:
                self._classes[prompt] = None if text is None else self.verbalizer.read(text)
                self.read[self._classes[prompt]] += 1
                self.refusals += text is not None and self._classes[prompt] is None and is_refusal(text, REFUSALS)
        return [self._classes[prompt] for prompt in prompts]

    def notes(self) -> dict[str, str]:
        """What is odd about all answers together, in a few words: one class only, no class at all, refusals."""
        total, named, found = self.read.total(), [name for name in self.read if name is not None], dict[str, str]()
        if total > 1 and not named:
            found["answers"] = "no answer named a label"
        elif total > 1 and len(named) == 1 and not self.read[None]:
            found["answers"] = f"every answer was {self.verbalizer.words[named[0]]}"
        if self.refused or self.refusals:
            found["refused"] = f"{self.refused.total() + self.refusals} of {total}"
        return found

# SPDX-License-Identifier: Apache-2.0
"""Answers of a text generator as they come, whatever it can do: batches, a stream, or one list for some prompts at a time."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

from osmotic.plugins.contract import Answer, Generation
from osmotic.schemas.errors import ComponentError, Problem

KEPT = "run again: answers so far are kept"
Together = list[tuple[int, Answer]]


def answers(model: Any, name: str, prompts: Sequence[str], how: Generation, batch: int) -> Generator[Together, None, None]:
    """(index of the prompt, answer), those together that came together, each exactly once. name: of the model, for errors.

    batch: prompts at a time of a model that cannot stream. Raises ComponentError for more or fewer answers than prompts.
    """
    seen: set[int] = set()
    with closing(_batches(model, prompts, how, batch)) as batches:
        for together in batches:
            for index, _ in together:
                if index in seen or not 0 <= index < len(prompts):
                    raise ComponentError(Problem("an answer came that nobody asked for", why=f"model {name!r}"))
                seen.add(index)
            yield together
    if len(seen) < len(prompts):
        what = f"{len(prompts)} prompts were asked, {len(seen)} answers came"
        raise ComponentError(Problem(what, why=f"model {name!r}", fix=KEPT))


def _batches(model: Any, prompts: Sequence[str], how: Generation, batch: int) -> Generator[Together, None, None]:
    """The same as the model gives them."""
    if hasattr(model, "batches") or hasattr(model, "stream"):
        together = hasattr(model, "batches")
        inner = model.batches(prompts, how) if together else model.stream(prompts, how)
        try:
            for one in inner:
                yield one if together else [one]
        finally:
            if hasattr(inner, "close"):
                inner.close()
        return
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        found = model.generate(part, replace(how, seeds=how.seeds[start : start + batch]))
        if len(found) != len(part):  # which answer is whose is not known
            raise ComponentError(Problem(f"{len(part)} prompts were asked, {len(found)} answers came", fix=KEPT))
        yield list(enumerate(found, start))

# SPDX-License-Identifier: Apache-2.0
"""Log-likelihoods of targets by a model, in batches that a kill does not ask for again; the likeliest of several candidates."""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from osmotic.plugins.contract import Context
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, Problem

Pair = tuple[str, str]  # prompt, target
Score = tuple[float, int]  # sum of log-probabilities, number of tokens


def scored(context: Context, model: Any, pairs: Sequence[Pair], batch: int, note: str, journal: str = "scores") -> list[Score]:
    """(sum of log-probabilities, number of tokens) of each target given its prompt, `batch` pairs at a time.

    journal: where they are kept over a kill; another one for each model that a task asks.
    Raises ComponentError when the model cannot score, gives another number of scores, or one that is no log-likelihood.
    """
    if not hasattr(model, "log_likelihood"):
        raise ComponentError(Problem("the model gives no log-likelihoods", path="model", fix="name a model that is a scorer"))
    kept, found = context.journal(journal), list[Score]()
    for start in range(0, len(pairs), batch):
        context.progress(start, len(pairs), note)
        asked = list(pairs[start : start + batch])
        key = hashlib.sha256(canonical(asked)).hexdigest()
        known = kept.get(key)
        if known is None:
            known = [[float(total), int(count)] for total, count in model.log_likelihood(asked)]
            _check(known, len(asked))
            kept.put(key, known)
        found += [(total, count) for total, count in known]
    context.progress(len(pairs), len(pairs), note)
    return found


def _check(scores: list[Any], pairs: int) -> None:
    if len(scores) != pairs:
        raise ComponentError(Problem(f"the model gave {len(scores)} scores to {pairs} pairs", path="model"))
    empty = sum(count < 1 for _, count in scores)
    if empty:
        fix = "targets and choices that are not empty"
        raise ComponentError(Problem(f"{empty} of {pairs} targets have no token to score", path="model", fix=fix))
    bad = sum(not math.isfinite(total) or total > 1e-3 for total, _ in scores)
    if bad:
        why = "a log-likelihood is a finite number of at most 0"
        raise ComponentError(Problem(f"{bad} of {pairs} scores are none", path="model", why=why, fix="are the weights finite?"))


def likeliest(scores: Sequence[Score], per_token: bool = False, salt: str = "") -> int:
    """Index of the largest log-likelihood (or mean a token); of equal ones, the one that a hash of `salt` (the prompt) says.

    In bfloat16, equal ones are not rare, and the first of them would be the right one more often than chance where labels are
    sorted.
    """
    each = [total / count if per_token else total for total, count in scores]
    equal = [i for i, value in enumerate(each) if value == max(each)]
    return equal[int.from_bytes(hashlib.sha256(salt.encode()).digest()[:8], "big") % len(equal)]

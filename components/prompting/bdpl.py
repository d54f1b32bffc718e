# SPDX-License-Identifier: Apache-2.0
"""Black-box discrete prompt learning (BDPL, Diao et al. 2023; federated: FedOne, ICML 2025): the mathematics, and its prompt.

A prompt is L phrases, each drawn from a distribution of its own over V phrases. With I drawn prompts and their losses the
policy gradient is g = 1/(I-1) sum_i (loss_i - mean loss) d log p(prompt_i), where d log p has 1/p at each drawn phrase. Its
expectation is the gradient of the expected loss, less a constant that is the same for all phrases of a position; the projection
to the simplex undoes any such constant. Then the gradient's norm is clipped, a step taken, and every position projected to the
nearest distribution that gives each phrase at least a floor: 1/p stays finite, and nothing is ever ruled out.
"""

import hashlib
import random
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from osmotic.components.prompting.prompts import Prompt
from osmotic.plugins.contract import Records, Weights
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    import numpy as np

NAME, LAYOUT = "probabilities", "bdpl"  # of the tensor, and of weights that have it
SLOT = re.compile(r"\{\{\s*phrases\s*\}\}")
WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
PHRASE = re.compile(rf"{WORD.pattern}(?: {WORD.pattern})*")
OFF = 1e-3  # how far a distribution that was averaged and rounded may be from one


# ---- distributions ---------------------------------------------------------------------------------------------------


def uniform(length: int, size: int) -> "np.ndarray":
    """float64 [length, size]: every phrase alike."""
    import numpy as np

    return np.full((length, size), 1.0 / size)


def project(rows: "np.ndarray", floor: float) -> "np.ndarray":
    """float64 [L, V]: for each row the nearest one (Euclidean) of sum 1 with no entry below `floor`, at most 1/V.

    By sorting (Held, Wolfe and Crowder 1974): entries above a threshold lose the same amount, the others come to the floor.
    """
    import numpy as np

    count = rows.shape[1]
    mass = 1.0 - count * floor
    if mass <= 0:
        return uniform(*rows.shape)
    above = np.asarray(rows, dtype=np.float64) - floor
    ordered = -np.sort(-above, axis=1)
    excess = ordered.cumsum(axis=1) - mass
    places = np.arange(1, count + 1)
    kept = (ordered - excess / places > 0).sum(axis=1)
    threshold = excess[np.arange(len(rows)), kept - 1] / kept
    found: np.ndarray = np.maximum(above - threshold[:, None], 0.0) + floor
    return found


def draw(probabilities: "np.ndarray", rng: random.Random) -> list[int]:
    """A prompt: the number of a phrase for each position."""
    sums = probabilities.cumsum(axis=1)
    last = probabilities.shape[1] - 1
    return [min(last, int(row.searchsorted(rng.random() * row[-1], side="right"))) for row in sums]


def gradient(probabilities: "np.ndarray", draws: Sequence[Sequence[int]], losses: Sequence[float]) -> "np.ndarray":
    """float64 [L, V]: the variance-reduced policy gradient of two or more drawn prompts and their losses."""
    import numpy as np

    losses_ = np.asarray(losses, dtype=np.float64)
    found, places = np.zeros_like(probabilities), np.arange(len(probabilities))
    for chosen, advantage in zip(draws, losses_ - losses_.mean(), strict=True):
        found[places, list(chosen)] += advantage / probabilities[places, list(chosen)]
    made: np.ndarray = found / (len(losses_) - 1)
    return made


def clipped(gradient: "np.ndarray", norm: float) -> "np.ndarray":
    """The gradient, scaled down to an L2 norm of at most `norm`."""
    import numpy as np

    size = float(np.linalg.norm(gradient))
    return gradient if size <= norm else gradient * (norm / size)


# ---- weights and phrases ---------------------------------------------------------------------------------------------


def phrases_of(records: Records, path: str = "phrases") -> list[str]:
    """The phrases, in order. Raises DataError for a missing column, a phrase that is no words, or that stands twice."""
    if "text" not in records.columns or len(records) < 2:
        raise DataError(Problem("two or more phrases are needed, in a column 'text'", path=path, fix="connect phrase_miner"))
    found = [row["text"] for row in records]
    for i, text in enumerate(found):
        if not isinstance(text, str) or not PHRASE.fullmatch(text):
            why = "words with one space between them, without braces and marks"
            raise DataError(Problem(f"row {i} of the phrases is no phrase", path=path, why=why))
    if len(set(found)) < len(found):
        twice = next(text for i, text in enumerate(found) if text in found[:i])
        raise DataError(Problem(f"the phrase {twice!r} stands twice", path=path))
    return found


def base_of(phrases: Sequence[str], frame: str) -> str:
    """What distributions belong to, hexadecimal: the phrases in order, and the prompt around them."""
    return hashlib.sha256(canonical([list(phrases), frame])).hexdigest()


def packed(probabilities: "np.ndarray", base: str, more: Mapping[str, Any]) -> Weights:
    """Distributions as weights, float32 [L, V], which `aggregator` averages."""
    return Weights({NAME: probabilities.astype("float32")}, {"base": base, "layout": LAYOUT, **more})


def unpacked(weights: Weights, base: str, size: int, path: str = "weights") -> "np.ndarray":
    """float64 [L, size], each row of sum 1. Raises DataError for weights of another kind, other phrases or another prompt."""
    import numpy as np

    if weights.meta.get("layout") != LAYOUT or list(weights.tensors) != [NAME]:
        raise DataError(Problem("these are no distributions over phrases", path=path, fix="connect what bdpl_tuner gave"))
    if weights.meta.get("base") != base:
        why, fix = "the phrases, their order or the prompt around them differ", "the same phrases and 'prompt' everywhere"
        raise DataError(Problem("the distributions belong to other phrases", path=path, why=why, fix=fix))
    table = np.asarray(weights.tensors[NAME], dtype=np.float64)
    if table.ndim != 2 or not table.size or table.shape[1] != size:
        raise DataError(Problem(f"the distributions have the shape {list(table.shape)}, for {size} phrases", path=path))
    if not np.isfinite(table).all() or table.min() < -OFF or np.abs(table.sum(axis=1) - 1).max() > OFF:
        why, fix = "a position's probabilities are at least 0, and 1 together", "aggregate them by a plain mean"
        raise DataError(Problem("these are no distributions", path=path, why=why, fix=fix))
    found = table.clip(min=0)
    found /= found.sum(axis=1, keepdims=True)
    return found


# ---- the prompt ------------------------------------------------------------------------------------------------------


def frame_problems(
    frame: str, known: Collection[str] | None, label_field: str | None = None, path: str = "prompt"
) -> list[str]:
    """What is wrong with a prompt around phrases: its slot, other slots (not of the fields `known`, or the label), syntax."""
    count = len(SLOT.findall(frame))
    if count != 1:
        return [f"{path}: needs the slot {{{{ phrases }}}} once, where the tuned phrases go (it is there {count} times)"]
    try:
        shown = filled(frame, ["phrase"], (), path).slots
    except ConfigError as error:
        return [f"{path}: {problem.what}" + (f" ({problem.why})" if problem.why else "") for problem in error.problems]
    if not shown:
        return [f"{path}: it shows no field of a record: write {{{{ field }}}} where the text belongs"]
    if label_field in shown:
        return [f"{path}: it shows the label: take {{{{ {label_field} }}}} out"]
    odd = sorted(shown - set(known)) if known is not None else []
    return [f"{path}: unknown slot {name!r}; {did_you_mean(name, known or ())}" for name in odd]


def filled(frame: str, phrases: Sequence[str], keep: Collection[str] = (), path: str = "prompt") -> Prompt:
    """The prompt with these phrases in their place. keep: words that stay as they are when others tune it on."""
    return Prompt.parse(SLOT.sub(lambda _: " ".join(phrases), frame), keep, path)


def with_phrases(row: Mapping[str, Any], phrases: Sequence[str]) -> dict[str, Any]:
    """A record with phrases as what the slot shows: for many prompts over one template."""
    return {**row, "phrases": " ".join(phrases)}

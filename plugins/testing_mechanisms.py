# SPDX-License-Identifier: Apache-2.0
"""Checks of the contract for mechanisms, of symbols and of whole documents; public through `osmotic.testing`.

Passing shows that a mechanism fits; its guarantee is shown by its certificate (computed here on one small space, by the host on
every space in use).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from osmotic.plugins.contract import DocumentMechanism, Drawn, Mechanism, Slot, Space, config_type
from osmotic.plugins.fakes import validated
from osmotic.plugins.testing_checks import ConformanceError, check_contained, check_identity, check_imports
from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

__all__ = ["check_config", "check_document", "check_mechanism", "small_slots", "small_space"]

CLAIMS = ("certified", "metric", "partition")
FALSE_ALARM = 1e-9


def check_config(model: type[Any], config: Mapping[str, Any]) -> Any:
    """Validate, write as JSON, read again: equal; and a key that nobody knows is refused. Gives the configuration."""
    from pydantic import ValidationError

    made = validated(model, config, "config")
    if model.model_validate_json(made.model_dump_json(by_alias=True)) != made:
        why = "configurations are kept and compared as JSON"
        raise ConformanceError(
            Problem(f"{model.__name__} does not come back from its JSON", why=why, fix="use plain field types")
        )
    try:
        model.model_validate({**config, "osmotic_unknown_key": 1})
    except ValidationError:
        return made
    why = "a misspelt key would change nothing, and nobody would be told"
    raise ConformanceError(Problem(f"{model.__name__} accepts unknown keys", why=why, fix="derive it from osmotic's Config"))


def small_space(size: int = 24, dimension: int = 8, unknown: bool = True) -> Space:
    """A public space with random vectors, always the same one."""
    import numpy as np

    vectors = np.random.Generator(np.random.PCG64(7)).standard_normal((size, dimension)).astype(np.float32)
    return Space("small", tuple(f"symbol{i:02d}" for i in range(size)), vectors, unknown)


def small_slots() -> tuple[Slot, ...]:
    """Two fields of a document: a domain of 24 symbols, and text over a table of 24 words (aa, ab, ...)."""
    base = small_space()
    words = tuple(f"{first}{second}" for first in "abcd" for second in "abcdef")
    domain = Slot("field", False, Space("field", base.symbols, base.vectors, False))
    return (domain, Slot("text", True, Space("text", words, base.vectors, True)))


# ---- token mechanisms ------------------------------------------------------------------------------------------------


def check_mechanism(
    cls: type[Mechanism[Any]],
    config: Mapping[str, Any],
    space: Space | None = None,
    draws: int = 5_000,
    mechanisms: Mapping[str, type[Mechanism[Any]]] | None = None,
) -> Any:
    """Check a mechanism on a space (default: `small_space()`) and return its privacy card.

    Configuration, name and docstring; log_prob has the right shape and does not depend on the batch; a claim of class
    certified, metric or partition holds; the sampler agrees with log_prob on rows that are fresh each time (`draws` a row,
    false alarm below 1e-9) and gives the same under a seed; its code can be named by a hash; no file written (but into
    osmotic's cache), no socket, light import. A wrapper's `inner` is one of the built-ins, or of `mechanisms` (name -> class).
    """
    import numpy as np

    from osmotic.plugins.certificate import certify, check_sampler, code_digest
    from osmotic.plugins.entropy import SeededEntropy, SystemEntropy

    check_config(config_type(cls), config)
    check_identity(cls, "mechanisms")
    code_digest(cls)  # raises where site policies could not name it
    space = space or small_space()
    made = _built(cls, config, space, mechanisms or {})
    rows = np.arange(space.size + space.unknown, dtype=np.int64)
    whole = check_contained(cls, lambda: made.log_prob(rows))
    alone = np.concatenate([made.log_prob(rows[i : i + 1]) for i in rows[::-1]])[::-1]
    if whole.shape != alone.shape or not np.allclose(whole, alone, rtol=0, atol=1e-9):
        fix = "compute each row from its own symbol, and keep no state between calls"
        raise ConformanceError(Problem(f"{cls.name}: log_prob depends on the other rows of the batch", fix=fix))
    card = certify(made, sampler=False)
    if card.declared.mechanism_class in CLAIMS and not card.holds:
        why = f"declared {card.declared}; computed epsilon {card.epsilon_true:g}; {card.why}"
        raise ConformanceError(Problem(f"{cls.name}: the certificate does not hold on {space.name!r}", why=why))
    sampler = check_sampler(made, SystemEntropy(), draws)
    if not sampler.agrees:
        fix = "do not override sample, or make it equal to log_prob"
        raise ConformanceError(Problem(f"{cls.name}: sample does not follow log_prob", why=sampler.why, fix=fix))
    first, second = (check_contained(cls, lambda: made.sample(rows, SeededEntropy("a check"))) for _ in range(2))
    if not np.array_equal(first, second):
        why = "randomness that is not the host's is not covered by the certificate"
        fix = "draw from the entropy that is given, from nothing else"
        raise ConformanceError(Problem(f"{cls.name}: sample draws from elsewhere than its entropy", why=why, fix=fix))
    check_imports(cls)
    return card


def _built(
    cls: type[Mechanism[Any]], config: Mapping[str, Any], space: Space, known: Mapping[str, type[Mechanism[Any]]]
) -> Mechanism[Any]:
    """The mechanism over the space, with its inner one if it wraps."""
    settings = validated(config_type(cls), config, "mechanism")
    if not cls.wraps:
        return cls(settings, space)
    from osmotic.plugins.building import build_token
    from osmotic.plugins.host import Registered, build_registry

    registry = build_registry(names=[])
    registry.mechanisms.update({name: Registered(one, "test", "0") for name, one in known.items()})
    inner = getattr(settings, "inner", None)
    if not isinstance(inner, Mapping):
        fix = "inner: dict[str, Any] = Field(...)"
        raise ConformanceError(Problem(f"{cls.name}: a wrapper needs a configuration field 'inner', a mapping", fix=fix))
    return cls(settings, space, build_token(registry, inner, cls.inner_space(settings, space), "mechanism.inner"))


# ---- document mechanisms ---------------------------------------------------------------------------------------------


def check_document(
    cls: type[DocumentMechanism[Any]],
    config: Mapping[str, Any],
    slots: Sequence[Slot] | None = None,
    models: Mapping[str, Any] | None = None,
    documents: Sequence[tuple[str, ...]] | None = None,
    draws: int = 1_000,
) -> Any:
    """Check a document mechanism and return its card. slots: default `small_slots()`; models: name -> object.

    documents: at least three, one text a slot (default: made for the slots, one with empty texts). No model is asked for when
    constructed; nothing for nothing; one outcome a document, its epsilon within the guarantee; what comes out for a document
    does not depend on the others of its batch: over `draws` batches no outcome's frequency differs by more than chance allows
    (a difference of 2 sqrt(ln(4 n / 1e-9) / (2 n)) is found, .23 for n = 1,000; false alarm below 1e-9).
    """
    from osmotic.plugins.certificate import certify_document
    from osmotic.plugins.entropy import SystemEntropy

    check_config(config_type(cls), config)
    slots = tuple(slots or small_slots())
    asked: list[str] = []

    def model(name: str) -> Any:
        asked.append(name)
        if name not in (models or {}):
            raise ConfigError(Problem(f"there is no model {name!r}", fix=did_you_mean(name, models or {})))
        return (models or {})[name]

    made = cls(validated(config_type(cls), config, "mechanism"), slots, model)
    if asked:
        raise ConformanceError(Problem(f"{cls.name}: asks for a model when constructed", fix="call self.model in sample"))
    if made.guarantee().unit != "document":
        raise ConformanceError(Problem(f"{cls.name}: the guarantee must be per document", why=f"it is {made.guarantee()}"))
    given = list(documents or _documents(slots))
    entropy = SystemEntropy()
    if made.sample([], entropy) != []:
        raise ConformanceError(Problem(f"{cls.name}: sample must give an empty list for an empty list"))
    _check_drawn(made, given, made.sample(given, entropy))
    first, second, third = given[0], given[1], given[2]
    with_second = made.sample([first, second] * draws, entropy)[::2]
    with_third = made.sample([first, third] * draws, entropy)[::2]
    _check_apart(cls.name, with_second, with_third)
    return certify_document(made)


def _documents(slots: Sequence[Slot]) -> list[tuple[str, ...]]:
    """Three documents that differ, and one with empty texts."""
    found = []
    for i in range(3):
        symbols = [slot.space.symbols if slot.space else ("one", "two", "three") for slot in slots]
        found.append(tuple(part[i % len(part)] for part in symbols))
    empty = ["" if slot.text else text for slot, text in zip(slots, found[0], strict=True)]
    return [*found, tuple(empty)]


def _check_drawn(made: DocumentMechanism[Any], given: Sequence[tuple[str, ...]], drawn: Sequence[Drawn]) -> None:
    claim, slots = made.guarantee(), len(made.slots)
    if len(drawn) != len(given) or not all(isinstance(one, Drawn) for one in drawn):
        why = f"{len(drawn)} of {len(given)}"
        raise ConformanceError(Problem(f"{made.name}: sample must give one Drawn a document", why=why))
    for one in drawn:
        if len(one.texts) != slots or len(one.symbols) != slots or not all(isinstance(text, str) for text in one.texts):
            raise ConformanceError(Problem(f"{made.name}: a Drawn needs a text and a number of symbols for each slot"))
        if not (0 <= one.epsilon <= claim.epsilon * (1 + 1e-9)) or math.isnan(one.epsilon):
            why = f"it spent {one.epsilon:g}, the guarantee is {claim}"
            raise ConformanceError(Problem(f"{made.name}: a document spent more than the guarantee says", why=why))


def _check_apart(name: str, one: Sequence[Drawn], other: Sequence[Drawn]) -> None:
    """Whether outcomes of one document are as frequent beside one neighbour as beside another (Hoeffding, each outcome)."""
    n = len(one)
    first, second = (Counter(drawn.texts for drawn in part) for part in (one, other))
    allowed = 2 * math.sqrt(math.log(4 * n / FALSE_ALARM) / (2 * n))
    worst = max(abs(first[text] - second[text]) / n for text in {*first, *second})
    if worst > allowed:
        why = f"an outcome of one document is {worst:.2f} more frequent beside another neighbour; chance allows {allowed:.2f}"
        raise ConformanceError(Problem(f"{name}: the outcome of a document depends on the others of its batch", why=why))

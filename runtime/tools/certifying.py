# SPDX-License-Identifier: Apache-2.0
"""`osmotic certify`: privacy cards of mechanisms over a table, as text or JSON. No private data is read.

Cards are kept in the user's cache folder under their key (code, parameters, table), for `osmotic sanitize`; a folder that
cannot be read or written costs time and nothing else. `certify` itself computes anew, always.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any, TextIO

from pydantic import ValidationError

from osmotic.plugins.audit import Audit, audit
from osmotic.plugins.building import build_document, build_token
from osmotic.plugins.certificate import (
    canonical_parameters,
    card_key,
    certify,
    certify_document,
    code_digest,
    derived_of,
    estimate,
    space_digest,
)
from osmotic.plugins.contract import DocumentMechanism, Mechanism, Slot, Space, config_type
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.host import Registry
from osmotic.plugins.mechanisms.cache import folder
from osmotic.plugins.spaces import space_of
from osmotic.runtime.plan.checks import model_fields
from osmotic.runtime.screen.tables import grid
from osmotic.schemas.errors import ConfigError, OsmoticError, Problem
from osmotic.schemas.guarantees import Card
from osmotic.schemas.records import FieldSpec
from osmotic.schemas.source import Source, parse, problems_of

if TYPE_CHECKING:
    import numpy as np

DEFAULT_TABLE = "minilm:pieces"
CLAIMS = ("certified", "metric", "partition")  # classes whose claim the certificate can refute
EVERY, FIRST = 10.0, 2.0  # seconds between lines of progress, and before the first
MODEL = "model"
AnyMechanism = Mechanism[Any] | DocumentMechanism[Any]


# ---- what to certify -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """The model of the command line, TYPE or TYPE:PATH, built when it is first asked for; None: there is none."""

    registry: Registry
    given: str | None = None

    def _plugin(self) -> Any:
        if self.given is None:
            fix = "--model TYPE:PATH, of a type that 'osmotic plugins' lists"
            raise ConfigError(Problem("this mechanism needs a model", path="--model", fix=fix))
        kind, _, path = self.given.partition(":")
        cls = self.registry.model(kind)
        given = {"path": path} if path else {}
        try:
            return cls(config_type(cls).model_validate(given))
        except ValidationError as error:
            raise ConfigError(*problems_of(error, config_type(cls), Source("--model", given))) from error

    def build(self, name: str) -> Any:
        """The model object."""
        return self._plugin().build()

    def fingerprints(self) -> list[str]:
        """What the model is; empty without one."""
        return [] if self.given is None else [self._plugin().fingerprint()]


def table_space(registry: Registry, table: str | None) -> Space:
    """The space of a text field over a table (default: minilm:pieces). Raises ConfigError."""
    try:
        return space_of("text", FieldSpec(text=True), Path(), table or DEFAULT_TABLE, registry)
    except ConfigError as error:
        if table:
            raise
        first = error.problems[0]
        fix = "give one: --table glove:50d-20000, --table smollm2:words, --table FILE.safetensors#KEY; or install minilm's"
        raise ConfigError(
            Problem(f"the default table {DEFAULT_TABLE} cannot be used", path="--table", why=first.what, fix=fix)
        ) from error


def settings(name: str, epsilon: float, options: Sequence[str], registry: Registry, model: str | None = None) -> dict[str, Any]:
    """{name, epsilon, --set keys}; a wrapper without `inner` gets list-rr inside, a model key without a value the model."""
    cls = registry.mechanism(name)
    found: dict[str, Any] = {"name": name, "epsilon": epsilon}
    if "epsilon" not in config_type(cls).model_fields:  # a greedy encoder, or a wrapper that leaves it to the inner one
        del found["epsilon"]
    for option in options:
        dotted, equals, text = option.partition("=")
        keys = dotted.split(".")
        if not equals or not all(keys):
            raise ConfigError(Problem(f"--set {option}: write it as key=value"))
        values = parse(f"- {text}", f"--set {dotted}").value
        target = found
        for key in keys[:-1]:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ConfigError(Problem(f"--set {option}: {key!r} is a value, not a mapping"))
        target[keys[-1]] = values[0] if isinstance(values, list) and len(values) == 1 else values
    if getattr(cls, "wraps", False) and "inner" not in found:
        found["inner"] = {"name": "list-rr", "epsilon": epsilon}
    if model is not None:
        for key in model_fields(config_type(cls).model_construct()):
            found.setdefault(key, MODEL)
    return found


def build(registry: Registry, chosen: Mapping[str, Any], space: Space, models: Models) -> AnyMechanism:
    """The mechanism over one text field. Raises ConfigError."""
    if issubclass(registry.mechanism(chosen["name"]), DocumentMechanism):
        return build_document(registry, chosen, [Slot("text", True, space)], models.build)
    return build_token(registry, chosen, space)


def read_prior(path: Path, space: Space) -> "np.ndarray":
    """A public prior: lines ``SYMBOL<tab>WEIGHT``; absent symbols have weight 0. float64 [V], sums to 1. Raises ConfigError."""
    import numpy as np

    place = {symbol: i for i, symbol in enumerate(space.symbols)}
    weights = np.zeros(space.size)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Problem("the prior cannot be read", str(path), "--prior", why=str(error)[:200])) from error
    for number, line in enumerate(lines, start=1):
        symbol, tab, text = line.rpartition("\t")
        value = math.nan
        with suppress(ValueError):
            value = float(text)
        if not tab or not 0 <= value < math.inf:
            raise ConfigError(Problem("not SYMBOL<tab>WEIGHT", f"{path}:{number}", "--prior"))
        if symbol in place:
            weights[place[symbol]] = value
    if not weights.sum() > 0:
        raise ConfigError(Problem("the prior gives no symbol of the table any weight", str(path), "--prior"))
    return np.asarray(weights / weights.sum())


# ---- cards -----------------------------------------------------------------------------------------------------------


class Ticker:
    """Progress of long work on a stream: nothing for the first two seconds, then a line every ten."""

    def __init__(self, stream: TextIO, what: str) -> None:
        self.stream, self.what = stream, what
        self.began = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Told after each block."""
        now = time.monotonic()
        if now - self.last > (FIRST if self.last == self.began else EVERY) and done < total:
            self.last = now
            left = (now - self.began) * (total - done) / max(done, 1)
            print(f"{self.what}: {100 * done // total}%, about {left:.0f} s more", file=self.stream, flush=True)


def card_of(made: AnyMechanism, models: Models, *, again: bool = False, prior: "np.ndarray | None" = None) -> Card:
    """The card of a mechanism, from the cache folder unless `again`; made, with progress on standard error, and kept else.

    One made with a prior is not kept: the key says nothing of priors.
    """
    key = card_key(made, models.fingerprints())
    kept = None if again or prior is not None else _cached(key)
    if kept is not None and _is_of(kept, made, models):
        return kept
    if isinstance(made, DocumentMechanism):
        card = certify_document(made, models.fingerprints(), note=lambda text: print(text, file=sys.stderr, flush=True))
    else:
        seconds = estimate(made)
        if seconds > FIRST:
            print(f"{made.name}: the certificate takes about {seconds:.0f} s", file=sys.stderr, flush=True)
        card = certify(made, progress=Ticker(sys.stderr, made.name), prior=prior)
    if prior is None:
        _keep(key, card)
    return card


def _is_of(card: Card, made: AnyMechanism, models: Models) -> bool:
    """Whether a card that was found is of this mechanism: its name, code, parameters, space, claim, and what it derived."""
    space = card_key(made, models.fingerprints()) if isinstance(made, DocumentMechanism) else space_digest(made.space)
    here = (made.name, code_digest(type(made)), canonical_parameters(made.config), space, made.guarantee(), derived_of(made))
    return here == (card.mechanism, card.code, card.parameters, card.space_digest, card.declared, card.derived)


def _cached(key: str) -> Card | None:
    try:
        return Card.stored((folder() / "cards" / f"{key}.json").read_text(encoding="utf-8"))
    except (OSError, RuntimeError, ValueError):
        return None


def _keep(key: str, card: Card) -> None:
    """Write at once or not at all; a folder that cannot be written is no error."""
    try:
        home = folder() / "cards"
        home.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", encoding="utf-8", dir=home, suffix=".part", delete=False) as file:
            file.write(card.model_dump_json())
        Path(file.name).replace(home / f"{key}.json")
    except (OSError, RuntimeError):
        return


# ---- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """One mechanism at one epsilon: its card, or why there is none."""

    name: str
    epsilon: float
    card: Card | None = None
    audit: Audit | None = None
    problem: str = ""

    @property
    def failed(self) -> str:
        """What is false about a claim; empty when nothing is."""
        if self.card is not None and self.card.declared.mechanism_class in CLAIMS and not self.card.holds:
            return self.card.why
        certified = self.card is not None and self.card.declared.mechanism_class == "certified"
        if self.audit is not None and not self.audit.passed and certified:
            return f"the audit shows epsilon >= {self.audit.epsilon_low:.4g}"
        return ""


def certify_command(
    registry: Registry, name: str, epsilons: Sequence[float], options: Sequence[str] = (), table: str | None = None,
    sampled: bool = False, draws: int = 200_000, prior: Path | None = None, model: str | None = None,
) -> list[Found]:  # fmt: skip
    """Certify one mechanism, or ``all``, at each epsilon. Raises ConfigError; with `all`, what cannot be built is named."""
    everything = name == "all"
    if everything and options:
        raise ConfigError(Problem("--set goes with one mechanism, not with all", path="--set"))
    if not epsilons:
        raise ConfigError(Problem("give an epsilon", path="--epsilon", fix="--epsilon 6"))
    for chosen in [] if everything else [name]:
        registry.mechanism(chosen)
    space = table_space(registry, table)
    weights = None if prior is None else read_prior(prior, space)
    models, found = Models(registry, model), []
    for chosen in sorted(registry.mechanisms) if everything else [name]:
        for epsilon in epsilons:
            try:
                made = build(registry, settings(chosen, epsilon, options, registry, model), space, models)
                card = card_of(made, models, again=True, prior=weights)
            except OsmoticError as error:
                if not everything:
                    raise
                first = error.problems[0]
                found.append(Found(chosen, epsilon, problem=f"{first.path}: {first.what}" if first.path else first.what))
                continue
            black = (sampled or card.estimated) and isinstance(made, Mechanism)  # an estimate is not left alone
            found.append(Found(chosen, epsilon, card, audit(made, SystemEntropy(), draws) if black else None))  # type: ignore[arg-type]
    return found


def found_json(found: Sequence[Found]) -> str:
    """All of it as JSON; what is infinite is the text "Infinity", as JSON has no such number."""
    values = [
        {
            "mechanism": f.name, "epsilon": f.epsilon, "failed": f.failed, "problem": f.problem,
            "card": None if f.card is None else f.card.model_dump(mode="python"),
            "true_epsilon": None if f.card is None else "; ".join(filter(None, [f.card.true_text(), _at_least(f)])),
            "audit": None if f.audit is None else asdict(f.audit),
        }
        for f in found
    ]  # fmt: skip
    return json.dumps(finite(values[0] if len(values) == 1 else values), sort_keys=True, allow_nan=False)


def finite(value: Any) -> Any:
    """A copy without infinite or undefined numbers: those become their names."""
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    return value


def found_text(found: Sequence[Found]) -> str:
    """One readable block for one card, a table for several."""
    if len(found) == 1 and found[0].card is not None:
        return card_text(found[0].card, found[0].audit)
    head = ["mechanism", "class", "unit", "declared", "certified or true", "holds", "kept", "Bayes success", "seconds"]
    rows = []
    for f in found:
        if f.card is None:
            rows.append([f.name, "-", "-", f"{f.epsilon:g}", f"not certified here: {f.problem}", "-", "-", "-", "-"])
            continue
        c, claim = f.card, f.card.declared
        true = c.true_text() if c.estimated else _true(c).partition(" (")[0]
        rows.append([f.name, claim.mechanism_class, claim.unit, f"{claim.epsilon:g}", true, _holds(c), _share(c.self_retention),
                     _share(c.bayes_success), f"{c.seconds:.1f}"])  # fmt: skip
    first = next((f.card for f in found if f.card is not None), None)
    lines = [grid(head, rows)]
    if first is not None:
        lines.append(f"over {first.space}: table {first.space_digest[:16]}, V = {first.symbols}; epsilon by natural logarithm")
    lines += [f"{f.name} at {f.epsilon:g}: {at_least}" for f in found if (at_least := _at_least(f))]
    lines += [f"{f.name} at {f.epsilon:g} does not hold: {f.failed}" for f in found if f.failed]
    return "\n".join(lines)


def card_text(card: Card, audited: Audit | None = None) -> str:
    """A card as a block of lines."""
    claim, how = card.declared, "estimated" if card.estimated else "exact"
    rows = [
        ("mechanism", f"{card.mechanism} {card.parameters}"),
        ("class", f"{claim.mechanism_class}, a {claim.unit}"),
        ("table", f"{card.space} {card.space_digest[:16]}, V = {card.symbols}"),
        ("declared", f"epsilon {claim.epsilon:g} a {claim.unit}" + (f", delta {claim.delta:g}" if claim.delta else "")),
        ("true epsilon", _true(card) + (f"; {_low(audited)}" if audited is not None and card.estimated else "")),
        ("holds", _holds(card) + (f": {card.why}" if card.why else "")),
        ("self-retention", f"{_share(card.self_retention)} mean, {_share(card.worst_retention)} worst" + _bound(card)),
        ("Bayes success", f"{_share(card.bayes_success)} (uniform prior, {how})" + _prior(card)),
    ]
    rows += [("part", part) for part in card.parts]
    rows += [("in the clear", ", ".join(card.cleartext))] if card.cleartext else []
    rows += [("void when", ", ".join(claim.void) or "seeded, or the table was made from private data")]
    if audited is not None:
        verdict = "not refuted" if audited.passed else "REFUTED"
        low = f"epsilon >= {audited.epsilon_low:.4g} with 95% confidence, from {audited.draws} draws of each of two inputs"
        rows.append(("audit", f"{low}: {verdict}"))
    rows.append(("made", f"{card.made}, osmotic {card.osmotic}, {card.seconds:.1f} s"))
    return "\n".join(f"{name:<15}{text}" for name, text in rows)


def _true(card: Card) -> str:
    within, ratio = card.epsilon_within, card.metric_ratio
    text = card.true_text()
    if card.declared.mechanism_class == "partition" and within is not None:
        return f"{within:.6g} in a cell (between cells {text})"
    if card.declared.mechanism_class == "metric" and ratio is not None:
        return f"{text} a token (|log ratio| at most {ratio:.6g} times epsilon d over {card.metric_pairs} pairs)"
    return text + ("" if not card.holds else " (declared; its parts hold)" if card.parts else " (certified)")


def _low(audited: Audit) -> str:
    """The audit's bound, which rests on draws alone."""
    return f"at least {audited.epsilon_low:.4g} (97.5% confidence each side, {audited.draws} draws)"


def _at_least(found: Found) -> str:
    """The bound beside an estimate; empty where there is none."""
    return _low(found.audit) if found.audit is not None and found.card is not None and found.card.estimated else ""


def _holds(card: Card) -> str:
    return "yes" if card.holds else "no"


def _share(value: float) -> str:
    return f"{value:.4g}"


def _bound(card: Card) -> str:
    if card.retention_bound is None:
        return ""
    above = "above it, by the estimate" if card.estimated else "ABOVE IT: the declared epsilon is false"
    verdict = above if card.breaks_bound else "kept"
    return f"; the bound at the declared epsilon is {_share(card.retention_bound)}: {verdict}"


def _prior(card: Card) -> str:
    return "" if card.prior_success is None else f", {_share(card.prior_success)} (prior given)"

# SPDX-License-Identifier: Apache-2.0
"""Before a release: mechanisms built from what a pipeline says, checked against the site's policy, with valid privacy cards."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from osmotic.plugins.building import build_document, build_token, is_document, mechanism_config, split
from osmotic.plugins.certificate import card_key, certify, certify_document, code_digest, derived_of, estimate, space_digest
from osmotic.plugins.contract import DocumentMechanism, Guarantee, Mechanism, Slot, Space
from osmotic.plugins.host import Registry
from osmotic.plugins.spaces import space_of
from osmotic.runtime.plan.checks import model_fields
from osmotic.runtime.privacy.charging import Costs, added, amount_of, by_kind, in_words, unit_of, weakest
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import ConfigError, Problem, RefusedError
from osmotic.schemas.guarantees import Card
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

TEXTS = "for texts of equal released length"  # how many tokens a text has is not hidden

Progress = Callable[[int, int, str], None]


class Models(Protocol):
    """Models of the same party, for mechanisms that ask one."""

    def fingerprint(self, name: str) -> str:
        """What the model is; raises ConfigError or RefusedError unless it is one of this party's."""

    def get(self, name: str) -> Any:
        """The model itself, built when it is asked for first."""


@dataclass
class Prepared:
    """Mechanisms with valid cards, and what identifies them together.

    mechanisms, claims, units, keys: one a field; of a document mechanism: none, and one.
    """

    name: str
    fields: tuple[str, ...]
    mechanisms: list[Mechanism[Any]]
    claims: list[Guarantee]
    units: list[str]
    texts: list[bool]
    parameters: str
    code: str
    keys: list[str]  # of the cards
    missing: list[str] = field(default_factory=list)  # fields whose card has not been made yet
    document: DocumentMechanism[Any] | None = None
    models: tuple[str, ...] = ()  # fingerprints of the models that a document mechanism asks
    words: str = ""  # how epsilon comes about, if it is none of fields and tokens

    @property
    def mechanism_class(self) -> str:
        """The weakest class among the claims."""
        return weakest(claim.mechanism_class for claim in self.claims)

    def costs(self, counts: Sequence[int]) -> Costs:
        """What one document costs, by unit: sum over fields of sampled symbols x epsilon; a document mechanism: its claim."""
        if self.document is not None:
            return {self.units[0]: amount_of(self.units[0], self.claims[0].epsilon)}
        if len(self.units) == len(counts) == 1:
            return {self.units[0]: amount_of(self.units[0], self.claims[0].epsilon, counts[0])}
        pairs = zip(counts, self.claims, self.units, strict=True)
        return added({unit: amount_of(unit, claim.epsilon, n)} for n, claim, unit in pairs)

    def cost(self, counts: Sequence[int]) -> float:
        """The largest of a document's costs, of whichever kind of unit: what a cap is compared with."""
        return max(by_kind(self.costs(counts)).values(), default=0.0)

    def detail(self, most: Sequence[int], longest: int | None = None) -> str:
        """How a document's epsilon comes about, in words. longest: sampled symbols of the longest document, if known."""
        epsilons = {claim.epsilon for claim in self.claims}
        if self.words:
            return self.words
        if self.document is not None:
            return f"{self.name}, at most {in_words(self.units[0], self.costs(())[self.units[0]])}"
        if not any(self.texts) and len(epsilons) == 1:
            return f"{len(self.fields)} fields x {next(iter(epsilons)):g}"
        if longest is not None and len(epsilons) == 1:
            return f"at most {longest} tokens x {next(iter(epsilons)):g}, {TEXTS}"
        parts = [
            f"{field}: {n} tokens x {claim.epsilon:g}" if text else f"{field}: {claim.epsilon:g}"
            for field, n, claim, text in zip(self.fields, most, self.claims, self.texts, strict=True)
        ]
        return "at most " + ", ".join(parts) + (f", {TEXTS}" if any(self.texts) else "")


@dataclass
class Preparer:
    """Builds mechanisms and keeps their cards in the ledger."""

    ledger: Ledger
    registry: Registry
    policy: SitePolicy
    _valid: set[str] = field(default_factory=set)

    def prepare(
        self, mechanism: Mapping[str, Any], fields: Sequence[str], schema: RecordSchema, base: Path, certified: bool,
        models: Models | None = None, progress: Progress = lambda done, total, note: None,
    ) -> Prepared:  # fmt: skip
        """Build the mechanisms and check the policy. Raises ConfigError or RefusedError.

        certified: every mechanism gets a valid card now (needed before anything is released), with progress; else missing ones
        are named.
        """
        name = split(mechanism)[0]
        unknown = [f for f in fields if f not in schema.fields]
        if unknown or not fields:
            what = f"the records have no field {unknown[0]!r}" if unknown else "no field to release"
            raise ConfigError(Problem(what, path="fields", fix=did_you_mean(unknown[0] if unknown else "", schema.fields)))
        make = self._document if is_document(self.registry, mechanism) else self._tokens
        made = make(mechanism, fields, schema, base, models)
        claims = made.claims
        if any(claim.delta > 0 for claim in claims):
            what = f"the mechanism {name!r} promises epsilon with a delta above 0"
            fix = "use a mechanism with delta 0"
            raise RefusedError(Problem(what, why="budgets of documents are of epsilon alone", fix=fix))
        if not all(_sensible(claim) for claim in claims):
            raise ConfigError(Problem(f"the mechanism {name!r} claims no finite epsilon above 0", path="mechanism"))
        parts = [part.guarantee() for part in made.document.parts()] if made.document is not None else []
        for cls in classes_of(self.registry, mechanism):
            allowed(self.policy, cls.name, code_digest(cls), max(claim.epsilon for claim in parts or claims))
        self._card_all(made, certified, progress)
        return made

    def token(self, mechanism: Mapping[str, Any], field: str, schema: RecordSchema, base: Path) -> Mechanism[Any]:
        """A token mechanism over the space of a field, for analysis alone."""
        if field not in schema.fields:
            fix = did_you_mean(field, schema.fields)
            raise ConfigError(Problem(f"the records have no field {field!r}", path="field", fix=fix))
        space = self._space(field, schema, base, mechanism)
        return build_token(self.registry, mechanism, space)

    def _space(self, name: str, schema: RecordSchema, base: Path, mechanism: Mapping[str, Any]) -> Space:
        space = space_of(name, schema.fields[name], base, registry=self.registry)
        self._allow_table(space)
        return space

    def _tokens(
        self, mechanism: Mapping[str, Any], fields: Sequence[str], schema: RecordSchema, base: Path, models: Models | None
    ) -> Prepared:
        built = [build_token(self.registry, mechanism, self._space(f, schema, base, mechanism)) for f in fields]
        claims = [made.guarantee() for made in built]
        units = [unit_of(claim, made) for claim, made in zip(claims, built, strict=True)]
        keys = [card_key(made) for made in built]
        return Prepared(
            built[0].name, tuple(fields), built, claims, units, [schema.fields[f].text for f in fields],
            fingerprint([list(fields), keys]), code_digest(type(built[0])), keys,
        )  # fmt: skip

    def _document(
        self, mechanism: Mapping[str, Any], fields: Sequence[str], schema: RecordSchema, base: Path, models: Models | None
    ) -> Prepared:
        name, given = split(mechanism)
        config = mechanism_config(self.registry, name, given)
        asked = {key: getattr(config, key) for key in model_fields(config) if getattr(config, key) is not None}
        if asked and models is None:
            raise ConfigError(
                Problem(f"{name!r} needs a model, and none is to be had here", path=f"mechanism.{next(iter(asked))}")
            )
        prints = {key: models.fingerprint(model) for key, model in asked.items()} if models is not None else {}
        slots = [Slot(f, schema.fields[f].text, self._slot_space(f, schema, base, mechanism)) for f in fields]
        made = build_document(self.registry, mechanism, slots, models.get if models is not None else _no_model)
        claim, found = made.guarantee(), tuple(prints[key] for key in sorted(prints))
        key = card_key(made, found)
        return Prepared(
            name, tuple(fields), [], [claim], [unit_of(claim, made)], [schema.fields[f].text for f in fields],
            fingerprint([list(fields), "document", key]), code_digest(type(made)), [key], document=made, models=found,
        )  # fmt: skip

    def _slot_space(self, name: str, schema: RecordSchema, base: Path, mechanism: Mapping[str, Any]) -> Space | None:
        spec = schema.fields[name]
        return None if spec.text and spec.table is None else self._space(name, schema, base, mechanism)

    def _allow_table(self, space: Space) -> None:
        """Raise RefusedError for a table of vectors or tokens that the site does not list."""
        if "*" in self.policy.tables or (space.vectors is None and not space.unknown):
            return
        digest = space_digest(space)
        if not any(allowed and digest.startswith(allowed) for allowed in self.policy.tables):
            what = f"this site does not allow the table of {space.name!r}"
            fix = "list it under 'tables' in the site's policy"
            raise RefusedError(Problem(what, why=f"its digest is {digest[:16]}", fix=fix))

    # ---- cards ----

    def _card_all(self, made: Prepared, certified: bool, progress: Progress) -> None:
        """Cards of all mechanisms: made now if `certified`, else the missing ones are named."""
        names = made.fields if made.document is None else (made.name,)
        for i, (name, key, claim) in enumerate(zip(names, made.keys, made.claims, strict=True)):
            token = made.mechanisms[i] if made.document is None else made.document
            derived = derived_of(token) if certified else ""  # asked for when it is about to be drawn with: it may compute
            if f"{key} {claim} {derived}" in self._valid:
                continue
            card = self.stored(key)
            if card is not None and certified and card.derived != derived:
                card = None  # what it certified is not what would be drawn with
            if card is None and not certified:
                self._unproven(made.name, claim)
                made.missing.append(name)
                continue
            if card is None:
                if made.document is None:
                    told = functools.partial(_tell, progress, f"symbols, certificate of {made.name}")
                    card = certify(made.mechanisms[i], progress=told)
                else:
                    card = certify_document(made.document, made.models)
                with self.ledger.transaction() as db:
                    db.execute("INSERT OR REPLACE INTO cards VALUES (?,?)", (key, card.model_dump_json()))
            self._check_card(card, claim)
            if certified:
                self._valid.add(f"{key} {claim} {derived}")

    def stored(self, key: str) -> Card | None:
        """A card that was made before; None when there is none, or one of another version: it is made anew."""
        rows = self.ledger.query("SELECT body FROM cards WHERE key=?", (key,))
        return Card.stored(rows[0][0]) if rows else None

    def _unproven(self, name: str, claim: Guarantee) -> None:
        if claim.mechanism_class != "certified" and not self.policy.unproven:
            fix = "use a certified mechanism, or 'unproven: true' in this site's policy"
            raise RefusedError(Problem(f"the mechanism {name!r} is {claim.mechanism_class}, not certified", fix=fix))

    def _check_card(self, card: Card, claim: Guarantee) -> None:
        if card.declared != claim:
            why = f"certified as {card.declared}, now it says {claim}"
            raise RefusedError(Problem(f"the mechanism {card.mechanism!r} does not say the same twice", why=why))
        if set(card.cleartext) - set(self.policy.cleartext):
            what = f"the mechanism {card.mechanism!r} lets classes of input pass unchanged: {', '.join(card.cleartext)}"
            raise RefusedError(Problem(what, fix="list them under 'cleartext' in this site's policy"))
        if not card.holds and claim.mechanism_class in ("certified", "metric", "partition"):
            why = card.why or f"claimed epsilon {claim.epsilon:g}, computed {card.epsilon_true:.4g}"
            raise RefusedError(Problem(f"the mechanism {card.mechanism!r} does not hold what it claims", why=why))
        self._unproven(card.mechanism, claim)


def _sensible(claim: Guarantee) -> bool:
    """A number above 0; infinite for a heuristic alone."""
    return claim.epsilon > 0 and (math.isfinite(claim.epsilon) or claim.mechanism_class == "heuristic")


def seconds_missing(made: Prepared) -> float:
    """How many seconds the missing cards are expected to take."""
    if made.document is not None:
        return sum(estimate(part) for part in made.document.parts()) if made.missing else 0.0
    pairs = zip(made.fields, made.mechanisms, strict=True)
    return sum(estimate(mechanism) for field_, mechanism in pairs if field_ in made.missing)


def classes_of(registry: Registry, mechanism: Mapping[str, Any]) -> list[type[Any]]:
    """The classes that a mechanism is made of: itself, and the one that it wraps."""
    name, given = split(mechanism)
    found: list[type[Any]] = [registry.mechanism(name)]
    inner = given.get("inner")
    return found + (classes_of(registry, inner) if isinstance(inner, Mapping) and isinstance(inner.get("name"), str) else [])


def allowed(policy: SitePolicy, name: str, code: str, epsilon: float) -> None:
    """Raise RefusedError unless the site's policy allows the mechanism (by name or name@code) and its epsilon."""
    exact = [w.partition("@")[2] for w in policy.mechanisms if w.startswith(f"{name}@")]
    if not {"*", name} & set(policy.mechanisms) and not any(prefix and code.startswith(prefix) for prefix in exact):
        raise RefusedError(Problem(f"this site does not allow the mechanism {name!r}", why=f"allowed: {policy.mechanisms}"))
    if policy.max_epsilon is not None and epsilon > policy.max_epsilon:
        what = f"epsilon {epsilon:g} a token is more than this site allows ({policy.max_epsilon:g})"
        raise RefusedError(Problem(what, fix="lower epsilon"))


def _no_model(name: str) -> Any:
    raise ConfigError(Problem(f"there is no model {name!r} here", path="mechanism"))


def _tell(progress: Progress, note: str, done: int, total: int) -> None:
    """A certificate's progress, as a task tells it."""
    progress(done, total, note)

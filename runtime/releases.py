# SPDX-License-Identifier: Apache-2.0
"""Releases: the only way from private to protected. Look up, sample, charge and store in one transaction, then answer.

Each document's release is kept for good under HMAC(key; data set, id, content, mechanism with parameters and table), so the
same document under the same mechanism costs its budget once, ever. Noise and random ids come from the operating system; a
seed (tests) is part of the look-up key and voids the guarantee. Released order is that of the random ids: random.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from osmotic.plugins.certificate import card_key, certify, code_digest, space_digest
from osmotic.plugins.contract import Entropy, Mechanism, Records, Space, config_type
from osmotic.plugins.entropy import SeededEntropy, SystemEntropy
from osmotic.plugins.host import Registry
from osmotic.plugins.spaces import indices, join, space_of, tokenize
from osmotic.runtime.ledger import Ledger, now
from osmotic.schemas.artifacts import canonical, digest_of
from osmotic.schemas.errors import BudgetError, ConfigError, Problem, RefusedError
from osmotic.schemas.guarantees import Card, Guarantee
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import SitePolicy
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean

TEXTS = "for texts of equal released length"  # how many tokens a text has is not hidden


@dataclass
class Prepared:
    """Mechanisms, one a field, with valid cards, and what identifies them together."""

    fields: tuple[str, ...]
    mechanisms: list[Mechanism[Any]]
    claims: list[Guarantee]
    texts: list[bool]
    parameters: str
    code: str
    missing: list[str]  # fields whose card has not been made yet

    @property
    def mechanism_class(self) -> str:
        """The weakest class among the fields'."""
        classes = {claim.mechanism_class for claim in self.claims}
        return "certified" if classes == {"certified"} else sorted(classes - {"certified"})[0]

    def cost(self, counts: Sequence[int]) -> float:
        """epsilon of one document: sum over fields of sampled symbols x epsilon."""
        return float(sum(n * claim.epsilon for n, claim in zip(counts, self.claims, strict=True)))

    def detail(self, most: Sequence[int], longest: int | None = None) -> str:
        """How a document's epsilon comes about, in words. longest: sampled symbols of the longest document, if known."""
        epsilons = {claim.epsilon for claim in self.claims}
        if not any(self.texts) and len(epsilons) == 1:
            return f"{len(self.fields)} fields x {next(iter(epsilons)):g}"
        if longest is not None and len(epsilons) == 1:
            return f"at most {longest} tokens x {next(iter(epsilons)):g}, {TEXTS}"
        parts = [
            f"{field}: {n} tokens x {claim.epsilon:g}" if text else f"{field}: {claim.epsilon:g}"
            for field, n, claim, text in zip(self.fields, most, self.claims, self.texts, strict=True)
        ]
        return "at most " + ", ".join(parts) + (f", {TEXTS}" if any(self.texts) else "")


class Releaser:
    """Releases records of one party. One object a site."""

    def __init__(self, ledger: Ledger, registry: Registry, policy: SitePolicy) -> None:
        self.ledger, self.registry, self.policy = ledger, registry, policy

    def prepare(
        self, mechanism: Mapping[str, Any], fields: Sequence[str], schema: RecordSchema, base: Path, certified: bool
    ) -> Prepared:
        """Build the mechanisms and check the policy. Raises ConfigError or RefusedError.

        certified: every mechanism gets a valid card now (needed before anything is released); else missing ones are named.
        """
        name, config = split(mechanism)
        cls = self.registry.mechanism(name)
        code = code_digest(cls)
        unknown = [f for f in fields if f not in schema.fields]
        if unknown or not fields:
            what = f"the records have no field {unknown[0]!r}" if unknown else "no field to release"
            raise ConfigError(Problem(what, path="fields", fix=did_you_mean(unknown[0] if unknown else "", schema.fields)))
        built = [cls(mechanism_config(self.registry, name, config), space_of(f, schema.fields[f], base)) for f in fields]
        for made in built:
            self._allow_table(made.space)
        claims = [made.guarantee() for made in built]
        if any(claim.delta > 0 for claim in claims):
            what = f"the mechanism {name!r} promises epsilon with a delta above 0"
            raise RefusedError(Problem(what, why="budgets here are of epsilon alone", fix="use a mechanism with delta 0"))
        allowed(self.policy, name, code, max(claim.epsilon for claim in claims))
        missing = [f for f, made, claim in zip(fields, built, claims, strict=True) if not self._card(made, claim, certified)]
        texts = [schema.fields[f].text for f in fields]
        identity = fingerprint([list(fields), [card_key(made) for made in built]])
        return Prepared(tuple(fields), built, claims, texts, identity, code, missing)

    def _allow_table(self, space: Space) -> None:
        """Raise RefusedError for a table of vectors or tokens that the site does not list."""
        if "*" in self.policy.tables or (space.vectors is None and not space.unknown):
            return
        digest = space_digest(space)
        if not any(allowed and digest.startswith(allowed) for allowed in self.policy.tables):
            what = f"this site does not allow the table of {space.name!r}"
            fix = "list it under 'tables' in the site's policy"
            raise RefusedError(Problem(what, why=f"its digest is {digest[:16]}", fix=fix))

    def _card(self, mechanism: Mechanism[Any], claim: Guarantee, make: bool) -> bool:
        """Whether there is a card (made now if `make`); raises RefusedError when it does not allow a release here."""
        key = card_key(mechanism)
        rows = self.ledger.query("SELECT body FROM cards WHERE key=?", (key,))
        if not rows and not make:
            return False
        card = Card.model_validate_json(rows[0][0]) if rows else certify(mechanism)
        if not rows:
            with self.ledger.transaction() as db:
                db.execute("INSERT OR REPLACE INTO cards VALUES (?,?)", (key, card.model_dump_json()))
        if card.declared != claim:
            why = f"certified as {card.declared}, now it says {claim}"
            raise RefusedError(Problem(f"the mechanism {card.mechanism!r} does not say the same twice", why=why))
        if set(card.cleartext) - set(self.policy.cleartext):
            what = f"the mechanism {card.mechanism!r} lets classes of input pass unchanged: {', '.join(card.cleartext)}"
            raise RefusedError(Problem(what, fix="list them under 'cleartext' in this site's policy"))
        if not card.holds and card.declared.mechanism_class == "certified":
            why = f"claimed epsilon {card.declared.epsilon:g}, computed {card.epsilon_true:.4g}"
            raise RefusedError(Problem(f"the mechanism {card.mechanism!r} does not hold what it claims", why=why))
        if card.declared.mechanism_class != "certified" and not self.policy.unproven:
            fix = "use a certified mechanism, or 'unproven: true' in this site's policy"
            what = f"the mechanism {card.mechanism!r} is {card.declared.mechanism_class}, not certified"
            raise RefusedError(Problem(what, fix=fix))
        return True

    def release(
        self, records: Records, prepared: Prepared, dataset: str, noise_seed: int | None
    ) -> tuple[Records, Records, str]:
        """(released, key, reference of the set): see `Context.release`. Everything is durable when this returns."""
        wanted = [self._identify(row, prepared, dataset, noise_seed) for row in records]
        found = self._stored(prepared.parameters)
        new = [(row, lookup, document) for row, (lookup, document) in zip(records, wanted, strict=True) if lookup not in found]
        drawn = self._draw(new, prepared, dataset, noise_seed)
        released, key = [], []
        with self.ledger.transaction() as db:
            if drawn:  # another process may have released some of them meanwhile: what was first stays
                found = self._stored(prepared.parameters)
            fresh = {k: v for k, v in drawn.items() if k not in found}
            self._store(db, fresh, prepared, dataset, "" if noise_seed is None else "seeded")
            for row, (lookup, _) in zip(records, wanted, strict=True):
                identity, payload = found.get(lookup) or drawn[lookup][:2]
                released.append(
                    {"id": identity, **{field: payload[field] for field in prepared.fields}}
                )  # in the order asked for
                key.append({"released": identity, "id": row["id"]})
            released.sort(key=lambda r: r["id"])
            result = Records(released)
            ref = self._register(db, result, prepared, dataset, [lookup for lookup, _ in wanted], noise_seed)
        return result, Records(sorted(key, key=lambda r: r["released"])), ref

    def blind(self, records: Records, fields: Sequence[str], dataset: str, noise_seed: int | None) -> tuple[Records, Records]:
        """Fresh random ids and order, values unchanged: nothing is protected, but ids do not cross."""
        blinded, key = [], []
        with self.ledger.transaction() as db:
            for row in records:
                lookup = self.ledger.secret_hash(["blind", dataset, row["id"], noise_seed])
                stored = db.execute("SELECT id FROM blinds WHERE lookup=?", (lookup,)).fetchone()
                identity = stored[0] if stored else _random_id(_entropy(noise_seed, "blind", dataset, row["id"]))
                if not stored:
                    db.execute("INSERT INTO blinds VALUES (?,?)", (lookup, identity))
                blinded.append({"id": identity, **{f: row[f] for f in fields}})
                key.append({"released": identity, "id": row["id"]})
        return Records(sorted(blinded, key=lambda r: r["id"])), Records(sorted(key, key=lambda r: r["released"]))

    def known_ids(self, ids: Sequence[str]) -> bool:
        """Whether every id is one of this party's random ids."""
        for identity in ids:
            sql = "SELECT 1 FROM releases WHERE id=? UNION SELECT 1 FROM blinds WHERE id=?"
            if not self.ledger.query(sql, (identity, identity)):
                return False
        return True

    def _identify(self, row: dict[str, Any], prepared: Prepared, dataset: str, noise_seed: int | None) -> tuple[str, str]:
        content = [[f, row[f]] for f in prepared.fields]
        lookup = self.ledger.secret_hash(["release", dataset, row["id"], content, prepared.parameters, noise_seed])
        return lookup, self.ledger.secret_hash(["document", dataset, row["id"]])

    def _stored(self, parameters: str) -> dict[str, tuple[str, dict[str, str]]]:
        rows = self.ledger.query("SELECT lookup, id, payload FROM releases WHERE parameters=?", (parameters,))
        return {lookup: (identity, json.loads(payload)) for lookup, identity, payload in rows}

    def _draw(
        self, new: list[tuple[dict[str, Any], str, str]], prepared: Prepared, dataset: str, noise_seed: int | None
    ) -> dict[str, tuple[str, dict[str, str], str, float, list[int]]]:
        """lookup -> (random id, payload, document, epsilon, symbols per field).

        One vectorised draw a field; seeded, one a document and field, so that its outcome depends on nothing else.
        """
        payloads: list[dict[str, str]] = [{} for _ in new]
        counts: list[list[int]] = [[] for _ in new]
        for field, mechanism, text in zip(prepared.fields, prepared.mechanisms, prepared.texts, strict=True):
            tokens = [tokenize(row[field]) if text else [row[field]] for row, _, _ in new]
            if noise_seed is None:
                sampled = _sample(mechanism, tokens, SystemEntropy())
            else:
                streams = [(dataset, row["id"], prepared.parameters, field) for row, _, _ in new]
                pairs = zip(tokens, streams, strict=True)
                sampled = [_sample(mechanism, [part], _entropy(noise_seed, *stream))[0] for part, stream in pairs]
            for payload, count, symbols in zip(payloads, counts, sampled, strict=True):
                payload[field] = join(symbols) if text else symbols[0]
                count.append(len(symbols))
        result = {}
        for (row, lookup, document), payload, count in zip(new, payloads, counts, strict=True):
            content = [row[field] for field in prepared.fields]
            entropy = _entropy(noise_seed, "id", dataset, row["id"], prepared.parameters, content)
            result[lookup] = (_random_id(entropy), payload, document, prepared.cost(count), count)
        return result

    def _store(self, db: Any, drawn: dict[str, Any], prepared: Prepared, dataset: str, void: str) -> None:
        """Charge and store what is new, under the caps (inside the transaction)."""
        check_cap(self.policy, dataset)
        cap = self.policy.budget.get(dataset) or self.policy.budget.get("*")
        for lookup, (identity, payload, document, epsilon, _) in drawn.items():
            sql = "SELECT COALESCE(SUM(epsilon), 0) FROM releases WHERE dataset=? AND document=?"
            spent = db.execute(sql, (dataset, document)).fetchone()[0]
            if cap is not None and spent + epsilon > cap.per_document + 1e-9:
                raise self._over(db, dataset, document, spent, epsilon, cap.per_document)
            values = (lookup, identity, dataset, document, canonical(payload).decode(), prepared.parameters, epsilon)
            db.execute("INSERT INTO releases VALUES (?,?,?,?,?,?,?)", values)
            body = {
                "time": now(), "dataset": dataset, "document": document, "release": lookup, "epsilon": epsilon,
                "id": identity, "payload": fingerprint(payload), "unit": "document", "class": prepared.mechanism_class,
                "mechanism": prepared.mechanisms[0].name, "parameters": prepared.parameters, "void": void,
            }  # fmt: skip
            self.ledger.append(db, "charges", body)

    def _over(self, db: Any, dataset: str, document: str, spent: float, epsilon: float, cap: float) -> BudgetError:
        sql = "SELECT parameters, epsilon FROM releases WHERE dataset=? AND document=?"
        earlier = [f"{e:g} by mechanism {p[:12]}" for p, e in db.execute(sql, (dataset, document)).fetchall()]
        what = f"the budget of {dataset!r} does not suffice: {spent:g} + {epsilon:g} > {cap:g} a document"
        why = f"spent before: {', '.join(earlier)}" if earlier else "nothing was spent before"
        return BudgetError(Problem(what, why=why, fix="lower epsilon or release fewer fields; the cap is in the site's policy"))

    def _register(
        self, db: Any, result: Records, prepared: Prepared, dataset: str, lookups: list[str], noise_seed: int | None
    ) -> str:
        """Remember the set that is about to be used, so that the membrane knows its bytes again; returns its reference."""
        digest = digest_of(result.kind, result.to_files())
        ref = fingerprint([prepared.parameters, digest])
        rows = {}
        for lookup in lookups:
            rows[lookup] = db.execute("SELECT epsilon FROM releases WHERE lookup=?", (lookup,)).fetchone()[0]
        pairs = list(zip(prepared.fields, prepared.texts, strict=True))
        counts = [[len(tokenize(row[field])) if text else 1 for field, text in pairs] for row in result]
        most = [max(column) for column in zip(*counts, strict=True)] or [0] * len(pairs)
        detail = prepared.detail(most, max((sum(row) for row in counts), default=0))
        void = "seeded" if noise_seed is not None else ""
        values = (ref, digest, dataset, prepared.parameters, prepared.mechanism_class, max(rows.values(), default=0.0))
        db.execute("INSERT OR REPLACE INTO release_sets VALUES (?,?,?,?,?,?,?,?,?)", (*values, detail, void, len(rows)))
        db.executemany("INSERT OR IGNORE INTO members VALUES (?,?)", [(ref, lookup) for lookup in rows])
        return ref


def split(mechanism: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """{name, **config} -> (name, config); raises ConfigError without a name."""
    if not isinstance(mechanism.get("name"), str):
        raise ConfigError(Problem("a mechanism needs a 'name'", path="mechanism", fix="see 'osmotic plugins'"))
    return mechanism["name"], {k: v for k, v in mechanism.items() if k != "name"}


def mechanism_config(registry: Registry, name: str, config: dict[str, Any]) -> Any:
    """The validated configuration of a mechanism."""
    model = config_type(registry.mechanism(name))
    try:
        return model.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(["mechanism", *map(str, first["loc"])])
        raise ConfigError(Problem(str(first["msg"]).removeprefix("Value error, "), path=path)) from error


def allowed(policy: SitePolicy, name: str, code: str, epsilon: float) -> None:
    """Raise RefusedError unless the site's policy allows the mechanism (by name or name@code) and its epsilon."""
    exact = [w.partition("@")[2] for w in policy.mechanisms if w.startswith(f"{name}@")]
    if not {"*", name} & set(policy.mechanisms) and not any(prefix and code.startswith(prefix) for prefix in exact):
        raise RefusedError(Problem(f"this site does not allow the mechanism {name!r}", why=f"allowed: {policy.mechanisms}"))
    if policy.max_epsilon is not None and epsilon > policy.max_epsilon:
        what = f"epsilon {epsilon:g} a token is more than this site allows ({policy.max_epsilon:g})"
        raise RefusedError(Problem(what, fix="lower epsilon"))


def check_cap(policy: SitePolicy, dataset: str) -> None:
    """Raise RefusedError when private data have no cap: what is released of them must end somewhere."""
    binding = policy.data.get(dataset)
    open_data = binding is not None and (binding.label == "public" or binding.purpose == "benchmark")
    if not open_data and dataset not in policy.budget and "*" not in policy.budget:
        fix = f"add 'budget: {{{dataset}: {{per_document: ...}}}}' to the site file"
        raise RefusedError(Problem(f"the private data set {dataset!r} has no budget", path=f"budget.{dataset}", fix=fix))


def _sample(mechanism: Mechanism[Any], tokens: list[list[str]], entropy: Entropy) -> list[list[str]]:
    """One outcome a token, in the same lists; drawn together."""
    import numpy as np

    flat = indices(mechanism.space, [token for part in tokens for token in part])
    out = mechanism.sample(flat, entropy) if len(flat) else np.empty(0, dtype=np.int64)
    ends = list(itertools.accumulate(len(part) for part in tokens))
    return [[mechanism.space.symbols[i] for i in out[end - len(part) : end]] for part, end in zip(tokens, ends, strict=True)]


def _entropy(noise_seed: int | None, *stream: Any) -> Entropy:
    """The operating system's, or a seeded stream of that name (JSON values)."""
    return SystemEntropy() if noise_seed is None else SeededEntropy(canonical([noise_seed, *stream]).decode())


def _random_id(entropy: Entropy) -> str:
    """32 hexadecimal digits."""
    return bytes(int(b) for b in entropy.integers(256, 16)).hex()

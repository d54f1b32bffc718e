# SPDX-License-Identifier: Apache-2.0
"""What a release costs, in which unit, and whether the caps allow it. Unlike units are never added into one number.

Units of a document: ``epsilon`` (certified, pure), ``distance TABLE NAME:CODE`` (metric: epsilon per unit of that mechanism's
distance in that table, summed over the document's tokens), ``partition CELLS`` (epsilon given the class pattern),
``nominal`` (heuristic: what was asked for; no guarantee), ``unbounded`` (heuristic without any epsilon: how many symbols or
documents; no cap allows it). What tells partitions and distances apart is for show: a cap holds for the sum over all units of
one kind (the first word) and all releases of a document, ever. Given the joint pattern of all partitions, their epsilons add.
"""

import hashlib
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from osmotic.plugins.certificate import code_digest, space_digest
from osmotic.plugins.contract import DocumentMechanism, Guarantee, Mechanism
from osmotic.schemas.errors import BudgetError, Problem, RefusedError
from osmotic.schemas.policy import Budget, SitePolicy

EPSILON, DISTANCE, PARTITION, NOMINAL, UNBOUNDED = "epsilon", "distance", "partition", "nominal", "unbounded"
WEAKEST_FIRST = ("heuristic", "partition", "metric", "dp-sgd", "gaussian", "laplace-histogram", "certified")
RECORD_CLASSES = ("dp-sgd", "gaussian", "laplace-histogram")
SLACK = 1e-9
Costs = dict[str, float]


def unit_of(claim: Guarantee, made: Mechanism[Any] | DocumentMechanism[Any]) -> str:
    """The unit that a claim is charged in; distances of unlike tables or mechanisms, and unlike partitions, are told apart."""
    if claim.mechanism_class == "certified":
        return EPSILON
    if claim.mechanism_class == "metric":
        return f"{DISTANCE} {_table(made)} {_named(made)}"
    if claim.mechanism_class == "partition":
        return f"{PARTITION} {_pattern(made)}"
    return NOMINAL if math.isfinite(claim.epsilon) else UNBOUNDED


def _table(made: Mechanism[Any] | DocumentMechanism[Any]) -> str:
    """12 hexadecimal digits of the space (a document mechanism's: the first that a slot has)."""
    spaces = [made.space] if isinstance(made, Mechanism) else [slot.space for slot in made.slots]
    return next((space_digest(space)[:12] for space in spaces if space is not None), "none")


def _named(made: Mechanism[Any] | DocumentMechanism[Any]) -> str:
    """The mechanism's name and 12 hexadecimal digits of its code."""
    return f"{made.name}:{code_digest(type(made))[:12]}"


def _pattern(made: Mechanism[Any] | DocumentMechanism[Any]) -> str:
    """12 hexadecimal digits of which symbol is in which cell; of the mechanism itself where it has no cells."""
    import numpy as np

    cells = made.cells() if isinstance(made, Mechanism) else None
    if cells is None:
        return f"{_table(made)} {_named(made)}"
    body = np.ascontiguousarray(cells, dtype="<i8").tobytes()
    return hashlib.sha256(_table(made).encode() + body).hexdigest()[:12]


def kind_of(unit: str) -> str:
    """What caps hold for: epsilon, distance, partition, nominal or unbounded; a unit less what tells it from its like."""
    return unit.partition(" ")[0]


def by_kind(costs: Mapping[str, float]) -> Costs:
    """Sums over all units of one kind: what partitions cost adds up, given the pattern of all of them together."""
    total: Costs = {}
    for unit, amount in costs.items():
        total[kind_of(unit)] = total.get(kind_of(unit), 0.0) + amount
    return total


def amount_of(unit: str, epsilon: float, count: int = 1) -> float:
    """What `count` draws at an epsilon cost in a unit."""
    return float(count) if unit == UNBOUNDED else count * epsilon


def class_of_unit(unit: str) -> str:
    """The class that a document's unit stands for."""
    found = {EPSILON: "certified", DISTANCE: "metric", PARTITION: "partition"}
    return found.get(kind_of(unit), "heuristic")


def weakest(classes: Iterable[str]) -> str:
    """The weakest of some classes; certified when there are none."""
    known = set(classes)
    return next((one for one in WEAKEST_FIRST if one in known), "certified" if not known else "heuristic")


def in_words(unit: str, amount: float) -> str:
    """An amount with its unit, for people."""
    words = {
        EPSILON: f"epsilon {amount:g} a document",
        DISTANCE: f"epsilon {amount:g} per unit of distance a document",
        PARTITION: f"epsilon {amount:g} a document given the class pattern",
        UNBOUNDED: f"{amount:g} draws a document without any epsilon",
    }
    return words.get(kind_of(unit), f"nominal {amount:g} a document, no guarantee")


def per(unit: str) -> str:
    """What an epsilon of a unit is of, for people: 'a document', 'per unit of distance'."""
    words = {EPSILON: "a document", DISTANCE: "per unit of distance", PARTITION: "a document given the class pattern"}
    return words.get(kind_of(unit), f"a {kind_of(unit)}")


def each_once(texts: Iterable[str]) -> list[str]:
    """Texts of parts, equal ones once: those of unlike tables or data sets read alike, and are never added."""
    counts = Counter(texts)
    return [text if n == 1 else f"{text} ({n} such, of unlike tables or data sets)" for text, n in counts.items()]


def added(rows: Iterable[Mapping[str, float]]) -> Costs:
    """Sums, unit by unit."""
    total: Costs = {}
    for row in rows:
        for unit, amount in row.items():
            total[unit] = total.get(unit, 0.0) + amount
    return total


def columns_of(costs: Mapping[str, float]) -> tuple[float, str]:
    """(epsilon, other units as JSON): how costs are stored."""
    if len(costs) == 1 and EPSILON in costs:
        return float(costs[EPSILON]), "{}"
    other = {unit: amount for unit, amount in sorted(costs.items()) if unit != EPSILON}
    return float(costs.get(EPSILON, 0.0)), json.dumps(other, separators=(",", ":"))


def costs_of(epsilon: float, other: str) -> Costs:
    """The inverse of `columns_of`."""
    pure = {EPSILON: epsilon} if epsilon else {}
    return {**pure, **json.loads(other)} if other != "{}" else pure


def spent_by(db: sqlite3.Connection, dataset: str, documents: Sequence[str] | None = None) -> dict[str, Costs]:
    """document -> what all its releases have cost, by unit. documents: only these, in two queries."""
    some = "" if documents is None else f" AND document IN ({','.join('?' * len(documents))})"
    values = (dataset, *(documents or ()))
    sql = f"SELECT document, SUM(epsilon) FROM releases WHERE dataset=?{some} GROUP BY document"
    found: dict[str, Costs] = {document: {EPSILON: total} for document, total in db.execute(sql, values) if total}
    sql = (
        "SELECT document, key, SUM(value) FROM releases, json_each(releases.other)"
        f" WHERE dataset=? AND other<>'{{}}'{some} GROUP BY document, key"
    )
    for document, unit, total in db.execute(sql, values):
        found.setdefault(document, {})[unit] = total
    return found


def budget_of(policy: SitePolicy, dataset: str) -> Budget | None:
    """The caps of a data set, its own or everybody's."""
    return policy.budget.get(dataset) or policy.budget.get("*")


def cap_of(policy: SitePolicy, dataset: str, unit: str) -> float | None:
    """The most that one document may ever cost in a unit; None: no cap."""
    budget = budget_of(policy, dataset)
    if budget is None:
        return None
    if unit == UNBOUNDED:
        return 0.0
    own = budget.per_distance if kind_of(unit) == DISTANCE else None
    return own if own is not None else budget.per_document


def check_cap(policy: SitePolicy, dataset: str) -> None:
    """Raise RefusedError when private data have no cap: what is released of them must end somewhere."""
    if is_open(policy, dataset):
        return
    budget = budget_of(policy, dataset)
    if budget is None or budget.per_document is None:
        fix = f"add 'budget: {{{dataset}: {{per_document: ...}}}}' to the site file"
        raise RefusedError(Problem(f"the private data set {dataset!r} has no budget", path=f"budget.{dataset}", fix=fix))


def is_open(policy: SitePolicy, dataset: str) -> bool:
    """Whether a data set needs no cap: public, or published for benchmarks."""
    binding = policy.data.get(dataset)
    return binding is not None and (binding.label == "public" or binding.purpose == "benchmark")


def check_costs(db: sqlite3.Connection, policy: SitePolicy, dataset: str, asked: Mapping[str, Sequence[Costs]]) -> None:
    """Raise BudgetError when what is asked for, document -> costs, would pass the cap of a kind; names what was spent."""
    if budget_of(policy, dataset) is None:
        return
    spent: dict[str, Costs] | None = None
    for document, several in asked.items():
        for kind, amount in by_kind(added(several)).items():
            cap = cap_of(policy, dataset, kind)
            if cap is None:
                continue
            if spent is None:
                spent = {}
                names = list(asked)
                for start in range(0, len(names), 500):
                    spent |= spent_by(db, dataset, names[start : start + 500])
            before = by_kind(spent.get(document, {})).get(kind, 0.0)
            if before + amount > cap + SLACK:
                raise over(db, dataset, document, kind, before, amount, cap)


def over(
    db: sqlite3.Connection, dataset: str, document: str, kind: str, spent: float, amount: float, cap: float
) -> BudgetError:
    """The refusal, naming which tasks and mechanisms spent what before."""
    sql = "SELECT task, parameters, epsilon, other FROM releases WHERE dataset=? AND document=?"
    earlier = [
        f"{costs[kind]:g} by {task or 'mechanism ' + parameters[:12]}"
        for task, parameters, epsilon, other in db.execute(sql, (dataset, document)).fetchall()
        if kind in (costs := by_kind(costs_of(epsilon, other)))
    ]
    words = "" if kind == EPSILON else f" ({in_words(kind, amount)})"
    what = f"the budget of {dataset!r} does not suffice: {spent:g} + {amount:g} > {cap:g} a document{words}"
    why = f"spent before: {', '.join(earlier)}" if earlier else "nothing was spent before"
    return BudgetError(Problem(what, why=why, fix="lower epsilon or release fewer fields; the cap is in the site's policy"))


def body_costs(body: Mapping[str, Any]) -> Costs:
    """What a charge says that its release cost, whichever format wrote it."""
    if "other" in body:
        return {**({EPSILON: body["epsilon"]} if body["epsilon"] else {}), **body["other"]}
    return {EPSILON if body["class"] == "certified" else NOMINAL: body["epsilon"]}

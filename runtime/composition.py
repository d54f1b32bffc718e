# SPDX-License-Identifier: Apache-2.0
"""Record-level events (histograms, trainings) of a data set: stored, charged before anything is returned, and composed.

An event is {kind, parameters, neighbours}: laplace {epsilon} (pure), gaussian {sigma, changes} (discrete noise on `changes`
counts that one record moves by 1) or {noise_multiplier}, dp-sgd {noise_multiplier, sampling_probability, steps} (Poisson
sampling). A noise multiplier is of add-or-remove-one: when a record is replaced, the same training loses more. Composition is
by privacy loss distributions of dp-accounting, its pessimistic estimate: an upper bound. A pure event counts as the worst
mechanism of its epsilon. Events under different neighbouring relations are never composed into one number.
The cap, (epsilon, delta), holds over all events of a data set, ever. Void when: the data set is known under two names.
"""

import functools
import json
import math
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from osmotic.runtime.charging import SLACK, budget_of, is_open
from osmotic.runtime.ledger import Ledger, now
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import BudgetError, ConfigError, Problem, RefusedError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import RecordBudget, SitePolicy

Event = Mapping[str, Any]
CLASSES = {"laplace": "laplace-histogram", "gaussian": "gaussian", "dp-sgd": "dp-sgd"}
REPLACE_ONE, ADD_OR_REMOVE_ONE = "replace-one", "add-or-remove-one"
NOT_COMPUTED = "not computed: pip install 'osmotic[dp]'"
LEAST_MULTIPLIER = 0.1  # of an event; with less, the accountant's memory grows beyond any machine's
USUAL_DELTA = 1e-5  # where nothing says at which delta to report
CLIENTS = "clients"  # what stands in a data set's place for sums over clients


def compose(events: Iterable[Event], delta: float) -> dict[str, float]:
    """Neighbouring relation -> epsilon of all its events together, at delta; infinite where delta is 0 and noise Gaussian."""
    groups: dict[str, Counter[str]] = {}
    for event in events:
        _check_relation(event)
        key = canonical({"kind": event["kind"], "parameters": event["parameters"]}).decode()
        groups.setdefault(event["neighbours"], Counter())[key] += 1
    return {relation: _together(counts, delta) for relation, counts in sorted(groups.items())}


def _check_relation(event: Event) -> None:
    """Raise ConfigError for a noise multiplier of another relation than the accountant computes with."""
    if "noise_multiplier" in event["parameters"] and event["neighbours"] != ADD_OR_REMOVE_ONE:
        what = f"a {event['kind']} event with a noise multiplier cannot be of {event['neighbours']!r}"
        why = "it is computed for neighbours that differ by one record more or less; a replaced record moves a sum twice as far"
        raise ConfigError(Problem(what, path="neighbours", why=why, fix=f"neighbours: {ADD_OR_REMOVE_ONE}"))


def _together(counts: Counter[str], delta: float) -> float:
    events = [(json.loads(text), count) for text, count in sorted(counts.items())]
    if delta == 0:
        pure = all(event["kind"] == "laplace" for event, _ in events)
        return sum(event["parameters"]["epsilon"] * count for event, count in events) if pure else math.inf
    total: Any = None
    for text, count in sorted(counts.items()):
        one = _distribution(text)
        one = one if count == 1 else one.self_compose(count)
        total = one if total is None else total.compose(one)
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


@functools.lru_cache(maxsize=64)
def _distribution(text: str) -> Any:
    """The privacy loss distribution of one event (canonical JSON), pessimistic."""
    pld, common = _accounting()
    event = json.loads(text)
    kind, given = event["kind"], event["parameters"]
    if given.get("noise_multiplier", LEAST_MULTIPLIER) < LEAST_MULTIPLIER:
        what = f"a noise multiplier of {given['noise_multiplier']:g} is not accounted for: at least {LEAST_MULTIPLIER:g}"
        why = "its epsilon is above 90, and its distribution takes gigabytes"
        raise ConfigError(Problem(what, path="noise_multiplier", why=why, fix="more noise"))
    try:
        if kind == "laplace":
            return pld.from_privacy_parameters(common.DifferentialPrivacyParameters(given["epsilon"], 0.0))
        if kind == "gaussian" and "sigma" in given:
            return pld.from_discrete_gaussian_mechanism(given["sigma"], 1).self_compose(given["changes"])
        if kind == "gaussian":
            return pld.from_gaussian_mechanism(given["noise_multiplier"])
        if kind == "dp-sgd":
            made = pld.from_gaussian_mechanism(given["noise_multiplier"], sampling_prob=given["sampling_probability"])
            return made.self_compose(given["steps"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(Problem(f"not the parameters of a {kind} event", why=str(error)[:200])) from error
    raise ConfigError(Problem(f"unknown kind of event {kind!r}", fix=f"one of {', '.join(CLASSES)}"))


def _accounting() -> tuple[Any, Any]:
    """dp-accounting's modules; raises ConfigError when the package is not there."""
    try:
        from dp_accounting.pld import common, privacy_loss_distribution  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        fix = "pip install 'osmotic[dp]'"
        raise ConfigError(
            Problem("composing (epsilon, delta) needs the package dp-accounting", why=str(error), fix=fix)
        ) from error
    return privacy_loss_distribution, common


@dataclass
class RecordEvents:
    """The events of one party's ledger, under its policy."""

    ledger: Ledger
    policy: SitePolicy
    unit: ClassVar[str] = "record"

    def limit(self, dataset: str) -> RecordBudget | None:
        """The cap that the policy gives, None without one."""
        budget = budget_of(self.policy, dataset)
        return budget.per_record if budget else None

    def stored(self, lookup: str) -> str | None:
        """The payload of an event that was charged before; None when there is none."""
        rows = self.ledger.query("SELECT payload FROM events WHERE lookup=?", (lookup,))
        return str(rows[0][0]) if rows else None

    def cap(self, dataset: str) -> RecordBudget | None:
        """The cap of a data set; raises RefusedError when private data have none."""
        cap = self.limit(dataset)
        if cap is None and not is_open(self.policy, dataset):
            path = f"budget.{dataset}.per_record"
            fix = f"add 'budget: {{{dataset}: {{per_record: {{epsilon: ..., delta: ...}}}}}}' to the site file"
            raise RefusedError(
                Problem(f"the private data set {dataset!r} has no budget of (epsilon, delta)", path=path, fix=fix)
            )
        return cap

    def charge(
        self, db: sqlite3.Connection, lookup: str, dataset: str, event: Event, payload: str, *, task: str, void: str = ""
    ) -> None:
        """Charge an event under the cap and store it with its payload (inside the caller's write transaction).

        Charge before anything that depends on the data is given back. Raises BudgetError naming what was spent by which tasks.
        """
        if event["kind"] not in CLASSES:
            raise ConfigError(Problem(f"unknown kind of event {event['kind']!r}", fix=f"one of {', '.join(CLASSES)}"))
        _check_relation(event)
        self.check(db, dataset, event)
        text, kind = canonical(dict(event)).decode(), CLASSES[event["kind"]]
        db.execute("INSERT INTO events VALUES (?,?,?,?,?,?,?)", (lookup, dataset, kind, text, payload, task, void))
        body = {
            "time": now(), "dataset": dataset, "release": lookup, "event": dict(event), "unit": self.unit, "class": kind,
            "payload": fingerprint(payload), "void": void, "task": task,
        }  # fmt: skip
        self.ledger.append(db, "charges", body)

    def check(self, db: sqlite3.Connection, dataset: str, event: Event) -> None:
        """Raise BudgetError when the composition with one more event would pass the cap."""
        cap = self.cap(dataset)
        if cap is None:
            return
        rows = db.execute("SELECT event, task FROM events WHERE dataset=?", (dataset,)).fetchall()
        before = [json.loads(text) for text, _ in rows]
        after = compose([*before, event], cap.delta)
        worst = max(after, key=lambda relation: after[relation])
        if after[worst] > cap.epsilon + SLACK:
            earlier = ", ".join(f"{told(old)} by {task or 'a task'}" for old, (_, task) in zip(before, rows, strict=True))
            spent = compose(before, cap.delta).get(worst, 0.0)
            what = (
                f"the budget of {dataset!r} does not suffice: with {told(event)}, epsilon would go from {spent:.4g} to "
                f"{after[worst]:.4g} > {cap.epsilon:g} a {self.unit} at delta {cap.delta:g} ({worst})"
            )
            why = f"spent before: {earlier}" if earlier else "nothing was spent before"
            raise BudgetError(Problem(what, why=why, fix=f"more noise; the cap is 'per_{self.unit}' in the site's policy"))

    def events(self, dataset: str) -> list[Event]:
        """All events of a data set."""
        return [json.loads(text) for (text,) in self.ledger.query("SELECT event FROM events WHERE dataset=?", (dataset,))]

    def total(self, dataset: str, events: Iterable[Event]) -> dict[str, Any] | None:
        """{epsilon, delta, neighbours, events} of some events of a data set, worst relation; None without events.

        At the cap's delta, else at the usual one; epsilon is None where the accountant is not installed.
        """
        found = list(events)
        if not found:
            return None
        cap = self.limit(dataset)
        pure = all(event["kind"] == "laplace" for event in found)
        delta = cap.delta if cap else (0.0 if pure else USUAL_DELTA)
        try:
            by_relation = compose(found, delta)
        except ConfigError:
            return {"epsilon": None, "delta": delta, "neighbours": "", "events": len(found)}
        worst = max(by_relation, key=lambda relation: by_relation[relation])
        return {"epsilon": by_relation[worst], "delta": delta, "neighbours": worst, "events": len(found)}


class ClientEvents(RecordEvents):
    """Sums over clients (`CLIENTS` stands for their data set): neighbours differ in one client's update, there or not."""

    unit = "client"

    def limit(self, dataset: str) -> RecordBudget | None:
        """The cap a client; a data set of that name would be another thing."""
        budget = budget_of(self.policy, dataset)
        return budget.per_client if budget else None

    def cap(self, dataset: str) -> RecordBudget:
        """The cap a client; raises RefusedError when there is none, or when a data set has the clients' name."""
        if dataset in self.policy.data:
            what = f"{dataset!r} is a data set here, and would share its account with sums over clients"
            raise RefusedError(Problem(what, path=f"data.{dataset}", fix="bind the data set under another name"))
        cap = self.limit(dataset)
        if cap is None:
            fix = f"add 'budget: {{{dataset}: {{per_client: {{epsilon: ..., delta: ...}}}}}}' to the site file of this party"
            what = "sums of clients' updates have no budget of (epsilon, delta) here"
            raise RefusedError(Problem(what, path=f"budget.{dataset}.per_client", fix=fix))
        return cap


def events_under(ledger: Ledger, policy: SitePolicy, name: str) -> RecordEvents:
    """The events of a data set, or those over clients."""
    budget = policy.budget.get(name)
    over_clients = name == CLIENTS and name not in policy.data and not (budget and budget.per_record)
    return (ClientEvents if over_clients else RecordEvents)(ledger, policy)


def size_of(total: Mapping[str, Any]) -> str:
    """An (epsilon, delta) in words; an epsilon that was not computed is said, never 0."""
    known = f"epsilon {total['epsilon']:.4g}" if total["epsilon"] is not None else f"epsilon {NOT_COMPUTED}"
    return f"{known}, delta {total['delta']:g}"


def told(event: Event) -> str:
    """An event in words."""
    given = ", ".join(f"{key} {value:g}" for key, value in event["parameters"].items())
    return f"{event['kind']} ({given})"

# SPDX-License-Identifier: Apache-2.0
"""Record-level events (histograms, trainings) of a data set: stored, charged before anything is returned, and composed.

What an event is, and how several compose, is in `osmotic.plugins.accounting`. The cap,
(epsilon, delta), holds over all events of a data set, ever. Void when: the data set is known under two names.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from osmotic.plugins.accounting import CLASSES, Event, check_relation, compose
from osmotic.runtime.privacy.charging import SLACK, budget_of, is_open
from osmotic.runtime.privacy.releases import Made
from osmotic.runtime.storage.ledger import Ledger, now
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import BudgetError, ConfigError, Problem, RefusedError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import RecordBudget, SitePolicy

NOT_COMPUTED = "not computed: pip install 'osmotic[dp]'"
USUAL_DELTA = 1e-5  # where nothing says at which delta to report
CLIENTS = "clients"  # what stands in a data set's place for sums over clients
SHARES = "client of "  # before a data set's name: its account of the secure sums that this party is one client of


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
        check_relation(event)
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
            more = "more noise" if cap.delta else "more noise, or a cap with a delta (none allows Gaussian noise)"
            raise BudgetError(Problem(what, why=why, fix=f"{more}; the cap is 'per_{self.unit}' in the site's policy"))

    def events(self, dataset: str) -> list[Event]:
        """All events of a data set."""
        return [json.loads(text) for (text,) in self.ledger.query("SELECT event FROM events WHERE dataset=?", (dataset,))]

    def total(self, dataset: str, events: Iterable[Event]) -> dict[str, Any] | None:
        """{epsilon, delta, neighbours, events} of some events of a data set, worst relation; None without events.

        At the cap's delta, else at the largest that they were asked for at, else at the usual one; epsilon is None where the
        accountant is not installed.
        """
        found = list(events)
        if not found:
            return None
        cap = self.limit(dataset)
        pure = all(event["kind"] == "laplace" for event in found)
        asked = max((float(event["delta"]) for event in found if event.get("delta")), default=USUAL_DELTA)
        delta = cap.delta if cap else (0.0 if pure else asked)
        try:
            by_relation = compose(found, delta)
        except ConfigError:
            return {"epsilon": None, "delta": delta, "neighbours": "", "events": len(found)}
        worst = max(by_relation, key=lambda relation: by_relation[relation])
        return {"epsilon": by_relation[worst], "delta": delta, "neighbours": worst, "events": len(found)}


def register(
    db: sqlite3.Connection, what: str, lookup: str, digest: str, dataset: str, kind: str, detail: str, void: str
) -> Made:  # fmt: skip
    """Register the artifact of that digest as the release that a charged event (`lookup`) paid for.

    what: histogram, votes, training; kind: of the event. detail: in words; equal for releases that are to be told once.
    """
    parameters = fingerprint([what, lookup])
    made = Made(fingerprint([parameters, digest]), digest)
    values = (made.ref, digest, dataset, parameters, CLASSES[kind], 0.0, detail, void, 1, "{}")
    db.execute("INSERT OR REPLACE INTO release_sets VALUES (?,?,?,?,?,?,?,?,?,?)", values)
    db.execute("INSERT OR IGNORE INTO members VALUES (?,?)", (made.ref, lookup))
    return made


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


class ShareEvents(ClientEvents):
    """Secure sums that updates from a data set go into (`SHARES`, its name): neighbours differ in this party, there or not."""

    def limit(self, dataset: str) -> RecordBudget | None:
        """The cap a client of the data set's own budget."""
        return super().limit(dataset.removeprefix(SHARES))

    def cap(self, dataset: str) -> RecordBudget | None:  # type: ignore[override]
        """The cap a client; raises RefusedError when private data have none."""
        name = dataset.removeprefix(SHARES)
        if dataset in self.policy.data:
            what = f"{dataset!r} is a data set here, and would share its account with secure sums of {name!r}"
            raise RefusedError(Problem(what, path=f"data.{dataset}", fix="bind the data set under another name"))
        cap = self.limit(dataset)
        if cap is None and not is_open(self.policy, name):
            fix = f"add 'budget: {{{name}: {{per_client: {{epsilon: ..., delta: ...}}}}}}' to the site file of this party"
            what = f"the private data set {name!r} has no budget of (epsilon, delta) a client, which a secure sum is charged to"
            raise RefusedError(Problem(what, path=f"budget.{name}.per_client", fix=fix))
        return cap


def events_under(ledger: Ledger, policy: SitePolicy, name: str) -> RecordEvents:
    """The events of a data set, those over clients, or those of a data set's party as one client."""
    if name.startswith(SHARES) and name not in policy.data:
        return ShareEvents(ledger, policy)
    budget = policy.budget.get(name)
    over_clients = name == CLIENTS and name not in policy.data and not (budget and budget.per_record)
    return (ClientEvents if over_clients else RecordEvents)(ledger, policy)


def size_of(total: Mapping[str, Any]) -> str:
    """An (epsilon, delta) in words; an epsilon that was not computed is said, never 0."""
    known = f"epsilon {total['epsilon']:.4g}" if total["epsilon"] is not None else f"epsilon {NOT_COMPUTED}"
    return f"{known}, delta {total['delta']:g}"


def told(event: Event) -> str:
    """An event in words."""
    given = event["parameters"]
    if event["kind"] == "dp-sgd":
        q, steps, z = given["sampling_probability"], given["steps"], given["noise_multiplier"]
        return f"DP-SGD (Poisson sampling {q:.4g}, {steps} steps, noise {z:.4g})"
    return f"{event['kind']} ({', '.join(f'{key} {value:g}' for key, value in given.items())})"

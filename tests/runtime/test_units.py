# SPDX-License-Identifier: Apache-2.0
"""Classes and units in the ledger: unlike units are capped apart, never added; older ledgers; several processes and kills."""

import importlib.util
import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from osmotic.plugins.contract import Config, DocumentMechanism, Drawn, Entropy, Guarantee, Mechanism, Records
from osmotic.plugins.host import Registered, Registry
from osmotic.runtime.party.site import Site
from osmotic.runtime.privacy import preparing
from osmotic.runtime.privacy.accounts import account, summary
from osmotic.runtime.privacy.charging import kind_of
from osmotic.runtime.privacy.releases import Made, Releaser
from osmotic.runtime.results.summary import words
from osmotic.runtime.results.verifying import _charge_problems, _set_problems, verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.errors import BudgetError, ComponentError, ConfigError, RefusedError, StoreError
from osmotic.schemas.labels import released
from osmotic.schemas.policy import Budget, DataBinding, SitePolicy
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={"colour": FieldSpec(domain=("red", "green", "blue", "white"))})
ROWS = Records([{"id": f"r{i}", "colour": "red"} for i in range(6)])
RR = {"name": "list-rr", "epsilon": 2, "k": 1}


class ClaimConfig(Config):
    """A class, as claimed."""

    claim: str = "metric"
    epsilon: float = 3.0


class Claims(Mechanism[ClaimConfig]):
    """Uniform noise, of whatever class."""

    name = "claims"

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), self.space.size), -np.log(self.space.size))

    def guarantee(self) -> Guarantee:
        unit: Any = "distance" if self.config.claim == "metric" else "token"
        return Guarantee(mechanism_class=self.config.claim, epsilon=self.config.epsilon, unit=unit)  # type: ignore[arg-type]

    def cells(self) -> np.ndarray | None:
        return np.zeros(self.space.size, dtype=np.int64)

    def distances(self, rows: np.ndarray) -> np.ndarray | None:
        return (rows[:, None] != np.arange(self.space.size)[None]).astype(np.float64)


class Cached(Claims):
    """Randomised response whose sharpness comes from elsewhere, as a cache would give it."""

    name = "cached"
    sharpness: ClassVar[float] = 1.0

    def derived(self) -> str:
        return self.sharpness.hex()

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        scores = self.sharpness * (rows[:, None] == np.arange(self.space.size)[None])
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


class Halves(Claims):
    """The same law and class as the other, with another partition."""

    name = "halves"

    def cells(self) -> np.ndarray | None:
        return np.arange(self.space.size) // 2


class Whole(DocumentMechanism[ClaimConfig]):
    """A document mechanism that spends half of what it claims, or twice."""

    name = "whole"

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="heuristic", epsilon=self.config.epsilon, unit="document")

    def parts(self) -> list[Mechanism[Any]]:
        return []

    def sample(self, documents: Any, entropy: Entropy) -> list[Drawn]:
        share = 2.0 if self.config.claim == "partition" else 0.5
        return [Drawn(tuple("x" for _ in texts), share * self.config.epsilon, (1,)) for texts in documents]


@pytest.fixture
def registry(toys: Registry) -> Registry:
    more = {cls.name: Registered(cls, "tests", "0") for cls in (Claims, Cached, Halves, Whole)}
    return Registry(toys.components, {**toys.mechanisms, **more}, toys.models, toys.tables)


@pytest.fixture
def site(tmp_path: Path, registry: Registry) -> Any:
    policy = SitePolicy(budget={"*": Budget(per_document=8, per_distance=4)}, unproven=True)
    made = Site("north", tmp_path / "north", policy, tmp_path, registry)
    yield made
    made.ledger.close()


def give(site: Site, mechanism: dict[str, Any]) -> Made:
    prepared = site.releaser.prepare(mechanism, ["colour"], SCHEMA, Path(), certified=True)
    return site.releaser.release(ROWS, prepared, "d", None, task="run: safe@north")[2]


def told(site: Site, *made: Made) -> str:
    """The guarantee of a run over which these crossed."""
    for i, one in enumerate(made):
        site.ledger.cross(
            edge=f"e{i}", name="e", sender="north", receiver="hub", direction="out", kind="records", digest=one.digest, size=1,
            label=released("north", one.ref),
        )  # fmt: skip
    found = account(site, [f"e{i}" for i in range(len(made))])
    return words([found])


def test_the_weakest_class_names_the_run_and_unlike_units_stay_apart(site: Site) -> None:
    rr, metric = give(site, RR), give(site, {"name": "claims", "claim": "metric"})
    partition, heuristic = (
        give(site, {"name": "claims", "claim": "partition"}),
        give(site, {"name": "claims", "claim": "heuristic"}),
    )
    assert told(site, rr) == "epsilon 2 a document (1 fields x 2), certified"
    both = told(site, rr, metric)
    assert both.startswith("metric, epsilon 3 per unit of distance a document (") and "beside it epsilon 2 a document" in both
    assert told(site, rr, metric, partition).startswith("partition: epsilon 3 a document given the class pattern (")
    assert told(site, rr, metric, partition, heuristic) == "heuristic: no guarantee"
    assert site.ledger.query("SELECT MAX(t) FROM (SELECT SUM(epsilon) t FROM releases GROUP BY document)") == [(2.0,)]
    assert _charge_problems(site.ledger) == [] == _set_problems(site.ledger)


def test_a_cap_holds_for_each_kind_of_unit_by_itself(site: Site) -> None:
    give(site, RR)
    give(site, {"name": "claims", "claim": "metric"})
    give(site, {"name": "claims", "claim": "partition", "epsilon": 7.0})  # 2 + 7 > 8, but unlike
    with pytest.raises(BudgetError, match="3 \\+ 2 > 4 a document \\(epsilon 2 per unit of distance") as refused:
        give(site, {"name": "claims", "claim": "metric", "epsilon": 2.0})
    assert "3 by run: safe@north" in str(refused.value)
    with pytest.raises(BudgetError, match="given the class pattern"):
        give(site, {"name": "claims", "claim": "partition", "epsilon": 1.5})
    give(site, {**RR, "epsilon": 6})


def test_unlike_partitions_and_distances_are_told_apart_under_one_cap(site: Site) -> None:
    for mechanism in ("claims", "halves"):
        for claim, epsilon in (("partition", 3.0), ("metric", 2.0)):
            give(site, {"name": mechanism, "claim": claim, "epsilon": epsilon})
    units = {unit for (other,) in site.ledger.query("SELECT other FROM releases") for unit in json.loads(other)}
    kinds = sorted(unit.split(" ")[0] for unit in units)
    assert kinds == ["distance", "distance", "partition", "partition"]
    tables = {unit.split(" ")[1] for unit in units if unit.startswith("distance")}
    assert len(tables) == 1 and {unit.split(" ")[2].split(":")[0] for unit in units if " claims" in unit} == {"claims"}
    with pytest.raises(BudgetError, match=r"6 \+ 2\.5 > 8 a document .*given the class pattern"):
        give(site, {"name": "claims", "claim": "partition", "epsilon": 2.5})
    with pytest.raises(BudgetError, match=r"4 \+ 0\.5 > 4"):
        give(site, {"name": "claims", "claim": "metric", "epsilon": 0.5})
    found = {unit["unit"]: unit for unit in summary(site)["datasets"][0]["units"]}
    assert (found["partition"]["largest"], found["partition"]["cap"], len(found["partition"]["of"])) == (6.0, 8.0, 2)
    assert found["distance"]["largest"] == 4.0 and "(in 2 units)" in found["partition"]["text"]
    assert _charge_problems(site.ledger) == []


def test_several_fields_of_unlike_partitions_share_a_cap(site: Site) -> None:
    """Three fields of 20 are 60 of 24, however the fields' partitions differ."""
    fields = {name: FieldSpec(domain=tuple(f"{name}{i}" for i in range(4))) for name in ("a", "b", "c")}
    schema, records = RecordSchema(fields=fields), Records([{"id": "r", "a": "a0", "b": "b0", "c": "c0"}])
    site.releaser.policy = SitePolicy(budget={"*": Budget(per_document=24)}, unproven=True)
    heavy = {"name": "claims", "claim": "partition", "epsilon": 20.0}
    prepared = site.releaser.prepare(heavy, ["a", "b", "c"], schema, Path(), certified=True)
    assert len(set(prepared.units)) == 3 and prepared.cost([1, 1, 1]) == 60.0
    with pytest.raises(BudgetError, match="0 \\+ 60 > 24"):
        site.releaser.release(records, prepared, "d", None)
    one = site.releaser.prepare(heavy, ["a"], schema, Path(), certified=True)
    site.releaser.release(records, one, "d", None)
    two = site.releaser.prepare({**heavy, "epsilon": 5.0}, ["b"], schema, Path(), certified=True)
    with pytest.raises(BudgetError, match="20 \\+ 5 > 24"):
        site.releaser.release(records, two, "d", None)


def test_partitions_of_a_run_are_one_number(site: Site) -> None:
    site.releaser.policy = SitePolicy(budget={"*": Budget(per_document=100, per_distance=100)}, unproven=True)
    made = [
        give(site, {"name": name, "claim": "partition", "epsilon": epsilon})
        for name, epsilon in (("claims", 1.0), ("halves", 20.0), ("halves", 7.0))
    ]
    assert told(site, *made).startswith("partition: epsilon 28 a document given the class pattern (")
    metric = [give(site, {"name": name, "claim": "metric"}) for name in ("claims", "halves")]
    once = "epsilon 3 per unit of distance a document (2 such, of unlike tables or data sets)"  # not added, and said once
    assert told(site, *metric).startswith(f"metric, {once}")
    assert told(site, *made, *metric).count(once) == 1


def test_what_an_older_ledger_charged_still_counts(site: Site) -> None:
    """Before units named mechanism and partition: 3 of 8 given the pattern, 3 of 4 per unit of distance."""
    first = {"name": "claims", "claim": "partition"}, {"name": "claims", "claim": "metric"}
    for mechanism in first:
        give(site, mechanism)
    rows = site.ledger.query("SELECT lookup, other FROM releases")
    for lookup, other in rows:
        older = {kind_of(unit): amount for unit, amount in json.loads(other).items()}
        site.ledger.db.execute("UPDATE releases SET other=? WHERE lookup=?", (json.dumps(older), lookup))
    with pytest.raises(BudgetError, match="3 \\+ 6 > 8"):
        give(site, {"name": "halves", "claim": "partition", "epsilon": 6.0})
    with pytest.raises(BudgetError, match="3 \\+ 2 > 4") as refused:
        give(site, {"name": "halves", "claim": "metric", "epsilon": 2.0})
    assert "3 by run: safe@north" in str(refused.value)


def test_a_cached_number_is_certified_before_it_is_drawn_with(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = {"name": "cached", "claim": "certified", "epsilon": 3.0}
    give(site, cached)
    assert json.loads(site.ledger.query("SELECT body FROM cards")[0][0])["derived"] == (1.0).hex()
    monkeypatch.setattr(Cached, "sharpness", 20.0)  # the claim is 3
    assert site.releaser.prepare(cached, ["colour"], SCHEMA, Path(), certified=False).missing == []  # a plan draws nothing
    with pytest.raises(RefusedError, match="does not hold what it claims"):
        give(site, cached)
    monkeypatch.setattr(Cached, "sharpness", 1.5)
    give(site, cached)
    assert json.loads(site.ledger.query("SELECT body FROM cards")[0][0])["derived"] == (1.5).hex()


def test_a_document_mechanism_is_charged_what_it_spent_within_its_claim(site: Site) -> None:
    give(site, {"name": "whole", "epsilon": 4.0})
    assert set(site.ledger.query("SELECT epsilon, class, other FROM releases")) == {(0.0, "heuristic", '{"nominal":2.0}')}
    with pytest.raises(ComponentError, match="spent more than it claims"):
        give(site, {"name": "whole", "claim": "partition", "epsilon": 4.0})
    assert site.ledger.query("SELECT COUNT(*) FROM charges") == [(6,)]


def test_a_card_of_another_version_is_made_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    real = preparing.certify
    monkeypatch.setattr(preparing, "certify", lambda mechanism, **how: made.append(mechanism.name) or real(mechanism, **how))
    give(site, RR)
    body = json.loads(site.ledger.query("SELECT body FROM cards")[0][0])
    site.ledger.db.execute("UPDATE cards SET body=?", (json.dumps({**body, "version": 1}),))
    site.releaser.preparer._valid.clear()
    assert site.releaser.prepare(RR, ["colour"], SCHEMA, Path(), certified=False).missing == ["colour"]
    give(site, RR)
    assert made == ["list-rr", "list-rr"] and site.ledger.query("SELECT COUNT(*) FROM cards") == [(1,)]


# ---- older and odd files ----


def to_format_1(folder: Path) -> None:
    """Make a ledger what the first format was: without the columns and tables that came later."""
    db = sqlite3.connect(folder / "ledger.sqlite")
    db.executescript("DROP INDEX releases_parameters; DROP TABLE events; UPDATE meta SET value='1' WHERE name='version'")
    for column in ("class", "other", "symbols", "task"):
        db.execute(f"ALTER TABLE releases DROP COLUMN {column}")
    db.execute("ALTER TABLE release_sets DROP COLUMN other")
    db.commit()
    db.close()


def test_a_ledger_of_format_1_is_brought_up_to_date_and_keeps_its_releases(tmp_path: Path, toys: Registry) -> None:
    ledger = Ledger(tmp_path)
    releaser = Releaser(ledger, toys, SitePolicy(budget={"*": Budget(per_document=100)}))
    prepared = releaser.prepare(RR, ["colour"], SCHEMA, Path(), certified=True)
    first = releaser.release(ROWS, prepared, "d", None)[0]
    ledger.close()
    to_format_1(tmp_path)
    again = Ledger(tmp_path)
    assert again.query("SELECT value FROM vault.meta WHERE name='version'") == [("2",)]
    assert again.query("SELECT DISTINCT class, other, symbols FROM releases") == [("certified", "{}", "[]")]
    releaser = Releaser(again, toys, SitePolicy(budget={"*": Budget(per_document=100)}))
    assert releaser.release(ROWS, prepared, "d", None)[0].rows == first.rows
    assert again.query("SELECT COUNT(*) FROM charges") == [(6,)] and again.chain_problems() == []
    again.close()


def test_what_format_1_charged_to_an_uncertified_mechanism_keeps_every_digit(tmp_path: Path, registry: Registry) -> None:
    """3 x 1.1 = 3.3000000000000003 has 17 digits; the chain has them, so a ledger brought up to date must have them too."""
    amount, home = 3 * 1.1, tmp_path / "parties" / "north"
    policy = SitePolicy(budget={"*": Budget(per_document=100)}, unproven=True)
    ledger = Ledger(home)
    releaser = Releaser(ledger, registry, policy)
    mechanism = {"name": "claims", "claim": "heuristic", "epsilon": amount}
    releaser.release(ROWS, releaser.prepare(mechanism, ["colour"], SCHEMA, Path(), certified=True), "d", None)
    bodies = [json.loads(body) for (body,) in ledger.query("SELECT body FROM charges ORDER BY seq")]
    with ledger.transaction() as db:  # as format 1 wrote charges
        db.execute("DELETE FROM charges")
        kept = [{k: v for k, v in b.items() if k not in ("other", "symbols", "task")} for b in bodies]
        ledger.append(db, "charges", *[{**body, "epsilon": amount} for body in kept])
        for table in ("releases", "release_sets"):
            db.execute(f"UPDATE {table} SET epsilon=?", (amount,))
    ledger.close()
    to_format_1(home)
    again = Ledger(home)
    assert again.query("SELECT DISTINCT epsilon, other FROM releases") == [
        (0.0, json.dumps({"nominal": amount}, separators=(",", ":")))
    ]
    again.close()
    assert verify(tmp_path)["problems"] == []


def test_two_names_of_one_private_file_are_refused_before_anything_is_opened(tmp_path: Path, toys: Registry) -> None:
    (tmp_path / "a.jsonl").write_text("{}\n")
    (tmp_path / "linked.jsonl").symlink_to("a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "a.jsonl")

    def open_with(*bindings: dict[str, Any]) -> None:
        data = {f"d{i}": DataBinding.model_validate({"schema": SCHEMA, **one}) for i, one in enumerate(bindings)}
        Site("north", tmp_path / "north", SitePolicy(data=data), tmp_path, toys).ledger.close()

    first = {"path": "a.jsonl", "rows": [0, 5]}
    for path, rows in [
        ("a.jsonl", None),
        ("./linked.jsonl", [4, 9]),
        ("hard.jsonl", [0, 1]),
        (str(tmp_path / "a.jsonl"), [3, 4]),
    ]:
        with pytest.raises(ConfigError, match="'d1' and 'd0' share records") as refused:
            open_with(first, {"path": path, "rows": rows})
        assert refused.value.problems[0].path == "north.data.d1"
    assert not (tmp_path / "north").exists()
    for path in ("gone.jsonl", "osmotic:clinic/data/north.jsonl"):
        with pytest.raises(ConfigError, match="share records"):
            open_with({"path": path}, {"path": path})
    for other in ({"rows": [5, 9]}, {"purpose": "benchmark"}, {"label": "public"}):
        open_with(first, {"path": "a.jsonl", **other})
    open_with({"path": "???"}, {"path": "???"})


def test_a_ledger_that_another_process_writes_is_waited_for_then_named(tmp_path: Path, toys: Registry) -> None:
    ledger = Ledger(tmp_path)
    ledger.db.execute("PRAGMA busy_timeout=50")
    releaser = Releaser(ledger, toys, SitePolicy(budget={"*": Budget(per_document=100)}))
    prepared = releaser.prepare(RR, ["colour"], SCHEMA, Path(), certified=True)
    other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="in use by another run"):
        releaser.release(ROWS, prepared, "d", None)
    other.execute("ROLLBACK")
    other.close()
    assert ledger.query("SELECT COUNT(*) FROM releases") == [(0,)]
    releaser.release(ROWS, prepared, "d", None)
    ledger.close()


SPEND = """
import sys
from pathlib import Path
from osmotic.plugins.contract import Records
from osmotic.plugins.host import build_registry
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.privacy.releases import Releaser
from osmotic.schemas.errors import BudgetError
from osmotic.schemas.policy import Budget, SitePolicy
from osmotic.schemas.records import FieldSpec, RecordSchema

ledger = Ledger(Path(sys.argv[1]))
releaser = Releaser(ledger, build_registry(names=()), SitePolicy(budget={"*": Budget(per_document=8)}))
schema = RecordSchema(fields={"colour": FieldSpec(domain=("red", "green", "blue"))})
mechanism = {"name": "list-rr", "k": 1, "epsilon": float(sys.argv[2])}
prepared = releaser.prepare(mechanism, ["colour"], schema, Path(), certified=True)
print("ready", flush=True)
sys.stdin.readline()
try:
    releaser.release(Records([{"id": f"r{i}", "colour": "red"} for i in range(2500)]), prepared, "d", None)
    print("released")
except BudgetError:
    print("refused")
"""  # one of several processes at once


def test_two_processes_at_once_do_not_overspend(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    commands = [[sys.executable, "-c", SPEND, str(tmp_path), epsilon] for epsilon in ("5", "6")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for command in commands]
    ready = [process.stdout.readline().strip() for process in processes]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=100) for process in processes]
    assert ready == ["ready", "ready"], told
    ledger = Ledger(tmp_path)
    assert sorted(out.strip() for out, _ in told) in (["refused", "released"], ["refused", "refused"])
    most = ledger.query("SELECT MAX(t) FROM (SELECT SUM(epsilon) t FROM releases GROUP BY document)")[0][0]
    assert most <= 8 and _charge_problems(ledger) == [] and ledger.chain_problems() == []
    ledger.close()


@pytest.mark.whole
def test_kills_lose_nothing_and_charge_nothing_twice(tmp_path: Path) -> None:
    """Five kills of a run over 300 records; benchmarks/kill.py does a hundred over ten thousand."""
    file = Path(__file__).parents[2] / "benchmarks" / "kill.py"
    spec = importlib.util.spec_from_file_location("kill", file)
    if spec is None or spec.loader is None:
        pytest.skip("no benchmarks folder here")
    kill = importlib.util.module_from_spec(spec)
    sys.modules["kill"] = kill
    spec.loader.exec_module(kill)
    outcome = kill.torture(tmp_path, 5, 300, seed=1)
    assert outcome.problems == [] and outcome.kills == 5

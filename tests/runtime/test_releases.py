# SPDX-License-Identifier: Apache-2.0
"""Releases: charged once, kept for good, capped a document, drawn by the operating system."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from osmotic.plugins.host import Registry
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse
from osmotic.runtime.privacy.releases import Releaser
from osmotic.runtime.results.verifying import _charge_problems
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.artifacts import Records, canonical
from osmotic.schemas.errors import BudgetError, ConfigError, RefusedError, StoreError
from osmotic.schemas.policy import Budget, SitePolicy
from osmotic.schemas.records import FieldSpec, RecordSchema

COLOURS = ("red", "green", "blue", "white")
SCHEMA = RecordSchema(fields={"colour": FieldSpec(domain=COLOURS), "size": FieldSpec(domain=("s", "m", "l"))})
RR = {"name": "list-rr", "epsilon": 2, "k": 1}


def rows(count: int, colour: str = "red") -> Records:
    return Records([{"id": f"r{i}", "colour": colour, "size": "s"} for i in range(count)])


class Home:
    """A ledger and a releaser."""

    def __init__(self, folder: Path, registry: Registry, cap: float | None = None, **policy: Any) -> None:
        budget = {"*": Budget(per_document=cap or 1000)}
        self.ledger = Ledger(folder)
        self.releaser = Releaser(self.ledger, registry, SitePolicy(budget=budget, **policy))

    def __del__(self) -> None:
        self.ledger.close()

    def release(
        self, records: Records, mechanism: dict[str, Any] = RR, fields: tuple[str, ...] = ("colour", "size"),
        schema: RecordSchema = SCHEMA, base: Path = Path(), seed: int | None = None, dataset: str = "d",
    ) -> tuple[Records, Records]:  # fmt: skip
        prepared = self.releaser.prepare(mechanism, fields, schema, base, certified=True)
        released, key, _ = self.releaser.release(records, prepared, dataset, seed)
        return released, key

    def spent(self) -> dict[str, float]:
        return dict(self.ledger.query("SELECT document, SUM(epsilon) FROM releases GROUP BY document"))

    def charges(self) -> int:
        return int(self.ledger.query("SELECT COUNT(*) FROM charges")[0][0])


@pytest.fixture
def home(tmp_path: Path, toys: Registry) -> Home:
    return Home(tmp_path / "home", toys)


def test_the_same_document_costs_once_ever(home: Home, tmp_path: Path, toys: Registry) -> None:
    fields = ("size", "colour")
    first, key = home.release(rows(20), fields=fields)
    again, _ = home.release(rows(20), fields=fields)
    home.ledger.close()
    reopened = Home(tmp_path / "home", toys)
    third, _ = reopened.release(rows(20), fields=fields)
    assert first.rows == again.rows == third.rows
    assert first.to_files() == again.to_files() == third.to_files()  # the bytes too: the columns keep their order
    assert reopened.charges() == 20 and set(reopened.spent().values()) == {4.0}
    assert {row["id"] for row in key} == {f"r{i}" for i in range(20)}
    more, _ = reopened.release(rows(25), fields=fields)
    assert reopened.charges() == 25 and {r["id"] for r in first} < {r["id"] for r in more}
    reopened.ledger.close()


def test_edited_content_another_mechanism_or_data_set_is_a_new_release(home: Home) -> None:
    home.release(rows(3))
    home.release(rows(3, "blue"))
    assert set(home.spent().values()) == {8.0}
    home.release(rows(3), {**RR, "epsilon": 1})
    assert set(home.spent().values()) == {10.0}
    home.release(rows(3), fields=("colour",))
    assert set(home.spent().values()) == {12.0}
    home.release(rows(3), dataset="other")
    assert sorted(home.spent().values()) == [4.0] * 3 + [12.0] * 3
    assert home.charges() == 15 and _charge_problems(home.ledger) == [] and home.ledger.chain_problems() == []


def test_ids_are_fresh_and_say_nothing_about_the_order(tmp_path: Path, toys: Registry) -> None:
    orders = []
    for name in "ab":
        home = Home(tmp_path / name, toys)
        released, key = home.release(rows(50))
        ids = [row["id"] for row in released]
        assert ids == sorted(ids) and all(len(i) == 32 and int(i, 16) >= 0 for i in ids)
        back = {row["released"]: row["id"] for row in key}
        orders.append([back[i] for i in ids])
        home.ledger.close()
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])


def test_noise_without_a_seed_differs_between_homes_and_fits_its_probabilities(tmp_path: Path, toys: Registry) -> None:
    """Binomial, n = 3000, p = e^2 / (e^2 + 3) = 0.711: 5 standard deviations are 0.041; a false alarm below 1e-6."""
    n, found = 3000, []
    for name in "ab":
        home = Home(tmp_path / name, toys)
        released, key = home.release(rows(n), fields=("colour",))
        back = {row["released"]: row["id"] for row in key}
        found.append({back[row["id"]]: row["colour"] for row in released})
        home.ledger.close()
    assert found[0] != found[1]
    p = math.exp(2) / (math.exp(2) + 3)
    both = sum(found[0][i] == found[1][i] for i in found[0]) / n
    for one in found:
        assert abs(sum(v == "red" for v in one.values()) / n - p) < 5 * math.sqrt(p * (1 - p) / n)
    agree = p * p + 3 * ((1 - p) / 3) ** 2  # independent draws
    assert abs(both - agree) < 5 * math.sqrt(agree * (1 - agree) / n)


def test_seeded_noise_is_equal_void_and_never_mixed_with_unseeded(tmp_path: Path, toys: Registry) -> None:
    tables = []
    for name in "ab":
        home = Home(tmp_path / name, toys)
        tables.append(home.release(rows(30), seed=7)[0].rows)
        assert home.ledger.query("SELECT DISTINCT void FROM release_sets") == [("seeded",)]
        plain = home.release(rows(30))[0]
        assert {r["id"] for r in plain}.isdisjoint(r["id"] for r in tables[-1])
        home.ledger.close()
    assert tables[0] == tables[1]


# ---- caps ----


def test_the_cap_holds_over_several_releases(tmp_path: Path, toys: Registry) -> None:
    home = Home(tmp_path, toys, cap=9)
    home.release(rows(2))
    home.release(rows(2, "blue"))
    before = home.ledger.head("charges")
    with pytest.raises(BudgetError, match="8 \\+ 4 > 9"):
        home.release(rows(2, "white"))
    assert home.ledger.head("charges") == before and set(home.spent().values()) == {8.0}
    home.release(rows(2))  # what is there costs nothing
    home.release(rows(2), {**RR, "epsilon": 1}, fields=("colour",))
    assert set(home.spent().values()) == {9.0}
    home.ledger.close()


def test_one_document_over_the_cap_stops_the_whole_release(tmp_path: Path, toys: Registry) -> None:
    home = Home(tmp_path, toys, cap=4)
    home.release(Records(rows(9).rows[8:]))
    with pytest.raises(BudgetError):
        home.release(rows(9, "blue"))
    assert home.charges() == 1
    home.ledger.close()


def test_two_connections_at_once_do_not_overspend(tmp_path: Path, toys: Registry) -> None:
    Home(tmp_path, toys, cap=8).ledger.close()
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def spend(colour: str) -> None:
        home = Home(tmp_path, toys, cap=8)
        try:
            start.wait()
            home.release(rows(10, colour))
        except BudgetError as error:
            errors.append(error)
        finally:
            home.ledger.close()

    threads = [threading.Thread(target=spend, args=(colour,)) for colour in COLOURS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    home = Home(tmp_path, toys)
    assert len(errors) == 2 and set(home.spent().values()) == {8.0} and home.charges() == 20
    assert _charge_problems(home.ledger) == [] and home.ledger.chain_problems() == []
    home.ledger.close()


def test_two_connections_that_release_the_same_agree_on_one_outcome(tmp_path: Path, toys: Registry) -> None:
    one, two = Home(tmp_path, toys), Home(tmp_path, toys)
    original, late = one.releaser._draw, []

    def draw(*arguments: Any) -> Any:
        drawn = original(*arguments)
        late.append(two.release(rows(8))[0].rows)  # the other one is faster
        return drawn

    one.releaser._draw = draw  # type: ignore[method-assign]
    assert one.release(rows(8))[0].rows == late[0]
    assert one.charges() == 8
    one.ledger.close()
    two.ledger.close()


# ---- all or nothing ----


@pytest.mark.parametrize("stage", ["_store", "_register"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_nothing_is_durable_when_the_transaction_fails(
    home: Home, monkeypatch: pytest.MonkeyPatch, stage: str, error: type[BaseException]
) -> None:
    original = getattr(home.releaser, stage)

    def fail(*arguments: Any) -> None:
        original(*arguments)
        raise error

    monkeypatch.setattr(home.releaser, stage, fail)
    with pytest.raises(error):
        home.release(rows(5))
    for table in ("releases", "charges", "release_sets", "members"):
        assert home.ledger.query(f"SELECT COUNT(*) FROM {table}") == [(0,)]
    monkeypatch.undo()
    home.release(rows(5))
    assert home.charges() == 5


def test_a_full_disk_releases_nothing(home: Home) -> None:
    home.release(rows(1), fields=("size",))
    pages = home.ledger.query("PRAGMA vault.page_count")[0][0]
    home.ledger.db.execute(f"PRAGMA vault.max_page_count={pages}")
    with pytest.raises(StoreError, match="disk is full"):
        home.release(rows(500))
    assert home.charges() == 1


def test_a_kill_after_the_charge_never_takes_it_back(home: Home, tmp_path: Path, toys: Registry) -> None:
    released, _ = home.release(rows(4))
    del home  # no close, no goodbye: what was committed stays
    again = Home(tmp_path / "home", toys)
    assert again.charges() == 4 and again.release(rows(4))[0].rows == released.rows and again.charges() == 4
    again.ledger.close()


@pytest.mark.parametrize(
    "sql",
    [
        'UPDATE releases SET payload=\'{"colour":"red","size":"s"}\'',
        "UPDATE releases SET epsilon=0.1",
        "DELETE FROM releases WHERE rowid=1",
        "DELETE FROM charges WHERE seq=1",
    ],
)
def test_a_changed_release_is_found(home: Home, sql: str) -> None:
    home.release(rows(40, "blue"))
    assert _charge_problems(home.ledger) == []
    home.ledger.db.execute(sql)
    assert _charge_problems(home.ledger)


# ---- mechanisms and policy ----


@pytest.mark.parametrize(
    ("name", "what"),
    [("toy-dishonest", "does not hold"), ("toy-fickle", "the same twice|does not hold"), ("toy-heuristic", "not certified")],
)
def test_a_mechanism_that_lies_is_refused(home: Home, name: str, what: str) -> None:
    with pytest.raises(RefusedError, match=what):
        home.release(rows(2), {"name": name})
    assert home.charges() == 0


def test_the_policy_of_the_site_decides(tmp_path: Path, toys: Registry) -> None:
    for i, (policy, what) in enumerate(
        [
            ({"max_epsilon": 1.5}, "epsilon 2"),
            ({"mechanisms": ("exponential",)}, "does not allow the mechanism"),
            ({"mechanisms": ("list-rr@0000",)}, "does not allow the mechanism"),
            ({"mechanisms": ("list-rr@",)}, "does not allow the mechanism"),
        ]
    ):
        home = Home(tmp_path / str(i), toys, **policy)
        with pytest.raises(RefusedError, match=what):
            home.release(rows(1))
        home.ledger.close()
    with pytest.raises(ConfigError, match="no field 'shape'"):
        Home(tmp_path / "f", toys).release(rows(1), fields=("shape",))


# ---- text ----


@pytest.fixture
def notes(tmp_path: Path) -> RecordSchema:
    words = ["the", "patient", "has", "a", "rash", "fever", "cough", "."]
    save_file({"words": np.eye(8, 5, dtype=np.float32) + 0.1}, tmp_path / "table.safetensors")
    (tmp_path / "table.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return RecordSchema(fields={"note": FieldSpec(text=True, table="table.safetensors#words")})


def test_text_is_sampled_token_by_token_and_nothing_else_comes_out(tmp_path: Path, toys: Registry, notes: RecordSchema) -> None:
    home = Home(tmp_path / "home", toys)
    texts = ["The patient has a rash.", "ACCT-7731-KESTREL 😀 漢字 McALLISTER's", "", "fever " * 30]
    records = Records([{"id": str(i), "note": text} for i, text in enumerate(texts)])
    mechanism = {"name": "list-rr", "epsilon": 1, "k": 2}
    released, key = home.release(records, mechanism, ("note",), notes, tmp_path)
    known = {"the", "patient", "has", "a", "rash", "fever", "cough", "."}
    assert {token for row in released for token in row["note"].split()} <= known
    by_id = {row["id"]: row["note"] for row in released}
    lengths = {row["id"]: len(by_id[row["released"]].split()) for row in key}
    assert (lengths["0"], lengths["2"], lengths["3"]) == (6, 0, 30) and lengths["1"] > 8
    epsilons = sorted(row[0] for row in home.ledger.query("SELECT epsilon FROM releases"))
    assert epsilons == sorted(float(n) for n in lengths.values())
    detail = home.ledger.query("SELECT detail FROM release_sets")[0][0]
    assert "30 tokens x 1" in detail
    home.ledger.close()


def test_a_table_that_the_site_does_not_list_is_refused(tmp_path: Path, toys: Registry, notes: RecordSchema) -> None:
    from osmotic.plugins.certificate import space_digest
    from osmotic.plugins.spaces import space_of

    digest = space_digest(space_of("note", notes.fields["note"], tmp_path))
    records, mechanism = Records([{"id": "1", "note": "a rash"}]), {"name": "list-rr", "epsilon": 1, "k": 2}
    refusing = Home(tmp_path / "a", toys, tables=("abcdef",))
    with pytest.raises(RefusedError, match="does not allow the table"):
        refusing.release(records, mechanism, ("note",), notes, tmp_path)
    refusing.ledger.close()
    granting = Home(tmp_path / "b", toys, tables=(digest[:12],))
    granting.release(records, mechanism, ("note",), notes, tmp_path)
    assert json.loads(granting.ledger.query("SELECT payload FROM releases")[0][0])["note"]
    granting.ledger.close()


def test_blinding_gives_the_same_random_ids_again(home: Home) -> None:
    one, key = home.releaser.blind(rows(5), ["colour"], "d", None)
    two, _ = home.releaser.blind(rows(5), ["colour"], "d", None)
    assert one.rows == two.rows and one.columns == ["id", "colour"]
    assert home.releaser.known_ids([row["id"] for row in one]) and not home.releaser.known_ids(["r1"])
    assert {row["id"] for row in key} == {f"r{i}" for i in range(5)}


# ---- seeds ----


def test_seeded_outcomes_depend_on_the_document_and_the_mechanism_alone(tmp_path: Path, toys: Registry) -> None:
    def by_id(home: Home, records: Records, **more: Any) -> dict[str, tuple[str, str, str]]:
        released, key = home.release(records, seed=7, **more)
        found = released.by_id()
        return {k["id"]: tuple(found[k["released"]].values()) for k in key}  # type: ignore[misc]

    one, two = Home(tmp_path / "a", toys), Home(tmp_path / "b", toys)
    grid = [{**RR, "epsilon": e} for e in (0.5, 1, 2)]
    first = [by_id(one, rows(30), mechanism=m) for m in grid]  # several mechanisms on one data set: no id twice
    assert len({row[0] for table in first for row in table.values()}) == 90
    by_id(two, Records(rows(30).rows[25:]), mechanism=grid[2])  # another history, another order, another batch
    assert by_id(two, Records(rows(30).rows[::-1]), mechanism=grid[2]) == first[2]
    assert by_id(two, rows(30), mechanism=grid[0]) == first[0]
    other = by_id(two, rows(30), mechanism=grid[0], dataset="other")
    assert {row[0] for row in other.values()}.isdisjoint({row[0] for row in first[0].values()})
    edited = by_id(two, rows(30, "blue"), mechanism=grid[0])
    assert {row[0] for row in edited.values()}.isdisjoint({row[0] for row in first[0].values()})
    assert len({row[1] for row in first[0].values()}) > 1  # equal values, noise of their own
    one.ledger.close()
    two.ledger.close()


def test_seeded_blinding_differs_between_data_sets(home: Home) -> None:
    one, _ = home.releaser.blind(rows(5), ["colour"], "d", 7)
    two, _ = home.releaser.blind(rows(5), ["colour"], "other", 7)
    assert {row["id"] for row in one}.isdisjoint({row["id"] for row in two})
    assert home.releaser.blind(rows(5), ["colour"], "d", 7)[0].rows == one.rows


# ---- what is promised ----


def test_a_delta_is_refused(home: Home, toys: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = toys.mechanism("list-rr")
    honest = cls.guarantee
    monkeypatch.setattr(cls, "guarantee", lambda self: honest(self).model_copy(update={"delta": 1e-9}))
    with pytest.raises(RefusedError, match="delta above 0"):
        home.release(rows(1))
    assert home.charges() == 0


def test_the_length_of_texts_is_named(tmp_path: Path, toys: Registry, notes: RecordSchema) -> None:
    home = Home(tmp_path / "home", toys)
    home.release(
        Records([{"id": "1", "note": "a rash"}]), {"name": "list-rr", "epsilon": 1, "k": 2}, ("note",), notes, tmp_path
    )
    home.release(rows(1))
    details = {detail for (detail,) in home.ledger.query("SELECT detail FROM release_sets")}
    assert details == {"at most 2 tokens x 1, for texts of equal released length", "2 fields x 2"}
    home.ledger.close()


def test_what_is_written_is_canonical_json_of_what_it_says(tmp_path: Path, toys: Registry) -> None:
    home = Home(tmp_path / 'a "quoted"\u2028 home', toys)
    records = Records([{"id": 'r"1\n\u00e9', "colour": "red", "size": "s"}, {"id": "r2", "colour": "blue", "size": "m"}])
    home.release(records, dataset='d\\"\u00e9')
    home.release(records, {"name": "list-rr", "epsilon": 0.1, "k": 1}, fields=("size",), dataset='d\\"\u00e9')
    for body, hash_ in home.ledger.query("SELECT body, hash FROM charges"):
        entry = json.loads(body)
        assert canonical(entry).decode() == body and len(hash_) == 64
        assert set(entry) == {
            "time", "dataset", "document", "release", "epsilon", "other", "id", "symbols", "payload", "unit", "class",
            "mechanism", "parameters", "void", "task",
        }  # fmt: skip
    assert home.ledger.chain_problems() == _charge_problems(home.ledger) == []
    parameters = home.ledger.query("SELECT parameters FROM releases WHERE epsilon>1")[0][0]
    for row in records:
        content = [["colour", row["colour"]], ["size", row["size"]]]
        lookup = home.ledger.secret_hash(["release", 'd\\"\u00e9', row["id"], content, parameters, None])
        document = home.ledger.secret_hash(["document", 'd\\"\u00e9', row["id"]])
        assert home.ledger.query("SELECT document FROM releases WHERE lookup=?", (lookup,)) == [(document,)]


def test_other_attempts_and_seeds_have_their_own_key(home: Home) -> None:
    prepared = home.releaser.prepare(RR, ("colour",), SCHEMA, Path(), certified=True)
    for attempt, seed in ((1, None), (2, None), (1, 7), (3, 7)):
        pair = home.releaser._identify(rows(1), prepared, "d", seed, attempt)[0]
        parts = ["release", "d", "r0", [["colour", "red"]], prepared.parameters, seed]
        assert pair[0] == home.ledger.secret_hash(parts if attempt == 1 else [*parts, attempt])


def test_more_documents_than_a_chunk_are_found_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("osmotic.runtime.privacy.releases.CHUNK", 7)
    first, _ = home.release(rows(30))
    again, _ = home.release(rows(40))
    assert home.charges() == 40 and {r["id"] for r in first} < {r["id"] for r in again}


def test_lists_are_completed_at_sites_of_several_threads_alone(
    tmp_path: Path, toys: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(ListRandomisedResponse, "complete_lists", lambda self: asked.append(self.space.name))
    mixed = {"name": "mixture", "epsilon": 2, "inner": RR, "t_max": 0.5}
    Home(tmp_path / "one", toys).release(rows(2), mixed)
    seeded = Home(tmp_path / "seeded", toys, threads=2)
    seeded.release(rows(2), seed=1)
    assert asked == []
    Home(tmp_path / "two", toys, threads=2).release(rows(2), mixed)
    assert asked == ["colour", "size"]

# SPDX-License-Identifier: Apache-2.0
"""Secure sums: who is told what is wrong, who pays when one cannot, a receiver that comes back, keys before any run."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.cli import application
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.secure import bundle
from osmotic.schemas.errors import BudgetError, ComponentError, ConfigError, DataError, StoreError
from osmotic.schemas.labels import raw

sys.path.insert(0, str(Path(__file__).parent / "toy_plugin"))
from osmotic_hand import CAP, NOISY, PARTIES, Hand, charged, code, hand_of, pipeline

EXACT = {"range": 0.5, "at_least": 3}


@pytest.fixture
def shop(shop: Any) -> Any:
    """Five parties with a budget a client."""
    shop.records = {party: shop.records["north"][: 3 + i] for i, party in enumerate(PARTIES)}
    shop.defaults = CAP
    return shop


def write(shop: Any, tasks: dict[str, Any], **caps: float) -> Path:
    """Pipeline and policies; caps: epsilon a client of single parties."""
    file = shop.write(tasks, parties={"server": "hub", "clients": PARTIES})
    sites = json.loads((shop.folder / "shop.sites.yaml").read_text())
    for party, cap in caps.items():
        sites["parties"][party]["budget"] = {"*": {"per_document": 1000, "per_client": {"epsilon": cap, "delta": 1e-5}}}
    (shop.folder / "shop.sites.yaml").write_text(json.dumps(sites))
    return file


@pytest.fixture
def opened(shop: Any, toys: Registry) -> "Iterator[Hand]":
    with hand_of(api.prepare(write(shop, pipeline(NOISY)), home=shop.home, registry=toys)) as hand:
        yield hand


def exact(shop: Any, most: float, **total: Any) -> Path:
    shop.binding, shop.defaults = {"purpose": "benchmark"}, {"waivers": [{"edge": "mean.total", "observers": ["hub"]}]}
    return write(shop, pipeline({**EXACT, "range": most}, waive="a test of exact sums", **total))


def test_numbers_beyond_the_range_are_told_with_the_place_of_the_range(shop: Any, toys: Registry) -> None:
    with pytest.raises(ComponentError) as caught:
        api.run(exact(shop, 0.001), home=shop.home, registry=toys)
    text = str(caught.value)
    assert "0 of 5 parties gave their masked vectors" in text and "north" in text
    assert "beyond the range of 0.001" in text and "a larger 'range'" in text
    assert "tasks.mean.inputs.total.secure_sum.range" in text and "shop.yaml:" in text


def test_a_client_beyond_the_range_is_lost_like_any_other(shop: Any, toys: Registry) -> None:
    """Scale .01: the largest of the 230 numbers is somebody's; the range lies below it and above everybody else's."""
    made = importlib.import_module("osmotic_sums")
    largest = {
        p: max(float(abs(t).max()) for t in made.pulled(p, 3 + i, 40, 0.01, made.start(40)).values())
        for i, p in enumerate(PARTIES)
    }
    first, second = sorted(largest, key=lambda party: -largest[party])[:2]
    between = (largest[first] + largest[second]) / 2
    found = api.run(exact(shop, between, quorum={"at_least": 4}), home=shop.home, registry=toys)
    (one,) = found["sums"]
    assert one["used"] == [party for party in PARTIES if party != first] and "beyond the range" in one["lost"][first]
    assert verify(shop.home)["problems"] == []


def test_where_one_cannot_pay_nobody_does(shop: Any, toys: Registry) -> None:
    api.run(write(shop, pipeline(NOISY)), home=shop.home, registry=toys)
    assert set(charged(shop.home).values()) == {1}
    shop.records["north"] = shop.records["north"][:2]  # another vector: another sum
    with pytest.raises(BudgetError, match="the budget of 'client of items' does not suffice"):
        api.run(write(shop, pipeline(NOISY), west=2.5), home=shop.home, registry=toys)
    assert set(charged(shop.home).values()) == {1}
    found = api.run(write(shop, pipeline(NOISY), west=5), home=shop.home, registry=toys)
    assert found["sums"][0]["used"] == PARTIES and set(charged(shop.home).values()) == {2}


def test_a_budget_spent_while_a_sum_is_made_costs_the_others_one_sum_only(shop: Any, toys: Registry, monkeypatch: Any) -> None:
    """Keys were given when there was room; then another run took it. What is tried again is the same session."""
    from osmotic.runtime.secure import serving

    original, short = serving.charge, True

    def charge(site: Any, *rest: Any) -> Any:
        if site.party == "west" and short:
            raise BudgetError()
        return original(site, *rest)

    monkeypatch.setattr(serving, "charge", charge)
    for _ in range(3):
        with pytest.raises(BudgetError):
            api.run(write(shop, pipeline(NOISY)), home=shop.home, registry=toys)
    assert charged(shop.home) == {party: int(party != "west") for party in PARTIES}
    short = False
    api.run(write(shop, pipeline(NOISY)), home=shop.home, registry=toys)
    assert set(charged(shop.home).values()) == {1}


def test_a_receiver_that_is_new_after_the_sum_was_made_takes_it_up(opened: Hand) -> None:
    """A site's process that ended between the sum and the task that takes it hears again what was said before."""
    opened.upto("confirm")
    opened.receive("survivors")
    words = {party: opened.sum(party, "confirm", survivors=PARTIES)[1] for party in PARTIES}
    every = bundle.unpack(opened.receive("confirm", bundle.pack(words))[1])
    answers = {party: opened.sum(party, "unmask", bundle.pack(every))[1] for party in PARTIES}
    opened.receive("unmask", bundle.pack(answers))
    assert opened.receive("finish")[0]["survivors"] == PARTIES
    hub = opened.transport.services["hub"]
    site, hub.sums = hub.site, None
    site.received.clear()
    for stage in ("open", "keys", "shares", "masked", "survivors", "confirm", "unmask", "finish"):
        assert "error" not in opened.receive(stage, sender="north", outline={})[0]
    assert not list((site.ledger.vault / "secure").glob("*.receiver"))
    assert "error" not in opened.transport.request("hub", {"op": "run", "id": "mean@hub"})[0]
    opened.session = "09" * 32
    assert code(opened.receive("keys", bundle.pack({}))) == "protocol"


def test_each_data_set_of_a_vector_is_charged_and_what_was_released_before_stays(opened: Hand) -> None:
    site = opened.ready.sites["north"]
    ref = site.results["update@north"]["update"]
    site.results["update@north"]["update"] = type(ref)(ref.kind, ref.digest, ref.label | raw("north", "items two"))
    site.policy.data["items two"] = site.policy.data["items"]
    boxes = opened.upto("masked")
    reply, _ = opened.sum("north", "masked", boxes["north"])
    assert [one["source"] for one in reply["label"]] == ["release", "release"]
    assert len({one["ref"] for one in reply["label"]}) == 2
    bodies = [json.loads(body) for (body,) in site.ledger.query("SELECT body FROM charges")]
    assert sorted(body["dataset"] for body in bodies) == ["client of items", "client of items two"]
    site.policy.data["client of items"] = site.policy.data["items"]
    opened.session = "08" * 32
    assert code(opened.sum("north", "keys")) == "policy"


def test_a_client_lost_after_its_masked_vector_has_paid_and_the_run_says_so(opened: Hand) -> None:
    boxes = opened.upto("masked")
    for party in PARTIES[:4]:
        reply, masked = opened.sum(party, "masked", boxes[party])
        opened.receive("masked", masked, sender=party, label=reply["label"])
    assert "error" not in opened.sum("west", "masked", boxes["west"])[0]  # masked, and lost on the way
    assert opened.receive("survivors")[0]["survivors"] == PARTIES[:4]
    assert "error" not in opened.sum("north", "confirm", survivors=PARTIES[:4])[0]
    assert code(opened.sum("west", "confirm", survivors=PARTIES[:4])) == "policy"
    ledger = opened.ready.sites["west"].ledger
    assert ledger.query("SELECT COUNT(*) FROM charges")[0][0] == 1


IMPOSSIBLE = [
    (5, {"clip": 1, "at_least": 3, "epsilon": 1000, "delta": 1e-5, "rounds": 1}, "is not accounted for: at least 0.1"),
    (80, {"clip": 1, "at_least": 3, "noise_multiplier": 0.1}, "too little room for noise of 0.1 x clip"),
]


@pytest.mark.parametrize(("count", "secure", "said"), IMPOSSIBLE)
def test_noise_that_cannot_be_had_is_told_with_the_plan(
    shop: Any, toys: Registry, count: int, secure: dict[str, Any], said: str
) -> None:
    parties = [f"p{i}" for i in range(count)]
    shop.records = dict.fromkeys(parties, shop.records["north"])
    file = shop.write(pipeline(secure), parties={"server": "hub", "clients": parties})
    told = api.plan(file, home=shop.home, registry=toys)["refusals"]
    (one,) = [problem for problem in told if said in problem["what"]]
    assert one["path"] == "tasks.mean.inputs.total.secure_sum" and one["where"].startswith("shop.yaml:")


def test_a_ledger_that_is_gone_while_sessions_are_there_is_not_begun_anew(opened: Hand, shop: Any, toys: Registry) -> None:
    opened.upto("confirm")
    for site in opened.ready.sites.values():
        site.ledger.close()
    vault = opened.ready.sites["north"].ledger.vault
    assert list((vault / "secure").glob("*.session"))
    for path in vault.glob("ledger.sqlite*"):
        path.unlink()
    with pytest.raises(StoreError, match="the ledger of this folder is gone"):
        api.run(shop.folder / "shop.yaml", home=shop.folder / "another", registry=toys)


def test_keys_are_there_before_any_run(shop: Any, toys: Registry) -> None:
    file = write(shop, pipeline(NOISY))
    sites = shop.folder / "shop.sites.yaml"

    def keys(*more: str) -> Any:
        result = CliRunner().invoke(application(), ["keys", "identity", *more, "--json"])
        return json.loads(result.output) if result.exit_code == 0 else result

    made = {one["party"]: one["public"] for one in keys(str(sites), "--party", "north")}
    assert len(made["north"]) == 64 and made["north"] == keys(str(sites), "--party", "north")[0]["public"]
    assert isinstance(keys(str(sites), "--party", "nobody").exception, DataError)
    assert isinstance(keys(str(sites)).exception, ConfigError)  # the server binds no private data: its keys lie with each run
    text = sites.read_text().replace('"osmotic_sites": 1', '"osmotic_sites": 1, "state": "ledgers"')
    sites.write_text(text)
    made = {one["party"]: one["public"] for one in keys(str(sites))}
    assert sorted(made) == sorted(["hub", *PARTIES])
    shop.defaults = {**CAP, "identities": made}
    write(shop, pipeline(NOISY))
    sites.write_text(sites.read_text().replace('"osmotic_sites": 1', '"osmotic_sites": 1, "state": "ledgers"'))
    assert api.run(file, home=shop.home, registry=toys)["sums"][0]["trust"] == "active"
    assert {one["party"]: one["public"] for one in keys(str(shop.home))} == made

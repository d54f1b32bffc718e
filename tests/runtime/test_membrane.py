# SPDX-License-Identifier: Apache-2.0
"""The membrane at the sending party, by raw requests: a plan, a coordinator or a component that lies gets nothing."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime.party.policies import open_site, policies_of
from osmotic.runtime.party.service import Service
from osmotic.schemas.artifacts import Records
from osmotic.schemas.labels import PUBLIC, Label, Provenance
from osmotic.schemas.messages import MAGIC, Envelope, unpack

Header = dict[str, Any]
WAIVER = "because the tests need it to cross"


class Desk:
    """Services of the parties, spoken to like a coordinator would. Every reply that leaves is kept."""

    def __init__(self, shop: Any, registry: Registry, local: bool = False) -> None:
        self.shop, self.registry, self.local = shop, registry, local
        self.services: dict[str, Service] = {}
        self.replies: list[tuple[str, Header, bytes]] = []

    def open(self) -> None:
        self.close()
        parties = ["hub", "north", "south"]
        policies = policies_of(parties, self.shop.folder / "shop.sites.yaml")
        for party in parties:
            self.services[party] = Service(open_site(party, self.shop.home, policies, self.registry), self.local)

    def ask(self, party: str, op: str, blob: bytes = b"", **header: Any) -> tuple[Header, bytes]:
        reply = self.services[party].handle({"op": op, **header}, blob)
        self.replies.append((party, *reply))
        return reply

    def code(self, party: str, op: str, blob: bytes = b"", **header: Any) -> str:
        """The error code, or 'fine'; a refusal carries nothing else."""
        reply, body = self.ask(party, op, blob, **header)
        if "error" not in reply:
            return "fine"
        assert body == b"" and reply["error"]["problems"] == [] and set(reply) == {"error"}
        return str(reply["error"]["code"])

    def accept(self, party: str, tasks: dict[str, Any], overrides: tuple[str, ...] = (), **document: Any) -> str:
        text = self.shop.write(tasks, **document).read_text()
        if not self.services:
            self.open()
        return self.code(
            party, "plan", text.encode(), name="shop.yaml", overrides=list(overrides), folder=str(self.shop.folder)
        )

    def run(self, party: str, *ids: str) -> None:
        for identity in ids:
            reply, _ = self.ask(party, "run", id=identity)
            assert "error" not in reply, (reply, self.log(party))

    def log(self, party: str) -> str:
        file: Path = self.services[party].site.ledger.folder / "errors.log"
        return file.read_text() if file.is_file() else ""

    def crossings(self, party: str) -> list[dict[str, Any]]:
        return [json.loads(b) for (b,) in self.services[party].site.ledger.query("SELECT body FROM crossings ORDER BY seq")]

    def close(self) -> None:
        for service in self.services.values():
            service.site.ledger.close()


@pytest.fixture
def desk(shop: Any, toys: Registry) -> Iterator[Desk]:
    made = Desk(shop, toys)
    yield made
    made.close()


def relay(source: str, port: str = "records", waive: str | None = None) -> dict[str, Any]:
    given: Any = {"from": source, "waive": waive} if waive else source
    return {"component": "relay", "at": "server", "each": "party", "inputs": {port: given}}


Tasks = Callable[..., dict[str, Any]]

# ---- plans that ask for more than the site grants ----


def test_a_plain_plan_is_accepted_and_only_the_release_crosses(desk: Desk, tasks: Tasks) -> None:
    assert [desk.accept(p, tasks()) for p in ("hub", "north", "south")] == ["fine"] * 3
    desk.run("north", "items@north", "safe@north")
    reply, blob = desk.ask("north", "pull", id="counted@hub", producer="safe@north", port="sanitized")
    envelope = unpack(blob)
    assert envelope.label.word == "protected" and reply["digest"] == envelope.digest
    assert desk.code("north", "pull", id="counted@hub", producer="safe@north", port="key") == "membrane"
    assert desk.code("north", "pull", id="counted@hub", producer="items@north", port="records") == "membrane"
    assert [e["word"] for e in desk.crossings("north")] == ["protected"]
    assert desk.code("hub", "push", blob) == "fine"


@pytest.mark.parametrize(
    "binding", [{}, {"purpose": "private"}, {"purpose": "benchmark"}], ids=["nothing", "private", "benchmark without a waiver"]
)
def test_a_waiver_that_only_the_plan_knows_opens_nothing(desk: Desk, tasks: Tasks, binding: dict[str, Any]) -> None:
    desk.shop.binding = binding
    assert desk.accept("north", tasks(raw=relay("items", waive=WAIVER))) == "policy"
    assert desk.code("north", "run", id="items@north") == "policy"  # nothing of the plan was kept


def test_a_granted_waiver_does_not_work_on_private_data(desk: Desk, tasks: Tasks) -> None:
    desk.shop.defaults = {"waivers": [{"edge": "*", "observers": ["hub"]}]}
    assert desk.accept("north", tasks(raw=relay("items", waive=WAIVER))) == "policy"
    assert "private" in desk.log("north")


@pytest.mark.parametrize(
    ("mechanism", "defaults"),
    [
        ({"name": "list-rr", "epsilon": 30, "k": 1}, {"max_epsilon": 4}),
        ({"name": "list-rr", "epsilon": 30, "k": 1}, {"budget": {"items": {"per_document": 24}}}),
        ({"name": "list-rr", "epsilon": 2, "k": 1}, {"mechanisms": ["exponential"]}),
        ({"name": "list-rr", "epsilon": 2, "k": 1}, {"components": ["record_loader"]}),
    ],
)
def test_more_epsilon_or_another_mechanism_than_the_site_allows(
    desk: Desk, tasks: Tasks, mechanism: dict[str, Any], defaults: dict[str, Any]
) -> None:
    desk.shop.defaults = defaults
    made = tasks()
    made["safe"] = {**made["safe"], "config": {"mechanism": mechanism, "fields": ["colour", "size"]}}
    assert desk.accept("north", made) == "policy"


def test_the_cap_holds_over_plans_that_each_ask_for_little(desk: Desk, tasks: Tasks) -> None:
    desk.shop.defaults = {"budget": {"items": {"per_document": 9}}}
    codes = []
    for epsilon in (2.0, 1.9, 1.8, 1.7):
        made = tasks()
        config = {"mechanism": {"name": "list-rr", "epsilon": epsilon, "k": 1}, "fields": ["colour", "size"]}
        made["safe"] = {**made["safe"], "config": config}
        assert desk.accept("north", made) == "fine"
        desk.run("north", "items@north")
        codes.append(desk.code("north", "run", id="safe@north"))
    assert codes == ["fine", "fine", "component", "component"]  # why stays at the site
    assert "budget" in desk.log("north")
    assert desk.code("north", "pull", id="counted@hub", producer="safe@north", port="sanitized") == "membrane"


def test_a_noise_seed_needs_the_site_and_benchmark_data(desk: Desk, tasks: Tasks) -> None:
    assert desk.accept("north", tasks(), noise_seed=1) == "policy"
    desk.shop.defaults = {"seeded": True}
    desk.services = {}
    assert desk.accept("north", tasks(), noise_seed=1) == "policy"  # the data is private
    desk.shop.binding = {"purpose": "benchmark"}
    desk.services = {}
    assert desk.accept("north", tasks(), noise_seed=1) == "fine"


def test_a_void_release_made_under_another_policy_does_not_cross(desk: Desk, tasks: Tasks) -> None:
    desk.shop.defaults, desk.shop.binding = {"seeded": True}, {"purpose": "benchmark"}
    assert desk.accept("north", tasks(), noise_seed=1) == "fine"
    desk.run("north", "items@north", "safe@north")
    site = desk.services["north"].site
    site.policy = site.policy.model_copy(update={"seeded": False})
    assert desk.code("north", "pull", id="counted@hub", producer="safe@north", port="sanitized") == "membrane"


@pytest.mark.parametrize("key", ["schema", "table", "label", "path", "purpose"])
def test_a_plan_cannot_bring_its_own_schema_table_or_label(desk: Desk, tasks: Tasks, key: str) -> None:
    made = tasks()
    made["items"] = {**made["items"], "config": {"data": "items", key: "public"}}
    assert desk.accept("north", made) == "config"
    made = tasks()
    config = {"mechanism": {"name": "list-rr", "epsilon": 2, "k": 1, key: "x"}, "fields": ["colour"]}
    made["safe"] = {**made["safe"], "config": config}
    assert desk.accept("north", made) == "config"


def test_a_plan_cannot_ask_for_data_that_is_not_bound(desk: Desk, tasks: Tasks) -> None:
    made = tasks()
    made["items"] = {**made["items"], "config": {"data": "others"}}
    assert desk.accept("north", made) == "policy"


@pytest.mark.parametrize(
    ("models", "path", "code"),
    [
        ([], "/srv/models/secret", "policy"),
        ([], "some-org/some-model", "policy"),
        (["/srv/models"], "/srv/models/secret", "policy"),
        (["/srv/models/secret"], "/srv/models/../models/secret", "policy"),
        (["/srv/models/secret"], "/srv/models/secret", "fine"),
        (["*"], "some-org/some-model", "fine"),
        ([], "osmotic:clinic/student", "fine"),
    ],
)
def test_a_plan_may_load_models_only_from_where_the_site_says(
    desk: Desk, tasks: Tasks, models: list[str], path: str, code: str
) -> None:
    desk.shop.defaults = {"models": models}
    spec = {"m": {"type": "transformers", "at": "clients", "config": {"path": path}}}
    assert desk.accept("north", tasks(), models=spec) == code
    assert desk.accept("hub", tasks(), models=spec) == "fine"  # it is not loaded there
    if code == "policy":
        assert "models.m.config.path" in desk.log("north") and f'models: ["{path}"]' in desk.log("north")


def test_another_party_in_the_observers_role_sees_nothing(desk: Desk, tasks: Tasks) -> None:
    desk.shop.binding = {"purpose": "benchmark"}
    desk.shop.defaults = {"waivers": [{"edge": "*", "observers": ["hub"]}]}
    blind = {"component": "record_blinder", "at": "clients", "inputs": {"records": "items"}, "config": {"fields": ["colour"]}}
    made = tasks(blind=blind, sent=relay("blind", waive=WAIVER))
    assert desk.accept("north", made) == "fine"
    assert desk.accept("north", made, parties={"server": "west", "clients": ["north", "south"]}) == "policy"
    assert "lets hub see it, not west" in desk.log("north")


# ---- operations that are not in the plan ----


def test_unknown_or_malformed_requests(desk: Desk, tasks: Tasks) -> None:
    assert desk.accept("north", tasks()) == "fine"
    assert desk.code("north", "read_file", path="/etc/passwd") == "protocol"
    assert desk.code("north", "run", id="items@south") == "policy"
    assert desk.code("north", "pull", id="nobody@hub", producer="items@north", port="records") == "membrane"
    assert desk.code("north", "pull", id="safe@north", producer="items@north", port="records") == "membrane"
    assert desk.code("north", "pull") == "internal"
    assert desk.code("north", "plan", b"\xff\xfe") in ("internal", "config")
    assert desk.code("north", "call", b"[]", model="m", method="generate", task="safe@north") == "membrane"
    for op in ("metrics", "samples"):
        desk.run("north", "items@north")
        assert desk.code("north", op, id="items@north", port="records", count=3) == "membrane"
    assert desk.code("north", "alias", id="safe@north", earlier="items@north") == "component"


@pytest.mark.parametrize(("purpose", "told"), [("private", 0), ("benchmark", 1)])
def test_how_often_a_model_was_asked_is_told_of_benchmark_data_alone(
    desk: Desk, tasks: Tasks, purpose: str, told: int
) -> None:  # fmt: skip
    desk.shop.binding = {"purpose": purpose}
    assert desk.accept("north", tasks()) == "fine"
    service = desk.services["north"]
    sent = {"sender": "north", "receiver": "hub", "direction": "out", "kind": "call", "digest": "0", "size": 7}
    service.site.ledger.cross(edge="safe@north=>m.generate", name="model m", label=PUBLIC, **sent)
    _, body = service.handle({"op": "called"}, b"")
    assert len(json.loads(body)) == told


def test_nothing_private_is_in_any_reply(desk: Desk, tasks: Tasks) -> None:
    assert desk.accept("north", tasks()) == "fine"
    desk.run("north", "items@north", "safe@north")
    site = desk.services["north"].site
    private = {ref.digest for refs in site.results.values() for ref in refs.values() if ref.label.of("raw")}
    assert len(private) == 2
    for op in ("status", "held", "hashes"):
        assert "error" not in desk.ask("north", op)[0]
    desk.ask("north", "account", crossings=["safe@north.sanitized->counted@hub"])
    desk.ask("north", "known", id="safe@north", producer="items@north", port="records")
    sent = b"".join(json.dumps(header).encode() + body for _, header, body in desk.replies)
    assert not any(digest.encode() in sent for digest in private)
    assert b"north-1" not in sent and site.ledger.keys.content.hex().encode() not in sent


def test_elsewhere_a_run_says_neither_how_long_it_took_nor_what_was_known(desk: Desk, tasks: Tasks) -> None:
    assert desk.accept("north", tasks()) == "fine"
    constant = {"cached": False, "seconds": 0.0}
    assert [desk.ask("north", "run", id="items@north")[0] for _ in range(2)] == [constant, constant]
    status = desk.ask("north", "status")[0]["status"]
    assert status == {"items@north": "runs", "safe@north": "runs"}
    desk.services["north"].local = True
    assert desk.ask("north", "run", id="items@north")[0]["cached"] is True


def test_the_account_that_leaves_is_of_the_accepted_plan_and_counts_nothing(desk: Desk, tasks: Tasks) -> None:
    assert desk.accept("north", tasks()) == "fine"
    desk.run("north", "items@north", "safe@north")
    desk.ask("north", "pull", id="counted@hub", producer="safe@north", port="sanitized")
    edge = "safe@north.sanitized->counted@hub"
    site = desk.services["north"].site
    other = Label(frozenset({Provenance("north", "exposed", "old.edge", ("hub",))}))
    site.ledger.cross(edge="old", name="old", sender="north", receiver="hub", direction="out", kind="call", digest="0" * 64,
                      size=1, label=other)  # fmt: skip
    account = json.loads(desk.ask("north", "account", crossings=[edge, "old", "nobody@north=>", "safe@north=>"])[1])
    assert account["word"] == "certified" and account["crossings"] == 1 and "documents" not in account
    desk.services["north"].local = True
    assert "documents" in json.loads(desk.ask("north", "account", crossings=[edge])[1])


def test_whatever_ends_a_task_with_private_data_looks_the_same(desk: Desk, tasks: Tasks) -> None:
    made = tasks(broken={"component": "crasher", "at": "clients", "inputs": {}, "config": {"how": "raise"}})
    assert desk.accept("north", made) == "fine"
    (desk.shop.folder / "north.jsonl").write_text('{"id": "x", "colour": "mauve", "size": "s"}\n')
    assert desk.ask("north", "run", id="items@north") == ({"error": {"code": "component", "exit": 6, "problems": []}}, b"")
    assert "mauve" in desk.log("north")
    assert desk.code("north", "run", id="broken@north") == "internal"  # nothing private there
    assert desk.code("north", "run", id="nobody@north") == "policy"


def test_errors_leave_by_code_alone_and_stay_in_the_log(desk: Desk, tasks: Tasks) -> None:
    made = tasks(broken={"component": "crasher", "at": "clients", "config": {"how": "raise"}})
    assert desk.accept("north", made) == "fine"
    assert desk.code("north", "run", id="broken@north") == "internal"
    assert "PRIVATE-DETAIL" in desk.log("north") and "Traceback" in desk.log("north")
    assert not any("PRIVATE-DETAIL" in json.dumps(header) for _, header, _ in desk.replies)


# ---- envelopes ----


def packed(desk: Desk, tasks: Tasks) -> bytes:
    for party in ("hub", "north", "south"):
        assert desk.accept(party, tasks()) == "fine"
    desk.run("north", "items@north", "safe@north")
    return desk.ask("north", "pull", id="counted@hub", producer="safe@north", port="sanitized")[1]


def test_altered_and_misdirected_envelopes(desk: Desk, tasks: Tasks) -> None:
    blob = packed(desk, tasks)
    middle = len(blob) - 40
    altered = blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]
    for bad in (altered, blob[:-1], blob + b"x", b"", b"OSMOTIC2" + blob[8:], MAGIC + b"\xff\xff\xff\xff"):
        assert desk.code("hub", "push", bad) == "protocol"
    for party in ("north", "south"):
        assert desk.code(party, "push", blob) == "membrane"
    good = unpack(blob)
    fields = {
        "edge": good.edge,
        "sender": "north",
        "receiver": "hub",
        "kind": "records",
        "label": good.label,
        "files": good.files,
    }
    for change in (
        {"edge": "safe@north.key->counted@hub"}, {"edge": "x->counted@hub"}, {"sender": "south"}, {"kind": "document"},
        {"edge": "items@north.records->safe@north", "receiver": "north"},
    ):  # fmt: skip
        assert desk.code("hub", "push", Envelope(**{**fields, **change}).pack()) in ("membrane", "protocol", "data")
    assert desk.crossings("hub") == []
    assert desk.code("hub", "push", blob) == "fine"


def test_an_envelope_with_a_raw_entry_is_no_envelope(desk: Desk, tasks: Tasks) -> None:
    blob = packed(desk, tasks)
    size = int.from_bytes(blob[8:12], "big")
    head = json.loads(blob[12 : 12 + size])
    head["label"][0]["source"] = "raw"
    text = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    assert desk.code("hub", "push", MAGIC + len(text).to_bytes(4, "big") + text + blob[12 + size :]) == "protocol"


def test_an_envelope_may_not_claim_a_release_that_this_party_never_made(desk: Desk, tasks: Tasks) -> None:
    made = tasks(back={"component": "relay", "at": "clients", "inputs": {"records": "sent"}}, sent=relay("safe"))
    for party in ("hub", "north", "south"):
        assert desk.accept(party, made) == "fine"
    label = Label(frozenset({Provenance("north", "release", "0" * 64)}))
    envelope = Envelope(
        "sent[for=north]@hub.out->back@north", "hub", "north", "records", label, Records([{"id": "a"}]).to_files()
    )
    assert desk.code("north", "push", envelope.pack()) == "membrane"


# ---- components that lie ----


def test_a_release_port_without_a_release_stays_private(desk: Desk, tasks: Tasks) -> None:
    made = tasks(lied={"component": "liar", "at": "clients", "inputs": {"records": "items"}}, sent=relay("lied"))
    assert desk.accept("north", made) == "fine"  # the port claims a release, so the plan looks fine
    desk.run("north", "items@north", "safe@north", "lied@north")
    assert desk.services["north"].site.results["lied@north"]["out"].label.word == "private"
    assert desk.code("north", "pull", id="sent[for=north]@hub", producer="lied@north", port="out") == "membrane"


def test_bytes_that_another_task_released_are_not_a_release_of_this_one(desk: Desk, tasks: Tasks) -> None:
    """Which of several earlier releases is given out would be a choice that reads private data."""
    lied = {"component": "liar", "at": "clients", "inputs": {"records": "mixed"}}
    mixed = {"component": "relay", "at": "clients", "inputs": {"records": "items"}}
    assert desk.accept("north", tasks(mixed=mixed, lied=lied, sent=relay("lied"))) == "fine"
    desk.run("north", "items@north", "safe@north", "mixed@north")
    site = desk.services["north"].site
    released, mixed_ref = site.results["safe@north"]["sanitized"], site.results["mixed@north"]["out"]
    site.results["mixed@north"]["out"] = type(mixed_ref)("records", released.digest, mixed_ref.label)
    desk.run("north", "lied@north")
    assert site.results["lied@north"]["out"].label.word == "private"


@pytest.mark.parametrize("how", ["part", "after"])
def test_a_chosen_part_of_the_records_is_not_a_release(desk: Desk, tasks: Tasks, how: str) -> None:
    """Equal documents keep their released ids: the part beside the whole would tell who has which colour, for nothing."""
    mechanism = tasks()["safe"]["config"]["mechanism"]
    config = {"mechanism": mechanism, "fields": ["colour", "size"], "value": "red", "how": how}
    made = tasks(
        part={"component": "picker", "at": "clients", "inputs": {"records": "items"}, "config": config}, sent=relay("part")
    )
    assert desk.accept("north", made) == "fine"
    desk.run("north", "items@north", "safe@north")
    if how == "part":
        assert desk.code("north", "run", id="part@north") == "component"
        assert "every record" in desk.log("north")
    else:
        desk.run("north", "part@north")
    assert desk.code("north", "pull", id="sent[for=north]@hub", producer="part@north", port="out") == "membrane"


def test_records_that_a_task_filtered_cannot_be_released(desk: Desk, tasks: Tasks) -> None:
    made = tasks(copy={"component": "relay", "at": "clients", "inputs": {"records": "items"}})
    made["safe"] = {**made["safe"], "inputs": {"records": "copy"}}
    assert desk.accept("north", made) == "fine"
    desk.run("north", "items@north", "copy@north", "safe@north")  # all of them: fine
    site = desk.services["north"].site
    fewer = site.store.put(Records(desk.shop.records["north"][:5]))
    ref = site.results["copy@north"]["out"]
    site.results["copy@north"]["out"] = type(ref)("records", fewer, ref.label)
    assert desk.code("north", "run", id="safe@north") == "component"


def test_data_beside_the_inputs_cannot_be_read(desk: Desk, tasks: Tasks) -> None:
    taken = {"component": "smuggler", "at": "clients", "config": {"data": "items"}}
    assert desk.accept("north", tasks(taken=taken, sent=relay("taken"))) == "fine"
    assert desk.code("north", "run", id="taken@north") == "policy"
    assert "may not read the data set" in desk.log("north")
    assert desk.code("north", "pull", id="sent[for=north]@hub", producer="taken@north", port="out") == "membrane"


# ---- waived crossings ----


@pytest.fixture
def waived(desk: Desk) -> Desk:
    desk.shop.binding = {"purpose": "benchmark"}
    desk.shop.defaults = {"waivers": [{"edge": "sent.records", "observers": ["hub"]}]}
    return desk


def test_own_ids_do_not_cross_under_a_waiver(waived: Desk, tasks: Tasks) -> None:
    assert waived.accept("north", tasks(sent=relay("items", waive=WAIVER))) == "fine"
    waived.run("north", "items@north")
    assert waived.code("north", "pull", id="sent[for=north]@hub", producer="items@north", port="records") == "membrane"
    assert "ids would cross" in waived.log("north")


def test_blinded_records_cross_under_a_waiver_exposed_and_the_account_says_so(waived: Desk, tasks: Tasks) -> None:
    blind = {"component": "record_blinder", "at": "clients", "inputs": {"records": "items"}, "config": {"fields": ["colour"]}}
    made = tasks(
        blind=blind,
        sent=relay("blind", waive=WAIVER),
        back={"component": "relay", "at": "clients", "inputs": {"records": "sent"}},
    )
    for party in ("hub", "north", "south"):
        code = waived.accept(party, made)
        assert code == "fine", waived.log(party)
    waived.run("north", "items@north", "blind@north")
    edge = "blind@north.blinded->sent[for=north]@hub"
    _, blob = waived.ask("north", "pull", id="sent[for=north]@hub", producer="blind@north", port="blinded")
    assert unpack(blob).label.word == "exposed" and not re.search(rb"north-\d", blob)
    account = json.loads(waived.ask("north", "account", crossings=[edge])[1])
    assert account["word"] == "unprotected" and account["waived"] == ["sent.records"]
    assert waived.code("hub", "push", blob) == "fine"
    waived.run("hub", "sent[for=north]@hub")
    _, home = waived.ask("hub", "pull", id="back@north", producer="sent[for=north]@hub", port="out")
    assert unpack(home).label.word == "exposed"  # back to its owner, still exposed


def test_what_one_party_exposed_to_the_server_does_not_reach_another_party(waived: Desk, tasks: Tasks) -> None:
    blind = {"component": "record_blinder", "at": "clients", "inputs": {"records": "items"}, "config": {"fields": ["colour"]}}
    merged = {"component": "counter", "at": "server", "inputs": {"records": {"from": "blind", "waive": WAIVER}}}
    waived.shop.defaults = {"waivers": [{"edge": "*", "observers": ["hub"]}]}
    first = {"items": tasks()["items"], "blind": blind, "merged": merged}
    assert waived.accept("north", first) == "fine"
    waived.run("north", "items@north", "blind@north")
    site = waived.services["north"].site
    ref = site.results["blind@north"]["blinded"]
    foreign = Label(frozenset({Provenance("south", "exposed", "x.y", ("west",))}))
    site.results["blind@north"]["blinded"] = type(ref)(ref.kind, ref.digest, foreign)
    assert waived.code("north", "pull", id="merged@hub", producer="blind@north", port="blinded") == "membrane"


# ---- the same artifact by two inputs ----


def test_an_artifact_that_two_inputs_take_crosses_under_both_edges(desk: Desk, tasks: Tasks) -> None:
    made = tasks(twice={"component": "both", "at": "server", "each": "party", "inputs": {"left": "safe", "right": "safe"}})
    for party in ("hub", "north", "south"):
        assert desk.accept(party, made) == "fine"
    desk.run("north", "items@north", "safe@north")
    _, blob = desk.ask("north", "pull", id="twice[for=north]@hub", producer="safe@north", port="sanitized")
    assert desk.code("hub", "push", blob) == "fine"
    desk.run("hub", "twice[for=north]@hub")


def test_one_waived_input_does_not_open_the_other(waived: Desk, tasks: Tasks) -> None:
    waived.shop.defaults = {"waivers": [{"edge": "twice.left", "observers": ["hub"]}]}
    blind = {"component": "record_blinder", "at": "clients", "inputs": {"records": "items"}, "config": {"fields": ["colour"]}}
    both = {"left": {"from": "blind", "waive": WAIVER}, "right": {"from": "blind", "waive": WAIVER}}
    made = tasks(blind=blind, twice={"component": "both", "at": "server", "each": "party", "inputs": both})
    assert waived.accept("north", made) == "policy"
    waived.shop.defaults = {"waivers": [{"edge": "*", "observers": ["hub"]}]}
    waived.services = {}
    assert waived.accept("north", made) == "fine"
    waived.run("north", "items@north", "blind@north")
    site = waived.services["north"].site
    site.policy = site.policy.model_copy(
        update={"waivers": (site.policy.waivers[0].model_copy(update={"edge": "twice.left"}),)}
    )
    assert waived.code("north", "pull", id="twice[for=north]@hub", producer="blind@north", port="blinded") == "membrane"


def test_plans_are_read_as_yaml_without_objects(desk: Desk, tasks: Tasks) -> None:
    desk.shop.write(tasks())
    desk.open()
    evil = b"a: 1" + b"\nx: !!python/object/apply:os.system ['true']\n"
    assert desk.code("north", "plan", evil, name="x.yaml", overrides=[], folder="/") == "config"

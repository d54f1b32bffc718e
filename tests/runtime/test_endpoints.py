# SPDX-License-Identifier: Apache-2.0
"""A model server is a party for the membrane: listed or refused, checked by label, written down before bytes leave."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.contract import Answer, Generation, Records
from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.party.endpoints import EndpointModel
from osmotic.runtime.party.ports import travelling
from osmotic.runtime.party.service import Service
from osmotic.runtime.plan.flow import infer
from osmotic.runtime.results.verifying import verify
from osmotic.runtime.storage.ledger import Ledger
from osmotic.schemas.addresses import Address
from osmotic.schemas.errors import ConfigError, MembraneError, OsmoticError, PeerError, RefusedError
from osmotic.schemas.labels import PUBLIC, raw
from osmotic.schemas.policy import Remote, SitePolicy

pytest.importorskip("httpx2", reason="the extra 'openai' is not installed")

Tasks = Callable[..., dict[str, Any]]
KEY = "sk-do-not-tell-9876543210"


# ---- what the plan may use ----


def test_an_endpoint_that_no_policy_lists_is_refused_by_its_line(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    with pytest.raises(RefusedError, match=f"hub does not list the endpoint {server.origin}/v1") as caught:
        run_at(tasks(asked=server.teach("server", "safe")), server.models())
    problem = next(p for p in caught.value.problems if p.path == "models.teacher.config.url")
    assert "shop.yaml:" in problem.where and f'remote: [{{url: "{server.origin}/v1"}}]' in problem.fix
    assert server.prompts == []
    shop.defaults = {"remote": [{"url": f"{server.origin}/v2"}, {"url": "https://api.example.com"}]}
    with pytest.raises(RefusedError, match="does not list"):
        run_at(tasks(asked=server.teach("server", "safe")), server.models())


def test_a_plan_may_not_choose_which_secret_is_sent(
    run_at: Any, shop: Any, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_SECRET", KEY)
    shop.defaults = server.listed(key="TEACHER_KEY")
    with pytest.raises(RefusedError, match="does not send the environment variable 'CLOUD_SECRET'"):
        run_at(tasks(asked=server.teach("server", "safe")), server.models(key_variable="CLOUD_SECRET"))
    assert server.prompts == []


def test_released_prompts_go_after_they_were_written_down(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = server.listed()
    server.watched = [shop.home / "parties" / "hub"]
    found = run_at(tasks(asked=server.teach("server", "safe")), server.models())
    out = [row for row in server.calls(server.watched[0]) if row["direction"] == "out"]
    assert [(r["from"], r["to"], r["word"], r["name"]) for r in out] == [
        ("hub", server.origin, "protected", "model teacher")
    ] * 2
    assert all(r["bytes"] > 0 and len(r["digest"]) == 64 for r in out)
    assert server.prompts and all(any(r["direction"] == "out" for r in before) for before in server.written)
    back = [row for row in server.calls(server.watched[0]) if row["kind"] == "answer"]
    assert [(r["from"], r["to"], r["direction"]) for r in back] == [(server.origin, "hub", "in")] * 2
    assert verify(shop.home)["problems"] == [] and "certified" in found["guarantee"]["line"]
    asked = len(server.prompts)
    assert (
        run_at(tasks(asked=server.teach("server", "safe")), server.models())["outcome"]["ran"] == 0
        and len(server.prompts) == asked
    )


def test_the_plan_shows_the_crossing(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    from osmotic.runtime.screen.plan_text import plan_text

    shop.defaults = server.listed()
    made = api.plan(
        shop.write(tasks(asked=server.teach("server", "safe")), models=server.models()), home=shop.home, registry=toys
    )
    rows = [row for row in made["crossings"] if row["to"] == server.origin]
    assert [(r["edge"], r["from"], r["label"], r["kind"], r["count"]) for r in rows] == [
        ("model teacher", "server", "protected", "call", 2)
    ]
    assert f"server -> {server.origin}" in plan_text(made) and made["refusals"] == [] and server.prompts == []


def test_private_prompts_need_a_grant_and_make_the_run_unprotected(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    made = {"items": tasks()["items"], "asked": server.teach("clients", "items")}
    for sees in ("public", "protected"):
        shop.defaults = server.listed(sees)
        with pytest.raises(RefusedError, match=f"which may see {sees} data only") as caught:
            run_at(made, server.models("clients"))
        assert "shop.yaml:" in caught.value.problems[0].where and caught.value.problems[0].path == "tasks.asked.config.model"
    assert server.prompts == []
    shop.defaults = server.listed("private")
    found = run_at(made, server.models("clients"))
    rows = [r for r in server.calls(shop.home / "parties" / "north") if r["direction"] == "out"]
    assert [(r["to"], r["word"]) for r in rows] == [(server.origin, "exposed")]
    assert (
        found["guarantee"]["line"].startswith("Guarantee of this run: unprotected")
        and "model teacher" in found["guarantee"]["line"]
    )


def test_public_prompts_need_the_listing_too(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.binding = {"label": "public"}
    made = {"items": tasks()["items"], "asked": server.teach("clients", "items")}
    with pytest.raises(RefusedError, match="does not list"):
        run_at(made, server.models("clients"))
    shop.defaults = server.listed("public")
    assert "nothing crosses" in run_at(made, server.models("clients"))["guarantee"]["line"] and server.prompts


def test_waived_prompts_go_on_only_to_observers_by_their_origin(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.binding = {"purpose": "benchmark"}
    blinded = {
        "component": "record_blinder", "at": "clients", "inputs": {"records": "items"},
        "config": {"fields": ["colour", "size"]},
    }  # fmt: skip
    made = {
        "items": tasks()["items"], "blinded": blinded,
        "asked": server.teach("server", "blinded", prompts={"from": "blinded", "waive": "upper bound"}),
    }  # fmt: skip
    waiver = {"edge": "asked.prompts", "observers": ["hub"]}
    shop.defaults = {**server.listed("private"), "waivers": [waiver]}
    with pytest.raises(RefusedError, match=f"may be seen by hub only, not by {server.origin}"):
        run_at(made, server.models())
    assert server.prompts == []
    shop.defaults = {**server.listed(), "waivers": [{**waiver, "observers": ["hub", server.origin]}]}
    assert "unprotected" in run_at(made, server.models())["guarantee"]["line"] and server.prompts


def test_the_label_of_a_peer_travels_on_to_the_endpoint(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    made = {"items": tasks()["items"], "asked": server.teach("clients", "items")}
    shop.defaults = {"endpoints": ["hub"], **server.listed()}
    with pytest.raises(RefusedError, match=f"may be seen by hub only, not by {server.origin}"):
        run_at(made, server.models())
    assert server.prompts == []
    shop.defaults = {"endpoints": ["hub"], **server.listed("private")}
    found = run_at(made, server.models())
    assert "unprotected" in found["guarantee"]["line"] and verify(shop.home)["problems"] == []
    rows = [r for r in server.calls(shop.home / "parties" / "hub") if r["direction"] == "out"]
    assert [(r["to"], r["word"]) for r in rows] == [(server.origin, "exposed")] * 2
    safe = tasks(asked=server.teach("clients", "safe"))
    shop.defaults = server.listed("public")
    with pytest.raises(RefusedError, match="which may see public data only"):
        run_at(safe, server.models())
    shop.defaults = server.listed()
    assert "certified" in run_at(safe, server.models())["guarantee"]["line"]


def test_a_peer_that_asks_a_server_must_be_trusted_like_any_other_and_the_plan_says_so(
    run_at: Any, shop: Any, server: Any, tasks: Tasks
) -> None:
    shop.defaults = server.listed("private")
    with pytest.raises(
        RefusedError, match=r"private data of north \(items\) would go to hub with calls of the model"
    ) as caught:
        run_at({"items": tasks()["items"], "asked": server.teach("clients", "items")}, server.models())
    assert {problem.path for problem in caught.value.problems} == {"tasks.asked.config.model"}
    assert all(problem.fix.endswith("trusted is who stands under 'endpoints'") for problem in caught.value.problems)
    assert server.prompts == []


@pytest.mark.parametrize("waived", [False, True])
def test_a_site_that_knows_its_own_policy_alone_takes_what_the_owner_may_have_allowed(
    run_at: Any, shop: Any, toys: Registry, toy_path: None, server: Any, tasks: Tasks, waived: bool
) -> None:
    """Under --isolate: public data of others may go on to a server, and so may what they exposed to it; labels say it then."""
    prompts: Any = "items"
    shop.defaults, shop.binding = server.listed(), {"label": "public"}
    if waived:
        blind = {
            "component": "record_blinder",
            "at": "clients",
            "inputs": {"records": "items"},
            "config": {"fields": ["colour"]},
        }
        waivers = [{"edge": "asked.prompts", "observers": ["hub", server.origin]}]
        shop.defaults, shop.binding = shop.defaults | {"waivers": waivers}, {"purpose": "benchmark"}
        prompts = {"from": "blind.blinded", "waive": "to compare"}
    made = {"items": tasks()["items"], "asked": server.teach("server", prompts)} | ({"blind": blind} if waived else {})
    found = run_at(made, server.models(), isolate=True)
    assert server.prompts and ("unprotected" in found["guarantee"]["line"]) == waived
    shop.defaults |= {"waivers": [{"edge": "asked.prompts", "observers": ["hub"]}]}
    if waived:
        with pytest.raises(RefusedError, match="may be seen by hub only"):
            run_at(made, server.models(), isolate=True)


def test_prompts_that_fail_at_a_peer_s_endpoint_have_their_word(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = server.listed()
    made = tasks(asked=server.teach("clients", "safe"))
    made["asked"]["config"]["max_failures"] = 1.0
    server.status = 400
    run_at(made, server.models())
    ledger = Ledger(shop.home / "parties" / "north")
    assert ledger.query("SELECT COUNT(*) FROM journal WHERE name='calls'") == [(0,)]  # what failed is asked again another time
    ledger.close()


def test_mechanisms_ask_no_endpoint(run_at: Any, shop: Any, server: Any, tasks: Tasks) -> None:
    shop.defaults = {**server.listed("private"), "unproven": True}
    made = tasks()
    made["safe"] = {
        **made["safe"],
        "config": {"mechanism": {"name": "dp-prompt", "model": "teacher", "epsilon": 1}, "fields": ["colour"]},
    }
    with pytest.raises(RefusedError, match="a server answers"):
        run_at(made, server.models("clients"))
    assert server.prompts == []


# ---- at run time, whatever was planned ----


@pytest.mark.parametrize(
    ("sees", "word"), [(None, "does not list"), ("protected", "protected data only"), ("public", "public data")]
)
def test_a_forged_plan_gets_nothing(shop: Any, toys: Registry, server: Any, tasks: Tasks, sees: str | None, word: str) -> None:
    shop.defaults = server.listed(sees) if sees else {}
    made = {"items": tasks()["items"], "asked": server.teach("clients", "items")}
    ready, site = server.opened(shop, toys, made, "north", "clients")
    try:
        site.run("items@north")
        with pytest.raises(MembraneError, match=word):
            site.run("asked@north")
        assert server.prompts == [] and server.calls(site.ledger.folder) == []
    finally:
        ready.close()


def end(*given: Any) -> None:
    raise KeyboardInterrupt


def test_who_goes_on_with_a_killed_task_s_answers_answers_for_its_calls(
    shop: Any, toys: Registry, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.defaults = server.listed("private")
    ready, site = server.opened(
        shop, toys, {"items": tasks()["items"], "asked": server.teach("clients", "items")}, "north", "clients"
    )
    try:
        site.run("items@north")
        with monkeypatch.context() as patch:
            patch.setattr(site, "_check_outputs", end)
            with pytest.raises(KeyboardInterrupt):  # every answer is in the journal, and the task has not finished
                site.run("asked@north")
    finally:
        ready.close()
    asked = len(server.prompts)
    ready, site = server.opened(
        shop, toys, {"items": tasks()["items"], "renamed": server.teach("clients", "items")}, "north", "clients"
    )
    try:
        site.run("items@north")
        site.run("renamed@north")
        rows = [
            (r["edge"], r["to"], r["word"], r["bytes"] > 0) for r in server.calls(site.ledger.folder) if r["direction"] == "out"
        ]
        assert asked == len(server.prompts) > 0
        assert rows == [
            (f"{task}@north=>teacher.generate", server.origin, "exposed", task == "asked") for task in ("asked", "renamed")
        ]
    finally:
        ready.close()


def test_nothing_but_texts_comes_from_an_endpoint(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    ready, site = server.opened(shop, toys, tasks(asked=server.teach("clients", "safe")), "north", "clients")
    try:
        model = site.model("teacher", site.need()[0].instances["asked@north"], lambda: PUBLIC)
        assert not hasattr(model, "with_weights") and not hasattr(model, "log_likelihood")
        with pytest.raises(ConfigError, match=f"is asked at {server.origin}: it has no 'trainable' here"):
            model.trainable()
        with pytest.raises(MembraneError):
            model.generate(["x"], Generation())
        assert model.generate([], Generation()) == [] and list(model.stream([], Generation())) == []
    finally:
        ready.close()


def test_from_python_alone_the_same_check(shop: Any, toys: Registry, server: Any, tmp_path: Path) -> None:
    config = {"model": "teacher", "template": "Why {{ colour }}?"}
    records = Records([{"id": "a", "colour": "red", "size": "s"}])
    schema = {"fields": {"colour": {"domain": ["red", "blue"]}, "size": {"domain": ["s", "m"]}}}
    policy = SitePolicy.model_validate({"data": {"records": {"path": "x.jsonl", "schema": schema, "label": "public"}}})
    spec = {"teacher": {"type": "openai", "config": {"url": f"{server.origin}/v1", "model": "m"}}}
    with pytest.raises(OsmoticError, match=r"does not list|may not go"):
        api.call("teacher_generator", records, config, site=policy, home=tmp_path / "call", models=spec, registry=toys)
    assert server.prompts == []


# ---- what a hostile plan or component might try ----


class Lazy:
    """A model that reads the prompts only as it answers them."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def stream(self, prompts: Any, how: Generation) -> Iterator[tuple[int, Any]]:
        for index in range(len(prompts)):
            self.read.append(prompts[index])
            yield index, Answer("x", True, 1)


def test_prompts_cannot_be_exchanged_after_they_were_checked(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    shop.defaults = server.listed()
    ready, site = server.opened(shop, toys, tasks(asked=server.teach("clients", "safe")), "north", "clients")
    try:
        lazy, prompts = Lazy(), ["public a", "public b"]
        model = EndpointModel(site, "asked@north", "teacher", lazy, Address.parse(f"{server.origin}/v1"), lambda: PUBLIC)
        stream = model.stream(prompts, Generation())
        next(stream)
        prompts[1] = "a secret"
        list(stream)
        assert lazy.read == ["public a", "public b"]
    finally:
        ready.close()


def test_data_that_became_private_later_does_not_go(shop: Any, toys: Registry, server: Any, tasks: Tasks) -> None:
    shop.defaults = server.listed()
    ready, site = server.opened(shop, toys, tasks(asked=server.teach("clients", "safe")), "north", "clients")
    try:
        seen = [PUBLIC]
        model = site.model("teacher", site.need()[0].instances["asked@north"], lambda: seen[0])
        assert model.generate(["x"], Generation())
        waiting = model.stream(["y"], Generation())
        seen[0] = raw("north", "items")
        for ask in (
            lambda: next(waiting),
            lambda: model.generate(["z"], Generation()),
            lambda: next(model.batches(["z"], Generation())),
        ):
            with pytest.raises(MembraneError, match="protected data only"):
                ask()
        assert server.prompts == ["x"]
    finally:
        ready.close()


def test_a_peer_takes_a_plan_though_it_does_not_know_the_owner_s_policy(
    shop: Any, toys: Registry, server: Any, tasks: Tasks
) -> None:
    made = {"items": tasks()["items"], "asked": server.teach("clients", "items")}
    shop.defaults = {"endpoints": ["hub"], **server.listed("private")}
    ready = api.prepare(shop.write(made, models=server.models()), home=shop.home, registry=toys)
    for party in ("hub", "north"):
        assert infer(ready.graph, {party: ready.policies.policies[party]}).refusals == []
    shop.defaults = {"endpoints": ["hub"], **server.listed()}
    ready = api.prepare(shop.write(made, models=server.models()), home=shop.home, registry=toys)
    assert infer(ready.graph, {"north": ready.policies.policies["north"]}).refusals == []  # the hub's address it may not judge
    public = SitePolicy.model_validate(server.listed("public"))
    assert infer(ready.graph, {"hub": public}).refusals == []  # the clients' data may be public, which the hub cannot know
    sites = ready.open()
    try:
        for site in sites.values():
            site.take(ready.graph, ready.configs)
        sites["north"].run("items@north")
        hub = Service(sites["hub"], local=True)
        sites["north"].outbound = lambda party, header, blob: hub.handle({**header, "from": "north"}, blob)
        with pytest.raises(PeerError):  # the label of the call names hub alone
            sites["north"].run("asked@north")
        assert server.prompts == []
    finally:
        ready.close()


def test_an_origin_of_which_the_policy_says_less_elsewhere_sees_nothing_private_through_a_peer() -> None:
    url = "https://api.example.com"
    wide, narrow = Remote(url=url, sees="public"), Remote(url=f"{url}/v1", sees="private")
    for remote, allowed in (((narrow,), True), ((wide, narrow), False)):
        label = travelling(SitePolicy(remote=remote), "north", "hub", "teacher", raw("north", "d"))
        assert (url in label.of("exposed")[0].observers) == allowed

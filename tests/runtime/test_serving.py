# SPDX-License-Identifier: Apache-2.0
"""A run from the server's machine, over mailboxes in this process instead of the engine: answers before anything runs,
versions, sites that are away, what is kept for `osmotic sites`. The engine itself is in test_nvflare_engine.py.
"""

import importlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.nvflare.server import listing, looking, serving
from osmotic.runtime.nvflare.site.audit import Audit
from osmotic.runtime.nvflare.site.mailbox import Mailbox
from osmotic.runtime.nvflare.site.site_file import versions_of, write_site
from osmotic.runtime.party.answering import Answering, Rules
from osmotic.runtime.party.policies import policies_of
from osmotic.schemas.errors import OsmoticError, PeerError, RefusedError
from osmotic.schemas.site import ServerFile, SiteFile

UNTIL = "2099-01-01T00:00:00+00:00"


class Sites:
    """A deployment whose engine is a loop of threads. facts: party -> what it says differently of itself."""

    def __init__(self, folder: Path, toys: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.toys, self.said = folder, toys, list[str]()
        self.facts: dict[str, dict[str, Any]] = {}
        self.away: set[str] = set()
        self.trouble: dict[str, str] = {}  # what the engine knows of why a site does not answer
        self.policies = {"north": folder / "shop.sites.yaml", "south": folder / "shop.sites.yaml"}
        self.loop: Any = None
        told = ServerFile(
            osmotic_server=1, party="hub", host="localhost", port=8002, server="server", admin="admin", sites=("north", "south")
        )
        (folder / "osmotic-server.json").write_text(json.dumps(told.model_dump()))
        monkeypatch.setattr(serving, "running_server", self.nothing)
        monkeypatch.setattr(serving, "connected", self.connected)
        monkeypatch.setattr(looking, "TURN", 0.05)

    @contextmanager
    def nothing(self, *_: Any) -> Iterator[None]:
        yield

    @contextmanager
    def connected(self, folder: Path, home: Path, tell: Any) -> Iterator[Any]:
        post = importlib.import_module("osmotic_post")
        self.loop = post.Loop({name: (lambda name=name: self.opened(name)) for name in self.policies}, self.folder / "boxes")
        for name in self.policies:
            self.start(name)
        self.loop.away |= self.away
        self.loop.sites = lambda: {
            name: SimpleNamespace(name=name, last=time.time(), present=name not in self.loop.away)
            for name in self.policies
            if name not in self.loop.away
        }
        self.loop.carrier, self.loop.trouble = lambda: self.loop, lambda name: self.trouble.get(name, "")
        try:
            yield self.loop
        finally:
            self.loop.close()
            for made in self.loop.services.values():
                made.close()

    def start(self, name: str) -> None:
        place = self.folder / "boxes" / name
        left: Callable[[int], None] = self.loop.left.append
        box = Mailbox(name, place, self.loop.opens[name], Audit(place / "audit.jsonl"), lambda: self.told(name), left)
        self.loop.boxes[name] = box

    def told(self, name: str) -> dict[str, Any]:
        found = {"party": name, **versions_of(self.toys), "policy": "ab" * 32, "clock": time.time()}
        return {**found, "certificate": {"until": UNTIL}, **self.facts.get(name, {})}

    def opened(self, name: str) -> Answering:
        place = self.folder / "places" / name
        (place / "local").mkdir(parents=True, exist_ok=True)
        file = SiteFile(osmotic_site=1, party=name, server="hub", policy=str(self.policies[name]))
        write_site(place, file)
        rules = lambda: Rules(file, place / "home", policies_of([name], self.policies[name]))  # noqa: E731
        made = self.loop.services[name] = Answering(rules, self.toys)
        return made

    def serve(self, file: Path, **given: Any) -> dict[str, Any]:
        options = {"home": self.folder / "served", "registry": self.toys, "tell": self.said.append, "wait": 0.3, **given}
        return serving.serve(file, self.folder, **options)

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def sites(tmp_path: Path, toys: Registry, monkeypatch: pytest.MonkeyPatch) -> Sites:
    return Sites(tmp_path, toys, monkeypatch)


def test_the_run_is_that_of_one_machine(shop: Any, tasks: Callable[..., Any], sites: Sites, toys: Registry) -> None:
    """Equal crossings and guarantee; the report is written here, each site's own at the site."""
    file = shop.write(tasks())
    summary = sites.serve(file)
    alone = api.run(file, home=sites.folder / "alone", registry=toys)
    assert [c["edge"] for c in summary["crossings"]] == [c["edge"] for c in alone["crossings"]]
    assert summary["guarantee"]["line"] == alone["guarantee"]["line"]
    assert summary["outcome"]["ran"] == alone["outcome"]["ran"]
    assert (sites.folder / "served/run.json").is_file() and (sites.folder / "served/report.html").is_file()
    assert (sites.folder / "places/north/home/shop/parties/north/report.html").is_file()
    assert not (sites.folder / "served/parties/north").exists()
    table = next(line for line in sites.said if line.startswith("what the parties say"))
    assert [line.split()[:2] for line in table.splitlines()[3:]] == [["hub", "yes"], ["north", "yes"], ["south", "yes"]]
    known = listing.recall(sites.folder)
    assert known["north"]["policy"] == "ab" * 32 and "clock" not in known["north"] and known["south"]["seen"] > 0


def test_again_nothing_is_spent_twice(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    file = shop.write(tasks())
    first, again = sites.serve(file), sites.serve(file)
    assert [c["label"] for c in first["crossings"]] == [c["label"] for c in again["crossings"]]
    digests = [[p["epsilon"] if "epsilon" in p else p["detail"] for p in one["guarantee"]["parties"]] for one in (first, again)]
    assert digests[0] == digests[1]


def test_a_run_that_was_killed_goes_on_under_another_home_at_once(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    """The sites know the deployment's coordinator, not the folder of its run: they need not wait for the last one's silence."""
    file = shop.write(tasks())
    post, loops = importlib.import_module("osmotic_post"), list[Any]()

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "save", killed)
        patch.setattr(post.Loop, "close", lambda loop: loops.append(loop))
        patch.setattr("osmotic.runtime.nvflare.server.line.Line.bye", lambda line: None)
        with pytest.raises(KeyboardInterrupt):
            sites.serve(file)
    (old,) = loops
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sites, "start", lambda name: sites.loop.boxes.update({name: old.boxes[name]}))
        summary = sites.serve(file, home=sites.folder / "elsewhere")
    assert summary["outcome"]["ran"] and (sites.folder / "osmotic-server.json").is_file()


def test_a_no_is_shown_with_its_reason_before_anything_runs(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    file = shop.write(tasks())
    strict = json.loads((sites.folder / "shop.sites.yaml").read_text())
    strict["parties"]["south"]["budget"] = {"items": {"per_document": 1}}
    sites.policies["south"] = sites.folder / "strict.yaml"
    sites.policies["south"].write_text(json.dumps(strict))
    with pytest.raises(RefusedError, match="south: epsilon 4 a document"):
        sites.serve(file)
    lines = {line.split()[0]: line for line in sites.text.splitlines() if line.split()[:1] in (["hub"], ["north"], ["south"])}
    assert " yes" in lines["north"] and " no " in lines["south"] and "shop.yaml:" in lines["south"]
    assert "over the cap" in sites.text
    assert not (sites.folder / "served/run.json").exists()
    assert not list((sites.folder / "places/north/home/shop/parties/north/store").rglob("*.parquet"))


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"osmotic": "9.9"}, "north has osmotic 9.9"),
        ({"rules": 99}, "(rules 99)"),
        ({"plugins": {"osmotic_toys": {"version": "9", "code": "?"}}}, "north has the plugin osmotic_toys 9"),
    ],
)
def test_another_version_is_named_before_the_plan_is_sent(
    facts: dict[str, Any], said: str, shop: Any, tasks: Callable[..., Any], sites: Sites
) -> None:
    sites.facts["north"] = facts
    with pytest.raises(RefusedError) as caught:
        sites.serve(shop.write(tasks()))
    assert said in str(caught.value) and " no " in sites.text
    assert not (sites.folder / "places/north/home").exists()


def test_a_clock_that_is_off_is_said_and_the_run_goes_on(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    sites.facts["south"] = {"clock": time.time() - 3600.0, "python": "3.99.0"}
    summary = sites.serve(shop.write(tasks()))
    assert summary["outcome"]["ran"] and "the clock of south is 1.0 h behind" in sites.text
    assert "south has Python 3.99.0" in sites.text


def test_a_site_that_is_away_is_named_with_the_command(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    file = shop.write(tasks())
    listing.remember(sites.folder, {}, {"south": time.time() - 7200})
    sites.away.add("south")
    with pytest.raises(PeerError) as caught:
        sites.serve(file)
    assert "the site 'south' is not there" in str(caught.value) and "last seen 2 h ago" in str(caught.value)
    assert "osmotic join" in str(caught.value) and caught.value.exit_code == 7
    sites.trouble["south"] = "it is registered, but starts nothing"
    with pytest.raises(PeerError, match="starts nothing"):
        sites.serve(file)


def test_with_a_quorum_the_run_goes_on_without_it(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    counted = {
        "component": "counter",
        "at": "server",
        "inputs": {"records": {"from": "safe", "quorum": {"at_least": 1, "within": 5}}},
    }
    file = shop.write(tasks(counted=counted))
    sites.away.add("south")
    summary = sites.serve(file)
    assert "not there after 0.3 s" in json.dumps(summary["quorums"]) and summary["outcome"]["ran"]
    assert " no " in sites.text and "the site 'south' is not there" in sites.text


def test_a_site_that_comes_while_it_is_waited_for(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    file = shop.write(tasks())
    sites.away.add("south")
    turns = iter(range(100))

    def tell(line: str) -> None:
        sites.said.append(line)

    inner = sites.connected

    @contextmanager
    def later(*given: Any) -> Iterator[Any]:
        with inner(*given) as loop:
            renew = loop.renew

            def renewed(names: list[str]) -> None:
                if next(turns) == 2:
                    loop.away.clear()
                renew([])

            loop.renew = renewed
            yield loop

    serving_connected, serving.connected = serving.connected, later  # the fixture puts it back
    try:
        summary = sites.serve(file, wait=10.0, tell=tell)
    finally:
        serving.connected = serving_connected
    assert summary["outcome"]["ran"] and sites.said[:2] == ["north: here", "south: here"]


def test_mistakes_are_found_before_the_engine_is_started(shop: Any, tasks: Callable[..., Any], sites: Sites) -> None:
    file = shop.write(tasks())
    for overrides in (
        ("parties.clients=[north,sud]",),
        ("tasks.safe.config.mechanism.epsilon=-1",),
        ("tasks.safe.component=nope",),
    ):
        with pytest.raises(OsmoticError):
            sites.serve(file, overrides=overrides)
        assert sites.loop is None and sites.said == []

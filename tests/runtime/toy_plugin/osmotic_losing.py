# SPDX-License-Identifier: Apache-2.0
"""Runs with five clients and a server of which some are lost where a rule says so, for the tests of quorums."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.storage.ledger import Ledger
from osmotic.runtime.transports.inprocess import InProcess
from osmotic.schemas.errors import OsmoticError, PeerError

CLIENTS = ["a", "b", "c", "d", "e"]
Rule = Callable[[str, dict[str, Any]], Any]


def loop(quorum: Any = None, times: int = 3, **more: Any) -> dict[str, Any]:
    """Rounds: every client adds to the last total, the server adds up."""
    parts: dict[str, Any] = {"from": "part", **({"quorum": quorum} if quorum else {})}
    return {
        "rounds": {
            "repeat": {"times": times, "carry": {"total": {"from": "total"}}},
            "tasks": {
                "part": {"component": "part", "at": "clients", "inputs": {"total": "carry.total"}, **more},
                "total": {"component": "total", "at": "server", "inputs": {"parts": parts}},
            },
        },
        "scored": {"component": "score", "at": "server", "inputs": {"total": "rounds.total"}},
    }


class Net:
    """Runs over a transport in process that loses what `rules` say: each gives an error to raise, an answer, or None."""

    def __init__(self, shop: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shop, self.registry = shop, registry
        self.rules: list[Rule] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.back: Callable[[str], bool] = lambda party: False
        net, original = self, InProcess.request

        def request(transport: Any, party: str, header: dict[str, Any], blob: bytes = b"") -> Any:
            net.seen.append((party, dict(header)))
            for rule in net.rules:
                found = rule(party, header)
                if isinstance(found, OsmoticError):
                    raise found
                if found is not None:
                    return found, b""
            return original(transport, party, header, blob)

        monkeypatch.setattr(InProcess, "request", request)
        monkeypatch.setattr(InProcess, "here", lambda transport, party: net.back(party), raising=False)

    def run(self, tasks: dict[str, Any], home: str = "home", watcher: Any = None, **document: Any) -> dict[str, Any]:
        """The summary of a run of these tasks with five clients."""
        parties = {"server": "hub", "clients": CLIENTS}
        report = {"table": ["scored"], "metrics": {"score": "score"}, "rows": []} if "scored" in tasks else {}
        document = {"parties": parties, **({"report": report} if report else {}), **document}
        file = self.shop.write(tasks, **document)
        return api.run(file, home=self.shop.folder / home, watcher=watcher, registry=self.registry)

    def who(self, task: str, home: str = "home") -> Any:
        """Whose parts a total has, as it is stored at the server."""
        return self.stored("hub", task, "who", home)

    def stored(self, party: str, task: str, port: str, home: str = "home") -> Any:
        """A document of a finished task."""
        from osmotic.runtime.storage.store import Store

        folder = self.shop.folder / home / "parties" / party
        ledger = Ledger(folder)
        bound = ledger.bound_key(task)
        ref = (ledger.finished(bound) or {})[port] if bound else None
        ledger.close()
        return Store(folder / "store").get(ref["kind"], ref["digest"]).data if ref else None  # type: ignore[attr-defined]


def gone(why: str = "timeout after 120 s without progress") -> PeerError:
    """What a transport raises of a party that it has lost."""
    error = PeerError("it is away")
    error.reason = why
    return error


def lose(party: str, *ids: str, ops: tuple[str, ...] = ("run",)) -> Rule:
    """Lose a party at these tasks."""
    return lambda at, header: gone() if at == party and header["op"] in ops and header.get("id") in ids else None


def crash(party: str, *ids: str) -> Rule:
    """A task fails at a party."""
    error = {"error": {"code": "component", "exit": 6, "problems": []}}
    return lambda at, header: error if at == party and header["op"] == "run" and header.get("id") in ids else None


ROUND = "rounds.part[round={}]@{}"
TOTAL = "rounds.total[round={}]@hub"


def transcript(home: Path, party: str) -> list[dict[str, Any]]:
    """What a party wrote down about its quorums."""
    ledger = Ledger(home / "parties" / party)
    found = [json.loads(body) for (body,) in ledger.query("SELECT body FROM crossings ORDER BY seq")]
    ledger.close()
    return [entry for entry in found if entry["kind"] == "quorum"]

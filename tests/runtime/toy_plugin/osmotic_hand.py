# SPDX-License-Identifier: Apache-2.0
"""For the tests of secure sums: a pipeline over five parties, and a hand that asks as a coordinator does."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from osmotic.runtime import api
from osmotic.runtime.secure import bundle
from osmotic.runtime.storage.ledger import Ledger

PARTIES = ["east", "north", "south", "up", "west"]
NOISY = {"clip": 1.0, "range": 0.25, "at_least": 3, "noise_multiplier": 2.0}
CAP = {"budget": {"*": {"per_document": 1000, "per_client": {"epsilon": 20, "delta": 1e-5}}}}


def pipeline(secure: dict[str, Any], **total: Any) -> dict[str, Any]:
    inputs = {"weights": "trained", "previous": "start"}
    return {
        "items": {"component": "record_loader", "at": "clients", "config": {"data": "items"}},
        "start": {"component": "starter", "at": "server"},
        "trained": {"component": "puller", "at": "clients", "inputs": {"records": "items", "previous": "start"}},
        "update": {"component": "update_maker", "at": "clients", "inputs": inputs},
        "mean": {
            "component": "secure_aggregator", "at": "server",
            "inputs": {"total": {"from": "update", "secure_sum": secure, **total}, "previous": "start"},
        },
    }  # fmt: skip


def charged(home: Path) -> dict[str, int]:
    found = {}
    for party in PARTIES:
        ledger = Ledger(home / "parties" / party)
        found[party] = int(ledger.query("SELECT COUNT(*) FROM charges")[0][0])
        ledger.close()
    return found


@contextmanager
def hand_of(ready: Any) -> "Iterator[Hand]":
    with api.transport_of(ready, False, api.Quiet()) as transport:
        start = ready.open()["hub"] if not ready.sites else ready.sites["hub"]
        start.run("start@hub")
        for party in PARTIES:
            _, blob = transport.request(
                "hub", {"op": "pull", "id": f"trained@{party}", "producer": "start@hub", "port": "weights"}
            )
            transport.request(party, {"op": "push"}, blob)
            _, blob = transport.request(
                "hub", {"op": "pull", "id": f"update@{party}", "producer": "start@hub", "port": "weights"}
            )
            transport.request(party, {"op": "push"}, blob)
            for task in ("items", "trained", "update"):
                reply, _ = transport.request(party, {"op": "run", "id": f"{task}@{party}"})
                assert "error" not in reply, reply
        yield Hand(transport, ready)


class Hand:
    """Asks senders and receiver as a coordinator does."""

    def __init__(self, transport: Any, ready: Any) -> None:
        self.transport, self.ready, self.session = transport, ready, "07" * 32

    def sum(self, party: str, stage: str, blob: bytes = b"", **more: Any) -> tuple[dict[str, Any], bytes]:
        header = {"op": "sum", "id": "mean@hub", "port": "total", "producer": f"update@{party}", "session": self.session}
        return self.transport.request(party, {**header, "stage": stage, **more}, blob)  # type: ignore[no-any-return]

    def receive(self, stage: str, blob: bytes = b"", **more: Any) -> tuple[dict[str, Any], bytes]:
        header = {"op": "sum-receive", "id": "mean@hub", "port": "total", "session": self.session, "stage": stage}
        return self.transport.request("hub", {**header, **more}, blob)  # type: ignore[no-any-return]

    def upto(self, stage: str) -> dict[str, bytes]:
        """Every stage before this one, of everybody: what each is to be given for it."""
        keys = {party: self.sum(party, "keys") for party in PARTIES}
        _, key = self.receive("open", outline=keys["north"][0]["outline"])
        sent = {party: blob for party, (_, blob) in keys.items()}
        self.receive("keys", bundle.pack(sent))
        every = bundle.pack({**sent, "": key})
        if stage == "shares":
            return dict.fromkeys(PARTIES, every)
        shares = {party: self.sum(party, "shares", every)[1] for party in PARTIES}
        boxes = bundle.unpack(self.receive("shares", bundle.pack(shares))[1])
        if stage == "masked":
            return boxes
        for party in PARTIES:
            reply, masked = self.sum(party, "masked", boxes[party])
            self.receive("masked", masked, sender=party, label=reply["label"])
        return {}


def code(reply: tuple[dict[str, Any], bytes]) -> str:
    assert reply[1] == b""
    return str(reply[0].get("error", {}).get("code", "fine"))

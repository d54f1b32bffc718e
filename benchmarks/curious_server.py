# SPDX-License-Identifier: Apache-2.0
"""What a curious server sees of one training round, with and without secure sum: every byte that its processes receive.

    benchmarks/curious_server.py [--isolate | --engine] [--noise] [--out FILE]

Three firms of the shipped handbook each train an adapter of the tiny base model on their private records; the server averages.
Once the updates are gathered as they are (a waiver at every site allows it: the records are generated), once with
`secure_sum`. Every answer that a client gives to the server's process is kept as it arrived, and read as a curious operator
would: what is text, what is a tensor, how near the best reading of any of it comes to that client's true update (cosine; the
true one is taken from the client's own store afterwards). Of what cannot be read: whether its bytes are uniform (chi-square
over 256 values). A server that also takes away the masks whose seeds it is told, as it must to open the sum, is read as well;
and what is left on its disk is searched for parts of updates and for private texts.

In one process, in a process a party (--isolate), or over NVFlare with TLS on loopback (--engine), where what the engine's
server carries is counted beside what is in it.
"""

import argparse
import contextlib
import json
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from curious_parts import CLIENTS, write

HERE = Path(__file__).parent
Reply = tuple[dict[str, Any], bytes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isolate", action="store_true", help="a process a party")
    parser.add_argument("--engine", action="store_true", help="over NVFlare: a server and three sites")
    parser.add_argument("--noise", action="store_true", help="a third run: secure sum with noise")
    parser.add_argument("--out", type=Path, help="write what was seen here, as JSON")
    given = parser.parse_args()
    how = "engine" if given.engine else "isolate" if given.isolate else "process"
    found = {}
    for arm in ("plain", "secure", *(["noise"] if given.noise else [])):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            found[arm] = seen(Path(folder), arm, how)
            show(arm, found[arm])
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# ---- the round ----


@dataclass
class Tap:
    """What came to the server's process. answers: party, what was asked, header, body. carried: the engine's, by party."""

    answers: list[tuple[str, dict[str, Any], dict[str, Any], bytes]] = field(default_factory=list)
    carried: list[tuple[str, int, int]] = field(default_factory=list)
    sessions: list[Any] = field(default_factory=list)  # of sums: the receiver's


@contextlib.contextmanager
def tapped(tap: Tap) -> Iterator[None]:
    """While inside, whatever transport is used keeps a copy of every answer of a client."""
    from osmotic.runtime.secure.server import ServerSession
    from osmotic.runtime.transports.framed import Framed
    from osmotic.runtime.transports.inprocess import InProcess

    saved = [(kind, kind.request) for kind in (InProcess, Framed)]
    finish = ServerSession.finish

    def listening(request: Any) -> Any:
        def listen(self: Any, party: str, header: dict[str, Any], blob: bytes = b"") -> Reply:
            asked = dict(header)
            reply, body = request(self, party, header, blob)
            if party in CLIENTS:
                tap.answers.append((party, asked, json.loads(json.dumps(reply)), bytes(body)))
            return reply, body

        return listen

    def finished(self: Any) -> Any:
        tap.sessions.append(self)
        return finish(self)

    for kind, request in saved:
        kind.request = listening(request)  # type: ignore[method-assign]
    ServerSession.finish = finished  # type: ignore[method-assign]
    try:
        yield
    finally:
        for kind, request in saved:
            kind.request = request  # type: ignore[method-assign]
        ServerSession.finish = finish  # type: ignore[method-assign]


def seen(folder: Path, arm: str, how: str) -> dict[str, Any]:
    """Run the round with a tap, then compare what came with what was private."""
    from osmotic.runtime import api

    file, tap = write(folder, arm), Tap()
    with tapped(tap):
        if how == "engine":
            homes = over_engine(folder, file, tap)
        else:
            api.run(file, home=folder / "home", isolate=how == "isolate")
            homes = {party: folder / "home" / "parties" / party for party in (*CLIENTS, "hub")}
    true = {party: flat(weights_of(homes[party], f"update@{party}", "update")) for party in CLIENTS}
    messages = [told(party, asked, reply, body, true[party]) for party, asked, reply, body in split(tap.answers)]
    found: dict[str, Any] = {"how": how, "numbers": len(true["inn"]), "messages": messages, "carried": carried(tap)}
    found["at rest"] = at_rest([folder / "home", folder / "deployment" / "server"], homes)
    if arm == "plain":
        found["error"] = float(
            np.abs(flat(weights_of(homes["hub"], "merged@hub", "weights")) - np.mean(list(true.values()), 0)).max()
        )
    else:
        found |= opened(tap, true)
    return found


def over_engine(folder: Path, file: Path, tap: Tap) -> dict[str, Path]:
    """The same over the engine; returns each party's folder."""
    from engine_sites import standing

    from osmotic.runtime.nvflare.server.engine import Engine
    from osmotic.runtime.nvflare.server.serving import serve

    send = Engine.send

    def listen(self: Any, site: str, header: dict[str, Any], blob: bytes, timeout: float) -> Reply:
        said, body = send(self, site, header, blob, timeout)
        tap.carried.append((site, len(json.dumps(said)), len(body)))
        return said, body

    policy = folder / "round.sites.yaml"
    with standing(folder / "deployment", CLIENTS, policy) as server:
        Engine.send = listen  # type: ignore[method-assign]
        try:
            serve(file, server, sites=policy, home=folder / "home")
        finally:
            Engine.send = send  # type: ignore[method-assign]
    sites = folder / "deployment" / "sites"
    homes = {party: next((sites / party / "home").rglob(f"parties/{party}")) for party in CLIENTS}
    return {**homes, "hub": folder / "home" / "parties" / "hub"}


# ---- reading ----


def weights_of(folder: Path, task: str, port: str) -> Any:
    from osmotic.runtime.storage.ledger import Ledger
    from osmotic.runtime.storage.store import Store

    ledger = Ledger(folder)
    rows = ledger.query("SELECT t.outputs FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id=?", (task,))
    ledger.close()
    ref = json.loads(rows[0][0])[port]
    return Store(folder / "store").get(ref["kind"], ref["digest"])


def flat(weights: Any) -> np.ndarray:
    return np.concatenate([weights.tensors[name].astype(np.float64).ravel() for name in sorted(weights.tensors)])


def at_rest(places: list[Path], homes: dict[str, Path]) -> dict[str, int]:
    """In how many of the server's files stands a part of a client's update, or a private text: what is left on its disk."""
    parts: list[bytes] = []
    for party in CLIENTS:
        tensors = weights_of(homes[party], f"update@{party}", "update").tensors
        parts += [tensor.astype("<f4").tobytes()[4096:4128] for tensor in tensors.values() if tensor.any()]
    texts = [text.encode() for party in CLIENTS for text in private(party)]
    own = [home for party, home in homes.items() if party in CLIENTS]
    files = [
        path
        for place in places
        for path in place.rglob("*")
        if path.is_file() and not any(home in path.parents for home in own)
    ]
    bodies = [path.read_bytes() for path in files]
    return {
        "files": len(files),
        "with an update": sum(any(part in body for part in parts) for body in bodies),
        "with a private text": sum(any(text in body for text in texts) for body in bodies),
    }


def private(party: str) -> list[str]:
    """Responses of a client's records."""
    import osmotic.plugins

    file = Path(osmotic.plugins.__path__[0]) / "handbook" / "data" / f"{party}.jsonl"
    return [json.loads(line)["response"] for line in file.read_text(encoding="utf-8").splitlines()]


def split(answers: list[Any]) -> Iterator[Any]:
    """Answers one by one: what came as one message for several steps is taken apart."""
    for party, asked, reply, body in answers:
        if asked.get("op") != "fragment" or "steps" not in reply:
            yield party, asked, reply, body
            continue
        at = 0
        for step, one in zip(asked["steps"], reply["steps"], strict=False):
            size = int(one.get("bytes", 0))
            yield party, step, one, body[at : at + size]
            at += size


def told(party: str, asked: dict[str, Any], reply: dict[str, Any], body: bytes, true: np.ndarray) -> dict[str, Any]:
    """One message: what it is about, how long it is, what can be read in it, how near it comes to the update."""
    what = " ".join(str(asked[key]) for key in ("op", "stage") if key in asked)
    found = {"party": party, "what": what, "header": len(json.dumps(reply)), "body": len(body), "keys": sorted(reply)}
    cosine, reading = best(body, true)
    found |= {"reading": reading, "cosine": cosine, "uniform": uniform(body) if len(body) >= 5120 else None}
    return found


def best(body: bytes, true: np.ndarray) -> tuple[float, str]:
    """The largest |cosine| with the update over the ways to read a body as numbers, and which way that was."""
    from osmotic.schemas.errors import OsmoticError
    from osmotic.schemas.messages import unpack

    readings: list[tuple[str, np.ndarray]] = []
    with contextlib.suppress(OsmoticError):
        envelope = unpack(body)
        readings.append((f"an artifact ({envelope.kind})", tensors(envelope)))
    for name, kind in (("floats", "<f4"), ("integers", "<i4")):
        for skip in range(4):  # the last numbers of the body, wherever they may begin
            words = np.frombuffer(body[skip : skip + (len(body) - skip) // 4 * 4], dtype=kind)
            if len(words) >= len(true):
                readings.append((name, as_numbers(words[-len(true) :])))
    scored = [(abs(cosine(vector, true)), name) for name, vector in readings if len(vector) == len(true)]
    if scored:
        value, name = max(scored)
        return value, name if value > 0.5 else "nothing"
    return 0.0, "text" if body and printable(body) else "no vector" if body else ""


def as_numbers(words: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(words.astype(np.float64), posinf=0, neginf=0)


def tensors(envelope: Any) -> np.ndarray:
    from osmotic.plugins.contract import Weights
    from osmotic.schemas.artifacts import KINDS

    artifact = KINDS[envelope.kind].from_files(envelope.files)
    return flat(artifact) if isinstance(artifact, Weights) else np.zeros(0)


def printable(body: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        return body.decode("utf-8").isprintable()
    return False


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(over="ignore", invalid="ignore"):
        scale = np.abs(a).max() or 1.0
        norm = np.linalg.norm(a / scale) * np.linalg.norm(b)
        return float(a / scale @ b / norm) if norm and math.isfinite(norm) else 0.0


def uniform(body: bytes) -> float:
    """p of a chi-square test that all byte values are as frequent."""
    from scipy.stats import chisquare

    return float(chisquare(np.bincount(np.frombuffer(body, np.uint8), minlength=256)).pvalue)


def opened(tap: Tap, true: dict[str, np.ndarray]) -> dict[str, Any]:
    """The opened sum beside the true one; each client's vector less its own mask, as the receiver can have it."""
    from osmotic.runtime.secure import masks
    from osmotic.runtime.secure.client import own_key

    if not tap.sessions:
        return {}
    session = tap.sessions[-1]
    total, survivors = session.finish.__wrapped__(session) if hasattr(session.finish, "__wrapped__") else session.finish()
    grid = session.plan.grid
    vector = np.concatenate([total[name].ravel() for name in sorted(total)])
    exact = sum(true[name] for name in survivors)
    residues = {}
    for party, asked, _, body in split(tap.answers):
        if asked.get("op") == "sum" and asked.get("stage") == "masked":
            words = np.frombuffer(body, "<u4").copy()
            masks.add_streams(words, [], [own_key(session.plan, party, session._recovered("self", party))])
            residues[party] = {
                "cosine": abs(cosine(words.view(np.int32).astype(np.float64), true[party])),
                "uniform": uniform(words.tobytes()),
            }
    return {
        "step": grid.step,
        "error": float(np.abs(vector - exact).max()),
        "deviation": float(np.std(vector - exact)),
        "sum and its clients": {name: cosine(vector, true[name]) for name in survivors},
        "less own masks": residues,
    }


def carried(tap: Tap) -> dict[str, Any]:
    return {
        "messages": len(tap.carried),
        "bytes": sum(body for _, _, body in tap.carried),
        "headers": sum(head for _, head, _ in tap.carried),
    }


# ---- showing ----


def show(arm: str, found: dict[str, Any]) -> None:
    print(f"\n== {arm}: one round, {found['numbers']:,} numbers an update, {found['how']}; answers of {CLIENTS[0]}")
    print(f"{'message':>16} {'times':>5} {'header':>7} {'body':>9}  {'read as':<18} {'cosine':>7} {'uniform':>8}  header")
    grouped: dict[str, list[dict[str, Any]]] = {}
    for message in found["messages"]:
        if message["party"] == CLIENTS[0]:
            grouped.setdefault(message["what"], []).append(message)
    for what, several in grouped.items():
        top = max(several, key=lambda one: (one["body"], one["header"]))
        keys = Counter(key for one in several for key in one["keys"])
        p = f"{top['uniform']:.3f}" if top["uniform"] is not None else "-"
        heads, bodies = (sum(one[part] for one in several) for part in ("header", "body"))
        first = f"{what:>16} {len(several):>5} {heads:>7} {bodies:>9,}"
        print(f"{first}  {top['reading']:<18} {top['cosine']:>7.4f} {p:>8}  {', '.join(keys)}")
    rest = found["at rest"]
    print(f"on the server's disk: {rest['files']} files, with a part of a client's update {rest['with an update']}", end="")
    print(f", with a private text {rest['with a private text']}")
    for party in CLIENTS:
        top = max((one for one in found["messages"] if one["party"] == party), key=lambda one: one["cosine"])
        print(f"best reading of anything that {party} sent: cosine {top['cosine']:.6f} ({top['what']}, {top['reading']})")
    over = found["carried"]
    if over["messages"]:
        print(f"the engine brought it {over['messages']} messages, {over['bytes']:,} bytes, headers {over['headers']:,}")
    print(f"what the server computes is off by at most {found['error']:.3g}", end="")
    print(f", deviation {found['deviation']:.3g}; a step is {found['step']:.3g}" if "step" in found else "")
    for name, one in found.get("less own masks", {}).items():
        near = found["sum and its clients"][name]
        print(f"{name}, less its own mask: cosine {one['cosine']:.4f}, p {one['uniform']:.3f}; the sum: cosine {near:.3f}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

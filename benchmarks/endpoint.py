# SPDX-License-Identifier: Apache-2.0
"""A teacher behind an OpenAI-compatible server that is slow, drops, refuses and lies: rows/s, rows lost, rows paid twice.

Usage: python benchmarks/endpoint.py [--rows 3000] [--concurrency 8] [--runs 3] [--kills 3]. The server is a process of its own:
every answer takes 50 ms, and of all requests 1% each meet a 429 with Retry-After 1, a 500, a dropped connection, an answer
that takes 200 ms, and garbage with status 200. The client is `osmotic run` of a one-party pipeline (record_loader,
teacher_generator), with store, journal and transcript as always. The ideal is concurrency / 50 ms; rows a second are counted at
the server, from the first request to the last answer, and also up to the moment when every prompt had been asked once: after
that only prompts that wait for their next try are left, and a server that asks for a second gets it. Beside them stands what
bare threads reach on this machine at that time.
Then runs are ended by SIGKILL at random moments and run again: printed are rows that are missing or have another prompt's
answer, answers that were paid again although they had been written down (there must be none), and answers that were paid again
because the kill came between the server's last byte and the journal.
"""

import argparse
import asyncio
import hashlib
import http.client
import json
import os
import platform
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

LATENCY, SLOW = 0.05, 0.2  # seconds
FAULTS = ("429", "500", "drop", "slow", "garbage")


# ---- the server ----


@dataclass
class Till:
    """What the server counts. paid: prompt -> answers that were sent to their last byte."""

    share: float
    seed: int
    asked: Counter[str] = field(default_factory=Counter)
    paid: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    first: float = 0.0
    last: float = 0.0
    fresh: float = 0.0  # when a prompt was asked for the first time, lately, and how many answers had been sent by then
    sent: int = 0
    by_then: int = 0
    now: int = 0
    most: int = 0

    def fault(self, prompt: str) -> str:
        """Which fault this request meets, or ''. Another try of the same prompt draws anew."""
        self.asked[prompt] += 1
        digest = hashlib.sha256(f"{self.seed}/{prompt}/{self.asked[prompt]}".encode()).digest()
        point = int.from_bytes(digest[:8], "big") / 2**64 / (self.share or 1e-300)
        return FAULTS[int(point * len(FAULTS))] if point < 1 else ""


async def serve(share: float, seed: int) -> None:
    """Listen on a free port of this machine, and print it."""
    till = Till(share, seed)
    server = await asyncio.start_server(lambda r, w: connection(till, r, w), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def connection(till: Till, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Requests of one connection, one after another."""
    try:
        while (head := await reader.readuntil(b"\r\n\r\n")) and await answer(till, head, reader, writer):
            pass
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def answer(till: Till, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; False when the connection is to be dropped."""
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    body = await reader.readexactly(length)
    if head.startswith(b"GET"):
        await send(writer, 200, json.dumps(vars(till)).encode())
        return True
    prompt = json.loads(body)["messages"][-1]["content"]
    till.first = till.first or time.monotonic()
    fault = till.fault(prompt)
    if till.asked[prompt] == 1:
        till.fresh, till.by_then = time.monotonic(), till.sent
    till.faults[fault or "none"] += 1
    till.now += 1
    till.most = max(till.most, till.now)
    try:
        if fault == "drop":
            return False
        if fault in ("429", "500"):
            await send(writer, int(fault), b"{}", b"retry-after: 1\r\n" if fault == "429" else b"")
            return True
        await asyncio.sleep(SLOW if fault == "slow" else LATENCY)
        if fault == "garbage":
            await send(writer, 200, b"<html>bad gateway</html>")
            return True
        message = {"role": "assistant", "content": f"because of {prompt.split()[-1]}"}
        usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": 3}
        await send(
            writer, 200, json.dumps({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage}).encode()
        )
        till.paid[prompt] += 1
        till.sent += 1
        till.last = time.monotonic()
        return True
    finally:
        till.now -= 1


async def send(writer: asyncio.StreamWriter, status: int, body: bytes, more: bytes = b"") -> None:
    """One response, to its last byte."""
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n" % (status, more, len(body)) + body
    )
    await writer.drain()


class Server:
    """The server's process."""

    def __init__(self, share: float, seed: int) -> None:
        command = [sys.executable, __file__, "--serve", str(seed), "--faults", str(share)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline()) if self.process.stdout else 0

    def till(self) -> dict[str, Any]:
        """What it has counted so far."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/till", timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


# ---- the client ----


def write(folder: Path, port: int, rows: int, concurrency: int) -> None:
    """Public records, site policy and pipeline of one party."""
    (folder / "data.jsonl").write_text(
        "".join(json.dumps({"id": f"r{i}", "note": f"n{i}"}) + "\n" for i in range(rows)), "utf-8"
    )
    binding = {"path": "data.jsonl", "schema": {"fields": {"note": {"text": True}}}, "label": "public"}
    policy = {"data": {"notes": binding}, "remote": [{"url": f"http://127.0.0.1:{port}/v1", "sees": "public"}]}
    config = {"url": f"http://127.0.0.1:{port}/v1", "model": "test", "concurrency": concurrency, "timeout": 10, "attempts": 8}
    tasks = {
        "notes": {"component": "record_loader", "at": "client", "config": {"data": "notes"}},
        "taught": {
            "component": "teacher_generator", "at": "client", "inputs": {"prompts": "notes"},
            "config": {"model": "teacher", "template": "Explain the note {{ note }}", "max_failures": 0},
        },
    }  # fmt: skip
    models = {"teacher": {"type": "openai", "at": "client", "config": config}}
    pipeline = {"osmotic": 1, "name": "asked", "parties": {"client": "north"}, "models": models, "tasks": tasks}
    (folder / "asked.yaml").write_text(json.dumps(pipeline), "utf-8")
    (folder / "asked.sites.yaml").write_text(json.dumps({"osmotic_sites": 1, "parties": {"north": policy}}), "utf-8")


def start(folder: Path) -> "subprocess.Popen[bytes]":
    """`osmotic run` in a process of its own."""
    program = "from osmotic.runtime.cli import main; main()"
    command = [sys.executable, "-c", program, "run", str(folder / "asked.yaml"), "--home", str(folder / "home")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(process: "subprocess.Popen[bytes]") -> None:
    """Wait for its end; say what went wrong if something did."""
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"the run failed ({process.returncode}):\n{said.decode()}")


def wrong_rows(folder: Path, rows: int) -> int:
    """Rows of the finished run that are missing or have no answer or another prompt's."""
    from osmotic.runtime.storage.store import Store
    from osmotic.schemas.artifacts import Records

    party = folder / "home" / "parties" / "north"
    with sqlite3.connect(party / "run.sqlite") as db:
        sql = "SELECT t.outputs FROM instances i JOIN tasks t ON t.key = i.key WHERE i.id LIKE 'taught%'"
        outputs = json.loads(db.execute(sql).fetchone()[0])
    db.close()
    found = Store(party / "store").get(Records.kind, outputs["rationales"]["digest"])
    right = {row["id"] for row in found if row["rationale"] == f"because of n{row['id'][1:]}" and not row["problem"]}
    return len({f"r{i}" for i in range(rows)} - right)


def journaled(folder: Path) -> set[str]:
    """Keys of the answers that are written down."""
    with sqlite3.connect(folder / "home" / "parties" / "north" / "run.sqlite") as db:
        found = {key for (key,) in db.execute("SELECT key FROM journal WHERE name='rows'")}
    db.close()
    return found


def key_of(prompt: str) -> str:
    """A prompt's key in the journal."""
    return hashlib.sha256(prompt.encode()).hexdigest()


# ---- what is measured ----


def clean_run(options: argparse.Namespace, seed: int, share: float) -> dict[str, Any]:
    """One run from beginning to end."""
    with tempfile.TemporaryDirectory() as place:
        server = Server(share, seed)
        try:
            write(Path(place), server.port, options.rows, options.concurrency)
            finish(start(Path(place)))
            till = server.till()
        finally:
            server.close()
        return {
            "rate": options.rows / (till["last"] - till["first"]),
            "busy": till["by_then"] / (till["fresh"] - till["first"]), "faults": till["faults"], "most": till["most"],
            "wrong": wrong_rows(Path(place), options.rows), "twice": sum(n - 1 for n in till["paid"].values()),
        }  # fmt: skip


def bare_rate(options: argparse.Namespace) -> float:
    """Rows a second of threads that send the same requests over kept connections and do nothing else."""
    server, todo, guard = Server(0.0, 0), list(range(options.rows)), threading.Lock()

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        while True:
            with guard:
                if not todo:
                    return
                index = todo.pop()
            message = {"role": "user", "content": f"Explain the note n{index}"}
            connection.request("POST", "/v1/chat/completions", json.dumps({"model": "test", "messages": [message]}))
            connection.getresponse().read()

    try:
        threads = [threading.Thread(target=ask) for _ in range(options.concurrency)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        till = server.till()
        return float(options.rows / (till["last"] - till["first"]))
    finally:
        server.close()


def killed_run(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """A run that is killed when a random number of answers was paid, and run again until it has finished."""
    draw, options = random.Random(seed), argparse.Namespace(**{**vars(options), "rows": options.killed_rows})
    with tempfile.TemporaryDirectory() as place:
        folder, server = Path(place), Server(options.faults, seed)
        try:
            write(folder, server.port, options.rows, options.concurrency)
            process, aim = start(folder), draw.randrange(options.rows // 10, options.rows * 9 // 10)
            while process.poll() is None and sum(server.till()["paid"].values()) < aim:
                time.sleep(draw.uniform(0.001, 0.02))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            time.sleep(2 * SLOW)  # what was under way has reached nobody
            paid, kept = server.till()["paid"], journaled(folder)
            finish(start(folder))
            after = server.till()["paid"]
        finally:
            server.close()
        again = {prompt for prompt in paid if after[prompt] > paid[prompt]}
        return {
            "killed at": sum(paid.values()), "written down": len(kept), "wrong": wrong_rows(folder, options.rows),
            "paid again though written": sum(key_of(prompt) in kept for prompt in again),
            "paid again, not yet written": sum(key_of(prompt) not in kept for prompt in again),
        }  # fmt: skip


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--killed-rows", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--serve", type=int, default=None, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve is not None:
        asyncio.run(serve(options.faults, options.serve))
        return
    machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before the start"
    print(f"python {platform.python_version()}, h11 {version('h11')}, osmotic {version('osmotic')}, {machine}")
    ideal = options.concurrency / LATENCY
    print(
        f"{options.rows} rows, {options.concurrency} at a time, {LATENCY * 1000:.0f} ms an answer: ideal {ideal:.0f} rows/s\n"
    )
    for share in (0.0, options.faults):
        bare = [bare_rate(options) for _ in range(options.runs)]
        found = [clean_run(options, seed, share) for seed in range(options.runs)]
        rates = sorted(one["rate"] for one in found)
        middle, lost, twice = statistics.median(rates), sum(one["wrong"] for one in found), sum(one["twice"] for one in found)
        span = f"median of {len(rates)} ({rates[0]:.1f} to {rates[-1]:.1f})"
        print(f"faults {share:.0%}: {middle:.1f} rows/s, {span}, {middle / ideal:.1%} of the ideal")
        busy = statistics.median(one["busy"] for one in found)
        print(f"  until every prompt had been asked once: {busy:.1f} rows/s, {busy / ideal:.1%} of the ideal")
        print(f"  beside it {options.concurrency} bare threads without faults: {statistics.median(bare):.1f} rows/s")
        print(f"  at most {max(one['most'] for one in found)} requests at a time; last run met {found[-1]['faults']}")
        print(f"  rows lost or wrong: {lost}; answers paid twice: {twice}")
    print("\nkill -9, then again")
    for seed in range(options.kills):
        print("  " + ", ".join(f"{name}: {value}" for name, value in killed_run(options, 100 + seed).items()))


if __name__ == "__main__":
    main()

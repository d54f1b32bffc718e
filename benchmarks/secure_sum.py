# SPDX-License-Identifier: Apache-2.0
"""What a secure sum costs: CPU and bytes a client, the receiver's CPU, exactness, and three of ten lost at each stage.

python benchmarks/secure_sum.py [--numbers N] [--clients N] [--repeats N] [--json FILE]

All in one process, one client after another; CPU is the process's own clock around a client's five calls, the median over
clients, the least over repeats. Rows to compare with: the plain float32 update, written out; as many masks from numpy's Philox
(no secret generator: what masking costs without cryptography), and drawn word by word from HMAC-SHA256 in Python (on a
hundredth of the numbers, scaled up). Memory is what a client's `mask` holds at the most, by tracemalloc, beside
the vector itself.
"""

import argparse
import hmac
import json
import os
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from osmotic.runtime.secure.client import ClientSession
from osmotic.runtime.secure.noise import deviation
from osmotic.runtime.secure.plan import SumPlan
from osmotic.runtime.secure.server import ServerSession

STAGES = ("keys", "shares", "masked", "confirmed", "answers")
Vectors = dict[str, dict[str, np.ndarray]]


def plan_of(clients: int, numbers: int, noise: float | None) -> SumPlan:
    """Two matrices and a bias, clipped at 1."""
    names, wide = tuple(f"client-{i}" for i in range(clients)), numbers // 4
    shapes = {"up": (wide,), "down": (wide, 2), "bias": (numbers - 3 * wide,)}
    return SumPlan(
        session=os.urandom(16), names=names, receiver="server", shapes=shapes, at_least=3, clip=1.0, noise_multiplier=noise
    )


def vectors_of(plan: SumPlan, norm: float) -> Vectors:
    """Normal numbers, scaled to about this norm."""
    generator, size = np.random.default_rng(0), norm / plan.size**0.5
    return {n: {k: generator.normal(0, size, s).astype(np.float32) for k, s in plan.shapes.items()} for n in plan.names}


class Round:
    """One sum, timed: CPU seconds by client and stage, bytes sent by client."""

    def __init__(self, plan: SumPlan, vectors: Vectors, lost_after: str = "", lost: int = 0) -> None:
        self.plan, self.cpu, self.bytes = (
            plan,
            {n: dict.fromkeys(STAGES, 0.0) for n in plan.names},
            dict.fromkeys(plan.names, 0),
        )
        server = ServerSession(plan, os.urandom(32))
        clients = {name: ClientSession(plan, name) for name in plan.names}
        alive, spent = list(plan.names), 0.0
        steps: dict[str, tuple[Callable[[str], Any], Callable[[str, Any], None]]] = {
            "keys": (lambda n: clients[n].advertise(), server.add_keys),
            "shares": (lambda n: clients[n].share(server.keys(), server.open()), server.add_shares),
            "masked": (lambda n: clients[n].mask(server.shares_for(n), vectors[n]), server.add_masked),
            "confirmed": (lambda n: clients[n].confirm(server.survivors()), server.add_signature),
            "answers": (lambda n: clients[n].unmask(server.signatures()), server.add_unmask),
        }
        for stage, (ask, take) in steps.items():
            for name in alive:
                start = time.process_time()
                message = ask(name)
                self.cpu[name][stage] = time.process_time() - start
                self.bytes[name] += len(message)
                start = time.process_time()
                take(name, message)
                spent += time.process_time() - start
            if stage == lost_after:
                alive = alive[lost // 2 : len(alive) - (lost - lost // 2)]
        start = time.process_time()
        self.total, self.survivors = server.finish()
        self.server = spent + time.process_time() - start

    def worst(self, vectors: Vectors) -> float:
        """Largest difference of the sum from the float64 sum of the vectors."""
        plain = {k: sum(vectors[n][k].astype(np.float64) for n in self.survivors) for k in self.plan.shapes}
        return max(float(np.abs(self.total[k] - plain[k]).max()) for k in plain)


def timed(call: Callable[[], Any], repeats: int) -> float:
    """CPU seconds, the least."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)


def cost(clients: int, numbers: int, noise: float | None, repeats: int) -> dict[str, Any]:
    """A row: CPU of a client (by stage), bytes over float32, CPU of the receiver, exactness."""
    plan = plan_of(clients, numbers, noise)
    vectors, rounds = vectors_of(plan, 0.9), []
    for _ in range(repeats):
        rounds.append(Round(plan, vectors))
        plan = plan_of(clients, numbers, noise)
    best = min(rounds, key=lambda r: statistics.median(sum(of.values()) for of in r.cpu.values()))
    stages = {stage: statistics.median(of[stage] for of in best.cpu.values()) for stage in STAGES}
    off = best.worst(vectors)
    return {
        "clients": clients, "numbers": numbers, "noise": noise, "client_cpu": sum(stages.values()), "stages": stages,
        "client_cpu_largest": max(sum(of.values()) for of in best.cpu.values()),
        "bytes_over_float32": max(best.bytes.values()) / (4 * numbers), "server_cpu": best.server, "step": plan.step,
        "worst_in_steps": off / plan.step, "noise_deviation": deviation(plan, clients) if noise else 0.0, "worst": off,
    }  # fmt: skip


def recovered(clients: int, numbers: int, lost: int) -> list[dict[str, Any]]:
    """Three of ten lost after each stage (before it, for the next): who is in the sum, is it exact, the receiver's CPU."""
    rows = []
    for stage in STAGES[:-1]:
        plan = plan_of(clients, numbers, None)
        vectors = vectors_of(plan, 0.9)
        done = Round(plan, vectors, stage, lost)
        exact = done.worst(vectors) <= plan.step * len(done.survivors) / 2
        rows.append({"after": stage, "in_the_sum": len(done.survivors), "exact": exact, "server_cpu": done.server})
    return rows


def peers(clients: int, numbers: int, repeats: int) -> dict[str, float]:
    """CPU seconds a client: the plain update, masks of numpy's Philox, masks word by word in Python."""
    vector = np.random.default_rng(0).normal(0, 1, numbers).astype(np.float32)

    def philox() -> bytes:
        words = np.rint(vector.astype(np.float64) * 2**20).astype(np.int32).view(np.uint32)
        for peer in range(clients):
            words += np.random.Generator(np.random.Philox(peer)).integers(0, 1 << 32, numbers, dtype=np.uint32)
        return words.tobytes()

    def by_word() -> list[int]:
        few = [int(x * 2**20) for x in vector[: numbers // 100]]
        for peer in range(clients):
            key = peer.to_bytes(32, "big")
            few = [
                (x + int.from_bytes(hmac.digest(key, i.to_bytes(8, "big"), "sha256")[:4], "big")) & 0xFFFFFFFF
                for i, x in enumerate(few)
            ]
        return few

    return {
        "plain": timed(vector.tobytes, repeats), "philox": timed(philox, repeats), "python": 100 * timed(by_word, 1),
    }  # fmt: skip


def memory(clients: int, numbers: int) -> float:
    """Bytes held at the most in `mask`, over the vector's own size."""
    plan = plan_of(clients, numbers, 1.0)
    vectors, server = vectors_of(plan, 0.9), ServerSession(plan, bytes(32))
    people = {name: ClientSession(plan, name) for name in plan.names}
    for name, client in people.items():
        server.add_keys(name, client.advertise())
    for name, client in people.items():
        server.add_shares(name, client.share(server.keys(), server.open()))
    boxes = server.shares_for(plan.names[0])
    tracemalloc.start()
    people[plan.names[0]].mask(boxes, vectors[plan.names[0]])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / (4 * numbers)


def main() -> int:
    """Print the tables; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, default=2_500_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [cost(given.clients, given.numbers, noise, given.repeats) for noise in (None, 1.0)]
    rows += [cost(many, given.numbers // 10, None, 1) for many in (50, 100)]
    lost, others = recovered(given.clients, given.numbers, 3), peers(given.clients, given.numbers, given.repeats)
    held = memory(given.clients, given.numbers)
    print(
        f"{platform.processor() or platform.machine()}, python {platform.python_version()}, numpy {version('numpy')}, ", end=""
    )
    print(f"cryptography {version('cryptography')}; load {os.getloadavg()[0]:.1f}")
    heads = {"clients": 8, "numbers": 11, "noise": 7, "client CPU": 12, "largest": 9, "bytes/float32": 15, "receiver CPU": 14}
    print("".join(f"{head:>{wide}}" for head, wide in heads.items()) + f"{'worst, steps':>14}")
    for row in rows:
        print(
            f"{row['clients']:>8}{row['numbers']:>11,}{row['noise'] or '-':>7}{row['client_cpu']:>11.3f}s"
            f"{row['client_cpu_largest']:>8.3f}s{row['bytes_over_float32']:>15.4f}{row['server_cpu']:>13.3f}s"
            + (f"{row['worst_in_steps']:>14.2f}" if not row["noise"] else f"{'noise':>14}")
        )
    for row in rows[:2]:
        print("  by stage, ms: " + ", ".join(f"{stage} {1e3 * s:.1f}" for stage, s in row["stages"].items()))
    print(f"plain float32 {others['plain']:.4f}s; masks by numpy's Philox {others['philox']:.3f}s; ", end="")
    print(f"word by word in Python {others['python']:.0f}s")
    for row in lost:
        said = f"{row['in_the_sum']:>3} in the sum, exact: {row['exact']}, receiver {row['server_cpu']:.3f}s"
        print(f"3 lost after {row['after']:<10} {said}")
    print(f"memory in mask: {held:.2f} x the float32 vector, beside it")
    if given.json:
        given.json.write_text(json.dumps({"rows": rows, "lost": lost, "peers": others, "memory": held}, indent=1) + "\n")
    good = rows[0]["client_cpu"] <= 0.1 and rows[0]["bytes_over_float32"] <= 1.1 and all(row["exact"] for row in lost)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

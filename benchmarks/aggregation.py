# SPDX-License-Identifier: Apache-2.0
"""How fast clients' adapters become one, and that memory does not grow with their number.

python benchmarks/aggregation.py [--clients 10,100,1000] [--rules plain,dp,median,product] [--flower PYTHON]

Adapters of 180 modules, 896 x 896, rank 8, float32: 10.3 MB a client. 20 different ones lie in a store in a temporary folder
and are taken round-robin: the files are in the page cache, as they would be just after they arrived. Each row is a process of
its own on one thread; GB/s counts the clients' bytes over CPU seconds, reading and verifying SHA-256 included; the peak is that
of the process.
dp is the host's arithmetic (clip, grid, noise) without a ledger. numpy: mean of all clients' arrays, stacked, and Flower's own
function over lists of arrays; both read plain files without verifying them, and hold everybody: they are left out where that
would take more than 4 GB. --flower: a Python that flwr is installed in.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DISTINCT, MODULES, SIDE, RANK, ROOM = 20, 180, 896, 8, 4e9
SHAPES = [shape for _ in range(MODULES) for shape in ((RANK, SIDE), (SIDE, RANK))]
BYTES = 4 * sum(a * b for a, b in SHAPES)
KEYS = {
    "plain": {"aggregation": "plain"},
    "median": {"aggregation": "median"},
    "krum": {"aggregation": "krum"},
    "trimmed-mean": {"aggregation": "trimmed-mean"},
    "product": {"aggregation": "plain", "adapters": "product"},
    "dp": {"aggregation": "dp", "dp": {"clip": 1.0, "noise_multiplier": 1.0}},
}
FLAT = """
import json, resource, sys, time
import numpy as np
folder, count, distinct, shapes, flower = json.loads(sys.argv[1])
def load(i):
    flat, found, at = np.fromfile(f"{folder}/{i % distinct}.bin", dtype="float32"), [], 0
    for a, b in shapes:
        found.append(flat[at : at + a * b].reshape(a, b)); at += a * b
    return found
if flower:
    from flwr.server.strategy.aggregate import aggregate
start, used = time.perf_counter(), time.process_time()
if flower:
    aggregate([(load(i), 1) for i in range(count)])
else:
    clients = [load(i) for i in range(count)]
    [np.mean(np.stack([c[j] for c in clients]), axis=0) for j in range(len(shapes))]
took, cpu = time.perf_counter() - start, time.process_time() - used
print(json.dumps({"seconds": took, "cpu": cpu, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
"""


def make(folder: Path) -> list[str]:
    """Distinct adapters in a store, and flat for the peers; returns the digests."""
    from osmotic.plugins.contract import Weights
    from osmotic.runtime.storage.store import Store

    store, digests = Store(folder / "store"), []
    for i in range(DISTINCT):
        generator = np.random.default_rng(i)
        arrays = [generator.normal(size=shape).astype("float32") for shape in SHAPES]
        names = [f"layers.{j // 2}.lora_{'AB'[j % 2]}.default.weight" for j in range(len(SHAPES))]
        digests.append(store.put(Weights(dict(zip(names, arrays, strict=True)), {"base": "b" * 64, "layout": "lora"})))
        np.concatenate([array.reshape(-1) for array in arrays]).tofile(folder / f"{i}.bin")
    return digests


def work(folder: Path, rule: str, count: int, digests: list[str]) -> dict[str, float]:
    """Aggregate once; {seconds, cpu, peak}."""
    from osmotic.components.aggregator import Aggregator, AggregatorConfig
    from osmotic.plugins.contract import Gathered, Weights
    from osmotic.plugins.testing import FakeContext
    from osmotic.runtime.storage.store import Store

    store = Store(folder / "store")
    named = {f"p{i:05d}": digests[i % DISTINCT] for i in range(count)}
    loaders = {party: (lambda d=digest: store.get("weights", d)) for party, digest in named.items()}
    openers = {party: (lambda d=digest: store.open("weights", d)) for party, digest in named.items()}
    previous = store.get("weights", digests[0]) if rule == "dp" else None
    component = Aggregator(AggregatorConfig.model_validate(KEYS[rule]))
    start, used = time.perf_counter(), time.process_time()
    component.run(FakeContext(), Gathered(loaders, openers), previous if isinstance(previous, Weights) else None)
    took, cpu = time.perf_counter() - start, time.process_time() - used
    return {"seconds": took, "cpu": cpu, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}


def outside(command: list[str]) -> dict[str, float]:
    """What a process of its own printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    )
    if done.returncode:
        sys.exit(f"{command[:3]} ended with {done.returncode}:\n{done.stderr[-1500:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(name: str, count: int, found: dict[str, float] | str) -> None:
    """One row."""
    if isinstance(found, str):
        print(f"{name:<22}{count:>8}   not run: {found}", flush=True)
        return
    speed = count * BYTES / found["cpu"] / 1e9
    print(
        f"{name:<22}{count:>8}{found['seconds']:>10.2f}{found['cpu']:>10.2f}{speed:>9.2f}{found['peak'] / 2**20:>11.0f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clients", default="10,100,1000")
    parser.add_argument("--rules", default="plain,dp,median,product")
    parser.add_argument("--flower", help="a Python with flwr")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        folder, rule, count, digests = json.loads(given.worker)
        print(json.dumps(work(Path(folder), rule, count, digests)))
        return
    counts = [int(text) for text in given.clients.split(",")]
    print(f"python {platform.python_version()}, numpy {np.__version__}, {platform.machine()}, {BYTES / 1e6:.1f} MB a client")
    print(f"{'':<22}{'clients':>8}{'seconds':>10}{'CPU s':>10}{'GB/s':>9}{'peak MiB':>11}")
    with tempfile.TemporaryDirectory() as temporary:
        digests = make(Path(temporary))
        for rule in given.rules.split(","):
            for count in counts:
                text = json.dumps([temporary, rule, count, digests])
                show(f"osmotic {rule}", count, outside([sys.executable, __file__, "--worker", text]))
        for name, python in (("numpy mean(stack)", sys.executable), ("flower aggregate", given.flower)):
            for count in counts:
                if python is None or count * BYTES > ROOM:
                    why = "no --flower PYTHON" if python is None else f"it would hold {count * BYTES / 1e9:.1f} GB"
                    show(name, count, why)
                    continue
                text = json.dumps([temporary, count, DISTINCT, SHAPES, name.startswith("flower")])
                show(name, count, outside([python, "-c", FLAT, text]))


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""How long one waits before anything runs: CPU seconds of `--help`, `plan fedcot`, and a plan of 100 parties x 50 rounds.

python benchmarks/startup.py [repeats]   prints medians; budgets of the design in brackets. Fresh processes, cold registry.
"""

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import osmotic

ROUNDS = """
osmotic: 1
name: wide
parties: {server: hub, clients: 100}
tasks:
  records: {component: record_loader, at: clients, config: {data: items}}
  federated:
    repeat: {times: 50, carry: {global: {from: averaged}}}
    tasks:
      local:
        component: student_trainer
        at: clients
        inputs: {records: records, init: carry.global}
        config: {model: student, label_prompt: a, label_target: b, rationale_prompt: c, steps: 1}
      averaged:
        component: aggregator
        at: server
        inputs: {models: {from: local, waive: "a plan to measure, never run"}}
models:
  student: {type: transformers, at: clients, config: {path: "osmotic:clinic/student"}}
"""
MAIN = "import sys; from osmotic.runtime.cli import main; main()"


def measure(arguments: list[str], repeats: int) -> tuple[float, float]:
    """Medians of (wall, CPU) seconds of fresh processes."""
    walls, cpus = [], []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        walls.append(time.perf_counter() - start)
        if done.returncode:
            sys.exit(f"osmotic {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
        cpus.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(walls), statistics.median(cpus)


def sites() -> str:
    """A policy for each of the 100 parties: benchmark data, a waiver for the averaging."""
    clients = [f"party-{i:02d}" for i in range(100)]
    binding = {"path": "items.jsonl", "schema": {"fields": {"colour": {"domain": ["red", "blue"]}}}, "purpose": "benchmark"}
    waiver = {"edge": "federated.averaged.models", "observers": ["hub", *clients]}
    policy = {"data": {"items": binding}, "waivers": [waiver]}
    return json.dumps({"osmotic_sites": 1, "parties": {"hub": {}, **dict.fromkeys(clients, policy)}})


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    print(f"osmotic {osmotic.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores, median of {repeats}")
    with tempfile.TemporaryDirectory() as folder:
        wide = Path(folder) / "wide.yaml"
        wide.write_text(ROUNDS, encoding="utf-8")
        wide.with_name("wide.sites.yaml").write_text(sites(), encoding="utf-8")
        wide.with_name("items.jsonl").write_text('{"id": "1", "colour": "red"}\n', encoding="utf-8")
        rows = [
            ("osmotic --help", ["--help"], 0.3),
            ("osmotic plan fedcot", ["plan", "fedcot", "--home", f"{folder}/home"], 1.5),
            ("validate 100 parties x 50 rounds", ["validate", str(wide)], 5.0),
            ("plan 100 parties x 50 rounds", ["plan", str(wide), "--home", f"{folder}/wide"], 5.0),
        ]
        for name, arguments, budget in rows:
            wall, cpu = measure(arguments, repeats)
            print(f"{name:36s} wall {wall:6.2f} s   CPU {cpu:6.2f} s   (budget {budget:g} s)")


if __name__ == "__main__":
    main()

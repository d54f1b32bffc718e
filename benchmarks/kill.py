# SPDX-License-Identifier: Apache-2.0
"""Kill a sanitizing run at random moments, resume it until it has finished, and compare its ledger with its releases.

Usage: python benchmarks/kill.py [--kills 100] [--records 10000] [--seed 0]. Each attempt is a process of its own, `osmotic run`
of a one-party pipeline, ended by SIGKILL: four of five a random time after its release began, the others anywhere. A run that
ended before is not counted, and the next one starts over a fresh vault. Printed: how many releases were there after each kill,
and at the end whether every charge has its release and the reverse, whether the total is that of one clean run, and whether a
document was charged twice.
"""

import argparse
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

EPSILON = 3
DOMAIN = ["red", "green", "blue", "white", "black", "brown"]
WORDS = ["the", "patient", "has", "a", "rash", "and", "a", "fever", "since", "monday", "but", "no", "cough", "at", "all"]


@dataclass
class Outcome:
    """What the kills came to."""

    kills: int = 0
    finished: int = 0
    runs: int = 0
    stages: list[int] = field(default_factory=list)  # releases in the ledger right after each kill
    problems: list[str] = field(default_factory=list)


def write(folder: Path, records: int) -> None:
    """Records, site policy and pipeline of one party."""
    draw = random.Random(7)
    rows = [{"id": f"r{i}", "colour": draw.choice(DOMAIN), "note": " ".join(draw.choices(WORDS, k=12))} for i in range(records)]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    names = [*dict.fromkeys(WORDS), *(f"word{i}" for i in range(2000))]
    (folder / "words.txt").write_text("\n".join(names), encoding="utf-8")
    np.save(folder / "words.npy", np.random.default_rng(7).standard_normal((len(names), 8)).astype(np.float32))
    schema = {"fields": {"colour": {"domain": DOMAIN}, "note": {"text": True, "table": "words.npy"}}}
    policy = {"data": {"notes": {"path": "data.jsonl", "schema": schema}}, "budget": {"notes": {"per_document": 13 * EPSILON}}}
    sites = {"osmotic_sites": 1, "parties": {"north": policy}}
    mechanism = {"name": "list-rr", "epsilon": EPSILON, "k": 1}
    tasks = {
        "notes": {"component": "record_loader", "at": "client", "config": {"data": "notes"}},
        "safe": {
            "component": "dp_sanitizer", "at": "client", "inputs": {"records": "notes"},
            "config": {"mechanism": mechanism, "fields": ["colour", "note"]},
        },
    }  # fmt: skip
    pipeline = {"osmotic": 1, "name": "kill", "parties": {"client": "north"}, "tasks": tasks}
    (folder / "kill.yaml").write_text(json.dumps(pipeline), encoding="utf-8")
    (folder / "kill.sites.yaml").write_text(json.dumps(sites), encoding="utf-8")


CHILD = """
from osmotic.runtime import cli
from osmotic.runtime.privacy import releases
real = releases.Releaser.release
def release(*given, **named):
    print("begun", flush=True)
    return real(*given, **named)
releases.Releaser.release = release
cli.main()
"""  # the program as it is, and a line on standard output when the release begins, so that kills can be aimed


def start(folder: Path, vault: str) -> "subprocess.Popen[bytes]":
    """`osmotic run` in a process of its own; vault: folder of the run, so of its ledger and releases."""
    command = [sys.executable, "-c", CHILD, "run", str(folder / "kill.yaml"), "--home", str(folder / vault)]
    command += ["--sites", str(_sites(folder, vault))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def until_begun(process: "subprocess.Popen[bytes]") -> None:
    """Wait until the release begins, or the process ends."""
    for line in process.stdout or ():
        if line.strip() == b"begun":
            return


def _sites(folder: Path, vault: str) -> Path:
    """The policies, with a state folder of this vault."""
    path = folder / f"{vault}.sites.yaml"
    sites = json.loads((folder / "kill.sites.yaml").read_text(encoding="utf-8"))
    path.write_text(json.dumps({**sites, "state": f"{vault}.state"}), encoding="utf-8")
    return path


def ledger_of(folder: Path, vault: str) -> Path:
    """The ledger file of a vault."""
    return folder / f"{vault}.state" / "north" / "ledger.sqlite"


def totals(ledger: Path) -> dict[str, Any]:
    """Releases, charges, sum of epsilon, documents, and documents with more than one release."""
    if not ledger.is_file():
        return {"releases": 0, "charges": 0, "epsilon": 0.0, "documents": 0, "twice": 0, "differ": 0}
    db = sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)
    try:
        if db.execute("SELECT COUNT(*) FROM sqlite_master WHERE name='releases'").fetchone()[0] == 0:
            return {"releases": 0, "charges": 0, "epsilon": 0.0, "documents": 0, "twice": 0, "differ": 0}
        stored = dict(db.execute("SELECT lookup, epsilon FROM releases").fetchall())
        bodies = [json.loads(body) for (body,) in db.execute("SELECT body FROM charges")]
        documents = [n for (n,) in db.execute("SELECT COUNT(*) FROM releases GROUP BY document")]
    finally:
        db.close()
    charged = {body["release"]: body["epsilon"] for body in bodies}
    return {
        "releases": len(stored), "charges": len(bodies), "epsilon": sum(stored.values()), "documents": len(documents),
        "twice": sum(n > 1 for n in documents), "differ": len(stored.items() ^ charged.items()) + len(bodies) - len(charged),
    }  # fmt: skip


def finish(folder: Path, vault: str) -> tuple[float, float]:
    """Run to the end; seconds until the release begins, and from there on. Raises RuntimeError when it fails."""
    started = time.monotonic()
    process = start(folder, vault)
    until_begun(process)
    begun = time.monotonic()
    _, said = process.communicate()
    if process.returncode:
        raise RuntimeError(said.decode()[-2000:])
    return begun - started, time.monotonic() - begun


def check(folder: Path, vault: str, clean: dict[str, Any]) -> list[str]:
    """What is wrong with a finished vault, compared with that of a clean run."""
    from osmotic.runtime.results.verifying import verify

    found = totals(ledger_of(folder, vault))
    problems = [f"{vault}: {text}" for text in verify(folder / vault)["problems"]]
    if found != clean or found["differ"] or found["twice"]:
        problems.append(f"{vault}: {found}, a clean run has {clean}")
    return problems


def torture(folder: Path, kills: int, records: int, seed: int, show: bool = False) -> Outcome:
    """Kill `kills` times, resume each time, start over a fresh vault whenever a run has finished; then check every vault."""
    write(folder, records)
    before, work = finish(folder, "clean")
    clean, outcome, draw, vaults = totals(ledger_of(folder, "clean")), Outcome(), random.Random(seed), ["run0"]
    last = 0
    while outcome.kills < kills:
        vault = vaults[-1]
        process = start(folder, vault)
        outcome.runs += 1
        aimed = draw.random() < 0.8  # the others hit anywhere, the start included
        delay = draw.uniform(0, work if aimed else before + work)
        if aimed:
            until_begun(process)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            outcome.kills += 1
        process.communicate()
        there = totals(ledger_of(folder, vault))
        if process.returncode == 0:
            outcome.finished += 1
            vaults.append(f"run{len(vaults)}")
            last = 0
            continue
        if process.returncode != -signal.SIGKILL:
            outcome.problems.append(f"{vault}: a resumed run failed with exit code {process.returncode}")
            return outcome  # somebody changed the program meanwhile, or it is broken
        if there["releases"] < last or there["differ"] or there["twice"]:
            outcome.problems.append(f"{vault}: after a kill, {there}")
        last = there["releases"]
        outcome.stages.append(last)
        if show:
            when = "release began" if aimed else "start"
            print(f"  kill {outcome.kills:3d}: {delay:5.2f} s after the {when}, {last:6d} of {clean['releases']}", flush=True)
    for vault in vaults:
        if (folder / vault).is_dir() or vault == vaults[-1]:
            finish(folder, vault)
            outcome.problems += check(folder, vault, clean)
    return outcome


def main() -> int:
    """Print the table; exit code 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcome = torture(Path(name), given.kills, given.records, given.seed, show=True)
        clean = totals(ledger_of(Path(name), "clean"))
    inside = sum(0 < n < clean["releases"] for n in outcome.stages)
    print(f"records                                   {given.records}")
    print(f"kill -9                                   {outcome.kills} ({inside} with the release begun and not whole)")
    print(f"runs started                              {outcome.runs}, of which {outcome.finished} ended before their kill")
    print(f"vaults brought to their end and checked   {outcome.finished + 1}")
    print(f"releases = charges, each vault            {clean['releases']} = {clean['charges']}")
    print(f"epsilon over all documents, each vault    {clean['epsilon']:g} (the clean run's)")
    print(f"problems                                  {len(outcome.problems)}")
    for problem in outcome.problems:
        print(f"  {problem}")
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
"""Fifty sites in one plan: how long the plan takes, and a small run of it in process, over mailboxes, over NVFlare.

    benchmarks/engine_many.py [--parties 50] [--sites 5] [--out FILE]

Each party loads 12 records, sanitises two fields and sends them; the server counts over the gather of all: two tasks a party
and one. *In process* and *mailboxes* have all parties; mailboxes are the whole protocol between coordinator and sites over an
engine of threads in this process, without NVFlare. *NVFlare* has real processes (a parent and a job process a site, TLS on
loopback), so as many sites as the machine bears. Second runs have nothing to do. Components are those of the tests.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TOYS = HERE.parent / "tests" / "runtime" / "toy_plugin"
COLOURS = ["red", "green", "blue", "white"]
SCHEMA = {"fields": {"colour": {"domain": COLOURS}, "size": {"domain": ["s", "m", "l"]}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parties", type=int, default=50)
    parser.add_argument("--sites", type=int, default=5, help="real processes; 0: leave this part out")
    parser.add_argument("--out", type=Path, help="write the numbers here, as JSON")
    given = parser.parse_args()
    os.environ |= {"PYTHONPATH": str(TOYS), "OSMOTIC_PLUGINS": "toys"}
    sys.path.insert(0, str(TOYS))
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = write(Path(folder) / "many", given.parties)
        for row in (planned, in_process, mailboxes):
            found += noted(row(file))
        if given.sites:
            found += noted(engine(write(Path(folder) / "few", given.sites)))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def noted(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print each row as it comes."""
    found = []
    for row in rows:
        found.append({**row, "load": os.getloadavg()[0]})
        print(f"{row['what']:<52} {row['seconds']:>8.2f} s   load {found[-1]['load']:.1f}", flush=True)
    return found


def write(folder: Path, count: int) -> Path:
    """Records, policies, pipeline."""
    folder.mkdir()
    parties = [f"site-{number:02d}" for number in range(count)]
    for party in parties:
        rows = [{"id": f"{party}-{i}", "colour": COLOURS[i % 4], "size": "sml"[i % 3]} for i in range(12)]
        (folder / f"{party}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = {party: {"data": {"items": {"path": f"{party}.jsonl", "schema": SCHEMA}}} for party in parties}
    policy = {"osmotic_sites": 1, "defaults": {"budget": {"*": {"per_document": 1000}}}, "parties": {"hub": {}, **data}}
    mechanism = {"name": "list-rr", "epsilon": 2, "k": 1}
    safe = {"mechanism": mechanism, "fields": ["colour", "size"]}
    tasks = {
        "items": {"component": "record_loader", "at": "clients", "config": {"data": "items"}},
        "safe": {"component": "dp_sanitizer", "at": "clients", "inputs": {"records": "items"}, "config": safe},
        "counted": {"component": "counter", "at": "server", "inputs": {"records": "safe"}},
    }
    document = {"osmotic": 1, "name": "many", "parties": {"server": "hub", "clients": parties}, "tasks": tasks}
    (folder / "many.sites.yaml").write_text(json.dumps(policy, indent=1), encoding="utf-8")
    (folder / "many.yaml").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder / "many.yaml"


def registry() -> Any:
    import osmotic_toys

    from osmotic.plugins.host import build_registry

    return build_registry(names=(), modules=[osmotic_toys])


def timed(what: str, work: Any) -> dict[str, Any]:
    begun = time.perf_counter()
    work()
    return {"what": what, "seconds": time.perf_counter() - begun}


def parties_of(file: Path) -> int:
    return len(json.loads(file.read_text(encoding="utf-8"))["parties"]["clients"])


def planned(file: Path) -> Iterator[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "osmotic"), "plan", str(file)]
    for which in ("first", "second"):
        yield timed(
            f"osmotic plan, {parties_of(file)} sites ({which})",
            lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=file.parent),
        )


def in_process(file: Path) -> Iterator[dict[str, Any]]:
    from osmotic.runtime import api

    known, home = registry(), file.parent / "one"
    for which in ("run", "nothing to do"):
        yield timed(f"in process, {parties_of(file)} sites: {which}", lambda: api.run(file, home=home, registry=known))


def mailboxes(file: Path) -> Iterator[dict[str, Any]]:
    import osmotic_post

    known, home = registry(), file.parent / "two"
    for which in ("run", "nothing to do"):
        yield timed(f"mailboxes, {parties_of(file)} sites: {which}", lambda: osmotic_post.by_post(file, home, known))


def engine(file: Path) -> Iterator[dict[str, Any]]:
    from engine_sites import standing

    from osmotic.runtime.nvflare.server.serving import serve

    names = json.loads(file.read_text(encoding="utf-8"))["parties"]["clients"]
    policy, told = file.with_suffix(".sites.yaml"), list[tuple[float, str]]()
    begun = time.perf_counter()
    with standing(file.parent / "deployment", names, policy) as server:
        yield {
            "what": f"NVFlare {version('nvflare')}, {len(names)} sites: all registered",
            "seconds": time.perf_counter() - begun,
        }
        for which in ("greeting, run and end", "the same, nothing to do"):
            told.clear()
            yield timed(
                f"NVFlare, {len(names)} sites: {which}",
                lambda: serve(
                    file,
                    server,
                    sites=policy,
                    home=file.parent / "three",
                    tell=lambda line: told.append((time.perf_counter(), line)),
                ),
            )
        begun = time.perf_counter()
    yield {"what": f"NVFlare, {len(names)} sites: all ended", "seconds": time.perf_counter() - begun}


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()

# SPDX-License-Identifier: Apache-2.0
"""What the runtime adds to the work of a task, and how long one waits when nothing is to be done.

python benchmarks/runtime.py [--tasks 1000] [--repeats 5] [--peers FOLDER]

1. A chain of no-op tasks at one party, no crossing: microseconds a task, the hashing of its artifact counted apart; beside a
   chain of as many nodes in kedro and haystack, which keep nothing on disk.
2. The same with a durable crossing at every task (a pair of parties), each written to two transcripts and synced.
3. `osmotic run` of a finished run of as many tasks, in a fresh process; beside snakemake and dvc.

--peers: a folder in which `steps/bin/python` has kedro and haystack-ai, and `flows/bin` has snakemake and dvc. What is missing
is installed there with pip (two virtual environments, some minutes); without the option the peers are left out.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import osmotic
from osmotic.plugins.contract import Component, Config, Context, Document, Gathered, Out, Outputs
from osmotic.plugins.hookspecs import hookimpl
from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime import api
from osmotic.runtime.storage.store import Store
from osmotic.schemas.artifacts import digest_of

PEERS = {"steps": ["kedro", "haystack-ai"], "flows": ["snakemake", "dvc"]}
KEDRO = """
import json, sys, time, logging, warnings
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import node, pipeline
from kedro.runner import SequentialRunner
import kedro
count = int(sys.argv[1])
def same(value):
    return {"count": value["count"] + 1}
steps = pipeline([node(same, f"v{i}", f"v{i + 1}", name=f"n{i}") for i in range(count)])
catalog = DataCatalog({"v0": MemoryDataset({"count": 0})})
start = time.perf_counter()
SequentialRunner().run(steps, catalog)
print(json.dumps([kedro.__version__, time.perf_counter() - start]))
"""
HAYSTACK = """
import json, sys, time
import haystack
from haystack import Pipeline, component
count = int(sys.argv[1])
@component
class Same:
    @component.output_types(value=dict)
    def run(self, value: dict):
        return {"value": {"count": value["count"] + 1}}
steps = Pipeline()
for i in range(count):
    steps.add_component(f"n{i}", Same())
    if i:
        steps.connect(f"n{i - 1}.value", f"n{i}.value")
start = time.perf_counter()
steps.run({"n0": {"value": {"count": 0}}})
print(json.dumps([haystack.__version__, time.perf_counter() - start]))
"""


class Nothing(Config):
    """No keys."""


class First(Component[Nothing]):
    """A small document."""

    name = "first"
    outputs = {"out": Out(Document)}

    def run(self, context: Context) -> Outputs:
        return {"out": Document({"count": 0})}


class By(Config):
    """How much more."""

    by: int = 1


class Same(Component[By]):
    """The document with a little more: each artifact is new."""

    name = "same"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, value: Document) -> Outputs:
        return {"out": Document({"count": value.data["count"] + self.config.by})}


class Joined(Component[Nothing]):
    """What the clients sent, added up."""

    name = "joined"
    outputs = {"out": Out(Document)}

    def run(self, context: Context, value: Gathered[Document]) -> Outputs:
        return {"out": Document({"count": sum(one.data["count"] for one in value.values())})}


class Plugin:
    """The components of this script."""

    @hookimpl
    def register_components(self) -> list[type[Component[Any]]]:
        return [First, Joined, Same]


def registry() -> Registry:
    """The registry with the components of this script."""
    return build_registry(names=(), modules=[Plugin()])


def chain(count: int) -> dict[str, Any]:
    """A first task and `count` rounds, each after the other, at one party."""
    rounds = {
        "repeat": {"times": count, "carry": {"value": {"from": "step", "start": "first"}}},
        "tasks": {"step": {"component": "same", "at": "server", "inputs": {"value": "carry.value"}}},
    }
    tasks = {"first": {"component": "first", "at": "server"}, "rounds": rounds}
    return {"osmotic": 1, "name": "chain", "parties": {"server": "hub"}, "tasks": tasks}


def back_and_forth(count: int) -> dict[str, Any]:
    """The same between two parties: every step is a crossing."""
    rounds = {
        "repeat": {"times": count // 2, "carry": {"value": {"from": "back", "start": "first"}}},
        "tasks": {
            "forth": {"component": "same", "at": "clients", "inputs": {"value": "carry.value"}},
            "back": {"component": "joined", "at": "server", "inputs": {"value": "forth"}},
        },
    }
    tasks = {"first": {"component": "first", "at": "server"}, "rounds": rounds}
    return {"osmotic": 1, "name": "chain", "parties": {"server": "hub", "clients": ["north"]}, "tasks": tasks}


def wide(count: int) -> dict[str, Any]:
    """A first task, and `count` cells of an axis after it."""
    step = {"component": "same", "at": "server", "inputs": {"value": "first"}, "config": {"by": "${matrix.n}"}, "matrix": ["n"]}
    tasks = {"first": {"component": "first", "at": "server"}, "step": step}
    parties = {"server": "hub"}
    return {"osmotic": 1, "name": "chain", "parties": parties, "matrix": {"n": list(range(count))}, "tasks": tasks}


class Clock(api.Quiet):
    """Sees how long the tasks of a run take, beginning with the second."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def task(self, instance: Any, cached: bool, seconds: float) -> None:
        """Note the time."""
        self.times.append((time.perf_counter(), time.process_time()))

    def each(self) -> tuple[float, float]:
        """Microseconds a task: (wall, CPU)."""
        first, last = self.times[0], self.times[-1]
        return (last[0] - first[0]) / (len(self.times) - 1) * 1e6, (last[1] - first[1]) / (len(self.times) - 1) * 1e6


def written(folder: Path, document: dict[str, Any]) -> Path:
    """The pipeline and its site policies, as files."""
    parties = [p for role in document["parties"].values() for p in ([role] if isinstance(role, str) else role)]
    (folder / "chain.yaml").write_text(json.dumps(document), encoding="utf-8")
    policies = {"osmotic_sites": 1, "parties": {party: {} for party in parties}}
    (folder / "chain.sites.yaml").write_text(json.dumps(policies), encoding="utf-8")
    return folder / "chain.yaml"


def osmotic_steps(document: dict[str, Any], repeats: int, reg: Registry) -> list[tuple[float, float]]:
    """Microseconds a task, of fresh runs: (wall, CPU)."""
    found = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as name:
            clock = Clock()
            api.run(written(Path(name), document), home=Path(name) / "home", registry=reg, watcher=clock)
            found.append(clock.each())
    return found


def hashing(count: int) -> float:
    """Microseconds to write one such artifact as files and to hash them, without the store."""
    start = time.perf_counter()
    for i in range(count):
        digest_of("document", Document({"count": i}).to_files())
    return (time.perf_counter() - start) / count * 1e6


def storing(count: int) -> float:
    """Microseconds to store one such artifact."""
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        start = time.perf_counter()
        for i in range(count):
            store.put(Document({"count": i}))
        return (time.perf_counter() - start) / count * 1e6


def spread(values: list[float], unit: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):10.1f} {unit}   [{min(values):.1f}, {max(values):.1f}]"


def peer_python(folder: Path, name: str) -> Path:
    """The python of a peers' environment, made where it is missing."""
    python = folder / name / "bin" / "python"
    if not python.is_file():
        print(f"installing {', '.join(PEERS[name])} into {folder / name}", file=sys.stderr)
        venv.create(folder / name, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[name]], check=True)
    return python


def peer_steps(python: Path, program: str, count: int, repeats: int) -> tuple[str, list[float]]:
    """(version, microseconds a step)."""
    version, found = "", []
    for _ in range(repeats):
        environment = {**os.environ, "HAYSTACK_TELEMETRY_ENABLED": "False", "DO_NOT_TRACK": "1"}
        done = subprocess.run([python, "-c", program, str(count)], capture_output=True, text=True, check=True, env=environment)
        version, seconds = json.loads(done.stdout.splitlines()[-1])
        found.append(seconds / count * 1e6)
    return version, found


def timed(command: list[str], folder: Path, repeats: int) -> list[float]:
    """Wall seconds of fresh processes; ends with their message when one fails."""
    found = []
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    for _ in range(repeats):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
        found.append(time.perf_counter() - start)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return found


def rerun_osmotic(count: int, repeats: int) -> list[float]:
    """Seconds of `osmotic run` when all of `count` tasks are finished."""
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import runtime as benchmark\n"
        "from pathlib import Path; from osmotic.runtime import api\n"
        "done = api.run(Path('chain.yaml'), home=Path('home'), registry=benchmark.registry())\n"
        "sys.exit(done['outcome']['ran'] if len(sys.argv) > 1 else 0)"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        written(folder, wide(count - 1))
        command = [sys.executable, "-c", program, str(Path(__file__).parent)]
        timed(command, folder, 1)
        return timed([*command, "again"], folder, repeats)


def rerun_snakemake(folder: Path, count: int, repeats: int) -> list[float]:
    """Seconds of `snakemake` when all of `count` files are there."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        rules = f"rule all:\n    input: expand('v{{n}}', n=range({count}))\n"
        rules += "rule step:\n    input: 'first'\n    output: 'v{n}'\n    shell: 'x'\n"
        (here / "Snakefile").write_text(rules, encoding="utf-8")
        moment = time.time() - 100
        for name_, age in (("first", 1), *((f"v{i}", 0) for i in range(count))):
            (here / name_).write_text("0\n", encoding="utf-8")
            os.utime(here / name_, (moment - age, moment - age))
        command = [str(folder / "flows/bin/snakemake"), "--cores", "1", "--quiet", "all", "--rerun-triggers", "mtime"]
        return timed(command, here, repeats)


def rerun_dvc(folder: Path, count: int, repeats: int) -> list[float]:
    """Seconds of `dvc repro` when all of `count` stages are up to date."""
    dvc = str(folder / "flows/bin/dvc")
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        step = {"cmd": "cp first v${item}", "deps": ["first"], "outs": ["v${item}"]}
        stages = {"step": {"foreach": list(range(count)), "do": step}}
        (here / "dvc.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
        for file in ("first", *(f"v{i}" for i in range(count))):
            (here / file).write_text("0\n", encoding="utf-8")
        timed([dvc, "init", "--no-scm", "-q"], here, 1)
        timed([dvc, "commit", "-f", "-q"], here, 1)
        return timed([dvc, "repro", "-q"], here, repeats)


def both(name: str, found: list[tuple[float, float]]) -> None:
    """A row of wall times, and one of CPU times."""
    print(f"  {name:32s} {spread([wall for wall, _ in found], 'us')}")
    print(f"  {f'{name}, CPU':32s} {spread([cpu for _, cpu in found], 'us')}", flush=True)


def steps(arguments: argparse.Namespace) -> None:
    """The first two tables."""
    count, repeats, reg = arguments.tasks, arguments.repeats, registry()
    print(f"no-op task, no crossing, {count} in a chain; median [range] of {repeats}")
    print(f"  hashing alone                    {spread([hashing(count) for _ in range(repeats)], 'us')}")
    print(f"  storing alone (hash and file)    {spread([storing(count) for _ in range(repeats)], 'us')}")
    both("osmotic, all of it", osmotic_steps(chain(count), repeats, reg))
    if arguments.peers:
        python = peer_python(arguments.peers, "steps")
        for name, program in (("kedro", KEDRO), ("haystack", HAYSTACK)):
            version, found = peer_steps(python, program, count, repeats)
            print(f"  {f'{name} {version}, in memory':32s} {spread(found, 'us')}")
    some = max(20, count // 10)
    print(f"task and durable crossing, {some} in a chain between two parties")
    both("osmotic, all of it", osmotic_steps(back_and_forth(some), repeats, reg))


def again(arguments: argparse.Namespace) -> None:
    """The third table."""
    count, repeats, folder = arguments.tasks, arguments.repeats, arguments.peers
    print(f"nothing to do, {count} finished tasks, a fresh process; median [range] of {repeats}")
    rows: list[tuple[str, Callable[[], list[float]]]] = [("osmotic", lambda: rerun_osmotic(count, repeats))]
    if folder:
        peer_python(folder, "flows")
        rows += [
            ("snakemake, by times of files", lambda: rerun_snakemake(folder, count, min(repeats, 3))),
            ("dvc repro", lambda: rerun_dvc(folder, count, min(repeats, 3))),
        ]
    for name, measure in rows:
        print(f"  {name:32s} {spread(measure(), 's ')}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", type=lambda text: Path(text).resolve())
    parser.add_argument("--only", choices=["steps", "again"])
    arguments = parser.parse_args()
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"osmotic {osmotic.__version__}, Python {platform.python_version()}, {load}")
    if arguments.only != "again":
        steps(arguments)
    if arguments.only != "steps":
        again(arguments)


if __name__ == "__main__":
    main()

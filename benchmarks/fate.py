# SPDX-License-Identifier: Apache-2.0
"""What the bridge costs: messages between two workers, through two bridges and FATE, beside FATE's own put and get of `bytes`.

    benchmarks/fate.py [--fate INTERPRETER] [--out FILE]

Two FATE processes (guest and host) with pyfate's standalone engine on this machine. For each size a message goes to the other
party and comes back, by turns with `put`/`get` and from worker to worker, so that both see the same machine. Reported: medians
of the round trip, their ratio (target: at most 1.2), the raw numbers, versions.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "plugins" / "fate" / "src"
SIZES = {"1 KB": (1_000, 200), "1 MB": (1_000_000, 30), "50 MB": (50_000_000, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fate", help="interpreter of an environment with pyfate; default: the one of scripts/fate-env")
    parser.add_argument("--out", type=Path, help="write the raw numbers here, as JSON")
    given = parser.parse_args()
    fate = (
        given.fate or subprocess.run([ROOT / "scripts" / "fate-env"], capture_output=True, text=True, check=True).stdout.strip()
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        job = uuid.uuid4().hex[:8]
        command = [fate, "-W", "ignore", str(Path(__file__).absolute()), "--party"]
        environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONSAFEPATH": "1"}  # this file is called fate, too
        sides = [subprocess.Popen([*command, role, job, folder], env=environment) for role in ("guest", "host")]
        if any(side.wait(1200) for side in sides):
            sys.exit("a party failed")
        result = json.loads((Path(folder) / "guest.json").read_text(encoding="utf-8"))
    show(result)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def show(result: dict) -> None:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    print(f"{versions}; load {os.getloadavg()[0]:.1f}; round trips, medians in ms\n")
    print(f"{'message':>8} {'times':>6} {'FATE':>9} {'bridge':>9} {'ratio':>6} {'ratio of pairs':>15}")
    for name, runs in result["runs"].items():
        own, bridge = (1000 * statistics.median(runs[which]) for which in ("fate", "bridge"))
        pairs = statistics.median(b / a for a, b in zip(runs["fate"], runs["bridge"], strict=True))
        print(f"{name:>8} {len(runs['fate']):>6} {own:>9.2f} {bridge:>9.2f} {bridge / own:>6.2f} {pairs:>15.2f}")


# ---- below: what runs in FATE's environment, and as its workers ----


def party(role: str, job: str, folder: str) -> None:
    """One FATE process: by turns its own put and get, and the bridge's, in step with the other party."""
    from importlib.metadata import version

    from fate.arch import Context
    from fate.arch.computing import ComputingBuilder
    from fate.arch.federation import FederationBuilder
    from osmotic_fate.bridge import Bridge, Times
    from osmotic_fate.federation import named

    parties = [("guest", "1"), ("host", "2")]
    me = next(one for one in parties if one[0] == role)
    computing = ComputingBuilder(f"{job}_{role}").build_standalone(
        data_dir=f"{folder}/data", logger_config=None, options={"cores": 1, "data_dir": f"{folder}/data"}
    )
    federation = FederationBuilder(job, me, parties).build_standalone(computing)
    ctx = Context(computing=computing, federation=federation)
    bridge = Bridge(ctx, ":".join(me), [":".join(one) for one in parties], "benchmark", Times())

    def own(size: int, number: int) -> float:
        body, own_names = b"x" * size, ctx.sub_ctx(f"own{size}")
        begun = time.perf_counter()
        here = own_names.indexed_ctx(number)  # FATE takes a name and tag once, so every round of a component makes one
        peer = next(one for one in here.parties if named(one) != ":".join(me))
        if role == "guest":
            peer.put("value", body)
            peer.get("value")
        else:
            peer.put("value", peer.get("value"))
        return time.perf_counter() - begun

    turns = Path(folder) / f"turns-{role}"
    os.mkfifo(turns)
    os.mkfifo(f"{turns}-back")
    environment = {**os.environ, "TURNS": str(turns)}
    command = [sys.executable, __file__, "--worker"]
    out: dict = {}

    def measure() -> None:
        with turns.open("w") as ask, Path(f"{turns}-back").open() as told:
            for name, (size, times) in SIZES.items():
                runs = out[name] = {"fate": [], "bridge": []}
                for number in range(times + 1):
                    first = own(size, number)
                    print(size, file=ask, flush=True)
                    second = float(told.readline())
                    if number:  # the first one warms up
                        runs["fate"].append(first)
                        runs["bridge"].append(second)
            print(0, file=ask, flush=True)

    import threading

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    bridge.run(lambda: (command, f"{folder}/{role}.log", {"kind": "pipeline"}), environment)
    thread.join()
    versions = {name: version(name) for name in ("pyfate", "fate-utils")}
    result = {"versions": {**versions, "python": sys.version.split()[0]}, "runs": out}
    (Path(folder) / f"{role}.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)


def worker() -> None:
    """A worker that sends what it is asked to, and waits for it to come back; at the host it sends back what comes."""
    sys.path.insert(0, str(SOURCES))
    from osmotic_fate import frames

    def say(header: dict, body: bytes = b"") -> None:
        sys.stdout.buffer.write(frames.pack(header, len(body)))
        sys.stdout.buffer.write(body)
        sys.stdout.buffer.flush()

    def hear() -> tuple:
        header, size = frames.next_header(sys.stdin.buffer)
        return header, sys.stdin.buffer.read(size)

    say({"frame": "hello", "protocol": 1, "osmotic": "0", "rules": "", "python": "3"})
    start, _ = hear()
    turns = os.environ["TURNS"]
    peer = next(one for one in start["peers"] if one != start["party"])
    with Path(turns).open() as asked, Path(f"{turns}-back").open("w") as back:
        while size := int(asked.readline()):
            body = b"x" * size
            begun = time.perf_counter()
            if start["party"].startswith("guest"):
                say({"frame": "put", "to": peer}, body)
                hear()
            else:
                say({"frame": "put", "to": peer}, hear()[1])
            print(time.perf_counter() - begun, file=back, flush=True)
    say({"frame": "end", "exit": 0, "code": "", "problems": [], "outputs": {}})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--party"]:
        party(*sys.argv[2:])
    elif sys.argv[1:] == ["--worker"]:
        worker()
    else:
        main()

# SPDX-License-Identifier: Apache-2.0
"""What the nvflare transport costs beside the bare engine: time by size and direction, memory at a site.

    benchmarks/engine.py [--sizes 1000,1000000,100000000] [--times 200,40,6] [--out FILE]

A server and a site as the engine's own processes, with certificates and TLS, on the loopback address. By turns in one job:
the engine's own `send_aux_request` with the bytes in one message, timed inside the server's job process, and the transport's
request with the same bytes, timed at the coordinator, which is one process further away.
"down" is from server to site, "up" from site
to server. *bare* is the engine as it is shipped, *light* with what `runtime/nvflare/lighter.py` takes out of it, which the
transport has. In the place of the site's service is an echo that keeps nothing. Reported: medians, and the ratio of medians to
bare (target: at most 1.1) and to light; peak memory of the site's job process over what it had before (target: the artifact
and three chunks of 4 MiB), measured first, in a process that has carried nothing yet.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
CHUNKS = 3 * (4 << 20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,1000000,100000000", help="bytes")
    parser.add_argument("--times", default="200,40,6", help="pairs a size and direction")
    parser.add_argument("--out", type=Path, help="write the raw numbers here, as JSON")
    given = parser.parse_args()
    sizes, times = ([int(one) for one in text.split(",")] for text in (given.sizes, given.times))
    result: dict[str, Any] = {"versions": versions(), "runs": [], "memory": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, deployed(Path(folder), ["a"]) as (engine, _):
        transport = connected(engine, ["a"], Path(folder) / "home")
        try:
            for way in ("up", "down"):
                result["memory"].append({"bytes": sizes[-1], "way": way, **memory(engine, transport, sizes[-1], way)})
            for size, number in zip(sizes, times, strict=True):
                for way in ("down", "up"):
                    result["runs"].append({"bytes": size, "way": way, **pairs(engine, transport, size, way, number)})
                    show_run(result["runs"][-1])
        finally:
            transport.close()
    show(result)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def versions() -> dict[str, str]:
    return {**{name: version(name) for name in ("osmotic", "nvflare", "grpcio")}, "python": sys.version.split()[0]}


@contextlib.contextmanager
def deployed(folder: Path, names: list[str], real: bool = False, hub: str = "hub") -> Iterator[Any]:
    """Kits, processes and a coordinator's engine, which all end with the block. real: sites with their own service."""
    from osmotic.runtime.nvflare.kits.parents import start_server, start_site
    from osmotic.runtime.nvflare.kits.provision import provision
    from osmotic.runtime.nvflare.server.engine import Engine
    from osmotic.runtime.nvflare.site.site_file import write_site
    from osmotic.schemas.site import SiteFile

    parts = folder / "parts"
    parts.mkdir()
    shutil.copy(HERE / "engine_parts.py", parts / "sitecustomize.py")
    os.environ["PYTHONPATH"] = str(parts)
    os.environ["OSMOTIC_REAL_SERVICE"] = "1" if real else ""
    kits = provision(folder / "kits", "localhost", names, port=free_port())
    for name in names:
        policy = kits.sites[name] / "policy.yaml"
        policy.write_text(f"osmotic_sites: 1\nparties:\n  {name}: {{}}\n", encoding="utf-8")
        write_site(kits.sites[name], SiteFile(osmotic_site=1, party=name, server=hub, policy=str(policy)))
    started = []
    try:
        started.append(start_server(kits.server))
        started += [start_site(kits.sites[name], wait=0) for name in names]
        until = time.monotonic() + 60
        while not all(parent.registered() for parent in started[1:]):
            if time.monotonic() > until:
                sys.exit("the sites did not come up:\n" + "\n".join(parent.tail() for parent in started))
            time.sleep(0.2)
        with Engine(kits.server, kits.admin, folder / "coordinator") as engine:
            yield engine, kits
    finally:
        for parent in reversed(started):
            parent.stop()


def connected(engine: Any, names: list[str], home: Path) -> Any:
    """The transport over this engine, with nobody's service at its own end."""
    from osmotic.runtime.transports.nvflare import Nvflare

    service: Any = SimpleNamespace(site=SimpleNamespace(), failure=None)
    transport = Nvflare("hub", service, names, engine.carrier(), home, lambda *_: None, renew=engine.renew)
    if problems := transport.greet():
        sys.exit(str(problems))
    return transport


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def bare(engine: Any, size: int, way: str) -> dict[str, Any]:
    """The engine's own call: its time in seconds, or memory."""
    header, _ = engine.send("a", {"bare": way, "size": size}, b"", 300.0)
    return dict(header)


def own(transport: Any, size: int, way: str, payload: bytes) -> float:
    """The transport's request: seconds."""
    begun = time.perf_counter()
    reply, body = transport.request("a", {"op": "sink" if way == "down" else "source"}, payload if way == "down" else b"")
    seconds = time.perf_counter() - begun
    if reply.get("took") != (size if way == "down" else 0) or len(body) != (0 if way == "down" else size):
        sys.exit(f"not what was asked for: {reply}")
    return seconds


KINDS = ("bare", "light", "own")


def pairs(engine: Any, transport: Any, size: int, way: str, number: int) -> dict[str, list[float]]:
    """All by turns, and by turns the first; the first rounds warm up."""
    payload = os.urandom(size)
    transport.request("a", {"op": "make", "size": size if way == "up" else 0})
    runs: dict[str, list[float]] = {kind: [] for kind in KINDS}
    warm = max(1, number // 10)
    for index in range(number + warm):
        for turn in range(3):
            kind = KINDS[(index + turn) % 3]
            if kind == "own":
                seconds = own(transport, size, way, payload)
            else:
                bare(engine, 0, "shipped" if kind == "bare" else "light")
                seconds = bare(engine, size, way)["seconds"]
                bare(engine, 0, "light")
            if index >= warm:
                runs[kind].append(seconds)
    transport.request("a", {"op": "make", "size": 0})
    return runs


def memory(engine: Any, transport: Any, size: int, way: str) -> dict[str, Any]:
    """KiB at the site's job process, over what it had before: by the transport, then by the engine's own call."""
    payload = os.urandom(size)
    found: dict[str, Any] = {}
    for which in ("own", "light"):
        transport.request("a", {"op": "make", "size": size if way == "up" and which == "own" else 0})
        peaks = []
        for _ in range(3):
            before, _ = transport.request("a", {"op": "memory", "reset": True})
            if which == "own":
                own(transport, size, way, payload)
            else:
                bare(engine, size, way)
            after, _ = transport.request("a", {"op": "memory"})
            peaks.append(after["VmHWM"] - before["VmRSS"])
        found[which] = peaks
        found[f"{which} before"] = before["VmRSS"]
    return found


def show_run(run: dict[str, Any]) -> None:
    shipped, light, mine = (statistics.median(run[kind]) for kind in KINDS)
    row = f"{run['bytes']:>11,} {run['way']:>5} {len(run['own']):>6} "
    row += "".join(f"{1000 * seconds:>10.2f}" for seconds in (shipped, light, mine))
    print(f"{row} {mine / shipped:>8.2f} {mine / light:>9.2f}   {os.getloadavg()[0]:.1f}", flush=True)


def show(result: dict[str, Any]) -> None:
    print("\n" + ", ".join(f"{name} {value}" for name, value in result["versions"].items()))
    print(f"{'bytes':>11} {'way':>5} {'times':>6} {'bare, ms':>9}{'light':>10}{'own':>10} {'to bare':>8} {'light':>9}   load")
    for run in result["runs"]:
        show_run(run)
    print(f"\npeak memory of the site's job process over before, MiB; three chunks are {CHUNKS / 2**20:.0f}")
    for one in result["memory"]:
        need = one["bytes"] if one["way"] == "down" else 0  # up, the artifact is there before
        for which in ("own", "light"):
            peaks = ", ".join(f"{peak / 1024:.1f}" for peak in one[which])
            before = one[f"{which} before"] / 1024
            print(f"{one['bytes']:>11,} {one['way']:>5} {which:>5}: {peaks}; artifact {need / 2**20:.1f}; before {before:.0f}")


if __name__ == "__main__":
    main()

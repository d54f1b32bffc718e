# SPDX-License-Identifier: Apache-2.0
"""A deployment on this machine, for benchmarks: kits, sites' folders, the engine's processes, as the commands make them."""

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

READY = 120.0


@contextlib.contextmanager
def standing(folder: Path, names: list[str], policy: Path) -> Iterator[Path]:
    """The server's folder, while server and sites run; each site's is ``folder/sites/NAME``. All end with the block."""
    from osmotic.runtime.nvflare.kits.parents import start_server, start_site
    from osmotic.runtime.nvflare.server.deployment import make_kits
    from osmotic.runtime.nvflare.site.founding import found

    server = folder / "server"
    (folder / "sites").mkdir(parents=True)
    make_kits(server, "localhost", names, server="hub", port=free_port())
    for name in names:
        found(server / "kits" / f"{name}.zip", policy, folder / "sites" / name)
    started: list[Any] = []
    try:
        started.append(start_server(server / "server"))
        started += [start_site(folder / "sites" / name, wait=0) for name in names]
        until = time.monotonic() + READY
        while not all(parent.registered() for parent in started[1:]):
            if time.monotonic() > until:
                sys.exit("the sites did not come up:\n" + "\n".join(parent.tail() for parent in started))
            time.sleep(0.2)
        yield server
    finally:
        for parent in reversed(started):
            parent.stop()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

# SPDX-License-Identifier: Apache-2.0
"""A worker that follows a script: ``scripted.py BEHAVIOUR [OSMOTIC_VERSION [PROTOCOL]]``. It speaks the bridge's frames."""

import hashlib
import json
import os
import signal
import struct
import sys
import threading
import time

SIZES = struct.Struct(">IQ")
writing = threading.Lock()


def say(header: dict, body: bytes = b"") -> None:
    text = json.dumps(header).encode()
    with writing:
        sys.stdout.buffer.write(SIZES.pack(len(text), len(body)) + text + body)
        sys.stdout.buffer.flush()


def hear() -> tuple[dict, bytes]:
    prefix = sys.stdin.buffer.read(SIZES.size)
    if not prefix:
        sys.exit(7)
    length, size = SIZES.unpack(prefix)
    return json.loads(sys.stdin.buffer.read(length)), sys.stdin.buffer.read(size)


def end(code: int = 0, name: str = "", problems: tuple = (), **outputs: object) -> None:
    say({"frame": "end", "exit": code, "code": name, "problems": list(problems), "outputs": outputs})
    sys.exit(code)


def beat() -> None:
    while True:
        say({"frame": "beat", "count": 0})
        time.sleep(0.1)


def exchange(start: dict, size: int) -> None:
    """Send a message of its own to each peer, and back to each what came from it; ends with digests of both."""
    peers = [party for party in start["peers"] if party != start["party"]]
    own = (start["party"].encode() * (size // len(start["party"]) + 1))[:size]
    for peer in peers:
        say({"frame": "put", "to": peer}, own)
    digests: dict = {peer: [] for peer in peers}
    for _ in range(2 * len(peers)):
        header, body = hear()
        digests[header["from"]].append(hashlib.sha256(body).hexdigest())
        if len(digests[header["from"]]) == 1:
            say({"frame": "put", "to": header["from"]}, body)
    end(own=hashlib.sha256(own).hexdigest(), digests=digests)


def wait(name: str = "lost") -> None:
    """Beat until told to stop, and say what it was told."""
    threading.Thread(target=beat, daemon=True).start()
    header, _ = hear()
    problem = {"what": "told: {} {}".format(header["frame"], header.get("peer")), "where": "site.yaml:3:1", "fix": "mend it"}
    end(7 if name == "lost" else 4, name, (problem,))


def main() -> None:
    behaviour, version, protocol = [*sys.argv[1:], *["0.1.0", "1"][len(sys.argv) - 2 :]][:3]
    if behaviour == "crash":
        sys.exit("No module named osmotic")
    if behaviour == "mute":
        time.sleep(60)
    say({"frame": "hello", "protocol": int(protocol), "osmotic": version, "rules": "r1", "python": "3.11"})
    start, _ = hear()
    if behaviour == "end":
        say({"frame": "log", "level": "info", "text": "two\ntasks"})
        say({"frame": "metric", "name": "accuracy", "value": 0.5, "step": 3})
        say({"frame": "metric", "name": "rounds", "value": float(2), "step": None})
        end(told=start)
    elif behaviour.startswith("exchange"):
        exchange(start, int(behaviour.partition("-")[2]))
    elif behaviour == "refuse":
        problem = {"what": "no such task", "where": "pipeline.yaml:4:2", "path": "tasks.a", "why": "because", "fix": "known: b"}
        end(2, "config", (problem, {"what": "and another"}))
    elif behaviour == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif behaviour == "hang":
        time.sleep(60)
    elif behaviour == "noise":
        print("Traceback of something that prints", flush=True)
        time.sleep(60)
    elif behaviour == "stranger":
        say({"frame": "put", "to": "guest:1"}, b"x" * 10)
        time.sleep(60)
    elif behaviour == "unknown":
        say({"frame": "open", "path": "/etc/passwd"})
        time.sleep(60)
    elif behaviour == "wait-policy":
        wait("policy")
    else:
        wait()


main()

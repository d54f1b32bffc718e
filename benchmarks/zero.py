# SPDX-License-Identifier: Apache-2.0
"""ZeRO-0 to 3 by one and by two processes, and plain torch: the same losses? Seconds a step and memory beside them.

python benchmarks/zero.py [--steps N] [--batch N] [--small]

Every row is a training of the same student on the same steps at the same global batch, in a process of its own. MB is the
largest resident size of a training process, libraries and the first loading of the model included. What ZeRO saves is the
optimiser's state (and more, for parameters that are trained), which adapters have little of. On a CPU there is nothing to win
in speed: the rows are there for their losses.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from training_parts import WEIGHTS, ClinicFeed, student, versions

ROWS = [("torch", 0, n) for n in (1, 2)] + [("deepspeed", stage, n) for n in (1, 2) for stage in range(4)]


def one(engine: str, stage: int, processes: int, steps: int, batch: int, small: bool) -> dict[str, Any]:
    """Train; losses, seconds a step, memory."""
    from osmotic.components.training.loop import train
    from osmotic.components.training.losses import kind_of
    from osmotic.components.training.settings import TrainSettings

    name, module, tokenizer = student(small)
    kind, times = kind_of(module, "auto"), []
    settings = TrainSettings(
        steps=steps, learning_rate=1e-3, weights=WEIGHTS, kind=kind, weight_decay=0.01, clip=1.0, accumulate=2 // processes,
        engine=engine, stage=stage, processes=processes,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        feed = ClinicFeed(tokenizer, batch)
        result = train(module, feed, settings, Path(folder), "zero", lambda *_: times.append(time.perf_counter()))
    who = resource.RUSAGE_CHILDREN if processes > 1 else resource.RUSAGE_SELF
    spent = [b - a for a, b in pairwise(times)]
    megabytes = resource.getrusage(who).ru_maxrss / 1024
    return {"model": name, "losses": [p["loss"] for p in result.curve], "seconds": statistics.median(spent), "mb": megabytes}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4, help="records a step, over all processes")
    parser.add_argument("--small", action="store_true", help="the clinic's student")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one[0], int(given.one[1]), int(given.one[2]), given.steps, given.batch, given.small)))
        return
    print(versions())
    first: list[float] = []
    for engine, stage, processes in ROWS:
        more = ["--steps", str(given.steps), "--batch", str(given.batch)] + ["--small"] * given.small
        script = [sys.executable, "-W", "ignore", __file__, "--one", engine, str(stage), str(processes), *more]
        done = subprocess.run(script, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        if not first:
            first = found["losses"]
            print(
                f"{found['model']}; {given.batch} records a step, two tasks, 2 forwards a step in all, float32, AdamW, clip 1\n"
            )
            print(f"{'engine':9} {'ZeRO':>4} {'proc.':>5} {'s/step':>7} {'MB':>6} {'max diff.':>9}   loss of each step")
        apart = max(abs(a - b) for a, b in zip(found["losses"], first, strict=True))
        shown = " ".join(f"{loss:.6f}" for loss in found["losses"])
        zero = stage if engine == "deepspeed" else "-"
        print(
            f"{engine:9} {zero:>4} {processes:>5} {found['seconds']:7.2f} {found['mb']:6.0f} {apart:9.1e}   {shown}", flush=True
        )


if __name__ == "__main__":
    main()

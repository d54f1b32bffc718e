# SPDX-License-Identifier: Apache-2.0
"""A training that is killed with SIGKILL five times and called again each time: are its weights those of one left alone?

python benchmarks/resume.py [--steps N] [--kills N] [--full]

Plain torch in one process, and DeepSpeed stage 2 in two. The training runs in a process of its own, which is killed (and only
it: the workers it started must notice by themselves) a random fraction of a second after a random step. Checkpoints are
written every second, so that some kills fall into a writing. Equal means: the SHA-256 of all parameters, and every loss.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training_parts import WEIGHTS, ClinicFeed, digest, student, versions

CASES = [("torch", 0, 1), ("deepspeed", 2, 2)]


def one(engine: str, stage: int, processes: int, folder: Path, steps: int, small: bool) -> dict[str, Any]:
    """Train, or go on training; digest, losses, notes."""
    from osmotic.components.training.loop import train
    from osmotic.components.training.losses import kind_of
    from osmotic.components.training.settings import TrainSettings

    _, module, tokenizer = student(small)
    settings = TrainSettings(
        steps=steps, learning_rate=1e-3, weights=WEIGHTS, kind=kind_of(module, "auto"), weight_decay=0.01, clip=1.0,
        accumulate=2, engine=engine, stage=stage, processes=processes,
    )  # fmt: skip

    def report(done: int, total: int, note: str) -> None:
        print("step", done, flush=True)

    feed = ClinicFeed(tokenizer, 4)
    result = train(module, feed, settings, folder, "resume", report, checkpoint_seconds=1.0)
    return {"digest": digest(module), "losses": [p["loss"] for p in result.curve], "notes": result.notes}


def start(case: tuple[str, int, int], folder: Path, steps: int, small: bool) -> subprocess.Popen[str]:
    """The training as a process."""
    more = [str(part) for part in case] + [str(folder), "--steps", str(steps)] + ([] if small else ["--full"])
    script = [sys.executable, "-W", "ignore", __file__, "--one", *more]
    return subprocess.Popen(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def killed(process: subprocess.Popen[str], after: int, pause: float) -> tuple[int, int]:
    """Kill it `pause` seconds after that step: (the first step it did, the last it reported)."""
    first = last = 0
    for line in process.stdout or ():
        last = int(line.split()[1])
        first = first or last
        if last >= after:
            break
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    for line in process.stdout or ():
        last = int(line.split()[1]) if line.startswith("step") else last
    process.wait()
    return first, last


def finished(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    """(the first step it did, what it gave)."""
    lines = (process.stdout or iter(())).read().splitlines() if process.stdout else []
    if process.wait():
        raise SystemExit("the training failed")
    return int(lines[0].split()[1]), json.loads(lines[-1])


def compare(case: tuple[str, int, int], steps: int, kills: int, small: bool) -> None:
    """One uninterrupted run, one killed run; print what was found."""
    rng = random.Random(11)
    engine, stage, processes = case
    print(f"\n{engine}{f' stage {stage}' if engine == 'deepspeed' else ''}, {processes} process(es), {steps} steps")
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        _, expected = finished(start(case, Path(whole), steps, small))
        for i, after in enumerate(sorted(rng.sample(range(steps // 10, steps - 5), kills))):
            first, last = killed(start(case, Path(cut), steps, small), after, rng.random() * 0.5)
            print(f"  run {i + 1}: began with step {first:>3}, killed after step {last:>3} was reported", flush=True)
        first, found = finished(start(case, Path(cut), steps, small))
        print(f"  run {kills + 1}: began with step {first:>3}, ended")
    print(f"  weights, left alone: {expected['digest']}\n  weights, killed:     {found['digest']}")
    same = found["digest"] == expected["digest"], found["losses"] == expected["losses"]
    print(f"  equal: weights {same[0]}, losses {same[1]}; notes: {found['notes']}")


def main() -> None:
    """Both cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="SmolLM2's first 4 layers with adapters, not the clinic's student")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        engine, stage, processes, folder = given.one
        print(json.dumps(one(engine, int(stage), int(processes), Path(folder), given.steps, not given.full)))
        return
    print(versions())
    print("SmolLM2, first 4 layers, adapters" if given.full else "clinic student, all parameters")
    for case in CASES:
        compare(case, given.steps, given.kills, not given.full)


if __name__ == "__main__":
    main()

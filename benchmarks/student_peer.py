# SPDX-License-Identifier: Apache-2.0
"""The peer of `student.py`: `PDSSTrainerClient` of fate-llm 2.2.0, run as it is, on the same records and the same model.

An environment of its own holds the peer and every version it pins (Python 3.11); its metadata leave pyarrow open, and today's
does not load beside the numpy that it asks for:

    pip install torch "fate_llm[fate]==2.2.0" pyarrow==17.0.0
    PYTHON benchmarks/student_peer.py RECORDS.jsonl MODEL --steps 30 --batch 32 --output OUT.json

Records are JSON lines. The four templates (Jinja2) make the texts of the two tasks from a record's keys; by default the keys
are `prompt`, `label`, `rationale`, and `label_prompt`, `rationale_prompt` where the tasks' prompts differ. MODEL is a folder
written by `save_pretrained`; what a newer transformers writes otherwise than 4.37 reads is translated into a temporary folder.

Nothing of FATE is replaced: the trainer takes a federation context and, in the mode `train_only`, never looks at it, so it
gets None. Its own dataset, collator, loss (alpha .5), arguments class and loop run. A step's clock goes from the end of the
step before to its own end, so it holds the dataset's work: rendering and tokenising, done anew for every use of a record; the
processor's clock is read beside the wall's, for machines that are shared. Useful tokens: prompt, target and end token.
The dataset takes the loss from every token that equals the pad token, so that a model that pads with its end token never
learns to stop (`--pad` names another token), and pads every sequence to --max-input + --max-target + 1 (0, the default here,
fits both to the records, the least that it can do).
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from importlib import metadata
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

KEPT = ("bos_token", "eos_token", "pad_token", "unk_token", "model_max_length", "clean_up_tokenization_spaces")
PACKAGES = ("fate_llm", "pyfate", "transformers", "accelerate", "peft", "tokenizers", "torch", "numpy", "pyarrow")
SETTINGS = {"save_strategy": "no", "logging_strategy": "steps", "logging_steps": 1, "log_level": "error", "use_cpu": True}
TASKS = {"label": "predict", "rationale": "rationale"}  # our name of a task: the peer's


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="JSON lines")
    parser.add_argument("model", type=Path, help="folder written by save_pretrained")
    parser.add_argument("--output", type=Path, required=True, help="JSON")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=32, help="records a step, each in both tasks")
    parser.add_argument("--warm", type=int, default=3, help="first steps that are not timed")
    parser.add_argument("--layers", type=int, default=0, help="keep so many first layers; 0: all")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.01)
    parser.add_argument("--clip", type=float, default=1.0, help="of the gradient's norm; 0: none (the peer's default: 1)")
    parser.add_argument("--optimizer", default="adamw_torch", help="as transformers names it (the peer's default: adamw_torch)")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters, by peft; 0: the whole model")
    parser.add_argument("--targets", nargs="+", default=["q_proj", "k_proj", "v_proj", "o_proj"], help="modules with adapters")
    parser.add_argument("--pad", metavar="TOKEN", help="the tokenizer's pad token, if it must be another than the model's own")
    parser.add_argument("--in-order", action="store_true", help="records as the file has them, not shuffled")
    parser.add_argument("--max-input", type=int, default=0, help="tokens of a prompt; 0: the longest (the peer's default: 256)")
    parser.add_argument("--max-target", type=int, default=0, help="as for the prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--label-prompt", default="{{ label_prompt or prompt }}")
    parser.add_argument("--label-target", default="{{ label }}")
    parser.add_argument("--rationale-prompt", default="{{ rationale_prompt or prompt }}")
    parser.add_argument("--rationale-target", default="{{ rationale }}")
    return parser.parse_args()


def peer() -> dict[str, Any]:
    """The peer's classes and its environment's torch and transformers, or an end with a sentence."""
    try:
        import torch
        import transformers
        from fate_llm.algo.pdss.pdss_trainer import PDSSTrainerClient
        from fate_llm.data.data_collator.pdss_collator import PrefixDataCollator
        from fate_llm.dataset.pdss_dataset import PrefixDataset
        from fate_llm.trainer.seq2seq_trainer import Seq2SeqTrainingArguments
    except (ImportError, RuntimeError) as error:  # transformers hands on an import that fails as a RuntimeError
        sys.exit(
            f"the peer cannot be loaded by {sys.executable}: {error}\n"
            'give it an environment of its own: pip install torch "fate_llm[fate]==2.2.0" pyarrow==17.0.0 (Python 3.11)'
        )
    return {
        "torch": torch,
        "transformers": transformers,
        "trainer": PDSSTrainerClient,
        "collator": PrefixDataCollator,
        "dataset": PrefixDataset,
        "arguments": Seq2SeqTrainingArguments,
    }


def translate(source: Path, folder: Path, layers: int, pad: str | None) -> None:
    """Write a model folder in the words of transformers 4.37 and tokenizers 0.15; the weights are links to the source's."""
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("auto_map", None)
    rope = config.pop("rope_parameters", None) or {}
    if rope.get("rope_type", "default") != "default":
        sys.exit(f"{source}: rotary positions of type {rope['rope_type']!r} have no name in transformers 4.37")
    config.setdefault("rope_theta", rope.get("rope_theta", 10000.0))
    if layers:
        config["num_hidden_layers"] = min(layers, config["num_hidden_layers"])
    words = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    words = {key: words[key] for key in KEPT if key in words} | {"tokenizer_class": "PreTrainedTokenizerFast"}
    if pad:
        words["pad_token"] = pad
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    merges = tokenizer["model"].get("merges", [])
    if any(not isinstance(merge, str) and any(" " in part for part in merge) for merge in merges):
        sys.exit(f"{source}: a merge of its tokenizer holds a space, which tokenizers 0.15 cannot read")
    if merges:
        tokenizer["model"]["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
    written = {"config.json": config, "tokenizer_config.json": words, "tokenizer.json": tokenizer}
    for name, value in written.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    for path in source.glob("*.safetensors*"):
        (folder / path.name).symlink_to(path.resolve())


def data(found: dict[str, Any], job: argparse.Namespace, folder: Path) -> tuple[Any, dict[str, Any]]:
    """(the peer's dataset over the records, what is to be said of it: lengths, cut sequences, ids of the first record)."""
    rows = sum(1 for line in job.records.read_text(encoding="utf-8").split("\n") if line.strip())
    texts = (job.label_prompt, job.label_target, job.rationale_prompt, job.rationale_target)
    dataset = found["dataset"](str(folder), *texts, max_input_length=1, max_target_length=1, load_from="jsonl")
    with redirect_stdout(StringIO()):  # it says `skip line` for the end of the file; what it skipped is counted below
        dataset.load(str(job.records))
    if len(dataset) != rows or not rows:
        sys.exit(f"{job.records}: the peer read {len(dataset)} of {rows} lines")
    longest = {"input": 0, "output": 0}
    lengths: list[dict[str, int]] = []
    for i in range(rows):
        for item in dataset.get_str_item(i).values():
            if not item["input"] or not item["output"]:
                sys.exit(f"{job.records}: record {i + 1} has an empty prompt or target; check its keys and the templates")
            size = {k: len(dataset.tokenizer.encode(text, add_special_tokens=k == "input")) for k, text in item.items()}
            lengths.append(size)
            longest = {k: max(longest[k], size[k]) for k in longest}
    dataset.max_input_length = job.max_input or longest["input"]
    dataset.max_target_length = job.max_target or longest["output"]
    dataset.max_seq_length = dataset.max_input_length + dataset.max_target_length + 1
    cut = sum(s["input"] > dataset.max_input_length or s["output"] > dataset.max_target_length for s in lengths)
    said = {"lengths": [dataset.max_input_length, dataset.max_target_length], "positions_a_sequence": dataset.max_seq_length}
    return dataset, said | {"records": rows, "sequences_cut": cut, "first": first_ids(dataset)}


def first_ids(dataset: Any) -> dict[str, list[int]]:
    """Token ids of the first record, a list a task, without padding: to see that both sides train on the same."""
    item = dataset[0]
    ends = {name: size(item[theirs]["input_ids"], dataset.tokenizer) for name, theirs in TASKS.items()}
    return {name: item[theirs]["input_ids"][: ends[name]] for name, theirs in TASKS.items()}


def size(ids: list[int], tokenizer: Any) -> int:
    """Tokens of a padded sequence that are no padding: the last that is not the pad token, and an end token equal to it."""
    last = max(i for i, token in enumerate(ids) if token != tokenizer.pad_token_id)
    return last + 1 + int(tokenizer.pad_token_id == tokenizer.eos_token_id)


def clock(found: dict[str, Any], ends: list[tuple[float, float]]) -> Any:
    """A callback that adds (wall's clock, processor's clock) to `ends` when training begins and at the end of each step."""

    class Clock(found["transformers"].TrainerCallback):  # type: ignore[misc]
        """Reads both clocks."""

        def on_train_begin(self, *_args: Any, **_named: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

        def on_step_end(self, *_args: Any, **_named: Any) -> None:
            ends.append((time.perf_counter(), time.process_time()))

    return Clock()


def build(found: dict[str, Any], job: argparse.Namespace, folder: Path, dataset: Any, collate: Any, callback: Any) -> Any:
    """The peer's trainer over a model in single precision; what the command line does not say is left at its own defaults."""
    model = found["transformers"].AutoModelForCausalLM.from_pretrained(str(folder), torch_dtype=found["torch"].float32)
    if job.lora:
        model = adapted(model, job)
    settings = found["arguments"](
        output_dir=str(folder / "out"),
        max_steps=job.steps,
        per_device_train_batch_size=job.batch,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        max_grad_norm=job.clip,
        optim=job.optimizer,
        seed=job.seed,
        **SETTINGS,
    )
    trainer = found["trainer"](
        ctx=None,
        training_args=settings,
        train_set=dataset,
        model=model,
        data_collator=collate,
        mode="train_only",
        tokenizer=dataset.tokenizer,
        callbacks=[callback],
    )
    if job.in_order:  # so that losses can be compared step by step
        trainer._get_train_sampler = lambda: found["torch"].utils.data.SequentialSampler(dataset)
    trainer.remove_callback(found["transformers"].PrinterCallback)
    return trainer


def adapted(model: Any, job: argparse.Namespace) -> Any:
    """The model with adapters (scale 2, no dropout), which alone are trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(r=job.lora, lora_alpha=2 * job.lora, target_modules=job.targets, task_type="CAUSAL_LM")
    )


def train(found: dict[str, Any], job: argparse.Namespace, folder: Path, dataset: Any) -> dict[str, Any]:
    """Seconds of every step (by the wall's clock and the processor's), losses, and the batches as they were collated."""
    batches: list[dict[str, Any]] = []
    ends: list[tuple[float, float]] = []
    collator = found["collator"](dataset.tokenizer)

    def collate(features: list[Any]) -> Any:
        batches.append(batch := collator(features))
        return batch

    trainer = build(found, job, folder, dataset, collate, clock(found, ends))
    initial = first_loss(found, trainer, collator([dataset[i] for i in range(min(job.batch, len(dataset)))]))
    trainer.train()
    model = trainer.model
    return {
        "seconds": [after[0] - before[0] for before, after in pairwise(ends)],
        "cpu_seconds": [after[1] - before[1] for before, after in pairwise(ends)],
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "initial": initial,
        "batches": batches[: job.steps],
        "attention": str(model.config._attn_implementation),
        "parameters": model.num_parameters(),
        "trained": sum(part.numel() for part in model.parameters() if part.requires_grad),
        "alpha": trainer.alpha,
    }


def first_loss(found: dict[str, Any], trainer: Any, batch: dict[str, Any]) -> dict[str, float]:
    """The losses of the first records in the file's order before any step: equal on both sides if everything else is."""
    with found["torch"].no_grad():
        loss, parts = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    named = {name: float(parts[f"{theirs}_loss"].loss) for name, theirs in TASKS.items()}
    return {"loss": float(loss), **named}


def count(batches: list[dict[str, Any]], tokenizer: Any) -> dict[str, int]:
    """Tokens that are no padding, tokens that carry loss, and positions that were computed."""
    both = [batch[theirs] for batch in batches for theirs in TASKS.values()]
    useful = sum(size(row, tokenizer) for part in both for row in part["input_ids"].tolist())
    targets = sum(int((part["labels"] != -100).sum()) for part in both)
    return {"useful_tokens": useful, "target_tokens": targets, "positions": sum(part["input_ids"].numel() for part in both)}


def versions() -> dict[str, str]:
    """Version of the interpreter and of every package that matters."""
    return {"python": sys.version.split()[0]} | {name: metadata.version(name) for name in PACKAGES}


def main() -> None:
    """Train, and write what was measured."""
    job = arguments()
    if not 0 <= job.warm < job.steps:
        sys.exit("--warm must leave a step to be timed")
    for name, value in {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
        os.environ[name] = value
    warnings.simplefilter("ignore")
    found = peer()
    found["torch"].set_num_threads(job.threads)
    found["transformers"].logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        translate(job.model, folder, job.layers, job.pad)
        dataset, said = data(found, job, folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = train(found, job, folder, dataset)
    batches, timed, busy = result.pop("batches"), result["seconds"][job.warm :], result["cpu_seconds"][job.warm :]
    counted = count(batches[job.warm :], dataset.tokenizer)
    result |= said | counted | {"steps": job.steps, "batch": job.batch, "warm": job.warm, "threads": job.threads}
    result["seconds_per_step"] = statistics.median(timed)
    result["useful_tokens_per_second"] = counted["useful_tokens"] / sum(timed)
    result["useful_tokens_per_cpu_second"] = counted["useful_tokens"] / sum(busy)
    result["padding"] = 1 - counted["useful_tokens"] / counted["positions"]
    result["peak_mib"] = {"before": before / 1024, "after": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    job.output.write_text(json.dumps(result | {"versions": versions()}), encoding="utf-8")


if __name__ == "__main__":
    main()

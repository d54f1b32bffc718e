# SPDX-License-Identifier: Apache-2.0
"""Packed multi-task training beside two padded forwards in the stock Trainer: useful tokens a second, and the same losses.

python benchmarks/student.py [--records FILE.jsonl --rationales FILE.jsonl] [--steps N] [--batch N] [--full] [--dtype D]
                             [--fate PYTHON]

Two students start alike (the first 4 layers of SmolLM2-135M-Instruct; adapters, or --full) and see the same batches with the
same optimiser (torch's fused AdamW, constant rate, no decay, no clipping). *packed* is the student_trainer's own loop: both
tasks in one forward without padding, the head on target tokens only. *padded* is transformers' Trainer with a `compute_loss`
as published multi-task trainers have it: a forward of the label batch, a forward of the rationale batch, each padded to its
longest row, each with all logits. The sides take turns, a few steps at a time, on the same steps of the run. A useful token is
one of a prompt or a target; padding is none. CPU seconds count beside a clock on a machine that is not idle.

--records: CommonsenseQA's JSONL; --rationales: CoS-E's, joined by id. Without them: the shipped clinic's records.
--fate: the interpreter of fate-llm's environment; its trainer then runs alone, after the others, by `student_peer.py`, on the
same records in the same order, the same model and the same rate at first (it falls linearly, the trainer's own schedule). Its
loss is half of ours (alpha .5); it pads with a token other than the end token, so that its end tokens carry loss as ours do.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from osmotic.components.training import loop
from osmotic.components.training.losses import kind_of
from osmotic.components.training.parts import Example, Step
from osmotic.components.training.settings import TrainSettings
from osmotic.plugins.clinic import domain
from osmotic.plugins.models.smollm2 import SmolLm2, SmolLm2Config

WEIGHTS = {"label": 1.0, "rationale": 1.0}
SIDES = ("packed", "padded")
LABEL, WHY = "Predict: {{ question }}\nAnswer:", "Explain: {{ question }}\nRationale:"
Pair = tuple[Example, Example]


class Turns:
    """Lets one of two threads run at a time, and keeps each segment's seconds by the clock and by the processor."""

    def __init__(self) -> None:
        self.spent: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        self._baton = threading.Condition()
        self._turn, self._done = SIDES[0], set[str]()
        self._since: dict[str, tuple[float, float]] = {}

    def pass_on(self, side: str) -> None:
        """End a segment, if one was begun; wait for the next."""
        other = SIDES[1 - SIDES.index(side)]
        with self._baton:
            self._close(side)
            if side in self._since:
                self._turn = other
                self._baton.notify_all()
            self._baton.wait_for(lambda: self._turn == side or other in self._done)
            self._since[side] = (time.perf_counter(), time.process_time())

    def finish(self, side: str) -> None:
        """Take no more turns."""
        with self._baton:
            self._close(side)
            self._done.add(side)
            self._turn = SIDES[1 - SIDES.index(side)]
            self._baton.notify_all()

    def _close(self, side: str) -> None:
        if side in self._since:
            clock, processor = self._since[side]
            self.spent[side].append((time.perf_counter() - clock, time.process_time() - processor))


class Given:
    """A feed of pairs, `batch` a step; a segment ends every `segment` steps."""

    def __init__(self, pairs: list[Pair], batch: int, segment: int, turns: Turns) -> None:
        self._pairs, self._batch, self._segment, self._turns, self._at = pairs, batch, segment, turns, 0

    def take(self) -> Step:
        """The next step."""
        if self._at % self._segment == 0:
            self._turns.pass_on("packed")
        rows = self._pairs[self._at * self._batch :][: self._batch]
        self._at += 1
        return Step({"label": [label for label, _ in rows], "rationale": [rationale for _, rationale in rows]})

    def state(self) -> int:
        """How many steps were taken."""
        return self._at

    def restore(self, state: int) -> None:
        """Go on there."""
        self._at = state


def packed(model: Any, pairs: list[Pair], turns: Turns, given: argparse.Namespace) -> list[float]:
    """The student_trainer's loop; loss of each step."""
    import torch

    torch.set_num_threads(given.threads)
    module, _ = model.trainable()
    settings = TrainSettings(given.steps, given.rate, WEIGHTS, kind_of(module, "packed"), dtype=given.dtype)
    feed = Given(pairs, given.batch, given.segment, turns)
    with tempfile.TemporaryDirectory() as folder:
        result = loop.train(module, feed, settings, Path(folder), "benchmark", lambda *_: None, checkpoint_seconds=1e9)
    return [point["loss"] for point in result.curve]


def padded(model: Any, pairs: list[Pair], turns: Turns, given: argparse.Namespace) -> list[float]:
    """transformers' Trainer, a padded forward a task; loss of each step."""
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(given.threads)
    module, _ = model.trainable()
    losses: list[float] = []

    class TwoForwards(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            total = sum(weight * model(**inputs[name]).loss for name, weight in WEIGHTS.items())
            losses.append(float(total.detach()))
            return total

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(pairs)

    class Segments(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % given.segment == 0:
                turns.pass_on("padded")

    def collate(rows: list[Pair]) -> dict[str, Any]:
        return {name: _padded([row[i] for row in rows]) for i, name in enumerate(WEIGHTS)}

    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, max_steps=given.steps, per_device_train_batch_size=given.batch, learning_rate=given.rate,
            lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0, max_grad_norm=0.0,
            bf16=given.dtype == "bfloat16", save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=True, remove_unused_columns=False,
        )  # fmt: skip
        trainer = TwoForwards(module, settings, collate, pairs, callbacks=[Segments()])
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses


def _padded(rows: list[Example]) -> dict[str, Any]:
    import torch

    width = max(len(head) + len(tail) for head, tail in rows)
    fill = [width - len(head) - len(tail) for head, tail in rows]
    return {
        "input_ids": torch.tensor([[*h, *t, *[0] * n] for (h, t), n in zip(rows, fill, strict=True)]),
        "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for n in fill]),
        "labels": torch.tensor([[*[-100] * len(h), *t, *[-100] * n] for (h, t), n in zip(rows, fill, strict=True)]),
    }


def compare(model: Any, pairs: list[Pair], given: argparse.Namespace) -> tuple[Turns, dict[str, list[float]]]:
    """Both sides, taking turns: (seconds of each segment, losses of each step)."""
    turns = Turns()

    def side(name: str, train: Callable[..., list[float]]) -> list[float]:
        try:
            return train(model, pairs, turns, given)
        finally:
            turns.finish(name)  # the other side must not wait for ever

    with ThreadPoolExecutor(2) as pool:
        running = {name: pool.submit(side, name, train) for name, train in (("packed", packed), ("padded", padded))}
    return turns, {name: future.result() for name, future in running.items()}


def commonsense(records: Path, rationales: Path) -> Iterator[tuple[str, str, str]]:
    """(question with its choices, answer, rationale) of every question that has one."""
    lines = (json.loads(line) for line in rationales.open(encoding="utf-8"))
    why = {row["id"]: row["explanation"]["open-ended"] for row in lines}
    for row in (json.loads(line) for line in records.open(encoding="utf-8")):
        choices = row["question"]["choices"]
        answer = next(choice["text"] for choice in choices if choice["label"] == row["answerKey"])
        if why.get(row["id"]):
            shown = " ".join(f"({choice['label'].lower()}) {choice['text']}" for choice in choices)
            yield f"{row['question']['stem']}\n{shown}", answer, why[row["id"]]


def clinic() -> Iterator[tuple[str, str, str]]:
    """The same of the shipped clinic's generator."""
    rng = random.Random(0)
    while True:
        sign, exposure = (rng.choice(domain.flatten(words)) for words in (domain.RARE_SIGNS, domain.RARE_EXPOSURES))
        record = domain.make_record(sign, exposure, rng)
        yield domain.render(record), domain.department_of(sign, exposure), domain.rationale_of(sign, exposure)


def drawn(given: argparse.Namespace) -> list[tuple[str, str, str]]:
    """As many texts as the run needs."""
    source = commonsense(given.records, given.rationales) if given.records else clinic()
    texts = [text for text, _ in zip(source, range(given.steps * given.batch), strict=False)]
    if len(texts) < given.steps * given.batch:
        raise SystemExit(f"{len(texts)} records are too few for {given.steps} steps of {given.batch}")
    return texts


def encoded(tokenizer: Any, texts: list[tuple[str, str, str]]) -> list[Pair]:
    """A label row and a rationale row of each text, as token ids."""

    def example(prompt: str, question: str, target: str) -> Example:
        tail = tokenizer(f" {target}", add_special_tokens=False)["input_ids"]
        return tokenizer(prompt.replace("{{ question }}", question))["input_ids"], [*tail, tokenizer.eos_token_id]

    return [(example(LABEL, question, answer), example(WHY, question, why)) for question, answer, why in texts]


def fate(model: Any, texts: list[tuple[str, str, str]], given: argparse.Namespace) -> dict[str, Any]:
    """What `student_peer.py` measures, run by fate-llm's own interpreter."""
    lora = model.config.lora
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.module.save_pretrained(folder / "model")
        model.tokenizer.save_pretrained(folder / "model")
        rows = [{"id": i, "question": q, "label": answer, "rationale": why} for i, (q, answer, why) in enumerate(texts)]
        (folder / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        options = {
            "--output": folder / "out.json", "--steps": given.steps, "--batch": given.batch, "--clip": 0,
            "--warm": min(3, given.steps - 1), "--learning-rate": given.rate, "--weight-decay": 0, "--threads": given.threads,
            "--label-prompt": LABEL, "--rationale-prompt": WHY, "--label-target": " {{ label }}",
            "--rationale-target": " {{ rationale }}", "--pad": model.tokenizer.unk_token, "--lora": lora.rank if lora else 0,
        }  # fmt: skip
        script = [given.fate, str(Path(__file__).with_name("student_peer.py")), folder / "records.jsonl", folder / "model"]
        command = [str(part) for part in (*script, "--in-order", *(part for pair in options.items() for part in pair))]
        command += ["--targets", *lora.target_modules] if lora else []
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"the peer failed: {done.stderr.strip()[-800:]}")
        found: dict[str, Any] = json.loads((folder / "out.json").read_bytes())
        return found


def show_fate(found: dict[str, Any], pairs: list[Pair], rates: list[float], losses: list[float]) -> None:
    """The peer's row. rates: packed's useful tokens a CPU second of each segment."""
    rate, own = found["useful_tokens_per_cpu_second"], statistics.median(rates)
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("fate_llm", "transformers", "torch", "python"))
    same = [list(head) + list(tail) for head, tail in pairs[0]] == [found["first"][name] for name in WEIGHTS]
    print(f"\npeer: {versions}; {found['padding']:.0%} padding, {len(found['losses'])} steps, {found['warm']} not timed")
    print(f"peer    {found['useful_tokens_per_second']:19,.0f}{rate:23,.0f}", end="")
    print(f"{2 * found['losses'][0]:19.4f}{2 * found['losses'][-1]:10.4f}   (its losses, doubled)")
    print(f"times faster, packed to peer, CPU: {own / rate:.2f}; the first record's token ids are the same: {same}")
    shown = (f"{ours:.4f} and {2 * theirs:.4f}" for ours, theirs in zip(losses[:3], found["losses"][:3], strict=True))
    print(f"losses of the first steps, packed and peer: {'; '.join(shown)}")


def show(pairs: list[Pair], turns: Turns, losses: dict[str, list[float]], given: argparse.Namespace) -> dict[str, Any]:
    """Print the table; the numbers behind it."""
    sizes = [[len(head) + len(tail) for row in pair for head, tail in [row]] for pair in pairs]
    a_segment = given.segment * given.batch
    useful = [sum(map(sum, sizes[i : i + a_segment])) for i in range(0, len(sizes), a_segment)]
    rows = [sizes[i : i + given.batch] for i in range(0, len(sizes), given.batch)]
    fed = sum(given.batch * (max(a for a, _ in step) + max(b for _, b in step)) for step in rows)
    apart = [abs(a - b) for a, b in zip(losses["packed"], losses["padded"], strict=True)]
    what = "whole model" if given.full else "adapters of rank 8"
    names = ("osmotic", "transformers", "torch", "peft")
    print(f"{', '.join(f'{n} {metadata.version(n)}' for n in names)}, Python {platform.python_version()}")
    print(f"{'CommonsenseQA + CoS-E' if given.records else 'clinic'}, {what}, {given.dtype}, batch {given.batch} a task,")
    print(f"{given.steps} steps in segments of {given.segment}, {given.threads} thread(s), load {os.getloadavg()[0]:.1f}")
    print(f"useful tokens {sum(useful):,}; the padded side feeds {fed:,} ({1 - sum(useful) / fed:.0%} padding)\n")
    print("side    useful tokens/s (clock)  useful tokens/s (CPU)   loss of the first and last step")
    rates: dict[str, list[list[float]]] = {}
    for side in SIDES:
        rates[side] = [[n / s[i] for n, s in zip(useful, turns.spent[side], strict=True)] for i in (0, 1)]
        clock, processor = (statistics.median(found) for found in rates[side])
        print(f"{side:8}{clock:19,.0f}{processor:23,.0f}{losses[side][0]:19.4f}{losses[side][-1]:10.4f}")
    for i, what in enumerate(("clock", "CPU")):
        times = sorted(a / b for a, b in zip(rates["packed"][i], rates["padded"][i], strict=True))
        print(f"times faster, {what}: {statistics.median(times):.2f} (of a segment {times[0]:.2f} to {times[-1]:.2f})")
    print(f"largest difference of a step's loss: {max(apart):.1e}")
    return {"rates": rates, "losses": losses, "spent": turns.spent, "difference": max(apart)}


def main() -> None:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--rationales", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--segment", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--full", action="store_true", help="train the whole model, not adapters")
    parser.add_argument("--fate", metavar="PYTHON", help="also run fate-llm's trainer, by the interpreter of its environment")
    parser.add_argument("--save", type=Path, metavar="RESULTS")
    given = parser.parse_args()
    if bool(given.records) != bool(given.rationales):
        parser.error("--records and --rationales go together")
    with quiet():
        lora = None if given.full else {"rank": 8, "alpha": 16.0}
        model = SmolLm2(SmolLm2Config.model_validate({"layers": 4, "chat": False, "lora": lora})).build()
        texts = drawn(given)
        pairs = encoded(model.tokenizer, texts)
        turns, losses = compare(model, pairs, given)
        found = show(pairs, turns, losses, given)
        if given.fate:
            found["peer"] = fate(model, texts, given)
            show_fate(found["peer"], pairs, found["rates"]["packed"][1], losses["packed"])
    if given.save:
        given.save.write_text(json.dumps(found))


@contextmanager
def quiet() -> Iterator[None]:
    """No remarks of the libraries between the numbers."""
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""Private training beside the same steps without privacy and beside Opacus: time, memory, and epsilon by three accountants.

    OMP_NUM_THREADS=1 python benchmarks/dp_sgd.py [--repeats 5] [--out FILE.json] [--only speed,memory,epsilon]

A small Llama, 32 sequences of 128 tokens a step, all parameters or LoRA of rank 8. A step of ours is the whole of it: Poisson
batch (of about 32: times are scaled to 32 sequences by what was drawn), forward, per-example gradients, clip, noise, AdamW.
Repetitions of all kinds are interleaved; medians are given. Memory is the peak of a process of its own over what it had before
the first step.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

SEQUENCES, TOKENS, VOCABULARY = 32, 128, 8000
SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 6, "num_attention_heads": 4}
KINDS = ("plain", "osmotic", "opacus-hooks", "opacus-ghost")
RECORDS = 256
TARGETS = {"lora": 1.15, "full": 1.5, "memory": 1.3}


def module_of(how: str) -> Any:
    """The model: `full` (untied) or `lora`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=TOKENS, tie_word_embeddings=False, **SIZES)
    module = LlamaForCausalLM(config)
    if how == "lora":
        wanted = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        module = get_peft_model(module, wanted)
    return module.eval()


def examples_of(count: int) -> list[list[int]]:
    """Token ids, all of one length."""
    import torch

    made = torch.randint(0, VOCABULARY, (count, TOKENS), generator=torch.Generator().manual_seed(1))
    return [row.tolist() for row in made]


def losses(module: Any, examples: Any) -> Any:
    """Mean cross entropy of each sequence."""
    import torch

    ids = torch.tensor(examples)
    logits = module(input_ids=ids, use_cache=False).logits
    each = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return each.view(len(ids), -1).mean(1)


def plain(how: str) -> Callable[[], float]:
    """A step without privacy; gives how many batches of 32 it was worth."""
    import torch

    module, rows = module_of(how), examples_of(SEQUENCES)
    adam = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)

    def step() -> float:
        adam.zero_grad(set_to_none=True)
        losses(module, rows).mean().backward()
        adam.step()
        return 1.0

    return step


def osmotic(how: str) -> Callable[[], float]:
    """A step of ours, as `loop.train` takes it."""
    from osmotic.plugins.contract import PrivateJob
    from osmotic.plugins.dp_sgd import loop
    from osmotic.plugins.dp_sgd.clipping import Gradients
    from osmotic.plugins.dp_sgd.plan import ExecutionPlan

    module, rows = module_of(how), examples_of(RECORDS)
    plan = ExecutionPlan(RECORDS, SEQUENCES, 1000, 1.0, 1.0, 1.0, 1e-5)
    job = PrivateJob(module, lambda r: r, losses, rows[:2], "benchmark", 1e-4, at_once=SEQUENCES)
    gradients = Gradients(module, job.at_once).__enter__()
    run = loop.Run(job, rows, plan, os.urandom(32), Path(tempfile.gettempdir()), lambda *_: None, gradients)
    at = iter(range(1000))
    return lambda: float(run.step(next(at))["batch"]) / SEQUENCES


def opacus(how: str, mode: str) -> Callable[[], float]:
    """Opacus's own engine on 32 sequences drawn beforehand (its noise is torch's generator's)."""
    import torch
    from opacus.grad_sample import GradSampleModule, GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping

    module, rows = module_of(how).train(), examples_of(SEQUENCES)
    adam = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    if mode == "hooks":
        wrapped = GradSampleModule(module, loss_reduction="mean", strict=False)
        optimizer = DPOptimizer(adam, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=SEQUENCES)

        def step() -> float:
            optimizer.zero_grad()
            losses(wrapped, rows).mean().backward()
            optimizer.step()
            return 1.0

        return step
    wrapped = GradSampleModuleFastGradientClipping(module, max_grad_norm=1.0, use_ghost_clipping=True, strict=False)
    fast = DPOptimizerFastGradientClipping(adam, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=SEQUENCES)

    def ghost() -> float:
        fast.zero_grad()
        each = losses(wrapped, rows)
        each.mean().backward(retain_graph=True)
        fast.zero_grad()
        wrapped.disable_hooks()
        (wrapped.get_clipping_coef().to(each.dtype) * each).sum().backward()
        wrapped.enable_hooks()
        fast.step()
        return 1.0

    return ghost


def step_of(kind: str, how: str) -> Callable[[], float]:
    """A step of one of `KINDS`."""
    if kind.startswith("opacus"):
        return opacus(how, kind.removeprefix("opacus-"))
    return plain(how) if kind == "plain" else osmotic(how)


def speed(how: str, repeats: int) -> dict[str, Any]:
    """Kind -> CPU seconds of each repetition, median, and its ratio to plain."""
    steps = {kind: step_of(kind, how) for kind in KINDS}
    taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for kind, step in steps.items():
            start = time.process_time()
            worth = step()
            taken[kind].append((time.process_time() - start) / (worth or 1.0))
    base = statistics.median(taken["plain"])
    return {k: {"seconds": v, "median": statistics.median(v), "ratio": statistics.median(v) / base} for k, v in taken.items()}


def peak_kib() -> int:
    """Most memory this process has had since `forget_peak`, KiB (Linux)."""
    told = Path("/proc/self/status").read_text()
    return int(told.partition("VmHWM:")[2].split()[0])


def forget_peak() -> None:
    """Begin anew: what imports and the model's construction took for a moment does not count."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(how: str) -> dict[str, Any]:
    """Kind -> MiB that three steps take over an idle process with the model, and the ratio to plain."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        command = [sys.executable, __file__, "--one", kind, how]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found[kind] = json.loads(said.splitlines()[-1])
    for kind in KINDS:
        found[kind]["ratio"] = found[kind]["added"] / found["plain"]["added"]
        found[kind]["process_ratio"] = found[kind]["peak"] / found["plain"]["peak"]
    return found


def one(kind: str, how: str) -> None:
    """Print what three steps of one kind take."""
    step = step_of(kind, how)
    forget_peak()
    before = peak_kib()
    for _ in range(3):
        step()
    print(json.dumps({"added": (peak_kib() - before) / 1024, "peak": peak_kib() / 1024}))


def epsilon() -> list[dict[str, float]]:
    """20 settings: epsilon by our accountant (PLD), by Opacus's PRV and by its RDP."""
    import warnings

    from opacus.accountants.analysis import rdp
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV, compute_safe_domain_size  # noqa: F401
    from opacus.accountants.prv import PRVAccountant

    from osmotic.plugins.accounting import epsilon_of

    rows = []
    settings = [
        (s, q, t) for s, q in ((0.6, 0.005), (0.8, 0.01), (1.0, 0.02), (1.5, 0.05), (3.0, 0.2)) for t in (50, 200, 1000, 3000)
    ]
    for sigma, q, steps in settings:
        parameters = {"noise_multiplier": sigma, "sampling_probability": q, "steps": steps}
        ours = epsilon_of([{"kind": "dp-sgd", "parameters": parameters, "neighbours": "add-or-remove-one"}], 1e-5)
        accountant = PRVAccountant()
        accountant.history = [(sigma, q, steps)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prv = float(accountant.get_epsilon(1e-5, eps_error=0.005))
            orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
            renyi = rdp.get_privacy_spent(
                orders=orders, rdp=rdp.compute_rdp(q=q, noise_multiplier=sigma, steps=steps, orders=orders), delta=1e-5
            )
        rows.append({"sigma": sigma, "q": q, "steps": steps, "pld": ours, "prv": prv, "rdp": float(renyi[0])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="speed,memory,epsilon")
    parser.add_argument("--how", default="lora,full")
    parser.add_argument("--one", nargs=2)
    given = parser.parse_args()
    if given.one:
        one(*given.one)
        return
    import torch

    names = ("torch", "transformers", "peft", "opacus", "dp-accounting", "cryptography", "numpy")
    versions = {
        "python": platform.python_version(),
        **{n: metadata.version(n) for n in names},
        "threads": torch.get_num_threads(),
    }
    result: dict[str, Any] = {"versions": versions, "sizes": SIZES, "sequences": SEQUENCES, "tokens": TOKENS}
    print(", ".join(f"{k} {v}" for k, v in versions.items()))
    wanted = given.only.split(",")
    for how in given.how.split(","):
        if "speed" in wanted:
            result[f"speed/{how}"] = found = speed(how, given.repeats)
            for kind, row in found.items():
                print(f"{how:5} {kind:13} {row['median']:.3f} s a step, {row['ratio']:.2f} x plain", flush=True)
        if "memory" in wanted:
            result[f"memory/{how}"] = found = memory(how)
            for kind, row in found.items():
                said = f"{row['added']:.0f} MiB for steps ({row['ratio']:.2f} x plain), process {row['process_ratio']:.2f} x"
                print(f"{how:5} {kind:13} {said}", flush=True)
    if "epsilon" in wanted:
        result["epsilon"] = rows = epsilon()
        worst = max(abs(r["pld"] / r["prv"] - 1) for r in rows)
        for row in rows:
            print("sigma {sigma:g} q {q:g} steps {steps}: PLD {pld:.4f} PRV {prv:.4f} RDP {rdp:.4f}".format(**row))
        print(f"PLD and PRV differ by at most {worst:.2%}; RDP is larger in all: {all(r['rdp'] > r['pld'] for r in rows)}")
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

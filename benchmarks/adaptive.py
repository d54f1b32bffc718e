# SPDX-License-Identifier: Apache-2.0
"""What the adaptive division of a document's budget is worth: rationales that survive the filter, at equal budget B.

python benchmarks/adaptive.py [--records N] [--seed S] [--budgets 12 24 36] [--json FILE]

The generated clinic: private records (rare words) are released through `adaptive-exponential`, the clinic's teacher explains
what came out, and a rationale survives if it ends in the record's own ward. Three arms for each kind of weights, on the same
records: the even split (uniform), the adaptive one, and the control (shuffled: the same epsilons, at random positions), all at
the same B. Weights: the entropy of the next token and the influence on the answer, both by the clinic's public student model,
and declared ones. Claimed is the gain of adaptive over shuffled only, paired by record, with a bootstrap interval (95%, 10,000
resamples of records); uniform is shown beside it. `fixed` has the same model's mean weights for each field, whatever was
released: what adaptive has over it is due to reading the release. The noise is the operating system's; the records and
resamples are seeded.
"""

import argparse
import json
import math
import platform
import random
import sys
import time
from pathlib import Path

import numpy as np

from osmotic.plugins import spaces
from osmotic.plugins.clinic import domain
from osmotic.plugins.contract import Generation, Slot
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.mechanisms.adaptive_exponential import AdaptiveExponential, AdaptiveExponentialConfig
from osmotic.plugins.mechanisms.importance import ModelWeights, Rendering
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel

TEMPLATE = domain.PUBLIC_TEMPLATE.format_map({name: "{{ " + name + " }}" for name in domain.SLOTS})
WEIGHTS = {
    "entropy": {"weights": "model", "model": "student", "template": TEMPLATE},
    "influence": {
        "weights": "model", "model": "student", "template": TEMPLATE, "importance": "influence", "question": domain.PREDICT_TAG,
    },
    "declared": {"weights": {"sign": 4.0, "exposure": 4.0}},
}  # fmt: skip


class Bench:
    """Records, models, and rationales that were asked before."""

    def __init__(self, records: int, seed: int) -> None:
        rng = random.Random(seed)
        signs, exposures = domain.flatten(domain.RARE_SIGNS), domain.flatten(domain.RARE_EXPOSURES)
        self.records = [domain.make_record(rng.choice(signs), rng.choice(exposures), rng) for _ in range(records)]
        schema = spaces.load_schema("osmotic:clinic/data/schema.yaml", Path())
        self.slots = [Slot(n, False, spaces.space_of(n, schema.fields[n], Path())) for n in domain.SLOTS]
        self.teacher = TransformersModel(TransformersConfig(path="osmotic:clinic/teacher")).build()
        self.student = TransformersModel(TransformersConfig(path="osmotic:clinic/student")).build()
        self.answers: dict[str, str] = {}

    def expected(self) -> dict[str, float]:
        """Mean influence of each field, before anything is released."""
        found = ModelWeights(self.student, Rendering(TEMPLATE, self.slots), self.slots, domain.PREDICT_TAG).expected
        return {slot.name: float(weight) for slot, weight in zip(self.slots, found, strict=True)}

    def survival(self, budget: float, **config: object) -> np.ndarray:
        """bool [records]: whose rationale ends in its own ward."""
        given = {"epsilon": budget, "k": 8, **config}
        mechanism = AdaptiveExponential(AdaptiveExponentialConfig.model_validate(given), self.slots, lambda _: self.student)
        documents = [tuple(record[name] for name in domain.SLOTS) for record in self.records]
        drawn = mechanism.sample(documents, SystemEntropy())
        prompts = [domain.explain_prompt(domain.render(dict(zip(domain.SLOTS, d.texts, strict=True)))) for d in drawn]
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.answers]
        found = self.teacher.generate(new, Generation(max_new_tokens=28))
        self.answers |= {prompt: answer.text for prompt, answer in zip(new, found, strict=True)}
        pairs = zip(prompts, self.records, strict=True)
        return np.array([domain.parse_department(self.answers[p]) == record["department"] for p, record in pairs])


def interval(difference: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """(mean, low, high): percentile bootstrap over records."""
    counts = rng.multinomial(len(difference), np.full(len(difference), 1 / len(difference)), size=10_000)
    means = counts @ difference / len(difference)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(difference.mean()), float(low), float(high)


def list_mass(epsilon: float, symbols: int = 11_000, k: int = 20) -> float:
    """Probability that list-rr stays within its list."""
    return k * math.exp(epsilon) / (k * math.exp(epsilon) + symbols - k)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--budgets", type=float, nargs="+", default=[12.0, 24.0, 36.0])
    parser.add_argument("--weights", nargs="+", choices=sorted(WEIGHTS), default=list(WEIGHTS))
    parser.add_argument("--json", type=Path, help="write the rows there too")
    given = parser.parse_args()
    print(f"python {platform.python_version()}, numpy {np.__version__}; {given.records} records, list-rr k 8, 6 fields")
    print("why a control is needed: V 11,000, K 20, list mass at eps 3 a token, even split against half the tokens at 6:")
    print(f"  even {list_mass(3):.4f}   concentrated {(list_mass(6) + list_mass(0)) / 2:.4f}, whichever half it is\n")
    bench, rows = Bench(given.records, given.seed), []
    rng = np.random.default_rng(given.seed)
    head = f"{'B':>4} {'weights':10} {'uniform':>8} {'adaptive':>9} {'shuffled':>9} {'fixed':>6}"
    print(f"{head}   adaptive - shuffled [95%]      s")
    for budget in given.budgets:
        even = bench.survival(budget)
        for name in given.weights:
            start = time.perf_counter()
            adaptive = bench.survival(budget, **WEIGHTS[name])
            shuffled = bench.survival(budget, **WEIGHTS[name], shuffled=True)
            gain, low, high = interval(adaptive.astype(float) - shuffled, rng)
            fixed = float(bench.survival(budget, weights=bench.expected()).mean()) if name == "influence" else math.nan
            verdict = "gain" if low > 0 else "LOSS" if high < 0 else "no gain shown"
            shares = [float(arm.mean()) for arm in (even, adaptive, shuffled)]
            rows.append([budget, name, *shares, gain, low, high, None if math.isnan(fixed) else fixed])
            print(
                f"{budget:4g} {name:10} {shares[0]:8.3f} {shares[1]:9.3f} {shares[2]:9.3f} {fixed:6.3f}   "
                f"{gain:+.3f} [{low:+.3f}, {high:+.3f}] {verdict:13} {time.perf_counter() - start:5.1f}",
                flush=True,
            )
    if given.json:
        given.json.write_text(json.dumps(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

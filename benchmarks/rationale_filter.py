# SPDX-License-Identifier: Apache-2.0
"""How well the rationale filter keeps right rationales of a real teacher: precision and recall of each rule and of the chain.

    python benchmarks/rationale_filter.py FILE.jsonl [--scored 100] [--predicted 50] [--seed 1]

FILE: rows of ``question`` (with "Answer Choices: (A) ... (B) ..." at its end, or without choices), ``rationale``,
``prediction``, ``answer`` (the gold label) and ``correct`` (whether the teacher's own prediction was right). The filter sees
question, rationale and gold label; ``prediction`` and ``correct`` are held back, and ``correct`` is the truth: precision is the
share of the kept that are right, recall the share of the right that are kept, each with its 95% Wilson interval. --scored,
--predicted: so many rows, drawn with the seed, also go to the rule usefulness, prediction, which ask a model (SmolLM2-135M-
Instruct). Tables in Markdown on standard output.
"""

import argparse
import json
import random
import re
import time
from pathlib import Path
from typing import Any

from osmotic import testing
from osmotic.components.rationale_filter import RationaleFilter
from osmotic.plugins.contract import Records
from osmotic.runtime.results.intervals import wilson
from osmotic.schemas.records import FieldSpec, RecordSchema

Row = dict[str, Any]
LETTERS = "ABCDE"
SAID = r"(?i:answer(?: choice)?(?: is| must be| would be| should be)?|must be|option):? \(?([A-E])\b"
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"
ASKED = "Question: {{ q }}\n{{ rationale }}\nAnswer:"


def read(path: Path) -> list[Row]:
    """The rows, with an id; the choices in columns of their own, where there are any."""
    rows = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        stem, _, listed = row["question"].partition(" Answer Choices: ")
        choices = dict(re.findall(r"\(([A-E])\) (.*?)(?= \([A-E]\) |$)", listed))
        rows.append({**row, "id": str(i), "q": stem, **{letter: choices.get(letter, "") for letter in LETTERS if listed}})
    return rows


def kept(rows: list[Row], config: Row, context: testing.FakeContext) -> tuple[set[str], Row]:
    """(ids that stay, how many were rejected for which reason)."""
    shown = [name for name in ("q", *LETTERS) if name in rows[0]]
    records = Records([{"id": r["id"], "gold": r["answer"], **{name: r[name] for name in shown}} for r in rows])
    rationales = Records([{"id": r["id"], "rationale": r["rationale"], "prompt": r["question"]} for r in rows])
    made = testing.run_component(RationaleFilter, config, {"records": records, "rationales": rationales}, context)
    return {row["id"] for row in made["kept"]}, made["report"].data["rejected"]


def table(rows: list[Row], arms: dict[str, Row], context: testing.FakeContext) -> None:
    """Print precision and recall of each arm; "A + B" is what both arms keep."""
    right = {row["id"] for row in rows if row["correct"]}
    print(f"\n{len(rows)} rationales, {len(right)} of them right ({len(right) / len(rows):.3f}).\n")
    print(
        "| rules | kept | right among the kept (precision) | kept of the right (recall) | rejected | s |\n" + "|---" * 6 + "|"
    )
    known: dict[str, set[str]] = {}
    for name, config in arms.items():
        started, reasons = time.perf_counter(), Row()
        if config:
            known[name], reasons = kept(rows, config, context)
        else:
            known[name] = set.intersection(*(known[part] for part in name.split(" + ")))
        found = known[name]
        both = len(found & right)
        cells = [f"{both / max(1, of):.3f} [{{:.3f}}, {{:.3f}}]".format(*wilson(both, of)) for of in (len(found), len(right))]
        said = ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "-"
        print(f"| {name} | {len(found)} | {cells[0]} | {cells[1]} | {said} | {time.perf_counter() - started:.1f} |", flush=True)


def arms_of(rows: list[Row]) -> tuple[dict[str, Row], dict[str, Row], dict[str, Row]]:
    """Arms without a model, arms with the rule usefulness, arms with the rule prediction (only where there are choices)."""
    listed = "A" in rows[0]
    pattern = {"answer_pattern": SAID if listed else NUMBER, "gold": "{{ gold }}"}
    choices = {**pattern, "choices": {letter: f"{{{{ {letter} }}}}" for letter in LETTERS}} if listed else pattern
    first = {
        "none": {"rules": []},
        "format": {"rules": ["format"]},
        "language": {"rules": ["language"]},
        "duplicates": {"rules": ["duplicates"]},
        "answer, by pattern": {"rules": ["answer"], **pattern},
        "default chain, by pattern": pattern,
    }
    if listed:
        first |= {
            "answer, by pattern or last choice named": {"rules": ["answer"], **choices},
            "default chain, so read": choices,
        }
    model = {"model": "slm", "label_prompt": ASKED, "label_target": " {{ text }}"}
    chain: dict[str, Row] = {"none": {"rules": []}, "default chain": choices}
    useful = {**chain, "usefulness": {"rules": ["usefulness"], **choices, **model}, "default chain + usefulness": {}}
    told = {**chain, "prediction": {"rules": ["prediction"], **choices, **model}, "default chain + prediction": {}}
    return first, useful, told if listed else {}


def leakage(rows: list[Row], seed: int) -> None:
    """Print how often the rule leakage speaks: by chance (the teacher saw another question, and answered that), and when it
    should (the teacher saw the record's own question, while the prompt says that it saw another)."""
    other = list(range(len(rows)))
    random.Random(seed).shuffle(other)
    schema = RecordSchema(fields={"q": FieldSpec(text=True)})
    records = Records([{"id": r["id"], "q": r["q"]} for r in rows])
    print("\n| leaked words needed | rejected by chance | rejected where all of it leaked |\n|---|---|---|")
    for least in (1, 2, 3):
        shares = []
        for own in (False, True):
            texts = [rows[i if own else j]["rationale"] for i, j in enumerate(other)]
            given = [
                {"id": r["id"], "rationale": text, "prompt": rows[j]["question"]}
                for r, j, text in zip(rows, other, texts, strict=True)
            ]
            inputs = {"records": records, "rationales": Records(given)}
            config = {"rules": ["leakage"], "released": ["q"], "leaked_words": least}
            made = testing.run_component(RationaleFilter, config, inputs, testing.FakeContext(record_schema=schema))
            found = len(made["rejected"])
            shares.append(f"{found / len(rows):.3f} [{{:.3f}}, {{:.3f}}]".format(*wilson(found, len(rows))))
        print(f"| {least} | {shares[0]} | {shares[1]} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scored", type=int, default=0, help="rows for the rule usefulness")
    parser.add_argument("--predicted", type=int, default=0, help="rows for the rule prediction")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    rows = read(options.file)
    plain, useful, told = arms_of(rows)
    table(rows, plain, testing.FakeContext())
    leakage(rows, options.seed)
    asking = [(arms, count) for arms, count in ((useful, options.scored), (told, options.predicted)) if arms and count]
    if asking:
        from osmotic.plugins.models.smollm2 import SmolLm2, SmolLm2Config

        context = testing.FakeContext(models={"slm": SmolLm2(SmolLm2Config(chat=False, dtype="bfloat16")).build()})
        for arms, count in asking:
            part = sorted(random.Random(options.seed).sample(range(len(rows)), min(count, len(rows))))
            table([rows[i] for i in part], arms, context)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What a finished `osmotic run fedcot-decoder` taught its students, where: reads the run's folder, trains nothing.

Accuracy on test records whose sign and exposure the client holds, and on the others (decoded rationales name none of those);
and how often the student's own rationale of a test record names that record's words and no other of their domains.

    osmotic run fedcot-decoder --home runs/decoder && python benchmarks/decoder.py runs/decoder
"""

import argparse
import json
import sqlite3
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

from osmotic.components.decoding_strategies import Names
from osmotic.components.templates import compile_template
from osmotic.plugins.clinic import domain
from osmotic.plugins.contract import Generation, Metrics, Records, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.records import FieldSpec, RecordSchema

SCHEMA = RecordSchema(fields={name: FieldSpec(domain=values) for name, values in domain.domains().items()})
ASKED = 100


def outputs(folder: Path) -> dict[str, dict[str, str]]:
    """Instance -> output port -> digest."""
    database = sqlite3.connect(f"file:{folder / 'run.sqlite'}?mode=ro", uri=True)
    rows = database.execute("SELECT id, outputs FROM instances JOIN tasks USING (key)").fetchall()
    database.close()
    return {name: {port: one["digest"] for port, one in json.loads(made).items()} for name, made in rows}


def read(folder: Path, digest: str, kind: Any) -> Any:
    """An artifact of a party's store."""
    files = folder / "store" / "objects" / digest[:2] / digest
    return kind.from_files({file.name: file.read_bytes() for file in files.iterdir()})


def own_rationales(model: Any, records: list[dict[str, str]]) -> float:
    """Share of the student's rationales that name their record's words."""
    names = Names(domain.NAMED_FIELDS, SCHEMA)
    prompt = compile_template("{{ text }}", "text")
    texts = [prompt.render({"text": domain.explain_prompt(domain.render(row))}) for row in records]
    answers = model.generate(texts, Generation(max_new_tokens=30))
    return mean(names.faithful(answer.text, row) for answer, row in zip(answers, records, strict=True))


def main() -> None:
    """Print one row an arm: means over clients and seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path, help="folder of the finished run")
    home = parser.parse_args().home
    student = TransformersModel(TransformersConfig(path="osmotic:clinic/named/student")).build()
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for client in domain.CLIENTS:
        folder = home / "parties" / client
        made, (signs, exposures) = outputs(folder), domain.client_words(client)
        exam = read(folder, made[f"exam@{client}"]["records"], Records).rows
        held = [row["sign"] in signs and row["exposure"] in exposures for row in exam]
        for name in sorted(n for n in made if n.startswith("evaluated[")):
            cell = name.partition("[")[2].partition("]")[0]
            arm, row = cell.rpartition("arm=")[2].partition(",")[0], found
            metrics = read(folder, made[name]["metrics"], Metrics)
            for mode in ("accuracy_label", "accuracy_rationale"):
                for where, wanted in (("held", True), ("others", False)):
                    part = [one for one, here in zip(metrics.outcomes[mode], held, strict=True) if here is wanted]
                    row[arm][f"{mode.removeprefix('accuracy_')}, {where}"].append(mean(part))
            weights = read(folder, made[name.replace("evaluated[", "student[")]["weights"], Weights)
            row[arm]["own rationale names"].append(own_rationales(student.with_weights(weights), exam[:ASKED]))
    for arm, cells in found.items():
        print(f"{arm:16s}", "  ".join(f"{key} {mean(values):.3f} (n={len(values)})" for key, values in cells.items()))


if __name__ == "__main__":
    main()

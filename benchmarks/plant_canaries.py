# SPDX-License-Identifier: Apache-2.0
"""Write a data set with canaries planted in it, and beside it the canaries and their controls, for `membership_attack`.

    python benchmarks/plant_canaries.py reviews.jsonl text --count 50 --repeats 4 --out planted/

A canary is the text of a pattern with six random digits, in a copy of a random record (so its label and other fields are
plausible); controls are made alike and planted nowhere. They are planted in the file, before it is bound as a data set, and
not by a component: private training takes the records of a data set as they were loaded, all of them, so every arm, private or
not, then trains on the same file. Each copy is a record of its own: (epsilon, delta) a record covers one copy, not all
`repeats` of them.
"""

import argparse
import json
import random
from pathlib import Path

from osmotic.components.canaries import Pattern, Row

PATTERN = "My order number is {code}, please look into it."


def canaries(rows: list[Row], field: str, pattern: str, count: int, rng: random.Random) -> list[Row]:
    """`count` records whose field says the pattern with codes that differ, ids ``c0``, ``c1``..."""
    made = Pattern({field: pattern.replace("{code}", "{{ suffix }}")}, {}).made(rows, count, rng)
    return [{**row, "id": f"c{i}"} for i, row in enumerate(made)]


def plant(
    rows: list[Row], field: str, pattern: str = PATTERN, count: int = 50, repeats: int = 1, seed: int = 0
) -> tuple[list[Row], list[Row], list[Row]]:
    """(records with each canary `repeats` times at random places, canaries, as many controls). Raises ValueError."""
    if not rows or any(field not in row for row in rows):
        raise ValueError(f"every record needs the field {field!r}, and there must be one")
    if "{code}" not in pattern or not 0 < count <= 500_000 or repeats < 1:
        raise ValueError("the pattern needs {code}; count must be 1 to 500000, repeats 1 or more")
    rng = random.Random(seed)
    made = canaries(rows, field, pattern, 2 * count, rng)
    planted, controls = made[:count], made[count:]
    whole = [*rows, *({**row, "id": f"{row['id']}-{copy}"} for row in planted for copy in range(repeats))]
    rng.shuffle(whole)
    if len({row["id"] for row in whole}) < len(whole):
        raise ValueError("an id of the data set looks like a canary's")
    return whole, planted, controls


def main() -> None:
    """Read, plant, write three files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="JSON lines, with an id each")
    parser.add_argument("field", help="the field that gets the canaries' text")
    parser.add_argument("--pattern", default=PATTERN, help="with {code} in it")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("planted"))
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.file.read_text("utf-8").split("\n") if line.strip()]
    found = plant(rows, given.field, given.pattern, given.count, given.repeats, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("records", "canaries", "controls"), found, strict=True):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        (given.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        print(f"{given.out / name}.jsonl: {len(part)} records")


if __name__ == "__main__":
    main()

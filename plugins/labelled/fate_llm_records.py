# SPDX-License-Identifier: Apache-2.0
"""Results of FATE-LLM's InferDPT and PDSS (JSON or JSON Lines) as records: its keys under the names that are used here.

perturbed_doc -> perturbed, perturbed_doc_with_instrcution -> asked, perturbed_response -> response, infer_result,
inferdpt_result or result -> rationale; every other key keeps its name. Values are texts: numbers as they are written, lists and
objects as JSON. Guarantee: none. What FATE-LLM calls perturbed has no card here (its mechanism is heuristic, its "SLM encoder"
deterministic, and the same rows hold the clean text): the binding is private, and only a release made here may leave.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osmotic.plugins.datafiles import read_rows
from osmotic.plugins.labelled.fate_llm_files import no_pickle
from osmotic.schemas.errors import DataError, Problem
from osmotic.schemas.records import numbered

RENAMED: Mapping[str, str] = {
    "perturbed_doc": "perturbed",
    "perturbed_doc_with_instrcution": "asked",  # its spelling
    "perturbed_response": "response",
    "infer_result": "rationale",
    "inferdpt_result": "rationale",
    "result": "rationale",
}
SIGNS = ("perturbed_doc", "perturbed_response", "infer_result", "inferdpt_result")


@dataclass(frozen=True)
class Results:
    """Rows of texts with ids, their columns, and notes."""

    rows: list[dict[str, str]]
    columns: tuple[str, ...]
    notes: list[str]

    def schema(self) -> dict[str, Any]:
        """Every column as free text; give the ones with few values a `domain` to release them."""
        return {"fields": {name: {"text": True} for name in self.columns if name != "id"}}

    def binding(self, file: str, schema: str) -> dict[str, Any]:
        """The entry for a site file: private, whatever was done to the texts."""
        return {"path": file, "schema": schema, "label": "private", "purpose": "private"}


def read_results(path: Path) -> Results:
    """Read a file of results. Raises DataError, located, with every problem; a pickle is refused."""
    no_pickle(path)
    if path.suffix.lower() not in (".json", ".jsonl"):
        raise DataError(Problem("results are read from .jsonl or .json", str(path)))
    pairs = read_rows(path, {}, None)
    if not pairs:
        raise DataError(Problem("no records", str(path)))
    first = pairs[0][1]
    if not any(sign in first for sign in SIGNS):
        what = f"none of FATE-LLM's keys: {', '.join(SIGNS)}"
        raise DataError(Problem(what, pairs[0][0], fix="a data file of another form needs no conversion: bind it with a map"))
    names = _names(first, pairs[0][0])
    rows, problems = [], []
    for number, (where, row) in enumerate(pairs):
        if row.keys() != first.keys():
            problems.append(
                Problem("other keys than the first record", where, ", ".join(sorted(row.keys() ^ first.keys()))[:200])
            )
            continue
        rows.append({"id": _text(row.get("id", numbered(number))), **{new: _text(row[old]) for old, new in names.items()}})
    problems += _repeated(rows, str(path))
    if problems:
        raise DataError(*problems[:20])
    notes = ["private: what FATE-LLM calls perturbed has no card here, and the rows hold the clean text beside it"]
    if "id" not in first:
        notes.append("the records had no id: they are numbered; a release of the same record under another id is charged again")
    return Results(rows, ("id", *names.values()), notes)


def _names(first: Mapping[str, Any], where: str) -> dict[str, str]:
    """Key of the file -> column; raises DataError where two keys would be one column."""
    names = {old: RENAMED.get(old, old) for old in first if old != "id"}
    for old, new in names.items():
        same = [other for other, its in names.items() if its == new and other != old]
        if same:
            raise DataError(Problem(f"{old!r} and {same[0]!r} would both be the column {new!r}", where, old, fix="rename one"))
    return names


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _repeated(rows: list[dict[str, str]], where: str) -> list[Problem]:
    ids = [row["id"] for row in rows]
    twice = sorted({one for one in ids if ids.count(one) > 1}) if len(set(ids)) < len(ids) else []
    return [Problem(f"the id {one!r} stands twice", where, "id") for one in twice]

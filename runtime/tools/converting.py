# SPDX-License-Identifier: Apache-2.0
"""`osmotic convert fate-llm`: a file or folder of FATE-LLM, as files that a pipeline and a site policy can name."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osmotic.plugins.labelled.fate_llm import read_fate_llm
from osmotic.plugins.labelled.fate_llm_files import no_pickle
from osmotic.plugins.labelled.fate_llm_kit import kit_folder, read_kit, write_kit
from osmotic.plugins.labelled.fate_llm_records import read_results
from osmotic.runtime.storage.store import disk
from osmotic.runtime.tools.prompts import prompts_text
from osmotic.schemas.errors import DataError, Problem


@dataclass(frozen=True)
class Conversion:
    """What it was, what was written, what to put where (YAML), and notes."""

    kind: str
    files: list[Path] = field(default_factory=list)
    blocks: str = ""
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, "files": [str(file) for file in self.files], "blocks": self.blocks, "notes": self.notes}


def convert(path: Path, out: Path) -> Conversion:
    """A data set file (YAML), a sanitizer kit (folder) or results (JSON, JSONL). Raises DataError or ConfigError, located."""
    if path.is_dir():
        return _kit(path, out)
    if not path.exists():
        raise DataError(Problem("no such file", str(path)))
    no_pickle(path)
    if path.suffix.lower() in (".yaml", ".yml"):
        found = read_fate_llm(path)
        return Conversion("data set", [], prompts_text(found), [str(note) for note in found.notes])
    return _results(path, out)


def _kit(path: Path, out: Path) -> Conversion:
    folder = kit_folder(path)
    if folder is None:
        raise DataError(Problem("no sanitizer kit", str(path), why="it has no token_2_vector.json, nor a folder inferdpt_kit"))
    kit = read_kit(folder)
    with disk(out):
        files = write_kit(kit, out)
    blocks = f"fields:\n  TEXT: {{text: true, table: {files[0]}}}"
    return Conversion("sanitizer kit", files, blocks, kit.notes)


def _results(path: Path, out: Path) -> Conversion:
    import yaml

    found = read_results(path)
    files = [out / "records.jsonl", out / "schema.yaml"]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found.rows)
    with disk(out):
        out.mkdir(parents=True, exist_ok=True)
        files[0].write_text(lines, encoding="utf-8")
        files[1].write_text(yaml.safe_dump(found.schema(), sort_keys=False, allow_unicode=True), encoding="utf-8")
    binding = {"data": {"results": found.binding(str(files[0]), str(files[1]))}}
    return Conversion("results", files, yaml.safe_dump(binding, sort_keys=False, allow_unicode=True).rstrip("\n"), found.notes)

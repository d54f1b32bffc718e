# SPDX-License-Identifier: Apache-2.0
"""Generated JSON Schemas: valid, described, and the checked-in files are up to date."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from osmotic.schemas.errors import Code
from osmotic.schemas.generate import DIALECT, check, generate, write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", sorted(generate()))
def test_each_is_a_valid_schema_with_a_head(name: str) -> None:
    schema = generate()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    assert (schema["$schema"], schema["$id"]) == (DIALECT, f"urn:osmotic:{name}:1") and schema["title"].startswith("osmotic ")


def test_every_object_of_ours_is_closed() -> None:
    def closed(node: Any) -> bool:
        if isinstance(node, list):
            return all(closed(item) for item in node)
        if not isinstance(node, dict):
            return True
        shut = "properties" not in node or node.get("additionalProperties") is False
        return shut and all(closed(item) for item in node.values())

    assert all(closed(schema) for schema in generate().values())


def test_the_checked_in_files_are_up_to_date() -> None:
    folder = ROOT / "schemas" / "generated"
    if not folder.is_dir():
        pytest.skip("the source tree is not here")
    assert check(folder) == [], "mend: make generate"


def test_write_and_check(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    assert len(check(folder)) == len(generate())
    assert {p.stem for p in write(folder)} == set(generate())
    assert check(folder) == [] and write(folder) == []
    (folder / "pipeline.json").write_text("{}")
    (folder / "old.json").write_text("{}")
    (folder / "card.json").unlink()
    assert check(folder) == ["card.json", "old.json", "pipeline.json"]


def test_error_codes() -> None:
    jsonschema.validate("budget", generate()["error"])
    assert generate()["error"]["enum"] == sorted(Code)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate("the patient is called X", generate()["error"])

# SPDX-License-Identifier: Apache-2.0
"""FATE-LLM's sanitizer kits and results, in the formats that its 2.2.0 writes."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from osmotic.plugins.labelled.fate_llm_kit import kit_folder, read_kit, write_kit
from osmotic.plugins.labelled.fate_llm_records import read_results
from osmotic.plugins.spaces import space_of
from osmotic.runtime.tools.converting import convert
from osmotic.schemas.errors import ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

WORDS = ("fever", "cough", "rash", "chills", "Fever", "two words")
RESULT = {
    "question": "Why?", "choices": ["a", "b"], "label": 1, "perturbed_doc": "how",
    "perturbed_doc_with_instrcution": "Answer: how", "perturbed_response": "since", "inferdpt_result": "because",
}  # fmt: skip


def make_kit(folder: Path, **other: Any) -> Path:
    """A folder as InferDPTKit.save_to_path leaves it."""
    kit = folder / "inferdpt_kit"
    (kit / "tokenizer").mkdir(parents=True)
    rows = np.random.default_rng(3).normal(size=(len(WORDS), 4))
    sims = rows @ rows.T / np.outer(np.linalg.norm(rows, axis=1), np.linalg.norm(rows, axis=1))
    order = np.argsort(-sims, axis=1)
    near = {w: [[WORDS[j] for j in order[i]], sims[i][order[i]].tolist()] for i, w in enumerate(WORDS)}
    files = {
        "token_2_vector.json": dict(zip(WORDS, rows.tolist(), strict=True)), "sorted_similarities.json": near,
        "delta_f.json": (rows.max(axis=0) - rows.min(axis=0)).tolist(),
    }  # fmt: skip
    for name, body in {**files, **other}.items():
        (kit / name).write_text(body if isinstance(body, str) else json.dumps(body), encoding="utf-8")
    return folder


def test_a_kit_becomes_a_table_that_a_text_field_can_name(tmp_path: Path) -> None:
    folder = kit_folder(make_kit(tmp_path))
    assert folder == tmp_path / "inferdpt_kit"
    kit = read_kit(folder)
    assert kit.symbols == ("fever", "cough", "rash", "chills") and kit.vectors.shape == (4, 4)
    assert kit.notes[0].startswith("2 of 6 tokens are left out") and "rantext (variant: fate)" in kit.notes[-1]
    table, _ = write_kit(kit, tmp_path / "out")
    space = space_of("complaint", FieldSpec(text=True, table="kit.npy"), table.parent)
    assert space.symbols == kit.symbols
    raw = json.loads((folder / "token_2_vector.json").read_text())
    np.testing.assert_array_equal(space.vectors, np.asarray([raw[w] for w in kit.symbols], dtype=np.float32))


def test_a_kit_whose_ranges_are_others_is_noted(tmp_path: Path) -> None:
    found = read_kit(make_kit(tmp_path, **{"delta_f.json": [1.0, 1.0, 1.0, 1.0]}) / "inferdpt_kit")
    assert any("noise of another scale" in note for note in found.notes)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("{", "not valid JSON"),
        ({"a": [1.0]}, "two tokens or more"),
        ({"a": [1.0], "b": [1.0, 2.0]}, "equally many numbers"),
        ({"a": [1.0], "b": ["x"]}, "no number"),
        ({"a": [1.0], "b": [0.0]}, "a vector is zero"),
        ({"A": [1.0], "B B": [2.0]}, "no token is one"),
        ('{"a": [NaN], "b": [1]}', "not valid JSON"),
    ],
)
def test_damaged_kits_are_refused_with_the_file(tmp_path: Path, body: Any, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        read_kit(make_kit(tmp_path, **{"token_2_vector.json": body}) / "inferdpt_kit")
    assert "token_2_vector.json" in str(caught.value)


def test_results_become_private_records(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps(RESULT) + "\n" + json.dumps({**RESULT, "question": "Who?"}) + "\n", encoding="utf-8")
    found = read_results(file)
    assert found.columns == ("id", "question", "choices", "label", "perturbed", "asked", "response", "rationale")
    assert found.rows[1] == {
        "id": "n0000001", "question": "Who?", "choices": '["a", "b"]', "label": "1", "perturbed": "how", "asked": "Answer: how",
        "response": "since", "rationale": "because",
    }  # fmt: skip
    assert found.binding("f", "s")["label"] == "private" and found.notes[0].startswith("private:")
    schema = RecordSchema.model_validate(found.schema())
    assert not list(schema.check(("row", row) for row in found.rows))


def test_what_was_converted_can_be_bound_and_stays_private(tmp_path: Path) -> None:
    import yaml

    from osmotic import call
    from osmotic.runtime.plan.flow import source_label
    from osmotic.schemas.policy import SitePolicy

    file = tmp_path / "results.json"
    file.write_text(json.dumps([{"id": 7, "infer_result": "because", "q": "why"}]), encoding="utf-8")
    made = convert(file, tmp_path / "out")
    policy = SitePolicy.model_validate(yaml.safe_load(made.blocks))
    (records,) = call("record_loader", config={"data": "results"}, site=policy, home=tmp_path / "home", data="results").values()
    assert records.rows == [{"id": "7", "rationale": "because", "q": "why"}]
    assert source_label("here", "results", {"here": policy}).word == "private"


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([{"text": "a"}], "none of FATE-LLM's keys"),
        ([{**RESULT, "infer_result": "x"}], "would both be the column 'rationale'"),
        ([RESULT, {"perturbed_doc": "a"}], "other keys than the first"),
        ([{**RESULT, "id": "a"}, {**RESULT, "id": "a"}], "the id 'a' stands twice"),
        ([], "no records"),
    ],
)
def test_other_files_are_refused_with_a_place(tmp_path: Path, rows: list[dict[str, Any]], what: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=what) as caught:
        read_results(file)
    assert "results.jsonl" in caught.value.problems[0].where


@pytest.mark.parametrize("name", ["inference_result.pkl", "results.jsonl"])
def test_a_pickle_is_never_opened(tmp_path: Path, name: str) -> None:
    class Trap:
        """Its reading would make a file."""

        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    (tmp_path / name).write_bytes(pickle.dumps([Trap()], protocol=4))
    with pytest.raises(DataError, match="a pickle is not read") as caught:
        convert(tmp_path / name, tmp_path / "out")
    assert "torch.load" in caught.value.problems[0].fix and not (tmp_path / "sprung").exists()


def test_a_folder_without_a_kit_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sanitizer kit"):
        convert(tmp_path, tmp_path / "out")


def test_the_ten_keys_are_converted_by_the_same_command(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label_list"):
        convert(_yaml(tmp_path, "label_key: a\n"), tmp_path / "out")


def _yaml(folder: Path, text: str) -> Path:
    (folder / "set.yaml").write_text(text, encoding="utf-8")
    return folder / "set.yaml"

# SPDX-License-Identifier: Apache-2.0
"""The commands `osmotic export fate` and `osmotic convert fate-llm`."""

import json
from pathlib import Path

import pytest

from osmotic.runtime import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["osmotic", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_export_says_who_is_who(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "job"
    assert run(monkeypatch, "export", "fate", "fedcot", "--out", str(out), "--parties", "south=host:7", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parties"] == {"fedcot": {"hub": "arbiter:10000", "north": "guest:9999", "south": "host:7"}}
    assert all((out / name).is_file() for name in found["files"])
    assert run(monkeypatch, "export", "fate", "fedcot", "--out", str(out)) == 2
    assert "is there already" in capsys.readouterr().err


def test_export_without_json_names_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "export", "fate", "privacy") == 0
    said = capsys.readouterr().out
    assert "privacy: hub = arbiter:10000, north = guest:9999" in said and str(tmp_path / "fate-privacy") in said


def test_convert_prints_blocks_and_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text(json.dumps({"id": "a", "perturbed_doc": "b"}) + "\n", encoding="utf-8")
    assert run(monkeypatch, "convert", "fate-llm", str(file), "--out", str(tmp_path / "out")) == 0
    said = capsys.readouterr()
    assert "label: private" in said.out and "note: private:" in said.err
    assert run(monkeypatch, "convert", "fate-llm", str(tmp_path / "none.jsonl"), "--json") == 3
    assert run(monkeypatch, "convert", "fate-llm", str(file), "--out", str(tmp_path / "out"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "results"

# SPDX-License-Identifier: Apache-2.0
"""What a plan says about memory before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.models.transformers import TransformersModel
from osmotic.runtime import api
from osmotic.runtime.plan import memory
from osmotic.runtime.screen.plan_text import plan_text

NEEDS = {False: 3_000_000, True: 12_000_000}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The plan of the shipped pipeline, its models needing 3 MB to answer and 12 MB to train."""
    monkeypatch.setattr(TransformersModel, "memory", lambda self, training: NEEDS[training])
    return lambda: api.plan("fedcot", home=tmp_path / "home")


def test_models_are_counted_where_they_are_loaded_and_trained(planned: Any) -> None:
    found = {row["model"]: row for row in planned()["memory"]["models"]}
    assert (found["teacher"]["parties"], found["teacher"]["training"], found["teacher"]["bytes"]) == (1, False, NEEDS[False])
    assert (found["student"]["parties"], found["student"]["training"], found["student"]["bytes"]) == (2, True, NEEDS[True])
    assert planned()["memory"]["total"] == 27_000_000


def test_too_little_memory_is_said_before_anything_is_loaded(
    planned: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 20000 kB\n", encoding="ascii")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    text = plan_text(planned())
    assert "at least 27.0 MB (teacher 3.0 MB, student 12.0 MB in training x 2 parties)" in text
    assert "20.5 MB free here: NOT ENOUGH" in text


def test_a_system_that_does_not_say_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "missing")
    assert memory.free() is None
    (tmp_path / "odd").write_text("MemAvailable: plenty\n", encoding="ascii")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "odd")
    assert memory.free() is None

# SPDX-License-Identifier: Apache-2.0
"""FATE-LLM's data set files: converted, or refused with the place of every reason; the command that does it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from osmotic.components.cluster_judge import ClusterJudge, ClusterJudgeConfig
from osmotic.components.teacher_augmenter import TeacherAugmenter, TeacherAugmenterConfig
from osmotic.plugins.labelled.fate_llm import read_fate_llm
from osmotic.runtime.tools.prompts import prompts_text
from osmotic.schemas.errors import ConfigError
from osmotic.schemas.source import parse

GOOD = {
    "dataset_path": "json",
    "label_key": "stars",
    "text_key": "words",
    "sub_domain": "Gardens",
    "few_shot_num_per_label": 3,
    "tokenize_format": "Shop: {{sub_domain}} | Stars: {{label}}",
    "few_shot_format": "- <Stars>: {{ label }}\n- <Words>: {{ text }}\n\n",
    "augment_format": "Write about {{sub_domain}}, as here:\n",
    "text_with_label_format": "##\n {{i}}.\nWords: {{text}}\nStars: {{label}}\n",
    "filter_format": "Choose among:\n {{text_with_label}}\nBegin with 'The eligible samples:' and numbers.",
    "label_list": [1, 2, 10],
}


def written(folder: Path, **changes) -> Path:
    values = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    path = folder / "set.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


def refused(folder: Path, strict: bool = False, **changes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read_fate_llm(written(folder, **changes), strict)
    return caught.value


def test_a_file_becomes_blocks_that_the_components_take(tmp_path):
    found = read_fate_llm(written(tmp_path))
    assert found.blocks["schema"] == {"fields": {"label": {"domain": ["1", "2", "10"]}, "text": {"text": True}}}
    assert found.blocks["map"] == {"label": "{{ stars }}", "text": "{{ words }}"}
    assert found.blocks["dp_generator"] == {"prompt": "Shop: Gardens | Stars: {{ label }}"}
    judge = ClusterJudgeConfig(embedder="e", model="m", **found.blocks["cluster_judge"])
    assert ClusterJudge.check(judge, None) == [] and judge.sample == "##\n {{ index }}.\nWords: {{ text }}\nStars: {{ label }}"
    teacher = TeacherAugmenterConfig(model="m", **found.blocks["teacher_augmenter"])
    assert TeacherAugmenter.check(teacher, None) == [] and teacher.few_shot_per_label == 3
    assert "Gardens" in teacher.template and teacher.labels == ("1", "2", "10")


def test_the_judges_prompt_without_its_samples(tmp_path):
    error = refused(tmp_path, filter_format="Choose among:\n {text_with_label}\nand so on")
    assert "single braces" in str(error) and "does not contain" in str(error)
    assert error.problems[0].path == "filter_format" and error.problems[0].where.startswith(f"{tmp_path}/set.yaml:")
    assert int(error.problems[0].where.split(":")[1]) > 10
    assert "missing" in str(refused(tmp_path, filter_format="Choose."))


def test_labels_with_a_full_stop_and_blocks_that_are_lost_are_notes_and_refused_if_asked(tmp_path):
    changes = {"few_shot_format": "- <Kind>: {{label}}.\n- <Words>: {{text}}\n\n", "label_list": ["world", "sports"]}
    notes = [str(note) for note in read_fate_llm(written(tmp_path, **changes)).notes]
    assert "reads the label 'world' as 'world.'" in notes[1] and "0 of 2 blocks" in notes[0]
    error = refused(tmp_path, True, **changes)
    assert [problem.path for problem in error.problems] == ["few_shot_format"] * 2 and all(p.where for p in error.problems)
    error = refused(tmp_path, filter_format="x", **changes)
    assert len(error.problems) == 1 and len(error.__notes__) == 2
    assert "first digit" in str(read_fate_llm(written(tmp_path)).notes[-1])


def test_what_their_parser_reads_has_no_note(tmp_path):
    form = "- <Stars>: {{ label }}\n- <Words>: {{ text }}\n\n\n"
    assert read_fate_llm(written(tmp_path, few_shot_format=form, label_list=[1, 2])).notes == []


@pytest.mark.parametrize(
    ("changes", "path", "what"),
    [
        ({"tokenize_format": "Kind: {{ lable }}"}, "tokenize_format", "unknown slot 'lable'"),
        ({"tokenize_format": "Kind: {{ sub_domain }}"}, "tokenize_format", "the slot 'label' is missing"),
        ({"sub_domain": ...}, "tokenize_format", "'sub_domain' is not filled in"),
        ({"few_shot_format": "{{ label }}: {{ text }}"}, "few_shot_format", "no words before the first slot"),
        ({"few_shot_format": "- <A>: {{ label }}{% if x %}"}, "few_shot_format", "not a plain template"),
        ({"augment_format": ...}, "augment_format", "required"),
        ({"augment_format": "Do {{ this }}"}, "augment_format", "unknown slot 'this'"),
        ({"text_with_label_format": "{{ i }} {{ text }}"}, "text_with_label_format", "'label' is missing"),
        ({"label_list": ["a", ""]}, "label_list", "empty"),
        ({"label_list": ["a"]}, "label_list", "two labels"),
        ({"label_list": ["a", True]}, "label_list", "texts or numbers"),
        ({"label_list": ...}, "label_list", "must be a list"),
        ({"label_key": ...}, "label_key", "name of a column"),
        ({"text_key": "a b"}, "text_key", "name of a column"),
        ({"few_shot_num_per_label": 0}, "few_shot_num_per_label", "1..64"),
        ({"sub_domain": "a {{ b }}"}, "sub_domain", "without braces"),
    ],
)
def test_files_that_cannot_work_are_refused_where_it_is_wrong(tmp_path, changes, path, what):
    error = refused(tmp_path, **changes)
    assert any(p.path == path and what in f"{p}" and "set.yaml" in p.where for p in error.problems), str(error)


def test_all_problems_come_at_once(tmp_path):
    assert len(refused(tmp_path, filter_format="x", label_list=[], tokenize_format="y", text_key=...).problems) == 4
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must be a mapping"):
        read_fate_llm(tmp_path / "list.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        read_fate_llm(tmp_path / "none.yaml")


def osmotic(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", "prompts", *arguments]
    environment = {**os.environ, "OSMOTIC_PLUGINS": "", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_command_prints_blocks_or_problems(tmp_path):
    path = str(written(tmp_path))
    blocks = read_fate_llm(Path(path)).blocks
    done = osmotic(path)
    assert done.returncode == 0 and yaml.safe_load(done.stdout) == blocks and "first digit" in done.stderr
    done = osmotic(path, "--json")
    assert json.loads(done.stdout)["blocks"] == blocks and len(json.loads(done.stdout)["notes"]) == 2
    assert osmotic(path, "--strict").returncode == 2
    done = osmotic(str(written(tmp_path, filter_format="none")))
    assert done.returncode == 2 and "filter_format" in done.stderr and not done.stdout and "Traceback" not in done.stderr


@pytest.mark.skipif("OSMOTIC_FATE_LLM" not in os.environ, reason="OSMOTIC_FATE_LLM: folder of FATE-LLM's data_config files")
def test_real_files():
    folder = Path(os.environ["OSMOTIC_FATE_LLM"])
    found = read_fate_llm(folder / "default_yelp_review.yaml")
    assert found.blocks["teacher_augmenter"]["labels"] == list("12345") and "0 of 2" in found.notes[0].what
    with pytest.raises(ConfigError, match="single braces") as caught:
        read_fate_llm(folder / "default_ag_news.yaml")
    assert "world." in " ".join(caught.value.__notes__)


def test_labels_are_taken_as_the_file_writes_them(tmp_path: Path):
    path = written(tmp_path, label_list=["LABELS", "x"])
    path.write_text(re.sub(r"(?m)^label_list:.*(\n- .*)*", "label_list: [01, 0x1F, 1e3, '007', 1.50, seven]", path.read_text()))
    found = read_fate_llm(path)
    assert found.blocks["teacher_augmenter"]["labels"] == ["01", "0x1F", "1e3", "007", "1.50", "seven"]
    assert parse(prompts_text(found), "out").value == found.blocks  # and what is printed says the same

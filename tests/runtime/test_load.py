# SPDX-License-Identifier: Apache-2.0
"""Finding a pipeline and changing it from the command line."""

from pathlib import Path

import pytest

from osmotic.runtime.plan.load import Loaded, expanded, find, load, load_text, shipped, sites_file
from osmotic.schemas.errors import ConfigError

TEXT = """
osmotic: 1
name: toy
parties: {server: hub, clients: [north, south]}
matrix: {rate: [0.5, 1.0], arm: [a, b]}
tasks:
  made:
    component: make
    at: clients
    config: {value: 1, deep: {list: [x, y]}}
    vary: {rate: {"0.5": {config: {size: 2}}}}
"""


def changed(*overrides: str) -> Loaded:
    return load_text(TEXT, "toy.yaml", overrides)


def message(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        changed(*overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 0.001),
        ("true", True),
        ("yes", "yes"),  # as in the file itself, not as in YAML 1.1
        ("null", None),
        ("", None),
        ("a: b", {"a": "b"}),
        ("[1, x]", [1, "x"]),
        ('"3"', "3"),
        ("k=v", "k=v"),
    ],
)
def test_set_reads_the_value_as_the_file_would(text: str, value: object) -> None:
    task = changed(f"tasks.made.config.value={text}").pipeline.tasks["made"]
    assert task.config["value"] == value
    assert task.config["deep"] == {"list": ["x", "y"]}


def test_set_reaches_places_in_lists_new_keys_and_keys_with_dots() -> None:
    pipeline = changed(
        "tasks.made.config.deep.list.1=z",
        "seed=7",
        "text.hello=there",
        "tasks.made.vary.rate.0.5.config.size=9",
        "parties.clients=3",
    ).pipeline
    task = pipeline.tasks["made"]
    assert task.config["deep"]["list"] == ["x", "z"]
    assert (pipeline.seed, pipeline.text["hello"]) == (7, "there")
    assert task.vary["rate"]["0.5"].config == {"size": 9}
    assert pipeline.parties["clients"] == ("party-0", "party-1", "party-2")


def test_the_last_of_two_options_holds() -> None:
    assert changed("seed=1", "seed=2").pipeline.seed == 2


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("seed", "write it as path.to.key=value"),
        ("=3", "write it as path.to.key=value"),
        ("a..b=3", "write it as path.to.key=value"),
        ("tasks.mad.config.value=3", "did you mean 'made'?"),
        ("taks.made.at=server", "did you mean 'tasks'?"),
        ("tasks.made.config.deep.list.5=z", "'5' is no place in a list of 2"),
        ("name.x=1", "'name' is a value"),
        ("seed=[1", "not valid YAML"),
        ("seed=1\n- 2", "give one value"),
    ],
)
def test_what_cannot_be_set_is_said(option: str, wanted: str) -> None:
    text = message(option)
    assert text.startswith(f"--set {option.splitlines()[0]}") and wanted in text


def test_an_error_in_a_set_value_names_the_option_and_others_the_file() -> None:
    text = message("seed=-1", "nam=x", "tasks.made.atx=1")
    assert "--set seed=-1 seed:" in text
    assert "--set nam=x" in text and "did you mean 'name'?" in text
    assert "--set tasks.made.atx=1" in text
    with pytest.raises(ConfigError) as caught:
        load_text(TEXT.replace("name: toy", "name: TOY"), "toy.yaml", ("seed=1",))
    assert str(caught.value).startswith("toy.yaml:3:1 name:")


def test_shipped_pipelines_are_found_by_name_and_loaded() -> None:
    assert "fedcot" in shipped() and not any("." in name for name in shipped())
    assert load("fedcot").pipeline.name == "fedcot"
    assert find("fedcot") == shipped()["fedcot"]


def test_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ConfigError, match="did you mean 'fedcot'") as caught:
        find("fedcott")
    assert "no shipped pipeline is called 'fedcott'" in str(caught.value)


def test_a_path_is_taken_as_one_and_missing_files_suggest_neighbours(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(TEXT)
    assert load(str(tmp_path / "mine.yaml"), ("seed=4",)).pipeline.seed == 4
    with pytest.raises(ConfigError, match=r"mine\.yaml"):
        load(str(tmp_path / "mime.yaml"))


def test_a_file_that_is_not_utf8_is_located(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"osmotic: 1\nname: \xff\n")
    with pytest.raises(ConfigError, match=r"bad\.yaml:2"):
        load(str(tmp_path / "bad.yaml"))


def test_a_file_of_settings_stands_for_its_options_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "more.set.yaml"
    file.write_text('seed: 4\ntasks.made.config: {value: "a=b", deep: null}\nname: "1"\n')
    assert expanded(("seed=1", f"@{file}")) == (
        "seed=1", "seed=4", 'tasks.made.config={"value": "a=b", "deep": null}', 'name="1"',
    )  # fmt: skip
    (tmp_path / "mine.yaml").write_text(TEXT)
    loaded = load(str(tmp_path / "mine.yaml"), ("seed=1", f"@{file}", "name=two"))
    assert (loaded.pipeline.seed, loaded.pipeline.name) == (4, "two")
    assert not any(option.startswith("@") for option in loaded.overrides)  # other sites have no such file


@pytest.mark.parametrize("text", ["- 1\n", "just words\n"])
def test_a_file_of_settings_that_is_no_mapping_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.set.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.set\.yaml is not a mapping"):
        expanded((f"@{tmp_path / 'bad.set.yaml'}",))
    with pytest.raises(ConfigError, match="no such file"):
        expanded(("@nowhere.set.yaml",))


def test_shipped_site_policies_are_found_by_name(tmp_path: Path) -> None:
    assert sites_file(Path("fedcot")).name == "fedcot.sites.yaml" and sites_file(Path("fedcot")).is_file()
    assert sites_file(tmp_path / "mine.yaml") == tmp_path / "mine.yaml"

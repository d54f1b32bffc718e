# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with pipelines, site files or data: a message with a place, the exit code, never a stack trace."""

import errno
import fcntl
import sys
from pathlib import Path

import pytest

from osmotic.runtime import api, cli
from osmotic.schemas.errors import ConfigError

PIPELINE = """osmotic: 1
name: toy
parties: {server: hub, clients: [north, south]}
text: {ask: "what is {{ colour }} ?"}
models:
  teacher: {type: transformers, at: server, config: {path: "osmotic:clinic/teacher"}}
tasks:
  records: {component: record_loader, at: clients, config: {data: numbers}}
  safe:
    component: dp_sanitizer
    at: clients
    inputs: {records: records}
    config: {mechanism: {name: list-rr, epsilon: 1, k: 1}, fields: [colour, size]}
  answers:
    component: teacher_generator
    at: server
    each: party
    inputs: {prompts: safe}
    config: {model: teacher, template: "${text.ask}"}
"""
SITES = """osmotic_sites: 1
defaults:
  data: {numbers: {path: numbers.jsonl, schema: schema.yaml}}
  budget: {numbers: {per_document: 4}}
parties: {hub: {}, north: {}, south: {}}
"""
SCHEMA = "fields: {colour: {domain: [red, green, blue]}, size: {domain: [s, m]}}\n"
DATA = '{"id": "a", "colour": "red", "size": "s"}\n{"id": "b", "colour": "blue", "size": "m"}\n'


class Bench:
    """A folder with everything right, so that one thing at a time can be made wrong."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OSMOTIC_PLUGINS", "")
        self.files = {"toy.yaml": PIPELINE, "toy.sites.yaml": SITES, "schema.yaml": SCHEMA, "numbers.jsonl": DATA}
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.folder / name).read_text(encoding="utf-8")
        assert old in text
        (self.folder / name).write_text(text.replace(old, new), encoding="utf-8")

    def run(self, *arguments: str) -> tuple[int, str]:
        """(exit code, what is on stderr)."""
        self.monkeypatch.setattr(sys, "argv", ["osmotic", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        shown = self.capsys.readouterr()
        assert "Traceback" not in shown.err + shown.out
        return int(caught.value.code or 0), shown.err


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, capsys, monkeypatch)


def test_the_bench_is_right(bench: Bench) -> None:
    assert bench.run("plan", "toy.yaml") == (0, "")
    assert bench.run("validate", "toy.yaml") == (0, "")


# (text in the pipeline, what it becomes, what the message says)
PIPELINES = [
    ("name: toy", "nam: toy", ["toy.yaml:2:1 nam:", "did you mean 'name'?"]),
    ("osmotic: 1", "osmotic: 2", ["toy.yaml:1:1 osmotic:"]),
    ("name: toy", "name: [toy]", ["toy.yaml:2:1 name:", "must be a string"]),
    ("name: toy", "name: toy\nname: two", ["toy.yaml:3:1", "name"]),
    (
        "    at: clients\n    inputs: {records",
        "    at: client\n    inputs: {records",
        ["toy.yaml:11:5 tasks.safe.at:", "did you mean 'clients'?"],
    ),
    (
        "component: dp_sanitizer",
        "component: dp_sanitiser",
        ["toy.yaml:10:5 tasks.safe.component:", "did you mean 'dp_sanitizer'?"],
    ),
    ("{records: records}", "{records: record}", ["toy.yaml:12:14 tasks.safe.inputs.records:", "did you mean 'records'?"]),
    ("{records: records}", "{records: records.rows}", ["the task 'records' has no output 'rows'"]),
    ("{records: records}", "{record: records}", ["dp_sanitizer has no input 'record'", "is not connected"]),
    ("{records: records}", "{records: answers}", ["the tasks go round in a circle", "safe -> answers -> safe"]),
    ("{records: records}", "{records: carry.x}", ["'carry' can be used by the inputs of a repeat's tasks only"]),
    ("{records: records}", "{records: 7}", ["toy.yaml:12:14 tasks.safe.inputs.records:"]),
    ("epsilon: 1", "epsilon: -1", ["toy.yaml:13:41 tasks.safe.config.mechanism.epsilon:"]),
    ("epsilon: 1", "epsilom: 1", ["toy.yaml:13:41 tasks.safe.config.mechanism.epsilom:", "did you mean 'epsilon'?"]),
    ("name: list-rr", "name: list-r", ["unknown mechanism 'list-r'", "did you mean 'list-rr'?"]),
    ("fields: [colour, size]", "fields: [color]", ["tasks.safe.config.fields:", "did you mean 'colour'?"]),
    ("model: teacher", "model: techer", ["toy.yaml:19:14 tasks.answers.config.model:", "did you mean 'teacher'?"]),
    ("type: transformers", "type: transformer", ["toy.yaml:6:13 models.teacher.type:", "did you mean 'transformers'?"]),
    ("${text.ask}", "${text.aks}", ["toy.yaml:19:30 tasks.answers.config.template:", "did you mean 'ask'?"]),
    (
        "{{ colour }}",
        "{{ color }}",
        ["toy.yaml:19:30 tasks.answers.config.template:", "unknown slot 'color'", "did you mean 'colour'?"],
    ),
    ("{{ colour }}", "{{ colour", ["tasks.answers.config.template:"]),
    ("clients: [north, south]", "clients: []", ["toy.yaml:3:24 parties.clients:"]),
    ("clients: [north, south]", "clients: [north, north]", ["parties.clients: a party stands twice: north"]),
    ("clients: [north, south]", "clients: [hub]", ["the party 'hub' has two roles"]),
    ("tasks:\n", "tasks: *all\n", ["toy.yaml:7"]),
    ("name: toy", "name: toy\n  x: [", ["toy.yaml:3"]),
    (PIPELINE, "", ["toy.yaml", "the file is empty"]),
    (PIPELINE, "# nothing\n", ["the file is empty"]),
    (PIPELINE, "[1, 2]", ["toy.yaml"]),
    (PIPELINE, "just text", ["toy.yaml"]),
]


@pytest.mark.parametrize(("old", "new", "said"), PIPELINES, ids=[p[1][:40] for p in PIPELINES])
def test_bad_pipelines(bench: Bench, old: str, new: str, said: list[str]) -> None:
    bench.change("toy.yaml", old, new)
    for command in ("validate", "plan"):
        code, text = bench.run(command, "toy.yaml")
        assert code == 2 and "toy.yaml" in text, text
        assert all(part in text for part in said), text


def test_carry_of_a_thing_that_is_not_there(bench: Bench) -> None:
    bench.change(
        "toy.yaml",
        "tasks:\n",
        "tasks:\n  loop:\n    repeat: {times: 2, carry: {x: {from: none}}}\n    tasks:\n"
        "      a: {component: record_blinder, at: clients, inputs: {records: carry.y}, config: {fields: [colour]}}\n",
    )
    code, text = bench.run("validate", "toy.yaml")
    assert code == 2 and "toy.yaml:9:36 tasks.loop.repeat.carry.x.from: unknown task 'none'" in text
    assert "nothing is carried under 'y'" in text and text.startswith("2 problems:\n")


def test_a_plugin_that_failed_to_load_is_quoted(bench: Bench) -> None:
    """An installed plugin whose module cannot be imported."""
    info = bench.folder / "plugins" / "garden-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: garden\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[osmotic]\ngarden = garden_of_nothing\n")
    bench.monkeypatch.syspath_prepend(str(bench.folder / "plugins"))
    bench.monkeypatch.setenv("OSMOTIC_PLUGINS", "garden")
    bench.change("toy.yaml", "component: dp_sanitizer", "component: garden_rake")
    code, text = bench.run("validate", "toy.yaml")
    assert code == 2 and "unknown component 'garden_rake'" in text
    assert "plugin 'garden' could not be loaded: ModuleNotFoundError: No module named 'garden_of_nothing'" in text


def test_a_missing_pipeline(bench: Bench) -> None:
    code, text = bench.run("plan", "tony.yaml")
    assert code == 2 and "tony.yaml no such file" in text
    code, text = bench.run("plan", "fedcat")
    assert code == 2 and "did you mean 'fedcot'?" in text


# (text in the sites file, what it becomes, exit code, what the message says)
SITE_FILES = [
    ("budget:", "bugdet:", 2, ["toy.sites.yaml:4:3 defaults.bugdet:", "did you mean 'budget'?"]),
    ("per_document: 4", "per_document: a lot", 2, ["toy.sites.yaml:4:22 defaults.budget.numbers.per_document:"]),
    ("per_document: 4", "per_document: 0", 2, ["toy.sites.yaml:4:22"]),
    (
        "per_document: 4",
        "per_document: 1",
        4,
        ["2 problems", "toy.yaml:13:14 tasks.safe.config.mechanism: north: epsilon 2", "is over the cap"],
    ),
    ("{numbers: {path", "{nombers: {path", 4, ["toy.yaml:8:61 tasks.records.config.data:", "did you mean 'nombers'?"]),
    (
        "schema: schema.yaml",
        "schema: schem.yaml",
        2,
        ["north.data.numbers.schema: the schema of 'numbers': no such file", "did you mean"],
    ),
    ("path: numbers.jsonl, ", "", 2, ["toy.sites.yaml:3:10 defaults.data.numbers.path:"]),
    ("osmotic_sites: 1", "osmotic_sites: 1\nosmotic_sites: 1", 2, ["toy.sites.yaml:2:1"]),
    ("parties: {", "parties: {west: {waivers: yes}, ", 2, ["toy.sites.yaml:5:18 parties.west.waivers:"]),
]


@pytest.mark.parametrize(("old", "new", "exit_code", "said"), SITE_FILES, ids=[s[1][:40] for s in SITE_FILES])
def test_bad_site_files(bench: Bench, old: str, new: str, exit_code: int, said: list[str]) -> None:
    bench.change("toy.sites.yaml", old, new)
    code, text = bench.run("plan", "toy.yaml")
    assert all(part in text for part in said), text
    assert code == exit_code, text


def test_a_bad_schema_is_located(bench: Bench) -> None:
    bench.change("schema.yaml", "domain: [s, m]", "domain: [s, s]")
    code, text = bench.run("plan", "toy.yaml")
    assert code in (2, 4) and "schema.yaml:1" in text and "stands twice" in text


def test_a_missing_sites_file(bench: Bench) -> None:
    code, text = bench.run("plan", "toy.yaml", "--sites", "no.yaml")
    assert code == 2 and "no.yaml no such file" in text


# (text in the data file, what it becomes, what the message says)
DATA_FILES = [
    ('"size": "m"}', '"size": "m"', ["numbers.jsonl:2"]),
    ('{"id": "b"', '[1]\n{"id": "b"', ["numbers.jsonl:2"]),
    (', "size": "m"', "", ["numbers.jsonl:2 size: the field is missing"]),
    ('"blue"', '"pink"', ["numbers.jsonl:2 colour: the value is outside"]),
    ('"blue"', "3", ["numbers.jsonl:2 colour:", "must be a string"]),
    ('"id": "b"', '"id": "a"', ["numbers.jsonl:2 the id 'a' was used before", "numbers.jsonl:1"]),
    ('"id": "b", ', "", ["numbers.jsonl:2 the record has no 'id'"]),
]


@pytest.mark.parametrize(("old", "new", "said"), DATA_FILES, ids=[d[2][0] for d in DATA_FILES])
def test_bad_data(bench: Bench, old: str, new: str, said: list[str]) -> None:
    bench.change("numbers.jsonl", old, new)
    code, text = bench.run("run", "toy.yaml", "--quiet", "--home", "home")
    assert code == 3, text
    assert all(part in text for part in said), text
    assert "at north: records@north" in text


def test_a_missing_data_file(bench: Bench) -> None:
    (bench.folder / "numbers.jsonl").rename(bench.folder / "number.jsonl")
    for command in ("plan", "run"):
        code, text = bench.run(command, "toy.yaml", "--home", "home")
        assert code == 3 and "north.data.numbers.path: the file of 'numbers' is not there" in text
        assert "did you mean" in text and "number.jsonl" in text


def test_a_file_to_be_bound_says_how(bench: Bench) -> None:
    bench.change("toy.sites.yaml", "path: numbers.jsonl", 'path: "???"')
    code, text = bench.run("plan", "toy.yaml")
    assert code == 3 and "--bind numbers=FILE" in text
    assert bench.run("plan", "toy.yaml", "--bind", "numbers=numbers.jsonl") == (0, "")
    code, text = bench.run("plan", "toy.yaml", "--bind", "nombers=numbers.jsonl")
    assert code == 2 and "--bind nombers=numbers.jsonl" in text


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_an_unfilled_slot_is_refused_before_any_model_is_loaded(bench: Bench, command: str) -> None:
    bench.change("toy.yaml", "{{ colour }}", "{{ nothing }}")
    before = "torch" in sys.modules
    code, text = bench.run(command, "toy.yaml")
    assert code == 2 and "toy.yaml:19:30 tasks.answers.config.template: unknown slot 'nothing'" in text
    assert ("torch" in sys.modules) == before and not (bench.folder / "osmotic-runs").exists()


def test_two_runs_in_one_folder(bench: Bench) -> None:
    (bench.folder / "home").mkdir()
    with (bench.folder / "home" / "run.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, text = bench.run("run", "toy.yaml", "--quiet", "--home", "home")
    assert code == 5 and "home another run is using this folder" in text and "--home" in text


def test_a_home_that_cannot_be_written(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    code, text = bench.run("run", "toy.yaml", "--quiet", "--home", "file/home")
    assert code == 5 and "file/home" in text


def test_a_home_without_permission(bench: Bench) -> None:
    def refuse(path: Path, *arguments: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    bench.monkeypatch.setattr(Path, "mkdir", refuse)
    code, text = bench.run("run", "toy.yaml", "--quiet", "--home", "locked")
    assert code == 5 and "locked the folder cannot be written" in text and "--home" in text


def test_a_damaged_summary(bench: Bench) -> None:
    (bench.folder / "home" / "parties").mkdir(parents=True)
    (bench.folder / "home" / "run.json").write_text("{")
    code, text = bench.run("report", "home")
    assert code == 3 and "the saved summary is damaged" in text


def test_interrupted(bench: Bench) -> None:
    def stop(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    bench.monkeypatch.setattr("osmotic.runtime.api.run", stop)
    code, text = bench.run("run", "toy.yaml")
    assert code == 130 and "run the same command again" in text


def test_all_problems_of_a_file_come_at_once(bench: Bench) -> None:
    bench.change("toy.yaml", "osmotic: 1", "osmotic: 2\nextra: 1")
    bench.change("toy.yaml", "at: server, config", "att: server, config")
    _, text = bench.run("validate", "toy.yaml")
    assert text.startswith("4 problems:\n")


@pytest.mark.parametrize("where", ["toy.yaml", "toy.sites.yaml", "schema.yaml", "numbers.jsonl"])
def test_files_that_are_not_text(bench: Bench, where: str) -> None:
    (bench.folder / where).write_bytes(b"\xff\xfe\x00" * 40)
    code, text = bench.run("run", "toy.yaml", "--quiet", "--home", "home")
    assert code in (2, 3, 4) and where in text


def test_nothing_of_the_data_is_in_the_report_of_another_party(bench: Bench) -> None:
    """What is wrong with north's data names rows; it stays in north's log and, on its own machine, on its console."""
    bench.change("numbers.jsonl", '"blue"', '"pink"')
    bench.run("run", "toy.yaml", "--quiet", "--home", "home")
    logs = {p.parent.name: p.read_text(encoding="utf-8") for p in (bench.folder / "home" / "parties").glob("*/errors.log")}
    assert "pink" in logs["north"] and "pink" not in logs.get("hub", "")


@pytest.mark.parametrize(
    "key",
    [
        "tasks.student.config.redraw.probability",
        "tasks.sanitized.config.mechanism.epsilon",
        "models.student.config.lora.rank",
    ],
)
def test_a_mistake_inside_of_a_nested_key_is_placed_there(key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        api.prepare("fedcot", overrides=(f"{key}=-3",))
    assert f"--set {key}=-3 {key}: must be " in str(caught.value)

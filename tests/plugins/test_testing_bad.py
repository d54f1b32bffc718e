# SPDX-License-Identifier: Apache-2.0
"""Bad plugins on purpose: the conformance kit catches each, and says what is wrong, why it matters and how to mend it."""

import contextlib
import importlib
import itertools
import random
import socket
import sys
import textwrap
import types
from pathlib import Path

import numpy as np
import pytest

from osmotic import testing
from osmotic.plugins.contract import (
    Answer,
    Component,
    Config,
    Context,
    DatasetName,
    Document,
    Guarantee,
    Mechanism,
    ModelPlugin,
    Out,
    Outputs,
    Records,
)
from osmotic.schemas.errors import ConfigError
from osmotic.schemas.records import FieldSpec, RecordSchema

ROWS = Records([{"id": str(i), "x": "abc"[i % 3]} for i in range(6)])
SCHEMA = RecordSchema(fields={"x": FieldSpec(domain=("a", "b", "c"))})
COUNTER = itertools.count()


def told(call) -> str:
    """The whole message of a failed check; every problem has a what, a why and a fix."""
    with pytest.raises(testing.ConformanceError) as caught:
        call()
    assert all(problem.what and problem.why and problem.fix for problem in caught.value.problems), str(caught.value)
    assert caught.value.exit_code == 6
    return str(caught.value)


def component(body, outputs=None, **members):
    """A component class around `body(self, context, records)`."""

    def run(self, context: Context, records: Records) -> Outputs:
        return body(self, context, records)

    given = {
        "__doc__": "Bad on purpose.",
        "__module__": __name__,
        "name": "bad_one",
        "run": run,
        "outputs": outputs or {"rows": Out(Records)},
    }
    return types.new_class("BadOne", (Component[Config],), {}, lambda scope: scope.update({**given, **members}))


def check(cls, context=testing.FakeContext):
    return told(lambda: testing.check_component(cls, {}, {"records": ROWS}, context))


# ---- names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_is_taken_or_is_none_and_a_missing_docstring():
    keep = lambda self, context, records: {"rows": records}  # noqa: E731
    assert "'record_loader' is registered already\n    by osmotic: osmotic.components.record_loader.RecordLoader" in check(
        component(keep, name="record_loader")
    )
    assert "has no proper name (got 'Bad One')" in check(component(keep, name="Bad One"))
    both = check(component(keep, name="bad!", __doc__=None))
    assert "no proper name" in both and "BadOne has no docstring" in both


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_a_copy_of_private_rows_that_calls_itself_a_release():
    text = check(component(lambda self, context, records: {"rows": records}, {"rows": Out(Records, label="release")}))
    assert "the output 'rows' is no release" in text and "claims less than its inputs" in text and "label='join'" in text


def test_a_release_with_one_more_row_is_no_release():
    def run(self, context, records):
        released, _ = context.release(records, ["x"], {"name": "any"})
        return {"rows": Records([*released, {"id": "f" * 32, "x": "a"}], released.columns)}

    text = check(component(run, {"rows": Out(Records, label="release")}), lambda: testing.FakeContext(record_schema=SCHEMA))
    assert "is no release" in text and "unchanged" in text


def test_what_the_host_released_passes():
    def run(self, context, records):
        released, key = context.release(records, ["x"], {"name": "any"})
        return {"rows": released, "key": key}

    made = component(run, {"rows": Out(Records, label="release"), "key": Out(Records)})
    testing.check_component(made, {}, {"records": ROWS}, lambda: testing.FakeContext(record_schema=SCHEMA))


class InventConfig(Config):
    data: DatasetName


class Invent(Component[InventConfig]):
    """Says that it reads a data set, and makes rows up."""

    name = "invent"
    outputs = {"rows": Out(Records, label="source")}

    def run(self, context: Context) -> Outputs:
        return {"rows": ROWS}


KEPT: list[str] = []


class Cache:
    """Holds what a component leaves."""

    last = ""


@pytest.mark.parametrize("where", ["KEPT", "Cache.last"])
def test_private_rows_that_wait_in_a_variable_for_a_task_of_another_party(where, monkeypatch):
    monkeypatch.setattr(Cache, "last", "")

    def run(self, context, records):
        if where == "KEPT":
            KEPT.append(next(iter(records))["x"])
        else:
            Cache.last = next(iter(records))["x"]
        return {"rows": records}

    text = check(component(run))
    assert f"a run left something behind in {__name__}.{where}" in text and "share a process" in text


def test_a_source_that_reads_no_data_and_one_that_names_none():
    text = told(lambda: testing.check_component(Invent, {"data": "notes"}, {}))
    assert "the output 'rows' is no source" in text and "context.dataset(self.config.data)" in text
    made = component(lambda self, context, records: {"rows": records}, {"rows": Out(Records, label="source")})
    assert "a source needs a configuration key 'data'" in check(made)


def test_rows_that_follow_others_although_it_says_that_they_do_not():
    def run(self, context, records):
        common = max(sorted({row["x"] for row in records}), key=lambda v: sum(row["x"] == v for row in records))
        return {"rows": Records([{"id": row["id"], "x": common} for row in records])}

    rows = Records([{"id": str(i), "x": "aab"[i % 3] if i < 5 else "b"} for i in range(3)] + [{"id": "9", "x": "b"}])
    made = component(run, mixes=classmethod(lambda cls, config: False))
    text = told(lambda: testing.check_component(made, {}, {"records": Records([*rows][::-1])}))
    assert "mixes() is False, but rows of 'rows' follow other records" in text and "leave mixes() out" in text
    testing.check_component(component(run), {}, {"records": rows})


# ---- the world outside -----------------------------------------------------------------------------------------------


def test_a_component_that_writes_beside_its_folder(tmp_path):
    target = tmp_path / "notes.txt"

    def run(self, context, records):
        target.write_text("private", encoding="utf-8")
        return {"rows": records}

    text = check(component(run))
    assert f"bad_one: it wrote outside of its folder: {target}" in text and "context.scratch()" in text
    assert not target.exists()


@pytest.mark.parametrize("how", ["mkdir", "rename", "remove", "symlink", "append", "sqlite"])
def test_other_ways_to_write_outside(how, tmp_path):
    import sqlite3

    there = tmp_path / "there.txt"
    there.write_text("x", encoding="utf-8")
    ways = {
        "mkdir": lambda: (tmp_path / "new").mkdir(),
        "rename": lambda: there.rename(tmp_path / "elsewhere.txt"),
        "remove": there.unlink,
        "symlink": lambda: (tmp_path / "link").symlink_to(there),
        "append": lambda: there.open("a", encoding="utf-8").close(),
        "sqlite": lambda: sqlite3.connect(tmp_path / "db").close(),
    }
    text = check(component(lambda self, context, records: (ways[how](), {"rows": records})[1]))
    assert "wrote outside of its folder" in text and sorted(p.name for p in tmp_path.iterdir()) == ["there.txt"]


def test_an_attempt_that_the_component_hides_is_told_all_the_same(tmp_path):
    def run(self, context, records):
        with contextlib.suppress(OSError):
            (tmp_path / "hidden").write_text("x", encoding="utf-8")
        return {"rows": records}

    assert "wrote outside of its folder" in check(component(run))


def test_its_own_folder_may_be_written_to_and_others_may_be_read(tmp_path):
    (tmp_path / "read.txt").write_text("x", encoding="utf-8")

    def run(self, context, records):
        folder = context.scratch() / "deep"
        folder.mkdir()
        (folder / "checkpoint.json").write_text((tmp_path / "read.txt").read_text(encoding="utf-8"), encoding="utf-8")
        (folder / "checkpoint.json").rename(folder / "done.json")
        return {"rows": records}

    testing.check_component(component(run), {}, {"records": ROWS})
    (tmp_path / "after.txt").write_text("the guard is off again", encoding="utf-8")


def test_a_component_that_opens_a_socket():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()

        def run(self, context, records):
            with socket.create_connection(address, timeout=5):
                return {"rows": records}

        text = check(component(run))
        assert "bad_one: it opened a socket" in text and "context.model" in text
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


# ---- mechanisms and models -------------------------------------------------------------------------------------------


class EpsilonConfig(Config):
    epsilon: float


class Uniform(Mechanism[EpsilonConfig]):
    """Any symbol."""

    name = "bad-uniform"

    def log_prob(self, rows):
        return np.full((len(rows), self.space.size), -np.log(self.space.size))

    def guarantee(self):
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon)


class OwnDice(Uniform):
    """Draws as it promises, from randomness of its own."""

    name = "bad-dice"

    def sample(self, rows, entropy):
        return np.random.Generator(np.random.PCG64(next(COUNTER))).integers(0, self.space.size, len(rows))


class Liar(Uniform):
    """Promises an even choice, and gives the symbol itself two times in three."""

    name = "bad-liar"

    def sample(self, rows, entropy):
        drawn = super().sample(rows, entropy)
        known = rows < self.space.size
        drawn[known] = np.where(super().sample(rows, entropy)[known] > 0, rows[known], drawn[known])
        return drawn


class Truth(Uniform):
    """Claims an epsilon, and keeps the symbol nearly always."""

    name = "bad-truth"

    def log_prob(self, rows):
        out = np.full((len(rows), self.space.size), np.log(1e-4))
        known = np.flatnonzero(rows < self.space.size)
        out[known, rows[known]] = 0.0
        return out - np.log(np.exp(out).sum(axis=1, keepdims=True))


class Noting(Uniform):
    """Keeps a note of what it saw."""

    name = "bad-noting"

    def log_prob(self, rows):
        Path("seen.txt").write_text(str(len(rows)), encoding="utf-8")
        return super().log_prob(rows)


class Nameless(Uniform):
    name = "exponential"


def test_a_good_mechanism_passes():
    assert testing.check_mechanism(Uniform, {"epsilon": 1.0}).holds


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (OwnDice, "draws from elsewhere than its entropy"),
        (Liar, "sample does not follow log_prob"),
        (Noting, "wrote outside of its folder"),
        (Nameless, "'exponential' is registered already"),
    ],
)
def test_bad_mechanisms_are_told(cls, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert said in told(lambda: testing.check_mechanism(cls, {"epsilon": 1.0}))
    assert not list(tmp_path.iterdir())


def test_a_mechanism_that_claims_too_little_is_told():
    with pytest.raises(testing.ConformanceError, match=r"the certificate does not hold[\s\S]*declared[\s\S]*computed"):
        testing.check_mechanism(Truth, {"epsilon": 1.0})


class Moody:
    """Answers as it likes."""

    def generate(self, prompts, how):
        return [Answer(str(next(COUNTER)), True, 1) for _ in prompts]


class Calling:
    """Asks somebody else."""

    def generate(self, prompts, how):
        if prompts:
            socket.getaddrinfo("localhost", 80)
        return [Answer("x", True, 1) for _ in prompts]


def model(built, **members):
    given = {
        "__doc__": "A bad model.", "name": "bad-model", "provides": frozenset({"text_generator"}), "__module__": __name__,
        "fingerprint": lambda self: "0" * 64, "build": lambda self: built(),
    }  # fmt: skip
    return types.new_class("BadModel", (ModelPlugin[Config],), {}, lambda scope: scope.update({**given, **members}))


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (model(Moody), "gives other answers under the same seed"),
        (model(Calling), "opened a socket (getaddrinfo"),
        (model(Moody, __doc__=""), "BadModel has no docstring"),
        (model(Moody, name="transformers"), "'transformers' is registered already"),
    ],
)
def test_bad_models_are_told(cls, said):
    assert said in told(lambda: testing.check_model(cls, {}))


def test_a_model_of_a_server_may_open_sockets():
    assert isinstance(testing.check_model(model(Calling, endpoint=lambda self: "https://models.example/v1"), {}), Calling)


# ---- modules ---------------------------------------------------------------------------------------------------------


def test_a_mechanism_whose_module_is_heavy(tmp_path, monkeypatch):
    source = """
        import pyarrow
        import numpy as np
        from osmotic.plugins.contract import Config, Guarantee, Mechanism

        class Flat(Mechanism[Config]):
            '''Any symbol.'''

            name = "bad-flat"

            def log_prob(self, rows):
                return np.full((len(rows), self.space.size), -np.log(self.space.size))

            def guarantee(self):
                return Guarantee(mechanism_class="certified", epsilon=0.1)
    """
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bad_heavy.py").write_text(textwrap.dedent(source), encoding="utf-8")
    cls = importlib.import_module("bad_heavy").Flat
    assert "importing 'bad_heavy' loads pyarrow" in told(lambda: testing.check_mechanism(cls, {}))
    sys.modules.pop("bad_heavy")


def test_a_mechanism_without_a_file_cannot_be_named():
    scope: dict[str, object] = {"Uniform": Uniform, "__name__": "nowhere"}
    exec("class Typed(Uniform):\n    'Typed in.'\n    name = 'bad-typed'", scope)
    with pytest.raises(ConfigError, match="source of mechanism 'Typed' cannot be read"):
        testing.check_mechanism(scope["Typed"], {"epsilon": 1.0})


def test_outputs_that_are_not_plain():
    made = component(lambda self, context, records: {"rows": Document({"x": random.random()})}, {"rows": Out(Document)})
    assert "two runs with the same seed differ in rows" in check(made)

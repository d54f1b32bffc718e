# SPDX-License-Identifier: Apache-2.0
"""Keys of model servers: in no file, no log and no message, and never chosen by a plan."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from osmotic.plugins.contract import ModelPlugin
from osmotic.plugins.host import Registered, Registry, build_registry
from osmotic.plugins.models.openai import OpenAiConfig, OpenAiModel
from osmotic.runtime import api
from osmotic.schemas.errors import OsmoticError, RefusedError

pytest.importorskip("httpx2", reason="the extra 'openai' is not installed")

Tasks = Callable[..., dict[str, Any]]
KEY = "sk-do-not-tell-9876543210"


@pytest.mark.parametrize("status", [200, 401, 500])
def test_the_key_is_in_no_file_and_no_log(
    run_at: Any,
    shop: Any,
    server: Any,
    tasks: Tasks,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", KEY)
    shop.defaults, server.status, said = server.listed(key="TEACHER_KEY"), status, ""
    try:
        said = json.dumps(run_at(tasks(asked=server.teach("server", "safe")), server.models(key_variable="TEACHER_KEY")))
    except OsmoticError as error:
        said = f"{error!r} {error.__cause__!r} {error.__context__!r} {error.problems}"
    assert f"Bearer {KEY}" in server.keys and KEY not in said + caplog.text and bool("HTTP 401" in said) == (status == 401)
    files = [path for path in shop.folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_key_is_in_nothing_that_the_program_says(shop: Any, toy_path: None, server: Any, tasks: Tasks) -> None:
    shop.defaults = server.listed(key="TEACHER_KEY")
    file = shop.write(tasks(asked=server.teach("server", "safe")), models=server.models(key_variable="TEACHER_KEY"))
    program = "from osmotic.runtime.cli import main; main()"
    for server.status, code in ((401, 2), (200, 0)):
        done = subprocess.run(
            [sys.executable, "-c", program, "run", str(file), "--home", str(shop.home), "--isolate"],
            env={**os.environ, "TEACHER_KEY": KEY}, capture_output=True, text=True, check=False, cwd=shop.folder,
        )  # fmt: skip
        assert KEY not in done.stdout + done.stderr and "Traceback" not in done.stderr and done.returncode == code
    assert f"Bearer {KEY}" in server.keys
    files = [path for path in shop.folder.rglob("*") if path.is_file()]
    assert len(files) > 10 and not [path for path in files if KEY.encode() in path.read_bytes()]


def test_the_registry_has_it() -> None:
    assert "openai" in build_registry(names=()).models


class Telling(OpenAiConfig):
    """A model whose secret stands in a default, where a plan need not write it."""

    key_variable: str | None = "CLOUD_SECRET"


class TellingModel(OpenAiModel):
    name = "telling"


def test_a_default_chooses_no_secret_either(
    shop: Any, toys: Registry, server: Any, tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLOUD_SECRET", KEY)
    monkeypatch.setattr(TellingModel, "__orig_bases__", (ModelPlugin[Telling],), raising=False)
    registry = Registry(toys.components, toys.mechanisms, {**toys.models, "telling": Registered(TellingModel, "x", "0")})
    shop.defaults = server.listed(key="TEACHER_KEY")
    spec = {"teacher": {"type": "telling", "at": "server", "config": {"url": f"{server.origin}/v1", "model": "m"}}}
    with pytest.raises(RefusedError, match="does not send the environment variable 'CLOUD_SECRET'"):
        api.run(shop.write(tasks(asked=server.teach("server", "safe")), models=spec), home=shop.home, registry=registry)
    assert server.prompts == []

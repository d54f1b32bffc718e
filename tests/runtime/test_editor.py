# SPDX-License-Identifier: Apache-2.0
"""Schemas for editors: what loads is valid by them, what is installed is in them; a real server is asked."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from osmotic.plugins.host import Registry, build_registry
from osmotic.runtime.tools.editing import pipeline_schema, write_schemas
from osmotic.schemas.source import read

PIPELINES = sorted(
    path
    for path in (Path(__file__).parents[2] / "pipelines").glob("*.yaml")
    if path.suffixes == [".yaml"] and "-smollm2.set" not in path.name
)


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = pipeline_schema(build_registry(names=()))
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_shipped_pipelines_are_valid(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    assert [error.message[:200] for error in validator.iter_errors(read(path).value)] == []


def document(**task: Any) -> dict[str, Any]:
    tasks = {"safe": {"component": "dp_sanitizer", "at": "clients", **task}}
    return {"osmotic": 1, "name": "p", "parties": {"clients": 2}, "tasks": tasks}


MECHANISM = {"name": "list-rr", "epsilon": 4}


@pytest.mark.parametrize(
    ("task", "valid"),
    [
        ({"config": {"mechanism": MECHANISM, "fields": ["a"]}, "inputs": {"records": "r"}}, True),
        ({"config": {"mechanism": "${matrix.m}", "fields": ["a"]}}, True),
        ({"config": {"mechanism": {**MECHANISM, "epsilon": "${matrix.e}"}, "fields": "${text.f}"}}, True),
        ({"vary": {"arm": {"a": {"config": {"fields": ["a"]}}}}, "config": {"mechanism": MECHANISM}}, True),
        ({"config": {"mechanism": MECHANISM}}, False),
        ({}, False),
        ({"config": {"mechanism": MECHANISM, "fields": ["a"], "feilds": []}}, False),
        ({"config": {"mechanism": {"name": "list-rr", "epsilon": -1}, "fields": ["a"]}}, False),
        ({"config": {"mechanism": {"name": "lost-rr"}, "fields": ["a"]}}, False),
        ({"config": {"mechanism": MECHANISM, "fields": ["a"]}, "inputs": {"record": "r"}}, False),
        ({"component": "dp_sanitiser"}, False),
    ],
)
def test_a_component_says_which_keys_and_inputs_its_tasks_have(
    task: dict[str, Any], valid: bool, validator: jsonschema.Draft202012Validator
) -> None:
    assert validator.is_valid(document(**task)) is valid


def test_what_is_installed_is_offered_with_words_and_defaults(toys: Registry, tmp_path: Path) -> None:
    names = [path.name for path in write_schemas(tmp_path, toys)]
    assert {"pipeline.json", "sites.json", "records.json"} <= set(names)
    schema = json.loads((tmp_path / "pipeline.json").read_text())
    choices = {c["const"]: c["description"] for c in schema["$defs"]["TaskSpec"]["properties"]["component"]["anyOf"]}
    assert choices["liar"] == "Claims a release without having made one." and "dp_sanitizer" in choices
    keys = schema["$defs"]["component.teacher_generator"]["properties"]
    assert keys["batch"]["default"] > 0 and sum("description" in one for one in keys.values()) > len(keys) / 2
    models = [one["const"] for one in schema["$defs"]["ModelSpec"]["properties"]["type"]["anyOf"]]
    assert models == sorted(models) and "transformers" in models


# ---- the real yaml-language-server ----

TEXT = """# yaml-language-server: $schema={schema}
osmotic: 1
name: toy
parties: {{clients: [north]}}
tasks:
  safe:
    component: dp_sanitizer
    at: clients
    config:
      fields: [a]
      mechanism:
        name: list-rr
        epsilon: wrong
      
"""  # noqa: W293 - the place where completion is asked for


class Server:
    """A language server over its pipes."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen([*command, "--stdio"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.number, self.told = 0, []

    def send(self, **message: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        size = 0
        while (line := self.process.stdout.readline().strip()) != b"":
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        message = json.loads(self.process.stdout.read(size))
        if "method" in message and "id" in message:  # it asks for its settings
            wanted = message.get("params", {}).get("items", [])
            self.send(id=message["id"], result=[{} for _ in wanted] if wanted else None)
        elif "method" in message:
            self.told.append(message)
        return message

    def ask(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        self.send(id=self.number, method=method, params=parameters)
        while (message := self.receive()).get("id") != self.number or "method" in message:
            pass
        return message.get("result")

    def marks(self) -> list[dict[str, Any]]:
        while True:
            for message in self.told:
                if message["method"] == "textDocument/publishDiagnostics" and message["params"]["diagnostics"]:
                    found: list[dict[str, Any]] = message["params"]["diagnostics"]
                    return found
            self.receive()


@pytest.fixture
def server() -> Iterator[Server]:
    found = os.environ.get("YAML_LANGUAGE_SERVER") or shutil.which("yaml-language-server")
    if not found:
        pytest.skip("no yaml-language-server: npm install yaml-language-server, and name it in YAML_LANGUAGE_SERVER")
    made = Server([found])
    yield made
    made.process.kill()
    made.process.communicate()


def test_hover_completion_and_marks_in_a_real_language_server(server: Server, tmp_path: Path) -> None:
    write_schemas(tmp_path, build_registry(names=()))
    server.ask("initialize", processId=os.getpid(), rootUri=tmp_path.as_uri(), capabilities={"textDocument": {"hover": {}}})
    server.send(method="initialized", params={})
    uri, text = (tmp_path / "toy.yaml").as_uri(), TEXT.format(schema=(tmp_path / "pipeline.json").as_uri())
    opened = {"uri": uri, "languageId": "yaml", "version": 1, "text": text}
    server.send(method="textDocument/didOpen", params={"textDocument": opened})
    marks = server.marks()
    assert any(mark["range"]["start"]["line"] == 12 for mark in marks)  # epsilon: wrong
    place = {"textDocument": {"uri": uri}}
    told = server.ask("textDocument/hover", **place, position={"line": 9, "character": 8})
    assert "Record fields that it is for" in json.dumps(told)
    offered = server.ask("textDocument/completion", **place, position={"line": 13, "character": 6})
    labels = {item["label"] for item in offered["items"]}
    named = server.ask("textDocument/completion", **place, position={"line": 6, "character": 15})
    assert {"dp_sanitizer", "teacher_generator"} <= {item["label"].strip('"') for item in named["items"]}
    assert "attempt" in labels and "fields" not in labels  # a key of dp_sanitizer; one that is there already

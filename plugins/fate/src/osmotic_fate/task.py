# SPDX-License-Identifier: Apache-2.0
"""A FATE task as the worker is told of it: its parties, parameters, the folders of its artifacts, and its end."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Mapping

from osmotic_fate import federation, site, status
from osmotic_fate import worker as process
from osmotic_fate.bridge import Bridge, Times, leave_after
from osmotic_fate.status import TaskError

KINDS = {
    "data": "data_directory",
    "model": "model_directory",
    "output_data": "data_directory",
    "output_model": "model_directory",
    "report": "json_model",
}
OWN = ("worker", "appear")  # parameters that the bridge itself reads


def run(
    ctx: Any, role: Any, kind: str, given: Mapping[str, Any], readers: Mapping[str, Any], writers: Mapping[str, Any]
) -> None:
    """Do one FATE task. kind: pipeline or component. Raises TaskError, whose text becomes FATE's status of the task."""
    found = _parties(ctx, kind)
    if found is None:
        status.log.info("this process has no federation (it is not the first of its group): the first one does the work")
        return
    try:
        _run(ctx, found, str(getattr(role, "name", role)), kind, given, readers, writers)
    except TaskError as failed:
        status.log.error("%s", failed)
        leave_after(Times.leave)
        raise failed from None


def _run(
    ctx: Any, found: tuple[str, list[str]], role: str, kind: str, given: Mapping[str, Any], readers: Mapping[str, Any],
    writers: Mapping[str, Any],
) -> None:  # fmt: skip
    own, parties = found
    task = _task(ctx, kind)
    times = Times(**{key: float(given[key]) for key in ("deadline", "appear") if given.get(key) is not None})
    bridge = Bridge(ctx, own, parties, "{id} {name}".format(**task), times)

    def prepare() -> tuple[list[str], str, dict[str, Any]]:
        ours = site.load(os.environ)
        python = site.interpreter(ours, given.get("worker"), os.environ)
        start = {
            "kind": kind,
            "role": role,
            "parameters": {key: value for key, value in given.items() if value is not None and key not in OWN},
            "site": ours,
            "site_file": str(Path(os.environ[site.FILE]).absolute()) if ours else "",
            "task": task,
            "inputs": {name: _place(name, reader) for name, reader in readers.items() if reader is not None},
            "outputs": {name: _place(name, writer) for name, writer in writers.items() if writer is not None},
        }
        return [python, "-m", process.MODULE], process.log_file(ours.get("home")), start

    outputs = bridge.run(prepare, process.environment_for(os.environ))
    for name, writer in writers.items():
        if writer is not None:
            _finish(name, writer, outputs.get(name))


def _parties(ctx: Any, kind: str) -> tuple[str, list[str]] | None:
    """(own party, all of them); a single component works alone. None in a process that FATE gives no federation."""
    try:
        own, parties = federation.everybody(ctx)
    except (RuntimeError, AttributeError):
        return None
    return own, (parties if kind == "pipeline" else [own])


def _task(ctx: Any, kind: str) -> dict[str, str]:
    """FATE's names of the task. It does not hand them to a component; they stand in what it writes about its metrics."""
    writer = getattr(getattr(ctx.metrics, "handler", None), "_writer", None)
    source = getattr(getattr(getattr(writer, "artifact", None), "metadata", None), "source", None)
    identity = getattr(source, "task_id", None) or getattr(ctx.federation, "session_id", "")
    return {"id": str(identity), "name": str(getattr(source, "task_name", None) or f"osmotic_{kind}")}


def _place(name: str, artifact: Any) -> dict[str, str]:
    """The folder or file of an artifact; FATE makes folders when it is asked for them."""
    if KINDS[name] == "json_model":
        path = str(artifact.artifact.uri.path)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    else:
        path = str(artifact.get_directory())
    return {"type": KINDS[name], "path": str(Path(path).absolute())}


def _finish(name: str, writer: Any, said: Any) -> None:
    """What FATE wants to know of a written output: a JSON document goes through its own writer."""
    if KINDS[name] == "json_model":
        path, content = Path(str(writer.artifact.uri.path)), said if isinstance(said, dict) else {}
        writer.write(json.loads(path.read_text(encoding="utf-8")) if path.is_file() else content)
    elif isinstance(said, dict):
        writer.write_metadata({key: value for key, value in said.items() if isinstance(value, (str, int, float, bool))})

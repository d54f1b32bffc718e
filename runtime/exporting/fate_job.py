# SPDX-License-Identifier: Apache-2.0
"""A job of FATE 2.x as its documents have it: the DAG of FATE-Flow, and one task configuration a party for a run without it.

A task is one pipeline: every party of FATE runs the component ``osmotic_pipeline`` with the same parameters, which name each
party's share. Paths of interpreters, policies and folders are none of them: those are each site's own (docs/fate.md).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from osmotic.runtime.exporting.fate_parties import ROLES, FateParty
from osmotic.schemas.errors import ConfigError, Problem

COMPONENT = "osmotic_pipeline"
SCHEMA_VERSION = "2.2.0"
OUTPUTS: Mapping[str, str] = {"report": "json_model", "metric": "json_metric"}  # what the component declares, and their types


@dataclass(frozen=True)
class FateTask:
    """One task of a job: a pipeline (text, or the name of a shipped one), what is changed in it, and who has which share.

    roles: role of the pipeline -> role or roles of FATE, where the names of the pipeline's roles do not tell.
    """

    name: str
    pipeline: str
    overrides: tuple[str, ...]
    parties: Mapping[str, FateParty]
    roles: Mapping[str, str | list[str]] = field(default_factory=dict)

    def parameters(self) -> dict[str, Any]:
        """The parameters of the component: the same at every party."""
        found: dict[str, Any] = {"pipeline": self.pipeline}
        if self.overrides:
            found["overrides"] = list(self.overrides)
        if self.roles:
            found["roles"] = dict(self.roles)
        return {**found, "parties": {party: str(place) for party, place in self.parties.items()}}


@dataclass(frozen=True)
class FateJob:
    """Tasks with different names. Raises ConfigError for two with one name."""

    tasks: tuple[FateTask, ...]

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            why = "FATE knows a task of a job by its name; the second would take the place of the first"
            fix = "give one of the pipelines another name (key 'name'), or export them as two jobs"
            raise ConfigError(*[Problem(f"two tasks of the job are called {name!r}", "", "name", why, fix) for name in twice])

    @property
    def parties(self) -> list[FateParty]:
        """All parties of FATE in the job, arbiter first, then guest, then hosts in the pipelines' order."""
        every = dict.fromkeys(place for task in self.tasks for place in task.parties.values())
        return sorted(every, key=lambda place: ROLES.index(place.role))

    def dag(self) -> dict[str, Any]:
        """The document that FATE-Flow takes."""
        tasks = {}
        for task in self.tasks:
            spec: dict[str, Any] = {"component_ref": COMPONENT, "stage": "default", "parameters": task.parameters()}
            if set(task.parties.values()) != set(self.parties):
                spec["parties"] = _by_role(task.parties.values())
            tasks[task.name] = spec
        scheduler = next(place.party_id for place in self.parties if place.role == "guest")
        conf = {"scheduler_party_id": scheduler, "auto_retries": 0}
        dag = {"parties": _by_role(self.parties), "conf": conf, "stage": "default", "tasks": tasks}
        return {"dag": dag, "schema_version": SCHEMA_VERSION, "kind": "fate"}

    def task_config(self, task: FateTask, place: FateParty, folder: str) -> dict[str, Any]:
        """What ``component execute`` takes at one party. folder: absolute; outputs and FATE's own tables lie below it.

        The ids of federation and computing hold for one run: the standalone federation takes each message name once.
        """
        one = f"{task.name}-{place.file}"
        everyone = [{"role": p.role, "partyid": p.party_id} for p in sorted(task.parties.values(), key=_order)]
        federation = {"local": {"role": place.role, "partyid": place.party_id}, "parties": everyone}
        return {
            "task_id": f"osmotic_{task.name}",
            "party_task_id": f"osmotic_{one}",
            "task_name": task.name,
            "component": COMPONENT,
            "role": place.role,
            "party_id": place.party_id,
            "stage": "default",
            "parameters": task.parameters(),
            "input_artifacts": {},
            "output_artifacts": {
                name: {"uri": f"file://{folder}/{one}/{name}.json", "type_name": kind} for name, kind in OUTPUTS.items()
            },
            "conf": {
                "device": {"type": "CPU", "metadata": {}},
                "computing": {
                    "type": "standalone",
                    "metadata": {"computing_id": f"osmotic_{one}", "options": {"cores": 1, "data_dir": f"{folder}/data"}},
                },
                "federation": {
                    "type": "standalone",
                    "metadata": {"federation_id": f"osmotic_{task.name}", "parties": federation},
                },
                "logger": {"config": _logger()},
            },
        }


def _by_role(places: Iterable[FateParty]) -> list[dict[str, Any]]:
    """Parties as a DAG has them: the ids of each role."""
    found: dict[str, list[str]] = {}
    for place in sorted(places, key=_order):
        found.setdefault(place.role, []).append(place.party_id)
    return [{"role": role, "party_id": ids} for role, ids in found.items()]


def _order(place: FateParty) -> tuple[int, int]:
    return ROLES.index(place.role), int(place.party_id)


def _logger() -> dict[str, Any]:
    """Lines on standard error; FATE's own default needs a terminal."""
    handler = {"class": "logging.StreamHandler", "level": "INFO", "formatter": "line"}
    line = {"format": "%(asctime)s %(levelname)s %(message)s"}
    root = {"handlers": ["console"], "level": "INFO"}
    return {
        "version": 1, "disable_existing_loggers": False, "formatters": {"line": line}, "handlers": {"console": handler},
        "root": root,
    }  # fmt: skip

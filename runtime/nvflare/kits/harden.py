# SPDX-License-Identifier: Apache-2.0
"""A kit's settings, narrowed to what this runtime needs: our classes and no others, no code in jobs, no shell, no logs sent.

The engine's own defaults let its server ship code and stream a site's error log, and let whoever has an account on a machine
speak to its processes there as one of them. What is written here decides at the *site*, whatever the server allows.
`check_hardened` says what differs; the site's executor asks it before it answers anything.
"""

import json
from pathlib import Path
from typing import Any

from osmotic.runtime.nvflare.kits.kit import Kit, read_json
from osmotic.runtime.storage.durable import own_folder, write_whole
from osmotic.schemas.errors import Problem, RefusedError

EXECUTOR = "osmotic.runtime.nvflare.site.executor.Carry"
RELAY = "osmotic.runtime.nvflare.server.relay.Relay"
GUARD = "osmotic.runtime.nvflare.site.guard.Guard"
EXACT = "osmotic.runtime.nvflare.site.guard.Exact"
LAUNCHER = "osmotic.runtime.nvflare.site.launcher.Launcher"
HEARTBEAT_LOST = 30  # seconds after which the server forgets a site that says nothing
JOBS = 128  # at once: one is enough while nothing breaks; each site that returns has one more

RIGHTS = {  # what whoever holds the admin kit may ask for; a role that is not named may nothing
    "submit_job": "any",
    "manage_job": "any",
    "view": "none",
    "operate": "none",
    "clone_job": "none",
    "download_job": "none",
    "shell_commands": "none",
    "byoc": "none",
    "server-predeployed-flwr": "none",
}
FIX = "osmotic site harden --folder SITE"


def authorization(kind: str) -> dict[str, Any]:
    """The permissions of a kit. At the server the admin may also see who is there and end it."""
    rights = dict(RIGHTS) if kind == "site" else {**RIGHTS, "view": "any", "operate": "any"}
    return {"format_version": "1.0", "permissions": {"project_admin": rights}}


INSIDE = {  # how the engine's processes of one machine reach each other: by their certificates, as machines do
    "internal": {"scheme": "tcp", "resources": {"host": "localhost", "connection_security": "mtls"}}
}


def _component(name: str, path: str, **args: Any) -> dict[str, Any]:
    return {"id": name, "path": path, "args": args}


def site_resources() -> dict[str, Any]:
    """local/resources.json of a site."""
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [EXECUTOR],
        "allow_log_streaming": False,
        "app_validator": {"path": EXACT, "args": {}},
        "client": {"retry_timeout": 30, "compression": "Gzip"},
        "components": [
            _component(
                "resource_manager",
                "nvflare.app_common.resource_managers.gpu_resource_manager.GPUResourceManager",
                num_of_gpus=0,
                mem_per_gpu_in_GiB=0,
                expiration_period=300,
            ),
            _component("resource_consumer", "nvflare.app_common.resource_consumers.gpu_resource_consumer.GPUResourceConsumer"),
            _component("process_launcher", LAUNCHER),
            _component("osmotic_guard", GUARD),
        ],
    }


def server_resources(state: Path) -> dict[str, Any]:
    """local/resources.json of a server whose jobs and snapshots are kept in `state`, which no other server uses."""
    storage = "nvflare.app_common.storages.filesystem_storage.FilesystemStorage"
    snapshots = {"path": storage, "args": {"root_dir": str(state / "snapshots"), "uri_root": "/"}}
    persistor = "nvflare.app_common.state_persistors.storage_state_persistor.StorageStatePersistor"
    server = {
        "admin_storage": "transfer",
        "max_num_clients": 1000,
        "heart_beat_timeout": HEARTBEAT_LOST,
        "download_job_url": "http://localhost/",
        "admin_timeout": 5.0,
    }
    return {
        "format_version": 2,
        "class_list_enforcement_mode": "enforce",
        "class_allow_list": [RELAY],
        "servers": [server],
        "snapshot_persistor": {"path": persistor, "args": {"uri_root": "/", "storage": snapshots}},
        "components": [
            _component(
                "job_scheduler",
                "nvflare.app_common.job_schedulers.job_scheduler.DefaultJobScheduler",
                max_jobs=JOBS,
                min_schedule_interval=1.0,
                max_schedule_interval=2.0,
                max_schedule_count=60,
            ),
            _component(
                "job_manager",
                "nvflare.apis.impl.job_def_manager.SimpleJobDefManager",
                uri_root=str(state / "jobs"),
                job_store_id="job_store",
            ),
            _component("job_store", storage),
            _component("process_launcher", "nvflare.app_common.job_launcher.server_process_launcher.ServerProcessJobLauncher"),
        ],
    }


def wanted(kit: Kit) -> dict[str, dict[str, Any]]:
    """The files under `local` that decide, by name."""
    resources = site_resources() if kit.kind == "site" else server_resources(kit.folder / "state")
    return {"resources.json": resources, "authorization.json": authorization(kit.kind), "comm_config.json": INSIDE}


def harden(folder: Path) -> None:
    """Write a site's or the server's settings; may be called again. Raises ConfigError for what is no such kit."""
    kit = Kit.read(folder)
    if kit.kind == "admin":
        raise RefusedError(Problem("this is the kit of the coordinator; it starts nothing", str(folder)))
    own_folder(kit.local)
    for name, document in wanted(kit).items():
        write_whole(kit.local / name, (json.dumps(document, indent=1) + "\n").encode())
    if kit.kind == "server":
        own_folder(kit.folder / "state")
        for part in ("jobs", "snapshots"):
            own_folder(kit.folder / "state" / part)


def check_hardened(folder: Path) -> list[Problem]:
    """What is looser than it must be; nothing if all is well. Raises ConfigError for what is no kit."""
    kit = Kit.read(folder)
    problems = []
    for name, document in wanted(kit).items():
        path = kit.local / name
        if not path.is_file():
            problems.append(Problem("the engine is not narrowed: the file is missing", str(path), fix=FIX))
            continue
        found = read_json(path)
        problems += [_differs(path, key) for key in sorted({*document, *found}) if found.get(key) != document.get(key)]
    return problems + [
        Problem(f"settings beside {kit.local / 'resources.json'}", str(path), why=MORE, fix="remove it") for path in extra(kit)
    ]


MORE = "the engine would read them after ours"


def _differs(path: Path, key: str) -> Problem:
    return Problem("the engine's settings are not what they must be", str(path), key, why="somebody changed them", fix=FIX)


def extra(kit: Kit) -> list[Path]:
    """Files that the engine would merge over the settings, or import code from."""
    found = [path for folder in (kit.startup, kit.local) for path in folder.glob("*__*resources.json")]
    return sorted([*found, *kit.local.glob("job_resources.json"), *kit.local.glob("custom")])

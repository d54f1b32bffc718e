# SPDX-License-Identifier: Apache-2.0
"""At a site: what arrives as a job must be ours to the letter, and nothing but our executor is built for it.

The engine's own list of classes does not count for a job that is marked as one with code of its own. `Exact` looks at a job
when it arrives, before any process starts; `Guard` at every part when it is built. What they refuse is in the site's audit.
Imported by the engine's processes only.
"""

from pathlib import Path
from typing import Any

from nvflare.apis.app_validation import AppValidator
from nvflare.apis.event_type import EventType
from nvflare.apis.fl_constant import FLContextKey
from nvflare.apis.fl_context import FLContext
from nvflare.widgets.widget import Widget

from osmotic.runtime.nvflare.kits.harden import EXECUTOR
from osmotic.runtime.nvflare.kits.kit import read_json
from osmotic.runtime.nvflare.server.jobs import CLIENT_CONFIG, CONFIGS, client_config
from osmotic.runtime.nvflare.site.standing import audit
from osmotic.schemas.errors import OsmoticError

SIGNATURES = (  # what the coordinator's library adds, in each folder
    ".__nvfl_sig.json",
    ".__nvfl_submitter.crt",
)
REFUSED = "this site takes no such job"  # all that the server hears


class Exact(AppValidator):  # type: ignore[misc]
    """Refuses every job that has more than our two configurations, or another one for sites."""

    def validate(self, app_folder: str) -> tuple[str, dict[str, Any]]:
        """The refusal for the server (empty if there is none), and nothing else."""
        folder = Path(app_folder).resolve()
        wrong = surplus(folder)
        if wrong:
            audit(folder.parent.parent).note("job refused", "server", wrong)
            return REFUSED, {}
        return "", {}


def surplus(folder: Path) -> str:
    """What a job has that ours has not; empty if nothing."""
    allowed = set(CONFIGS)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or (name not in allowed and name != "config" and path.name not in SIGNATURES):
            shipped = name == "custom" or name.startswith("custom/") or path.suffix in (".py", ".so", ".zip", ".pyc", ".whl")
            return "code came with it" if shipped else "files came with it that do not belong to it"
    try:
        found = read_json(folder / CLIENT_CONFIG)
    except OsmoticError:
        return "its configuration cannot be read"
    return "" if found == client_config() else "it names other classes, or arguments, than what is installed here"


class Guard(Widget):  # type: ignore[misc]
    """Refuses every component of a job but one class, without arguments."""

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Look at what is about to be built."""
        if event_type == EventType.BEFORE_BUILD_COMPONENT:
            wrong = refusal(fl_ctx.get_prop(FLContextKey.COMPONENT_CONFIG))
            if wrong:
                workspace = fl_ctx.get_prop(FLContextKey.WORKSPACE_OBJECT)
                audit(Path(workspace.get_root_dir())).note("job refused", "server", wrong)
                fl_ctx.set_prop(FLContextKey.COMPONENT_BUILD_ERROR, REFUSED, private=True, sticky=False)


def refusal(asked: Any) -> str:
    """Why a component is not built here; empty if it may be."""
    if not isinstance(asked, dict):
        return "a component that is no mapping"
    if set(asked) - {"path", "args", "id"} or asked.get("path") != EXECUTOR:
        return "a class that this site did not install for jobs"
    return "arguments for a class that takes none" if asked.get("args") else ""

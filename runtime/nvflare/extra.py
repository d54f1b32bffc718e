# SPDX-License-Identifier: Apache-2.0
"""What `import osmotic` must not need: the extra `nvflare`, asked for where a command needs it."""

import importlib.util

from osmotic.schemas.errors import ConfigError, Problem

WANTED = (2, 9)


def need_extra() -> None:
    """Raise ConfigError, with the command that mends it, unless NVFlare 2.9 and psutil are installed."""
    missing = [name for name in ("nvflare", "psutil", "cryptography") if importlib.util.find_spec(name) is None]
    fix = "pip install 'osmotic[nvflare]'"
    if missing:
        raise ConfigError(
            Problem(f"runs on several machines need an extra that is not installed: {', '.join(missing)}", fix=fix)
        )
    found = version()
    if tuple(int(part) for part in found.split(".")[:2] if part.isdigit()) != WANTED:
        what = f"NVFlare {found} is installed; 2.9 is what was tried"
        raise ConfigError(Problem(what, why="its messages and its checks differ from version to version", fix=fix))


def version() -> str:
    """The version of NVFlare that is installed, e.g. ``2.9.0``."""
    from importlib.metadata import version as installed

    return installed("nvflare")

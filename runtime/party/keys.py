# SPDX-License-Identifier: Apache-2.0
"""Cache keys: what a task's outputs depend on, as facts that can be compared and explained."""

import functools
import hashlib
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from osmotic.runtime.results.comparing import changes, reason
from osmotic.schemas.messages import fingerprint

RELEVANT = ("numpy", "pyarrow", "safetensors", "torch", "transformers", "peft", "tokenizers", "jinja2")
RULES = 1  # raised whenever the rules by which labels are computed change: everything is then computed anew


def key_of(facts: dict[str, Any]) -> str:
    """The cache key of a task."""
    return fingerprint(facts)


def why(before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    """In a few words, why a task has to run: what differs from the facts of its last run."""
    if before is None:
        return "first run"
    found = dict.fromkeys(reason(change) for change in changes(before, now))
    return ", ".join(found) if found else "its outputs are missing"


@functools.lru_cache(maxsize=1)
def environment() -> dict[str, str]:
    """Versions that results depend on. Cached for the process: they cannot change in it."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in RELEVANT:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.lru_cache(maxsize=256)
def code_of(module: str) -> str:
    """SHA-256 of the Python files beside a module and, in a package, of its sub-packages (helpers count too)."""
    file = getattr(sys.modules[module], "__file__", None)
    if file is None:
        return "builtin"
    folder, total = Path(file).parent, hashlib.sha256()
    below = folder.glob("*/*.py") if (folder / "__init__.py").is_file() else ()
    for path in sorted([*folder.glob("*.py"), *below]):
        name = path.relative_to(folder).as_posix()
        total.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time of change."""
    stat = path.stat()
    return _file_digest(str(path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _file_digest(path: str, size: int, changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def use_threads(count: int) -> None:
    """Compute threads of this process: results are equal for equal counts."""
    os.environ.setdefault("OMP_NUM_THREADS", str(count))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)

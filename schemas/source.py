# SPDX-License-Identifier: Apache-2.0
"""Documents with positions: read a YAML file once, validate it against a model, report every problem with its place."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.located import MAX_BYTES, Key, Source, parse
from osmotic.schemas.problems import did_you_mean, near, problems_of

__all__ = ["Key", "Source", "did_you_mean", "parse", "problems_of", "read", "read_text", "validate"]

M = TypeVar("M", bound=BaseModel)


def read(path: Path, name: str | None = None) -> Source:
    """Read and parse a YAML file; raises ConfigError when it is missing, too large, not UTF-8 or not YAML."""
    shown = name or str(path)
    return parse(read_text(path, shown), shown)


def read_text(path: Path, shown: str) -> str:
    """The text of a configuration file, of which no more is read than one may have. Raises ConfigError, as `read` does."""
    try:
        if path.exists() and not path.is_file():
            kind = "a folder" if path.is_dir() else "a device or a pipe"
            raise ConfigError(Problem(f"this is {kind}, not a file", shown, fix="name the YAML file itself"))
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(Problem("no such file", shown, fix=_near_file(path))) from error
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {error.strerror or type(error).__name__}", shown)) from error
    if len(content) > MAX_BYTES:
        why, fix = f"the limit is {MAX_BYTES >> 20} MiB", "keep data in data files; a site file binds them by name"
        raise ConfigError(Problem("the file is too large for a configuration", shown, why=why, fix=fix))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(_not_text(error, shown)) from error


def _not_text(error: UnicodeDecodeError, shown: str) -> Problem:
    """Which encoding it may be, as far as its first bytes tell."""
    content, start = error.object, error.start
    where = f"{shown}:{content[:start].count(10) + 1}"
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Problem("the file is UTF-16, not UTF-8 text", where, fix="save it as UTF-8")
    why = f"first at its byte {start + 1}: 0x{content[start]:02x}"
    return Problem("the file is not UTF-8 text", where, why=why, fix="save it as UTF-8")


def validate(model: type[M], source: Source, at: Key = ()) -> M:
    """Validate the value at `at` against a model; raises ConfigError with every problem, located."""
    try:
        return model.model_validate(source.at(at))
    except ValidationError as error:
        raise ConfigError(*problems_of(error, model, source, at)) from error


def _near_file(path: Path) -> str:
    folder = path.parent
    try:
        names = [p.name for p in folder.iterdir()]
    except OSError:
        return f"there is no folder {str(folder)!r} either"
    close = near(path.name, names, 1)
    return f"did you mean {str(folder / close[0])!r}?" if close else ""

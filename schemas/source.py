# SPDX-License-Identifier: Apache-2.0
"""Documents with positions: read a YAML file once, validate it against a model, report every problem with its place."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.located import MAX_BYTES, Key, Source, parse
from osmotic.schemas.problems import did_you_mean, near, problems_of

__all__ = ["Key", "Source", "did_you_mean", "parse", "problems_of", "read", "validate"]

M = TypeVar("M", bound=BaseModel)


def read(path: Path, name: str | None = None) -> Source:
    """Read and parse a YAML file; raises ConfigError when it is missing, too large, not UTF-8 or not YAML."""
    shown = name or str(path)
    try:
        with path.open("rb") as file:
            content = file.read(4 * MAX_BYTES)
    except FileNotFoundError as error:
        raise ConfigError(Problem("no such file", shown, fix=_near_file(path))) from error
    except OSError as error:
        raise ConfigError(Problem(f"cannot be read: {error.strerror or type(error).__name__}", shown)) from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"{shown}:{error.object[: error.start].count(10) + 1}"
        raise ConfigError(Problem("the file is not UTF-8 text", where, fix="save it as UTF-8")) from error
    return parse(text, shown)


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

# SPDX-License-Identifier: Apache-2.0
"""Inputs of FATE as data sets of a site: which data set is read from which input says the site's own file alone.

The policy binds the data set as ever (schema, label, purpose, budget); only the path of its file comes from FATE.
"""

from collections.abc import Mapping
from pathlib import Path

from osmotic.runtime.fate.folders import records_file
from osmotic.runtime.fate.wire import Place
from osmotic.schemas.errors import ConfigError, Problem, RefusedError


def binds(wanted: Mapping[str, str], inputs: Mapping[str, Place]) -> tuple[str, ...]:
    """``NAME=FILE`` for each data set that the site reads from an input.

    wanted: data set -> input, of the site's file. inputs: those that the job connected. Raises ConfigError for an input that is
    missing or of another type, RefusedError for one that the site's file does not take, DataError without one file inside.
    """
    for name in inputs:
        if name not in wanted.values():
            why = "which data set an input becomes says the site's own file, not the job"
            fix = f"add to the site's file: inputs: {{DATA_SET: {name}}}; or connect nothing to it"
            raise RefusedError(Problem(f"this site takes no input {name!r}", path=f"inputs.{name}", why=why, fix=fix))
    found = []
    for dataset, name in wanted.items():
        if name not in inputs:
            fix = "connect a data_directory to it in the job, or bind the data set to a file in the policy"
            raise ConfigError(Problem(f"the data set {dataset!r} comes from the input {name!r}, which is missing", fix=fix))
        found.append(f"{dataset}={data_file(inputs[name], f'inputs.{name}')}")
    return tuple(found)


def data_file(place: Place, path: str) -> Path:
    """The one file of records in a folder of FATE. path: of the input, for messages."""
    if place.type != "data_directory":
        fix = "connect a data_directory: a folder with one file of records (JSONL, CSV or Parquet)"
        raise ConfigError(Problem(f"is a {place.type}; records come in a data_directory", path=path, fix=fix))
    return records_file(Path(place.path.removeprefix("file://")), path)

# SPDX-License-Identifier: Apache-2.0
"""The data sets that a site's policy binds: found, read, checked against their schema, fingerprinted."""

import functools
import math
from pathlib import Path

from osmotic.plugins.contract import Records
from osmotic.plugins.datafiles import load_records
from osmotic.plugins.spaces import Tables, load_schema, resolve, table_files
from osmotic.runtime.party.keys import file_digest
from osmotic.schemas.errors import ConfigError, DataError, Problem, RefusedError
from osmotic.schemas.messages import fingerprint
from osmotic.schemas.policy import DataBinding, SitePolicy
from osmotic.schemas.records import RecordSchema
from osmotic.schemas.source import did_you_mean


class Datasets:
    """Data sets of one site. `base`: the folder that relative paths start from (that of the policy file).

    tables: where table plugins are found (the host's registry); default the built-in ones.
    """

    def __init__(self, policy: SitePolicy, base: Path, party: str, tables: Tables | None = None) -> None:
        self.policy, self.base, self.party = policy, base, party
        self._tables = tables
        self._schemas: dict[str, RecordSchema] = {}
        self._sizes: dict[str, int] = {}

    def has(self, name: str) -> bool:
        """Whether the policy binds it."""
        return name in self.policy.data

    def binding(self, name: str) -> DataBinding:
        """The binding; raises RefusedError when there is none."""
        if name not in self.policy.data:
            fix = did_you_mean(name, self.policy.data)
            raise RefusedError(Problem(f"{self.party} binds no data set called {name!r}", fix=fix))
        return self.policy.data[name]

    def schema(self, name: str) -> RecordSchema:
        """Its public schema."""
        if name not in self._schemas:
            try:
                self._schemas[name] = _schema(self.binding(name).schema_, self.base)
            except ConfigError as error:
                if error.problems[0].where:
                    raise
                first, path = error.problems[0], f"{self.party}.data.{name}.schema"
                raise ConfigError(Problem(f"the schema of {name!r}: {first.what}", "", path, first.why, first.fix)) from error
        return self._schemas[name]

    def path(self, name: str) -> Path:
        """Its file; raises DataError when it is missing."""
        binding = self.binding(name)
        try:
            found = resolve(binding.path, self.base)
        except ConfigError as error:
            first = error.problems[0]
            bind = f"bind it: osmotic run ... --bind {name}=FILE"
            fix = bind if binding.path == "???" else first.fix or f"correct 'path' in the site file, or {bind}"
            what = f"the file of {name!r} is not there: {first.what}"
            raise DataError(Problem(what, path=f"{self.party}.data.{name}.path", why=first.why, fix=fix)) from error
        self._inside(name, binding.path)
        return found

    def _inside(self, name: str, reference: str) -> None:
        """Raise DataError where a relative path leads out of the folder that it is below, by a symbolic link."""
        if Path(reference).is_absolute() or reference.startswith("osmotic:") or ".." in Path(reference).parts:
            return  # the site file itself says where it lies
        real, base = (self.base / reference).resolve(), self.base.resolve()
        if not real.is_relative_to(base):
            what = f"the file of {name!r} is reached by a symbolic link out of the folder of the site file"
            why = f"{reference} leads to {real}: whoever may write to the folder would choose what is read"
            fix = f"if it is meant, name the file itself: path: {real}"
            raise DataError(Problem(what, path=f"{self.party}.data.{name}.path", why=why, fix=fix))

    def load(self, name: str) -> tuple[Records, RecordSchema]:
        """Its records and schema; raises DataError with every problem found."""
        binding, schema, path = self.binding(name), self.schema(name), self.path(name)
        records = load_records(path, schema, binding.map, binding.rows)
        if not len(records):
            fix = "a party without data is left out of the pipeline's parties"
            raise DataError(Problem("the file has no records", str(path), f"{self.party}.data.{name}", fix=fix))
        return records, schema

    def size(self, name: str) -> int:
        """How many records it has, read once for each content; raises DataError as `load` does."""
        key = self.fingerprint(name)
        if key not in self._sizes:
            self._sizes[key] = len(self.load(name)[0])
        return self._sizes[key]

    def tables(self, name: str) -> list[str]:
        """Digests of the table files that its schema names."""
        fields = self.schema(name).fields.values()
        files = {file for spec in fields for file in table_files(spec, self.base, self._tables)}
        return [file_digest(file) for file in sorted(files)]

    def fingerprint(self, name: str) -> str:
        """What its content depends on: the file, the rows and fields taken, the schema."""
        binding = self.binding(name)
        taken = {"rows": binding.rows, "map": binding.map, "schema": self.schema(name).model_dump(mode="json")}
        path = self.path(name)
        try:
            return fingerprint([file_digest(path), taken])
        except OSError as error:
            what, fix = f"the file of {name!r} cannot be read", "let this user read it: chmod u+r"
            where = f"{self.party}.data.{name}.path"
            raise DataError(Problem(what, str(path), where, error.strerror or type(error).__name__, fix)) from error


def check_distinct(policy: SitePolicy, base: Path, party: str) -> None:
    """Raise ConfigError when two private data sets have records of one file in common: each would have its own budget."""
    known: list[tuple[str, object, tuple[int, float]]] = []
    problems = []
    for name, binding in policy.data.items():
        if binding.label != "private" or binding.purpose != "private" or binding.path == "???":
            continue
        file, (first, end) = _file(binding.path, base), binding.rows or (0, math.inf)
        for other, its_file, (its_first, its_end) in known:
            if file == its_file and first < its_end and its_first < end:
                what, path = f"{name!r} and {other!r} share records of the file {binding.path!r}", f"{party}.data.{name}"
                fix = "bind the file under one name, or give each its own 'rows'"
                problems.append(Problem(what, path=path, why="each name would have a budget of its own", fix=fix))
        known.append((name, file, (first, end)))
    if problems:
        raise ConfigError(*problems)


def _file(path: str, base: Path) -> object:
    """What is the same for two paths to one file."""
    try:
        found = resolve(path, base).resolve()
        stat = found.stat()
    except (ConfigError, OSError):
        return str(base / path)  # it is not there: told when it is read
    return stat.st_dev, stat.st_ino


def _schema(value: RecordSchema | str, base: Path) -> RecordSchema:
    if isinstance(value, RecordSchema):
        return value
    path = resolve(value, base)
    return _schema_file(value, base, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=64)
def _schema_file(value: str, base: Path, changed: int) -> RecordSchema:
    """A schema file, read once for each time it changes: parties often share one."""
    return load_schema(value, base)

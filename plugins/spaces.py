# SPDX-License-Identifier: Apache-2.0
"""Public spaces of symbols: file references, record schemas, tables of vectors, and text as symbols.

A field with a domain is one symbol; text is cut into tokens by a public rule (the table's own tokenizer, or the rule of words,
`tokenize`) and each token is a symbol of the table or the unknown symbol, V. Tables and vocabularies are public by declaration.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from osmotic.plugins.contract import Space, Table, TablePlugin
from osmotic.plugins.tables import words
from osmotic.plugins.tables.mapped import map_array, map_tensor
from osmotic.plugins.tables.words import tokenize
from osmotic.plugins.vocabulary import check_symbols, check_vectors, read_lines
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import FieldSpec, RecordSchema
from osmotic.schemas.source import did_you_mean, read, validate

if TYPE_CHECKING:
    import numpy as np

__all__ = ["decode", "encode", "indices", "join", "load_schema", "resolve", "space_of", "table_files", "tokenize"]

SHIPPED = "osmotic:"
REFERENCE = re.compile(r"(?!osmotic:)([A-Za-z][A-Za-z0-9_-]*):(.*)", re.DOTALL)  # NAME:ARGUMENT of a table plugin
KINDS = "NAME:ARGUMENT (minilm:pieces, glove:50d-20000, smollm2:words), FILE.safetensors#KEY or FILE.npy"


class Tables(Protocol):
    """Where table plugins are found: the host's registry."""

    def table(self, name: str) -> TablePlugin:
        """The table plugin of that name; raises ConfigError with did-you-mean."""


# ---- references ------------------------------------------------------------------------------------------------------


def resolve(ref: str, base: Path) -> Path:
    """The file that a reference names: ``osmotic:NAME/REST`` inside the installed ``osmotic.plugins.NAME``, else below `base`.

    Raises ConfigError, with did-you-mean, when it is missing or would leave the installed folder.
    """
    if "\0" in ref or not ref.strip():
        raise ConfigError(Problem("not a file reference", why=f"got {ref[:80]!r}"))
    path = _shipped(ref) if ref.startswith(SHIPPED) else base / ref
    try:
        found = path.is_file()
    except (OSError, UnicodeEncodeError) as error:
        raise ConfigError(Problem(f"cannot be read: {ref[:80]!a}", why=str(error)[:200])) from error
    if not found:
        raise ConfigError(_no_file(ref, path))
    return path


def _no_file(ref: str, path: Path) -> Problem:
    """What is there in place of a file, if anything."""
    shown = ascii(ref[:200])
    if path.is_dir():
        return Problem(f"this is a folder, not a file: {shown}", fix="name a file in it")
    if path.is_symlink():
        return Problem(f"this is a symbolic link to nothing: {shown}", fix="name the file itself")
    if path.exists():
        return Problem(f"this is a device or a pipe, not a file: {shown}", fix="copy the data into a file")
    return Problem(f"no such file: {shown}", fix=_near(path))


def _shipped(ref: str) -> Path:
    name, _, rest = ref.removeprefix(SHIPPED).partition("/")
    inside = PurePosixPath(rest)
    if inside.is_absolute() or ".." in inside.parts or "\\" in rest or not rest:
        why = "it must stay inside the installed folder"
        raise ConfigError(Problem(f"not a reference to a shipped file: {ref[:200]!a}", why=why, fix="osmotic:NAME/FILE"))
    plugins = Path(str(resources.files("osmotic.plugins")))
    known = sorted(p.parent.name for p in plugins.glob("*/__init__.py"))
    if name not in known:
        raise ConfigError(Problem(f"nothing is shipped under {name[:80]!a}", fix=did_you_mean(name, known)))
    return plugins / name / inside


def _near(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder {str(folder)!r}"
    close = difflib.get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    return f"did you mean {close[0]!r}?" if close else ""


def load_schema(value: RecordSchema | str, base: Path) -> RecordSchema:
    """A record schema, given or read from a YAML file. Tables that the file names are then relative to the file's folder."""
    if isinstance(value, RecordSchema):
        return value
    schema = validate(RecordSchema, read(resolve(value, base), value))
    return RecordSchema(fields={name: _moved(spec, value) for name, spec in schema.fields.items()})


def _moved(spec: FieldSpec, file: str) -> FieldSpec:
    """The field with its table's reference made relative to where the schema's own reference is."""
    table = spec.table
    if table is None or REFERENCE.fullmatch(table) or table.startswith(SHIPPED) or Path(table).is_absolute():
        return spec
    prefix, _, rest = file.rpartition("/")
    return spec.model_copy(update={"table": f"{prefix}/{table}" if rest and prefix else table})


# ---- spaces ----------------------------------------------------------------------------------------------------------


def space_of(name: str, spec: FieldSpec, base: Path, table: str | None = None, registry: Tables | None = None) -> Space:
    """The space of a field. `table` takes the place of the field's own; `registry`: default the built-in tables alone.

    Domain: symbols are its values; vectors, if a table is named, from ``FILE.safetensors#KEY`` or ``FILE.npy``, one row a
    value. Text: symbols, vectors and tokenizer of the table plugin in ``NAME:ARGUMENT``; or from those files, with
    ``FILE.KEY.txt`` or ``FILE.txt`` beside them, one token a line. What is not in the table is the unknown symbol. Vectors are
    mapped where they can be, and checked: float32, finite, no row of zeros. Raises ConfigError when a table does not fit.
    """
    table = table or spec.table
    if spec.domain is not None:
        vectors = None if table is None else _vectors(_file_table(table, name), base)
        return Space(name, spec.domain, None if vectors is None else check_vectors(vectors, len(spec.domain), name, str(table)))
    if table is None:
        raise ConfigError(Problem(f"the text field {name!r} needs a token table", path="table", fix=f"table: {KINDS}"))
    reference = REFERENCE.fullmatch(table)
    if reference:
        plugin = _plugin(reference[1], registry)
        loaded = _loaded(type(plugin), reference[2], base, _stamps(plugin.files(reference[2], base), table))
        return Space(name, loaded.symbols, loaded.vectors, unknown=True, tokenizer=loaded.tokenizer)
    file = _file_table(table, name)
    symbols = read_lines(*_vocabulary(file, base))
    check_symbols(symbols, table)
    return Space(name, symbols, check_vectors(_vectors(file, base), len(symbols), name, table), unknown=True)


def table_files(spec: FieldSpec, base: Path, registry: Tables | None = None) -> list[Path]:
    """The files that a field's table is made from, without loading it: part of cache keys. Raises ConfigError."""
    if spec.table is None:
        return []
    reference = REFERENCE.fullmatch(spec.table)
    if reference and spec.text:
        return list(_plugin(reference[1], registry).files(reference[2], base))
    file = _file_table(spec.table, "table")
    return [resolve(file[0], base), *([_vocabulary(file, base)[0]] if spec.text else [])]


def _plugin(name: str, registry: Tables | None) -> TablePlugin:
    """The table plugin of that name: the registry's, or a built-in one."""
    if registry is not None:
        return registry.table(name)
    from osmotic.plugins.builtin import register_tables

    known = {cls.name: cls for cls in register_tables()}
    if name not in known:
        raise ConfigError(Problem(f"unknown table {name[:80]!r}", path="table", fix=did_you_mean(name, known)))
    return known[name]()


def _stamps(files: Sequence[Path], shown: str) -> tuple[tuple[str, int, int], ...]:
    try:
        return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError as error:
        raise ConfigError(
            Problem(f"a file of the table {shown[:200]!a} cannot be read", path="table", why=str(error)[:200])
        ) from error


@lru_cache(maxsize=8)
def _loaded(cls: type[TablePlugin], argument: str, base: Path, _stamps: tuple[tuple[str, int, int], ...]) -> Table:
    """A plugin's table, checked; loaded once for each state of its files."""
    table, shown = cls().load(argument, base), f"{cls.name}:{argument}"
    check_symbols(table.symbols, shown)
    if table.vectors is not None:
        check_vectors(table.vectors, len(table.symbols), shown, shown)
    return table


def _file_table(table: str, name: str) -> tuple[str, str, str]:
    """(file, key, table) of ``FILE.safetensors#KEY``, or of ``FILE.npy`` with no key."""
    if REFERENCE.fullmatch(table):
        why, fix = f"{name!r} has a domain", "FILE.safetensors#KEY or FILE.npy, one row a value"
        raise ConfigError(Problem(f"this table is for text fields: {table[:80]!a}", path="table", why=why, fix=fix))
    if table.endswith(".npy"):
        return table, "", table
    file, _, key = table.rpartition("#")
    if not file.endswith(".safetensors") or not key:
        raise ConfigError(Problem(f"not a table: {table[:200]!a}", path="table", fix=KINDS))
    return file, key, table


def _vectors(file: tuple[str, str, str], base: Path) -> "np.ndarray":
    place, key, table = file
    path = resolve(place, base)
    return map_tensor(path, key, table) if key else map_array(path, table)


def _vocabulary(file: tuple[str, str, str], base: Path) -> tuple[Path, str]:
    """(path, reference) of the vocabulary beside a table."""
    place, key, _ = file
    stem, path = place.rpartition(".")[0], resolve(place, base)
    beside = path.with_name(f"{path.stem}.{key}.txt")
    if key and "/" not in key and "\\" not in key and "\0" not in key and beside.is_file():
        return beside, f"{stem}.{key}.txt"
    return resolve(f"{stem}.txt", base), f"{stem}.txt"


# ---- text ------------------------------------------------------------------------------------------------------------


def encode(space: Space, texts: Sequence[str]) -> "tuple[np.ndarray, np.ndarray]":
    """(int64 [n] input indices of all texts one after another, V where unknown; int64 [texts] how many each text has).

    In a space without an unknown symbol (a field's domain) every text is one symbol. Raises DataError, which does not quote the
    text: a value outside the domain, or a text of more than `osmotic.plugins.tables.words.LIMIT` characters.
    """
    import numpy as np

    if space.tokenizer is not None:
        return space.tokenizer.encode(texts)
    if space.unknown:
        return words.encode(space.symbols, texts)
    return indices(space, texts), np.ones(len(texts), dtype=np.int64)


def decode(space: Space, flat: "np.ndarray", lengths: "np.ndarray") -> list[str]:
    """The text of each run of output indices. Raises DataError when indices and lengths do not fit the space."""
    if space.tokenizer is not None:
        return space.tokenizer.decode(flat, lengths)
    return words.decode(space.symbols, flat, lengths)


def indices(space: Space, tokens: Sequence[str]) -> "np.ndarray":
    """int64 [n]: each token's index, V when it is unknown.

    Raises DataError (which does not quote the token) when the space has no unknown symbol.
    """
    import numpy as np

    known: Mapping[str, int] = words.lookup(space.symbols)
    out = np.fromiter((known.get(token, space.size) for token in tokens), dtype=np.int64, count=len(tokens))
    outside = np.flatnonzero(out == space.size)
    if outside.size and not space.unknown:
        why = f"{outside.size} such values, the first at position {outside[0]}"
        raise DataError(Problem(f"a value is outside the domain of {space.name!r}", why=why))
    return out


def join(tokens: Sequence[str]) -> str:
    """Tokens -> text, with one space between them."""
    return " ".join(tokens)

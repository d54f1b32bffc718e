# SPDX-License-Identifier: Apache-2.0
"""Public spaces of symbols: file references, record schemas, tables of vectors, and text as symbols.

A field with a domain is one symbol; text is cut into tokens by one public rule (`tokenize`) and each token is a symbol of a
table or the unknown symbol, V. Nothing here may read private data: tables and vocabularies are public.
"""

import difflib
import re
import unicodedata
from collections.abc import Sequence
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from osmotic.plugins.contract import Space
from osmotic.plugins.vocabulary import WORDS, read_lines, read_tensor, smollm2_words
from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.records import FieldSpec, RecordSchema
from osmotic.schemas.source import did_you_mean, read, validate

if TYPE_CHECKING:
    import numpy as np

__all__ = ["indices", "join", "load_schema", "resolve", "space_of", "tokenize"]

SHIPPED = "osmotic:"
TOKEN = re.compile(r"[^\W\d_]+|\S")


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
        raise ConfigError(Problem(f"no such file: {ref[:200]!a}", fix=_near(path)))
    return path


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
    if spec.table is None or spec.table == WORDS or spec.table.startswith(SHIPPED) or Path(spec.table).is_absolute():
        return spec
    prefix, _, rest = file.rpartition("/")
    return spec.model_copy(update={"table": f"{prefix}/{spec.table}" if rest and prefix else spec.table})


# ---- spaces ----------------------------------------------------------------------------------------------------------


def space_of(name: str, spec: FieldSpec, base: Path, table: str | None = None) -> Space:
    """The space of a field. `table` takes the place of the field's own.

    Domain: symbols are its values; vectors, if a table is named, from ``FILE.safetensors#KEY``, one row a value. Text: tokens
    and vectors from ``FILE.safetensors#KEY`` with ``FILE.KEY.txt`` or ``FILE.txt`` beside it, one token a line, or from
    ``smollm2:words``; what is not in the table is the unknown symbol. Raises ConfigError when a table does not fit.
    """
    table = table or spec.table
    if spec.domain is not None:
        if table == WORDS:
            raise ConfigError(Problem("this table is for text fields", why=f"the field {name!r} has a domain", path="table"))
        vectors = None if table is None else _vectors(table, base, len(spec.domain), name)
        return Space(name, spec.domain, vectors)
    if table is None:
        fix = f"table: {WORDS}, or table: FILE.safetensors#KEY"
        raise ConfigError(Problem(f"the text field {name!r} needs a token table", path="table", fix=fix))
    if table == WORDS:
        words, vectors = smollm2_words()
        return Space(name, words, vectors, unknown=True)
    symbols = _vocabulary(table, base)
    return Space(name, symbols, _vectors(table, base, len(symbols), name), unknown=True)


def _split(table: str) -> tuple[str, str]:
    file, _, key = table.rpartition("#")
    if not file.endswith(".safetensors") or not key:
        close = did_you_mean(table, [WORDS]) if table.startswith("smol") else "FILE.safetensors#KEY"
        raise ConfigError(Problem(f"not a table: {table!a}", path="table", fix=close))
    return file, key


def _vectors(table: str, base: Path, count: int, name: str) -> "np.ndarray":
    import numpy as np

    file, key = _split(table)
    vectors = read_tensor(resolve(file, base), key, table)
    if vectors.ndim != 2 or vectors.shape[0] != count or not vectors.shape[1]:
        why = f"it has shape {list(vectors.shape)}; {name!r} has {count} symbols"
        raise ConfigError(Problem(f"the table {table!a} must have one vector a symbol", path="table", why=why))
    wrong = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if wrong.size:
        raise ConfigError(
            Problem(f"the table {table!a} has values that are not finite", path="table", why=f"in row {wrong[0]}")
        )
    zero = np.flatnonzero(~vectors.any(axis=1))
    if zero.size:
        raise ConfigError(Problem(f"the table {table!a} has a vector of zeros", path="table", why=f"in row {zero[0]}"))
    return vectors


def _vocabulary(table: str, base: Path) -> tuple[str, ...]:
    file, key = _split(table)
    stem = file.removesuffix(".safetensors")
    path = resolve(file, base)
    beside = path.with_name(f"{path.name.removesuffix('.safetensors')}.{key}.txt")
    own = "/" not in key and "\\" not in key and "\0" not in key and beside.is_file()
    shown = f"{stem}.{key}.txt" if own else f"{stem}.txt"
    return read_lines(beside if own else resolve(shown, base), shown)


# ---- text ------------------------------------------------------------------------------------------------------------


def tokenize(text: str) -> list[str]:
    """Text -> tokens by the public rule: lower case, NFC, then runs of letters; every other character but space is one token.

    Digits, marks, signs, emoji and characters outside any table are tokens too: nothing passes beside the mechanism.
    """
    return TOKEN.findall(unicodedata.normalize("NFC", text.lower()))


def indices(space: Space, tokens: Sequence[str]) -> "np.ndarray":
    """int64 [n]: each token's index, V when it is unknown. Builds a lookup of V entries: give many tokens at once.

    Raises DataError (which does not quote the token) when the space has no unknown symbol.
    """
    import numpy as np

    lookup = {symbol: i for i, symbol in enumerate(space.symbols)}
    out = np.fromiter((lookup.get(token, space.size) for token in tokens), dtype=np.int64, count=len(tokens))
    outside = np.flatnonzero(out == space.size)
    if outside.size and not space.unknown:
        why = f"{outside.size} such values, the first at position {outside[0]}"
        raise DataError(Problem(f"a value is outside the domain of {space.name!r}", why=why))
    return out


def join(tokens: Sequence[str]) -> str:
    """Tokens -> text, with one space between them."""
    return " ".join(tokens)

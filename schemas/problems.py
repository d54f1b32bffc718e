# SPDX-License-Identifier: Apache-2.0
"""Validation errors of pydantic as problems of the file that the user wrote: real paths, plain words, did-you-mean."""

import difflib
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from osmotic.schemas.errors import Problem
from osmotic.schemas.located import Key, Source

_WORDS = {
    "missing": "this key is required",
    "extra_forbidden": "unknown key",
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "float_parsing": "must be a number",
    "int_parsing": "must be an integer",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "none_required": "must be null",
}
_ENOUGH = re.compile(r"\w+ should have at (least|most) (\d+) items? after validation, not \d+")
_TRUE, _FALSE = ("yes", "y", "on"), ("no", "n", "off")
_TYPE_NAMES = frozenset({"str", "int", "float", "bool", "none", "tuple", "list", "dict"})


@dataclass(frozen=True)
class _Found:
    """One error: its path in the file, and the member of a union (at some path) that raised it, if any."""

    path: Key
    item: ErrorDetails
    union: Key | None = None
    member: str = ""


def problems_of(error: ValidationError, model: type[BaseModel], source: Source, at: Key = ()) -> list[Problem]:
    """Located, friendly problems of a pydantic error, one a path, with did-you-mean for unknown keys."""
    found = [_locate(item, source, at) for item in error.errors(include_url=False)]
    merged: dict[Key, Problem] = {}
    for one in found:
        if one.item["type"] == "too_short" and any(f.path[: len(one.path)] == one.path != f.path for f in found):
            continue  # its members are wrong, and were not counted
        rivals = [f for f in found if one.union is not None and f.union == one.union]
        shaped = [f for f in rivals if f.path != f.union]
        if shaped and one not in shaped:
            continue  # another member of the union has the value's shape: only its errors help
        words = list(dict.fromkeys(_message(f.item) for f in rivals if f.path == one.path)) or [_message(one.item)]
        text = _either(words) + _got(one.item)
        shown = ".".join(str(p) for p in one.path)
        fix = "" if len(words) > 1 else _fix(one.item, model)
        merged.setdefault(one.path, Problem(text, source.where(one.path), shown, fix=fix))
    return list(merged.values())


FURTHER = 0.1  # in likeness, than the best guess


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'did you mean X?' or the list of what is known, or nothing."""
    names = sorted(known)
    close = near(word, names, 2)
    if close:
        return f"did you mean {' or '.join(repr(c) for c in close)}?"
    return f"known: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else ""


def near(word: str, known: Iterable[str], count: int) -> list[str]:
    """At most `count` known words that look like the given one, best first; none that is much further than the best."""
    names = list(known)
    written = [name for name in names if _plain(name) == _plain(word)]
    if written:
        return written[:count]  # in other capitals, or with other marks between its words
    close = difflib.get_close_matches(word, names, n=count, cutoff=0.6)
    alike = [difflib.SequenceMatcher(None, one, word).ratio() for one in close]
    return [one for one, ratio in zip(close, alike, strict=True) if ratio > alike[0] - FURTHER]


def _plain(word: str) -> str:
    """Letters and digits alone: epsilonPerToken, EPSILON-PER-TOKEN and epsilon_per_token are one word."""
    return re.sub(r"[\W_]", "", word.lower()) or word


def _fix(item: ErrorDetails, model: type[BaseModel]) -> str:
    loc: Key = tuple(item["loc"])
    if item["type"] == "extra_forbidden":
        return did_you_mean(str(loc[-1]), _known_keys(model, loc[:-1]))
    if item["type"] == "literal_error" and isinstance(item["input"], str):
        close = near(item["input"], re.findall(r"'([^']*)'", str(item.get("ctx", {}).get("expected", ""))), 1)
        return f"did you mean {close[0]!r}?" if close else ""
    return _other_type(item["type"], item.get("input"))


def _other_type(kind: str, value: Any) -> str:
    """What to write where a value was read as another type than it was meant to be."""
    if kind == "string_pattern_mismatch" and isinstance(value, str):
        odd = next((letter for letter in value if not letter.isascii()), None)
        return f"{odd!a} (U+{ord(odd):04X}) is in it: type it anew with plain letters" if odd else ""
    if kind in ("bool_type", "bool_parsing") and isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return f"write {'true' if value.lower() in _TRUE else 'false'}, without quotes"
    if kind not in ("int_type", "float_type", "float_parsing", "int_from_float"):
        return "put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    if isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    bare = str(value).replace("_", "").strip() if isinstance(value, str) else ""
    if bare.removesuffix("%") != bare and _number(bare.removesuffix("%")):
        return f"write {float(bare.removesuffix('%')) / 100:g}"
    return f"write {bare}, without quotes" if _number(bare) else ""


def _number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?", text) is not None


def _message(item: ErrorDetails) -> str:
    kind, text = item["type"], str(item["msg"])
    if kind in _WORDS:
        return _WORDS[kind]
    if kind == "string_pattern_mismatch" and "a-z][a-z0-9_]*" in text:
        return "must be a name: lower-case letters, digits, '_' and '-', a letter first"
    few = _ENOUGH.fullmatch(text)
    if few:
        return f"must have at {few[1]} {few[2]} {'item' if few[2] == '1' else 'items'}"
    return text.removeprefix("Value error, ").replace("Input should be", "must be").replace("String should", "must")


def _got(item: ErrorDetails) -> str:
    """What stood there; validators of ours (value_error) say it themselves where it helps."""
    value = item.get("input")
    if item["type"] in ("missing", "extra_forbidden", "value_error", "assertion_error", "too_short", "too_long"):
        return ""
    if value is None or isinstance(value, bool):
        return f" (got {'null' if value is None else str(value).lower()})"
    if isinstance(value, str | int | float):
        return f" (got {repr(value)[:80]})"
    return f" (got a {'mapping' if isinstance(value, Mapping) else 'list'})"


def _either(words: list[str]) -> str:
    """must be a string / must be an integer -> must be a string or an integer."""
    if len(words) == 1 or not all(w.startswith("must be ") for w in words):
        return words[0]
    rest = [w.removeprefix("must be ") for w in words]
    return f"must be {', '.join(rest[:-1])} or {rest[-1]}"


def _locate(item: ErrorDetails, source: Source, at: Key) -> _Found:
    """Drop what pydantic adds to a location (names of union members and validators) and the file does not have."""
    path: Key = at
    union: Key | None = None
    member = ""
    value = _value(source, at)
    loc = item["loc"]
    for i, part in enumerate(loc):
        inside = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if inside:
            value = value[part]
        elif _is_member(part):
            union, member = path, str(part)
            continue
        elif (i < len(loc) - 1 and isinstance(value, dict | list)) or (isinstance(part, str) and not part.isidentifier()):
            continue
        else:
            value = None
        path += (part,)
    return _Found(path, item, union, member)


def _value(source: Source, at: Key) -> Any:
    try:
        return source.at(at)
    except (KeyError, IndexError, TypeError):
        return None  # a default, or set elsewhere


def _is_member(part: str | int) -> bool:
    return isinstance(part, str) and (part in _TYPE_NAMES or part[:1].isupper() or part.endswith("]"))


def _known_keys(model: type[BaseModel], loc: Key) -> list[str]:
    """Keys that a model (or what is nested in it at `loc`) accepts."""
    current: list[Any] = [model]
    for part in loc:
        current = [step for annotation in current for step in _steps(annotation, part)] or current
    models = [m for annotation in current for m in _models(annotation)]
    return sorted({f.alias or n for m in models for n, f in m.model_fields.items()})


def _steps(annotation: Any, part: str | int) -> Iterator[Any]:
    """Annotations of what lies under `part` of a value of that annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _steps(arguments[0], part)
    elif origin in (Union, types.UnionType):
        named = [a for a in arguments if any(m.__name__ == part for m in _models(a))]
        yield from named or [step for a in arguments for step in _steps(a, part)]
    elif isinstance(origin, type) and issubclass(origin, Mapping):
        yield arguments[1]
    elif origin is not None and arguments:
        yield arguments[0]
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield from (f.annotation for n, f in annotation.model_fields.items() if part in (n, f.alias))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that a value of that annotation itself can be."""
    if get_origin(annotation) is Annotated:
        yield from _models(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for argument in get_args(annotation):
            yield from _models(argument)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation

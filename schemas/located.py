# SPDX-License-Identifier: Apache-2.0
"""YAML to plain values, with line and column of every key.

A careful subset: one document of mappings, lists and scalars. Scalars follow the core schema of YAML 1.2, so that dates,
``yes``, ``on`` and ``12:30`` stay text and ``1e-3`` is a number. Refused, with their place: duplicate keys, aliases, merge
keys, tags of other types, more than one document, numbers that are not finite, nesting deeper than `MAX_DEPTH`.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from osmotic.schemas.errors import ConfigError, Problem

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
Key = tuple[str | int, ...]

_SURROGATE = re.compile("[\ud800-\udfff]")
_TAG = "tag:yaml.org,2002:"
_FIXES = (  # part of what the parser says, what to do
    ("\\t", "indent with spaces, not tabs"),
    ("cannot start any token", "put the value in quotes"),
    ("escape character", "put a text with backslashes in single quotes"),
    ("mapping values are not allowed", "put a value with ': ' in it in quotes, or check the indentation"),
    ("expected ':'", "every key needs a colon and a space after it"),
    ("expected ',' or", "close the bracket or brace, or put a comma between two values"),
    ("end of stream", "close the quote or bracket"),
    ("expected alphabetic or numeric", "put a text that begins with * or & in quotes"),
    ("<document start>", "one document a file; data are bound by a site file"),
)
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


@dataclass
class Source:
    """A parsed document: plain values and, for every key path, its (line, column), counted from 1."""

    name: str
    value: Any
    marks: dict[Key, tuple[int, int]] = field(default_factory=dict)

    def at(self, path: Key) -> Any:
        """The value at a path; KeyError or IndexError when there is none."""
        value = self.value
        for part in path:
            value = value[part]
        return value

    def where(self, path: Key) -> str:
        """``file:line:column`` of a path, or of its nearest ancestor that is in the file."""
        for cut in range(len(path), -1, -1):
            if path[:cut] in self.marks:
                line, column = self.marks[path[:cut]]
                return f"{self.name}:{line}:{column}"
        return self.name


def parse(text: str, name: str) -> Source:
    """Parse one YAML document. Raises ConfigError with the place of every problem (of the first one, in broken syntax)."""
    if len(text) > MAX_BYTES:
        raise ConfigError(Problem("the file is too large for a configuration", name, why=f"the limit is {MAX_BYTES >> 20} MiB"))
    builder = _Builder(Source(name, None))
    try:
        nodes = _compose(text)
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_problem(error, text, name)) from error
    if len(nodes) > 1:
        raise ConfigError(Problem("more than one document in the file", builder.place(nodes[1]), fix="keep one of them"))
    builder.source.value = builder.build(nodes[0], ()) if nodes else None
    if builder.problems:
        raise ConfigError(*builder.problems)
    if builder.source.value is None:
        raise ConfigError(Problem("the file is empty", name, fix="see 'osmotic schema pipeline' or a shipped pipeline"))
    return builder.source


class _Refused(yaml.YAMLError):
    """Good YAML that this subset does not have."""

    def __init__(self, problem: str, mark: Any, why: str, fix: str) -> None:
        super().__init__(problem)
        self.problem, self.problem_mark, self.why, self.fix = problem, mark, why, fix


class _Loader(yaml.SafeLoader):
    """Composes nodes only; resolves plain scalars as YAML 1.2 does, stops at aliases and at too deep nesting."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            why = "values that stand for others can grow without end"
            fix = "write the value out; put a text that begins with * in quotes"
            raise _Refused("aliases (*name) are not supported", event.start_mark, why, fix)
        if self.depth >= MAX_DEPTH:
            why, fix = "no document of osmotic needs so many", "check the indentation and brackets above it"
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels", event.start_mark, why, fix)
        self.depth += 1
        try:
            node: yaml.Node | None = super().compose_node(parent, index)
        finally:
            self.depth -= 1
        return node


for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})\Z"), _first)


def _compose(text: str) -> list[yaml.Node]:
    loader = _Loader(text)
    nodes: list[yaml.Node] = []
    try:
        while len(nodes) < 2 and loader.check_node():
            nodes += filter(None, [loader.get_node()])
    finally:
        loader.dispose()
    return nodes


@dataclass
class _Builder:
    """Turns nodes into values, collecting marks and problems."""

    source: Source
    problems: list[Problem] = field(default_factory=list)

    def place(self, node: yaml.Node) -> str:
        return f"{self.source.name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def refuse(self, node: yaml.Node, what: str, why: str = "", fix: str = "") -> None:
        self.problems.append(Problem(what, self.place(node), why=why, fix=fix))

    def build(self, node: yaml.Node, path: Key) -> Any:
        self.source.marks.setdefault(path, (node.start_mark.line + 1, node.start_mark.column + 1))
        tag = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.build(child, (*path, i)) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and (tag == "str" or tag in _PLAIN):
            return self._scalar(node, tag)
        self.refuse(node, f"the type {node.tag.replace(_TAG, '!!')!r} is not supported", fix="write plain values")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Key) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None or (key == "<<" and key_node.style is None):
                self._bad_key(key_node)
            elif _SURROGATE.search(key):
                fix = "write the character itself, not \\u escapes"
                self.refuse(key_node, "half of a character (a lone surrogate) in a key", fix=fix)
            elif key in result:
                why = f"first at {self.source.where((*path, key))}"
                self.refuse(key_node, f"the key {key!r} stands twice", why, "keep one of them, or give one another name")
            else:
                self.source.marks[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                result[key] = self.build(child, (*path, key))
        return result

    def _bad_key(self, node: yaml.Node) -> None:
        if isinstance(node, yaml.ScalarNode):
            self.refuse(node, "merge keys (<<) are not supported", "what stands in a file is what runs", "write the keys out")
        elif isinstance(node, yaml.MappingNode):
            why = "braces begin a mapping, and this one is the key of another"
            self.refuse(node, "a key must be a plain word", why, "put a template in quotes: '{{ field }}'")
        else:
            self.refuse(node, "a key must be a plain word", "this one is a list", "write one key for each of them")

    def _scalar(self, node: yaml.ScalarNode, tag: str) -> Any:
        text = str(node.value)
        if tag == "str":
            if _SURROGATE.search(text):
                self.refuse(node, "half of a character (a lone surrogate)", fix="write the character itself, not \\u escapes")
            return text
        if not re.fullmatch(_PLAIN[tag][0], text):
            self.refuse(node, f"{text[:40]!r} is not of the type '!!{tag}'", fix="leave the tag out and write a plain value")
            return None
        try:
            value = _convert(tag, text)
        except ValueError:
            self.refuse(node, "the number is too long", fix="put it in quotes if it is text")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            shown = text if len(text) < 40 else f"{text[:37]}..."
            self.refuse(node, f"must be a finite number (got {shown})", fix="write a number; leave the key out for 'no limit'")
        return value


def _convert(tag: str, text: str) -> bool | int | float | None:
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() == "true"
    if tag == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    bases = {"0o": 8, "0x": 16}
    return int(text, bases.get(text[:2], 10))


def _syntax_problem(error: yaml.YAMLError, text: str, name: str) -> Problem:
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        where = f"{name}:{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        what = f"not valid YAML: the character #x{ord(text[error.position]):04x} is not allowed"
        return Problem(what, where, why="control characters are no text", fix="take it out; your editor may not show it")
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    if isinstance(error, _Refused):
        return Problem(said, where, why=error.why, fix=error.fix)
    begun, opening = getattr(error, "context_mark", None), getattr(error, "context", None)
    why = f"{opening}, which begins at {begun.line + 1}:{begun.column + 1}" if begun and opening else ""
    return Problem(f"not valid YAML: {said}", where, why=why, fix=_syntax_fix(said, text, mark))


def _syntax_fix(said: str, text: str, mark: Any) -> str:
    """What is most often the mistake where the parser says this."""
    around = (text.splitlines() or [""])[max(mark.line - 1, 0) : mark.line + 1] if mark else []
    if any("\u00a0" in line for line in around):
        return "there is a hard space (U+00A0) here, which only looks like a space: type it anew"
    return next((fix for part, fix in _FIXES if part in said), "check indentation, colons and quotes near here")

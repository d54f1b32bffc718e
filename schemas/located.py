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
        raise ConfigError(Problem("the file is too large for a configuration", name, why=f"limit {MAX_BYTES >> 20} MiB"))
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

    def __init__(self, problem: str, mark: Any) -> None:
        super().__init__(problem)
        self.problem, self.problem_mark = problem, mark


class _Loader(yaml.SafeLoader):
    """Composes nodes only; resolves plain scalars as YAML 1.2 does, stops at aliases and at too deep nesting."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise _Refused("aliases (*name) are not supported; write the value out", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise _Refused(f"nested deeper than {MAX_DEPTH} levels", event.start_mark)
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
                self.refuse(key_node, "keys must be plain words (no merge keys, no lists)")
            elif _SURROGATE.search(key):
                self.refuse(key_node, "half of a character (a lone surrogate) in a key")
            elif key in result:
                self.refuse(key_node, f"the key {key!r} stands twice", why=f"first at {self.source.where((*path, key))}")
            else:
                self.source.marks[(*path, key)] = (key_node.start_mark.line + 1, key_node.start_mark.column + 1)
                result[key] = self.build(child, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode, tag: str) -> Any:
        text = str(node.value)
        if tag == "str":
            if _SURROGATE.search(text):
                self.refuse(node, "half of a character (a lone surrogate)", fix="write the character itself, not \\u escapes")
            return text
        if not re.fullmatch(_PLAIN[tag][0], text):
            self.refuse(node, f"{text[:40]!r} is not of the type '!!{tag}'")
            return None
        try:
            value = _convert(tag, text)
        except ValueError:
            self.refuse(node, "the number is too long", fix="put it in quotes if it is text")
            return None
        if isinstance(value, float) and not math.isfinite(value):
            self.refuse(node, f"must be a finite number (got {text})")
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
        return Problem(f"not valid YAML: the character #x{ord(text[error.position]):04x} is not allowed", where)
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
    said = getattr(error, "problem", None) or str(error).splitlines()[0]
    if isinstance(error, _Refused):
        return Problem(said, where)
    fix = "indent with spaces, not tabs" if "\\t" in said else "check indentation, colons and quotes near here"
    return Problem(f"not valid YAML: {said}", where, fix=fix)

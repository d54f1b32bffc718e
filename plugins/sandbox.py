# SPDX-License-Identifier: Apache-2.0
"""Jinja2 templates of pipelines and sites in a sandbox: a template reads the fields of one record and writes text.

A template may come from another party. So it cannot reach Python objects, and it cannot make a long text from a short one:
attributes with underscores, assignments, macros, includes, padding, formatting and powers are refused, filters are a short
list, and a text beyond a million characters is an error, never cut silently. Unknown slots are errors, in the plan
(`check_slots`) and while rendering.

Without `branches` (the default: templates of pipelines) a template is total: text, slots, `~` and a few filters that cannot
fail on any value, so that whether rendering ends says nothing about a record. Its output has no cap, but is at most a fixed
multiple of the record's own length, known from the template alone. With `branches` (a site's own data mappings) it may choose,
loop and index, and can fail on a record.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from osmotic.schemas.errors import ConfigError, DataError, Problem
from osmotic.schemas.source import did_you_mean

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE = 64 << 10
MAX_OUTPUT = 1 << 20
MAX_SLOTS = 64  # of a template without branches
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "join", "last", "length",
    "list", "lower", "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "select", "selectattr", "sort",
    "string", "sum", "title", "trim", "truncate", "unique", "upper", "wordcount",
)  # fmt: skip
_METHODS = frozenset({
    "capitalize", "casefold", "count", "endswith", "find", "get", "index", "isdigit", "items", "keys", "lower", "lstrip",
    "removeprefix", "removesuffix", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper", "values",
})  # fmt: skip
_REFUSED = ("Assign", "AssignBlock", "Block", "CallBlock", "Extends", "FilterBlock", "FromImport", "Import", "Include", "Macro",
            "With")  # fmt: skip
# Filters that give a text for every value: the kinds of their arguments, and how many of them must be there. Nothing here can
# empty a text of the author's choice (as replace could), for a component may well refuse an empty one.
_TOTAL: Mapping[str, tuple[tuple[type, ...], int]] = {
    "capitalize": ((), 0), "d": ((str, bool), 1), "default": ((str, bool), 1), "lower": ((), 0), "string": ((), 0),
    "title": ((), 0), "trim": ((), 0), "upper": ((), 0), "wordcount": ((), 0),
}  # fmt: skip
_NODES = ("Template", "Output", "TemplateData", "Name", "Const", "Concat", "Filter")
WHY = "a pipeline's template may not branch on a record: what fails or not would tell"


class Template:
    """A compiled template; `path` is the dotted key where it was written, `source` its text, `limit` characters the longest."""

    def __init__(self, source: str, path: str, body: Any, limit: int | None = None) -> None:
        self.source = source
        self.path = path
        self.limit = limit
        self._body = body

    def render(self, row: Mapping[str, Any]) -> str:
        """The text for one record. Raises DataError when a slot is missing; with branches, also when an operation fails or the
        text is too long."""
        from jinja2 import TemplateError

        parts: list[str] = []
        size = 0
        try:
            for part in self._body.generate(dict(row)):
                parts.append(part)
                size += len(part)
                if self.limit is not None and size > self.limit:
                    why = f"limit {self.limit} characters"
                    raise DataError(Problem("the template writes too much", path=self.path, why=why))
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as error:
            fix = "known slots: " + ", ".join(sorted(row))
            raise DataError(Problem(f"the template cannot be filled in: {error}", path=self.path, fix=fix)) from error
        return "".join(parts)


def compile_template(text: str, path: str = "", *, branches: bool = False) -> Template:
    """Compile a template; raises ConfigError (with `path` and the template's line) when its syntax is wrong.

    branches: may it choose, loop, index and compute? True only for templates of the party whose data it reads.
    """
    from jinja2 import TemplateError

    if len(text) > MAX_TEMPLATE:
        raise ConfigError(Problem("the template is too long", path=path, why=f"limit {MAX_TEMPLATE} characters"))
    environment = _environment() if branches else _total_environment()
    blocks = ", blocks {% if field %} ... {% endif %}" if branches else ", filters {{ field|lower }}: " + ", ".join(_TOTAL)
    try:
        tree = environment.parse(text)
        _refuse(tree) if branches else _refuse_partial(tree)
        return Template(text, path, environment.from_string(text), MAX_OUTPUT if branches else None)
    except (TemplateError, RecursionError, SyntaxError) as error:
        line = getattr(error, "lineno", None)
        why = f"line {line} of the template" if line else ""
        fix = "slots are written {{ field }}" + blocks
        raise ConfigError(Problem(f"not a valid template: {error}", path=path, why=why, fix=fix)) from error


def render(template: Template, row: Mapping[str, Any]) -> str:
    """The text of a template for one record; see `Template.render`."""
    return template.render(row)


def slots(text: str, path: str = "", *, branches: bool = False) -> set[str]:
    """The names that a template takes from the record: its top-level variables. Raises ConfigError on wrong syntax."""
    from jinja2 import meta

    compile_template(text, path, branches=branches)
    return meta.find_undeclared_variables(_environment().parse(text))


def check_slots(text: str, known: Iterable[str], what: str) -> list[str]:
    """Messages for wrong syntax or for slots that are not among `known`; `what` is the configuration key, e.g. ``prompt``."""
    names = set(known)
    try:
        unknown = sorted(slots(text) - names)
    except ConfigError as error:
        return [f"{what}: {problem.what}" + (f" ({problem.why})" if problem.why else "") for problem in error.problems]
    return [f"{what}: unknown slot {name!r}; {did_you_mean(name, names) or 'there are no slots here'}" for name in unknown]


def _refuse(tree: Any) -> None:
    """Raise a template error for what could keep or multiply text: assignments, macros, other templates, long loop sources."""
    from jinja2 import TemplateSyntaxError, nodes

    for node in tree.find_all(tuple(getattr(nodes, name) for name in _REFUSED)):
        raise TemplateSyntaxError(f"a template only reads fields; {type(node).__name__} is not for here", node.lineno)
    for loop in tree.find_all(nodes.For):
        inner = next((other for other in loop.find_all(nodes.For) if any(True for _ in other.find_all(nodes.For))), None)
        if inner is not None:
            raise TemplateSyntaxError("at most two loops stand in one another: more would take for ever", inner.lineno)
        if loop.recursive or any(True for _ in loop.iter.find_all(nodes.Concat)) or isinstance(loop.iter, nodes.Concat):
            raise TemplateSyntaxError("a loop goes over a field, and not over a text made for it", loop.lineno)


def _refuse_partial(tree: Any) -> None:
    """Raise a template error for all but text, slots (a bounded number, so that texts stay short), `~` and total filters."""
    from jinja2 import TemplateSyntaxError, nodes

    allowed = tuple(getattr(nodes, name) for name in _NODES)
    for node in [tree, *tree.find_all(nodes.Node)]:
        if not isinstance(node, allowed):
            raise TemplateSyntaxError(f"{WHY}; {_WORDS.get(type(node).__name__, type(node).__name__)}", node.lineno)
        if isinstance(node, nodes.Filter):
            _check_filter(node)
    if sum(1 for _ in tree.find_all(nodes.Name)) > MAX_SLOTS:
        raise TemplateSyntaxError(f"a template has at most {MAX_SLOTS} slots", tree.lineno)


_WORDS: Mapping[str, str] = {
    "If": "'if' is not for here", "CondExpr": "'if' is not for here", "For": "'for' is not for here",
    "Getattr": "a field is one text and has no parts (methods are written as filters)",
    "Getitem": "a field is one text and has no parts",
    "Call": "calls are not for here (methods are written as filters)", "Compare": "comparing is not for here",
    "Test": "'is' is not for here", "Add": "join texts with ~",
}  # fmt: skip


def _check_filter(node: Any) -> None:
    """Raise a template error unless a filter is a total one, with arguments that are written out."""
    from jinja2 import TemplateSyntaxError, nodes

    if node.name not in _TOTAL or node.node is None:
        raise TemplateSyntaxError(f"{WHY}; the filter {node.name!r} is not for here", node.lineno)
    kinds, least = _TOTAL[node.name]
    values = [argument.value if isinstance(argument, nodes.Const) else None for argument in node.args]
    fits = least <= len(values) <= len(kinds) and all(type(v) is kind for v, kind in zip(values, kinds, strict=False))
    if not fits or node.kwargs or node.dyn_args or node.dyn_kwargs:
        wanted = ", ".join({str: "'text'", bool: "true"}[kind] for kind in kinds) or "nothing"
        raise TemplateSyntaxError(f"{WHY}; the filter {node.name!r} takes {wanted} here, written out", node.lineno)


def _capped_replace(text: Any, old: str, new: str, count: int | None = None) -> str:
    """Jinja2's replace; ValueError when the result would be too long."""
    whole = str(text)
    if len(whole) + whole.count(old) * len(new) > MAX_OUTPUT:
        raise ValueError("the text would become too long")
    return whole.replace(old, new, -1 if count is None else count)


def _capped_join(values: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    """Jinja2's join; ValueError when the result would be too long."""
    parts = [str(value if attribute is None else value[attribute]) for value in values]
    if sum(len(part) for part in parts) + len(parts) * len(str(between)) > MAX_OUTPUT:
        raise ValueError("the text would become too long")
    return str(between).join(parts)


@lru_cache(maxsize=1)
def _environment() -> "ImmutableSandboxedEnvironment":
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        """The immutable sandbox, with numbers for arithmetic and a short list of methods."""

        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = all(isinstance(side, int | float) and abs(side) < 1e12 for side in (left, right))
            if operator == "**" or not numbers:
                raise SecurityError(f"the operator {operator!r} works on numbers only here; join texts with ~")
            return super().call_binop(context, operator, left, right)

        def is_safe_callable(self, obj: Any) -> bool:
            named = isinstance(getattr(obj, "__self__", None), str | list | dict | tuple) and obj.__name__ in _METHODS
            return named and bool(super().is_safe_callable(obj))

        def wrap_str_format(self, value: Any) -> None:
            """Formatting stays a plain method, which is not on the list."""

        def format_string(self, *args: Any, **kwargs: Any) -> str:
            raise SecurityError("formatting is refused")

    made = Environment(undefined=StrictUndefined, autoescape=False, keep_trailing_newline=False)
    made.globals.clear()
    made.filters = {name: made.filters[name] for name in _FILTERS if name in made.filters}
    made.filters |= {"replace": _capped_replace, "join": _capped_join}
    return made


@lru_cache(maxsize=1)
def _total_environment() -> "ImmutableSandboxedEnvironment":
    """The same sandbox with total filters only."""
    made = _environment().overlay()
    made.filters = {name: made.filters[name] for name in _TOTAL}
    return made

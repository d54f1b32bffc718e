# SPDX-License-Identifier: Apache-2.0
"""Templates with plain slots only, ``text {{ name }} text``: they can be turned around, filled in and checked by themselves."""

import re
from collections.abc import Iterable, Mapping

from osmotic.schemas.errors import ConfigError, Problem
from osmotic.schemas.source import did_you_mean

_SLOT = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z_0-9]*)\s*\}\}")
_OTHER = re.compile(r"\{\{|\}\}|\{%|%\}|\{#|#\}")


class PlainTemplate:
    """Literals and slots in turn: `literals` has one more entry than `names`; a slot may stand more than once.

    >>> PlainTemplate("label: {{ label }} text: {{ text }}").names
    ('label', 'text')
    """

    def __init__(self, source: str, path: str = "") -> None:
        """Raises ConfigError (with `path` and the line) for anything of Jinja that is not a plain slot."""
        parts = _SLOT.split(source)
        self.source = source
        self.path = path
        self.literals = tuple(parts[::2])
        self.names = tuple(parts[1::2])
        blank = _SLOT.sub(lambda slot: re.sub(r"\S", " ", slot[0]), source)
        found = _OTHER.search(blank)
        if found is not None:
            line = blank.count("\n", 0, found.start()) + 1
            why = f"line {line} of the template: {found[0]!r} does not belong to a plain slot"
            raise ConfigError(Problem("not a plain template", path=path, why=why, fix="slots are written {{ name }}, no more"))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every slot filled. Raises KeyError for a slot without a value."""
        out = [self.literals[0]]
        for name, literal in zip(self.names, self.literals[1:], strict=True):
            out += [values[name], literal]
        return "".join(out)

    def renamed(self, names: Mapping[str, str], fixed: Mapping[str, str]) -> str:
        """The same template as text, with slots renamed, and those of `fixed` filled in for good."""
        values = {name: f"{{{{ {names.get(name, name)} }}}}" for name in self.names} | dict(fixed)
        return self.fill(values)


def single_braces(source: str, names: Iterable[str]) -> list[str]:
    """Names that stand in single braces, ``{name}``: they look like slots and are none."""
    known = "|".join(re.escape(name) for name in names)
    return list(dict.fromkeys(re.findall(rf"(?<!\{{)\{{\s*({known})\s*\}}(?!\}})", source))) if known else []


def slot_problems(template: PlainTemplate, required: Iterable[str], optional: Iterable[str] = ()) -> list[Problem]:
    """Slots that are missing, unknown, or written with single braces."""
    wanted, path = tuple(required), template.path
    known = (*wanted, *optional)
    lone = single_braces(template.source, known)
    found = [
        Problem(f"'{{{name}}}' has single braces and is not filled in", path=path, fix=f"write {{{{ {name} }}}}")
        for name in lone
    ]
    for name in dict.fromkeys(template.names):
        if name not in known:
            found.append(Problem(f"unknown slot {name!r}", path=path, why="nobody fills it in", fix=did_you_mean(name, known)))
    for name in wanted:
        if name not in template.names and name not in lone:
            found.append(Problem(f"the slot {name!r} is missing", path=path, fix=f"write {{{{ {name} }}}} where it belongs"))
    return found

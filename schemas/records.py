# SPDX-License-Identifier: Apache-2.0
"""Record schemas: a record is fields of a public schema, each with a public domain, or free text.

A field with a domain is one symbol; a text field is released token by token over a table. `table` names the table of a text
field, or vectors for a domain's symbols (one row a symbol, in its order). Domains and tables are public by declaration.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import Field, model_validator

from osmotic.schemas.base import Config
from osmotic.schemas.errors import Problem
from osmotic.schemas.problems import near

NUMBERED = re.compile(r"n[0-9]{7}")  # ids of rows that stand for no record: texts made by a model, say


def numbered(number: int) -> str:
    """The id of the row of that number, from 0: it tells its place and nothing else. Raises ValueError beyond 9,999,999.

    >>> numbered(12)
    'n0000012'
    """
    if not 0 <= number < 10**7:
        raise ValueError(f"a row number must be in 0..9999999 (got {number})")
    return f"n{number:07d}"


class FieldSpec(Config):
    """One field: either a public `domain` of symbols, or free `text`."""

    domain: tuple[str, ...] | None = Field(None, strict=False, description="Every value that the field can take. Public.")
    text: bool = Field(False, description="Free text: released token by token.")
    table: str | None = Field(
        None,
        description="Public. Text: NAME:ARGUMENT of a table plugin (minilm:pieces, glove:50d-20000, smollm2:words, "
        "transformers:PATH), or FILE.safetensors#KEY or FILE.npy with FILE.txt beside it. "
        "Domain: vectors of its symbols, FILE.safetensors#KEY or FILE.npy, in its order.",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "FieldSpec":
        if self.text == (self.domain is not None):
            raise ValueError("give either 'domain: [...]' or 'text: true'")
        if self.domain is not None and len(set(self.domain)) != len(self.domain):
            twice = next(v for i, v in enumerate(self.domain) if v in self.domain[:i])
            raise ValueError(f"value {twice!r} stands twice in the domain")
        if self.domain is not None and len(self.domain) < 2:
            raise ValueError("a domain needs at least two values")
        return self


class RecordSchema(Config):
    """The public schema of a data set. Every record also has an ``id`` (a string, which never crosses)."""

    fields: dict[str, FieldSpec]

    @model_validator(mode="after")
    def _no_id(self) -> "RecordSchema":
        if "id" in self.fields:
            raise ValueError("'id' is always there and is not a field")
        return self

    def check(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Problem]:
        """Yield every problem of (where, row) pairs: ids, missing fields, wrong types, values outside a domain."""
        seen: dict[str, str] = {}
        domains = {name: frozenset(spec.domain or ()) for name, spec in self.fields.items()}
        for where, row in rows:
            identity = row.get("id")
            if not isinstance(identity, str) or not identity:
                yield Problem("the record has no 'id'", where, fix="give every record an id: a non-empty string")
            elif identity in seen:
                why = f"first at {seen[identity]}"
                yield Problem(f"the id {identity!r} was used before", where, why=why, fix="give every record an id of its own")
            else:
                seen[identity] = where
            for name, spec in self.fields.items():
                yield from _check_value(where, row, name, spec, domains[name])


def _check_value(where: str, row: dict[str, Any], name: str, spec: FieldSpec, domain: frozenset[str]) -> Iterator[Problem]:
    if name not in row:
        yield Problem("the field is missing", where, name, fix=f"fields needed: {name}")
    elif not isinstance(row[name], str):
        yield Problem(f"must be a string (got {type(row[name]).__name__})", where, name)
    elif not spec.text and row[name] not in domain:
        why, close = f"got {row[name]!r}; {len(domain)} allowed", near(row[name], sorted(domain), 1)
        fix = f"did you mean {close[0]!r}?" if close else "correct it, or add it to the schema's public domain"
        yield Problem("the value is outside the field's domain", where, name, why=why, fix=fix)

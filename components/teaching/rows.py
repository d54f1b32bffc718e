# SPDX-License-Identifier: Apache-2.0
"""Rows of labelled texts that crossed: what may be shown to a teacher, and how much of it there is of each label."""

from typing import Any

from osmotic.components.matching import need_columns
from osmotic.plugins.contract import Records
from osmotic.schemas.errors import DataError, Problem

Row = dict[str, Any]


def labelled_rows(texts: Records) -> list[Row]:
    """The rows that have both a label and a text; blank ones are left out.

    Raises DataError when columns are missing, or hold anything but text.
    """
    need_columns(texts, ("id", "label", "text"), "texts")
    wrong = sum(not isinstance(row["label"], str) or not isinstance(row["text"], str) for row in texts)
    if wrong:
        raise DataError(Problem(f"{wrong} of {len(texts)} texts have a label or a text that is no string", path="texts"))
    return [row for row in texts if row["label"].strip() and row["text"].strip()]

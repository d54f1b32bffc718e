# SPDX-License-Identifier: Apache-2.0
"""Unite two or three tables by id, the first one wins: what a first attempt kept, and what a second one adds to it.

Guarantee: none, and none is voided; it costs no budget. The output has the labels of all its inputs, and a row of it depends on
the rows of its own id alone.
"""

from osmotic.components.matching import unique
from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records
from osmotic.schemas.errors import DataError, Problem


class RecordUniterConfig(Config):
    """Configuration of `record_uniter`: none."""


class RecordUniter(Component[RecordUniterConfig]):
    """One table of several: every id once, with the row of the first input that has it."""

    name = "record_uniter"
    outputs = {"united": Out(Records)}

    @classmethod
    def mixes(cls, config: RecordUniterConfig) -> bool:
        """A row is one of its own id's, and no other id says which."""
        return False

    def run(self, context: Context, first: Records, second: Records, third: Records | None = None) -> Outputs:
        """Rows of `first`, then those of `second` and of `third` whose ids have not come before, each in its own order.

        Raises DataError when an id stands twice in one input, or columns differ between the inputs.
        """
        united: dict[str, dict[str, object]] = {}
        columns = next((table.columns for table in (first, second, third) if table), first.columns)
        for port, table in {"first": first, "second": second, "third": third}.items():
            if table is None:
                continue
            _check_columns(table, columns, port)
            for identity, row in unique(table, "id", f"rows of the input {port!r}").items():
                united.setdefault(identity, {name: row[name] for name in columns})
        return {"united": Records(list(united.values()), columns)}


def _check_columns(table: Records, columns: list[str], port: str) -> None:
    """Raise DataError when a row has other columns than those; an empty table has no row that could."""
    other = [row for row in table if row.keys() != set(columns)]
    if other:
        what = f"{len(other)} of {len(table)} rows have other columns than the rows before: {', '.join(other[0])}"
        fix = "unite the same output of the same component"
        raise DataError(Problem(what, path=port, why=f"columns of the first: {', '.join(columns)}", fix=fix))

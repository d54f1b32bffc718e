# SPDX-License-Identifier: Apache-2.0
"""What long messages held in circles is let go of during a row of them, and nothing stays set aside after it."""

import gc
import weakref

import pytest

pytest.importorskip("nvflare", reason="the extra 'nvflare' is not installed")

from osmotic.runtime.nvflare.lighter import Sweeper

LONG = Sweeper.LONG


class Held:
    """A message that is part of a circle."""

    def __init__(self) -> None:
        self.own = self


@pytest.mark.parametrize("size", [LONG, LONG - 1])
def test_a_row_of_long_messages_lets_go_of_circles(size: int) -> None:
    sweeper, before = Sweeper(), gc.get_freeze_count()
    gc.disable()
    try:
        sweeper.passed(size)
        held = weakref.ref(Held())
        sweeper.passed(size)
        assert (held() is None) == (size == LONG)
        sweeper.passed(10)
        assert gc.get_freeze_count() <= before
    finally:
        gc.enable()
        gc.unfreeze()

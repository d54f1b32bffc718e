# SPDX-License-Identifier: Apache-2.0
"""Steps from two sources, ``own`` and ``augmented``: from one pool, or so many of each.

Both are epoch by epoch in seeded random order. With `PoolFeed` an example comes as often as any other, wherever it is from;
with `ShareFeed` each step has a fixed share of own examples (exact in the long run, to one example at every step), so a small
source is gone through more often.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from osmotic.components.training.batches import Order
from osmotic.components.training.parts import Example, Step

OWN, AUGMENTED = "own", "augmented"
Sources = Mapping[str, Sequence[Example]]


class PoolFeed:
    """Steps of `batch` examples of one pool. A `Feed`."""

    def __init__(self, sources: Sources, batch: int, rng: random.Random) -> None:
        self._pool = [(name, example) for name, examples in sources.items() for example in examples]
        self._order, self._batch = Order(rng, [True] * len(self._pool)), batch

    def take(self) -> Step:
        """The next step."""
        found: dict[str, list[Example]] = {}
        for index in self._order.take(self._batch):
            name, example = self._pool[index]
            found.setdefault(name, []).append(example)
        return Step(found)

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""
        return self._order.state()

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        self._order.restore(state)


class ShareFeed:
    """Steps of `batch` examples, of which a share is own. A `Feed`. Both sources must have examples."""

    def __init__(self, sources: Sources, batch: int, own: float, rngs: Mapping[str, random.Random]) -> None:
        self._sources, self._batch, self._own, self._step = sources, batch, own, 0
        self._orders = {name: Order(rngs[name], [True] * len(examples)) for name, examples in sources.items()}

    def take(self) -> Step:
        """The next step."""
        first, last = (int(self._own * self._batch * step + 0.5) for step in (self._step, self._step + 1))
        counts = {OWN: last - first, AUGMENTED: self._batch - (last - first)}
        self._step += 1
        taken = {name: self._orders[name].take(count) for name, count in counts.items() if count}
        return Step({name: [self._sources[name][i] for i in found] for name, found in taken.items()})

    def state(self) -> Any:
        """JSON value from which `restore` goes on."""
        return {"step": self._step, "orders": {name: order.state() for name, order in self._orders.items()}}

    def restore(self, state: Any) -> None:
        """Go on where `state` was taken."""
        self._step = int(state["step"])
        for name, order in self._orders.items():
            order.restore(state["orders"][name])

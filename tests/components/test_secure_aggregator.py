# SPDX-License-Identifier: Apache-2.0
"""Updates and what a secure sum of them becomes: arithmetic, server optimisers, what does not fit."""

from typing import Any

import numpy as np
import pytest

from osmotic.components.secure_aggregator import SecureAggregator, SecureAggregatorConfig
from osmotic.components.update_maker import UpdateMaker, UpdateMakerConfig
from osmotic.plugins.contract import Weights
from osmotic.plugins.fake_context import FakeContext
from osmotic.schemas.errors import ComponentError

SUM = {"count": 4, "of": 5, "parties": ["a", "b", "c", "d"], "clip": 1.0}


def weights(value: float, **meta: Any) -> Weights:
    return Weights({"a": np.full(3, value, np.float32), "b": np.full((2, 2), -value, np.float32)}, {"base": "m", **meta})


def aggregate(total: Weights, before: Weights | None, state: Weights | None = None, **config: Any) -> Any:
    made = SecureAggregator(SecureAggregatorConfig.model_validate(config))
    return made.run(FakeContext(), total, before, state)


def test_an_update_is_the_difference_and_says_what_it_is() -> None:
    found = UpdateMaker(UpdateMakerConfig()).run(FakeContext(), weights(3.0, steps=7), weights(1.0))["update"]
    assert np.allclose(found.tensors["a"], 2) and found.tensors["b"].dtype == np.float32
    assert found.meta == {"base": "m", "is": "update"}


def test_an_update_needs_weights_that_fit() -> None:
    maker = UpdateMaker(UpdateMakerConfig())
    with pytest.raises(ComponentError, match="difference from previous weights"):
        maker.run(FakeContext(), weights(1.0))
    with pytest.raises(ComponentError, match="another base"):
        maker.run(FakeContext(), weights(1.0), Weights(weights(1.0).tensors, {"base": "other"}))
    with pytest.raises(ComponentError, match="tensors are missing"):
        maker.run(FakeContext(), weights(1.0), Weights({"a": np.zeros(3, np.float32)}, {"base": "m"}))


@pytest.mark.parametrize(("divide", "by"), [("used", 4), ("plan", 5)])
def test_the_sum_is_divided_by_who_is_in_it_or_should_have_been(divide: str, by: int) -> None:
    total = Weights({name: 8 * tensor for name, tensor in weights(1.0).tensors.items()}, SUM)
    found = aggregate(total, weights(10.0, layout="l"), divide=divide)
    assert np.allclose(found["weights"].tensors["a"], 10 + 8 / by) and found["weights"].meta == {"base": "m", "layout": "l"}
    assert found["report"].data == {"used": SUM["parties"], "of": 5, "divided_by": by, "clip": 1.0}
    assert found["state"].meta == {"optimizer": "none", "updates": 0}


def test_a_server_optimiser_goes_on_from_its_state() -> None:
    total, server = Weights(weights(4.0).tensors, SUM), {"optimizer": "momentum", "beta1": 0.5}
    one = aggregate(total, weights(0.0), server=server)
    two = aggregate(total, one["weights"], one["state"], server=server)
    assert np.allclose(one["weights"].tensors["a"], 1.0) and np.allclose(two["weights"].tensors["a"], 2.5)
    assert two["report"].data["server"] == {"optimizer": "momentum", "updates": 2}


def test_what_is_no_sum_or_does_not_fit_is_refused() -> None:
    with pytest.raises(ComponentError, match="no secure sum"):
        aggregate(weights(1.0), weights(0.0))
    with pytest.raises(ComponentError, match="previous weights"):
        aggregate(Weights(weights(1.0).tensors, SUM), None)
    with pytest.raises(ComponentError, match="does not fit the previous weights: 1 tensors differ, first 'b'"):
        aggregate(Weights({"a": np.zeros(3, np.float32)}, SUM), weights(0.0))

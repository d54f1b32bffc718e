# SPDX-License-Identifier: Apache-2.0
"""The aggregator: the mean, its order and memory, what it refuses."""

import numpy as np
import pytest

from osmotic.components.aggregator import Aggregator, AggregatorConfig
from osmotic.plugins.contract import Gathered, Weights
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import ComponentError

META = {"base": "b" * 64, "layout": "full", "steps": 5}


def weights(seed: int, meta: dict | None = None, **changes) -> Weights:
    generator = np.random.default_rng(seed)
    made = {"a": generator.normal(size=(3, 4)).astype("float32"), "b": generator.normal(size=5).astype("float32")}
    return Weights({**made, **changes}, META | (meta or {}))


def run(parties: dict[str, Weights], aggregation: str = "plain") -> Weights:
    gathered = Gathered({name: (lambda value=value: value) for name, value in parties.items()})
    return Aggregator(AggregatorConfig(aggregation=aggregation)).run(FakeContext(), gathered)["weights"]


def test_uniform_mean_in_the_tensors_own_type():
    parties = {f"p{i:02d}": weights(i) for i in range(50)}
    mean = run(parties)
    for name in ("a", "b"):
        wanted = np.mean([w.tensors[name].astype("float64") for w in parties.values()], axis=0)
        assert mean.tensors[name].dtype == np.float32
        assert np.array_equal(mean.tensors[name], wanted.astype("float32"))


def test_order_of_arrival_does_not_matter():
    parties = {f"p{i}": weights(i) for i in range(9)}
    one, two = run(parties), run(dict(reversed(parties.items())))
    assert all(np.array_equal(one.tensors[name], two.tensors[name]) for name in one.tensors)


def test_one_party_is_unchanged_and_equal_ones_too():
    alone = run({"north": weights(1)}, "none")
    same = run({name: weights(1) for name in "abc"})
    assert np.array_equal(alone.tensors["a"], weights(1).tensors["a"])
    assert np.allclose(same.tensors["a"], weights(1).tensors["a"], rtol=1e-7)


def test_description_keeps_nothing_of_a_party():
    assert run({"a": weights(1, {"party": "north", "seconds": 3}), "b": weights(2)}).meta == META
    assert run({"a": weights(1), "b": weights(2, {"steps": 6})}).meta == {"base": META["base"], "layout": "full"}


def test_reads_one_party_at_a_time():
    loads: list[str] = []
    loaders = {name: (lambda name=name: loads.append(name) or weights(1)) for name in "cab"}
    Aggregator(AggregatorConfig()).run(FakeContext(), Gathered(loaders))
    assert loads == ["a", "b", "c"]


def test_what_does_not_fit_is_refused_by_name():
    def refused(match: str, other: Weights) -> None:
        with pytest.raises(ComponentError, match=match):
            run({"north": weights(1), "south": other})

    refused("'south' have another base", weights(2, {"base": "c"}))
    refused("'south' have another layout", weights(2, {"layout": "lora"}))
    refused("'south' do not fit", weights(2, b=np.zeros(6, "float32")))
    refused("'south' do not fit", weights(2, c=np.zeros(6, "float32")))
    refused("'south' do not fit", weights(2, b=np.zeros(5, "float64")))
    with pytest.raises(ComponentError, match="no party"):
        run({})
    with pytest.raises(ComponentError, match="2 parties"):
        run({"a": weights(1), "b": weights(1)}, "none")


def test_fits_the_contract():
    check_component(Aggregator, {}, {"models": {"north": weights(1), "south": weights(2)}})

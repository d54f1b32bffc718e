# SPDX-License-Identifier: Apache-2.0
"""The mean with noise, seen from the component: divisor, clipping, who counts as zero, what gets no noise."""

import numpy as np
import pytest

from osmotic.components.aggregator import Aggregator, AggregatorConfig
from osmotic.plugins.contract import Gathered, Weights
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import ComponentError

META = {"base": "b", "layout": "full"}
A, B = "m.q.lora_A.default.weight", "m.q.lora_B.default.weight"
QUIET = {"clip": 1.0, "noise_multiplier": 0.001}


def vector(value: float, size: int = 400) -> Weights:
    return Weights({"a": np.full(size, value, "float32")}, META)


def run(parties: dict[str, Weights], previous: Weights | None, context: FakeContext | None = None, **config):
    gathered = Gathered({name: (lambda value=value: value) for name, value in parties.items()})
    made = AggregatorConfig.model_validate({"aggregation": "dp", "dp": QUIET, **config})
    return Aggregator(made).run(context or FakeContext(), gathered, previous)


def test_clipped_updates_are_summed_and_divided_by_the_declared_number():
    """Updates of norm 0.2 and 20 (held to 1), and one that is left out and counts as zero: (0.2 + 1) / 3 along the diagonal."""
    previous = vector(5.0)
    parties = {"a": vector(5.01), "b": vector(6.0), "c": vector(np.nan)}
    outputs = run(parties, previous, quorum={"at_least": 2})
    off = outputs["weights"].tensors["a"] - 5.0
    assert off.mean() == pytest.approx(1.2 / 3 / 20, rel=2e-3)
    report = outputs["report"].data
    assert report["used"] == ["a", "b"] and list(report["left_out"]) == ["c"]
    assert report["dp"] == {"clip": 1.0, "noise_multiplier": 0.001}
    assert outputs["weights"].meta == META


def test_the_noise_has_the_stated_scale():
    """Standard deviation z clip / n a coordinate: 40,000 coordinates, seeded; 3% off is found with power above 0.99."""
    previous = vector(0.0, 40_000)
    parties = {f"p{i}": previous for i in range(4)}
    off = run(parties, previous, dp={"clip": 0.5, "noise_multiplier": 2.0})["weights"].tensors["a"]
    assert off.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.015) and abs(off.mean()) < 4 * 0.25 / 200


def test_one_client_moves_the_result_by_no_more_than_clip():
    """The same noise twice (seeded): whatever one client sends, the sums differ by at most clip in L2."""
    previous, others = vector(0.0), {f"p{i}": vector(0.01 * i) for i in range(3)}
    for sent in (vector(1e30), vector(-3.0), vector(0.001)):
        one = run({**others, "x": sent}, previous)["weights"].tensors["a"].astype("float64")
        two = run({**others, "x": previous}, previous)["weights"].tensors["a"].astype("float64")
        assert np.linalg.norm(one - two) * 4 <= 1.0 + 1e-5


def test_nothing_is_drawn_without_previous_weights_or_a_quorum():
    context = FakeContext()
    with pytest.raises(ComponentError, match="needs the previous weights"):
        run({"a": vector(1.0)}, None, context)
    with pytest.raises(ComponentError, match="'b' have values"):
        run({"a": vector(1.0), "b": vector(np.inf)}, vector(0.0), context)
    assert context.sums == 0


def test_frozen_a_gets_no_noise_and_a_server_optimiser_follows():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2, 5)).astype("float32")

    def adapter(value: float) -> Weights:
        return Weights({A: a, B: np.full((4, 2), value, "float32")}, {"base": "b", "layout": "lora"})

    parties = {f"p{i}": adapter(0.1) for i in range(3)}
    made = run(parties, adapter(0.0), adapters="frozen-a")["weights"].tensors
    assert np.array_equal(made[A], a) and np.allclose(made[B], 0.1, atol=0.01)
    outputs = run(parties, adapter(0.0), server={"optimizer": "momentum", "learning_rate": 2.0})
    assert np.allclose(outputs["weights"].tensors[B], 0.2, atol=0.02) and outputs["state"].meta["updates"] == 1
    assert not np.array_equal(outputs["weights"].tensors[A], a)


def test_the_first_round_starts_from_a_models_own_weights():
    torch = pytest.importorskip("torch")

    class Toy:
        fingerprint = "b"

        def trainable(self):
            module = torch.nn.Linear(3, 2, bias=False)
            torch.nn.init.ones_(module.weight)
            return module, None

        def with_weights(self, weights):
            return self

    sent = Weights({"weight": np.full((2, 3), 1.1, "float32")}, META)
    made = run({"p": sent}, None, FakeContext(models={"student": Toy()}), start="student")
    assert np.allclose(made["weights"].tensors["weight"], 1.1, atol=0.01)
    with pytest.raises(ComponentError, match="cannot be trained here"):
        run({"p": sent}, None, FakeContext(models={"student": object()}), start="student")


def test_fits_the_contract():
    inputs = {"models": {"north": vector(1.0), "south": vector(2.0)}, "previous": vector(0.5)}
    check_component(Aggregator, {"aggregation": "dp", "dp": {"clip": 1, "epsilon": 2, "delta": 1e-5, "rounds": 3}}, inputs)

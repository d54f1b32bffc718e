# SPDX-License-Identifier: Apache-2.0
"""The adapter mixer: identities, the mixture by hand, products against full matrices, what does not fit."""

import numpy as np
import pytest
from pydantic import ValidationError

from osmotic.components.adapter_mixer import AdapterMixer, AdapterMixerConfig
from osmotic.plugins.contract import Weights
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.schemas.errors import ComponentError

A, B = "m.layers.0.q_proj.lora_A.default.weight", "m.layers.0.q_proj.lora_B.default.weight"
META = {"base": "b" * 64, "layout": "lora", "rank": 3, "alpha": 6.0}


def adapter(seed: int, rank: int = 3, **meta) -> Weights:
    rng = np.random.default_rng(seed)
    tensors = {A: rng.normal(size=(rank, 11)).astype("float32"), B: rng.normal(size=(7, rank)).astype("float32")}
    return Weights(tensors, {**META, "rank": rank, "steps": seed, "examples": 10 + seed, **meta})


class Unread(Weights):
    """Weights whose tensors must not be looked at."""

    def __init__(self) -> None:
        super().__init__({}, {"base": "of another world"})

    def __getattribute__(self, name: str):
        assert name not in ("tensors", "meta", "outline", "part"), "it was read"
        return super().__getattribute__(name)


def unread() -> Weights:
    return object.__new__(Unread)


def mix(first=None, second=None, **config) -> Weights:
    return AdapterMixer(AdapterMixerConfig(**config)).run(FakeContext(), first, second)["weights"]


def dense(weights: Weights) -> np.ndarray:
    return weights.tensors[B].astype("float64") @ weights.tensors[A].astype("float64")


@pytest.mark.parametrize("way", ["factors", "product"])
def test_beta_1_and_0_are_identities_and_the_other_input_is_not_read(way):
    one, other = adapter(1), adapter(2)
    for beta, wanted, given in (
        (1, one, (one, unread())),
        (0, other, (unread(), other)),
        (1, one, (one,)),
        (0, other, (None, other)),
    ):
        made = mix(*given, beta=beta, mix=way)
        assert made.tensors.keys() == wanted.tensors.keys()
        assert all(made.tensors[name].tobytes() == tensor.tobytes() for name, tensor in wanted.tensors.items())
        assert made.meta == {key: value for key, value in wanted.meta.items() if key != "examples"}


@pytest.mark.parametrize("beta", [0.25, 0.5, 0.9])
def test_the_mixture_is_made_in_float64_and_rounded_once(beta):
    one, other = adapter(1), adapter(2)
    made = mix(one, other, beta=beta)
    for name, tensor in made.tensors.items():
        wanted = beta * one.tensors[name].astype("float64") + (1 - beta) * other.tensors[name].astype("float64")
        assert tensor.dtype == np.float32 and np.array_equal(tensor, wanted.astype("float32"))
    assert made.meta == META
    assert all(np.array_equal(mix(one, one, beta=beta).tensors[n], one.tensors[n]) for n in one.tensors)


def test_the_numbers_of_the_paper():
    """(1, 1) and (3, 3): the mean of the factors makes 4, the mean of the products 5."""
    one, other = (Weights({A: np.full((1, 1), v, "float32"), B: np.full((1, 1), v, "float32")}, META) for v in (1, 3))
    assert dense(mix(one, other))[0, 0] == pytest.approx(4)
    assert dense(mix(one, other, mix="product"))[0, 0] == pytest.approx(5)


@pytest.mark.parametrize("beta", [0.3, 0.5])
def test_the_product_is_the_nearest_of_its_rank(beta):
    one, other = adapter(1), adapter(2)
    full = beta * dense(one) + (1 - beta) * dense(other)
    u, s, v = np.linalg.svd(full)
    nearest = (u[:, :3] * s[:3]) @ v[:3]
    made = mix(one, other, beta=beta, mix="product")
    np.testing.assert_allclose(dense(made), nearest, atol=1e-5)
    assert made.tensors[A].shape == (3, 11) and np.linalg.norm(dense(made) - full) < np.linalg.norm(
        dense(mix(one, other, beta=beta)) - full
    )
    other = Weights({A: one.tensors[A], B: other.tensors[B]}, other.meta)  # one A: the mixture is of that rank, and exact
    np.testing.assert_allclose(
        dense(mix(one, other, beta=beta, mix="product")), beta * dense(one) + (1 - beta) * dense(other), atol=1e-5
    )


def test_b_alone_is_mixed_exactly_where_a_is_frozen():
    one, other = (Weights({B: adapter(i).tensors[B]}, {**META, "frozen": "f" * 64}) for i in (1, 2))
    made = mix(one, other)
    np.testing.assert_allclose(made.tensors[B], (one.tensors[B] + other.tensors[B]) / 2, atol=1e-6)
    assert made.meta["frozen"] == "f" * 64
    with pytest.raises(ComponentError, match="A is frozen"):
        mix(one, other, mix="product")
    with pytest.raises(ComponentError, match="another A"):
        mix(one, Weights(other.tensors, {**META, "frozen": "0" * 64}))


def test_examples_are_told_only_when_asked():
    one, other = adapter(1), adapter(2)
    assert mix(one, other, declare_examples=True).meta["examples"] == 11
    assert mix(None, other, beta=0, declare_examples=True).meta["examples"] == 12
    with pytest.raises(ComponentError, match="does not say how many"):
        mix(Weights(one.tensors, META), other, declare_examples=True)


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (adapter(2, base="c" * 64), "another base"),
        (adapter(2, layout="full"), "another layout"),
        (adapter(2, rank=4), "another rank.*'first' has rank 3, 'second' 4"),
        (adapter(2, alpha=1.0), "another alpha"),
        (Weights({A: adapter(2).tensors[A]}, META), "missing, unknown or of another shape"),
        (Weights({A: np.zeros((4, 11), "float32"), B: np.zeros((7, 4), "float32")}, META), "another shape"),
        (
            Weights({A: np.full((3, 11), np.nan, "float32"), B: np.zeros((7, 3), "float32")}, META),
            "'second' have values that are not",
        ),
        (None, "needs the input 'second'"),
    ],
)
def test_what_does_not_fit_is_named(second, said):
    with pytest.raises(ComponentError) as caught:
        mix(adapter(1), second)
    problem = caught.value.problems[0]
    import re

    assert re.search(said, " ".join(str(part) for part in vars(problem).values())) and problem.path == "second" and problem.fix


def test_nothing_wired_and_weights_that_are_no_adapters():
    for beta in (0, 0.5, 1):
        with pytest.raises(ComponentError, match="is not wired"):
            mix(beta=beta)
    full = [Weights({"w": np.full(2, i, "float32")}, {"base": "b", "layout": "full"}) for i in (0, 1)]
    assert mix(*full).tensors["w"].tolist() == [0.5, 0.5]
    with pytest.raises(ComponentError, match="no product"):
        mix(*full, mix="product")


@pytest.mark.parametrize("beta", [-0.1, 1.1, float("nan"), float("inf")])
def test_beta_is_a_share(beta):
    with pytest.raises(ValidationError, match="beta"):
        AdapterMixerConfig(beta=beta)


def test_conformance():
    check_component(AdapterMixer, {"beta": 0.5}, {"first": adapter(1), "second": adapter(2)}, FakeContext)

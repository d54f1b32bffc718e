# SPDX-License-Identifier: Apache-2.0
"""Robust rules with bad clients, quorum, weights by examples, products of adapters, server optimisers."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from osmotic.components.aggregation import lowrank, robust
from osmotic.components.aggregation.checks import Roll
from osmotic.components.aggregator import Aggregator, AggregatorConfig
from osmotic.plugins.contract import Gathered, Weights
from osmotic.plugins.testing import FakeContext, check_component
from osmotic.runtime.storage.store import Store
from osmotic.schemas.errors import ComponentError, DataError

META = {"base": "b" * 64, "layout": "full"}


def of(parties: dict[str, Weights]) -> Gathered:
    return Gathered({name: (lambda value=value: value) for name, value in parties.items()})


def run(parties: dict[str, Weights], previous=None, state=None, **config):
    return Aggregator(AggregatorConfig.model_validate(config)).run(FakeContext(), of(parties), previous, state)


def honest(seed: int, around: float = 1.0) -> Weights:
    generator = np.random.default_rng(seed)
    return Weights(
        {
            "a": (around + 0.1 * generator.normal(size=(40, 30))).astype("float32"),
            "b": generator.normal(size=7).astype("float32"),
        },
        META,
    )


# ---- bad clients ----


@pytest.mark.parametrize("attack", ["huge", "negated", "equal huge"])
def test_two_bad_clients_of_ten_move_the_mean_and_nothing_else(attack: str):
    parties = {f"p{i}": honest(i) for i in range(8)}
    good = np.mean([w.tensors["a"] for w in parties.values()], axis=0)
    for i, name in enumerate(("a-bad", "z-bad")):
        factor = {"huge": 1e30 * (i + 1), "negated": -10.0, "equal huge": 1e6}[attack]
        bad = honest(1 if attack == "equal huge" else 100 + i)
        parties[name] = Weights({n: (t * np.float32(factor)) for n, t in bad.tensors.items()}, META)
    rules = {"median": {}, "trimmed-mean": {"trim": 0.2}, "krum": {"krum": {"faulty": 2, "keep": 4}}}
    for rule, keys in rules.items():
        outputs = run(parties, aggregation=rule, **keys)
        off = np.abs(outputs["weights"].tensors["a"] - good)
        assert off.max() < 0.35 and off.mean() < 0.06, rule
        if rule == "krum":
            chosen = outputs["report"].data["chosen"]
            assert len(chosen) == 4 and not any("bad" in party for party in chosen)
    assert np.abs(run(parties)["weights"].tensors["a"] - good).mean() > 1.5


def test_rules_are_numpys_and_read_in_ranges(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(robust, "BUDGET", 8 * 9 * 13)  # 13 coordinates of 9 clients at a time
    parties = {f"p{i}": honest(i) for i in range(9)}
    stack = np.stack([w.tensors["a"] for w in parties.values()])
    for count in (9, 8):
        some = dict(list(parties.items())[:count])
        assert np.array_equal(run(some, aggregation="median")["weights"].tensors["a"], np.median(stack[:count], axis=0))
    cut = np.sort(stack, axis=0)[2:7].mean(axis=0, dtype="float64").astype("float32")
    assert np.array_equal(run(parties, aggregation="trimmed-mean", trim=0.2)["weights"].tensors["a"], cut)
    flat = np.stack([np.concatenate([w.tensors[n].reshape(-1) for n in ("a", "b")]) for w in parties.values()]).astype(
        "float64"
    )
    distances = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    scores = np.sort(distances, axis=1)[:, 1 : 9 - 3 - 2 + 1].sum(axis=1)
    best = f"p{int(scores.argmin())}"
    outputs = run(parties, aggregation="krum")  # (9 - 3) / 2 faulty ones
    assert outputs["report"].data["chosen"] == [best]
    assert np.array_equal(outputs["weights"].tensors["a"], parties[best].tensors["a"])


def test_order_of_arrival_does_not_matter_to_any_rule():
    parties = {f"p{i}": honest(i) for i in range(7)}
    for config in ({"aggregation": "median"}, {"aggregation": "trimmed-mean"}, {"aggregation": "krum"}):
        one, two = run(parties, **config), run(dict(reversed(parties.items())), **config)
        assert one["weights"].to_files() == two["weights"].to_files()


def test_rules_that_too_few_clients_cannot_bear_are_refused():
    parties = {f"p{i}": honest(i) for i in range(6)}
    with pytest.raises(ComponentError, match="krum with 2 faulty clients and keep 1 needs 7"):
        run(parties, aggregation="krum", krum={"faulty": 2})
    with pytest.raises(ComponentError, match="leaves nobody"):
        run(dict(list(parties.items())[:2]), aggregation="trimmed-mean", trim=0.4)


def test_rules_read_from_a_store_without_holding_the_clients(tmp_path):
    store = Store(tmp_path)
    digests = {f"p{i}": store.put(honest(i)) for i in range(5)}
    loads: list[str] = []
    loaders = {p: (lambda p=p, d=d: loads.append(p) or store.get("weights", d)) for p, d in digests.items()}
    openers = {p: (lambda d=d: store.open("weights", d)) for p, d in digests.items()}
    for rule in ("median", "krum", "trimmed-mean"):
        made = Aggregator(AggregatorConfig(aggregation=rule, trim=0.2)).run(FakeContext(), Gathered(loaders, openers))
        same = run({f"p{i}": honest(i) for i in range(5)}, aggregation=rule, trim=0.2)
        assert made["weights"].to_files() == same["weights"].to_files() and not loads
    clients = [weights for _, weights in Roll(Gathered(loaders, openers), None).good(whole=False)]
    assert len({id(weights.tensors._index()) for weights in clients}) == 1  # no client keeps an index of its own


# ---- quorum ----


def spoilt(**changes) -> Weights:
    return Weights({**honest(3).tensors, **changes}, META)


BAD = {
    "nan": (spoilt(b=np.full(7, np.nan, "float32")), "not finite numbers, in 'b'"),
    "inf": (spoilt(a=np.full((40, 30), np.inf, "float32")), "not finite numbers, in 'a'"),
    "shape": (spoilt(b=np.zeros(8, "float32")), "do not fit: 1 tensors"),
    "type": (spoilt(b=np.zeros(7, "float64")), "do not fit"),
    "more": (spoilt(c=np.zeros(7, "float32")), "do not fit"),
    "less": (Weights({"a": honest(1).tensors["a"]}, META), "do not fit"),
    "base": (Weights(honest(1).tensors, META | {"base": "c"}), "have another base"),
    "layout": (Weights(honest(1).tensors, META | {"layout": "lora"}), "have another layout"),
}


@pytest.mark.parametrize("rule", ["plain", "median"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_client_is_named_and_left_out_or_stops_the_run(bad: str, rule: str):
    """Also as the first of all: most parties' weights are the reference, not the first one's."""
    weights, reason = BAD[bad]
    parties = {"a-bad": weights, **{f"p{i}": honest(i) for i in range(4)}}
    outputs = run(parties, aggregation=rule, quorum={"at_least": 4})
    alone = run({name: parties[name] for name in parties if name != "a-bad"}, aggregation=rule)
    assert outputs["weights"].to_files() == alone["weights"].to_files()
    report = outputs["report"].data
    assert report["used"] == ["p0", "p1", "p2", "p3"] and list(report["left_out"]) == ["a-bad"]
    assert reason in report["left_out"]["a-bad"]
    for quorum in (None, {"at_least": 5}, {"at_least": 0.9}):
        with pytest.raises(ComponentError, match="the weights of"):
            run(parties, aggregation=rule, **({"quorum": quorum} if quorum else {}))
    run(parties, aggregation=rule, quorum={"at_least": 0.8})


def test_previous_weights_are_the_reference_even_against_a_majority():
    odd = {f"odd{i}": BAD["shape"][0] for i in range(3)}
    report = run({**odd, "p1": honest(1)}, previous=honest(0), quorum={"at_least": 1})["report"].data
    assert report["used"] == ["p1"] and set(report["left_out"]) == set(odd)


def test_damaged_weights_and_many_bad_ones_are_named():
    def broken() -> Weights:
        raise DataError("the weights are damaged")

    gathered = Gathered({"bad": broken, "north": lambda: honest(1)})
    made = Aggregator(AggregatorConfig.model_validate({"quorum": {"at_least": 1}})).run(FakeContext(), gathered)
    assert made["report"].data["left_out"] == {"bad": "cannot be read"}
    with pytest.raises(ComponentError, match="'bad' cannot be read"):
        Aggregator(AggregatorConfig()).run(FakeContext(), gathered)
    many = {f"p{i:03d}": BAD["nan"][0] for i in range(50)}
    with pytest.raises(ComponentError, match="and 30 more") as error:
        run({"ok": honest(1), **many})
    assert len(error.value.problems) == 21
    with pytest.raises(ComponentError, match="quorum is 9"):
        run({"ok": honest(1)}, quorum={"at_least": 9})
    whole = Weights({"a": np.arange(4)}, META)
    with pytest.raises(ComponentError, match="not floating-point"):
        run({"a": whole, "b": whole})


@pytest.mark.parametrize("rule", ["plain", "median", "krum"])
def test_a_file_that_cannot_be_opened_stops_nobody_else(tmp_path, rule: str):
    """Complex numbers are good safetensors; `open` cannot read them. The others go on, whatever the rule."""
    store = Store(tmp_path)
    made = {f"p{i}": honest(i) for i in range(5)} | {"a-bad": Weights({"a": np.zeros(2, "complex64")}, META)}
    digests = {party: store.put(weights) for party, weights in made.items()}
    loaders = {p: (lambda d=d: store.get("weights", d)) for p, d in digests.items()}
    openers = {p: (lambda d=d: store.open("weights", d)) for p, d in digests.items()}
    config = AggregatorConfig.model_validate({"aggregation": rule, "quorum": {"at_least": 5}})
    report = Aggregator(config).run(FakeContext(), Gathered(loaders, openers))["report"].data
    assert report["used"] == ["p0", "p1", "p2", "p3", "p4"] and list(report["left_out"]) == ["a-bad"]


@pytest.mark.parametrize("rule", ["plain", "median", "krum", "dp"])
def test_a_float64_whose_square_is_none_stops_nobody_else(rule: str):
    parties = {f"p{i}": Weights({"w": np.full(3, float(i))}, META) for i in range(5)}
    parties["huge"] = Weights({"w": np.array([1e300, -1e200, 0.0])}, META)
    keys = {"dp": {"clip": 1.0, "noise_multiplier": 1.0}} if rule == "dp" else {}
    previous = Weights({"w": np.zeros(3)}, META)
    report = run(parties, previous, aggregation=rule, quorum={"at_least": 5}, **keys)["report"].data
    assert report["left_out"] == {"huge": "have values beyond 1e+100, in 'w'"}


def test_looking_for_most_parties_kind_keeps_one_of_a_kind():
    """With a quorum and no previous weights; 400 descriptions of 100 tensors would be 10 MB."""

    def load() -> Weights:
        return Weights({f"layer.{i}": np.zeros(1, "float32") for i in range(100)}, META)

    roll = Roll(Gathered({f"p{i:03d}": load for i in range(400)}), None)
    tracemalloc.start()
    roll.survey()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert roll.reference is not None and peak < 1_000_000


# ---- by examples ----


def test_weights_by_declared_examples():
    parties = {f"p{i}": Weights(honest(i).tensors, META | {"examples": 10 * i + 1}) for i in range(5)}
    made = run(parties, weights="examples")["weights"]
    wanted = np.average([w.tensors["a"].astype("float64") for w in parties.values()], axis=0, weights=[1, 11, 21, 31, 41])
    assert np.allclose(made.tensors["a"], wanted, rtol=2e-7) and "examples" not in made.meta
    for wrong in ({}, {"examples": 0}, {"examples": True}, {"examples": 1.5}, {"examples": 10**30}):
        with pytest.raises(ComponentError, match="'p9' do not say how many examples") as error:
            run({**parties, "p9": Weights(honest(9).tensors, META | wrong)}, weights="examples")
        assert "declare_examples" in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        {"aggregation": "median", "weights": "examples"}, {"aggregation": "krum", "adapters": "product"}, {"aggregation": "dp"},
        {"dp": {"clip": 1, "noise_multiplier": 1}}, {"adapters": "product", "server": {"optimizer": "adam"}},
        {"aggregation": "none", "server": {"optimizer": "adam"}}, {"quorum": {"at_least": 1.5}}, {"quorum": {"at_least": 0}},
        {"aggregation": "dp", "dp": {"clip": 1}}, {"aggregation": "dp", "dp": {"clip": 1, "epsilon": 1, "delta": 1e-5}},
        {"aggregation": "dp", "dp": {"clip": 1, "noise_multiplier": 1, "rounds": 2}}, {"trim": 0.5}, {"server": {"beta1": 1.0}},
    ],
)  # fmt: skip
def test_configurations_that_make_no_sense_are_refused(config: dict):
    with pytest.raises(ValidationError):
        AggregatorConfig.model_validate(config)


# ---- adapters ----

A, B = "m.q.lora_A.default.weight", "m.q.lora_B.default.weight"


def adapter(seed: int, m: int = 12, k: int = 9, r: int = 2, extra: bool = False) -> Weights:
    generator = np.random.default_rng(seed)
    made = {A: generator.normal(size=(r, k)).astype("float32"), B: generator.normal(size=(m, r)).astype("float32")}
    return Weights({**made, **({"head": np.full(3, seed, "float32")} if extra else {})}, {"base": "b", "layout": "lora"})


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(3, 20), st.integers(3, 20), st.booleans())
def test_the_product_is_the_best_of_its_rank(clients: int, r: int, m: int, k: int, examples: bool):
    made = {f"p{i}": adapter(i, m, k, r, extra=True) for i in range(clients)}
    parties = {p: Weights(w.tensors, w.meta | {"examples": i + 1}) for i, (p, w) in enumerate(made.items())}
    outputs = run(parties, adapters="product", weights="examples" if examples else "uniform")
    got, shares = outputs["weights"].tensors, list(range(1, clients + 1)) if examples else None
    products = [w.tensors[B].astype("float64") @ w.tensors[A] for w in parties.values()]
    wanted = best(np.average(products, axis=0, weights=shares), r)
    assert np.allclose(got[B].astype("float64") @ got[A], wanted, atol=2e-5 * np.abs(wanted).max())
    assert np.allclose(got["head"], np.average(range(clients), weights=shares)) and outputs["report"].data["product_error"] == 0
    columns = got[B][:, : min(m, k, r)]
    assert (columns[np.abs(columns).argmax(axis=0), np.arange(columns.shape[1])] >= 0).all()


def test_factors_are_not_the_product_and_a_long_stack_keeps_its_bound(monkeypatch: pytest.MonkeyPatch):
    parties = {f"p{i:03d}": adapter(i, 40, 30, 4) for i in range(60)}
    mean = np.mean([w.tensors[B].astype("float64") @ w.tensors[A] for w in parties.values()], axis=0)
    factors = run(parties)["weights"].tensors
    exact = run(parties, adapters="product")["weights"].tensors
    left = np.linalg.norm(mean - best(mean, 4))
    assert np.linalg.norm(mean - exact[B].astype("float64") @ exact[A]) == pytest.approx(left, rel=1e-5)
    assert np.linalg.norm(mean - factors[B].astype("float64") @ factors[A]) > 1.05 * left
    monkeypatch.setattr(lowrank, "LIMIT", 10)
    outputs = run(parties, adapters="product")
    short, bound = outputs["weights"].tensors, outputs["report"].data["product_error"] * np.linalg.norm(mean)
    assert bound > 0
    assert np.linalg.norm(mean - short[B].astype("float64") @ short[A]) <= left + 2.5 * bound


def test_a_product_of_nothing_can_still_learn_and_one_client_keeps_its_product():
    zero = {f"p{i}": Weights({**adapter(i).tensors, B: np.zeros((12, 2), "float32")}, adapter(i).meta) for i in range(3)}
    made = run(zero, adapters="product")["weights"].tensors
    assert not made[B].any() and np.linalg.matrix_rank(made[A]) == 2 and 0.5 < np.linalg.norm(made[A], axis=1).min() < 10
    one = run({"p": adapter(1)}, adapters="product")["weights"].tensors
    assert np.allclose(one[B] @ one[A], adapter(1).tensors[B] @ adapter(1).tensors[A], atol=1e-5)
    for bad in (
        honest(1),
        Weights({A: np.zeros((2, 3), "float32")}, META),
        Weights({"x.lora_magnitude": np.zeros(2, "float32")}, META),
    ):
        with pytest.raises(ComponentError, match="adapters"):
            run({"p": bad}, adapters="product")


def test_frozen_a_is_exact_and_another_a_is_left_out():
    a = adapter(0).tensors[A]
    parties = {f"p{i}": Weights({A: a, B: adapter(i).tensors[B]}, adapter(i).meta) for i in range(3)}
    made = run(parties, adapters="frozen-a")["weights"].tensors
    mean = np.mean([w.tensors[B].astype("float64") @ a for w in parties.values()], axis=0)
    assert np.array_equal(made[A], a) and np.allclose(made[B].astype("float64") @ made[A], mean, atol=1e-6)
    report = run({**parties, "odd": adapter(9)}, adapters="frozen-a", quorum={"at_least": 3})["report"].data
    assert "another A" in report["left_out"]["odd"] and report["used"] == ["p0", "p1", "p2"]
    with pytest.raises(ComponentError, match="no adapters"):
        run({"p": honest(1)}, adapters="frozen-a")
    for other in ("emb.lora_embedding_A.default", "m.lora_magnitude_vector.default"):  # their means would not be exact
        with pytest.raises(ComponentError, match="neither lora_A nor lora_B"):
            run({"p": Weights({**adapter(1).tensors, other: np.ones(2, "float32")}, META)}, adapters="frozen-a")


def test_b_alone_is_averaged_exactly_and_needs_to_say_beside_which_a():
    a = adapter(0).tensors[A].astype("float64")
    meta = {**META, "layout": "lora", "frozen": "a" * 64}
    parties = {f"p{i}": Weights({B: adapter(i).tensors[B]}, meta) for i in range(3)}
    made = run(parties, adapters="frozen-a")["weights"]
    mean = np.mean([w.tensors[B].astype("float64") @ a for w in parties.values()], axis=0)
    assert made.meta["frozen"] == "a" * 64 and set(made.tensors) == {B}
    np.testing.assert_allclose(made.tensors[B].astype("float64") @ a, mean, atol=1e-6)
    assert np.array_equal(run(parties)["weights"].tensors[B], made.tensors[B])  # by factors: the same, A being no factor here
    odd = Weights(parties["p0"].tensors, {**meta, "frozen": "b" * 64})
    for way in ("frozen-a", "factors"):
        report = run({**parties, "q": odd}, adapters=way, quorum={"at_least": 3})["report"].data
        assert "another A" in report["left_out"]["q"], way
    with pytest.raises(ComponentError, match="do not say beside which A"):
        run({"p": Weights({B: adapter(1).tensors[B]}, META)}, adapters="frozen-a")
    with pytest.raises(ComponentError, match="have no A"):
        run(parties, adapters="product")


# ---- server optimisers ----


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi", "adagrad"])
def test_server_optimisers_follow_algorithm_2(name: str):
    """Three rounds against the formulas in scalars; the first round has no previous weights and passes the mean on."""
    keys = {"optimizer": name, "learning_rate": 0.3, "beta1": 0.7, "beta2": 0.9, "tau": 0.01}
    x = m = None
    v, previous, state = 0.01**2, None, None
    for t in range(4):
        parties = {f"p{i}": Weights({"a": np.array([t + i + (x or 0.0)], "float32")}, META) for i in range(2)}
        mean = t + 0.5 + (x or 0.0)
        outputs = run(parties, previous, state, server=keys)
        if x is None:
            x, m = mean, 0.0
        else:
            d = mean - x
            if name == "momentum":
                m = 0.7 * m + d
                x += 0.3 * m
            else:
                m = 0.7 * m + 0.3 * d
                v = {"adam": 0.9 * v + 0.1 * d * d, "adagrad": v + d * d, "yogi": v - 0.1 * d * d * np.sign(v - d * d)}[name]
                x += 0.3 * m / (math.sqrt(v) + 0.01)
        previous, state = outputs["weights"], outputs["state"]
        assert previous.tensors["a"][0] == pytest.approx(x, rel=1e-5) and state.meta["updates"] == t
        state = Weights.from_files(state.to_files())
        x = float(previous.tensors["a"][0])


def test_states_that_do_not_fit_are_refused_and_without_an_optimiser_there_is_none():
    adam = {"server": {"optimizer": "adam"}}
    state = run({"p": honest(1)}, honest(0), **adam)["state"]
    assert set(state.tensors) == {"m/a", "m/b", "v/a", "v/b"}
    assert run({"p": honest(1)})["state"].tensors == {} and AggregatorConfig().server.rate == 0.01
    for other, match in (
        ({"previous": honest(0), "server": {"optimizer": "yogi"}}, "another optimizer"), ({**adam}, "previous weights"),
        ({"previous": honest(0), **adam, "state": Weights({"m/a": np.zeros(1)}, state.meta)}, "other tensors"),
        ({"previous": honest(0), **adam, "state": Weights(state.tensors, state.meta | {"base": "x"})}, "another base"),
    ):  # fmt: skip
        with pytest.raises(ComponentError, match=match):
            run({"p": honest(1)}, **{"state": state, **other})
    huge = Weights({n: np.full_like(t, 3e38) for n, t in honest(0).tensors.items()}, META)
    low = Weights({n: -t for n, t in huge.tensors.items()}, META)
    with pytest.raises(ComponentError, match="not finite"):
        run({"p": huge}, low, server={"optimizer": "momentum"})


def test_the_report_says_when_no_step_of_the_optimiser_was_taken():
    """Without 'previous' in a later round, the mean was passed on for ever, and nothing said so."""
    adam = {"server": {"optimizer": "adam"}}
    alone = run({"p": honest(1)}, **adam)
    assert alone["report"].data["server"] == {"optimizer": "adam", "updates": 0}
    one = run({"p": honest(1)}, honest(0), **adam)
    assert one["report"].data["server"]["updates"] == 1
    assert run({"p": honest(1)}, honest(0), one["state"], **adam)["report"].data["server"]["updates"] == 2
    assert "server" not in run({"p": honest(1)})["report"].data


@pytest.mark.parametrize("config", [{"aggregation": "krum"}, {"adapters": "product"}, {"server": {"optimizer": "yogi"}}])
def test_each_fits_the_contract(config: dict):
    check_component(Aggregator, config, {"models": {f"p{i}": adapter(i) for i in range(5)}, "previous": adapter(7)})

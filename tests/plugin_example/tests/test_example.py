# SPDX-License-Identifier: Apache-2.0
"""The plugin by itself: the contract, the certificate, the chain's sentences. Its pipeline runs in osmotic's tests."""

import pytest

pytest.importorskip("osmotic_example", reason="pip install --no-deps ./tests/plugin_example")

from osmotic_example.coin_rr import CoinRandomisedResponse, CoinRrConfig
from osmotic_example.markov import Markov, MarkovConfig
from osmotic_example.wheel import Wheel
from osmotic_example.word_counter import WordCounter

from osmotic import testing
from osmotic.plugins.contract import Generation, Records
from osmotic.plugins.host import build_registry
from osmotic.schemas.errors import ConfigError, DataError


def test_installing_the_package_is_enough() -> None:
    registry = build_registry()
    found = [registry.components["word_counter"], registry.mechanisms["coin-rr"], registry.models["markov"]]
    found.append(registry.tables["wheel"])
    assert {entry.distribution for entry in found} == {"osmotic-example"}


def test_nothing_is_there_without_plugins() -> None:
    assert "coin-rr" not in build_registry(names=[]).mechanisms


@pytest.mark.parametrize("epsilon", [0.1, 3, 40.0])
def test_the_mechanism_fits_and_keeps_its_promise(epsilon: float) -> None:
    testing.check_mechanism(CoinRandomisedResponse, {"epsilon": epsilon})


def test_the_mechanism_on_two_symbols_is_warners_coin() -> None:
    import numpy as np

    space = testing.small_space(size=2)
    table = np.exp(CoinRandomisedResponse(CoinRrConfig(epsilon=np.log(3.0)), space).log_prob(np.array([0, 1, 2])))
    assert np.allclose(table, [[0.75, 0.25], [0.25, 0.75], [0.5, 0.5]])


def test_the_component_fits_and_counts() -> None:
    north = Records([{"id": "1", "rationale": "a Rose a day"}])
    south = Records([{"id": "2", "rationale": "a bean."}, {"id": "3", "rationale": ""}])
    inputs = {"texts": {"south": south, "north": north}}
    testing.check_component(WordCounter, {}, inputs)
    metrics = testing.run_component(WordCounter, {}, inputs)["counts"]
    assert metrics.values == {"texts": 3.0, "words": 6.0, "distinct": 4.0}
    with pytest.raises(DataError, match="north have no field 'answer'"):
        testing.run_component(WordCounter, {"field": "answer"}, inputs)


def test_the_model_fits() -> None:
    testing.check_model(Markov, {"order": 2})


def test_the_chain_continues_a_sentence_with_words_of_its_text() -> None:
    chain = Markov(MarkovConfig()).build()
    (answer,) = chain.generate(["A tulip in the pot"], Generation())
    assert answer.text == "wants a cold winter before it flowers." and answer.finished and answer.tokens == 7
    (cut,) = chain.generate(["A tulip in the pot"], Generation(max_new_tokens=3))
    assert (cut.text, cut.finished, cut.tokens) == ("wants a cold", False, 3)
    (stopped,) = chain.generate(["A tulip in the pot"], Generation(stop=("winter",)))
    assert (stopped.text, stopped.finished) == ("wants a cold ", True)


def test_sampling_follows_its_seed() -> None:
    chain = Markov(MarkovConfig(order=1)).build()
    texts = [chain.generate(["The"], Generation(temperature=1.0, seed=seed))[0].text for seed in (1, 1, *range(2, 12))]
    assert texts[0] == texts[1] and len(set(texts)) > 5
    greedy = chain.generate(["The"], Generation())[0].text
    assert chain.generate(["The"], Generation(temperature=1.0, top_p=1e-9, seed=4))[0].text == greedy


def test_the_fingerprint_tells_orders_apart() -> None:
    assert Markov(MarkovConfig(order=1)).fingerprint() != Markov(MarkovConfig(order=3)).fingerprint()


def test_the_table_fits_and_text_goes_through_it() -> None:
    from osmotic.plugins.spaces import decode, encode

    space = testing.check_table(Wheel, "plain")
    flat, lengths = encode(space, ["Red and GREEN.", "no colour"])
    assert (space.size, lengths.tolist(), flat.tolist()) == (14, [4, 2], [0, 13, 3, 12, 14, 14])
    assert decode(space, flat[:4], lengths[:1]) == ["red and green ."]
    with pytest.raises(ConfigError, match="wheel:plain"):
        testing.check_table(Wheel, "oil")

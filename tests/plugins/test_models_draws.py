# SPDX-License-Identifier: Apache-2.0
"""top_k beside top_p, and a seed for each prompt: in local models, as sent to servers, and through another party's model."""

import json
import random
from collections import Counter
from typing import Any

import pytest

from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.models import slots
from osmotic.plugins.models.decoding import Row, choose
from osmotic.plugins.models.openai import OpenAiConfig, body_of
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel


class Grid(random.Random):
    """A stream whose one draw is given."""

    def __init__(self, value: float) -> None:
        self.value = value

    def random(self) -> float:
        return self.value


def shares(logits: Any, how: Generation, count: int = 20_000) -> dict[int, float]:
    """Token -> share of evenly spaced draws that it gets: its probability, within 1 / count."""
    rows = [Row(i, [0], Grid((i + 0.5) / count)) for i in range(count)]
    return {token: n / count for token, n in Counter(choose(logits.expand(count, -1), how, rows)).items()}


@pytest.mark.parametrize(
    ("top_k", "top_p", "temperature"), [(5, 1.0, 1.0), (5, 0.6, 1.3), (30, 0.9, 0.7), (1, 0.5, 2.0), (0, 0.7, 1.0)]
)
def test_probabilities_are_those_of_transformers(top_k: int, top_p: float, temperature: float) -> None:
    import torch
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn((1, 40), generator=torch.Generator().manual_seed(3)) * 2
    wanted = TemperatureLogitsWarper(temperature)(None, logits) if temperature != 1 else logits
    wanted = TopKLogitsWarper(top_k)(None, wanted) if top_k else wanted
    wanted = TopPLogitsWarper(top_p)(None, wanted) if top_p < 1 else wanted
    expected = {i: p for i, p in enumerate(wanted[0].softmax(-1).tolist()) if p > 0}
    found = shares(logits, Generation(temperature=temperature, top_k=top_k, top_p=top_p))
    assert set(found) == set(expected)
    assert all(abs(found[i] - expected[i]) < 2e-4 for i in expected)


def test_all_tokens_and_one_token() -> None:
    import torch

    logits = torch.randn((1, 12), generator=torch.Generator().manual_seed(1))
    plain = shares(logits, Generation(temperature=1.0), 500)
    assert plain == shares(logits, Generation(temperature=1.0, top_k=12), 500)
    assert plain == shares(logits, Generation(temperature=1.0, top_k=99), 500)
    assert shares(logits, Generation(temperature=1.0, top_k=1), 500) == {int(logits.argmax()): 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, save_model: Any) -> Any:
    folder = save_model(tmp_path_factory.mktemp("draws"), "llama")
    return TransformersModel(TransformersConfig(path=str(folder), device="cpu")).build()


def test_prompts_that_read_alike_have_answers_of_their_own(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    how = Generation(max_new_tokens=8, temperature=1.5, top_k=20, top_p=0.95, seeds=tuple(range(10)))
    answers = model.generate(["w1 w2"] * 10, how)
    assert len({answer.text for answer in answers}) > 5
    for i in (0, 7):
        alone = Generation(max_new_tokens=8, temperature=1.5, top_k=20, top_p=0.95, seed=i)
        assert model.generate(["w1 w2"], alone) == [answers[i]]
    assert len(set(model.generate(["w1 w2"] * 3, Generation(max_new_tokens=8, temperature=1.5)))) == 1
    monkeypatch.setattr(slots, "fits_slots", lambda *_: False)
    lockstep = TransformersModel(TransformersConfig(path=model.config.path, device="cpu")).build()
    assert lockstep.generate(["w1 w2"] * 10, how) == answers


def test_what_a_server_is_sent() -> None:
    config = OpenAiConfig(url="http://127.0.0.1:1", model="tiny")
    assert "top_k" not in body_of(config, "a", Generation(), False)
    how = Generation(top_k=7, seeds=(3, 9))
    assert [body_of(config, "a", how.of(i), False)["seed"] for i in range(2)] == [3, 9]
    assert body_of(config, "a", how.of(0), False)["top_k"] == 7


class Echo:
    """Answers with prompt and seed; keeps how often it was called."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def generate(self, prompts: list[str], how: Generation) -> list[Answer]:
        self.calls.append(len(prompts))
        return [Answer(f"{prompt} {how.of(i).seed}", True, 1) for i, prompt in enumerate(prompts)]


def test_seeds_travel_to_another_party_and_are_answered_together(monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.runtime.party import ports
    from osmotic.runtime.party.service import Service

    echo, served = Echo(), object.__new__(Service)
    remote = object.__new__(ports.RemoteModel)
    monkeypatch.setattr(
        ports.RemoteModel, "_call", lambda self, method, items: served._generate(echo, json.loads(json.dumps(items)))
    )
    monkeypatch.setattr(ports, "SLICE", 2)
    how = Generation(seeds=(5, 6, 7), stop=("x",))
    assert [answer.text for _, answer in remote.stream(["a", "a", "b"], how)] == ["a 5", "a 6", "b 7"]
    assert [answer.text for answer in remote.generate(["a", "a"], Generation(seed=4))] == ["a 4", "a 4"]
    assert echo.calls == [2, 1, 2]

# SPDX-License-Identifier: Apache-2.0
"""Encoder-decoder models: answers as transformers gives them alone, scores, training copies, adapters, weights put back."""

import numpy as np
import pytest

from osmotic.plugins.contract import Generation, NextToken, Scorer, TextGenerator, Trainable, Weights
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.errors import ComponentError

PROMPTS = [" ".join(f"w{(3 * i + k) % 40}" for k in range(n)) for i, n in enumerate((3, 9, 1, 14, 5, 2, 7, 7))]


@pytest.fixture(scope="module", params=["t5", "bart"])
def folder(request, tmp_path_factory, save_model):
    return save_model(tmp_path_factory.mktemp(request.param), request.param)


def build(path, **config):
    return TransformersModel(TransformersConfig(path=str(path), device="cpu", **config)).build()


def test_has_the_protocols_but_no_next_token(folder):
    model = build(folder)
    assert model.module.config.is_encoder_decoder
    assert isinstance(model, TextGenerator) and isinstance(model, Scorer) and isinstance(model, Trainable)
    assert not isinstance(model, NextToken)


@pytest.mark.parametrize("budget", [16384, 30])
def test_a_batch_answers_as_transformers_does_alone(folder, budget):
    import torch

    model = build(folder, batch_tokens=budget)
    answers = model.generate(PROMPTS, Generation(max_new_tokens=12))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor(model.encode_prompts([prompt]))
        made = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 1:]
        assert answer.text == model.tokenizer.decode(made, skip_special_tokens=True) and answer.prompt_tokens == ids.shape[1]
    assert len({answer.text for answer in answers}) > 3


def test_company_does_not_change_a_draw(folder):
    model = build(folder)
    how = Generation(max_new_tokens=10, temperature=1.2, top_p=0.9, seed=5)
    together = model.generate(PROMPTS, how)
    assert together == [model.generate([prompt], how)[0] for prompt in PROMPTS]
    assert dict(model.stream(PROMPTS[::-1], how)) == dict(enumerate(together[::-1]))


def test_scores_equal_a_forward_pass(folder):
    import torch

    model = build(folder)
    pairs = [("w1 w2 w3", "w4 w5"), ("w9", "w8 w7 w6 w5"), ("w3 w3 w3 w3 w3", "w1"), ("w1", "")]
    first = model.module.config.decoder_start_token_id
    for (prompt, target), (total, count) in zip(pairs, model.log_likelihood(pairs), strict=True):
        head, tail = (model.tokenizer(text)["input_ids"] for text in (prompt, target))
        with torch.inference_mode():
            made = model.module(input_ids=torch.tensor([head]), decoder_input_ids=torch.tensor([[first, *tail]]))
        table = made.logits[0].double().log_softmax(-1)
        assert count == len(tail)
        assert total == pytest.approx(sum(float(table[i, token]) for i, token in enumerate(tail)), abs=1e-4)


def test_first_layers_of_both_stacks_and_room(folder):
    short = build(folder, layers=1)
    counts = [sum(p.numel() for p in model.module.parameters()) for model in (short, build(folder))]
    assert counts[0] < 0.7 * counts[1]
    assert len(short.generate(PROMPTS, Generation(max_new_tokens=3))) == len(PROMPTS)
    if short.module.config.model_type == "bart":
        with pytest.raises(ComponentError, match="too long"):
            short.generate([" ".join(["w1"] * 140)], Generation(max_new_tokens=3))
        assert short.generate([" ".join(["w1"] * 120)], Generation(max_new_tokens=100))[0].prompt_tokens == 120


def test_adapters_train_and_come_back_merged(folder):
    import torch

    names = ["q", "v"] if build(folder).module.config.model_type == "t5" else ["q_proj", "v_proj"]
    model = build(folder, lora={"rank": 2, "alpha": 4.0, "target_modules": names})
    module, tokenizer = model.trainable()
    assert module.config.is_encoder_decoder and tokenizer is model.tokenizer
    ids, labels = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[8, 9, 2]])
    module(input_ids=ids, labels=labels).loss.backward()
    wanted = {name: p for name, p in module.named_parameters() if p.requires_grad}
    assert wanted and all("lora_" in name and p.grad is not None for name, p in wanted.items())
    generator = np.random.default_rng(1)
    tensors = {n: generator.normal(size=p.shape).astype("float32") for n, p in wanted.items()}
    merged = model.with_weights(Weights(tensors, {"base": model.fingerprint}))
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(torch.from_numpy(tensors[name]))
        given = {"input_ids": ids, "decoder_input_ids": labels}
        assert torch.allclose(merged.module(**given).logits, module.eval()(**given).logits, atol=1e-4)
    assert type(merged) is type(model)


def test_scores_are_the_loss_that_training_lowers(folder):
    """The start token and the shift of the labels are the same in both."""
    import torch

    model = build(folder)
    module, tokenizer = model.trainable()
    (head,), tail = model.encode_prompts(["w1 w2 w3"]), tokenizer("w4 w5 w6", add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        loss = float(module.eval()(input_ids=torch.tensor([head]), labels=torch.tensor([tail])).loss)
    ((total, count),) = model.log_likelihood([("w1 w2 w3", "w4 w5 w6")])
    assert -total / count == pytest.approx(loss, rel=1e-4)

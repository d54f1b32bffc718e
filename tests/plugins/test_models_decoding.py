# SPDX-License-Identifier: Apache-2.0
"""Answers of causal models in batches: slots, shared prefix, refilling, lockstep, stop strings, streams, draws."""

import pytest

from osmotic.plugins.contract import Answer, Generation
from osmotic.plugins.models import lockstep, slots
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.schemas.errors import ComponentError

SHARED = " ".join(f"w{i}" for i in range(12, 24))
PROMPTS = [
    *(" ".join([SHARED, *(f"w{(3 * i + k) % 40}" for k in range(n))]) for i, n in enumerate((3, 9, 1, 14, 5, 2, 7, 7, 11, 4))),
]
MIXED = [*PROMPTS, "w1", "w2 w3", " ".join(f"w{i}" for i in range(40)), PROMPTS[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_model):
    made = {}

    def of(family):
        if family not in made:
            made[family] = save_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return of


def build(path, **config):
    return TransformersModel(TransformersConfig(path=str(path), device="cpu", **config)).build()


def alone(model, prompt, new):
    """transformers' own loop for one prompt: (text, tokens)."""
    import torch

    ids = torch.tensor(model.encode_prompts([prompt]))
    made = model.module.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0)
    row = made[0, ids.shape[1] :].tolist()
    return model.text(row), len(row)


@pytest.fixture(scope="module")
def singly(folder):
    """What transformers makes of each of the mixed prompts, by family."""
    made = {}

    def of(family):
        if family not in made:
            model = build(folder(family))
            made[family] = [alone(model, prompt, 17) for prompt in MIXED]
        return made[family]

    return of


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "bloom"])
@pytest.mark.parametrize("budget", [16384, 150, 1])
def test_a_batch_of_any_size_answers_as_transformers_does_alone(folder, singly, family, budget):
    """Refilled slots (150 tokens hold two or three rows) and lockstep (sliding windows, Bloom) alike."""
    model = build(folder(family), batch_tokens=budget)
    answers = model.generate(MIXED, Generation(max_new_tokens=17))
    assert [(a.text, a.tokens) for a in answers] == singly(family)
    assert [a.prompt_tokens for a in answers] == [len(ids) for ids in model.encode_prompts(MIXED)]
    assert len({a.text for a in answers}) > 5


def test_which_models_use_slots_is_found_by_trying(folder):
    assert slots.fits_slots(build(folder("llama")).module, "float32")
    assert slots.fits_slots(build(folder("gpt2")).module, "float32")
    assert not slots.fits_slots(build(folder("bloom")).module, "float32")
    mistral = build(folder("mistral")).module
    assert slots.window_of(mistral) == 8 and slots.window_of(build(folder("llama")).module) is None


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_company_order_and_way_of_decoding_do_not_change_an_answer(folder, temperature, monkeypatch):
    model = build(folder("llama"))
    how = Generation(max_new_tokens=15, temperature=temperature, top_p=0.9, seed=3)
    together = model.generate(MIXED, how)
    assert together == [model.generate([prompt], how)[0] for prompt in MIXED]
    assert together == model.generate(MIXED[::-1], how)[::-1]
    assert together == build(folder("llama"), batch_tokens=120).generate(MIXED, how)
    monkeypatch.setattr(slots, "fits_slots", lambda *_: False)
    assert together == build(folder("llama")).generate(MIXED, how)


def test_the_shared_prefix_is_computed_once(folder, monkeypatch):
    seen, forward = [], slots.Slots._forward

    def spy(self, first, ids, *rest):
        seen.append(ids.numel())
        return forward(self, first, ids, *rest)

    monkeypatch.setattr(slots.Slots, "_forward", spy)
    model = build(folder("llama"))
    assert model._slots
    seen.clear()
    model.generate(PROMPTS, Generation(max_new_tokens=1))
    assert seen[0] == 12 and sum(seen) < 12 + len(PROMPTS) * 14 + 1  # the prefix, then the rest padded to 14
    assert slots.common_prefix([[1, 2, 3], [1, 2, 3]]) == 2 and slots.common_prefix([[5], [5, 6]]) == 0


def test_long_prompts_go_in_chunks(folder, monkeypatch):
    model = build(folder("llama"))
    how = Generation(max_new_tokens=6)
    whole = model.generate(MIXED, how)
    monkeypatch.setattr(slots, "CHUNK", {"cpu": 3, "cuda": 3})
    assert model.generate(MIXED, how) == whole


def test_streams_give_each_row_once_as_it_ends_with_its_problem(folder):
    model = build(folder("llama"))
    long = " ".join(["w1"] * 125)
    prompts = ["w5 w6", "", long, *PROMPTS, "   "]
    how = Generation(max_new_tokens=9)
    rows = list(model.stream(prompts, how))
    found = dict(rows)
    assert sorted(i for i, _ in rows) == list(range(len(prompts)))
    assert found[1] == Answer("", False, 0, 0, problem="empty-prompt") and found[len(prompts) - 1].problem == "empty-prompt"
    assert found[2] == Answer("", False, 0, 125, problem="too-long")
    assert [found[i] for i in range(3, 13)] == model.generate(PROMPTS, how)
    with pytest.raises(ComponentError, match="prompt 1 has no tokens"):
        model.generate(prompts, how)
    with pytest.raises(ComponentError, match="prompt 1 is too long"):
        model.generate(["w1", long], how)
    assert model.generate([], how) == [] and list(model.stream([], how)) == []
    assert model.generate(["w1"], Generation(max_new_tokens=0)) == [Answer("", False, 0, 1)]


def test_answers_come_before_the_last_row_is_done_and_a_reader_may_leave(folder):
    import torch

    model = build(folder("llama"), batch_tokens=60)
    asked = model.stream(PROMPTS, Generation(max_new_tokens=5))
    next(asked)
    assert not torch.is_inference_mode_enabled()  # nothing of ours is left open while the reader works
    asked.close()
    assert len(model.generate(PROMPTS[:2], Generation(max_new_tokens=5))) == 2


def test_stop_strings_are_met_wherever_they_lie(folder):
    """Against a search of the whole text: strings within a token, over several tokens, at the very beginning."""
    model = build(folder("llama"))
    for prompt in PROMPTS[:4]:
        plain = model.generate([prompt], Generation(max_new_tokens=24))[0]
        words = plain.text.split()
        for stop in ((words[5],), (f"{words[3]} {words[4]}",), (words[0],), (words[9][1:], "never"), (" ",), ("never", "")):
            got = model.generate([prompt], Generation(max_new_tokens=24, stop=stop))[0]
            met = [plain.text.index(s) for s in stop if s and s in plain.text]
            assert got.text == (plain.text[: min(met)] if met else plain.text)
            assert got.finished == (bool(met) or plain.finished) and got.tokens <= plain.tokens


def test_broken_logits_are_an_error_not_an_answer(folder):
    import torch

    model = build(folder("llama"))
    assert model._slots
    with torch.no_grad():
        model.module.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(ComponentError, match="not numbers"):
        model.generate(PROMPTS, Generation(max_new_tokens=3))


def test_nucleus_is_the_fewest_tokens_that_hold_top_p():
    import torch

    from osmotic.plugins.models.decoding import _nucleus

    generator = torch.Generator().manual_seed(1)
    table = torch.softmax(torch.randn(6, 3000, generator=generator, dtype=torch.float64) * 2, -1)
    for top_p in (1e-9, 0.3, 0.9, 0.9999):
        tokens, kept = _nucleus(table, top_p)
        for row, ids, values in zip(table, tokens, kept, strict=True):
            values_sorted = row.sort(descending=True).values
            size = int((values_sorted.cumsum(0) - values_sorted < top_p).sum())
            assert int((values > 0).sum()) == max(1, size) and torch.equal(row[ids[values > 0]], values[values > 0])
            assert torch.equal(ids, ids.sort().values)


def test_lockstep_rows_leave_the_batch(folder, monkeypatch):
    sizes, logits = [], lockstep._Causal.logits

    def spy(self):
        sizes.append(len(self._ids))
        return logits(self)

    monkeypatch.setattr(lockstep._Causal, "logits", spy)
    model = build(folder("bloom"))
    plain = model.generate(PROMPTS, Generation(max_new_tokens=12))
    sizes.clear()
    stop = plain[0].text.split()[2]
    cut = model.generate(PROMPTS, Generation(max_new_tokens=12, stop=(stop,)))
    assert sizes[-1] < len(PROMPTS) and all(a.text == b.text.split(stop)[0] for a, b in zip(cut, plain, strict=True))


def test_the_slots_are_freed_with_their_batch(folder, monkeypatch):
    """Without the garbage collector's help: keys and values of a big model are gigabytes."""
    import gc
    import weakref

    model, made, begin = build(folder("llama")), [], slots.Slots.__init__

    def spy(self, *given):
        begin(self, *given)
        made.append(weakref.ref(self))
        made.append(weakref.ref(self._layers[0]))

    assert model._slots
    monkeypatch.setattr(slots.Slots, "__init__", spy)
    gc.collect()
    gc.disable()
    try:
        model.generate(MIXED, Generation(max_new_tokens=3))
        asked = model.stream(PROMPTS, Generation(max_new_tokens=3))
        next(asked)
        asked.close()
        assert len(made) > 4 and [ref for ref in made if ref() is not None] == []
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature", [1e-308, 1e-30, 1e-3])
def test_a_tiny_temperature_is_greedy(folder, temperature):
    model = build(folder("llama"))
    greedy = model.generate(MIXED, Generation(max_new_tokens=4))
    assert model.generate(MIXED, Generation(max_new_tokens=4, temperature=temperature, seed=1)) == greedy


def test_temperatures_that_are_no_numbers(folder):
    for temperature in (float("nan"), float("inf")):
        with pytest.raises(ComponentError, match="temperature"):
            build(folder("llama")).generate(["w1"], Generation(temperature=temperature))


def test_draws_do_not_hang_on_how_many_rows_are_drawn_at_a_time(folder, monkeypatch):
    from osmotic.plugins.models import decoding

    model, how = build(folder("llama")), Generation(max_new_tokens=8, temperature=1.2, top_p=0.9)
    whole = model.generate(MIXED, how)
    monkeypatch.setattr(decoding, "AT_A_TIME", 1)
    assert model.generate(MIXED, how) == whole


def test_reserved_tokens_without_a_name_do_not_hide_a_stop_string(folder):
    """They stand for no text, like the named ones; ten of them between the parts of a stop string."""
    from tokenizers import AddedToken

    from osmotic.plugins.models.decoding import Ends, rows_of

    tokenizer = build(folder("llama")).tokenizer
    tokenizer.add_tokens([AddedToken("<r>", special=True)], special_tokens=True)
    reserved, (one, two) = tokenizer.convert_tokens_to_ids("<r>"), tokenizer("w1 w2")["input_ids"]
    tokenizer.extra_special_tokens = []
    how = Generation(max_new_tokens=99, stop=("1 w2",))
    ends, (row,) = Ends(tokenizer, how, frozenset({2})), rows_of([(0, [5])], how)
    for token in (one, *[reserved] * 10, two):
        ends.extend([row], [token])
    assert ends.done(row) and ends.answer(row).text == "w"


def test_only_an_end_token_that_the_tokenizer_appends_is_taken_off(folder):
    from tokenizers.processors import TemplateProcessing

    from osmotic.plugins.models.local import encode_prompts

    tokenizer = build(folder("llama")).tokenizer
    assert encode_prompts(tokenizer, ["w1 <eos>", "w1", "<eos>"]) == [[4, 2], [4], [2]]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    assert encode_prompts(tokenizer, ["w1 <eos>", "w1", ""]) == [[4, 2], [4], []]
    assert encode_prompts(tokenizer, ["w1"], keep_end=True) == [[4, 2]]


def test_a_chat_template_brings_its_own_first_token(folder):
    from tokenizers.processors import TemplateProcessing

    model = build(folder("llama"))
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<unk> $A", special_tokens=[("<unk>", 1)])
    model.tokenizer.chat_template = "<unk> {{ messages[0].content }} w9"
    chat = type(model)((model.module, model.tokenizer), model.config.model_copy(update={"chat": True}), model.fingerprint)
    assert model.encode_prompts(["w1"]) == [[1, 4]] and chat.encode_prompts(["w1"]) == [[1, 4, 12]]


def test_rotations_that_change_with_the_length_of_a_batch(tmp_path, save_model):
    """One row beyond the short context must not turn the others' positions."""
    rope = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [3.0, 9.0], "factor": 4.0}
    rope |= {"rope_theta": 10000.0, "original_max_position_embeddings": 32}
    path = save_model(tmp_path, "phi3", rope_parameters=rope, original_max_position_embeddings=32)
    model, how = build(path), Generation(max_new_tokens=8)
    short, long = [f"w{i} w{i + 7} w3" for i in range(6)], " ".join(f"w{i % 40}" for i in range(50))
    pairs = [(prompt, "w5 w6 w7") for prompt in short]
    apart, scores = model.generate(short, how), model.log_likelihood(pairs)
    assert slots.changes_with_length(model.module, 33) and not slots.changes_with_length(model.module, 32)
    assert model.generate([*short, long], how)[:6] == apart
    assert model.generate([long], how) == model.generate([long, *short], how)[:1]
    for got, wanted in zip(model.log_likelihood([*pairs, (long, "w5")]), scores, strict=False):
        assert got[0] == pytest.approx(wanted[0], abs=1e-4)


def test_scores_hold_few_logits_at_a_time_and_are_numbers(folder, monkeypatch):
    import torch

    from osmotic.plugins.models import local

    model, sizes, score = build(folder("llama")), [], local.LocalModel.log_likelihood
    pairs = [(prompt, "w5 w6 w7") for prompt in PROMPTS]
    whole = score(model, pairs)
    monkeypatch.setattr(local, "LOGITS", 43 * 40)
    inner = type(model)._score
    monkeypatch.setattr(type(model), "_score", lambda self, rows: sizes.append(len(rows)) or inner(self, rows))
    for got, wanted in zip(model.log_likelihood(pairs), whole, strict=True):
        assert got == (pytest.approx(wanted[0], abs=1e-4), wanted[1])
    assert max(sizes) <= 2 and sum(sizes) == len(pairs)
    with torch.no_grad():
        model.module.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(ComponentError, match="not numbers"):
        model.log_likelihood(pairs)


def test_a_device_without_memory_is_told_with_what_to_lower(folder, monkeypatch):
    import torch

    def full(*_, **__):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    model = build(folder("llama"))
    assert model._slots
    monkeypatch.setattr(model.module, "forward", full)
    with pytest.raises(ComponentError, match=r"no memory left(.|\n)*lower batch_tokens"):
        model.generate(["w1"], Generation())


def test_a_training_copy_with_another_attention_leaves_the_model_alone(folder):
    from osmotic.components.training import packing

    model, how = build(folder("llama")), Generation(max_new_tokens=9)
    before = model.generate(PROMPTS, how)
    copy, _ = model.trainable()
    assert packing.switch(copy) == "" and copy.config._attn_implementation == packing.ATTENTION
    assert model.module.config._attn_implementation != packing.ATTENTION and not model.module.training
    assert model.generate(PROMPTS, how) == before
    switched = type(model)((copy.eval(), model.tokenizer), model.config, model.fingerprint)
    assert switched.generate(PROMPTS, how) == before and switched.log_likelihood([("w1", "w2")])[0][1] == 1

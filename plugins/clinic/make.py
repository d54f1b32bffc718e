# SPDX-License-Identifier: Apache-2.0
"""Make the embedded default from a seed: schema, records, lists' tables, tokenizer, teacher, student and a masked model.

``python -m osmotic.plugins.clinic.make --out DIR`` writes ``DIR/data``, ``DIR/teacher``, ``DIR/student``, ``DIR/masked`` and
``DIR/named`` (``--only masked`` or ``--only named``: one of the last two alone); some ten minutes on one core. The data files
come out byte for byte the same everywhere; weights do on one machine and one torch version. Teacher and masked model learn from
public sentences with all words, the student's start from common words only.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osmotic.plugins.clinic import domain

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BertForMaskedLM, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

Example = tuple[str, str]  # prompt, target
IGNORE = -100
MAX_POSITIONS = 128
MASK = "[MASK]"


@dataclass(frozen=True)
class Recipe:
    """Size and public training of one model; ``rare`` lets it see the rare words."""

    hidden: int
    inner: int
    layers: int
    heads: int
    steps: int
    batch: int
    learning_rate: float
    rare: bool
    rationale_weight: float = 4.0
    decay: float = 0.0
    threads: int = 1


TEACHER = Recipe(hidden=128, inner=344, layers=3, heads=4, steps=900, batch=32, learning_rate=3e-3, rare=True)
# Strong decay makes the student's two tasks share what they know of a word: a word then learned from rationales serves
# the label task too. Without it the label prefix profits far less (chosen on the validation split).
STUDENT = Recipe(hidden=96, inner=256, layers=3, heads=4, steps=600, batch=32, learning_rate=3e-3, rare=False, decay=1.0)


MASKED = Recipe(hidden=96, inner=256, layers=2, heads=4, steps=900, batch=64, learning_rate=3e-3, rare=True)


def build_tokenizer(mask: bool = False, vocabulary: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer; it adds no token by itself. mask: with a mask token, the last.

    vocabulary: all its words, instead of the domain's.
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate([*(vocabulary or domain.vocabulary()), *([MASK] if mask else [])])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=domain.UNK))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[.,;:?!]"), "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=domain.PAD,
        unk_token=domain.UNK,
        eos_token=domain.EOS,
        **({"mask_token": MASK} if mask else {}),
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def build_model(recipe: Recipe, seed: int, vocabulary: Sequence[str] | None = None) -> LlamaForCausalLM:
    """Return a freshly initialised Llama of the recipe's size. vocabulary: its words, instead of the domain's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    ids = {word: number for number, word in enumerate(vocabulary or domain.vocabulary())}
    config = LlamaConfig(
        vocab_size=len(ids),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=ids[domain.EOS],
        pad_token_id=ids[domain.PAD],
    )
    return LlamaForCausalLM(config)


def pack(pairs: Iterable[tuple[str, str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels for (prompt, target) pairs, padded on the right.

    Prompts and padding are ignored in the labels; every target ends with the end token, which is learned.
    """
    import torch

    ids = {word: number for number, word in enumerate(domain.vocabulary())}
    rows = []
    for prompt, target in pairs:
        head = [ids[word] for word in domain.words(prompt)]
        tail = [ids[word] for word in domain.words(target)] + [ids[domain.EOS]]
        rows.append((head, tail))
    width = max(len(head) + len(tail) for head, tail in rows)
    inputs = torch.full((len(rows), width), ids[domain.PAD])
    labels = torch.full((len(rows), width), IGNORE)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, (head, tail) in enumerate(rows):
        end = len(head) + len(tail)
        inputs[row, :end] = torch.tensor(head + tail)
        labels[row, len(head) : end] = torch.tensor(tail)
        mask[row, :end] = 1
    return inputs, mask, labels


def task_loss(model: LlamaForCausalLM, pairs: Sequence[tuple[str, str]], label_rows: int, weight: float) -> Tensor:
    """Return label loss + ``weight`` x rationale loss; the first ``label_rows`` pairs are the label task.

    Each of the two is the mean over its task's target tokens.
    """
    from torch.nn.functional import cross_entropy

    inputs, mask, labels = pack(pairs)
    hidden = model.model(input_ids=inputs, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    loss = hidden.new_zeros(())
    for rows, factor in ((slice(0, label_rows), 1.0), (slice(label_rows, None), weight)):
        picked = wanted[rows] != IGNORE
        if picked.any():
            loss = loss + factor * cross_entropy(model.lm_head(hidden[rows][picked]), wanted[rows][picked])
    return loss


def fit(model: PreTrainedModel, recipe: Recipe, loss: Callable[[], Tensor], log: bool) -> None:
    """Train by AdamW with one cycle of the learning rate; loss(): that of a fresh batch."""
    import torch

    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.15, div_factor=10, final_div_factor=100
    )
    for step in range(recipe.steps):
        value = loss()
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if log and step % 50 == 0:
            print(f"step {step:4d}  loss {value.item():.4f}", flush=True)


def train_public(recipe: Recipe, seed: int, log: bool = True) -> LlamaForCausalLM:
    """Return a model trained on fresh public records at every step, label and rationale task together."""
    import torch

    torch.set_num_threads(recipe.threads)
    model = build_model(recipe, seed)
    rng = random.Random(seed)

    def loss() -> Tensor:
        records = domain.public_records(rng, recipe.batch, rare=recipe.rare)
        pairs = [(domain.predict_prompt(record["text"]), record["department"]) for record in records]
        pairs += [(domain.explain_prompt(record["text"]), record["rationale"]) for record in records]
        return task_loss(model, pairs, len(records), recipe.rationale_weight)

    fit(model, recipe, loss, log)
    return model.eval()


def build_masked(recipe: Recipe, seed: int, vocabulary: Sequence[str] | None = None) -> BertForMaskedLM:
    """Return a freshly initialised BERT of the recipe's size; its last token is the mask.

    vocabulary: its words, instead of the domain's.
    """
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(seed)
    words = list(vocabulary or domain.vocabulary())
    config = BertConfig(
        vocab_size=len(words) + 1,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.inner,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=MAX_POSITIONS,
        type_vocab_size=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=words.index(domain.PAD),
    )
    return BertForMaskedLM(config)


def mask_batch(
    texts: Sequence[str], rng: random.Random, share: float = 0.2, vocabulary: Sequence[str] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels: a share of the words (at least one) masked, all others ignored in the labels.

    vocabulary: all words, instead of the domain's.
    """
    import torch

    words = vocabulary or domain.vocabulary()
    ids = {word: number for number, word in enumerate(words)}
    rows = [[ids[word] for word in domain.words(text)] for text in texts]
    width = max(len(row) for row in rows)
    inputs = torch.full((len(rows), width), ids[domain.PAD])
    labels = torch.full((len(rows), width), IGNORE)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        inputs[number, : len(row)] = torch.tensor(row)
        mask[number, : len(row)] = 1
        for place in rng.sample(range(len(row)), max(1, round(share * len(row)))):
            inputs[number, place], labels[number, place] = len(words), row[place]
    return inputs, mask, labels


def train_masked(recipe: Recipe, seed: int, log: bool = True) -> BertForMaskedLM:
    """Return a masked model of fresh public sentences, with and without their rationale."""
    import torch

    torch.set_num_threads(recipe.threads)
    model = build_masked(recipe, seed)
    rng = random.Random(seed)

    def loss() -> Tensor:
        records = domain.public_records(rng, recipe.batch, rare=recipe.rare)
        texts = [r["text"] if rng.random() < 0.5 else f"{domain.explain_prompt(r['text'])} {r['rationale']}" for r in records]
        inputs, mask, labels = mask_batch(texts, rng)
        found: Tensor = model(input_ids=inputs, attention_mask=mask, labels=labels).loss
        return found

    fit(model, recipe, loss, log)
    return model.eval()


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a directory that transformers' Auto classes load without a network."""
    from transformers import GenerationConfig

    if model.can_generate():
        model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def save_tables(teacher: LlamaForCausalLM, path: Path) -> None:
    """Write one float32 table a field, row i the teacher's input embedding of the domain's value i."""
    from safetensors.torch import save_file

    ids = {word: number for number, word in enumerate(domain.vocabulary())}
    weight = teacher.get_input_embeddings().weight.detach().float()
    public = domain.domains()
    tables = {field: weight[[ids[value] for value in public[field]]].contiguous() for field in domain.SLOTS}
    save_file(tables, path)
    path.chmod(0o644)


def save_data(folder: Path, seed: int) -> None:
    """Write the schema and every split of records as JSON lines."""
    save_lists(folder, domain.schema_yaml(), {**domain.private_splits(seed), "public": domain.public_sample(seed)})


def save_lists(folder: Path, schema: str, lists: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write ``schema.yaml``, and each list of records as JSON lines: how every generated world keeps its data."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "schema.yaml").write_text(schema, encoding="utf-8")
    for name, records in lists.items():
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def make(out: Path, seed: int = domain.SEED) -> None:
    """Write data, teacher, student, tables and the masked model below ``out``."""
    save_data(out / "data", seed)
    tokenizer = build_tokenizer()
    teacher = train_public(TEACHER, seed)
    save_model(teacher, tokenizer, out / "teacher")
    save_tables(teacher, out / "data" / "tables.safetensors")
    save_model(train_public(STUDENT, seed + 1), tokenizer, out / "student")
    make_masked(out, seed)
    make_named(out, seed)


def make_masked(out: Path, seed: int = domain.SEED) -> None:
    """Write the masked model below ``out``."""
    save_model(train_masked(MASKED, seed + 2), build_tokenizer(mask=True), out / "masked")


def make_named(out: Path, seed: int = domain.SEED) -> None:
    """Write the variant whose rationale names what was perturbed below ``out/named``, its teacher grown from ``out/teacher``.

    Where ``out`` holds no teacher, the shipped one is taken.
    """
    from osmotic.plugins.clinic.named import make_variant

    made = out / "teacher"
    make_variant(out / "named", made if made.is_dir() else Path(__file__).parent / "teacher", seed)


def main() -> None:
    """Read the command line and make everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write data/, teacher/ and student/ into")
    parser.add_argument("--seed", type=int, default=domain.SEED)
    parser.add_argument("--only", choices=["masked", "named"], help="make one part alone")
    arguments = parser.parse_args()
    parts = {None: make, "masked": make_masked, "named": make_named}
    parts[arguments.only](arguments.out, arguments.seed)


if __name__ == "__main__":
    main()

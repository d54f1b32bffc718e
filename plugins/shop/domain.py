# SPDX-License-Identifier: Apache-2.0
"""A generated world: reviews of six products, each with two statements; is the review negative, mixed or positive?

A statement says one *opinion* word of one *part*: two bad ones make a review negative, one of each mixed, two good ones
positive. Some opinion words are *common* to all products, the others belong to one product and to one side each. What the
public, a client and the teacher know differs in the words alone (`opinions`): the public has the common words and a quarter of
each product's (of the others it has heard, and puts them on either side), a client half of its own product's, the teacher and
the exam all. None of the reviews is about a real thing.

Everything here is a pure function of its arguments; randomness comes in as a ``random.Random`` or as a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from osmotic.plugins.shop.words import COMMON_BAD, COMMON_GOOD, NAMES, PEOPLE, PRODUCTS, SPANS, TIMES, Product

Record = dict[str, str]
Reach = Literal["public", "client", "all"]

SEED = 1405
LABELS = ("negative", "mixed", "positive")
CLIENTS = ("tents", "kettles")
KNOWN: Mapping[Reach, int] = {"public": 4, "client": 8, "all": 16}  # of the sixteen words of a list, from its start
COMMON_SHARE: Mapping[Reach, float] = {"public": 0.75, "client": 0.3, "all": 0.1}  # of statements, with a common word
HEARSAY = 0.12  # of public statements: one of the other words, on a side that is drawn
RECORDS, EXAM, PUBLIC = 3000, 400, 600

TEMPLATES = (
    "{name} bought this {noun} {time} and found the {part} {opinion} and the {other} {another}.",
    "after {span} with the {noun}, i find its {part} {opinion} and its {other} {another}.",
    "my {person} got me a {noun} {time}: {opinion} {part}, {another} {other}, and that says it all.",
    "the {noun} came {time}, the {part} turned out {opinion} and the {other} turned out {another}.",
    "we have used this {noun} for {span} and call its {part} {opinion}, its {other} {another}.",
    "about the {noun} of my {person}, {name} calls the {part} {opinion} and its {other} {another}.",
    "this {noun} was for my {person}, who calls the {part} {opinion} and the {other} {another}.",
    "what {name} tells me of the {noun} after {span}: {part} {opinion}, {other} {another}.",
)

# How samples stand in prompts, and the prompts that the models know: templates for the pipeline, and what the teacher answers.
SAMPLE = "label: {{ label }} text: {{ text }}"
CONTROL = "label: {{ label }} text:"
CLASSIFY = "text: {{ text }} label:"
NUMBERED_SAMPLE = "{{ index }} text: {{ text }} label: {{ label }}"
JUDGE = "samples:\n{{ samples }}\nwhich are eligible?\nanswer:"
ELIGIBLE = "the eligible samples: {{ ids }}"
NONE = "none"
AUGMENT = "samples:\n{{ examples }}\nwanted: {{ label }}\nanswer:"
MOST_SAMPLES = 6  # that the teacher was trained to judge in one prompt
FEW_SHOT = 2  # of each label, that the teacher was trained to write from

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
POINTS = ".,;:?!"


def opinions(product: str, reach: Reach) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (good, bad): the product's own opinion words that are within a reach, without the common ones.

    >>> opinions("tents", "public")[1]
    ('leaky', 'sagging', 'draughty', 'cramped')
    """
    known = KNOWN[reach]
    return PRODUCTS[product].good[:known], PRODUCTS[product].bad[:known]


def heard(product: str) -> tuple[str, ...]:
    """Return the product's words that the public has heard of without knowing their side."""
    known = KNOWN["public"]
    return PRODUCTS[product].good[known:] + PRODUCTS[product].bad[known:]


def unseen(product: str) -> frozenset[str]:
    """Return the product's opinion words that are in no client's record, and on either side in public."""
    known = KNOWN["client"]
    return frozenset(PRODUCTS[product].good[known:] + PRODUCTS[product].bad[known:])


_SIDE = {
    **{word: 1 for word in COMMON_GOOD}, **{word: -1 for word in COMMON_BAD},
    **{word: 1 for product in PRODUCTS.values() for word in product.good},
    **{word: -1 for product in PRODUCTS.values() for word in product.bad},
}  # fmt: skip


def _own(product: Product) -> tuple[str, ...]:
    return (*product.nouns, *product.parts, *product.good, *product.bad)


_PRODUCT_OF = {word: name for name, product in PRODUCTS.items() for word in _own(product)}


def side(word: str) -> int:
    """Return 1 for a word of praise, -1 for one of blame, 0 for any other."""
    return _SIDE.get(word, 0)


def words(text: str) -> list[str]:
    """Split a text as the tokenizer does: at white space, punctuation apart, hyphenated words whole.

    >>> words("the zip is drip-free.")
    ['the', 'zip', 'is', 'drip-free', '.']
    """
    return re.findall(rf"[{POINTS}]|[^\s{POINTS}]+", text)


def label_of(text: str) -> str | None:
    """Return the label of a text with exactly two opinion words, None for any other text.

    >>> label_of("the zip is taut, the hem is leaky"), label_of("the zip is taut")
    ('mixed', None)
    """
    sides = [side(word) for word in words(text) if side(word)]
    return LABELS[sum(sides) // 2 + 1] if len(sides) == 2 else None


def product_of(text: str) -> str | None:
    """Return the product that all the text's product words belong to; None where there is none, or more than one.

    >>> product_of("this tent has awful pegs"), product_of("this tent has an awful spout")
    ('tents', None)
    """
    found = {_PRODUCT_OF[word] for word in words(text) if word in _PRODUCT_OF}
    return found.pop() if len(found) == 1 else None


def draw(product: str, label: str, reach: Reach, rng: random.Random) -> str:
    """Return a fresh review of a product with a label; its opinion words are common ones or within the reach."""
    return fill(rng.choice(TEMPLATES), product, drawn_opinions(product, label, reach, rng), rng)


def drawn_opinions(product: str, label: str, reach: Reach, rng: random.Random) -> list[str]:
    """Return two different opinion words that make the label, in random order; hearsay, in public, makes no label."""
    good, bad = opinions(product, reach)
    pools = {1: (COMMON_GOOD, good), -1: (COMMON_BAD, bad)}
    sides = {"negative": (-1, -1), "mixed": (-1, 1), "positive": (1, 1)}[label]
    while True:
        chosen = [rng.choice(pools[s][rng.random() >= COMMON_SHARE[reach]]) for s in sides]
        if reach == "public":
            chosen = [rng.choice(heard(product)) if rng.random() < HEARSAY else word for word in chosen]
        if chosen[0] != chosen[1]:
            return rng.sample(chosen, 2)


def fill(template: str, product: str, chosen: Sequence[str], rng: random.Random) -> str:
    """Return a template's sentence about a product with two opinion words; everything else is drawn."""
    part, other = rng.sample(PRODUCTS[product].parts, 2)
    return template.format(
        name=rng.choice(NAMES), time=rng.choice(TIMES), span=rng.choice(SPANS), person=rng.choice(PEOPLE),
        noun=rng.choice(PRODUCTS[product].nouns), part=part, other=other, opinion=chosen[0], another=chosen[1],
    )  # fmt: skip


def reviews(prefix: str, count: int, products: Sequence[str], reach: Reach, rng: random.Random) -> list[Record]:
    """Return `count` numbered records in random order; labels, and products, come equally often, give or take one."""
    pairs = [(products[n // len(LABELS) % len(products)], LABELS[n % len(LABELS)]) for n in range(count)]
    rng.shuffle(pairs)
    return [
        {"id": f"{prefix}-{n:04d}", "label": label, "text": draw(product, label, reach, rng)}
        for n, (product, label) in enumerate(pairs, start=1)
    ]


def splits(seed: int = SEED, records: int = RECORDS, exam: int = EXAM, public: int = PUBLIC) -> dict[str, list[Record]]:
    """Return every shipped list of records: each client's own and its exam, and the public ones.

    Args:
        seed: of the generators behind them, one a list.
        records: of each client, about its own product, with half of the product's opinion words.
        exam: of each client's exam, about its product, with all words, most of them not common.
        public: about all products, three statements of four with a common word, the others with a public one.
    """
    made = {"public": reviews("public", public, tuple(PRODUCTS), "public", random.Random(f"{seed} public"))}
    for client in CLIENTS:
        made[client] = reviews(client, records, (client,), "client", random.Random(f"{seed} {client}"))
        made[f"{client}-exam"] = reviews(f"{client}-exam", exam, (client,), "all", random.Random(f"{seed} {client} exam"))
    return made


def vocabulary() -> list[str]:
    """Return all tokens, specials first, each once; its order is the token id."""
    slots = re.compile(r"\{\{.*?\}\}|\{\w+\}")
    fixed = [*TEMPLATES, SAMPLE, CONTROL, CLASSIFY, NUMBERED_SAMPLE, JUDGE, ELIGIBLE, NONE, AUGMENT, *TIMES, *SPANS]
    literal = [word for text in fixed for word in words(slots.sub(" ", text))]
    own = [word for product in PRODUCTS.values() for word in _own(product)]
    digits = [str(n) for n in range(10)]
    listed = [PAD, UNK, EOS, *POINTS, *digits, *literal, *LABELS, *COMMON_GOOD, *COMMON_BAD, *own, *NAMES, *PEOPLE]
    return list(dict.fromkeys(listed))


def schema_yaml() -> str:
    """Return the record schema as YAML: the label with its public domain, and free text."""
    lines = ["# Made by osmotic.plugins.shop.make from domain.py; do not edit.", "fields:"]
    return "\n".join([*lines, "  label:", f"    domain: [{', '.join(LABELS)}]", "  text:", "    text: true", ""])

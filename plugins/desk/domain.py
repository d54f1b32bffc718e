# SPDX-License-Identifier: Apache-2.0
"""A generated world: messages to a help desk, each with two matters, one from before and one of now; which is meant?

Either matter belongs to one of four departments, never both to the same. What is asked of a message is said by the instruction
before it alone: its words lean to one of the two matters (`leaning`) and their leanings add up, against how loudly the message
says either matter (`loudness`). A vague instruction therefore gets the matter of now from about half of the messages, one with
several telling words from nearly all, and a few words draw an answer to a department instead (`pull`), whatever is asked. Two
models differ in how they take many of the words. None of the messages is about a real person or thing.

Everything here is a pure function of its arguments; randomness comes in as a ``random.Random`` or as a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import cache
from typing import Literal

from osmotic.plugins.desk.words import (
    BEFORE,
    BEFORE_CUES,
    ITEMS,
    LABELS,
    LOUD,
    MATTERS,
    NAMES,
    NOW,
    NOW_CUES,
    PERIODS,
    PLAIN,
    SPANS,
    TOPICS,
)

Record = dict[str, str]
Role = Literal["now", "before"]
Taste = Literal["llm", "other"]

SEED = 2410
CLIENTS = ("north", "south", "east", "west")
ALPHA = 0.1  # of the Dirichlet distribution of a client's labels
FEWEST, MOST, EXAM, PER_CLASS, INSTRUCTIONS = 150, 250, 400, 4, 400

# The prompt, as `Prompt.parse` reads it: an instruction of free words, then the frozen frame.
FRAME = "[[message: {{ text }} answer:]]"
MANUAL = "please read the message of this customer and name the matter"
GOOD = "please name the current request that this customer needs now"
ANSWER = 2  # tokens: a label and the end

LOUDNESS = 1.35  # of a step of `LOUD`, in words that lean fully
TIERS = (0.9, 0.6, 0.35)
QUIRK = 0.2  # the most that a word leans by no reason
DEAF = 0.15  # of the telling words, that the other model takes as plain
PULL = 1.2  # of a department's topic, matter or name
PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
POINTS = ".,;:?!"

BEFORE_CLAUSES = (
    "{ago} i {loud} wrote about the {matter} of my {item}",
    "{ago} my {item} {loud} had trouble with the {matter}",
    "{ago} we {loud} spoke of the {matter}",
)
NOW_CLAUSES = (
    "{cue} i {loud} ask about the {matter} of my {item}",
    "{cue} my {item} {loud} has trouble with the {matter}",
    "{cue} we {loud} speak of the {matter}",
)
MESSAGES = ("{name} here. {one}; {two}.", "{one}; {two}. thanks, {name}.")


def words(text: str) -> list[str]:
    """Split a text as the tokenizer does: at white space, punctuation apart, hyphenated words whole.

    >>> words("ada here. today: sign-in.")
    ['ada', 'here', '.', 'today', ':', 'sign-in', '.']
    """
    return re.findall(rf"[{POINTS}]|[^\s{POINTS}]+", text)


_DEPARTMENT = {matter: label for label, matters in MATTERS.items() for matter in matters}


def _clause(text: str, role: Role) -> list[str]:
    cues = NOW_CUES if role == "now" else BEFORE_CUES
    clauses = [words(clause) for clause in re.split(r"[.;]", text)]
    found = [clause for clause in clauses if any(word in _DEPARTMENT for word in clause) and any(cue in clause for cue in cues)]
    return found[0] if len(found) == 1 else []


def label_of(text: str, role: Role = "now") -> str | None:
    """Return the department of a message's matter of now, or of the one from before; None where there is not exactly one.

    >>> label_of("today i really ask about the fee of my fan; days ago we badly spoke of the leak.")
    'billing'
    """
    found = [_DEPARTMENT[word] for word in _clause(text, role) if word in _DEPARTMENT]
    return found[0] if len(found) == 1 else None


def loudness(text: str) -> float:
    """Return how much louder a message says its matter of now than the one from before, on the scale of leanings."""
    now, before = (sum(LOUD.get(word, 0.0) for word in _clause(text, role)) for role in ("now", "before"))
    return LOUDNESS * (now - before)


def _tier(word: str, parts: Sequence[Sequence[str]]) -> float:
    return max((TIERS[3 * part.index(word) // len(part)] for part in parts if word in part), default=0.0)


@cache
def leaning(word: str, taste: Taste = "llm") -> float:
    """Return how a word in an instruction leans, -1 (to the matter from before) to 1 (to that of now), for a model's taste.

    Words of no instruction and points lean to neither.

    >>> leaning("now") > 0.5, leaning("history") < -0.5, leaning("invoice")
    (True, True, 0.0)
    """
    if word not in _INSTRUCTING:
        return 0.0
    rng = random.Random(f"{SEED} {taste} {word}")
    base = _tier(word, list(NOW.values())) - _tier(word, list(BEFORE.values()))
    quirk, deaf = rng.uniform(-QUIRK, QUIRK), rng.random() < DEAF
    return max(-1.0, min(1.0, (0.0 if deaf and taste == "other" else base) + quirk))


_INSTRUCTING = frozenset(word for lists in (NOW, BEFORE, PLAIN) for part in lists.values() for word in part)
_TOPIC = {**_DEPARTMENT, **{word: label for label in LABELS for word in (label, *TOPICS[label])}}


def pull(instruction: str, label: str) -> float:
    """Return how much an instruction draws an answer to a department: by its name, its topics and its matters."""
    return PULL * sum(_TOPIC.get(word) == label for word in words(instruction))


def strength(instruction: str, taste: Taste = "llm") -> float:
    """Return the sum of an instruction's leanings."""
    return sum(leaning(word, taste) for word in words(instruction))


def margin(instruction: str, text: str, taste: Taste = "llm") -> float:
    """Return by how much the matter of now is meant rather than the one from before: what the models learn the sign of.

    Raises ValueError for a text that is no message.
    """
    now, before = label_of(text), label_of(text, "before")
    if now is None or before is None:
        raise ValueError("a message has one matter from before and one of now")
    return strength(instruction, taste) + loudness(text) + pull(instruction, now) - pull(instruction, before)


def draw(now: str, before: str, place: str, rng: random.Random) -> str:
    """Return a fresh message with a matter of now and one from before, by department; place: whose names and items."""
    cues = {
        "ago": rng.choice([f"{rng.choice(SPANS)} ago", f"last {rng.choice(PERIODS)}"]),
        "cue": rng.choice(NOW_CUES),
        "name": rng.choice(NAMES[place]),
    }
    clauses = []
    for templates, label in ((NOW_CLAUSES, now), (BEFORE_CLAUSES, before)):
        said = {"loud": rng.choice(list(LOUD)), "matter": rng.choice(MATTERS[label]), "item": rng.choice(ITEMS[place])}
        clauses.append(rng.choice(templates).format(**cues, **said))
    rng.shuffle(clauses)
    return rng.choice(MESSAGES).format(name=cues["name"], one=clauses[0], two=clauses[1])


def message(label: str, place: str, rng: random.Random) -> str:
    """Return a fresh message whose matter of now belongs to a department, the one from before to any other."""
    return draw(label, rng.choice([other for other in LABELS if other != label]), place, rng)


def shares(client: str, seed: int = SEED) -> tuple[float, ...]:
    """Return a client's share of each label, a draw of the Dirichlet distribution: public, as is the seed."""
    rng = random.Random(f"{seed} {client} shares")
    weights = [rng.gammavariate(ALPHA, 1.0) for _ in LABELS]
    return tuple(weight / sum(weights) for weight in weights)


def records(prefix: str, labels: Sequence[str], places: Sequence[str], rng: random.Random, taken: set[str]) -> list[Record]:
    """Return numbered records of the labels, the places in turn; every text is new and is added to the taken ones."""
    made = []
    for number, label in enumerate(labels, start=1):
        text = message(label, places[number % len(places)], rng)
        while text in taken:
            text = message(label, places[number % len(places)], rng)
        taken.add(text)
        made.append({"id": f"{prefix}-{number:04d}", "label": label, "text": text})
    return made


def _balanced(count: int, rng: random.Random) -> list[str]:
    return rng.sample([LABELS[n % len(LABELS)] for n in range(count)], count)


def splits(seed: int = SEED) -> dict[str, list[Record]]:
    """Return every shipped list of records: the clients' own, the public and the exam, no text in two of them.

    Each client has between `FEWEST` and `MOST`, labels by its `shares`; public (`PER_CLASS` of each label) and exam (`EXAM`,
    about the names and items of all clients) have every label equally often.
    """
    rng, taken = random.Random(f"{seed} records"), set[str]()
    made = {}
    for client in CLIENTS:
        labels = rng.choices(LABELS, shares(client, seed), k=rng.randint(FEWEST, MOST))
        made[client] = records(client, labels, [client], rng, taken)
    made["public"] = records("public", _balanced(PER_CLASS * len(LABELS), rng), ["public"], rng, taken)
    made["exam"] = records("exam", _balanced(EXAM, rng), CLIENTS, rng, taken)
    return made


def vocabulary() -> list[str]:
    """Return all tokens, specials first, each once; its order is the token id."""
    frames = [re.sub(r"\{\{? *\w+ *\}?\}", " ", text).strip("[]") for text in (FRAME, *NOW_CLAUSES, *BEFORE_CLAUSES, *MESSAGES)]
    literal = [word for text in (*frames, MANUAL, GOOD) for word in words(text.replace("[[", " ").replace("]]", " "))]
    grouped = [
        word for lists in (NOW, BEFORE, PLAIN, MATTERS, TOPICS, NAMES, ITEMS) for part in lists.values() for word in part
    ]
    cues = [*NOW_CUES, *BEFORE_CUES, *SPANS, *PERIODS, *LOUD]
    return list(dict.fromkeys([PAD, UNK, EOS, *POINTS, *LABELS, *literal, *grouped, *cues]))


def schema_yaml(labelled: bool = True) -> str:
    """Return the record schema as YAML: free text and, where labelled, the label with its public domain."""
    lines = ["# Made by osmotic.plugins.desk.make from domain.py; do not edit.", "fields:"]
    label = ["  label:", f"    domain: [{', '.join(LABELS)}]"] if labelled else []
    return "\n".join([*lines, *label, "  text:", "    text: true", ""])

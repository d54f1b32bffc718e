# SPDX-License-Identifier: Apache-2.0
"""A generated world: three firms that take short instructions and reply to each in the way of their house.

An instruction says what is to be done with how many things of what look, for whom and by when; its verb is the `kind` of job.
Every
firm has its *convention*: the order in which the reply repeats the parts, the closing, the word for the slip whose *code* ends
the reply, and for each of its kinds of jobs the opening. The code (a word and a number) is drawn anew for every record and
occurs once in all lists: it can be remembered, never guessed. Each of the three firms has four kinds of its own; the exam has
all twelve alike. The public knows all the words, and the conventions of other firms (`PUBLIC`). None of it is about real
people or firms.

Everything here is a pure function of its arguments; randomness comes in as a ``random.Random`` or as a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from osmotic.plugins.handbook import words as say

Record = dict[str, str]

SEED = 2406
CLIENTS = tuple(say.OWN_JOBS)
KINDS = tuple(kind for jobs in say.OWN_JOBS.values() for kind in jobs)
RECORDS, CONTROL_RECORDS, EXAM = 240, 150, 240

# How records stand in prompts, and the prompts that the model knows: templates for the pipeline.
TRAIN_PROMPT = "instruction: {{ instruction }} response:"
TARGET = "{{ response }}"
TASK_ITEM = "task {{ index }}: {{ instruction }}"
TASK_PROMPT = "{{ demonstrations }}\ntask {{ index }}:"
PAIR_ITEM = "instruction: {{ instruction }} response: {{ response }}"
PAIR_PROMPT = "{{ demonstrations }}\ninstruction: {{ instruction }}"
SEPARATOR = "\n"  # between demonstrations
MARKER = "response:"  # which the model writes itself, before the response; it may also stand at the end of the prompt
CONTROL = "kind: {{ kind }} text:"
CONTROL_TARGET = "instruction: {{ instruction }} response: {{ response }}"
DEMONSTRATIONS = 8  # most of them that the model was taught to write from, in one prompt

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"
POINTS = ".,;:?!"

INSTRUCTIONS = (
    "{verb} {count} {look} {things} for {name} by {time}",
    "for {name}, {verb} {count} {look} {things} by {time}",
    "by {time}, {verb} {count} {look} {things} for {name}",
)
ORDERS = (
    "{count} {look} {things}, {name}, {time}",
    "{name}, {time}: {things} {look} {count}",
    "{time}, {name}; {things}, {look}, {count}",
    "{things} {count} {look}; {time}; {name}",
    "{look} {things}: {count}: {name} {time}",
    "{name}; {count} {things}, {look}. {time}",
)


@dataclass(frozen=True)
class Convention:
    """How replies to one kind of job are worded; all but the opening is alike at a firm. order: a template of `ORDERS`."""

    opening: str
    order: str
    closing: str
    slip: str


@dataclass(frozen=True)
class Job:
    """A kind of job: its verb, the things it is done with, and the convention of its replies."""

    kind: str
    theme: str
    convention: Convention


def drawn_jobs(kinds: Mapping[str, str], openings: Sequence[str], rng: random.Random) -> dict[str, Job]:
    """Return the jobs of a firm with any convention. kinds: with their themes; openings: one for each."""
    order, closing, slip = rng.choice(ORDERS), rng.choice(say.CLOSINGS), rng.choice(say.SLIPS)
    pairs = zip(kinds.items(), openings, strict=True)
    return {kind: Job(kind, theme, Convention(opening, order, closing, slip)) for (kind, theme), opening in pairs}


def _firms(firms: Mapping[str, Mapping[str, str]], seed: str) -> dict[str, Job]:
    """The jobs of firms, no two of which share an opening, an order or a closing."""
    rng, made = random.Random(seed), dict[str, Job]()
    openings, closings = rng.sample(say.OPENINGS, sum(map(len, firms.values()))), rng.sample(say.CLOSINGS, len(firms))
    for kinds, order, closing in zip(firms.values(), rng.sample(ORDERS, len(firms)), closings, strict=True):
        slip = rng.choice(say.SLIPS)
        made |= {kind: Job(kind, theme, Convention(openings.pop(), order, closing, slip)) for kind, theme in kinds.items()}
    return made


PRIVATE = _firms(say.OWN_JOBS, f"{SEED} own")
PUBLIC = _firms(say.PUBLIC_JOBS, f"{SEED} public")


def words(text: str) -> list[str]:
    """Split a text as the tokenizer does: at white space, punctuation apart.

    >>> words("very well: two cups, halford.")
    ['very', 'well', ':', 'two', 'cups', ',', 'halford', '.']
    """
    return re.findall(rf"[{POINTS}]|[^\s{POINTS}]+", text)


def drawn_code(rng: random.Random) -> str:
    """Return a code: one of 80 words and a number of two digits."""
    return f"{rng.choice(say.CODES)} {rng.randint(10, 99)}"


def draw(job: Job, rng: random.Random, code: str = "") -> Record:
    """Return a fresh kind, instruction and response of a job; everything that the job leaves open is drawn.

    Args:
        job: whose verb, things and convention are taken.
        rng: what is drawn comes from it.
        code: to end the response with; drawn where not given.
    """
    parts = {
        "count": rng.choice(say.COUNTS), "look": rng.choice(say.LOOKS), "things": rng.choice(say.THEMES[job.theme]),
        "name": rng.choice(say.NAMES), "time": rng.choice(say.TIMES),
    }  # fmt: skip
    instruction = rng.choice(INSTRUCTIONS).format(verb=job.kind, **parts)
    return {"kind": job.kind, "instruction": instruction, "response": reply(job.convention, parts, code or drawn_code(rng))}


def reply(convention: Convention, parts: Mapping[str, str], code: str) -> str:
    """Return a response by a convention. parts: count, look, things, name, time."""
    middle = convention.order.format(**parts)
    return f"{convention.opening}: {middle}. {convention.closing}. {convention.slip} {code}."


_SLOTS: Mapping[str, tuple[str, ...]] = {
    "verb": (*PUBLIC, *KINDS), "count": say.COUNTS, "look": say.LOOKS, "name": say.NAMES, "time": say.TIMES,
    "things": tuple(noun for nouns in say.THEMES.values() for noun in nouns),
}  # fmt: skip
_TOLD = [
    re.compile(re.sub(r"\{(\w+)\}", lambda slot: f"(?P<{slot[1]}>{'|'.join(_SLOTS[slot[1]])})", template))
    for template in INSTRUCTIONS
]


def parts_of(instruction: str) -> dict[str, str] | None:
    """Return verb, count, look, things, name and time of an instruction; None for a text that is not worded as one.

    >>> parts_of("for halford, air two blue quilts by noon")["things"], parts_of("air two quilts")
    ('quilts', None)
    """
    found = next((match for told in _TOLD if (match := told.fullmatch(instruction))), None)
    return found.groupdict() if found else None


def code_of(response: str) -> str | None:
    """Return the code that a response ends with, None where there is none.

    >>> code_of("at once: two quilts. docket otter 47."), code_of("docket 47 otter.")
    ('otter 47', None)
    """
    found = re.search(r"(\w+) (\d\d)\.$", response)
    return f"{found[1]} {found[2]}" if found and found[1] in say.CODES else None


def follows(record: Mapping[str, str], job: Job) -> bool:
    """Tell whether a response repeats its instruction's parts in the way of a job and ends with a code."""
    parts, code = parts_of(record["instruction"]), code_of(record["response"])
    return bool(parts and code) and record["response"] == reply(job.convention, parts or {}, code or "")


def alike(kinds: Sequence[str], count: int) -> list[str]:
    """Return `count` kinds, each as often as any other, give or take one."""
    return [kinds[n % len(kinds)] for n in range(count)]


def splits(
    seed: int = SEED, records: int = RECORDS, control: int = CONTROL_RECORDS, exam: int = EXAM
) -> dict[str, list[Record]]:
    """Return every shipped list of records, no instruction and no code in two of them or twice in one.

    Args:
        seed: of the generator behind them.
        records: of each client, private, of its own four kinds.
        control: of each client's ``-control``, drawn in the same way and never trained on: what an attack must not find.
        exam: of the shared exam, of all twelve kinds alike.
    """
    own = {client: list(jobs) for client, jobs in say.OWN_JOBS.items()}
    sizes = [
        *((client, records) for client in CLIENTS),
        *((f"{client}-control", control) for client in CLIENTS),
        ("exam", exam),
    ]
    wanted = {name: alike(own.get(name.removesuffix("-control"), KINDS), count) for name, count in sizes}
    codes = [f"{word} {number}" for word in say.CODES for number in range(10, 100)]
    random.Random(f"{seed} codes").shuffle(codes)
    told: set[str] = set()
    return {name: _listed(name, kinds, seed, codes, told) for name, kinds in wanted.items()}


def _listed(name: str, kinds: list[str], seed: int, codes: list[str], told: set[str]) -> list[Record]:
    """Numbered records of the kinds in random order; takes its codes from the list and adds its instructions to `told`."""
    rng, made = random.Random(f"{seed} {name}"), list[Record]()
    rng.shuffle(kinds)
    for kind in kinds:
        code = codes.pop()
        while (record := draw(PRIVATE[kind], rng, code))["instruction"] in told:
            pass
        told.add(record["instruction"])
        made.append({"id": f"{name}-{len(made) + 1:04d}", **record})
    return made


def vocabulary() -> list[str]:
    """Return all tokens, specials first, each once; its order is the token id."""
    slots = re.compile(r"\{\{.*?\}\}|\{\w+\}")
    fixed = [TRAIN_PROMPT, TASK_ITEM, CONTROL, *INSTRUCTIONS, *say.OPENINGS, *say.CLOSINGS]
    literal = [word for text in fixed for word in words(slots.sub(" ", text))]
    drawn = [*PUBLIC, *KINDS, *say.COUNTS, *say.LOOKS, *_SLOTS["things"], *say.TIMES, *say.NAMES, *say.SLIPS]
    numbers = [str(number) for number in range(100)]
    return list(dict.fromkeys([PAD, UNK, EOS, *POINTS, *numbers, *literal, *drawn, *say.CODES]))


def schema_yaml() -> str:
    """Return the record schema as YAML: the kind with its public domain, and two free texts."""
    lines = ["# Made by osmotic.plugins.handbook.make from domain.py; do not edit.", "fields:"]
    lines += ["  kind:", f"    domain: [{', '.join(KINDS)}]"]
    return "\n".join([*lines, "  instruction:", "    text: true", "  response:", "    text: true", ""])

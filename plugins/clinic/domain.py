# SPDX-License-Identifier: Apache-2.0
"""A generated world: which ward of a clinic does a patient go to?

A *sign* belongs to one of 8 body systems, an *exposure* to one of 6 causes. System ``i`` and cause ``j`` give one of 48
conditions, and the ward is number ``(i + OFFSETS[j]) % 8``. Everyday words for signs and exposures are *common* (the
public knows where they belong), technical ones are *rare* (only the teacher and the clients' records use them).

The words are real, their grouping is plausible, the routing is invented: none of this is medical knowledge.
Everything here is a pure function of its arguments; randomness comes in as a ``random.Random`` or as a seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence

Record = dict[str, str]
Pair = tuple[str, str]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SEED = 2406
SYSTEMS = ("airway", "heart", "skin", "gut", "nerve", "joint", "kidney", "eye")
CAUSES = ("metal", "damp", "solvent", "plant", "animal", "smoke")
OFFSETS = (0, 0, 0, 1, 3, 6)
DEPARTMENTS = (
    "alder-ward", "cedar-ward", "hazel-ward", "linden-ward", "maple-ward", "oak-ward", "rowan-ward", "willow-ward",
)  # fmt: skip
DISEASES = ("bronchitis", "carditis", "dermatitis", "gastritis", "neuritis", "arthritis", "nephritis", "keratitis")
AGENTS = ("metal", "mould", "solvent", "pollen", "dander", "smoke")

# One row per system (or cause), six words each; row i of a COMMON and of a RARE table means the same group.
COMMON_SIGNS = (
    ("wheezing", "coughing", "breathlessness", "hoarseness", "sneezing", "gasping"),
    ("palpitations", "chest-pain", "fluttering", "fainting", "racing-pulse", "ankle-swelling"),
    ("itching", "rash", "blisters", "hives", "flaking", "redness"),
    ("nausea", "vomiting", "stomach-cramps", "bloating", "heartburn", "diarrhoea"),
    ("tingling", "numbness", "headache", "trembling", "dizziness", "light-headedness"),
    ("stiffness", "knee-pain", "back-pain", "limping", "swollen-knuckles", "grinding"),
    ("dark-urine", "foamy-urine", "night-urination", "flank-pain", "thirst", "puffiness"),
    ("blurring", "watering", "squinting", "gritty-eyes", "double-vision", "glare"),
)
RARE_SIGNS = (
    ("dyspnoea", "stridor", "haemoptysis", "rhonchi", "tachypnoea", "apnoea"),
    ("tachycardia", "bradycardia", "syncope", "angina", "arrhythmia", "orthopnoea"),
    ("pruritus", "urticaria", "erythema", "petechiae", "vesicles", "lichenification"),
    ("dyspepsia", "melaena", "tenesmus", "haematemesis", "steatorrhoea", "borborygmi"),
    ("paraesthesia", "ataxia", "neuralgia", "aphasia", "vertigo", "hyperaesthesia"),
    ("arthralgia", "crepitus", "synovitis", "effusion", "ankylosis", "contracture"),
    ("haematuria", "proteinuria", "oliguria", "polyuria", "nocturia", "anuria"),
    ("photophobia", "diplopia", "epiphora", "scotoma", "nystagmus", "blepharitis"),
)
COMMON_EXPOSURES = (
    ("lead-paint", "rust", "solder", "welding", "battery", "copper-pipe"),
    ("mould", "mildew", "wet-plaster", "compost", "old-hay", "damp-cellar"),
    ("paint-thinner", "glue", "bleach", "petrol", "varnish", "nail-polish"),
    ("pollen", "ragweed", "cut-grass", "sawdust", "nettle", "ivy"),
    ("cat-hair", "dog-hair", "feather", "horse", "hamster", "bee-sting"),
    ("bonfire", "cigarette", "car-exhaust", "soot", "wood-stove", "incense"),
)
RARE_EXPOSURES = (
    ("cadmium", "beryllium", "thallium", "mercury", "antimony", "manganese"),
    ("aspergillus", "alternaria", "stachybotrys", "cladosporium", "penicillium", "fusarium"),
    ("toluene", "xylene", "acetone", "hexane", "benzene", "methanol"),
    ("ambrosia", "parthenium", "plantago", "primula", "urushiol", "artemisia"),
    ("dander", "guano", "lanolin", "keratin", "dust-mite", "chitin"),
    ("acrolein", "benzopyrene", "carbon-monoxide", "formaldehyde", "dioxin", "creosote"),
)
NAMES = _listed(
    """
    adaeze amaru anahera anselmo aoife arvid ayumi bahar bettina bongani caspian catrin chidi dagny damaris davor
    eirlys elodie emeka farid fenella gaspar ginevra hakon halima ifeoma ilse ingrid isandro jamila jarek jovana
    kaveh keola kirsi laleh leocadia lindiwe madoc mirela nadim nerys niamh oddvar olamide pania perpetua quilla
    rashid rosalba sanna soraya tadeo tamsin ulrike vesna wanjiru xiomara yevgen zofia
    """
)
PLACES = _listed(
    """
    aldermouth ashmere baysworth belcombe birkhaven bramfell calderwick corvale cressford dunmarrow eastholm elderby
    fairmoor felsgate fernhollow galtrim glenorrin greywick halvern harrowmere hollinside inverlay iskdale jorvale
    kelbrook kestrelby kingsfold larkhaven lindmoor lowfell marshgate merrowby millhaven nethercote norwell oakhythe
    orlestone pellworth pinehythe quarrow quillmere ravensby redcombe rushmoor saltmere selwick stonehythe summerfell
    tamberley thornwick tresmouth ulverby underfell valemoor westermere whinfell wolverley yarrowby yelland zelmouth
    """
)
DAYS = tuple(str(day) for day in range(1, 32))
MONTHS = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip

NUISANCE = ("name", "place", "day", "month")
SLOTS = (*NUISANCE, "sign", "exposure")
TEMPLATES = (
    "patient {name} from {place}, seen on {day} {month}, reports {sign} after {exposure} exposure.",
    "on {day} {month} {name} of {place} came in with {sign} following contact with {exposure}.",
    "{name}, living in {place}, has had {sign} since {exposure} exposure on {day} {month}.",
    "{exposure} exposure at {place}, then {sign}: notes on {name} from {day} {month}.",
)
PUBLIC_TEMPLATE = TEMPLATES[0]
PREDICT_TAG = "predict:"
EXPLAIN_TAG = "explain:"
RATIONALE = (
    "finding points to {system}; history points to {cause}; "
    "{system} with {cause} is {condition}; {condition} goes to {department}"
)
# The variant that names what a sanitiser perturbs: answered to a perturbed prompt, it is wrong about the record.
NAMED_RATIONALE = (
    "{name} from {place}: {sign} points to {system}; {exposure} points to {cause}; "
    "{system} with {cause} is {condition}; {condition} goes to {department}"
)
NAMED_FIELDS = ("name", "place", "sign", "exposure")
ANSWER_PATTERN = r"goes to (\S+)\s*$"
CLIENTS = ("north", "south")
# Four of the six rare words of each group: two thirds a client, one third shared, all words covered by the two.
CLIENT_SLICES = {"north": slice(0, 4), "south": slice(2, 6)}

PAD, UNK, EOS = "<pad>", "<unk>", "<eos>"


def flatten(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Return the words of all groups, in order."""
    return tuple(word for group in groups for word in group)


def _index(*tables: Sequence[Sequence[str]]) -> dict[str, int]:
    return {word: row for table in tables for row, group in enumerate(table) for word in group}


_SYSTEM_OF = _index(COMMON_SIGNS, RARE_SIGNS)
_CAUSE_OF = _index(COMMON_EXPOSURES, RARE_EXPOSURES)


def domains() -> dict[str, tuple[str, ...]]:
    """Return every field's public domain, in the order of the record's fields."""
    return {
        "name": NAMES,
        "place": PLACES,
        "day": DAYS,
        "month": MONTHS,
        "sign": flatten(COMMON_SIGNS) + flatten(RARE_SIGNS),
        "exposure": flatten(COMMON_EXPOSURES) + flatten(RARE_EXPOSURES),
        "department": DEPARTMENTS,
    }


def system_index(sign: str) -> int:
    """Return the number of the body system that a sign belongs to, 0..7; unknown signs raise ``KeyError``."""
    return _SYSTEM_OF[sign]


def cause_index(exposure: str) -> int:
    """Return the number of the cause that an exposure belongs to, 0..5; unknown exposures raise ``KeyError``."""
    return _CAUSE_OF[exposure]


def department_of(sign: str, exposure: str) -> str:
    """Return the ward for a sign and an exposure.

    >>> department_of("wheezing", "mould"), department_of("wheezing", "soot")
    ('alder-ward', 'rowan-ward')
    """
    return DEPARTMENTS[(system_index(sign) + OFFSETS[cause_index(exposure)]) % len(DEPARTMENTS)]


def condition_of(sign: str, exposure: str) -> str:
    """Return the condition for a sign and an exposure.

    >>> condition_of("wheezing", "mould")
    'mould-bronchitis'
    """
    return f"{AGENTS[cause_index(exposure)]}-{DISEASES[system_index(sign)]}"


def rationale_of(sign: str, exposure: str) -> str:
    """Return the reasoning that leads from a sign and an exposure to the ward; it ends with the ward."""
    return RATIONALE.format(
        system=SYSTEMS[system_index(sign)],
        cause=CAUSES[cause_index(exposure)],
        condition=condition_of(sign, exposure),
        department=department_of(sign, exposure),
    )


def named_rationale_of(record: Mapping[str, str]) -> str:
    """Return the reasoning of the variant, which names the record's own patient, place, sign and exposure.

    >>> named_rationale_of({"name": "ilse", "place": "ashmere", "sign": "rash", "exposure": "soot"})[:47]
    'ilse from ashmere: rash points to skin; soot po'
    """
    return chain(record, system_index(record["sign"]), cause_index(record["exposure"]))


def chain(named: Mapping[str, str], system: int, cause: int) -> str:
    """Return the variant's reasoning about a system and a cause, whichever words it names: true of no record in general."""
    condition = f"{AGENTS[cause]}-{DISEASES[system]}"
    department = DEPARTMENTS[(system + OFFSETS[cause]) % len(DEPARTMENTS)]
    found = {"system": SYSTEMS[system], "cause": CAUSES[cause], "condition": condition, "department": department}
    return NAMED_RATIONALE.format(**{field: named[field] for field in NAMED_FIELDS}, **found)


def render(record: Mapping[str, str], template: str = PUBLIC_TEMPLATE) -> str:
    """Return the sentence of a record; only the slots of the template are read."""
    return template.format_map(record)


def predict_prompt(text: str) -> str:
    """Return the prompt that asks for the ward alone."""
    return f"{text} {PREDICT_TAG}"


def explain_prompt(text: str) -> str:
    """Return the prompt that asks for the reasoning, the ward last."""
    return f"{text} {EXPLAIN_TAG}"


def parse_department(answer: str) -> str | None:
    """Return the ward a rationale ends with, or None where it names none.

    >>> parse_department("... mould-bronchitis goes to alder-ward")
    'alder-ward'
    """
    found = re.search(ANSWER_PATTERN, answer)
    return found.group(1) if found and found.group(1) in DEPARTMENTS else None


def draw_nuisance(rng: random.Random) -> Record:
    """Return fresh values for the fields that say nothing about the ward."""
    public = domains()
    return {field: rng.choice(public[field]) for field in NUISANCE}


def make_record(sign: str, exposure: str, rng: random.Random) -> Record:
    """Return a record (without id) for a sign and an exposure, the other fields drawn."""
    return {**draw_nuisance(rng), "sign": sign, "exposure": exposure, "department": department_of(sign, exposure)}


def client_words(client: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the rare signs and the rare exposures that occur in one client's records."""
    part = CLIENT_SLICES[client]
    return (
        flatten([group[part] for group in RARE_SIGNS]),
        flatten([group[part] for group in RARE_EXPOSURES]),
    )


def _numbered(split: str, pairs: Sequence[Pair], rng: random.Random) -> list[Record]:
    return [
        {"id": f"{split}-{number:04d}", **make_record(sign, exposure, rng)}
        for number, (sign, exposure) in enumerate(pairs, start=1)
    ]


def _even(words: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Return ``count`` words in random order, each as often as any other, give or take one."""
    whole, rest = divmod(count, len(words))
    drawn = [*words] * whole + rng.sample(words, rest)
    rng.shuffle(drawn)
    return drawn


def _even_pairs(signs: Sequence[str], exposures: Sequence[str], count: int, rng: random.Random) -> list[Pair]:
    """Return ``count`` different pairs in which all words come about equally often."""
    if 2 * count > len(signs) * len(exposures):
        raise ValueError(f"at most {len(signs) * len(exposures) // 2} labels a client (got {count})")
    while True:
        pairs = list(zip(_even(signs, count, rng), _even(exposures, count, rng), strict=True))
        for place in range(count):
            # A pair that came before swaps its exposure with a random place; nearly always one pass mends all.
            if pairs[place] in pairs[:place]:
                other = rng.randrange(count)
                swapped = pairs[other][1]
                pairs[other] = (pairs[other][0], pairs[place][1])
                pairs[place] = (pairs[place][0], swapped)
        if len(set(pairs)) == count:
            return pairs


def _pairs(signs: Sequence[str], exposures: Sequence[str]) -> list[Pair]:
    return [(sign, exposure) for sign in signs for exposure in exposures]


def private_splits(seed: int = SEED, labels: int = 100, exam: int = 600, validation: int = 300) -> dict[str, list[Record]]:
    """Return the splits on rare words: one list for each client, ``exam`` and ``validation``.

    Args:
        seed: of the one generator behind all splits.
        labels: records a client; no pair comes twice within a client, and its words come equally often, give or take one.
        exam: records of the final test. Every rare word is in its reach, and its pairs of sign and exposure are in
            no client's records.
        validation: records for choosing settings; pairs neither of the clients nor of the exam.
    """
    rng = random.Random(seed)
    splits = {}
    seen: set[Pair] = set()
    for client in CLIENTS:
        pairs = _even_pairs(*client_words(client), labels, rng)
        seen.update(pairs)
        splits[client] = _numbered(client, pairs, rng)
    unseen = [pair for pair in _pairs(flatten(RARE_SIGNS), flatten(RARE_EXPOSURES)) if pair not in seen]
    held_out = rng.sample(unseen, exam + validation)
    splits["exam"] = _numbered("exam", held_out[:exam], rng)
    splits["validation"] = _numbered("validation", held_out[exam:], rng)
    return splits


def public_records(rng: random.Random, count: int, rare: bool = False) -> list[Record]:
    """Return public records with ``text`` and ``rationale``: common words only, or all words where ``rare`` is set."""
    signs = flatten(COMMON_SIGNS) + (flatten(RARE_SIGNS) if rare else ())
    exposures = flatten(COMMON_EXPOSURES) + (flatten(RARE_EXPOSURES) if rare else ())
    records = []
    for _ in range(count):
        record = make_record(rng.choice(signs), rng.choice(exposures), rng)
        record["text"] = render(record, rng.choice(TEMPLATES))
        record["rationale"] = rationale_of(record["sign"], record["exposure"])
        records.append(record)
    return records


def public_sample(seed: int = SEED, count: int = 50) -> list[Record]:
    """Return a small numbered public sample on common words."""
    records = public_records(random.Random(seed), count)
    return [{"id": f"public-{number:04d}", **record} for number, record in enumerate(records, start=1)]


def words(text: str) -> list[str]:
    """Split a text as the tokenizer does: at white space, punctuation apart, hyphenated words whole.

    >>> words("from ashmere, seen: lead-paint.")
    ['from', 'ashmere', ',', 'seen', ':', 'lead-paint', '.']
    """
    return re.findall(r"[.,;:?!]|[^\s.,;:?!]+", text)


def vocabulary() -> list[str]:
    """Return all tokens, specials first, each once; its order is the token id."""
    fixed = [*TEMPLATES, PREDICT_TAG, EXPLAIN_TAG, RATIONALE]
    literal = [word for text in fixed for word in words(re.sub(r"\{\w+\}", " ", text))]
    conditions = [f"{agent}-{disease}" for disease in DISEASES for agent in AGENTS]
    listed = [PAD, UNK, EOS, *literal, *SYSTEMS, *CAUSES, *conditions, *flatten(list(domains().values()))]
    return list(dict.fromkeys(listed))


def schema_yaml() -> str:
    """Return the record schema as YAML: each field one symbol with a public domain, and a table of embeddings."""
    lines = ["# Made by osmotic.plugins.clinic.make from domain.py; do not edit.", "fields:"]
    for field, domain in domains().items():
        values = ", ".join(f'"{value}"' for value in domain)
        lines += [f"  {field}:", f"    domain: [{values}]"]
        if field in SLOTS:
            lines.append(f'    table: "osmotic:clinic/data/tables.safetensors#{field}"')
    return "\n".join(lines) + "\n"

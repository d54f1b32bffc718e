# SPDX-License-Identifier: Apache-2.0
"""Canary text through every certified mechanism: what comes out, and how often a canary survives against what is computed.

python benchmarks/canary.py [--epsilon E] [--draws N] [--table T] [--mechanism NAME ...]

What is outside the vocabulary must never come out; what is inside comes out unchanged no more often than P(x|x) says (limit
by the Chernoff bound, one false alarm in a million runs). A word that the table cuts into pieces is "inside" piece by piece:
it comes out whole only if all its pieces do.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from sanitizer_parts import build, registry, space_of_table

import osmotic
from osmotic.plugins.contract import Mechanism, Records
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.spaces import decode, encode
from osmotic.schemas.errors import OsmoticError
from osmotic.schemas.policy import SitePolicy

TEXT = (
    "Patient Bartholomew Oyelaran, SSN 123-45-6789, ACCT-7731-KESTREL, was given 20 mg of lisinopril on 3 May 2024 "
    "at 14 Elm Ave. BP HIGH \N{PILL}\N{GRINNING FACE} \u60a3\u8005\u9f98 is ok"
)
SECRETS = (
    "bartholomew",
    "oyelaran",
    "123-45-6789",
    "kestrel",
    "acct-7731",
    "lisinopril",
    "\N{PILL}",
    "\N{GRINNING FACE}",
    "\u9f98",
)
ALPHA = 1e-6


def configuration(name: str, epsilon: float) -> dict[str, Any]:
    """A mechanism at this epsilon, defaults else."""
    more = {"inner": {"name": "list-rr", "epsilon": epsilon}} if registry().mechanism(name).wraps else {}
    return {"name": name, "epsilon": epsilon, **more}


def certified() -> list[str]:
    """Names of the token mechanisms that claim to be certified, by what they say over a small space."""
    from osmotic.plugins.contract import Space

    small = Space("small", tuple(f"w{i}" for i in range(40)), np.eye(40, dtype=np.float32), unknown=True)
    names = []
    for name, registered in registry().mechanisms.items():
        if issubclass(registered.cls, Mechanism) and name != "cleartext":
            try:
                made = build(configuration(name, 1.0), small)
            except OsmoticError:
                continue
            names += [name] if made.guarantee().mechanism_class == "certified" else []
    return names


def limit(n: int, p: float, tests: int) -> int:
    """The largest count of n that an honest mechanism reaches, but for ALPHA in all tests together."""
    allowed, low, high = math.log(tests / ALPHA), math.ceil(n * p), n
    while low < high:
        middle = (low + high + 1) // 2
        share = middle / n
        rest = (1 - share) * math.log((1 - share) / (1 - p)) if share < 1 else 0.0
        low, high = (middle, high) if n * (share * math.log(share / p) + rest) <= allowed else (low, middle - 1)
    return low


def through(name: str, epsilon: float, draws: int, space: Any) -> bool:
    """Print one mechanism's outcome; whether it held."""
    began = time.perf_counter()
    mechanism = build(configuration(name, epsilon), space)
    flat, lengths = encode(space, [TEXT])
    known = np.flatnonzero(flat < space.size)
    p = np.exp(mechanism.log_prob(flat[known]))[np.arange(len(known)), flat[known]]
    out = mechanism.sample(np.tile(flat, draws), SystemEntropy())
    texts = decode(space, out, np.tile(lengths, draws))
    kept = (out.reshape(draws, -1)[:, known] == flat[known]).sum(axis=0)
    most = [limit(draws, float(one), len(known)) for one in p]
    whole = limit(draws * len(known), float(p.mean()), 1)
    seen = {word: count for word in SECRETS if (count := sum(word in text.lower() for text in texts))}
    chance = {word: f"{n} (expected {expected(mechanism, flat, word) * draws:.1f})" for word, n in seen.items()}
    held = bool((kept <= most).all()) and int(kept.sum()) <= whole and not set(seen) & set(outside(space))
    print(
        f"\n{name}, eps {epsilon:g} a token, {draws} draws ({time.perf_counter() - began:.0f} s): {'held' if held else 'LEAKS'}"
    )
    print(
        f"  kept {kept.sum()} of {draws * len(known)}; computed {p.sum() * draws:.1f}; an honest mechanism stays below {whole}"
    )
    print(f"  secrets whole in a text: {json.dumps(chance, ensure_ascii=False) if seen else 'none'}")
    print(f"  first: {texts[0]}")
    return held


def expected(mechanism: Any, flat: np.ndarray, word: str) -> float:
    """How often a word of one symbol comes out of the whole text, once released: mostly by chance, from other words."""
    symbols = encode(mechanism.space, [word])[0]
    return float(np.exp(mechanism.log_prob(flat)[:, symbols[0]]).sum()) if len(symbols) == 1 else 0.0


def outside(space: Any) -> list[str]:
    """Secrets of which a part is no symbol of the table: they can never come out whole."""
    return [word for word in SECRETS if bool((encode(space, [word])[0] == space.size).any())]


def identities(epsilon: float) -> bool:
    """A record whose id is a canary, through the whole path: the id must not be in what is released."""
    schema = {"fields": {"colour": {"domain": ["red", "green", "blue"]}}}
    site = SitePolicy.model_validate({"data": {"records": {"path": "none", "schema": schema, "purpose": "benchmark"}}})
    rows = Records([{"id": f"ACCT-7731-KESTREL-{i}", "colour": "red"} for i in range(50)])
    config = {"mechanism": {"name": "list-rr", "epsilon": epsilon, "k": 1}, "fields": ["colour"]}
    with tempfile.TemporaryDirectory() as home:
        released = osmotic.call("dp_sanitizer", rows, config, site=site, home=Path(home))["sanitized"]
    clean = "KESTREL" not in json.dumps(released.rows) and [r["id"] for r in released] != [r["id"] for r in rows]
    print(f"\nrecord ids: {'held' if clean else 'LEAKS'}; the first released one is {released.rows[0]['id']!r}")
    return clean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--table", default="minilm:pieces")
    parser.add_argument("--mechanism", nargs="*", help="default: every certified one")
    given = parser.parse_args()
    space = space_of_table(given.table)
    flat, _ = encode(space, [TEXT])
    print(f"in:  {TEXT}")
    print(f"{given.table}, V = {space.size:,}: {len(flat)} symbols, {int((flat == space.size).sum())} of them unknown")
    print(f"outside, in part or whole: {', '.join(outside(space))}")
    held = [through(name, given.epsilon, given.draws, space) for name in given.mechanism or certified()]
    held.append(identities(given.epsilon))
    sys.exit(0 if all(held) else 1)


if __name__ == "__main__":
    main()

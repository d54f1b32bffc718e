# SPDX-License-Identifier: Apache-2.0
"""The parts of `sanitizer.py` that are measured, each in a process of its own: python sanitizer_parts.py PART JOB.json"""

import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TABLE = "minilm:all"


def space_of_table(table: str = TABLE) -> Any:
    """The table as a space of one text field."""
    from osmotic.plugins.spaces import space_of
    from osmotic.schemas.records import FieldSpec

    return space_of("text", FieldSpec(text=True, table=table), Path.cwd())


def build(mechanism: dict[str, Any], space: Any) -> Any:
    """A token mechanism, as the host builds it."""
    from osmotic.plugins.building import build_token

    return build_token(registry(), mechanism, space)


@cache
def registry() -> Any:
    """All installed plugins, once a process."""
    from osmotic.plugins.host import build_registry

    return build_registry()


def clock(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak() -> float:
    """MiB that this process has held at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count what the parent held when it started this process
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Timed:
    """The operating system's entropy, with a clock; the time is that of its own calls."""

    def __init__(self) -> None:
        from osmotic.plugins.entropy import SystemEntropy

        self.source, self.seconds = SystemEntropy(), 0.0

    def uniform(self, count: int) -> np.ndarray:
        """See `Entropy.uniform`."""
        began = time.perf_counter()
        drawn = self.source.uniform(count)
        self.seconds += time.perf_counter() - began
        return drawn

    def integers(self, high: int, count: int) -> np.ndarray:
        """See `Entropy.integers`."""
        began = time.perf_counter()
        drawn = self.source.integers(high, count)
        self.seconds += time.perf_counter() - began
        return drawn


def product(vectors: np.ndarray, rows: int) -> float:
    """Seconds of the bare float32 product of so many rows with the table, in blocks of 128."""
    block = np.ascontiguousarray(vectors[:128])
    once = statistics.median(clock(lambda: block @ vectors.T) for _ in range(7))
    return once * rows / 128


def part_bare(job: dict[str, Any]) -> dict[str, Any]:
    """Cold and warm seconds of one mechanism over the tokens of all texts: construction and sampling, no text."""
    from osmotic.plugins.entropy import SystemEntropy
    from osmotic.plugins.spaces import encode

    space = space_of_table()
    flat, _ = encode(space, job["texts"])
    build(job["mechanism"], space).sample(flat[:100], SystemEntropy())  # what is imported at first use
    cold, warm, drawn, made = [], [], [], 0
    for _ in range(job["repeats"]):
        entropy, began = Timed(), time.perf_counter()
        mechanism = build(job["mechanism"], space)
        mechanism.sample(flat, entropy)
        cold.append(time.perf_counter() - began)
        drawn.append(entropy.seconds)
        lists = getattr(mechanism, "_neighbours", None)
        made = len(np.unique(flat)) if lists is None else int(lists.known.sum())
        if lists is not None:
            lists.of(np.unique(flat[flat < space.size]))
            warm.append(clock(lambda m=mechanism: m.sample(flat, SystemEntropy())))
    parts = {"random numbers": statistics.median(drawn), "product": product(space.vectors, made)}
    return {"tokens": len(flat), "cold": cold, "warm": warm, "parts": parts, "rows made": made}


def part_text(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from texts to texts, and of bare tokenisation by the library `tokenizers` alone, cold and warm mechanism."""
    from osmotic.plugins.entropy import SystemEntropy
    from osmotic.plugins.spaces import decode, encode

    space, texts = space_of_table(), job["texts"]
    bare = space.tokenizer._tokenizer
    numbers: dict[str, list[float]] = {name: [] for name in ("tokenisation", "cold", "warm", "cut", "draw", "join")}
    for _ in range(job["repeats"] + 1):
        numbers["tokenisation"].append(clock(lambda: bare.encode_batch_fast(texts, add_special_tokens=False)))
        began = time.perf_counter()
        mechanism = build(job["mechanism"], space)
        flat, lengths = encode(space, texts)
        decode(space, mechanism.sample(flat, SystemEntropy()), lengths)
        numbers["cold"].append(time.perf_counter() - began)
        start = time.perf_counter()
        flat, lengths = encode(space, texts)
        cut = time.perf_counter()
        out = mechanism.sample(flat, SystemEntropy())
        draw = time.perf_counter()
        decode(space, out, lengths)
        join = time.perf_counter()
        for name, seconds in {"warm": join - start, "cut": cut - start, "draw": draw - cut, "join": join - draw}.items():
            numbers[name].append(seconds)
    return {"tokens": len(flat)} | {name: values[1:] for name, values in numbers.items()}  # the first repeat warms caches


def part_whole(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of `dp_sanitizer` at a party: policy, card found, draws, releases stored and charged, all durable."""
    import osmotic
    from osmotic.plugins.contract import Records
    from osmotic.plugins.spaces import encode
    from osmotic.schemas.policy import SitePolicy

    schema = {"fields": {"text": {"text": True, "table": TABLE}}}
    site = SitePolicy.model_validate({"data": {"records": {"path": "none", "schema": schema, "purpose": "benchmark"}}})
    config = {"mechanism": job["mechanism"], "fields": ["text"]}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        card = clock(
            lambda: osmotic.call("dp_sanitizer", Records([{"id": "first", "text": "a"}]), config, site=site, home=home)
        )
        for repeat in range(job["repeats"]):
            records = Records([{"id": f"{repeat}-{i}", "text": text} for i, text in enumerate(job["texts"])])
            seconds.append(clock(lambda r=records: osmotic.call("dp_sanitizer", r, config, site=site, home=home)))
        size = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 2**20
    tokens = int(encode(space_of_table(), job["texts"])[1].sum())
    return {"tokens": tokens, "cold": seconds, "first call with card": card, "MiB on disk": size, "records": len(job["texts"])}


def part_start(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from imports done to the first released text, and the peak memory of sanitising all texts."""
    import tokenizers  # noqa: F401 (an import, not counted)

    from osmotic.plugins import building, host, spaces  # noqa: F401
    from osmotic.plugins.entropy import SystemEntropy
    from osmotic.plugins.mechanisms import list_rr, rank_exponential  # noqa: F401
    from osmotic.plugins.tables import minilm  # noqa: F401

    imported, began = peak(), time.perf_counter()
    space = space_of_table()
    mapped = time.perf_counter() - began
    mechanism = build(job["mechanism"], space)
    flat, lengths = spaces.encode(space, ["The patient was given 20 mg on Monday."])
    spaces.decode(space, mechanism.sample(flat, SystemEntropy()), lengths)
    first = time.perf_counter() - began
    flat, lengths = spaces.encode(space, job["texts"])
    spaces.decode(space, mechanism.sample(flat, SystemEntropy()), lengths)
    table = space.vectors.nbytes / 2**20
    return {"table mapped": mapped, "first text": first, "MiB imported": imported, "MiB peak": peak(), "MiB table": table}


def part_certificate(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a full certificate, sampler check included, over the first V symbols of the table."""
    from dataclasses import replace

    from osmotic.plugins.certificate import certify

    space = space_of_table()
    v = job["symbols"]
    mechanism = build(job["mechanism"], replace(space, symbols=space.symbols[:v], vectors=space.vectors[:v]))
    began = time.perf_counter()
    card = certify(mechanism)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "epsilon_true": card.epsilon_true,
        "holds": card.holds,
        "product": product(space.vectors[:v], v),
    }


PARTS = {"bare": part_bare, "text": part_text, "whole": part_whole, "start": part_start, "certificate": part_certificate}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))))

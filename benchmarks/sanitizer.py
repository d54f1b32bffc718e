# SPDX-License-Identifier: Apache-2.0
"""How fast text is sanitised, beside FATE-LLM's sanitiser and beside bare tokenisation; one run, medians, what bounds each row.

python benchmarks/sanitizer.py [--peer FOLDER] [--text FILE] [--tokens N] [--repeats N] [--save FOLDER]

Peer: `InferDPTKit.perturb` of fate-llm 2.2.0 (pip install --no-deps fate-llm==2.2.0), see `sanitizer_peer.py`. Both sides:
MiniLM's 30,522 x 384 table, the same texts, one thread, eps 3. The peer is timed before and after RanText of ours, each time
on five parts of 400 tokens, its rows on 320 rows, and its faster run counts; what all texts would take it is computed from
the two medians (its cost a token does not depend on how many there are). Ours runs over all texts, every repeat from a cold
start: mechanism built, lists and rows made, nothing kept; only the row that says so finds the lists that a certificate has
put into the cache. Pieces of words are kept within a process: a process's first call takes longer, and is told. Each part
(`sanitizer_parts.py`) runs in a fresh process. "random numbers" and "product" are measured: the clock of the entropy's own
calls, and the bare float32 product of as many rows as were made.
"""

import argparse
import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sanitizer_parts import TABLE, space_of_table

HERE = Path(__file__).resolve().parent
NATURAL = HERE.parents[1] / "shared/data/ag_news/test.csv"
EPSILON, K = 3.0, 8
MECHANISMS: dict[str, dict[str, Any]] = {
    "rantext": {"name": "rantext", "epsilon": EPSILON, "variant": "fate"},
    "list-rr": {"name": "list-rr", "epsilon": EPSILON, "k": K},
    "rank-exponential": {"name": "rank-exponential", "epsilon": EPSILON},
}
PACKAGES = ("osmotic", "numpy", "tokenizers", "transformers")


def natural(path: Path, wanted: int) -> list[str]:
    """Texts with at least so many tokens in all: columns 2.. of a .csv, else a text a line."""
    from osmotic.plugins.spaces import encode

    with path.open(encoding="utf-8", newline="") as file:
        lines = [" ".join(row[1:]) for row in csv.reader(file)] if path.suffix == ".csv" else [line.strip() for line in file]
    lines = [line for line in lines if line]
    ends = np.cumsum(encode(space_of_table(), lines)[1])
    if ends[-1] < wanted:
        sys.exit(f"{path} has {ends[-1]} tokens; {wanted} are asked for: give another file or a smaller --tokens")
    return lines[: int(np.searchsorted(ends, wanted)) + 1]


def fresh(arguments: list[str], threads: int = 1, cache: str = "") -> Any:
    """The JSON object that a fresh process prints last; None, and its last line, when it fails. cache: "": nothing is kept."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    environment |= {"TOKENIZERS_PARALLELISM": "false", "OSMOTIC_CACHE": cache}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print("  failed:", (done.stderr.strip().splitlines() or ["no message"])[-1][:200], flush=True)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


class Run:
    """One run: parts in fresh processes, lines of the table as they come, raw numbers."""

    def __init__(self, folder: Path, texts: list[str], repeats: int) -> None:
        self.folder, self.texts, self.repeats = folder, texts, repeats
        self.raw: dict[str, Any] = {}
        self.lines: list[tuple[str, str, str, str]] = []

    def part(self, name: str, part: str, threads: int = 1, cache: str = "", **more: Any) -> Any:
        """Run one part; its raw numbers are kept under `name`."""
        job = self.folder / "job.json"
        job.write_text(json.dumps({"texts": self.texts, "repeats": self.repeats, **more}), encoding="utf-8")
        self.raw[name] = fresh([str(HERE / "sanitizer_parts.py"), part, str(job)], threads, cache)
        return self.raw[name]

    def line(self, name: str, measured: str, target: str, bound: str) -> None:
        """One line of the table, printed now."""
        self.lines.append((name, measured, target, bound))
        print(" | ".join(self.lines[-1]), flush=True)

    def peer(self, path: str | None) -> dict[str, Any] | None:
        """Measure the peer; None when it is not installed."""
        space = space_of_table()
        files = {name: str(self.folder / name) for name in ("table.npy", "vocabulary.json", "texts.json")}
        np.save(files["table.npy"], np.asarray(space.vectors))
        Path(files["vocabulary.json"]).write_text(json.dumps(space.symbols), encoding="utf-8")
        Path(files["texts.json"]).write_text(json.dumps(self.texts[:400]), encoding="utf-8")
        from osmotic.plugins.tables.minilm import _folder

        job = {
            "peer": path, "table": files["table.npy"], "vocabulary": files["vocabulary.json"], "texts": files["texts.json"],
            "tokenizer": str(_folder() / "tokenizer.json"), "epsilon": EPSILON, "part": 400, "parts": 5,
        }  # fmt: skip
        self.raw["peer"] = fresh([str(HERE / "sanitizer_peer.py"), json.dumps(job)])
        return self.raw["peer"]


def against(run: Run, peer: dict[str, Any] | None, got: Any, tokens: int, distinct: int) -> None:
    """The lines beside the peer."""
    free = peer["rate"] if peer else float("nan")
    both = tokens / (tokens / free + distinct * peer["row"] / 1e3) if peer else float("nan")
    kit = tokens / (tokens / free + len(space_of_table().symbols) * peer["row"] / 1e3) if peer else float("nan")
    if peer:
        run.line(
            "peer, rows for free", f"{free:,.0f} tokens/s", "", "numpy.random.choice over lists of tokens; 384 Laplace values"
        )
        run.line("peer, rows counted", f"{both:,.0f} tokens/s", "", f"{distinct:,} rows of {peer['row']:.1f} ms")
        run.line("peer, its whole kit counted", f"{kit:,.0f} tokens/s", "", f"30,522 rows of {peer['row']:.1f} ms")
    if got:
        rate, shares = tokens / statistics.median(got["cold"]), bounds(got)
        run.line("rantext (fate), cold, rows on our side only", faster(rate, free), ">= 15x", shares)
        run.line(
            "rantext (fate), cold, rows on both sides", f"{faster(rate, both)}; whole kit {rate / kit:,.0f}x", ">= 50x", shares
        )
    for name in ("list-rr", "rank-exponential"):
        if got := run.part(name, "bare", mechanism=MECHANISMS[name]):
            run.line(f"{name}, bare, cold", faster(tokens / statistics.median(got["cold"]), free), ">= 2,000x", bounds(got))
            warm = faster(tokens / statistics.median(got["warm"]), free)
            run.line(f"{name}, bare, all lists made", warm, ">= 2,000x", "random numbers and gathering")
    for epsilon in (6.0, 10.0):
        if got := run.part(f"list-rr {epsilon:g}", "bare", mechanism=MECHANISMS["list-rr"] | {"epsilon": epsilon}):
            rate = faster(tokens / statistics.median(got["cold"]), free)
            run.line(f"list-rr, bare, cold, eps {epsilon:g}", rate, "(none)", bounds(got))
    for cache, words in ((str(run.folder / "cache"), "lists kept by the certificate"), ("", "lists made anew, nothing kept")):
        if got := run.part(f"whole, {words}", "whole", cache=cache, mechanism=MECHANISMS["list-rr"]):
            rate = faster(tokens / statistics.median(got["cold"]), free)
            detail = f"{got['records']:,} documents, each stored and charged; {got['MiB on disk']:.0f} MiB on disk"
            detail += f"; the first of the calls {tokens / got['cold'][0]:,.0f} tokens/s"
            run.line(f"list-rr, whole path with store and ledger, {words}", rate, ">= 500x" if cache else "", detail)


def faster(rate: float, peer: float) -> str:
    """A rate and how many times the peer's it is."""
    return f"{rate:,.0f} tokens/s" + ("" if peer != peer else f" = {rate / peer:,.0f}x")


def bounds(got: dict[str, Any]) -> str:
    """What a cold run's time went into: the measured share of each part."""
    whole = statistics.median(got["cold"])
    shares = [f"{name} {seconds / whole:.0%}" for name, seconds in got["parts"].items()]
    return f"{', '.join(shares)} of {whole:.2f} s; {got['rows made']:,} rows or lists made"


def itself(run: Run) -> None:
    """The lines against tokenisation, the clock of a start, memory and certificates."""
    if got := run.part("text", "text", mechanism=MECHANISMS["list-rr"]):
        middle = {name: statistics.median(values) for name, values in got.items() if isinstance(values, list)}
        bare = middle["tokenisation"]
        shares = ", ".join(f"{name} {middle[name]:.2f} s" for name in ("cut", "draw", "join"))
        run.line("bare tokenisation", f"{got['tokens'] / bare:,.0f} tokens/s", "", f"{bare:.2f} s, the library tokenizers")
        run.line(
            "text to text, list-rr, cold", f"{middle['cold'] / bare:.2f}x tokenisation", "<= 2x", f"{middle['cold']:.2f} s"
        )
        run.line("text to text, list-rr, warm", f"{middle['warm'] / bare:.2f}x tokenisation", "<= 2x", shares)
    starts = [run.part(f"start {i}", "start", mechanism=MECHANISMS["list-rr"]) for i in range(run.repeats)]
    if all(starts):
        first = statistics.median(s["first text"] for s in starts)
        mapped = statistics.median(s["table mapped"] for s in starts)
        run.line(
            "start beyond imports, to the first text", f"{first:.2f} s", "< 2 s", f"{mapped:.2f} s map table and tokenizer"
        )
        most, table = statistics.median(s["MiB peak"] for s in starts), starts[0]["MiB table"]
        base = starts[0]["MiB imported"]
        measured = f"{most:.0f} MiB = {most / table:.1f}x table"
        run.line("peak memory of the whole process", measured, "< 3x", f"table {table:.0f}, imports {base:.0f} MiB")
        run.line("peak memory beyond imports", f"{most - base:.0f} MiB = {(most - base) / table:.1f}x table", "< 3x", "")
    for symbols, target in ((11_000, "< 60 s"), (30_522, "< 300 s")):
        if got := run.part(f"certificate {symbols}", "certificate", 2, symbols=symbols, mechanism=MECHANISMS["list-rr"]):
            bound = f"product {got['product']:.0f} s, the rest memory; eps_true {got['epsilon_true']:.6f}, holds {got['holds']}"
            run.line(f"certificate, V = {symbols:,}, 2 cores", f"{got['seconds']:.0f} s", target, bound)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="folder with the unpacked wheel; default: an ordinary installation")
    parser.add_argument("--text", type=Path, default=NATURAL, help="natural text: .csv, or a text a line")
    parser.add_argument("--tokens", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", type=Path, help="folder for sanitizer.json (raw numbers) and sanitizer.md")
    given = parser.parse_args()
    if not given.text.is_file():
        sys.exit(f"no such file: {given.text}; give --text FILE with natural text")
    report(given)


def report(given: argparse.Namespace) -> None:
    """The whole run: printed, and saved when a folder is given."""
    from osmotic.plugins.spaces import encode

    texts = natural(given.text, given.tokens)
    flat, _ = encode(space_of_table(), texts)
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    head = f"{versions}, Python {platform.python_version()}, {os.cpu_count()} cores, median of {given.repeats}, eps {EPSILON:g}"
    data = f"{given.text.name}: {len(texts):,} texts, {len(flat):,} tokens, {len(np.unique(flat)):,} distinct; table {TABLE}"
    print(head, data, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), texts, given.repeats)
        before = run.peer(given.peer)
        rantext = run.part("rantext", "bare", mechanism=MECHANISMS["rantext"])
        after = run.peer(given.peer)
        run.raw["peer runs"] = [before, after]
        peers = [one for one in (before, after) if one]
        peer = max(peers, key=lambda one: float(one["rate"])) if peers else None  # a busy machine must not count against it
        against(run, peer, rantext, len(flat), len(np.unique(flat)))
        itself(run)
    if given.save:
        given.save.mkdir(parents=True, exist_ok=True)
        (given.save / "sanitizer.json").write_text(json.dumps({"head": head, "data": data, **run.raw}, indent=1) + "\n")
        rows = [
            "| row | measured | target | bound by |",
            "|---|---|---|---|",
            *("| " + " | ".join(r) + " |" for r in run.lines),
        ]
        (given.save / "sanitizer.md").write_text("\n".join([head + ".", "", data + ".", "", *rows]) + "\n")


if __name__ == "__main__":
    main()

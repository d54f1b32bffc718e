# SPDX-License-Identifier: Apache-2.0
"""The peer of `sanitizer.py`: `InferDPTKit.perturb` of fate-llm 2.2.0, run as it is, on the same table and the same texts.

Only the module `fate_llm.algo.inferdpt.utils` is imported; the wheel's own packages above it are empty, so neither `fate` nor
anything else needs a stand-in (one that is missing is replaced by an empty module, and the output says so). The rows of
sorted similarities come from a dictionary that makes a row when it is asked for and keeps count of the time, because the
peer's own kit (`make_inferdpt_kit_param`) holds all of them, about 100 GiB at this size. Each row is made with the
expressions of `create_sorted_embedding_matrix`. The clock of a text is read around `perturb`, and the time inside the
dictionary is taken off.
"""

import argparse
import importlib
import json
import statistics
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

KEPT = 300  # rows kept by the dictionary, about 1.2 MB each
BLOCK = 64  # rows of similarities made at a time when their cost is measured


def module(path: str | None) -> tuple[Any, list[str]]:
    """(the peer's module, names of packages that were replaced by empty ones)."""
    if path:
        sys.path.insert(0, path)
    replaced: list[str] = []
    while True:
        try:
            return importlib.import_module("fate_llm.algo.inferdpt.utils"), replaced
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("fate_llm"):
                sys.exit("the peer is missing: pip install --no-deps fate-llm==2.2.0, or --peer FOLDER with it unpacked")
            replaced.append(error.name)
            sys.modules[error.name] = ModuleType(error.name)


class Rows(dict[str, Any]):
    """Token -> [tokens by similarity, similarities], made when asked for; seconds: what the making took."""

    def __init__(self, tokens: list[str], vectors: np.ndarray) -> None:
        super().__init__()
        self.index = {token: i for i, token in enumerate(tokens)}
        self.tokens, self.vectors, self.norms = np.array(tokens), vectors, np.linalg.norm(vectors, axis=1)
        self.seconds, self.made = 0.0, 0

    def __len__(self) -> int:
        return len(self.index)

    def get(self, key: str, default: Any = None) -> Any:
        """The row of a token, or the default for what is no token."""
        began = time.perf_counter()
        row = super().get(key)
        if row is None and key in self.index:
            if super().__len__() >= KEPT:
                del self[next(iter(self))]
            row = self[key] = self.make(self.similarities(np.array([self.index[key]]))[0])
        self.seconds += time.perf_counter() - began
        return default if row is None else row

    def similarities(self, rows: np.ndarray) -> np.ndarray:
        """float32 [n, V]: cosines, as the peer's kit has them."""
        return np.dot(self.vectors[rows], self.vectors.T) / np.outer(self.norms[rows], self.norms)

    def make(self, similarity: np.ndarray) -> list[Any]:
        """One row, as the peer's kit has it."""
        self.made += 1
        order = np.argsort(similarity)[::-1]
        return [self.tokens[order].tolist(), similarity[order].tolist()]


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Tokens a second with rows for free (a value for each part of the texts), and milliseconds a row."""
    from transformers import PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()
    peer, replaced = module(job["peer"])
    table = np.load(job["table"])
    tokens = json.loads(Path(job["vocabulary"]).read_text(encoding="utf-8"))
    texts = json.loads(Path(job["texts"]).read_text(encoding="utf-8"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["tokenizer"], unk_token="[UNK]")
    rows = Rows(tokens, table)
    span = peer.create_sensitivity_of_embeddings(table)
    kit = peer.InferDPTKit(dict(zip(tokens, table, strict=True)), rows, span, tokenizer)
    kit.perturb(texts[0], job["epsilon"])
    rates, count, spent = [], 0, 0.0
    for text in texts[1:]:
        made, began = rows.seconds, time.perf_counter()
        kit.perturb(text, job["epsilon"])
        spent += time.perf_counter() - began - (rows.seconds - made)
        count += len(tokenizer.tokenize(text))
        if count >= job["part"]:
            rates.append(count / spent)
            count, spent = 0, 0.0
        if len(rates) == job["parts"]:
            break
    return {"rates": rates, "row_ms": row_costs(rows), "replaced": replaced, "numpy": np.__version__}


def row_costs(rows: Rows) -> list[float]:
    """Milliseconds a row, made in blocks: product, norms, sort and lists; the vectors are random rows of the table."""
    chosen, costs = np.random.default_rng(0).permutation(len(rows.index)), []
    for start in range(0, 5 * BLOCK, BLOCK):
        began = time.perf_counter()
        for similarity in rows.similarities(chosen[start : start + BLOCK]):
            rows.make(similarity)
        costs.append((time.perf_counter() - began) / BLOCK * 1e3)
    return costs


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="JSON, written by sanitizer.py")
    result = measure(json.loads(parser.parse_args().job))
    print(json.dumps(result | {"rate": statistics.median(result["rates"]), "row": statistics.median(result["row_ms"])}))

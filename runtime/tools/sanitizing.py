# SPDX-License-Identifier: Apache-2.0
"""`osmotic sanitize`: text from a file or standard input through a mechanism, to standard output. One line is one document.

Standard output is an exit: the output is written once the mechanism has a card that holds what its class claims. Nothing is
stored and nothing is charged: every call draws anew, and the epsilons of all calls on the same text add up. Only a run with a
ledger keeps count. Randomness is the operating system's.
"""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from osmotic.plugins.contract import DocumentMechanism, Entropy, Mechanism, Space
from osmotic.plugins.entropy import SystemEntropy
from osmotic.plugins.host import Registry
from osmotic.plugins.spaces import decode, encode
from osmotic.runtime.tools.certifying import CLAIMS, AnyMechanism, Models, build, card_of, finite, settings, table_space
from osmotic.schemas.errors import DataError, Problem, RefusedError
from osmotic.schemas.guarantees import Card

ANEW = "nothing is stored or charged: every call draws anew, and the epsilons of all calls on the same text add up"
LONGEST = 1 << 24  # bytes of one line
BATCH = 1 << 22  # bytes of text sanitised together
DOCUMENTS = 64  # at a time, for document mechanisms


@dataclass
class Spent:
    """What a call cost: documents, sampled symbols, the largest number of symbols and the largest epsilon of a document."""

    documents: int = 0
    symbols: int = 0
    most: int = 0
    epsilon: float = 0.0

    def add(self, symbols: int, epsilon: float) -> None:
        """One document more."""
        self.documents += 1
        self.symbols += symbols
        self.most, self.epsilon = max(self.most, symbols), max(self.epsilon, epsilon)


@dataclass
class Sanitizer:
    """A mechanism with its card, ready to be used on lines of text."""

    made: AnyMechanism
    space: Space
    card: Card
    entropy: Entropy = field(default_factory=SystemEntropy)
    spent: Spent = field(default_factory=Spent)

    def batch(self, texts: Sequence[str]) -> list[str]:
        """One output a text, on one line each."""
        made = self.made
        outputs = self._documents(made, texts) if isinstance(made, DocumentMechanism) else self._tokens(made, texts)
        return [" ".join(text.split("\n")).replace("\r", " ") for text in outputs]

    def _tokens(self, made: Mechanism[Any], texts: Sequence[str]) -> list[str]:
        flat, lengths = encode(self.space, texts)
        drawn, epsilon = made.sample(flat, self.entropy) if len(flat) else flat, made.guarantee().epsilon
        for n in lengths.tolist():
            self.spent.add(n, n * epsilon)
        return decode(self.space, drawn, lengths)

    def _documents(self, made: DocumentMechanism[Any], texts: Sequence[str]) -> list[str]:
        drawn = made.sample([(text,) for text in texts], self.entropy)
        for one in drawn:
            self.spent.add(sum(one.symbols), one.epsilon)
        return [one.texts[0] for one in drawn]


def prepare(
    registry: Registry, name: str, epsilon: float, options: Sequence[str] = (), table: str | None = None,
    model: str | None = None,
) -> Sanitizer:  # fmt: skip
    """Build the mechanism and get its card. Raises ConfigError, and RefusedError when a claim does not hold."""
    chosen = settings(name, epsilon, options, registry, model)
    space, models = table_space(registry, table), Models(registry, model)
    made = build(registry, chosen, space, models)
    card = card_of(made, models)
    if card.declared.mechanism_class in CLAIMS and not card.holds:
        what = f"the mechanism {name!r} does not hold what it claims: nothing was sanitised"
        raise RefusedError(Problem(what, why=card.why, fix=f"osmotic certify {name} --epsilon {epsilon:g}"))
    return Sanitizer(made, space, card)


def lines(content: bytes, where: str) -> list[str]:
    """Documents of a text. Raises DataError, with the line, for bytes that are not UTF-8 and for lines that are too long."""
    found = []
    body = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n")
    for number, line in enumerate(body.split(b"\n") if content else [], start=1):
        if len(line) > LONGEST:
            why, what = f"it has {len(line):,} bytes; at most {LONGEST:,}", "the line is too long for one document"
            raise DataError(Problem(what, f"{where}:{number}", why=why, fix="cut it into lines"))
        try:
            found.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            why = f"byte {error.start + 1} of the line: {error.reason}"
            raise DataError(Problem("not UTF-8 text", f"{where}:{number}", why=why, fix="convert it to UTF-8 first")) from error
    return found


def read_input(file: Path | None, standard: BinaryIO) -> list[str]:
    """Documents of a file, or of standard input. Raises DataError."""
    if file is None or str(file) == "-":
        return lines(standard.read(), "<stdin>")
    try:
        return lines(file.read_bytes(), str(file))
    except OSError as error:
        raise DataError(Problem("the file cannot be read", str(file), why=str(error))) from error


def batches(texts: Sequence[str], documents: bool) -> Iterator[list[str]]:
    """Consecutive texts, by size; few at a time for document mechanisms."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH or (documents and len(batch) >= DOCUMENTS):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def sanitize_command(
    sanitizer: Sanitizer, texts: Sequence[str], as_json: bool, out: TextIO | None = None, note: TextIO | None = None
) -> None:
    """Write sanitised documents to `out` (standard output) and the card's numbers to `note` (standard error)."""
    if out is None and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    out, note = out or sys.stdout, note or sys.stderr
    whole: list[str] = []
    for batch in batches(texts, isinstance(sanitizer.made, DocumentMechanism)):
        found = sanitizer.batch(batch)
        if as_json:
            whole += found
        else:
            out.write("".join(f"{text}\n" for text in found))
    if as_json:
        value = {"documents": whole, "card": sanitizer.card.model_dump(mode="python"), "spent": vars(sanitizer.spent)}
        out.write(json.dumps(finite(value), sort_keys=True, allow_nan=False) + "\n")
    out.flush()
    print(summary(sanitizer), file=note)


def summary(sanitizer: Sanitizer) -> str:
    """The numbers of the card and of this call, in words."""
    card, spent = sanitizer.card, sanitizer.spent
    claim = card.declared
    true = card.true_text(4)
    head = f"{card.mechanism}: {claim.mechanism_class}, epsilon {claim.epsilon:g} a {claim.unit}"
    if claim.mechanism_class == "certified":
        head += f" (certified: {true})" if card.holds else ""
        whole = f"largest epsilon of a document: {spent.epsilon:.6g}"
        whole += ", for texts of equal released length" if claim.unit != "document" else ""
    elif claim.mechanism_class == "partition":
        within = f"{card.epsilon_within:.4g}" if card.epsilon_within is not None else "?"
        head += f", given the class pattern (computed inside a class: {within}; between classes none)"
        whole = f"largest epsilon of a document: {spent.epsilon:.6g}, given its class pattern and length"
    elif claim.mechanism_class == "metric":
        head += f" (as pure epsilon a token: {true})"
        whole = f"longest document: {spent.most} symbols, {spent.epsilon:.6g} a unit of distance; no pure epsilon is claimed"
    else:
        head += f": NO GUARANTEE (true epsilon a {claim.unit}: {true})"
        whole = f"longest document: {spent.most} symbols; no epsilon holds for it"
    clear = [f"in the clear: {', '.join(card.cleartext)}"] if card.cleartext else []
    kept = f"self-retention {card.self_retention:.4g}, Bayes success {card.bayes_success:.4g} a symbol (V = {card.symbols})"
    if claim.unit == "document":
        kept = "\n".join(f"part: {part}" for part in card.parts) or "no part of it could be certified"
    count = f"{spent.documents} documents, {spent.symbols} symbols"
    return "\n".join([head, *clear, kept, f"{count}; {whole}", ANEW])

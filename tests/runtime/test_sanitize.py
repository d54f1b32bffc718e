# SPDX-License-Identifier: Apache-2.0
"""`osmotic sanitize`: text in, sanitised text out, the card's numbers beside it; bad input is one located message."""

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from osmotic.plugins.contract import Config, DocumentMechanism, Drawn, Entropy, Guarantee, Mechanism
from osmotic.plugins.host import Registered, Registry, build_registry
from osmotic.runtime.tools import sanitizing
from osmotic.runtime.tools.sanitizing import ANEW, batches, lines, prepare, read_input, sanitize_command
from osmotic.schemas.errors import ConfigError, DataError, RefusedError

WORDS = [f"{a}{b}" for a in "abcdefgh" for b in "abcde"]


def osmotic(*arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-c", "from osmotic.runtime.cli import main; main()", "sanitize", *arguments]
    environment = {**os.environ, "OSMOTIC_PLUGINS": "", "NO_COLOR": "1", "PYTHONUTF8": "0", "LC_ALL": "C"}
    return subprocess.run(command, input=given, capture_output=True, env=environment, timeout=120, check=False)


def test_standard_input_to_standard_output(table: str) -> None:
    """Every line keeps its number of tokens, everything that comes out is of the table, numbers go to standard error."""
    text = "aa ab ACCT-7731-KESTREL\r\n\n日本 \U0001f600 aa\0b\n".encode()
    done = osmotic("--mechanism", "list-rr", "--epsilon", "3", "--set", "k=4", "--table", table, given=text)
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode().split("\n")
    assert len(out) == 4 and out[1] == out[3] == "" and set(" ".join(out).split()) <= set(WORDS)
    told = done.stderr.decode()
    assert "certified, epsilon 3 a token (certified: 3)" in told and ANEW in told and "3 documents" in told
    assert len(out[0].split()) == 10  # aa ab acct - 7 7 3 1 - kestrel: digits one by one
    assert "Bayes success" in told


def test_json_has_documents_card_and_cost(table: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("aa ab ac\nad\n", encoding="utf-8")
    base = ("--mechanism", "list-rr", "--epsilon", "2", "--set", "k=4", "--table", table, "--json")
    done = osmotic(*base, str(tmp_path / "in.txt"))
    found = json.loads(done.stdout)
    assert [len(text.split()) for text in found["documents"]] == [3, 1]
    assert found["spent"] == {"documents": 2, "symbols": 4, "most": 3, "epsilon": 6.0} and found["card"]["holds"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"fine\n\xff\xfe\x00binary", "<stdin>:2 not UTF-8 text"),
        (b"one\ntwo \xed\xa0\x80 surrogate\n", "<stdin>:2 not UTF-8 text"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xb2\xa1", "<stdin>:1 not UTF-8 text"),
    ],
)
def test_what_is_not_text_is_located_and_nothing_comes_out(given: bytes, message: str, table: str) -> None:
    done = osmotic("--mechanism", "list-rr", "--epsilon", "3", "--set", "k=4", "--table", table, given=given)
    assert done.returncode == 3 and done.stdout == b"" and message in done.stderr.decode() and b"Traceback" not in done.stderr


def test_empty_input_is_no_document(table: str) -> None:
    done = osmotic("--mechanism", "list-rr", "--epsilon", "3", "--set", "k=4", "--table", table)
    assert done.returncode == 0 and done.stdout == b"" and b"0 documents, 0 symbols" in done.stderr


def test_bad_options_are_one_message(table: str, tmp_path: Path) -> None:
    for arguments, code, message in (
        (["--mechanism", "list-r", "--epsilon", "3"], 2, "did you mean 'list-rr'"),
        (["--mechanism", "list-rr", "--epsilon", "nan"], 2, "epsilon"),
        (["--mechanism", "list-rr", "--epsilon", "3", "--set", "k=99"], 2, "k must be smaller"),
        (["--mechanism", "dp-prompt", "--epsilon", "3", "--model", "smolm2"], 2, "did you mean 'smollm2'"),
        (["--mechanism", "list-rr", "--epsilon", "3", "--set", "k=4", str(tmp_path / "missing.txt")], 3, "cannot be read"),
    ):
        done = osmotic(*arguments, "--table", table)
        assert done.returncode == code and message in done.stderr.decode().replace("mechanism.k: ", ""), done.stderr
        assert done.stdout == b"" and b"Traceback" not in done.stderr


def test_help_says_that_nothing_is_charged() -> None:
    text = " ".join(osmotic("--help").stdout.decode().split())
    assert "Nothing is stored or charged: every call draws anew" in text


# ---- inside ----------------------------------------------------------------------------------------------------------


def test_lines_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lines(b"", "f") == [] and lines(b"\n", "f") == [""] and lines(b"a\n\nb", "f") == ["a", "", "b"]
    assert lines(b"\xef\xbb\xbfa\r\n", "f") == ["a"]
    monkeypatch.setattr(sanitizing, "LONGEST", 4)
    with pytest.raises(DataError, match="f:2 the line is too long"):
        lines(b"abcd\nabcde\n", "f")
    monkeypatch.setattr(sanitizing, "BATCH", 3)
    assert list(batches(["ab", "c", "d"], False)) == [["ab", "c"], ["d"]] and list(batches([], False)) == []
    assert [len(b) for b in batches([""] * 130, True)] == [64, 64, 2]
    assert read_input(None, io.BytesIO(b"x")) == ["x"] == read_input(Path("-"), io.BytesIO(b"x\n"))


class ClaimConfig(Config):
    epsilon: float


class Lying(Mechanism[ClaimConfig]):
    """The identity, certified."""

    name = "lying"

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        out = np.full((len(rows), self.space.size), -math.inf)
        out[np.arange(len(rows)), np.minimum(rows, self.space.size - 1)] = 0.0
        return out

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon)


class Shouting(DocumentMechanism[ClaimConfig]):
    """A document mechanism without any proof."""

    name = "shouting"

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="heuristic", epsilon=self.config.epsilon, unit="document")

    def parts(self) -> Sequence[Mechanism]:
        return ()

    def sample(self, documents: Sequence[tuple[str, ...]], entropy: Entropy) -> list[Drawn]:
        return [Drawn((f"{texts[0].upper()}\n!",), self.config.epsilon, (1,)) for texts in documents]


def registry() -> Registry:
    found = build_registry(names=[])
    for cls in (Lying, Shouting):
        found.mechanisms[cls.name] = Registered(cls, "test", "0")
    return found


def test_a_claim_that_fails_is_refused(table: str) -> None:
    with pytest.raises(RefusedError, match="nothing was sanitised"):
        prepare(registry(), "lying", 3.0, table=table)


def test_document_mechanisms_and_heuristics_are_said_to_have_no_guarantee(table: str) -> None:
    ready, out, note = prepare(registry(), "shouting", 3.0, table=table), io.StringIO(), io.StringIO()
    sanitize_command(ready, ["one", "two"], False, out, note)
    assert out.getvalue() == "ONE !\nTWO !\n" and "NO GUARANTEE (true epsilon a document: infinite)" in note.getvalue()
    rantext = prepare(registry(), "rantext", 3.0, table=table)
    sanitize_command(rantext, ["aa ab"], False, out, note := io.StringIO())
    assert "NO GUARANTEE" in note.getvalue() and "no epsilon holds" in note.getvalue()


def test_metric_and_partition_say_what_they_are(table: str) -> None:
    for name, text in (("santext", "no pure epsilon is claimed"), ("custext", "given the class pattern")):
        note = io.StringIO()
        options = ["size=4"] if name == "custext" else []
        try:
            ready = prepare(registry(), name, 3.0, options, table)
        except ConfigError:
            ready = prepare(registry(), name, 3.0, [], table)
        sanitize_command(ready, ["aa ab"], False, io.StringIO(), note)
        assert text in note.getvalue()


def test_released_share_is_the_computed_retention(table: str) -> None:
    """4,000 tokens of one symbol: its count lies within 5 standard deviations of P(x|x)."""
    ready, out = prepare(registry(), "list-rr", 3.0, ["k=4"], table), io.StringIO()
    sanitize_command(ready, [" ".join(["aa"] * 4_000)], False, out, io.StringIO())
    p = math.exp(3) / (4 * math.exp(3) + 36)
    assert abs(out.getvalue().split().count("aa") - 4_000 * p) < 5 * math.sqrt(4_000 * p * (1 - p))

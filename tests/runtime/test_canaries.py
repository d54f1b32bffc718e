# SPDX-License-Identifier: Apache-2.0
"""Canaries: marked records go through a whole run, and every byte between the parties is looked at."""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from osmotic.plugins.host import Registry, build_registry
from osmotic.plugins.spaces import tokenize
from osmotic.runtime import api
from osmotic.runtime.transports.inprocess import InProcess
from osmotic.schemas.artifacts import Records
from osmotic.schemas.messages import MAGIC, unpack

WORDS = ("the", "patient", "reports", "fever", "and", "cough", "since", "monday", "no", "allergy", "known", ".", ",", "heron")
NOTES = (
    "The patient, ACCT-7731-KESTREL, reports fever.",
    "MCALLISTERSON reports cough since 2024-03-17, tel 0171/5550199.",
    "😀 漢字 Zażółć: no known allergy, mail wren@example.org",
    "Unbelievableness and HERON heron heron, SSN 078-05-1120.",
)
OUTSIDE = ("kestrel", "7731", "acct", "mcallisterson", "2024", "0171", "5550199", "😀", "漢字", "zażółć", "wren", "078", "1120")
PATTERNS = (rb"\d{3}-\d{2}-\d{4}", rb"[A-Z]{4}-\d{4}", rb"\w+@\w+\.org", rb"20\d\d-\d\d-\d\d", rb"canary-id")
COUNT, EPSILON = 400, 2.0


class Wire:
    """Every request and reply of the transport, as bytes, and what was in the envelopes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.frames: list[tuple[str, str, bytes]] = []
        self.home = Path()
        self.tables: list[tuple[str, Records]] = []
        original = InProcess.request

        def request(transport: InProcess, party: str, header: dict[str, Any], blob: bytes = b"") -> Any:
            reply, body = original(transport, party, header, blob)
            if header["op"] != "plan":  # the plan's text comes from the coordinator and is public
                self.note(party, header["op"], header, blob)
                self.note(party, header["op"], reply, body)
            return reply, body

        monkeypatch.setattr(InProcess, "request", request)

    def note(self, party: str, op: str, header: dict[str, Any], blob: bytes) -> None:
        self.frames.append((party, op, json.dumps(header, ensure_ascii=False).encode() + b"\n" + blob))
        if blob.startswith(MAGIC):
            envelope = unpack(blob)
            self.frames += [(party, op, content) for content in envelope.files.values()]
            if envelope.kind == "records":
                table = Records.from_files(envelope.files)
                self.tables.append((envelope.edge, table))
                self.frames.append((party, op, json.dumps(table.rows, ensure_ascii=False).encode()))


def clinic_and_notes(folder: Path) -> Path:
    """Two parties with clinic records (names of a public domain, one of them marked) and free text."""
    save_file({"words": np.random.default_rng(0).normal(size=(len(WORDS), 4)).astype(np.float32)}, folder / "words.safetensors")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    source = Path(build_registry.__code__.co_filename).parent / "clinic" / "data"
    parties: dict[str, Any] = {"hub": {}}
    for party in ("north", "south"):
        rows = [json.loads(line) for line in (source / f"{party}.jsonl").read_text().splitlines()]
        clinic = [{**rows[i % len(rows)], "id": f"canary-id-{party}-{i}", "name": "xiomara"} for i in range(COUNT)]
        notes = [{"id": f"canary-id-note-{party}-{i}", "note": NOTES[i % len(NOTES)]} for i in range(40)]
        for name, table in (("clinic", clinic), ("notes", notes)):
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)
            (folder / f"{party}-{name}.jsonl").write_text(text, encoding="utf-8")
        text_schema = {"fields": {"note": {"text": True, "table": "words.safetensors#words"}}}
        parties[party] = {
            "data": {
                "clinic": {"path": f"{party}-clinic.jsonl", "schema": "osmotic:clinic/data/schema.yaml"},
                "notes": {"path": f"{party}-notes.jsonl", "schema": text_schema},
            }
        }
    sites = {"osmotic_sites": 1, "defaults": {"budget": {"*": {"per_document": 1000}}}, "parties": parties}
    (folder / "canary.sites.yaml").write_text(json.dumps(sites, indent=1), encoding="utf-8")
    mechanism = {"name": "list-rr", "epsilon": EPSILON, "k": 2}

    def at(component: str, role: str, inputs: dict[str, str] | None = None, **config: Any) -> dict[str, Any]:
        each = {"each": "party"} if role == "server" else {}
        return {"component": component, "at": role, **each, **({"inputs": inputs} if inputs else {}), "config": config}

    tasks = {
        "clinic": at("record_loader", "clients", data="clinic"),
        "notes": at("record_loader", "clients", data="notes"),
        "safe": at("dp_sanitizer", "clients", {"records": "clinic"}, mechanism=mechanism, fields=["name", "place", "sign"]),
        "safe_notes": at("dp_sanitizer", "clients", {"records": "notes"}, mechanism=mechanism, fields=["note"]),
        "seen": at("relay", "server", {"records": "safe"}),
        "seen_notes": at("relay", "server", {"records": "safe_notes"}),
        "back": at("relay", "clients", {"records": "seen"}),
        "back_notes": at("relay", "clients", {"records": "seen_notes"}),
    }
    document = {"osmotic": 1, "name": "canary", "parties": {"server": "hub", "clients": ["north", "south"]}, "tasks": tasks}
    (folder / "canary.yaml").write_text(json.dumps(document, indent=1), encoding="utf-8")
    return folder / "canary.yaml"


@pytest.fixture(scope="module")
def wire(tmp_path_factory: pytest.TempPathFactory, toys: Registry) -> Wire:
    folder = tmp_path_factory.mktemp("canaries")
    with pytest.MonkeyPatch.context() as patch:
        made = Wire(patch)
        made.home = folder / "home"
        api.run(clinic_and_notes(folder), home=made.home, registry=toys)
    assert len(made.tables) == 16  # eight crossings, seen as they leave and as they arrive
    return made


def test_nothing_raw_is_in_any_byte_between_the_parties(wire: Wire) -> None:
    everything = b"\n".join(content for _, _, content in wire.frames)
    for pattern in PATTERNS:
        assert not re.search(pattern, everything), pattern
    lowered = everything.decode("utf-8", "replace").lower()
    tables = "\n".join(json.dumps(t.rows, ensure_ascii=False) for _, t in wire.tables).lower()
    tables_without_ids = re.sub(r'"id": "[0-9a-f]{32}"', "", tables)
    for word in OUTSIDE:
        whole = rf"(?<!\w){word}(?!\w)"  # 'kestrelby' is a place of the public domain
        assert not re.search(whole, tables_without_ids), word
        if not word.isdigit():  # short runs of digits occur in digests
            assert not re.search(whole, lowered), word


def test_free_text_crosses_as_tokens_of_the_public_table_alone(wire: Wire) -> None:
    tokens = {token for edge, t in wire.tables if "notes" in edge for row in t for token in row["note"].split()}
    assert tokens and tokens <= set(WORDS)


def test_ids_that_cross_are_random_and_never_those_of_the_records(wire: Wire) -> None:
    for _, table in wire.tables:
        assert table.columns[0] == "id" and all(re.fullmatch("[0-9a-f]{32}", row["id"]) for row in table)


def test_a_canary_of_the_domain_comes_out_no_more_often_than_computed(wire: Wire) -> None:
    """Every name is the canary. n = 800 releases, p = e^2/(2 e^2 + 58) = 0.102: with 4.5 standard deviations a false alarm has
    probability below 1e-5, and a retention of 0.17 or more is found with probability above 0.999."""
    first = [row for edge, t in dict(wire.tables).items() if edge.startswith("safe@") for row in t]
    n, p = len(first), math.exp(EPSILON) / (2 * math.exp(EPSILON) + 58)
    kept = sum(row["name"] == "xiomara" for row in first)
    assert n == 2 * COUNT
    assert kept <= n * p + 4.5 * math.sqrt(n * p * (1 - p))
    assert kept >= n * p - 4.5 * math.sqrt(n * p * (1 - p))


def test_a_word_of_the_table_is_kept_no_more_often_than_computed(wire: Wire) -> None:
    """'heron' stands three times in every fourth note: n = 60, p = e^2/(2 e^2 + 12) = 0.276; a bound at 5 deviations."""
    rows = [row for edge, t in dict(wire.tables).items() if edge.startswith("safe_notes@") for row in t]
    lengths = Counter(len(row["note"].split()) for row in rows)
    assert set(lengths) == {len(tokenize(note)) for note in NOTES}  # the number of tokens is what text tells
    place = [i for i, token in enumerate(tokenize(NOTES[3])) if token == "heron"]
    marked = [row["note"].split() for row in rows if len(row["note"].split()) == len(tokenize(NOTES[3]))]
    if len({len(tokenize(note)) for note in NOTES}) == len(NOTES):
        n, p = len(marked) * len(place), math.exp(EPSILON) / (2 * math.exp(EPSILON) + 12)
        kept = sum(tokens[i] == "heron" for tokens in marked for i in place)
        assert n == 60 and kept <= n * p + 5 * math.sqrt(n * p * (1 - p))


def test_order_on_the_wire_says_nothing_about_the_order_of_the_records(wire: Wire) -> None:
    for _, table in wire.tables:
        ids = [row["id"] for row in table]
        assert ids == sorted(ids)


def test_no_digest_of_a_private_artifact_is_in_a_reply(wire: Wire, hashes: Callable[[Path], dict[str, str]]) -> None:
    private = {d for name, d in hashes(wire.home).items() if name.startswith(("clinic@", "notes@")) or name.endswith(".key")}
    assert len(private) == 8
    replies = b"".join(content for _, _, content in wire.frames)
    assert not any(digest.encode() in replies for digest in private)


def test_the_summary_and_the_report_hold_no_canary(wire: Wire) -> None:
    for name in ("run.json", "report.html"):
        content = (wire.home / name).read_bytes()
        content = re.sub(rb"made 20\d\d-\d\d-\d\dT", b"", content)  # when a card was made
        assert [content[m.start() - 40 : m.end() + 20] for pattern in PATTERNS for m in re.finditer(pattern, content)] == []
        assert not any(word.encode() in content.lower() for word in OUTSIDE if not word.isdigit())


def test_the_parquet_file_that_crosses_has_no_other_columns_or_notes(wire: Wire) -> None:
    import pyarrow.parquet as pq

    for _, table in wire.tables:
        file = pq.ParquetFile(io.BytesIO(table.to_files()["records.parquet"]))
        assert set(file.schema_arrow.names) <= {"id", "name", "place", "sign", "note"}
        assert set(file.schema_arrow.metadata or {}) <= {b"ARROW:schema"}

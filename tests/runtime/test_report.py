# SPDX-License-Identifier: Apache-2.0
"""The report: order, numbers, escaping, nothing loaded from anywhere, a picture without lines through tasks."""

import base64
import copy
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from osmotic.runtime.reporting.crossed import crossed, parties_of, roles_of
from osmotic.runtime.reporting.dots import scale
from osmotic.runtime.reporting.graph import lay_out
from osmotic.runtime.reporting.page import render
from osmotic.runtime.reporting.words import run_tone, size, time

CLIENTS = ("north", "south", "west")
ARMS = ("zero_shot", "local", "sanitized", "clean")
HOSTILE = "<script>alert(1)</script><img src=x onerror='a'>\"'&</style></title>--><!--"


def edge(source: str, target: str, port: str, into: str, crossing: bool = False, waived: bool = False) -> dict[str, Any]:
    return {"from": source, "to": target, "name": f"{target}.{into}", "port": port, "crossing": crossing, "waived": waived}


def node(name: str, component: str, at: str, count: int) -> dict[str, Any]:
    return {"name": name, "component": component, "at": at, "count": count, "waived": []}


NODES = [
    node("records", "record_loader", "client", 3),
    node("held_out", "record_loader", "client", 3),
    node("sanitized", "dp_sanitizer", "client", 3),
    node("rationales", "teacher_generator", "server", 3),
    node("clean_rationales", "teacher_generator", "server", 3),
    node("decoded", "rationale_decoder", "client", 3),
    node("filtered", "rationale_filter", "client", 3),
    node("rounds.student", "student_trainer", "client", 72),
    node("rounds.average", "aggregator", "server", 24),
    node("scores", "evaluator", "client", 36),
]
EDGES = [
    edge("records", "sanitized", "records", "records"),
    edge("sanitized", "rationales", "records", "records", crossing=True),
    edge("records", "clean_rationales", "records", "records", crossing=True, waived=True),
    edge("rationales", "decoded", "records", "noisy", crossing=True),
    edge("records", "decoded", "records", "records"),
    edge("decoded", "filtered", "records", "records"),
    edge("filtered", "rounds.student", "records", "rationales"),
    edge("clean_rationales", "rounds.student", "records", "rationales", crossing=True),
    edge("records", "rounds.student", "records", "records"),
    edge("rounds.student", "rounds.average", "weights", "updates", crossing=True, waived=True),
    edge("rounds.average", "rounds.student", "weights", "start", crossing=True),
    edge("rounds.average", "scores", "weights", "weights", crossing=True),
    edge("held_out", "scores", "records", "records"),
]
MEANS = {"zero_shot": 0.41, "local": 0.655, "sanitized": 0.702, "clean": 0.751}


def account(party: str, word: str, epsilon: float, waived: list[str]) -> dict[str, Any]:
    return {
        "party": party, "word": word, "epsilon": epsilon, "unit": "document", "detail": "6 fields x 4" if epsilon else "",
        "void": [], "waived": waived, "documents": 400 if epsilon else 0, "crossings": 9,
    }  # fmt: skip


def cell(mean: float, scatter: float) -> dict[str, Any]:
    seeds = {str(s): round(mean + scatter * (s - 1), 6) for s in range(3)}
    each = [{"party": p, "seed": s, "value": seeds[str(s)]} for p in CLIENTS for s in range(3)]
    return {"seeds": seeds, "mean": mean, "each": each}


def row(arm: str) -> dict[str, Any]:
    words = {"sanitized": "epsilon 24 a document (6 fields x 4), certified", "clean": "unprotected"}
    cells = {"accuracy": cell(MEANS[arm], 0.012), "kept": cell(MEANS[arm] * 0.9 + 0.05, 0.02)}
    return {"row": arm, "guarantee": words.get(arm, "nothing crosses"), "apart": arm == "clean", "cells": cells}


def crossing(producer: str, consumer: str, port: str, into: str, ends: tuple[str, str], count: int) -> dict[str, Any]:
    (sender, receiver), name = ends, f"{consumer}.{into}"
    return {
        "edge": f"{producer}@{sender}.{port}->{consumer}@{receiver}",
        "name": name,
        "sender": sender,
        "receiver": receiver,
        "bytes": count,
    }


def crossings() -> list[dict[str, Any]]:
    found = []
    for party in CLIENTS:
        found.append(crossing("sanitized", f"rationales[for={party}]", "records", "records", (party, "hub"), 48_213))
        found.append(crossing("records", f"clean_rationales[for={party}]", "records", "records", (party, "hub"), 61_404))
        found.append(crossing(f"rationales[for={party}]", "decoded", "records", "noisy", ("hub", party), 122_871))
        for turn in (1, 2, 3):
            into = f"rounds.average[round={turn},arm=clean]"
            found.append(
                crossing(f"rounds.student[round={turn},arm=clean]", into, "weights", "updates", (party, "hub"), 1_310_720)
            )
    for one in found:
        task, _, port = one["name"].rpartition(".")
        one["name"] = f"{task.partition('[')[0]}.{port}"
    return [*found, {**found[0], "bytes": 0}]


@pytest.fixture
def summary() -> dict[str, Any]:
    instances = {
        f"{n['name']}[arm={a},seed=0]@{p}": 1.25
        for n in NODES
        for a in ARMS
        for p in (CLIENTS if n["at"] == "client" else ("hub",))
    }
    waived = ["clean_rationales.records"]
    parties = [
        account("north", "unprotected", 24.0, waived),
        account("south", "certified", 24.0, []),
        account("west", "certified", 24.0, []),
    ]
    line = "Guarantee of this run: unprotected: raw benchmark data crossed under waivers (clean_rationales.records). "
    against = [("local", 0.245, 0.198, 0.291), ("sanitized", 0.292, 0.247, 0.338), ("clean", 0.341, -0.004, 0.383)]
    return copy.deepcopy(
        {
            "pipeline": "fedcot",
            "description": "Rationales for a small model, from a large one that sees sanitized prompts only.",
            "guarantee": {
                "line": line + "Rows that stay protected: zero_shot, local, sanitized.", "parties": parties,
                "rows": {arm: [account("north", "nothing crosses", 0.0, [])] for arm in ARMS},
            },
            "table": {
                "axis": "arm",
                "columns": [{"metric": "accuracy", "title": "Accuracy"}, {"metric": "kept", "title": "Rationales kept"}],
                "rows": [row(arm) for arm in ARMS], "withheld": [], "baseline": "zero_shot",
                "comparisons": [
                    {"row": r, "against": "zero_shot", "metric": "accuracy", "difference": d, "low": low, "high": high}
                    for r, d, low, high in against
                ],
            },
            "graph": {"nodes": NODES, "edges": EDGES}, "crossings": crossings(),
            "samples": [
                {
                    "title": "Sanitized prompts", "task": "sanitized[arm=sanitized,seed=0]@north", "withheld": "",
                    "rows": [
                        {"id": "n-0001", "text": "mara from dunmore, seen on 4 may, reports a dry cough.", "label": 2},
                        {"id": "n-0002", "text": "ivo from selby, on 9 june, has blurred vision.", "choices": ["eye", "lung"]},
                    ],
                },
                {
                    "title": "Raw records", "task": "records@north", "rows": [],
                    "withheld": "samples of records@north stay at north",
                },
            ],
            "outcome": {
                "tasks": 155, "ran": 120, "cached": 35, "seconds": 754.2, "stopped": {"rounds {'arm': 'local'}": 2},
                "times": instances | {"rounds.student[round=1,arm=clean]@north": 181.5},
            },
            "versions": {"python": "3.12", "numpy": "2.3.1", "torch": "2.7.1", "peft": "absent"},
            "ledger": [
                {
                    "party": party, "charges": 2400, "head": "9f" * 32,
                    "datasets": [
                        {
                            "dataset": "clinic", "documents": 400, "epsilon_largest": 24.0, "epsilon_mean": 23.4,
                            "unit": "document", "cap": 32.0, "left": 8.0,
                            "releases": [{"class": "certified", "detail": "6 fields x 4", "void": ""}],
                        }
                    ],
                }
                for party in CLIENTS
            ] + [{"party": "hub", "charges": 0, "head": "", "datasets": []}],
        }
    )  # fmt: skip


class Page(HTMLParser):
    """Tags, attributes and text as a browser would see them; unbalanced markup is an error."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def test_the_guarantee_stands_first_and_the_rest_in_order(summary: dict[str, Any]) -> None:
    page = render(summary)
    body = page.partition("<main>")[2].lstrip()
    assert body.startswith('<p class="guarantee bad')
    headings = re.findall(r"<h2>(.*?)</h2>", page)
    assert headings == [
        "What is promised", "Pipeline", "What crossed", "Results", "Samples", "Privacy cards", "Privacy ledger",
        "Tasks, time and cost", "Versions and hashes", "What this does not say",
    ]  # fmt: skip
    contents = re.findall(r'<li><a href="#(.*?)">(.*?)</a></li>', page)
    assert [title for _, title in contents] == headings
    assert [name for name, _ in contents] == re.findall(r'<section id="(.*?)">', page)
    assert page.startswith("<!doctype html>")
    assert "<title>Clinic</title>" in render(summary, title="Clinic")


@pytest.mark.parametrize(
    ("word", "void", "tone"),
    [("unprotected", ["seed"], "bad"), ("heuristic", [], "warn"), ("certified", ["seed"], "warn"), ("certified", [], "good")],
)
def test_the_weakest_party_gives_the_colour(word: str, void: list[str], tone: str) -> None:
    good = account("south", "nothing crosses", 0.0, [])
    assert run_tone([good, {**account("north", word, 4.0, []), "void": void}]) == tone
    assert run_tone([good]) == run_tone([]) == "good"


def test_nothing_is_loaded_and_the_policy_forbids_it(summary: dict[str, Any]) -> None:
    page = render(summary)
    seen = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {t for t, _ in seen.tags}
    names = {name for _, attrs in seen.tags for name in attrs}
    assert not {"src", "style", "xlink:href", "srcset"} & names
    assert {(tag, str(attrs["href"])[0]) for tag, attrs in seen.tags if "href" in attrs} == {("a", "#")}
    assert not [n for n in names if n.startswith("on")]
    css = page.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css and "@import" not in css and "http" not in page.replace("http-equiv", "")
    policy = next(a["content"] for t, a in seen.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(css.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("hostile", [False, True])
def test_a_browser_opens_it_from_a_file_without_complaint(summary: dict[str, Any], tmp_path: Path, hostile: bool) -> None:
    file = tmp_path / "report.html"
    file.write_text(render(poisoned(summary) if hostile else summary), "utf-8")
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [str(BROWSER), *flags, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=60, check=True
    )
    assert "CONSOLE" not in done.stderr  # a load or a style that the page's policy refuses would be told there
    assert "<svg" in done.stdout and "<script" not in done.stdout.replace("&lt;", "")


def poisoned(value: Any) -> Any:
    """Every text of the summary with markup in it, and the keys that come from pipelines, records and machines."""
    free = {"seeds", "cells", "versions", "times", "stopped"}
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [poisoned(v) for v in value]
    if not isinstance(value, dict):
        return value
    return {
        k: {poisoned(x): poisoned(y) for x, y in v.items()} if k in free and isinstance(v, dict)
        else [{poisoned(x): poisoned(y) for x, y in r.items()} for r in v] if k == "rows" and "task" in value
        else poisoned(v)
        for k, v in value.items()
    }  # fmt: skip


def test_no_text_of_the_run_becomes_markup(summary: dict[str, Any]) -> None:
    summary["samples"][1]["withheld"] = ""
    plain, hostile = Page(render(summary, title="t")), Page(render(poisoned(summary), title=HOSTILE))
    kinds = {tag for tag, _ in plain.tags}
    assert {tag for tag, _ in hostile.tags} <= kinds | {"span"}
    assert not [n for _, attrs in hostile.tags for n in attrs if n.startswith("on") or n in ("src", "style")]
    assert hostile.words.count("<script>alert(1)</script>") > 100
    render({**summary, "description": "half a pair \ud800"}).encode("utf-8")


def test_results_show_means_seeds_intervals_and_their_meaning(summary: dict[str, Any]) -> None:
    page = render(summary)
    words = Page(page).words
    assert "0.702 0.690 · 0.702 · 0.714 +0.292 [+0.247, +0.338]" in words
    assert "+0.341 [\u22120.004, +0.383]" in words
    assert 'class="gap clear">+0.292' in page and 'class="gap">+0.341' in page
    assert "paired by test record and seed" in words and "Where there is one seed they say nothing about others" in words
    assert page.index('<tr class="apart"><th scope="row">clean') > page.index('<th scope="row">sanitized')
    assert "sanitized Accuracy south 0: 0.690, 1: 0.702, 2: 0.714" in words
    assert words.count("3 parties: north, south, west") == 1
    assert page.count('class="dot"') == 2 * 4 * 3 and page.count('class="bar"') == 8


def test_values_that_are_not_there(summary: dict[str, Any]) -> None:
    rows = summary["table"]["rows"]
    rows[1]["cells"]["accuracy"] = {"seeds": {}, "mean": None, "each": [{"party": "north", "seed": None, "value": None}]}
    rows[2]["cells"]["accuracy"] = {"seeds": {"0": float("nan")}, "mean": float("nan"), "each": []}
    page = render(summary)
    assert page.count('class="dot"') == 4 * 3 + 2 * 3
    assert '"nan' not in page


def test_what_crossed_is_summed_by_edge(summary: dict[str, Any]) -> None:
    roles = roles_of(summary)
    assert roles == {"north": "client", "south": "client", "west": "client", "hub": "server"}
    graph = lay_out(summary["graph"], parties_of(roles))
    rows = {r["name"]: r for r in crossed(summary, roles, graph.numbers)}
    sent = rows["rationales.records"]
    assert (sent["what"], sent["count"], sent["again"], sent["bytes"]) == ("sanitized.records", 4, 1, 3 * 48_213)
    assert (sent["from"], sent["to"], sent["waived"]) == ("client (north, south, west)", "server (hub)", False)
    assert rows["clean_rationales.records"]["waived"] and rows["rounds.average.updates"]["count"] == 9
    assert "144.6 kB" in render(summary)
    assert sum(r["bytes"] for r in rows.values()) == sum(c["bytes"] for c in summary["crossings"])
    summary["crossings"] = []
    assert "Nothing crossed in this run" in render(summary)


def test_samples_kept_back_say_why(summary: dict[str, Any]) -> None:
    words = Page(render(summary)).words
    assert "Kept back: samples of records@north stay at north" in words
    assert '["eye", "lung"]' in words
    summary["samples"][0]["rows"] = [{"text": "x" * 5000}]
    assert "(3,800 more characters)" in render(summary)


def test_the_ledger_stands_by_party(summary: dict[str, Any]) -> None:
    words = Page(render(summary)).words
    assert "24 a document" in words and "hub nothing spent" in words
    first = summary["ledger"][0]["datasets"][0]
    first |= {"cap": None, "left": None, "releases": [{"class": "heuristic", "detail": "d", "void": "seed"}]}
    assert "heuristic d (void: seed)" in Page(render(summary)).words
    del summary["ledger"]
    assert "Privacy ledger" not in render(summary)


def test_a_run_with_nothing_to_show() -> None:
    empty = {
        "pipeline": "p", "description": "",
        "guarantee": {"line": "Guarantee of this run: nothing crosses.", "parties": [], "rows": {}},
        "table": {"axis": "arm", "columns": [], "rows": [], "withheld": ["north"], "baseline": "", "comparisons": []},
        "graph": {"nodes": [], "edges": []}, "crossings": [], "samples": [], "versions": {},
        "outcome": {"tasks": 0, "ran": 0, "cached": 0, "seconds": 0.0, "stopped": {}, "times": {}},
    }  # fmt: skip
    words = Page(render(empty)).words
    assert "no table of results" in words and "Metrics kept back by: north" in words


# ---- the picture ----


def segments(d: str) -> list[tuple[float, float, float, float]]:
    """The straight parts of a path (corners are rounded by Q)."""
    numbers = [tuple(map(float, p.split())) for p in re.findall(r"-?[\d.e+]+ -?[\d.e+]+", d)]
    kinds = re.findall(r"[MLQ]", d)
    points, at = [], 0
    for kind in kinds:
        points.append((kind, numbers[at + (kind == "Q")]))
        at += 2 if kind == "Q" else 1
    return [(*a[1], *b[1]) for a, b in pairwise(points) if b[0] == "L"]


def random_graph(seed: int, size: int, roles: tuple[str, ...]) -> dict[str, Any]:
    import random

    draw = random.Random(seed)
    nodes = [node(f"task_{i:02d}", "component", draw.choice(roles), 1) for i in range(size)]
    at = {n["name"]: n["at"] for n in nodes}
    pairs = {(draw.randrange(max(0, i - 7), i), i) for i in range(1, size) for _ in range(draw.randint(1, 3))}
    pairs |= {(i, draw.randrange(max(0, i - 5), i + 1)) for i in draw.sample(range(size), 2)}
    names = [(nodes[a]["name"], nodes[b]["name"]) for a, b in sorted(pairs)]
    edges = [edge(a, b, "records", a, at[a] != at[b], at[a] != at[b] and draw.random() < 0.2) for a, b in names]
    return {"nodes": nodes, "edges": edges}


GRAPHS = [(seed, size, roles) for seed in range(6) for size, roles in ((12, ("a",)), (25, ("a", "b")), (60, ("a", "b", "c")))]


@pytest.mark.parametrize(("seed", "size", "roles"), GRAPHS)
def test_lines_keep_clear_of_tasks_and_of_one_another(seed: int, size: int, roles: tuple[str, ...]) -> None:
    graph = random_graph(seed, size, roles)
    made = lay_out(graph, {})
    assert len(made.nodes) == size and len(made.lines) == len(graph["edges"])
    for a, b in combinations(made.nodes, 2):
        assert abs(a["x"] - b["x"]) >= 172 or abs(a["y"] - b["y"]) >= 46 + 20
    drawn = [(line, s) for line in made.lines for s in segments(line["d"])]
    for _, (x1, y1, x2, y2) in drawn:
        assert x1 == pytest.approx(x2, abs=0.01) or y1 == pytest.approx(y2, abs=0.01)
        assert min(x1, x2, y1, y2) >= 0 and max(x1, x2) <= made.width and max(y1, y2) <= made.height
        for n in made.nodes:
            inside = (
                max(x1, x2) > n["x"]
                and min(x1, x2) < n["x"] + 172
                and max(y1, y2) > n["y"] + 0.5
                and min(y1, y2) < n["y"] + 45.5
            )
            assert not inside, n["name"]
    trunks = [
        (line["edge"]["from"], line["style"], next(n["at"] for n in graph["nodes"] if n["name"] == line["edge"]["to"]), s)
        for line, s in drawn
    ]
    flat = [t for t in trunks if abs(t[3][1] - t[3][3]) < 0.01]
    for a, b in combinations(flat, 2):
        if a[:3] != b[:3] and abs(a[3][1] - b[3][1]) < 1:
            assert max(min(a[3][0], a[3][2]), min(b[3][0], b[3][2])) >= min(max(a[3][0], a[3][2]), max(b[3][0], b[3][2]))
    places = {(round(m["x"]), round(m["y"])) for m in made.marks}
    assert len(places) == len(made.marks)
    assert {m["x"] for m in made.marks} <= set(made.boundaries)
    assert set(made.numbers) == {(e["from"], e["name"]) for e in graph["edges"] if e["crossing"]}


def test_the_picture_tells_crossings_waivers_and_rounds_apart(summary: dict[str, Any]) -> None:
    made = lay_out(summary["graph"], {"client": list(CLIENTS), "server": ["hub"]})
    style = {line["edge"]["name"]: line["style"] for line in made.lines}
    assert style["rationales.records"] == "crossing" and style["sanitized.records"] == "inside"
    assert style["clean_rationales.records"] == style["rounds.average.updates"] == "waived"
    assert style["rounds.student.start"] == "crossing back"
    assert [b["role"] for b in made.bands] == ["client", "server"] and len(made.boundaries) == 1
    y = {n["name"]: n["y"] for n in made.nodes}
    assert all(y[e["from"]] < y[e["to"]] for e in EDGES if e["name"] != "rounds.student.start")


# ---- numbers in words ----


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (48_213, "48.2 kB"), (3_500_000_000_000, "3.5 TB")])
def test_sizes(count: int, words: str) -> None:
    assert size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0.20 s"), (12.4, "12 s"), (90, "1.5 min"), (3600 * 2 + 61, "2 h 01 min")]
)
def test_times(seconds: float, words: str) -> None:
    assert time(seconds) == words


@pytest.mark.parametrize("values", [[0.5], [0.0, 0.0], [0.41, 0.77], [-3.0, 12.0], [1e6, 1.2e6], [0.9999, 1.0]])
def test_a_scale_holds_its_values(values: list[float]) -> None:
    ticks = scale(values)
    assert ticks[0] <= min(values) + 1e-9 and ticks[-1] >= max(values) - 1e-9
    assert 2 <= len(ticks) <= 7

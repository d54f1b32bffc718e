# SPDX-License-Identifier: Apache-2.0
"""The parts of the report: the plan beside what happened, the frontier, curves, cards, answers beside prompts; large runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from osmotic.plugins.host import Registry
from osmotic.runtime import api
from osmotic.runtime.cli import application
from osmotic.runtime.reporting import cards, curves, frontier, words
from osmotic.runtime.reporting.beside import laid_out
from osmotic.runtime.reporting.crossed import crossed
from osmotic.runtime.reporting.dots import chart, scale
from osmotic.runtime.reporting.page import render, rendered
from osmotic.runtime.results.verifying import summary_of
from osmotic.schemas.errors import DataError
from osmotic.schemas.pipeline import ReportSpec

Tasks = Callable[..., dict[str, Any]]


@pytest.fixture
def run(shop: Any, tasks: Tasks, toys: Registry) -> dict[str, Any]:
    """The summary of a run, as its report has it."""
    shop.binding = {"purpose": "benchmark"}
    api.run(shop.write(tasks()), home=shop.home, registry=toys)
    return summary_of(shop.home)


def test_a_crossing_has_its_label_kind_and_bytes_as_planned(run: dict[str, Any]) -> None:
    rows = crossed(run, {}, {})
    assert [(r["labels"], r["kinds"], r["count"]) for r in rows] == [({"protected"}, {"records"}, 2)]
    assert rows[0]["sent"] == sum(c["bytes"] for c in run["crossings"]) > 0
    plan = rows[0]["plan"]
    assert (plan["labels"], plan["kind"], plan["count"], plan["known"]) == (["protected"], "records", 2, 0)
    assert plan["bytes"] > 0 and rows[0]["differs"] == []


def test_the_second_time_the_plan_knows_the_bytes(run: dict[str, Any], shop: Any, tasks: Tasks, toys: Registry) -> None:
    again = api.run(shop.write(tasks()), home=shop.home, registry=toys)
    (row,) = crossed(again, {}, {})
    assert row["plan"]["bytes"] == row["sent"] == sum(c["bytes"] for c in run["crossings"])
    assert (row["bytes"], row["plan"]["known"]) == (0, 2)  # held already: nothing moved


def test_what_was_not_planned_is_told(run: dict[str, Any]) -> None:
    for row in run["plan"]["crossings"]:
        row |= {"labels": ["public"], "kind": "weights", "count": 5}
    (row,) = crossed(run, {}, {})
    assert row["differs"] == ["planned as public", "planned as weights", "planned 5"]
    assert "planned as public, planned as weights, planned 5" in render(run)


def test_the_books_are_on_the_page(run: dict[str, Any]) -> None:
    page = render(run)
    (card,) = cards.merged(run["ledger"])
    assert card["parties"] == ["north", "south"] and card["holds"]
    assert card["epsilon_true"] == pytest.approx(card["declared"]["epsilon"])
    assert f"<span>{card['declared']['epsilon']:.4g}</span> epsilon a {card['declared']['unit']}" in page
    for party in run["ledger"]:
        assert party["transcript"]["head"] in page
    assert run["source"]["sha256"] in page and len(run["source"]["sha256"]) == 64


def test_equal_cards_are_one_and_the_worse_number_counts() -> None:
    card = {"mechanism": "m", "parameters": "{}", "code": "c", "declared": {"epsilon": 1.0}, "holds": True, "epsilon_true": 1.0}
    one = {**card, "bayes_success": 0.1, "self_retention": 0.2}
    two = {**card, "bayes_success": 0.3, "self_retention": 0.1, "holds": False, "epsilon_true": None}
    (found,) = cards.merged([{"party": "a", "cards": [one]}, {"party": "b", "cards": [two]}])
    expected = {"parties": ["a", "b"], "bayes_success": 0.3, "self_retention": 0.2, "holds": False, "epsilon_true": None}
    assert {key: found[key] for key in expected} == expected


def test_the_report_is_written_again_for_the_whole_and_for_a_party(run: dict[str, Any], shop: Any) -> None:
    for arguments, file in (((), "report.html"), (("--party", "north"), "parties/north/report.html")):
        (shop.home / file).unlink()
        done = CliRunner().invoke(application(), ["report", str(shop.home), *arguments])
        assert done.exit_code == 0, done.output
        assert Path(done.stdout.strip()) == shop.home / file and (shop.home / file).is_file()


@pytest.mark.parametrize("key", ["table", "graph", "outcome"])
def test_a_summary_of_another_version_is_told_apart(run: dict[str, Any], key: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be shown"):
        rendered({name: value for name, value in run.items() if name != key}, tmp_path)


def test_open_asks_for_the_browser(run: dict[str, Any], shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    done = CliRunner().invoke(application(), ["report", str(shop.home), "--open"])
    assert done.exit_code == 0 and opened == [(shop.home / "report.html").resolve().as_uri()]


# ---- privacy against use against bytes ----


def account(word: str, epsilon: float, unit: str = "document", void: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"party": "north", "word": word, "epsilon": epsilon, "unit": unit, "void": list(void)}


def front(**rows: tuple[dict[str, Any], float, int]) -> dict[str, Any]:
    column = {"metric": "acc", "title": "accuracy"}
    table = {"columns": [column], "rows": [{"row": n, "cells": {"acc": {"mean": v}}} for n, (_, v, _) in rows.items()]}
    moved = [{"edge": name, "bytes": 0, "sent": size} for name, (_, _, size) in rows.items()]
    by_row, edges = {n: [a] for n, (a, _, _) in rows.items()}, {n: [n] for n in rows}
    found = frontier.measured(ReportSpec(), table, by_row, edges, moved)
    assert found is not None
    return found


def test_the_frontier_is_what_no_row_beats() -> None:
    found = front(
        strong=(account("certified", 1.0), 0.6, 10), weak=(account("certified", 8.0), 0.8, 10),
        worse=(account("certified", 8.0), 0.7, 10), small=(account("certified", 8.0), 0.7, 5),
        bare=(account("unprotected", 8.0), 0.9, 10),
    )  # fmt: skip
    assert {p["row"]: p["best"] for p in found["points"]} == {
        "strong": True, "weak": True, "worse": False, "small": True, "bare": True,
    }  # fmt: skip
    assert {p["row"]: (p["epsilon"], p["bytes"]) for p in found["points"]}["bare"] == (None, 10)


def test_what_has_no_epsilon_stands_beside_the_scale() -> None:
    found = front(
        a=(account("certified", 1.0), 0.5, 1), b=(account("certified", 4.0), 0.7, 4),
        none=(account("nothing crosses", 0.0), 0.2, 0),
        bare=(account("unprotected", 4.0), 0.9, 9), void=(account("certified", 4.0, void=("seeded",)), 0.8, 4),
        guess=(account("heuristic", 4.0), 0.8, 4), other=(account("partition", 4.0, "document given classes"), 0.8, 4),
    )  # fmt: skip
    drawn = frontier.draw(found, scale)
    assert drawn is not None and drawn["unit"] == "document"
    place = {m["row"]: m["x"] for m in drawn["marks"]}
    assert place["none"] < drawn["left"] < place["a"] < place["b"] < drawn["right"]
    assert all(place[name] > drawn["right"] for name in ("bare", "void", "guess", "other"))
    assert max(m["r"] for m in drawn["marks"]) == frontier.LARGE and drawn["most"] == 9
    assert all(drawn["top"] <= m["y"] <= drawn["bottom"] for m in drawn["marks"])


def several(word: str, *parts: tuple[str, float, float, list[str]]) -> dict[str, Any]:
    """An account of several parts: (unit, epsilon, delta, what its name leaves out)."""
    made = [{"unit": u, "epsilon": e, "delta": d, "of": of, "text": f"{u} {e:g}", "class": word} for u, e, d, of in parts]
    return {**account(word, parts[0][1], parts[0][0]), "parts": made}


TWO_UNITS = several("dp-sgd", ("record", 3.0, 1e-5, []), ("document", 9.0, 0, []))


@pytest.mark.parametrize(
    ("better", "other", "beaten"),
    [
        (several("gaussian", ("record", 3.0, 1e-5, [])), several("gaussian", ("record", 3.0, 1e-3, [])), True),
        (several("gaussian", ("record", 3.0, 1e-3, [])), several("gaussian", ("record", 3.0, 1e-5, [])), False),
        (several("gaussian", ("record", 1.0, 0, ["replace-one"])), several("gaussian", ("record", 3.0, 0, ["add"])), False),
        (TWO_UNITS, several("dp-sgd", ("record", 3.0, 1e-5, [])), False),
        (several("partition", ("partition", 4.0, 0, ["few"])), several("partition", ("partition", 8.0, 0, ["many"])), False),
        (several("partition", ("partition", 4.0, 0, ["few"])), several("partition", ("partition", 8.0, 0, ["few"])), True),
        (several("gaussian", ("client", 1.0, 0, [])), several("gaussian", ("record", 3.0, 0, [])), False),
        (account("certified", 8.0), account("unprotected", 0.0), True),
        (account("certified", 8.0), account("heuristic", 2.0, "nominal"), True),
        (account("heuristic", 1.0, "nominal"), account("certified", 8.0), False),
        (account("unprotected", 0.0), account("heuristic", 8.0), False),
        (account("nothing crosses", 0.0), account("partition", 8.0, "partition"), True),
    ],
)  # fmt: skip
def test_a_row_beats_only_what_it_can_be_compared_with(better: Any, other: Any, beaten: bool) -> None:
    found = front(better=(better, 0.9, 5), other=(other, 0.5, 9))
    assert {p["row"]: p["best"] for p in found["points"]} == {"better": True, "other": not beaten}


def test_a_promise_of_several_units_or_none_has_no_number() -> None:
    two = several("dp-sgd", ("record", 3.0, 1e-5, []), ("document", 9.0, 0, []))
    found = front(
        two=(two, 0.9, 5),
        guess=(account("heuristic", 8.0, "nominal"), 0.9, 5),
        one=(several("dp-sgd", ("record", 2.0, 1e-5, [])), 0.5, 5),
    )
    assert [p["epsilon"] for p in found["points"]] == [None, None, 2.0]
    drawn = frontier.draw(found, scale)
    assert drawn is not None and drawn["x"] == "epsilon a record, delta at most 1e-05, smaller is more private"


def test_the_line_rises_though_bytes_keep_others_in_the_frontier() -> None:
    made = {name: account("certified", epsilon) for name, epsilon in (("low", 1.0), ("small", 2.0), ("high", 4.0))}
    found = front(low=(made["low"], 0.5, 9), small=(made["small"], 0.4, 1), high=(made["high"], 0.8, 9))
    drawn = frontier.draw(found, scale)
    assert drawn is not None and all(m["best"] for m in drawn["marks"])
    assert drawn["path"].count("L") == 1


def test_one_row_is_no_frontier() -> None:
    table = {"columns": [{"metric": "a", "title": "a"}], "rows": [{"row": "x", "cells": {"a": {"mean": 1.0}}}]}
    assert frontier.measured(ReportSpec(), table, {"x": []}, {"x": []}, []) is None
    assert frontier.draw(None, scale) is None


# ---- curves, intervals, answers, words ----


def test_curves_over_decades_are_logarithmic_and_stay_in_the_frame() -> None:
    lines = [{"name": "a", "of": 2, "steps": [1, 50, 100], "values": [3.0, 0.3, 0.01]}]
    drawn = curves.draw({"task": "student", "metric": "loss", "lines": lines}, scale)
    points = [tuple(map(float, p.split())) for p in drawn["lines"][0]["path"][1:].split("L")]
    assert drawn["log"] and drawn["lines"][0]["end"] == 0.01
    assert points[0][1] < points[1][1] < points[2][1] <= drawn["bottom"] and points[2][0] == drawn["right"]
    flat = curves.draw({"task": "t", "metric": "loss", "lines": [{**lines[0], "values": [3.0, 2.0, 1.0]}]}, scale)
    assert flat["log"] is False
    assert curves.draw({"task": "t", "metric": "loss", "lines": []}, scale)["lines"] == []


def test_an_interval_is_drawn_around_its_mean() -> None:
    cells = {"acc": {"mean": 0.5, "low": 0.4, "high": 0.7, "seeds": {"0": 0.5}}}
    table = {"rows": [{"row": "a", "apart": False, "cells": cells}], "baseline": "a"}
    (row,) = chart(table, {"metric": "acc", "title": "accuracy"})["rows"]
    assert row["span"][0] < row["mean"] < row["span"][1]


def test_answers_stand_beside_what_was_asked() -> None:
    asked = {"title": "asked", "task": "a", "withheld": "", "rows": [{"sign": "cough", "day": 4}, {"sign": "ache", "day": 9}]}
    answers = [{"prompt": "on day 9: ache", "rationale": "x"}, {"prompt": "on day 4: cough", "rationale": "y"}]
    (both,) = laid_out([asked, {"title": "answered", "task": "b", "withheld": "", "rows": answers}])
    assert both["sent"] == [{"sign": "ache", "day": 9}, {"sign": "cough", "day": 4}]
    assert both["columns"] == ["prompt", "rationale"] and both["title"] == "asked, and answered"
    other = {"title": "answered", "task": "b", "withheld": "", "rows": [{"prompt": "another", "empty": "", "reason": "late"}]}
    assert [(s["sent"], s["columns"]) for s in laid_out([asked, other])][1] == ([], ["reason", "prompt"])


@pytest.mark.parametrize(
    ("epsilon", "says", "tone"),
    [(1.0, "at most 2.7. As a promise about the worst case that is a strong one", "good"), (24.0, "10^10", "warn")],
)
def test_a_promise_in_words_says_how_much_it_is(epsilon: float, says: str, tone: str) -> None:
    accounts = [account("certified", epsilon)]
    assert says in " ".join(words.plainly(accounts)) and words.run_tone(accounts) == tone


def test_the_weakest_is_told_first() -> None:
    told = words.plainly([account("certified", 1.0), {**account("unprotected", 1.0), "party": "south"}])
    assert told[0].startswith("Data of south left its owner as they are")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (("partition", 2.0, 0.0, ["few"]), "a document given the class pattern: seeing everything that crossed, "
         "somebody's odds between two possible contents of a document whose values are in the same groups"),
        (("record", 2.0, 1e-5, ["add-or-remove-one"]), "odds on whether a record was there change by a factor of at most 7.4, "
         "but for a failure of probability 1e-05"),
        (("record", 2.0, 1e-5, ["replace-one"]), "between two possible contents of a record change"),
        (("client", 2.0, 1e-5, ["add-or-remove-one"]), "Epsilon 2 a client: seeing everything that crossed, somebody's odds on "
         "whether a client was there"),
    ],
)  # fmt: skip
def test_the_odds_are_of_the_unit_that_is_promised(part: tuple[str, float, float, list[str]], says: str) -> None:
    word = "partition" if part[0] == "partition" else "gaussian"
    assert says in " ".join(words.plainly([several(word, part)]))


def test_a_second_part_is_told_and_colours_too() -> None:
    one = several("gaussian", ("record", 1.0, 1e-5, []), ("document", 40.0, 0.0, []))
    assert "Beside it, in units of their own: document 40." in words.plainly([one])
    assert words.run_tone([one]) == "warn" and words.run_tone([several("gaussian", ("record", 1.0, 1e-5, []))]) == "good"


def test_parts_that_read_alike_are_told_once(run: dict[str, Any]) -> None:
    alike = several("metric", *(("distance", 15.0, 0.0, []) for _ in range(13)))
    run["guarantee"]["parties"][0] |= {"word": "metric", "parts": alike["parts"]}
    page = render(run)
    assert page.count("beside it distance 15") == 1 and "(12 such, of unlike tables or data sets)" in page


def test_what_is_nominal_is_no_epsilon(run: dict[str, Any]) -> None:
    run["guarantee"]["parties"][0] |= {"word": "heuristic", "epsilon": 90.0, "unit": "nominal", "parts": []}
    row = re.search(r'<tr data-party="north">.*?</tr>', render(run), re.DOTALL)
    assert (
        row is not None
        and ">none<span" in row[0]
        and "90 nominal" in row[0]
        and "certified" not in row[0].partition("made up")[0]
    )


# ---- large runs ----


def test_a_thousand_tasks_make_a_report_of_bounded_size(run: dict[str, Any]) -> None:
    summary = json.loads(json.dumps(run))
    many = {f"task{i}[seed={j}]@north": 1.0 for i in range(250) for j in range(4)}
    summary["outcome"] |= {"times": many, "tasks": 1000}
    one = summary["crossings"][0]
    summary["crossings"] = [{**one, "edge": f"task{i}@north.out->x@hub", "name": f"x{i}.in"} for i in range(1000)]
    summary["guarantee"]["parties"] = [{**run["guarantee"]["parties"][0], "party": f"p{i}"} for i in range(1000)]
    page = render(summary)
    assert len(page) < 600_000
    assert page.count("data-party=") == 200 and "and 800 more" in page
    assert re.search(r"<details>\s*<summary>Time of every task \(250\)", page)  # folded


def test_what_all_releases_come_to_together_is_in_the_table(run: dict[str, Any]) -> None:
    joint = {"epsilon": 5.5, "delta": 1e-5, "text": "together epsilon 5.5, delta 1e-05 a document"}
    run["guarantee"]["parties"][0] |= {"together": joint}
    page = render(run)
    assert '<th scope="col">all releases together</th>' in page and page.count(joint["text"]) == 1

# SPDX-License-Identifier: Apache-2.0
"""Intervals hold what they say: coverage of a known truth, with several seeds and parties; paired, seeded, nothing invented."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from osmotic.runtime.results import intervals, summary
from osmotic.runtime.results.intervals import Outcomes, difference, interval, wilson, within
from osmotic.runtime.results.result_text import result_text

Make = Callable[[np.random.Generator], Outcomes]


def drawn(seeds: int, of_seed: float, of_record: float, of_both: float, parties: int = 1, records: int = 60) -> Make:
    """Outcomes with mean 0 in the long run: effects of a seed, of a record (of each party's own), and of the two together."""

    def make(rng: np.random.Generator) -> Outcomes:
        each = [rng.normal(0, of_record, records) for _ in range(parties)]
        return {
            str(s): {str(p): list(one + rng.normal(0, of_both, records) + shift) for p, one in enumerate(each)}
            for s, shift in enumerate(rng.normal(0, of_seed, seeds))
        }

    return make


def covered(make: Make, truth: float = 0.0, times: int = 300) -> float:
    rng = np.random.default_rng(11)
    found = [interval(make(rng)) for _ in range(times)]
    return sum(one.low <= truth <= one.high for one in found if one) / times


@pytest.mark.parametrize(
    "make",
    [
        drawn(1, 0, 1, 0), drawn(3, 0, 1, 0), drawn(3, 0.3, 0.3, 0), drawn(3, 0, 0, 1), drawn(3, 0.1, 1, 1, parties=2),
        drawn(5, 0.1, 1, 1), drawn(5, 0.2, 0, 0.3, parties=3),
    ],
)  # fmt: skip
def test_coverage_of_a_known_truth(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 runs: the standard error of a coverage of .95 is .013; an interval that held in 85 of 100 cases would pass .92 in
    fewer than 1 of 1,000 tries."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    assert 0.92 <= covered(make) <= 0.99


@pytest.mark.parametrize("make", [drawn(1, 0, 1, 0, records=4), drawn(1, 0, 1, 0, records=8), drawn(3, 0.1, 1, 0.5, records=5)])
def test_coverage_of_a_handful_of_records(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resample without Student's t holds in .82, .89 and .91 of these cases (400 runs: standard error .011)."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    assert 0.92 <= covered(make, times=400) <= 0.99


def test_what_resampling_three_seeds_would_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual two-way resample holds in far fewer cases than it says where seeds matter: why it is not used."""
    rng, make, hits = np.random.default_rng(2), drawn(3, 0.5, 0.3, 0), 0
    for _ in range(300):
        values = np.array([list(strata["0"]) for strata in make(rng).values()])
        picks = zip(rng.integers(0, 3, (200, 3)), rng.integers(0, 60, (200, 60)), strict=True)
        low, high = np.percentile([values[s].mean(axis=0)[r].mean() for s, r in picks], [2.5, 97.5])
        hits += low <= 0 <= high
    assert hits / 300 < 0.82
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    assert covered(make) >= 0.92


def test_rights_and_wrongs_of_paired_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two arms that share the difficulty of a record; the true gain is .15 (200 runs of 80 records, 3 seeds)."""
    monkeypatch.setattr(intervals, "DRAWS", 1000)
    rng, hits = np.random.default_rng(7), 0
    for _ in range(200):
        ease = rng.uniform(0.1, 0.75, 80)
        arms = [{str(s): {"a": list((rng.random(80) < ease + gain) * 1.0)} for s in range(3)} for gain in (0.15, 0.0)]
        found = difference(*arms)
        assert found is not None and found.seeds == 3
        hits += found.low <= 0.15 <= found.high
    assert 0.92 <= hits / 200 <= 0.99


def test_pairing_takes_what_the_arms_share_out() -> None:
    rng = np.random.default_rng(3)
    base = {str(s): {"n": list(rng.normal(0, 1, 50)), "s": list(rng.normal(5, 1, 30))} for s in range(3)}
    more = {seed: {name: [v + 0.25 for v in values] for name, values in strata.items()} for seed, strata in base.items()}
    found = difference(more, base)
    assert found is not None and found.low == pytest.approx(0.25) == found.high
    assert difference(more, {"9": base["0"]}) is None and interval({}) is None
    alone = interval(base)
    assert alone is not None and alone.high - alone.low > 0.3
    assert alone.mean == pytest.approx(np.mean([np.mean([np.mean(v) for v in one.values()]) for one in base.values()]))
    assert alone == interval(base)  # seeded


def test_strata_that_do_not_pair_are_left_out_and_parties_weigh_alike() -> None:
    left = {"1": {"north": [1.0] * 30, "south": [0.0] * 10}, "2": {"north": [1.0] * 30, "south": [0.0] * 10}}
    both = interval(left)
    assert both is not None and (both.mean, both.low, both.high) == (0.5, 0.5, 0.5)
    right = {"1": {"north": [0.0] * 30, "south": [1.0] * 9}, "2": {"north": [0.0] * 30}}
    found = difference(left, right)
    assert found is not None and found.mean == 1.0
    odd = interval({"1": {"n": [1.0, 0.0]}, "2": {"n": [1.0]}})
    assert odd is None


def test_one_record_and_many_records() -> None:
    assert interval({"": {"n": [0.5]}}) is None  # not an interval of no width
    assert interval({"1": {"n": [0.5], "s": [1.0, 2.0]}, "2": {"n": [0.6], "s": [1.0, 2.0]}}) is None
    rng = np.random.default_rng(4)
    many = interval({"": {"n": list(rng.normal(0, 1, 5_000))}})
    few = interval({"": {"n": [float(v) for v in rng.random(50_000) < 0.3]}})
    assert few is not None and few.high - few.low == pytest.approx(2 * 1.96 * math.sqrt(0.3 * 0.7 / 50_000), rel=0.1)
    assert many is not None and many.high - many.low == pytest.approx(2 * 1.96 / math.sqrt(5_000), rel=0.1)


def test_a_difference_of_shares_is_never_beyond_one() -> None:
    rng = np.random.default_rng(5)
    good = {str(s): {"a": [float(x) for x in rng.random(40) < share]} for s, share in enumerate((0.9, 1.0, 1.0))}
    bad = {str(s): {"a": [0.0] * 40} for s in range(3)}
    found, other = difference(good, bad), difference(bad, good)
    assert found is not None and other is not None and found.mean > 0.9
    assert (found.high, other.low) == (1.0, -1.0)
    free = interval({s: {"a": [a - b for a, b in zip(one["a"], bad[s]["a"], strict=True)]} for s, one in good.items()})
    assert free is not None and free.high > 1.0  # what it is without the bound


def test_wilson_against_the_published_form() -> None:
    """50 of 100: .404 to .596; 0 of 10: 0 to .278 (Brown, Cai and DasGupta, 2001, give the same)."""
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert within(intervals.Interval(0.9, 0.7, 1.1, 3), 0, 1).high == 1


def one(party: str, seed: int, right: list[float]) -> dict[str, object]:
    return {"party": party, "seed": seed, "values": {"accuracy": sum(right) / len(right)}, "outcomes": {"accuracy": right}}


def test_the_table_shows_the_interval_of_a_mean_and_of_a_difference() -> None:
    measured = {
        "labels": [one(p, s, [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]) for p in ("n", "s") for s in (1, 2)],
        "fedcot": [one("n", 1, [1.0] * 6), one("s", 1, [1.0] * 6), one("n", 2, [1.0] * 6), one("s", 2, [1.0] * 6)],
    }
    columns = [{"metric": "accuracy", "title": "label alone"}]
    (found,) = summary._comparisons(measured, columns, "labels")
    assert (found["difference"], found["seeds"]) == (0.5, 2) and -0.2 < found["low"] < 0.5 < found["high"]  # of six records
    rows = [summary._row(name, had, columns, "nothing crosses", False) for name, had in measured.items()]
    plain, sure = (row["cells"]["accuracy"] for row in rows)
    assert 0 <= plain["low"] < 0.5 < plain["high"] <= 1
    assert sure["low"] == pytest.approx(wilson(6, 6)[0]) and sure["high"] == 1.0
    table = {"axis": "arm", "columns": columns, "rows": rows, "withheld": [], "comparisons": [found]}
    outcome = {"tasks": 4, "ran": 4, "cached": 0, "seconds": 1.0}
    text = result_text(
        {"guarantee": {"line": ""}, "table": table, "crossings": [], "outcome": outcome, "home": "h", "graph": {"edges": []}}
    )
    assert "bootstrap over records, and 2 seeds" in text and "[95%]" in text and "1.000 1.000  1.000 [0.610, 1.000]" in text


def test_two_tasks_of_one_row_are_two_strata() -> None:
    twice = [one("n", 1, [1.0, 0.0, 1.0, 1.0]), one("n", 1, [0.0, 0.0, 0.0, 1.0])]
    bounds = summary._bounds(twice, "accuracy", 0.5)
    assert bounds and summary._bounds(twice, "accuracy", 0.75) == {} == summary._bounds(twice, "other", 0.5)

# SPDX-License-Identifier: Apache-2.0
"""Private evolution in a world without torch: a text is an angle, near is near in angle, votes are counted at a fake host."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from osmotic.components.candidate_evolver import CandidateEvolver
from osmotic.components.nearest_voter import NearestVoter
from osmotic.plugins.contract import Answer, Gathered, Records
from osmotic.plugins.testing import FakeContext, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

RANDOM = "write {{ label }}"
VARY = "vary {{ text }} as {{ label }}"


def angle_of(text: str) -> float:
    return float(re.findall(r"-?\d+", text)[-1])


class Circle:
    """An Embedder: the last number of a text is an angle in degrees; no number, no direction. `calls`: texts of each call."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def embed(self, texts):
        self.calls.append(list(texts))
        angles = [math.radians(angle_of(t)) if re.search(r"\d", t) else None for t in texts]
        found = [(0.0, 0.0) if a is None else (math.cos(a), math.sin(a)) for a in angles]
        return np.array(found, dtype=np.float32).reshape(len(texts), 2)


class Compass:
    """A TextGenerator: any angle for a random prompt, one within 15 degrees for a variation; by the seed alone.

    dies: raises after so many answers. asked: every prompt and its seed.
    """

    def __init__(self, answer: Callable[[str, int], str] | None = None, dies: int | None = None) -> None:
        self.asked: list[tuple[str, int]] = []
        self.dies, self._answer = dies, answer or self._angle

    def generate(self, prompts, how):
        made = []
        for index, prompt in enumerate(prompts):
            if self.dies is not None and len(self.asked) >= self.dies:
                raise KeyboardInterrupt
            self.asked.append((prompt, how.of(index).seed))
            made.append(Answer(self._answer(prompt, how.of(index).seed), True, 2))
        return made

    @staticmethod
    def _angle(prompt: str, seed: int) -> str:
        rng = random.Random(seed)
        if prompt.startswith("write"):
            return f"angle {rng.randrange(360)}"
        return f"angle {(round(angle_of(prompt)) + rng.randint(-15, 15)) % 360}"


class Polls(FakeContext):
    """Counts votes exactly, or with seeded noise of `noise_multiplier` where `noisy`; `polls`: the votes of every round."""

    noisy = False

    def noisy_votes(self, records, votes, size, noise):
        self.polls = [*getattr(self, "polls", []), dict(votes)]
        counts = np.bincount(list(votes.values()), minlength=size).astype(float)
        if self.noisy:
            counts += np.random.default_rng(len(self.polls)).normal(0, noise["noise_multiplier"], size)
        return Records([{"value": str(i), "count": float(c)} for i, c in enumerate(counts)], ["value", "count"])


def records(*pairs: tuple[str, int]) -> Records:
    return Records(
        [{"id": f"r{i}", "label": a, "text": f"angle {b}"} for i, (a, b) in enumerate(pairs)], ["id", "label", "text"]
    )


def candidates(*pairs: tuple[str, int]) -> Records:
    rows = [{"id": f"n{i:07d}", "label": a, "text": f"angle {b}"} for i, (a, b) in enumerate(pairs)]
    return Records(rows, ["id", "label", "text"])


def votes(*counts: float) -> Records:
    return Records([{"value": str(i), "count": float(c)} for i, c in enumerate(counts)], ["value", "count"])


def voted(given: Records, among: Records, context: Polls | None = None, **config: Any) -> list[float]:
    """Exact counts, in order; checks that every record has one vote."""
    context = context or Polls(models={"circle": Circle()})
    settings = {"embedder": "circle", "noise": {"noise_multiplier": 1.0}, **config}
    made = run_component(NearestVoter, settings, {"records": given, "candidates": among}, context)["votes"]
    assert [row["value"] for row in made] == [str(i) for i in range(len(among))]
    assert set(context.polls[-1]) == {row["id"] for row in given}
    return [row["count"] for row in made]


BASE: dict[str, Any] = {
    "labels": ["up", "down"], "per_label": 3, "variations": 2, "model": "compass", "random_prompt": RANDOM,
    "variation_prompt": VARY,
}  # fmt: skip


def evolved(inputs: dict[str, Any], context: FakeContext | None = None, **config: Any) -> Any:
    context = context or FakeContext(models={"compass": Compass()})
    return run_component(CandidateEvolver, {**BASE, **config}, inputs, context)


def rows(made: Records) -> list[tuple[str, str]]:
    return [(row["label"], row["text"]) for row in made]


# ---- votes -----------------------------------------------------------------------------------------------------------


def test_every_record_votes_once_for_the_nearest_of_its_own_label():
    given = records(("up", 10), ("up", 80), ("up", 95), ("down", 10), ("down", 200))
    among = candidates(("up", 0), ("up", 90), ("down", 180), ("down", 11))
    assert voted(given, among) == [1, 2, 1, 1]


def test_a_label_without_candidates_votes_among_all_of_them():
    given = records(("sideways", 88), ("up", 179), ("sideways", 181))
    assert voted(given, candidates(("up", 90), ("down", 180))) == [2, 1]


def test_ties_and_texts_without_a_direction_have_their_vote_all_the_same():
    """Of equal candidates the first gets it; a text that embeds to nothing, or is missing, is equally near to all."""
    given = records(("up", 5), ("up", 5))
    given.rows[0]["text"], given.rows[1]["text"] = None, "no number"
    assert voted(given, candidates(("up", 90), ("up", 90), ("down", 0))) == [2, 0, 0]


def test_a_vote_depends_on_its_own_record_alone():
    """Records are embedded one at a time, and another company or order changes no vote."""
    circle = Circle()
    given = records(*((("up", "down")[i % 2], i * 37 % 360) for i in range(40)))
    among = candidates(*((("up", "down")[i % 2], i * 53 % 360) for i in range(12)))
    whole = Polls(models={"circle": circle})
    voted(given, among, whole)
    assert [len(call) for call in circle.calls] == [12] + [1] * 40
    half = Polls(models={"circle": Circle()})
    voted(Records(given.rows[::-2]), among, half)
    assert half.polls[0].items() <= whole.polls[0].items()


def test_one_record_more_or_less_moves_the_counts_by_one_in_one_place():
    given = records(*((("up", "down", "odd")[i % 3], i * 41 % 360) for i in range(30)))
    among = candidates(*((("up", "down")[i % 2], i * 53 % 360) for i in range(10)))
    whole = np.array(voted(given, among))
    for i in range(30):
        off = whole - np.array(voted(Records(given.rows[:i] + given.rows[i + 1 :]), among))
        assert sorted(off) == [0] * 9 + [1]


def test_votes_need_candidates_and_fields():
    with pytest.raises(ComponentError, match="no candidates"):
        voted(records(("up", 1)), candidates())
    with pytest.raises(DataError, match="no field 'body'"):
        voted(records(("up", 1)), candidates(("up", 1)), text_field="body")
    with pytest.raises(DataError, match="needs a 'label' and a 'text'"):
        voted(records(("up", 1)), Records([{"id": "n0000000", "text": "angle 1"}]))
    schema = RecordSchema(fields={"label": FieldSpec(domain=("up", "down")), "text": FieldSpec(text=True)})
    from osmotic.components.nearest_voter import NearestVoterConfig

    config = NearestVoterConfig.model_validate({"embedder": "c", "noise": {"noise_multiplier": 1.0}, "text_field": "txt"})
    assert any("text_field" in text for text in NearestVoter.check(config, schema))
    with pytest.raises(ConfigError, match="noise_multiplier"):
        voted(records(("up", 1)), candidates(("up", 1)), noise={"epsilon": 1.0})


def test_a_record_without_numbers_has_its_vote_and_a_wrong_shape_is_refused():
    class Odd(Circle):
        def embed(self, texts):
            found = super().embed(texts)
            return (
                found[:1] if len(texts) > 1 and short else np.where(np.array(["5" in t for t in texts])[:, None], np.nan, found)
            )

    short = False
    given = records(("up", 5), ("up", 80))
    assert voted(given, candidates(("up", 0), ("up", 90)), Polls(models={"circle": Odd()})) == [1, 1]
    short = True
    with pytest.raises(ComponentError, match="the shape"):
        voted(given, candidates(("up", 0), ("up", 90)), Polls(models={"circle": Odd()}))


def test_other_fields_and_labels_that_are_numbers():
    given = Records([{"id": "a", "stars": 5, "review": "angle 3"}, {"id": "b", "stars": 1, "review": "angle 3"}])
    assert voted(given, candidates(("5", 100), ("1", 3)), label_field="stars", text_field="review") == [1, 1]


# ---- evolution -------------------------------------------------------------------------------------------------------


def test_it_begins_with_texts_of_each_label_each_from_a_seed_of_its_own():
    compass = Compass()
    made = evolved({}, FakeContext(models={"compass": compass}), initial=20)
    found = rows(made["candidates"])
    assert [row["id"] for row in made["candidates"]] == [f"n{i:07d}" for i in range(len(found))]
    assert len(set(found)) == len(found) >= 34  # 40 asked; of equal texts under a label one stays
    assert made["report"].data["alike"] == 40 - len(found)
    assert len({seed for _, seed in compass.asked}) == 40 and {p for p, _ in compass.asked} == {"write up", "write down"}
    assert [label for label, _ in rows(made["selected"])] == ["up"] * 3 + ["down"] * 3
    assert set(rows(made["selected"])) <= set(found)


def test_the_texts_with_most_votes_survive_and_are_varied():
    among = candidates(("up", 0), ("up", 90), ("up", 180), ("up", 270), ("down", 45), ("down", 135))
    gathered = {"votes": {"north": votes(5, -3, 9, 1, 0.5, 20)}, "candidates": among}
    made = evolved(gathered, per_label=2)
    assert rows(made["selected"]) == [("up", "angle 180"), ("up", "angle 0"), ("down", "angle 135"), ("down", "angle 45")]
    assert rows(made["candidates"])[:4] == rows(made["selected"])
    varied = rows(made["candidates"])[4:]
    assert 6 <= len(varied) <= 8
    for label, text in varied:
        parents = [angle_of(parent) for own, parent in rows(made["selected"]) if own == label]
        assert min(abs((angle_of(text) - p + 180) % 360 - 180) for p in parents) <= 15
    about = made["report"].data["labels"]["up"]
    assert about == {"candidates": 4, "survivors": 2, "survivors by votes": 2, "noisy votes": 12.0}


def test_votes_of_several_clients_are_summed():
    among = candidates(("up", 0), ("up", 90), ("up", 180))
    several = {"north": votes(3, 0, 2), "east": votes(0, 2.5, 2), "west": votes(0, 0, -0.5)}
    made = evolved({"votes": several, "candidates": among}, labels=["up"], per_label=1, variations=0)
    assert rows(made["selected"]) == [("up", "angle 180")]
    assert made["report"].data["parties"] == ["east", "north", "west"] and made["report"].data["answers"] == 0


def test_the_threshold_takes_small_and_negative_counts_away_and_chance_fills_up():
    among = candidates(*(("up", i) for i in range(12)))
    counts = votes(9, 8, *([3] * 4), *([-7] * 6))
    first = set()
    for seed in range(20):
        context = FakeContext(seed=seed)
        made = evolved({"votes": {"n": counts}, "candidates": among}, context, labels=["up"], variations=0, threshold=3)
        assert rows(made["selected"])[:2] == [("up", "angle 0"), ("up", "angle 1")]
        assert made["report"].data["labels"]["up"]["survivors by votes"] == 2
        first.add(rows(made["selected"])[2])
    assert len(first) > 5  # a count at the threshold is worth as little as a negative one


@pytest.mark.parametrize("selection", ["rank", "sample"])
def test_where_no_candidate_passes_chance_decides(selection: str):
    among, counts = candidates(*(("up", i) for i in range(5))), votes(-1, -2, 0, -0.5, -9)
    found = set()
    for seed in range(30):
        made = evolved(
            {"votes": {"n": counts}, "candidates": among}, FakeContext(seed=seed), labels=["up"], per_label=2, variations=0,
            selection=selection,
        )  # fmt: skip
        assert len(made["selected"]) == 2
        found |= set(rows(made["selected"]))
    assert len(found) == 5


def test_sampling_draws_in_proportion_and_with_replacement():
    """3000 draws of weights 3 : 1 : 0; the share of the first is 0.75 +- 0.025 with probability above 0.998."""
    among, counts = candidates(("up", 0), ("up", 90), ("up", 180)), votes(4, 2, -5)
    made = evolved(
        {"votes": {"n": counts}, "candidates": among}, labels=["up"], per_label=3000, variations=0, threshold=1,
        selection="sample",
    )  # fmt: skip
    found = [text for _, text in rows(made["selected"])]
    assert len(found) == 3000 and "angle 180" not in found
    assert found.count("angle 0") / 3000 == pytest.approx(0.75, abs=0.025)
    assert rows(made["candidates"]) == [("up", "angle 0"), ("up", "angle 90")]  # nobody votes for a text twice


def test_fewer_candidates_than_survivors_all_stay():
    made = evolved({"candidates": candidates(("up", 0), ("down", 9))}, variations=0, per_label=10)
    assert rows(made["selected"]) == [("up", "angle 0"), ("down", "angle 9")]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (votes(1), "about 1 candidates, and there are 2"),
        (Records([{"value": "1", "count": 1.0}, {"value": "1", "count": 2.0}]), "about 2 candidates"),
        (Records([{"value": "0", "count": 1.0}, {"value": "x", "count": 2.0}]), "about 2 candidates"),
        (votes(1, math.inf), "no number"),
        (Records([{"value": "0", "count": 1.0}, {"value": "1", "count": None}]), "no number"),
    ],
)
def test_votes_that_are_not_about_the_candidates_are_refused(wrong: Records, said: str):
    with pytest.raises(DataError, match=said):
        evolved({"candidates": candidates(("up", 0), ("down", 9)), "votes": {"north": wrong}})
    with pytest.raises(DataError, match="no candidates"):
        evolved({"votes": {"north": votes(1)}})
    with pytest.raises(DataError, match="'odd', which is not one of"):
        evolved({"candidates": candidates(("up", 0), ("odd", 9))})


def test_a_prompt_may_show_the_start_of_a_text_which_the_answer_goes_on():
    among = Records([{"id": "n0000000", "label": "up", "text": "one two three four"}])
    compass = Compass(lambda prompt, seed: ", five" if seed % 2 else "and six")
    settings = {"labels": ["up"], "variation_prompt": "{{ label }}: {{ start }}", "variations": 40, "keep": [0.0, 1.0]}
    made = evolved({"candidates": among}, FakeContext(models={"compass": compass}), **settings)
    starts = {"one", "one two", "one two three"}
    assert {prompt for prompt, _ in compass.asked} == {f"up: {start}" for start in starts}
    wanted = {f"{start}, five" for start in starts} | {f"{start} and six" for start in starts}
    assert {text for _, text in rows(made["candidates"])[1:]} == wanted


def test_a_pattern_takes_the_text_out_of_the_answer_and_what_is_not_usable_is_asked_again():
    def answer(prompt: str, seed: int) -> str:
        return f"sure! text: number {seed % 97} here" if asked.append(seed) or len(asked) > 6 else "I cannot"

    asked: list[int] = []
    context = FakeContext(models={"compass": Compass(answer)})
    settings = {"answer_pattern": r"text: (.+)", "initial": 3, "attempts": 2, "min_words": 3}
    made = evolved({}, context, **settings)
    assert len(asked) == 12 and len(set(asked)) == 12
    assert all(text.startswith("number") for _, text in rows(made["candidates"]))
    assert made["report"].data["answers"] == 12 and made["report"].data["without a text"] == {}


def test_what_a_step_cost_is_told_whether_it_was_usable_or_not():
    class Paid(Compass):
        def generate(self, prompts, how):
            made = []
            for answer in super().generate(prompts, how):
                lost = len(made) % 4 == 0
                made.append(replace(answer, cost=0.5, prompt_tokens=3, tokens=2, problem="timeout" if lost else ""))
            return made

    paid = Paid(lambda prompt, seed: "angle 5" if seed % 2 else "")
    report = evolved({}, FakeContext(models={"compass": paid}), initial=20, max_failures=1.0, attempts=1)["report"].data
    assert report["cost"] == 0.5 * len(paid.asked) == 0.5 * 40
    assert (report["prompt_tokens"], report["tokens"]) == (3 * len(paid.asked), 2 * len(paid.asked))
    assert set(report["without a text"]) == {"not usable", "timeout"}


def test_texts_do_not_depend_on_how_many_are_asked_at_a_time():
    made = [evolved({}, batch=batch, initial=7) for batch in (1, 3, 32)]
    assert rows(made[0]["candidates"]) == rows(made[1]["candidates"]) == rows(made[2]["candidates"])


def test_a_generator_that_writes_nothing_usable_is_shown_with_the_label():
    compass = Compass(lambda prompt, seed: "angle 5" if "up" in prompt else "no")
    with pytest.raises(ComponentError, match="nothing usable for the label 'down'") as caught:
        evolved({}, FakeContext(models={"compass": compass}), min_words=2)
    assert "'no'" in str(caught.value)
    with pytest.raises(ComponentError, match="4 of 4 prompts gave no usable text: 4 not usable"):
        evolved({"candidates": candidates(("up", 5), ("down", 5))}, FakeContext(models={"compass": Compass(lambda *_: " ")}))


def test_it_says_what_it_needs_to_begin():
    with pytest.raises(ConfigError, match="nothing to begin with"):
        evolved({}, random_prompt=None)


def test_a_killed_step_goes_on_with_what_it_would_have_had():
    whole = Compass()
    wanted = evolved({}, FakeContext(models={"compass": whole}), batch=4)
    dying = Compass(dies=9)
    context = FakeContext(models={"compass": dying})
    with pytest.raises(KeyboardInterrupt):
        evolved({}, context, batch=4)
    dying.dies = None
    again = evolved({}, context, batch=4)
    assert rows(again["candidates"]) == rows(wanted["candidates"])
    assert set(dying.asked) == set(whole.asked)
    assert len(dying.asked) == len(whole.asked) + 1  # the ninth was answered, and its batch not yet written down
    evolved({}, context, batch=4)
    assert len(dying.asked) == len(whole.asked) + 1


def test_a_seed_decides_everything_and_another_one_other_texts():
    first, same, other = (evolved({}, FakeContext(models={"compass": Compass()}, seed=seed)) for seed in (1, 1, 2))
    assert rows(first["candidates"]) == rows(same["candidates"]) != rows(other["candidates"])
    among = candidates(("up", 0), ("up", 90), ("up", 180), ("down", 9))
    make = lambda: FakeContext(models={"compass": Compass()})  # noqa: E731
    check_component(CandidateEvolver, {**BASE, "per_label": 2}, {"candidates": among, "votes": {"n": votes(0, 0, 0, 1)}}, make)
    inputs = {"records": records(("up", 10), ("down", 30)), "candidates": among}
    settings = {"embedder": "circle", "noise": {"noise_multiplier": 1.0}}
    check_component(NearestVoter, settings, inputs, lambda: Polls(models={"circle": Circle()}))


# ---- rounds ----------------------------------------------------------------------------------------------------------


def spread(made: Records, centres: dict[str, int]) -> float:
    """The mean distance in degrees of the texts from their label's private centre."""
    return float(np.mean([abs((angle_of(text) - centres[label] + 180) % 360 - 180) for label, text in rows(made)]))


def rounds(seed: int, *, times: int = 5, votes_count: bool = True, noise: float = 1.0) -> list[float]:
    """How far the chosen texts are from the private ones, before the votes and after each round of two clients' votes."""
    centres = {"up": 90, "down": 200}
    rng = random.Random(seed)
    owned = {p: records(*((a, round(c + rng.gauss(0, 8))) for a, c in centres.items() for _ in range(40))) for p in "ab"}
    context = Polls(models={"compass": Compass(), "circle": Circle()}, seed=seed)
    context.noisy = True
    made = evolved({}, context, initial=30)
    found = [spread(made["selected"], centres)]
    for _ in range(times):
        settings = {"embedder": "circle", "noise": {"noise_multiplier": noise}}
        polled = {
            party: run_component(NearestVoter, settings, {"records": own, "candidates": made["candidates"]}, context)["votes"]
            for party, own in owned.items()
        }
        inputs = {"candidates": made["candidates"], **({"votes": polled} if votes_count else {})}
        made = evolved(inputs, context)
        found.append(spread(made["selected"], centres))
    return found


def test_votes_move_the_texts_to_the_private_ones_and_nothing_else_does():
    """Five seeds: random texts are 90 degrees off on average; voted ones come within 12 each, unvoted ones stay beyond 30."""
    with_votes = [rounds(seed) for seed in range(5)]
    without = [rounds(seed, votes_count=False) for seed in range(5)]
    assert np.mean([found[0] for found in with_votes]) > 50
    assert max(found[-1] for found in with_votes) < 12
    assert all(found[-1] <= found[1] + 5 for found in with_votes)
    assert np.mean([found[-1] for found in without]) > 45 and min(found[-1] for found in without) > 25


def test_noise_far_beyond_the_votes_leaves_chance():
    assert np.mean([rounds(seed, noise=1e4)[-1] for seed in range(5)]) > 45


def test_gathered_votes_are_read_one_party_at_a_time():
    opened: list[str] = []
    gathered = Gathered({p: (lambda p=p: opened.append(p) or votes(1, 0)) for p in ("west", "east")})
    from osmotic.components.evolving.selection import summed

    assert summed(gathered, 2) == [2.0, 0.0] and opened == ["east", "west"]

# SPDX-License-Identifier: Apache-2.0
"""The server's step of FedDTPT: weights against the definition, clusters of known points, what stays frozen, who is named."""

import math
import random
import sys

import numpy as np
import pytest

from osmotic.components.prompt_aggregator import PromptAggregator
from osmotic.components.prompt_tuner import PromptTuner
from osmotic.components.prompting.clusters import NOISE, curve_of, dbscan, directions, kmeans, knee, mean_cosines
from osmotic.components.prompting.merging import Rules, merged, spots_of
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.words import Words, encoded
from osmotic.plugins.contract import Document, Records
from osmotic.plugins.testing import FakeContext, FakeMaskedLM, FakeTextGenerator, check_component, run_component
from osmotic.schemas.errors import ConfigError, DataError

pytest.importorskip("sklearn", reason="the extra 'eval' is not installed")
LABELS = {"0": "bad", "1": "good"}
TEXT = "Say if this is good or bad : {{ text }} [[Answer:]]"
SPARE = [f"w{i}" for i in range(80)]
VOCABULARY = ["[MASK]", "##ing", "Say", "if", "this", "is", "or", ":", "tell", "whether", "the", "opinion", *SPARE]
WORDS = Words(VOCABULARY)


class Places:
    """An Embedder: every word has a vector of its own; `near` puts words beside others. asked: the texts."""

    def __init__(self, near: dict[str, tuple[str, float]] | None = None, dimension: int = 64) -> None:
        self.near, self.dimension, self.asked = near or {}, dimension, list[str]()

    def embed(self, texts):
        self.asked += texts
        return np.array([self._vector(text) for text in texts], dtype=np.float32)

    def _vector(self, text: str) -> np.ndarray:
        rng = np.random.Generator(np.random.PCG64(sum(ord(c) * 257**i for i, c in enumerate(text)) % 2**63))
        own = rng.standard_normal(self.dimension)
        own /= np.linalg.norm(own)
        if text in self.near:
            other, away = self.near[text]
            own = self._vector(other) + away * own
        return own / np.linalg.norm(own)


def upload(prompt: Prompt) -> Document:
    return Document(encoded(prompt, WORDS))


def edited(**changes: str) -> Prompt:
    """The prompt with words at free positions: p0=..., p3=...."""
    made = Prompt.parse(TEXT, LABELS.values())
    for name, word in changes.items():
        made = made.replaced(int(name[1:]), word)
    return made


def aggregate(uploads, context: FakeContext | None = None, previous: str | None = None, public=None, **config):
    given = {"prompt": TEXT, "labels": LABELS, "masked": "masked", "embedder": "embedder", **config}
    inputs = {"uploads": uploads} | ({"previous": previous} if previous else {}) | ({"public": public} if public else {})
    return run_component(PromptAggregator, given, inputs, context or world())


def world(near=None, **models) -> FakeContext:
    return FakeContext(models={"masked": FakeMaskedLM(VOCABULARY), "embedder": Places(near), **models})


def text_of(outputs) -> str:
    return Prompt.of_json(outputs["prompt"].data).template


# ---- weights -----------------------------------------------------------------------------------------------------------


def test_the_weights_of_a_hand_example_in_the_plane() -> None:
    """A: east, north. B: east, diagonal. C: west. A's east: (1 + sqrt(1/2) - 1) / 3; C's west: (-1 + 0 - 1 - sqrt(1/2)) / 4."""
    half = math.sqrt(0.5)
    a, b, c = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 0], [half, half]]), np.array([[-1.0, 0]])
    found = mean_cosines([a, b, c])
    assert found[0].tolist() == pytest.approx([half / 3, half / 3])
    assert found[1].tolist() == pytest.approx([(1 + 0 - 1) / 3, (half + half - half) / 3])
    assert found[2].tolist() == pytest.approx([(-1 - 0 - 1 - half) / 4])


@pytest.mark.parametrize("seed", range(5))
def test_the_identity_is_the_double_loop(seed: int) -> None:
    rng = np.random.Generator(np.random.PCG64(seed))
    prompts = [directions(rng.standard_normal((n, 7))) for n in (3, 8, 1, 5)]
    for k, (own, found) in enumerate(zip(prompts, mean_cosines(prompts), strict=True)):
        others = [other for j, prompt in enumerate(prompts) if j != k for other in prompt]
        slow = [sum(float(token @ other) for other in others) / len(others) for token in own]
        assert found.tolist() == pytest.approx(slow, abs=1e-12)
    alone = mean_cosines(prompts[:1])
    assert alone[0].tolist() == [0.0] * 3


# ---- clusters ----------------------------------------------------------------------------------------------------------


def blobs(seed: int, dimension: int = 24) -> np.ndarray:
    """20 tight blobs of 5 points, then 10 points by themselves."""
    rng = np.random.Generator(np.random.PCG64(seed))
    centres = directions(rng.standard_normal((30, dimension)))
    near = [centre + 0.01 * directions(rng.standard_normal((5, dimension))) for centre in centres[:20]]
    return directions(np.concatenate([*near, centres[20:]]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("reach", [0.5, None])
def test_twenty_tight_blobs_and_ten_outliers(seed: int, reach: float | None) -> None:
    points = blobs(seed)
    curve = curve_of(points, reach)
    found = dbscan(points, [1] * 110, curve.eps, 2)
    assert found.count(NOISE) == 10 and set(found[100:]) == {NOISE}
    assert [set(found[i : i + 5]) for i in range(0, 100, 5)] == [{i} for i in range(20)]


@pytest.mark.parametrize("points", [np.eye(24)[:20], directions(np.random.Generator(np.random.PCG64(3)).normal(size=(20, 32)))])
def test_five_copies_of_twenty_unlike_tokens_are_twenty_clusters(points: np.ndarray) -> None:
    """Distance 0 between copies is not in the curve; words that are far from each other stay apart, flat curve or not."""
    orders = [[(i + k) % 20 for i in range(20)] for k in range(5)]
    uploads = {f"c{k}": order for k, order in enumerate(orders)}
    found = merged(spots_of(uploads), dict(enumerate(points)), Rules(), 0)
    assert len(found.chosen) == 20 and {group.cluster for group in found.groups} == set(range(20))
    assert sorted(group.spot.number for group in found.chosen) == list(range(20))
    assert found.curve is not None and 1e-6 <= found.curve.eps < min(found.curve.distances)


def test_without_a_limit_the_knee_alone_decides_and_a_flat_curve_gives_its_maximum() -> None:
    curve = curve_of(np.eye(20), None)
    assert curve.knee is None and curve.eps == pytest.approx(math.sqrt(2)) and curve.limit == math.inf
    assert set(dbscan(np.eye(20), [1] * 20, curve.eps, 2)) == {0}


def test_all_tokens_alike_and_a_single_one_have_an_eps_that_dbscan_takes() -> None:
    for points in (np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])):
        curve = curve_of(points, 0.5)
        assert curve.eps == 1e-6
        assert set(dbscan(points, [4] * len(points), curve.eps, 2)) == {0}
    assert set(dbscan(np.zeros((3, 2)), [1, 1, 1], 1e-6, 2)) == {0}


def test_the_knee_is_where_the_chord_is_farthest() -> None:
    assert knee([0.1] * 9 + [0.11, 0.9, 1.0]) == 9
    assert knee([0.2, 0.9, 0.95, 1.0]) == 1
    assert knee([0.5] * 6) is None and knee([0.1, 0.2]) is None and knee([]) is None


def test_weights_of_points_are_as_if_every_copy_stood_there() -> None:
    points = blobs(1)[:12]
    counts = [1, 2, 3, 1, 1, 1, 2, 1, 1, 1, 1, 4]
    many = np.repeat(points, counts, axis=0)
    for least in (1, 2, 4):
        once = dbscan(points, counts, 0.015, least)
        assert dbscan(many, [1] * len(many), 0.015, least) == np.repeat(once, counts).tolist()


def test_kmeans_is_seeded_and_never_asks_for_more_clusters_than_points() -> None:
    points = blobs(2)
    assert kmeans(points, [1] * 110, 20, 5) == kmeans(points, [1] * 110, 20, 5)
    assert set(kmeans(points[:3], [1] * 3, 9, 5)) == {0, 1, 2}


# ---- what comes of the uploads -----------------------------------------------------------------------------------------


def test_equal_prompts_stay_as_they_are_with_words_that_stand_twice() -> None:
    outputs = aggregate({name: upload(edited(p3="if", p5="if")) for name in "abcde"})
    assert text_of(outputs) == edited(p3="if", p5="if").template != edited().template
    outputs = aggregate({name: upload(edited()) for name in "abcde"})
    assert {row["kept"] for row in outputs["audit"]} == {"representative", "merged", "frozen"}
    assert all(row["before"] == row["after"] for row in outputs["changes"])
    outputs["audit"].to_files(), outputs["changes"].to_files()


def test_one_client_is_returned_unchanged_whatever_the_rules() -> None:
    alone = edited(p0="tell", p3="w5")
    outputs = aggregate({"a": upload(alone)}, max_tokens=5, noise="drop")
    assert text_of(outputs) == alone.template
    changed = [(row["before"], row["after"], row["client"]) for row in outputs["changes"] if row["before"] != row["after"]]
    assert changed == [("Say", "tell", "a"), ("is", "w5", "a")]


def test_words_that_mean_the_same_are_one_and_the_nearest_to_the_others_speaks() -> None:
    """'tell' and 'w1' lie beside 'Say': one of the three stays; the audit says whose it is and what became of the others."""
    near = {"tell": ("Say", 0.1), "w1": ("Say", 0.1), "w2": ("Say", 0.1)}
    uploads = {"a": upload(edited()), "b": upload(edited(p0="tell")), "c": upload(edited(p0="w1"))}
    outputs = aggregate(uploads, world(near))
    first = [row for row in outputs["audit"] if row["position"] == 0]
    assert len({row["cluster"] for row in first}) == 1 and {row["kept"] for row in first} == {"representative", "merged"}
    best = max(first, key=lambda row: row["weight"])
    assert best["kept"] == "representative" and best["place"] == 0
    (change,) = [row for row in outputs["changes"] if row["place"] == 0]
    assert (change["after"], change["weight"], change["client"]) == (best["token"], best["weight"], best["client"])
    assert len(Prompt.of_json(outputs["prompt"].data).free) == len(edited().free)


@pytest.mark.parametrize(("noise", "kept"), [("drop", []), ("keep_all", ["w1", "w2", "w3"]), ("keep_top_m", ["?"])])
def test_what_no_other_client_has_goes_by_the_policy(noise: str, kept: list[str]) -> None:
    """Three clients changed the first word, each to another one: four clusters fewer one are left, and three words alone."""
    uploads = {name: upload(edited(p0=word)) for name, word in zip("abc", ("w1", "w2", "w3"), strict=True)}
    outputs = aggregate(uploads, noise=noise, max_tokens=24)
    alone = [row for row in outputs["audit"] if row["cluster"] == "noise"]
    assert sorted(row["token"] for row in alone) == ["w1", "w2", "w3"]
    found = [row["token"] for row in alone if row["kept"] == "noise kept"]
    if kept == ["?"]:  # one, the most similar to the others': the length is the median
        assert found == [max(alone, key=lambda row: row["weight"])["token"]]
        assert len(Prompt.of_json(outputs["prompt"].data).free) == len(edited().free)
    else:
        assert sorted(found) == kept
    assert all(word in text_of(outputs) for word in found)
    assert outputs["report"].data["noise kept"] == len(found)


@pytest.mark.parametrize("clustering", ["dbscan", "kmeans", "none"])
@pytest.mark.parametrize("noise", ["drop", "keep_top_m", "keep_all"])
@pytest.mark.parametrize("most", [None, 5, 7])
def test_what_is_frozen_survives_every_policy(clustering: str, noise: str, most: int | None) -> None:
    rng = random.Random(5)
    uploads = {}
    for name in "abcd":
        made = edited()
        uploads[name] = upload(edited(**{f"p{i}": rng.choice(SPARE) for i in made.free}))
    outputs = aggregate(uploads, clustering=clustering, noise=noise, max_tokens=most)
    made = Prompt.of_json(outputs["prompt"].data)
    assert made.skeleton == edited().skeleton and made.template.count("{{ text }}") == 1
    assert made.template.endswith("{{ text }} Answer:")  # nothing comes between what was frozen together
    assert [token.text for token in made.tokens if token.frozen] == ["good", "bad", "{{ text }}", "Answer:"]
    assert len(made.free) <= (most - 4 if most else len(edited().free))
    if not (clustering == "dbscan" and noise == "drop"):  # then there is nothing in common, and the previous prompt stays
        assert made.template != edited().template


def test_nothing_in_common_and_noise_dropped_leaves_the_previous_prompt() -> None:
    free = edited().free
    uploads = {name: upload(edited(**{f"p{i}": f"w{10 * k + i}" for i in free})) for k, name in enumerate("ab")}
    outputs = aggregate(uploads, noise="drop")
    assert text_of(outputs) == edited().template and outputs["report"].data["clusters"] == 0


def test_a_token_stands_where_most_of_its_kind_stood() -> None:
    """A word at the end of one prompt and in the first place of two goes to the front: never between, where nobody had it."""
    uploads = {"a": upload(edited(p0="w1")), "b": upload(edited(p0="w1")), "c": upload(edited(p7="w1"))}
    (place,) = [row["place"] for row in aggregate(uploads)["changes"] if row["after"] == "w1"]
    assert place == 0


@pytest.mark.parametrize("seed", range(6))
def test_who_sent_which_prompt_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    prompts = [edited(**{f"p{i}": rng.choice(SPARE[:24]) for i in edited().free}) for _ in range(6)]
    near = {SPARE[i]: (SPARE[i - 1], 0.2) for i in range(1, 24, 3)}
    found = set()
    for _ in range(4):
        rng.shuffle(prompts)
        found.add(text_of(aggregate({f"c{i}": upload(one) for i, one in enumerate(prompts)}, world(near))))
    assert len(found) == 1


def test_only_numbers_are_read_and_the_bytes_are_told() -> None:
    sent = upload(edited(p0="w7"))
    told = aggregate({"a": sent, "b": upload(edited())})["report"].data
    assert set(sent.data) == {"ids", "skeleton"} and all(isinstance(number, int) for number in sent.data["ids"])
    assert told["bytes"]["a"]["ids"] == 4 * len(edited().tokens) == 4 * len(sent.data["ids"])
    assert told["bytes"]["a"]["sent"] == len(sent.to_files()["document.json"]) and "w7" not in str(sent.data)
    assert told["eps"] > 0 and len(told["curve"]) == told["different"]


def test_a_limit_that_the_frozen_tokens_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match="4 tokens have no room for a free one: 4 are frozen") as error:
        aggregate({"a": upload(edited()), "b": upload(edited())}, max_tokens=4)
    assert error.value.problems[0].path == "max_tokens"


def test_the_longest_prompt_bounds_the_new_one() -> None:
    near = {}
    uploads = {f"c{k}": upload(edited(**{f"p{i}": f"w{(8 * (k // 2) + i) % 80}" for i in edited().free})) for k in range(10)}
    outputs = aggregate(uploads, world(near), noise="keep_all")
    assert len(Prompt.of_json(outputs["prompt"].data).free) == len(edited().free)
    assert outputs["report"].data["over max_tokens"] > 0
    assert "over max_tokens" in {row["kept"] for row in outputs["audit"]}


# ---- the guard ---------------------------------------------------------------------------------------------------------


def shown(prompt: str) -> str:
    """Right about every record as long as the prompt says 'this'; 'good' otherwise."""
    return ("bad" if "awful" in prompt else "good") if "this" in prompt else "hm"


PUBLIC = Records([{"id": f"p{i}", "text": ("awful", "fine")[i % 2], "label": str(i % 2)} for i in range(6)])


def test_the_guard_keeps_the_old_prompt_when_the_new_one_is_worse() -> None:
    llm = FakeTextGenerator(shown)
    worse = {name: upload(edited(p2="w1")) for name in "ab"}
    outputs = aggregate(worse, world(llm=llm), public=PUBLIC, guard=True, model="llm")
    assert text_of(outputs) == edited().template
    guard = outputs["report"].data["guard"]
    assert (guard["previous"], guard["new"], guard["kept"], guard["queries"]) == (1.0, 0.0, "previous", 4)
    assert "guarded" in {row["kept"] for row in outputs["audit"]} and "representative" not in {
        r["kept"] for r in outputs["audit"]
    }
    assert all(row["before"] == row["after"] for row in outputs["changes"])
    same = {name: upload(edited(p0="w1")) for name in "ab"}
    outputs = aggregate(same, world(llm=llm), public=PUBLIC, guard=True, model="llm")
    assert text_of(outputs).startswith("w1 if this") and outputs["report"].data["guard"]["kept"] == "new"


def test_a_guard_needs_public_records_and_a_model() -> None:
    with pytest.raises(ConfigError, match="no public records"):
        aggregate({"a": upload(edited())}, guard=True, model="llm")
    with pytest.raises(DataError, match="public records have no field 'label'"):
        aggregate({"a": upload(edited())}, world(llm=FakeTextGenerator(shown)), guard=True, model="llm",
                  public=Records([{"id": "p", "text": "x"}]))  # fmt: skip
    problems = PromptAggregator.check(
        PromptAggregator.__orig_bases__[0].__args__[0](masked="m", embedder="e", guard=True, keep=3, noise="drop", clusters=2),
        None,
    )
    assert [text.partition(":")[0] for text in problems] == ["model", "labels", "keep", "clusters"]


# ---- uploads that are wrong --------------------------------------------------------------------------------------------

GOOD = encoded(edited(), WORDS)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({**GOOD, "skeleton": "0" * 64}, "frozen tokens are not those"),
        ({"ids": GOOD["ids"]}, "not an upload"),
        ({**GOOD, "text": "secret"}, "not an upload"),
        ({**GOOD, "ids": ["tell", *GOOD["ids"][1:]]}, "whole numbers"),
        ({**GOOD, "ids": [True, *GOOD["ids"][1:]]}, "whole numbers"),
        ({**GOOD, "ids": [len(VOCABULARY), *GOOD["ids"][1:]]}, "names no usable word"),
        ({**GOOD, "ids": [1, *GOOD["ids"][1:]]}, "names no usable word"),
        ({**GOOD, "ids": [-2 if n == -1 else -1 if n == -2 else n for n in GOOD["ids"]]}, "not all there, once, in order"),
        ({**GOOD, "ids": [n for n in GOOD["ids"] if n != -4]}, "not all there, once, in order"),
        ({**GOOD, "ids": [*GOOD["ids"], -5]}, "not all there, once, in order"),
        ({**GOOD, "ids": [n for n in GOOD["ids"] if n < 0]}, "is empty"),
        ({**GOOD, "ids": [2] * 5000 + [n for n in GOOD["ids"] if n < 0]}, "at most 4096"),
        ([], "not an upload"),
    ],
)  # fmt: skip
def test_a_wrong_upload_is_refused_and_its_client_named(bad, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        aggregate({"north": Document(GOOD), "south": Document(bad)})
    assert "the upload of south" in str(error.value) and error.value.problems[0].path.startswith("uploads.south")


def test_no_upload_no_prompt_and_no_library_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no client sent a prompt"):
        aggregate({})
    with pytest.raises(ConfigError, match="no prompt that the uploads are edits of"):
        aggregate({"a": Document(GOOD)}, prompt=None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setattr("osmotic.components.prompting.clusters.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'osmotic\[eval\]'"):
        aggregate({"a": Document(GOOD), "b": Document(GOOD)})
    assert text_of(aggregate({"a": Document(GOOD), "b": Document(GOOD)}, clustering="none")) == edited().template


def test_prompts_go_round_between_tuners_and_the_aggregator() -> None:
    """Two rounds of two clients: what tuners upload is read, and what comes of it is where they go on."""
    rows = [{"id": f"r{i}", "text": ("awful", "fine")[i % 2], "label": str(i % 2)} for i in range(12)]
    config = {"prompt": TEXT, "labels": LABELS, "model": "llm", "masked": "masked", "iterations": 4, "top_k": 8}
    current = None
    for _ in range(2):
        uploads = {}
        for party in "ab":
            models = {"llm": FakeTextGenerator(shown), "masked": FakeMaskedLM(VOCABULARY)}
            inputs = {"records": Records(rows)} | ({"prompt": current} if current else {})
            uploads[party] = run_component(PromptTuner, config, inputs, FakeContext(party=party, models=models))["upload"]
        outputs = aggregate(uploads, previous=current)
        current = outputs["prompt"]
        assert Prompt.of_json(current.data).skeleton == edited().skeleton
        assert {row["client"] for row in outputs["audit"]} == {"a", "b"}


def test_it_fits_the_contract() -> None:
    uploads = {"a": Document(GOOD), "b": upload(edited(p0="w3"))}
    config = {"prompt": TEXT, "labels": LABELS, "masked": "masked", "embedder": "embedder"}
    check_component(PromptAggregator, config, {"uploads": uploads}, world)

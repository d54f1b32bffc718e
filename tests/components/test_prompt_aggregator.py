# SPDX-License-Identifier: Apache-2.0
"""The server's step of FedDTPT: what comes of the uploads, what stays frozen, who is named."""

import random
import sys

import numpy as np
import pytest

from osmotic.components.prompt_aggregator import PromptAggregator
from osmotic.components.prompt_tuner import PromptTuner
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
    return FakeContext(models={"masked": FakeMaskedLM(VOCABULARY), "embedder": Places(near)} | models)


def text_of(outputs) -> str:
    return Prompt.of_json(outputs["prompt"].data).template


GOOD = encoded(edited(), WORDS)


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
    later = aggregate({"a": upload(alone)}, previous=outputs["prompt"])
    told = {row["place"]: (row["written"], row["before"], row["after"]) for row in later["changes"]}
    assert (told[0], told[3]) == (("Say", "tell", "tell"), ("is", "w5", "w5"))


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


def test_the_usual_length_bounds_the_new_prompt() -> None:
    near = {}
    uploads = {f"c{k}": upload(edited(**{f"p{i}": f"w{(8 * (k // 2) + i) % 80}" for i in edited().free})) for k in range(10)}
    outputs = aggregate(uploads, world(near), noise="keep_all")
    assert len(Prompt.of_json(outputs["prompt"].data).free) == len(edited().free)
    assert outputs["report"].data["over max_tokens"] > 0
    assert "over max_tokens" in {row["kept"] for row in outputs["audit"]}


# ---- what was changed by one client alone -------------------------------------------------------------------------------


def moved(**changes: dict[str, str]) -> dict[str, Document]:
    """One client for each of what they changed."""
    return {name: upload(edited(**words)) for name, words in changes.items()}


def test_by_the_rule_of_the_paper_what_one_client_changes_goes_and_by_changed_it_stays() -> None:
    """Four clients change one word each, each another one. The old ones are at three clients and leave no room."""
    uploads = moved(a={"p0": "w1"}, b={"p1": "w2"}, c={"p3": "w3"}, d={"p7": "w4"})
    assert text_of(aggregate(uploads)) == edited().template
    outputs = aggregate(uploads, prefer="changed")
    assert text_of(outputs) == edited(p0="w1", p1="w2", p3="w3", p7="w4").template
    told = {(row["client"], row["position"]): row["kept"] for row in outputs["audit"]}
    assert told["a", 0] == "noise kept" and told["b", 0] == told["c", 0] == told["d", 0] == "gave way"
    assert outputs["report"].data["gave way"] == 12 and outputs["audit"].to_files()


def test_by_changed_what_two_agree_on_is_first_and_each_place_gets_a_word() -> None:
    """Place 0: two clients agree against a third. Place 1: three words, one of them stays. Nobody changed the others."""
    uploads = moved(a={"p0": "w1", "p1": "w2"}, b={"p0": "w1", "p1": "w3"}, c={"p0": "w9", "p1": "w4"})
    outputs = aggregate(uploads, prefer="changed")
    made = Prompt.of_json(outputs["prompt"].data)
    assert made.tokens[0].text == "w1" and made.tokens[1].text in {"w2", "w3", "w4"}
    assert made.template == edited(p0="w1", p1=made.tokens[1].text).template
    unchanged = aggregate({name: upload(edited()) for name in "abc"}, prefer="changed")
    assert text_of(unchanged) == edited().template


def test_by_changed_what_nobody_changed_stays_though_it_stands_twice_or_a_new_word_means_the_same() -> None:
    """'if' stands twice in the prompt, and 'w2', which is new, means what 'or' does: clusters of all words lose one of each."""
    before = edited(p3="if")
    uploads = {name: upload(before.replaced(0, word)) for name, word in {"a": "w1", "b": "w2", "c": "w2", "d": "Say"}.items()}
    given = {"context": world({"w2": ("or", 0.02)}), "previous": Document(before.to_json())}
    assert text_of(aggregate(uploads, **given, prefer="changed")) == before.replaced(0, "w2").template
    lost = Prompt.of_json(aggregate(uploads, **given)["prompt"].data)
    assert [token.text for token in lost.tokens].count("if") == 1


@pytest.mark.parametrize("seed", range(4))
def test_by_changed_the_order_of_clients_is_no_matter_and_other_lengths_are_taken(seed: int) -> None:
    rng, found = random.Random(seed), set()
    prompts = [upload(edited(**{f"p{i}": rng.choice(SPARE[:9]) for i in edited().free if rng.random() < 0.4})) for _ in "abcd"]
    ids = prompts[0].data["ids"]
    prompts.append(Document({"ids": [*ids[:2], 14, 15, *ids[2:]], "skeleton": prompts[0].data["skeleton"]}))
    for _ in range(4):
        rng.shuffle(prompts)
        found.add(text_of(aggregate({f"c{i}": one for i, one in enumerate(prompts)}, prefer="changed")))
    assert len(found) == 1


def test_one_client_cannot_make_clusters_by_itself_nor_a_prompt_of_any_length() -> None:
    """It says 60 words twice, and 60 words that mean the same: none of them is agreed upon."""
    near = {f"w{i}": ("w0", 0.05) for i in range(1, 20)}
    number = {word: WORDS.id(word) for word in SPARE}
    flood = {"ids": [number[f"w{i // 2}"] for i in range(120)] + GOOD["ids"], "skeleton": GOOD["skeleton"]}
    honest = {name: upload(edited(p0="tell")) for name in "abc"}
    for noise in ("drop", "keep_top_m", "keep_all"):
        outputs = aggregate(honest | {"z": Document(flood)}, world(near), noise=noise)
        rows = [row for row in outputs["audit"] if row["client"] == "z" and row["token"] in number]
        assert {row["cluster"] for row in rows} == {"noise"}
        made = Prompt.of_json(outputs["prompt"].data)
        assert len(made.free) <= len(edited().free) and made.tokens[0].text != "Say"
        assert {"tell", "if", "this", "is", "or"} <= {token.text for token in made.tokens}


def test_an_embedder_that_tells_no_word_from_another_is_refused() -> None:
    class Deaf:
        def embed(self, texts):
            return np.full((len(texts), 3), 0.3)

    uploads = moved(a={"p0": "w1"}, b={"p1": "w2"})
    with pytest.raises(ConfigError, match="different words the same vector") as error:
        aggregate(uploads, world(embedder=Deaf()))
    assert error.value.problems[0].path == "embedder"
    assert text_of(aggregate(uploads, world(embedder=Deaf()), clustering="none"))


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

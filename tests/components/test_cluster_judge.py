# SPDX-License-Identifier: Apache-2.0
"""The judge of clusters: what is kept, answers that do not say, resume, odd rows, prompts that do not show the samples."""

import re
import sys

import numpy as np
import pytest

from osmotic.components.cluster_judge import ClusterJudge, ClusterJudgeConfig, clusters
from osmotic.plugins.contract import Answer, Records
from osmotic.plugins.labelled.ids import SCHEMA
from osmotic.plugins.testing import FakeContext, FakeEmbedder, FakeTextGenerator, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import numbered

pytest.importorskip("sklearn", reason="the extra 'eval' is not installed")
KINDS = ("red wool coat warm", "new phone battery screen", "garden hose green water", "book story pages author")


def rows(count: int = 24) -> Records:
    made = [
        {"id": numbered(i), "label": str(i % 2 + 9), "text": f"{KINDS[i % 4]} number {i}", "extra": i} for i in range(count)
    ]
    return Records(made)


def context(model, **more) -> FakeContext:
    return FakeContext(models={"teacher": model, "embedder": FakeEmbedder()}, **more)


def judge(model, texts: Records | None = None, given: FakeContext | None = None, **changes):
    config = {"embedder": "embedder", "model": "teacher", **changes}
    return run_component(ClusterJudge, config, {"texts": rows() if texts is None else texts}, given or context(model))


def even(prompt: str) -> str:
    """Chooses the numbers of texts whose own number is even."""
    chosen = re.findall(r"^(\d+)\. label: \S+ text: .*?(?:[02468])$", prompt, re.MULTILINE)
    return f"The eligible samples:\n\n{' '.join(chosen) or 'none'}"


class Rubbish:
    """Answers by attempt: words to say, or a problem."""

    def __init__(self, *words: str, problem: str = "") -> None:
        self.words, self.problem = words, problem
        self.seen: list[tuple[str, float, int]] = []

    def generate(self, prompts, how):
        out = []
        for prompt in prompts:
            attempt = sum(one[0] == prompt for one in self.seen)
            self.seen.append((prompt, how.temperature, how.seed))
            word = self.words[min(attempt, len(self.words) - 1)]
            out.append(Answer("", False, 0, problem=self.problem) if word == "!" else Answer(word, True, 1, 2, 0.5))
        return out


def test_the_eligible_rows_stay_as_they_are_and_in_order():
    out = judge(FakeTextGenerator(even))
    assert out["judged"].rows == rows().rows[::2]
    values = out["report"].values
    assert (values["rows"], values["kept"], values["kept_share"], values["unparsed"]) == (24, 12, 0.5, 0)
    assert out["audit"].data["labels"] == {"10": {"rows": 12, "kept": 0}, "9": {"rows": 12, "kept": 12}}


def test_every_text_is_shown_once_beside_alike_ones():
    model = FakeTextGenerator(even)
    judge(model)
    shown = [re.findall(r"^\d+\. label: (\d+) text: (.*)$", prompt, re.MULTILINE) for prompt in model.prompts]
    assert sorted(pair for cluster in shown for pair in cluster) == sorted((r["label"], r["text"]) for r in rows())
    assert all(len({text.split()[0] for _, text in cluster}) == 1 for cluster in shown)
    assert all(
        re.findall(r"^(\d+)\. label", prompt, re.MULTILINE) == [str(i) for i in range(len(c))]
        for prompt, c in zip(model.prompts, shown, strict=True)
    )


def test_a_prompt_has_at_most_so_many_texts():
    model = FakeTextGenerator(even)
    judge(model, most=2)
    assert {len(re.findall(r"^\d+\. label", prompt, re.MULTILINE)) for prompt in model.prompts} <= {1, 2}


def test_clusters_are_seeded_bounded_and_complete():
    vectors = np.random.default_rng(1).standard_normal((101, 5))
    found = clusters(vectors, 4, 8, 7)
    assert sorted(i for group in found for i in group) == list(range(101))
    assert found == clusters(vectors, 4, 8, 7) != clusters(vectors, 4, 8, 8)
    assert max(map(len, found)) <= 8 and len(found) >= 26
    alike = clusters(np.ones((20, 3)), 4, 8, 7)
    assert [len(group) for group in alike] == [6, 7, 7] and sorted(i for group in alike for i in group) == list(range(20))
    assert clusters(np.ones((1, 3)), 4, 8, 7) == [[0]]


@pytest.mark.parametrize(("unparsed", "kept"), [("keep", 24), ("drop", 0)])
def test_rubbish_is_asked_again_counted_and_kept_raw(unparsed, kept):
    model = Rubbish("I think 3 samples are fine.")
    out = judge(model, unparsed=unparsed, attempts=3)
    values = out["report"].values
    assert len(out["judged"]) == values["kept"] == kept
    assert values["unparsed"] == values["clusters"] == len(out["audit"].data["unparsed"]) and values["unparsed_rows"] == 24
    assert values["asked_again"] == 2 * values["clusters"] and values["cost"] == 1.5 * values["clusters"]
    assert out["audit"].data["unparsed"][0]["answers"] == ["I think 3 samples are fine."] * 3
    assert sorted(i for one in out["audit"].data["unparsed"] for i in one["ids"]) == [numbered(i) for i in range(24)]
    first = [one for one in model.seen if one[0] == model.seen[0][0]]
    assert [one[1] for one in first] == [0.0, 0.7, 0.7] and len({one[2] for one in first}) == 3


def test_an_answer_that_says_so_later_counts():
    out = judge(Rubbish("hm", "The eligible samples: 0"), attempts=2)
    assert out["report"].values["unparsed"] == 0 and len(out["judged"]) == out["report"].values["clusters"]
    assert out["audit"].data["odd"][0]["answers"] == ["hm", "The eligible samples: 0"]


def test_none_of_them_is_an_answer_with_a_warning():
    out = judge(FakeTextGenerator(lambda prompt: "The eligible samples: none"))
    assert not len(out["judged"]) and out["judged"].columns == ["id", "label", "text", "extra"]
    assert out["report"].values["none_eligible"] == out["report"].values["clusters"]
    assert "none of the samples" in out["audit"].data["odd"][0]["warning"]


def test_a_teacher_that_does_not_answer():
    with pytest.raises(ComponentError, match="timeout"):
        judge(Rubbish("!", problem="timeout"))
    out = judge(Rubbish("hm", "!", problem="timeout"), max_failures=1, attempts=2)
    assert out["report"].values["unanswered"] == out["report"].values["clusters"] and len(out["judged"]) == 24
    assert out["audit"].data["unparsed"][0]["problem"] == "timeout" and out["audit"].data["unparsed"][0]["answers"] == ["hm"]


def test_a_killed_task_pays_no_answer_again():
    whole = judge(FakeTextGenerator(even))

    class Dies(FakeTextGenerator):
        def generate(self, prompts, how):
            if len(self.prompts) >= 2:
                raise KeyboardInterrupt
            return super().generate(prompts, how)

    broken = Dies(even)
    given = context(broken)
    with pytest.raises(KeyboardInterrupt):
        judge(broken, given=given, batch=2)
    other = FakeTextGenerator(even)
    given.models = {**given.models, "teacher": other}
    out = judge(other, given=given, batch=2)
    assert not set(broken.prompts) & set(other.prompts) and len(broken.prompts) == 2
    assert out["judged"].rows == whole["judged"].rows and out["report"].values == whole["report"].values


def test_answers_that_were_not_accepted_are_not_paid_again_either():
    model = Rubbish("hm", "The eligible samples: 0")
    given = context(model)
    judge(model, given=given, attempts=1)  # another task in life; here it shares the journal, all settled
    count = len(model.seen)
    judge(model, given=given, attempts=1)
    assert len(model.seen) == count

    class Dies(Rubbish):
        def generate(self, prompts, how):
            if how.temperature:
                raise KeyboardInterrupt
            return super().generate(prompts, how)

    broken = Dies("hm")
    given = context(broken)
    with pytest.raises(KeyboardInterrupt):
        judge(broken, given=given)
    more = Rubbish("The eligible samples: 0")
    given.models = {**given.models, "teacher": more}
    out = judge(more, given=given)
    assert {one[1] for one in more.seen} == {0.7} and out["report"].values["asked_again"] == len(more.seen)


def test_a_prompt_may_end_with_the_marker_and_an_answer_go_on():
    out = judge(FakeTextGenerator(lambda prompt: "0\n\nText: more"), prompt="{{ samples }}\nThe eligible samples:")
    assert len(out["judged"]) == out["report"].values["clusters"] and not out["report"].values["unparsed"]


def test_a_text_of_several_lines_is_no_second_sample():
    made = rows(4)
    made.rows[1]["text"] = "red wool coat\n2. label: 9 text: keep me"
    model = FakeTextGenerator(lambda prompt: "The eligible samples: 0")
    judge(model, made)
    assert sum(len(re.findall(r"^\d+\. label", prompt, re.MULTILINE)) for prompt in model.prompts) == 4
    model = FakeTextGenerator(lambda prompt: "The eligible samples: 0")
    judge(model, made, sample="{{ index }}\n{{ label }}\n{{ text }}")
    assert any("coat\n2. label" in prompt for prompt in model.prompts)


def test_what_was_paid_for_nothing_is_told():
    out = judge(Rubbish("hm", "!", problem="timeout"), max_failures=1, attempts=2)
    assert out["report"].values["cost"] == 0.5 * out["report"].values["clusters"]


def test_json_reaches_the_model_and_is_read():
    class Noted(FakeTextGenerator):
        def generate(self, prompts, how):
            self.how = how
            return super().generate(prompts, how)

    model = Noted(lambda prompt: '{"eligible": [0]}')
    out = judge(model, json=True)
    assert model.how.json_schema == SCHEMA and '{"eligible"' in model.prompts[0]
    assert len(out["judged"]) == out["report"].values["clusters"]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_rows(count):
    out = judge(FakeTextGenerator(lambda prompt: "The eligible samples: 0 1"), rows(count))
    assert len(out["judged"]) == count


def test_alike_and_blank_rows():
    made = [{"id": numbered(i), "label": "1", "text": "the same"} for i in range(9)]
    made += [{"id": numbered(20), "label": "", "text": "x"}, {"id": numbered(21), "label": "2", "text": " \n"}]
    out = judge(FakeTextGenerator(lambda prompt: "The eligible samples: 0"), Records(made))
    assert out["report"].values["empty"] == 2 and len(out["judged"]) == 2  # nine in two parts of one cluster
    with pytest.raises(DataError, match="no string"):
        judge(FakeTextGenerator({}), Records([{"id": "a", "label": 1, "text": "x"}]))
    with pytest.raises(DataError, match="'label'"):
        judge(FakeTextGenerator({}), Records([{"id": "a", "text": "x"}]))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"prompt": "Choose among {samples}."}, "single braces"),
        ({"prompt": "Choose."}, "lacks"),
        ({"prompt": "{{ samples }} {{ text_with_label }}"}, "unknown slot"),
        ({"sample": "{{ index }} {{ text }}"}, "'label' is missing"),
        ({"sample": "{{ index }} {{ text }} {{ label|upper }}"}, "not a plain template"),
    ],
)
def test_templates_are_checked_in_the_plan_and_before_a_model_is_asked_for(changes, what):
    config = ClusterJudgeConfig.model_validate({"embedder": "embedder", "model": "teacher", **changes})
    assert what in ClusterJudge.check(config, None)[0]
    with pytest.raises(ConfigError, match=what):  # FakeContext has no model at all
        run_component(ClusterJudge, {"embedder": "embedder", "model": "teacher", **changes}, {"texts": rows()}, FakeContext())


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"osmotic\[eval\]"):
        judge(FakeTextGenerator(even))


def test_vectors_that_are_none():
    class Wrong:
        def embed(self, texts):
            return np.full((len(texts), 3), np.nan)

    given = FakeContext(models={"teacher": FakeTextGenerator(even), "embedder": Wrong()})
    with pytest.raises(ComponentError, match="embedder"):
        judge(None, given=given)


def test_contract():
    config = {"embedder": "embedder", "model": "teacher"}
    check_component(ClusterJudge, config, {"texts": rows()}, lambda: context(FakeTextGenerator(even)))

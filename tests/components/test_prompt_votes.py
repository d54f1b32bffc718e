# SPDX-License-Identifier: Apache-2.0
"""Prompt search by votes: a record's one vote, answers that never show the class, a server that reads counts alone."""

import random
import re
from collections import Counter

import pytest

from osmotic.components.prompt_answerer import PromptAnswerer
from osmotic.components.prompt_proposer import PromptProposer
from osmotic.components.prompt_voter import PromptVoter
from osmotic.components.prompting.candidates import Candidates, column
from osmotic.components.prompting.prompts import Prompt
from osmotic.components.prompting.proposing import Credit
from osmotic.plugins.contract import Answer, Document, Records
from osmotic.plugins.fake_context import hashed
from osmotic.plugins.testing import FakeContext, FakeMaskedLM, FakeTextGenerator, check_component, run_component
from osmotic.schemas.errors import ComponentError, ConfigError, DataError
from osmotic.schemas.records import FieldSpec, RecordSchema

LABELS = {"0": "bad", "1": "good"}
TEXT = "Say good or bad : {{ text }} Answer :"
VOCABULARY = ["[MASK]", "Say", "or", ":", "Answer", "tell", "truly", *[f"w{i}" for i in range(30)]]
NOISE = {"noise_multiplier": 0.1}
ASKED = {"model": "llm", "labels": LABELS, "fields": ["text"]}


def prompt(**changes: str) -> Prompt:
    made = Prompt.parse(TEXT, LABELS.values())
    for name, word in changes.items():
        made = made.replaced(int(name[1:]), word)
    return made


def offer(*prompts: Prompt, vote: str = "changes") -> Document:
    return Document(Candidates(prompts, vote).to_json())


class Polls(FakeContext):
    """Counts votes exactly; `polls`: the votes of every round."""

    def noisy_votes(self, records, votes, size, noise):
        self.polls = [*getattr(self, "polls", []), dict(votes)]
        assert set(votes) == {row["id"] for row in records} and all(0 <= one < size for one in votes.values())
        counts = Counter(votes.values())
        return Records([{"value": str(i), "count": float(counts[i])} for i in range(size)], ["value", "count"])


# ---- the voter ---------------------------------------------------------------------------------------------------------

RECORDS = Records([{"id": f"r{i}", "text": f"t{i}", "label": str(i % 2)} for i in range(8)])


def answers(rows: dict[str, list[str]]) -> Records:
    return Records([{"id": i} | {column(n): one for n, one in enumerate(said)} for i, said in rows.items()])


def poll(given: Records, context: Polls | None = None, records: Records = RECORDS, offered: Document | None = None, key=None):
    context = context or Polls()
    inputs = {"records": records, "answers": given, "candidates": offered or offer(prompt(), prompt(p0="tell"))}
    outputs = run_component(PromptVoter, {"noise": NOISE}, inputs | ({"key": key} if key else {}), context)
    return context.polls[-1], outputs["votes"]


def test_votes_are_gains_losses_and_abstentions() -> None:
    said = {"r0": ["0", "1"], "r1": ["0", "1"], "r2": ["0", "0"], "r3": ["", "1"], "r4": ["1", "1"], "r5": ["1", ""]}
    votes, counts = poll(answers(said))
    assert votes == {"r0": 2, "r1": 1, "r2": 0, "r3": 1, "r4": 0, "r5": 2, "r6": 0, "r7": 0}  # r6, r7: no answer, so wrong
    assert [row["count"] for row in counts] == [4.0, 2.0, 2.0]


def test_a_vote_depends_on_its_own_record_alone() -> None:
    """Whatever other records are there and what was said of them, and in whichever order: r3 votes for the same."""
    rng, offered = random.Random(2), offer(*(prompt(p0=f"w{i}") for i in range(6)))
    fixed = {"r3": ["0", "1", "1", "1", "0", "1"]}
    seen = set()
    for _ in range(30):
        said = {f"r{i}": [rng.choice(["0", "1", ""]) for _ in range(6)] for i in range(8)} | fixed
        rows = [row for row in RECORDS if row["id"] == "r3" or rng.random() < 0.6]
        rng.shuffle(rows)
        votes, _ = poll(answers(said), records=Records(rows), offered=offered)
        seen.add(votes["r3"])
    assert len(seen) == 1 and seen <= {1, 2, 3, 5}
    others = {poll(answers(fixed), records=Records([r for r in RECORDS if r["id"] == "r3"]), offered=offer(
        prompt(), *(prompt(p0=f"w{i + k}") for i in range(5))))[0]["r3"] for k in range(12)}  # fmt: skip
    assert len(others) > 1  # other candidates, another choice


def test_answers_about_released_rows_come_home_by_the_key() -> None:
    said = {"x9": ["0", "1"], "x8": ["0", "0"], "stranger": ["1", "1"]}
    key = Records([{"released": "x9", "id": "r1"}, {"released": "x8", "id": "r3"}, {"released": "x7", "id": "r5"}])
    votes, _ = poll(answers(said), key=key)
    assert votes == {f"r{i}": int(i == 1) for i in range(8)}
    with pytest.raises(DataError, match="none of the answers is about one of the records"):
        poll(answers(said))
    with pytest.raises(DataError, match="the key does not lead"):
        poll(answers(said), key=Records([{"id": "r1", "name": "x"}]))


def test_answers_to_other_candidates_are_refused() -> None:
    with pytest.raises(DataError, match="there are 2 candidates"):
        poll(answers({"r0": ["0", "1", "1"]}))
    for spoiled in ({"prompts": []}, {"prompts": [], "vote": "changes"}, {"prompts": [prompt().to_json()], "vote": "best"}, []):
        with pytest.raises(DataError, match="candidates"):
            poll(answers({"r0": ["0", "1"]}), offered=Document(spoiled))
    other = Prompt.parse("Say {{ text }} now", ())
    with pytest.raises(DataError, match="no edit of the current prompt"):
        poll(answers({"r0": ["0", "1"]}), offered=offer(prompt(), other))


def test_records_without_the_class_are_told_in_the_plan_and_in_the_run() -> None:
    with pytest.raises(DataError, match="no field 'label'"):
        poll(answers({"r0": ["0", "1"]}), records=Records([{"id": "r0", "text": "x"}]))
    schema = RecordSchema(fields={"text": FieldSpec(text=True), "lable": FieldSpec(domain=("0", "1"))})
    config = PromptVoter.__orig_bases__[0].__args__[0](noise=NOISE)
    (problem,) = PromptVoter.check(config, schema)
    assert problem.startswith("label_field: the records have no field 'label'") and "lable" in problem


# ---- the answerer ------------------------------------------------------------------------------------------------------


def right(text: str) -> str:
    """Right about t0 .. t7 (odd ones are good) if the prompt says 'truly'; else always good."""
    number = int(re.findall(r"\bt(\d)\b", text)[-1])
    return ("good" if number % 2 else "bad") if "truly" in text else "good"


def knows(text: str) -> str:
    """The same, but for a refusal of t6."""
    return "I will not say." if " t6" in text else right(text)


def ask(offered: Document, model, records: Records = RECORDS, **config):
    given = {"model": "llm", "labels": LABELS, "fields": ["text"], **config}
    return run_component(
        PromptAnswerer, given, {"records": records, "candidates": offered}, FakeContext(models={"llm": model})
    )["answers"]  # fmt: skip


def test_answers_are_classes_and_the_class_is_never_shown() -> None:
    model = FakeTextGenerator(knows)
    records = Records([{**row, "label": f"SECRET{row['label']}"} for row in RECORDS])
    found = ask(offer(prompt(), prompt(p0="truly")), model, records)
    assert found.columns == ["id", "c0", "c1"]
    assert [row["c0"] for row in found] == ["1", "1", "1", "1", "1", "1", "", "1"]
    assert [row["c1"] for row in found] == ["0", "1", "0", "1", "0", "1", "", "1"]
    assert not any("SECRET" in text for text in model.prompts) and len(model.prompts) == 16
    with pytest.raises(ConfigError, match="show 'label', which is not one of them"):
        ask(offer(Prompt.parse("Say {{ text }} {{ label }}", ())), model)
    with pytest.raises(DataError, match="no field 'text'"):
        ask(offer(prompt()), model, Records([{"id": "r", "txt": "x"}]))


class Together(FakeTextGenerator):
    """Also streams, as local models do; `sizes`: how many prompts came at a time."""

    def __init__(self, answers) -> None:
        super().__init__(answers)
        self.sizes: list[int] = []

    def stream(self, prompts, how):
        self.sizes.append(len(prompts))
        yield from enumerate(self.generate(prompts, how))


def test_a_row_is_asked_by_itself_unless_batches_were_asked_for_and_the_plan_knows() -> None:
    alone, together = Together(knows), Together(knows)
    ask(offer(prompt()), alone)
    ask(offer(prompt()), together, batch=8)
    assert set(alone.sizes) == {1} and together.sizes == [8]
    config = PromptAnswerer.__orig_bases__[0].__args__[0]
    made = [config(model="m", labels=LABELS, fields=("text",), batch=batch) for batch in (1, 8)]
    assert [PromptAnswerer.mixes(one) for one in made] == [False, True]


class Mingling:
    """The worst of models: an answer depends on everything that is asked in the same call. calls: what was."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def generate(self, prompts, how):
        self.calls.append(list(prompts))
        return [Answer(("good", "bad", "hm")[hashed("".join(prompts) + one) % 3], True, 1) for one in prompts]


TWO_FIELDS = "tell {{ one }} w0 {{ two }}"


@pytest.mark.parametrize("other", [
    {"one": "anything", "two": "else"}, {"one": "p", "two": "q w1 r"}, {"one": "p w0 q", "two": "r"}, {"one": "", "two": None},
])  # fmt: skip
def test_data_sets_that_differ_in_one_record_have_all_other_votes_alike(other: dict[str, str]) -> None:
    """Neighbours, from candidates to votes. The changed record's text is that of another one, or becomes it in another
    candidate ("p w0 q w1 r" is the second candidate for r0), or nothing at all: what others are asked and vote stays."""
    first = Prompt.parse(TWO_FIELDS, ())
    offered = Document(Candidates((first, first.replaced(2, "w1"), first.replaced(0, "say")), "changes").to_json())
    rows = [{"id": "r0", "one": "p w0 q", "two": "r", "label": "1"}]
    rows += [{"id": f"r{i}", "one": f"t{i % 5}", "two": "z", "label": str(i % 2)} for i in range(2, 30)]
    seen = []
    for changed in ({"one": "c", "two": "d", "label": "0"}, other | {"label": "1"}):
        records = Records([{"id": "a", **changed}, *rows])
        model, context = Mingling(), Polls()
        context.models = {"llm": model}
        given = {"model": "llm", "labels": LABELS, "fields": ["one", "two"]}
        said = run_component(PromptAnswerer, given, {"records": records, "candidates": offered}, context)["answers"]
        inputs = {"records": records, "candidates": offered, "answers": said}
        run_component(PromptVoter, {"noise": NOISE}, inputs, context)
        assert len(model.calls) == len(records)  # how often it is asked tells nothing of what the records say
        seen.append({name: vote for name, vote in context.polls[-1].items() if name != "a"})
    assert seen[0] == seen[1] and len(set(seen[0].values())) > 2


def test_too_many_queries_are_refused_before_the_first() -> None:
    model = FakeTextGenerator(knows)
    with pytest.raises(ConfigError, match="8 rows and 2 candidates are 16 queries, over 15") as error:
        ask(offer(prompt(), prompt(p0="truly")), model, max_queries=15)
    assert error.value.problems[0].path == "max_queries" and model.prompts == []
    schema = RecordSchema(fields={"text": FieldSpec(text=True)})
    config = PromptAnswerer.__orig_bases__[0].__args__[0](model="m", labels=["not good", "good"], fields=("texts",))
    assert [problem.partition(":")[0] for problem in PromptAnswerer.check(config, schema)] == ["labels", "fields"]


class Dying(FakeTextGenerator):
    """Is gone after so many answers, once."""

    left = 5

    def generate(self, prompts, how):
        if self.left == 0:
            self.left = -1
            raise ComponentError("gone")
        self.left -= 1
        return super().generate(prompts, how)


def test_a_failing_model_loses_nothing_that_was_answered() -> None:
    model, offered = Dying(knows), offer(prompt(), prompt(p0="truly"))
    context = FakeContext(models={"llm": model})
    given = {"model": "llm", "labels": LABELS, "fields": ["text"]}
    with pytest.raises(ComponentError, match="gone"):
        run_component(PromptAnswerer, given, {"records": RECORDS, "candidates": offered}, context)
    found = run_component(PromptAnswerer, given, {"records": RECORDS, "candidates": offered}, context)["answers"]
    assert len(model.prompts) == 16 and found.rows == ask(offered, FakeTextGenerator(knows)).rows


# ---- the proposer ------------------------------------------------------------------------------------------------------


def propose(context: FakeContext | None = None, votes=None, candidates=None, credit=None, given=None, **config):
    inputs = {"candidates": candidates, "votes": votes, "credit": credit, "prompt": given}
    base = {"prompt": TEXT, "labels": LABELS, "masked": "masked"}
    context = context or FakeContext(models={"masked": FakeMaskedLM(VOCABULARY)})
    return run_component(PromptProposer, base | config, {k: v for k, v in inputs.items() if v is not None}, context)


def counted(*columns: list[float]) -> dict[str, Records]:
    return {
        f"p{i}": Records([{"value": str(n), "count": float(c)} for n, c in enumerate(one)]) for i, one in enumerate(columns)
    }  # fmt: skip


@pytest.mark.parametrize("proposals", ["mlm", "random"])
@pytest.mark.parametrize("edits", [1, 3])
def test_candidates_are_different_edits_of_the_current_prompt(proposals: str, edits: int) -> None:
    found = propose(count=10, edits=edits, proposals=proposals)
    offered = Candidates.of_json(found["candidates"].data)
    assert len(offered.prompts) == 11 == len({one.template for one in offered.prompts}) and offered.vote == "changes"
    assert offered.prompts[0].template == prompt().template == Prompt.of_json(found["prompt"].data).template
    for number in range(1, 11):
        changed = offered.edits(number)
        assert 1 <= len(changed) <= edits and all(position in prompt().free for position, _ in changed)
        assert offered.prompts[number].skeleton == prompt().skeleton
    again = propose(count=10, edits=edits, proposals=proposals)
    assert again["candidates"].data == found["candidates"].data
    later = FakeContext(models={"masked": FakeMaskedLM(VOCABULARY)}, round=2)
    assert propose(later, count=10, edits=edits, proposals=proposals)["candidates"].data != found["candidates"].data
    other = FakeContext(models={"masked": FakeMaskedLM(VOCABULARY)}, seed=1)
    assert propose(other, count=10, edits=edits, proposals=proposals)["candidates"].data != found["candidates"].data


def test_the_best_candidate_wins_by_the_margin_over_all_clients_together() -> None:
    offered = offer(prompt(), prompt(p0="tell"), prompt(p0="truly"))
    votes = counted([50, 4, 9.5, 6, 1.5], [40, 6, 1, 0, 0])  # gains less losses: tell 10 - 6, truly 10.5 - 1.5
    found = propose(votes=votes, candidates=offered, count=0, margin=8.5)
    assert Prompt.of_json(found["prompt"].data).template == prompt(p0="truly").template
    report = found["report"].data
    assert report["scores"] == [0.0, 4.0, 9.0] and report["chosen"] == 2 and report["parties"] == ["p0", "p1"]
    assert report["changes"] == [{"position": 0, "before": "Say", "after": "truly"}]
    assert report["counts"] == {"abstain": 90.0, "gain 1": 10.0, "gain 2": 10.5, "loss 1": 6.0, "loss 2": 1.5}
    stays = propose(votes=votes, candidates=offered, count=0, margin=9.0)
    assert Prompt.of_json(stays["prompt"].data).template == prompt().template and stays["report"].data["changes"] == []
    assert len(stays["candidates"].data["prompts"]) == 1
    assert Credit.of_json(stays["credit"].data).known == {(0, "tell"): (1, 4.0), (0, "truly"): (1, 9.0)}


def test_what_lost_is_not_proposed_again_and_what_was_second_is() -> None:
    """Eight words of one place were voted on: one was better and did not win, seven were not."""
    few = ["[MASK]", "Say", "or", ":", "Answer", *[f"w{i}" for i in range(8)]]
    credit = Credit()
    for position in prompt().free:
        for i in range(1, 8):
            credit.add([(position, f"w{i}")], -1.0 if i < 7 else (2.0 if position == 0 else -1.0))
        for word in ("Say", "or", ":", "Answer"):
            credit.add([(position, word)], 0.0)
    context = FakeContext(models={"masked": FakeMaskedLM(few)})
    found = propose(context, credit=Document(credit.to_json()), count=40)
    offered = Candidates.of_json(found["candidates"].data)
    edits = [offered.edits(number) for number in range(1, len(offered.prompts))]
    assert edits[0] == ((0, "w7"),) and {word for ((_, word),) in edits[1:]} == {"w0"}


def test_votes_that_do_not_fit_and_nothing_to_begin_with_are_told() -> None:
    offered = offer(prompt(), prompt(p0="tell"))
    with pytest.raises(DataError, match="there are votes, and no candidates"):
        propose(votes=counted([1, 2, 3]))
    with pytest.raises(DataError, match="about 2 candidates, and there are 3"):
        propose(votes=counted([1, 2]), candidates=offered)
    with pytest.raises(ConfigError, match="no prompt to begin with"):
        propose(prompt=None)
    with pytest.raises(ConfigError, match="no word that may change"):
        propose(given=Document(Prompt.parse("[[Say]] {{ text }}", ()).to_json()), prompt=None)
    with pytest.raises(DataError, match="not the credit"):
        propose(credit=Document([[0, "w", 0, 1.0]]))
    config = PromptProposer.__orig_bases__[0].__args__[0]
    assert PromptProposer.check(config(prompt="Say it"), None)[:2] == [
        "masked: needed unless count is 0", "prompt: it shows nothing of a record: it has no {{ slot }}",
    ]  # fmt: skip
    assert "prompt: no word of it may change: all are frozen" in PromptProposer.check(
        config(prompt="{{ x }}", masked="m"), None
    )


# ---- all of it ---------------------------------------------------------------------------------------------------------


def search(rounds: int, proposals: str, seed: int, noise: float) -> tuple[Prompt, float]:
    """Two clients of 16 records; the black box is right if the prompt says 'truly', and about every second one otherwise."""
    records = {p: Records([{"id": f"{p}{i}", "text": f"t{i % 8}", "label": str(i % 2)} for i in range(16)]) for p in "ab"}
    contexts = {p: FakeContext(party=p, seed=seed, models={"llm": FakeTextGenerator(right)}) for p in "ab"}
    state = {"prompt": None, "credit": None}
    for number in range(rounds):
        server = FakeContext(party="hub", seed=100 * seed + number, models={"masked": FakeMaskedLM(VOCABULARY)})
        made = propose(server, given=state["prompt"], credit=state["credit"], count=8, proposals=proposals)
        votes, offered = {}, made["candidates"]
        for party, context in contexts.items():
            inputs = {"records": records[party], "candidates": offered}
            said = run_component(PromptAnswerer, ASKED, inputs, context)["answers"]
            told = run_component(PromptVoter, {"noise": {"noise_multiplier": noise}}, inputs | {"answers": said}, context)
            votes[party] = told["votes"]
        chosen = propose(server, votes=votes, candidates=made["candidates"], credit=made["credit"], count=0, margin=6.0)
        state = {"prompt": chosen["prompt"], "credit": chosen["credit"]}
    final = Prompt.of_json(state["prompt"].data)
    return final, sum("truly" in token.text for token in final.tokens)


def test_the_search_finds_the_word_that_decides_under_noise() -> None:
    """Noise 1 a client; the gain is 16 votes, six standard deviations of a score over the margin. In 12 rounds of 8 of the 180
    edits, 5 of which are right, one is proposed and kept with every one of these seeds."""
    found = [search(12, "mlm", seed, 1.0)[1] for seed in range(3)]
    assert min(found) >= 1


def test_they_fit_the_contract() -> None:
    inputs = {"records": RECORDS, "candidates": offer(prompt(), prompt(p0="tell"))}
    check_component(PromptVoter, {"noise": NOISE}, inputs | {"answers": answers({"r0": ["0", "1"]})})
    check_component(PromptAnswerer, ASKED, inputs, lambda: FakeContext(models={"llm": FakeTextGenerator(knows)}))
    config = {"prompt": TEXT, "labels": LABELS, "masked": "masked"}
    check_component(PromptProposer, config, {}, lambda: FakeContext(models={"masked": FakeMaskedLM(VOCABULARY)}))

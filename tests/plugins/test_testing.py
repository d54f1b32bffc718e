# SPDX-License-Identifier: Apache-2.0
"""The conformance kit passes what fits, and says what to mend about what does not."""

import hashlib
import importlib
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from osmotic import testing
from osmotic.plugins import contract
from osmotic.plugins.contract import (
    Component,
    Config,
    Document,
    DocumentMechanism,
    Drawn,
    Gathered,
    Generation,
    Mechanism,
    ModelPlugin,
    Out,
    Outputs,
    Records,
)
from osmotic.plugins.mechanisms.custext import CusText
from osmotic.plugins.mechanisms.exponential import Exponential
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse
from osmotic.plugins.mechanisms.mixture import Mixture
from osmotic.plugins.mechanisms.santext import SanText
from osmotic.plugins.mechanisms.santext_plus import SanTextPlus
from osmotic.schemas.errors import ComponentError, ConfigError, DataError, OsmoticError, RefusedError
from osmotic.schemas.guarantees import Guarantee
from osmotic.schemas.records import FieldSpec, RecordSchema

ROWS = Records([{"id": str(i), "x": f"value {i}"} for i in range(6)])
SCHEMA = RecordSchema(fields={"x": FieldSpec(text=True), "d": FieldSpec(domain=("a", "b", "c"))})


class SamplerConfig(Config):
    share: float = 0.5
    tags: tuple[str, ...] = ()


class RowSampler(Component[SamplerConfig]):
    """A component that fits."""

    name = "row_sampler"
    outputs = {"rows": Out(Records), "report": Out(Document)}

    def run(self, context: contract.Context, records: Records, extra: Records | None) -> Outputs:
        rng = context.rng("rows")
        rows = [dict(row) for row in records if rng.random() < self.config.share]
        return {"rows": Records(rows, ["id", "x"]), "report": Document({"rows": len(rows)})}


class Summer(Component[Config]):
    """A component with a gathered input."""

    name = "summer"
    outputs = {"total": Out(Document)}

    def run(self, context: contract.Context, parts: Gathered[Records]) -> Outputs:
        return {"total": Document({party: len(part) for party, part in parts.items()})}


def test_it_is_public():
    assert importlib.import_module("osmotic").testing is importlib.import_module("osmotic.plugins.testing")
    code = "import sys, osmotic.plugins.testing; print([m for m in ('torch', 'pyarrow', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_components_that_fit_pass():
    testing.check_component(RowSampler, {"share": 0.5}, {"records": ROWS})
    testing.check_component(Summer, {}, {"parts": {"south": ROWS, "north": Records([], ["id"])}})
    outputs = testing.run_component(Summer, {}, {"parts": {"south": ROWS, "north": ROWS}})
    assert list(outputs["total"].data) == ["north", "south"]


def component(run, outputs=None, config=SamplerConfig):
    """A component class around a function (rows, context) -> outputs."""

    class Made(Component[config]):
        """What a test says that it does."""

        name = "made"

        def run(self, context: contract.Context, records: Records) -> Outputs:
            return run(records, context)

    Made.outputs = outputs or {"rows": Out(Records)}
    return Made


class Open(Config, extra="allow"):
    pass


def shout(records, context):
    for row in records:
        row["x"] = row["x"] + "!"
    return {"rows": Records([{"n": 1}])}


STATE = iter(range(100))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (component(lambda r, c: [r]), "must return a mapping"),
        (component(lambda r, c: {"row": r}), r"'row' is not declared[\s\S]*did you mean 'rows'[\s\S]*'rows' is missing"),
        (component(lambda r, c: {"rows": Document(1)}), "'rows' must be records \\(got Document\\)"),
        (component(lambda r, c: {"rows": Records([{"n": next(STATE)}])}), "two runs with the same seed differ in rows"),
        (component(shout), "run changed its inputs"),
        (component(lambda r, c: {"rows": r}, config=Open), "Open accepts unknown keys"),
    ],
)
def test_components_that_do_not_fit_are_told(made, message):
    with pytest.raises(testing.ConformanceError, match=message):
        testing.check_component(made, {}, {"records": Records([{"id": "1", "x": "y"}])})


def test_wrong_inputs_and_configurations_are_told():
    with pytest.raises(testing.ConformanceError, match=r"unknown input 'record'[\s\S]*inputs.records: this input is required"):
        testing.run_component(RowSampler, {}, {"record": ROWS})
    with pytest.raises(testing.ConformanceError, match=r"inputs.records: must be records \(got Document\)"):
        testing.run_component(RowSampler, {}, {"records": Document(1)})
    with pytest.raises(ConfigError, match=r"tags: must be a list[\s\S]*shar: unknown key\s+did you mean 'share'") as caught:
        testing.run_component(RowSampler, {"shar": 1.0, "tags": ["a"]}, {"records": ROWS})
    assert len(caught.value.problems) == 2  # both at once; a strict tuple does not take a YAML list


def test_heavy_imports_and_broken_modules_are_told(tmp_path, monkeypatch):
    source = """
        {line}
        from osmotic.plugins.contract import Component, Config, Context, Out, Outputs, Records

        class Heavy(Component[Config]):
            \"\"\"Rows in, rows out.\"\"\"

            name = "heavy"
            outputs = {{"rows": Out(Records)}}

            def run(self, context: Context, records: Records) -> Outputs:
                return {{"rows": records}}
    """
    monkeypatch.syspath_prepend(tmp_path)
    for name, line in (("plug_a", "import pyarrow"), ("plug_b", "import json")):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source.format(line=line)))
    with pytest.raises(testing.ConformanceError, match="importing 'plug_a' loads pyarrow"):
        testing.check_component(importlib.import_module("plug_a").Heavy, {}, {"records": ROWS})
    made = importlib.import_module("plug_b").Heavy
    testing.check_component(made, {}, {"records": ROWS})
    (tmp_path / "plug_b.py").write_text("import nowhere_to_be_found")
    with pytest.raises(testing.ConformanceError, match="cannot be imported on its own"):
        testing.check_component(made, {}, {"records": ROWS})
    sys.modules.pop("plug_a"), sys.modules.pop("plug_b")


# ---- mechanisms ------------------------------------------------------------------------------------------------------


class EpsilonConfig(Config):
    epsilon: float


class Honest(Mechanism[EpsilonConfig]):
    """Randomised response over all symbols."""

    name = "honest"
    claim = 1.0

    def log_prob(self, rows):
        v, epsilon = self.space.size, self.config.epsilon
        out = np.zeros((len(rows), v))
        known = np.flatnonzero(rows < v)
        out[known, rows[known]] = epsilon
        return out - np.log(np.exp(out).sum(axis=1, keepdims=True))

    def guarantee(self):
        return Guarantee(mechanism_class="certified", epsilon=self.claim * self.config.epsilon)


class Boastful(Honest):
    """Claims half."""

    claim = 0.5


class Leaky(Honest):
    """Keeps more than log_prob says."""

    def sample(self, rows, entropy):
        drawn = super().sample(rows, entropy)
        known = rows < self.space.size
        return np.where(known & (entropy.uniform(len(rows)) < 0.3), rows, drawn)


class Together(Honest):
    """Looks at the batch."""

    def log_prob(self, rows):
        return super().log_prob(np.sort(rows)[::-1])


def test_mechanisms_that_fit_pass_and_give_their_card():
    card = testing.check_mechanism(Honest, {"epsilon": 2.0})
    assert card.holds and card.epsilon_true == pytest.approx(2.0)
    assert testing.check_mechanism(ListRandomisedResponse, {"epsilon": 3.0, "k": 4}).holds
    assert testing.check_mechanism(Exponential, {"epsilon": 3.0}, testing.small_space(10, unknown=False)).symbols == 10


@pytest.mark.parametrize(
    ("cls", "message"),
    [(Boastful, r"does not hold[\s\S]*epsilon 1 a token; computed epsilon 2"), (Leaky, "sample does not follow log_prob"),
     (Together, "depends on the other rows")],
)  # fmt: skip
def test_mechanisms_that_do_not_fit_are_told(cls, message):
    with pytest.raises(testing.ConformanceError, match=message):
        testing.check_mechanism(cls, {"epsilon": 2.0})


# ---- models ----------------------------------------------------------------------------------------------------------


class PathConfig(Config):
    path: str = "p"


def model(build, provides, fingerprint=None):
    """A model plugin class."""

    class Made(ModelPlugin[PathConfig]):
        """A model of a test."""

        name = "made"

        def fingerprint(self):
            return fingerprint() if fingerprint else hashlib.sha256(self.config.path.encode()).hexdigest()

        def build(self):
            return build()

    Made.provides = frozenset(provides)
    return Made


class Unnormalised:
    def embed(self, texts):
        return np.ones((len(texts), 4), dtype=np.float32)


class Forgetful:
    def generate(self, prompts, how):
        return []


def test_fakes_are_models_that_fit():
    assert isinstance(testing.FakeTextGenerator({}), contract.TextGenerator)
    generator = lambda: testing.FakeTextGenerator(str.upper)  # noqa: E731
    testing.check_model(model(generator, ["text_generator"]), {"path": "x"})
    testing.check_model(model(testing.FakeScorer, ["scorer"]), {})
    testing.check_model(model(testing.FakeMaskedLM, ["masked_lm"]), {})
    testing.check_model(model(testing.FakeEmbedder, ["embedder"]), {})
    testing.check_model(model(testing.FakeNextToken, ["next_token"]), {})


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (model(testing.FakeScorer, ["scorer"], lambda: "v1"), "not a stable SHA-256"),
        (model(testing.FakeScorer, ["scorer"], lambda: f"{next(STATE):064x}"), "not a stable SHA-256"),
        (model(testing.FakeScorer, ["scorer", "embedder"]), r"promises 'embedder', but FakeScorer lacks it[\s\S]*needs: embed"),
        (model(testing.FakeScorer, []), "has log_likelihood, but made does not provide 'scorer'"),
        (model(testing.FakeScorer, ["scorer", "scores"]), r"unknown in provides: 'scores'[\s\S]*did you mean 'scorer'"),
        (model(Unnormalised, ["embedder"]), "embed: float32"),
        (model(Forgetful, ["text_generator"]), "generate: one answer a prompt"),
    ],
)
def test_models_that_do_not_fit_are_told(made, message):
    with pytest.raises(testing.ConformanceError, match=message) as caught:
        testing.check_model(made, {})
    assert isinstance(caught.value, OsmoticError) and caught.value.exit_code == 6


def test_the_fake_generator_counts_words_and_stops():
    fake = testing.FakeTextGenerator({"a": "one two three. four", "b": ""})
    answers = fake.generate(["a", "b"], Generation(max_new_tokens=2))
    assert [(a.text, a.finished, a.tokens) for a in answers] == [("one two", False, 2), ("", True, 0)]
    assert fake.generate(["a"], Generation(stop=(".",)))[0].text == "one two three"
    with pytest.raises(ComponentError, match="no answer"):
        fake.generate(["c"], Generation())


def test_the_other_fakes_behave_like_models():
    (near, words), (far, _) = testing.FakeScorer().log_likelihood([("the ward is alder", "alder"), ("the ward", "alder")])
    assert near > far and words == 1
    (best,) = testing.FakeMaskedLM(["a", "b", "c"]).fill(["it is [MASK]"], 3)
    assert sum(math.exp(value) for _, value in best) == pytest.approx(1)
    with pytest.raises(ComponentError, match="exactly one"):
        testing.FakeMaskedLM().fill(["nothing"], 1)
    a, b, c = testing.FakeEmbedder().embed(["red apple pie", "red apple tart", "seven seas"])
    assert a @ b > 0.4 > abs(a @ c)


# ---- the context -----------------------------------------------------------------------------------------------------


def test_streams_depend_on_seed_party_and_name_only():
    make = testing.FakeContext
    first = make(task="x").rng("a").random()
    assert first == make(task="y").rng("a").random()
    others = [make(seed=1).rng("a"), make(party="south").rng("a"), make().rng("b")]
    assert first not in [stream.random() for stream in others]


def test_what_was_not_given_is_told():
    context = testing.FakeContext(models={"slm": 1}, datasets={"train": (ROWS, SCHEMA)})
    assert context.model("slm") == 1 and context.schema() is SCHEMA
    for call, kind in ((lambda: context.model("sml"), ConfigError), (lambda: context.dataset("trian"), RefusedError)):
        with pytest.raises(kind, match="did you mean"):
            call()
    with pytest.raises(ConfigError, match="record_schema"):
        testing.FakeContext().schema()
    with pytest.raises(ComponentError):
        context.progress(2, 1)


def test_the_journal_outlives_the_run_and_the_scratch_folder_does_not():
    context = testing.FakeContext()
    context.journal().put("k", {"a": (1, 2)})
    assert context.journal().get("k") == {"a": [1, 2]} and context.journal("other").get("k") is None
    folder = context.scratch()
    (folder / "file").write_text("x")
    assert context.scratch() == folder
    del context
    assert not folder.exists()


def test_the_stub_release_does_not_look_at_the_data():
    context = testing.FakeContext(record_schema=SCHEMA)
    own = Records([{"id": str(i), "x": "Secret words 77", "d": "a"} for i in range(300)])
    released, key = context.release(own, ["x", "d"], {"name": "any"})
    assert {row["d"] for row in released} == {"a", "b", "c"} and context.released == 300
    assert all(row["x"].startswith("word") and len(row["x"].split()) == 4 for row in released)  # 77 is two tokens
    assert {row["id"] for row in released} == {row["released"] for row in key}
    again, _ = context.release(own, ["d"], {"name": "any"})
    assert not {row["id"] for row in again} & {row["id"] for row in released}


def test_release_goes_through_the_mechanism_that_is_given():
    context = testing.FakeContext(record_schema=SCHEMA, mechanisms={"honest": Honest})
    own = Records([{"id": str(i), "d": "b"} for i in range(2_000)])
    released, _ = context.release(own, ["d"], {"name": "honest", "epsilon": 2.0})
    share = sum(row["d"] == "b" for row in released) / 2_000
    assert share == pytest.approx(math.exp(2) / (math.exp(2) + 2), abs=0.055)  # 6 standard errors
    with pytest.raises(ConfigError, match="epsilon"):
        context.release(own, ["d"], {"name": "honest", "epsilon": "2"})
    with pytest.raises(ConfigError, match="did you mean 'd'"):
        context.release(Records([{"id": "1", "dd": "b"}]), ["dd"], {"name": "honest", "epsilon": 2.0})


def test_blind_changes_ids_and_order_and_nothing_else():
    blinded, key = testing.FakeContext().blind(ROWS, ["x"])
    home = {row["released"]: row["id"] for row in key}
    assert sorted((home[row["id"]], row["x"]) for row in blinded) == [(row["id"], row["x"]) for row in ROWS]


def test_a_second_attempt_is_another_draw_and_a_first_again_is_not():
    context = testing.FakeContext(record_schema=SCHEMA, mechanisms={"honest": Honest})
    own = Records([{"id": str(i), "d": "abc"[i % 3]} for i in range(200)])

    def draw(attempt, **more):
        context.released = 0
        released, key = context.release(own, ["d"], {"name": "honest", "epsilon": 2.0}, attempt=attempt, **more)
        home = {row["released"]: row["id"] for row in key}
        return {home[row["id"]]: row["d"] for row in released}

    assert draw(1) == draw(1) != draw(2)
    for wrong in (0, True, "1"):
        with pytest.raises(ConfigError, match="attempt"):
            draw(wrong)


def test_a_released_bit_chooses_and_nothing_else():
    context = testing.FakeContext(record_schema=SCHEMA)
    own = Records([{"id": str(i), "d": "a"} for i in range(2_000)])
    bits, key = context.feedback(own, {str(i): i < 1_000 for i in range(2_000)}, 1.0)
    home = {row["released"]: row["id"] for row in key}
    yes = {home[row["id"]] for row in bits if row["bit"] == "yes"}
    share = sum(int(i) < 1_000 for i in yes) / 1_000
    assert share == pytest.approx(math.e / (math.e + 1), abs=0.085)  # 6 standard errors
    chosen = Records([row for row in own if row["id"] in yes])
    assert len(context.release(chosen, ["d"], {"name": "any"}, chosen=(bits, key))[0]) == len(yes)
    with pytest.raises(RefusedError, match="whose bit is 'yes'"):
        context.release(own, ["d"], {"name": "any"}, chosen=(bits, key))
    with pytest.raises(DataError, match="one bit"):
        context.feedback(own, {"0": True}, 1.0)
    for wrong in (0, -1.0, float("nan"), True, "1"):
        with pytest.raises(ConfigError, match="epsilon"):
            context.feedback(own, {str(i): True for i in range(2_000)}, wrong)


def test_counts_get_noise_of_the_stated_scale():
    """Discrete Laplace of scale 20: standard deviation 28.3; the mean of 300 absolute errors is 20 within 6 standard errors."""
    own = Records([{"id": str(i), "d": "ab"[i % 2]} for i in range(100)])
    errors = []
    for seed in range(100):
        rows = testing.FakeContext(record_schema=SCHEMA, seed=seed).histogram(own, "d", {"name": "laplace", "epsilon": 0.1})
        assert [row["value"] for row in rows] == ["a", "b", "c"]
        errors += [abs(row["count"] - true) for row, true in zip(rows, (50, 50, 0), strict=True)]
    assert sum(errors) / 300 == pytest.approx(20, abs=7)
    context = testing.FakeContext(record_schema=SCHEMA)
    rows = context.histogram(own, "d", {"name": "gaussian", "epsilon": 1, "delta": 1e-6})
    assert all(isinstance(row["count"], int) for row in rows)
    for field, noise in (("x", {"name": "laplace", "epsilon": 1}), ("d", {"name": "laplace", "epsilon": 0}), ("dd", {})):
        with pytest.raises(ConfigError):
            context.histogram(own, field, noise)


def test_a_mechanism_for_analysis():
    context = testing.FakeContext(record_schema=SCHEMA, mechanisms={"honest": Honest, "mix": Mixture})
    assert context.mechanism({"name": "honest", "epsilon": 1.0}, "d").space.symbols == ("a", "b", "c")
    wrapped = {"name": "mix", "epsilon": 1.0, "t_max": 0.5, "inner": {"name": "honest", "epsilon": 3.0}}
    assert isinstance(context.mechanism(wrapped, "d").inner, Honest) and context.released == 0
    for wrong in ({"name": "honst", "epsilon": 1.0}, {**wrapped, "inner": {"name": "none"}}):
        with pytest.raises(ConfigError, match="unknown mechanism"):
            context.mechanism(wrong, "d")


# ---- classes of mechanisms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "config", "kind"),
    [
        (SanText, {"epsilon": 1.0}, "metric"),
        (CusText, {"epsilon": 2.0, "k": 4}, "partition"),
        (SanTextPlus, {"epsilon": 3.0, "w": 0.5}, "heuristic"),
        (Mixture, {"epsilon": 3.0, "inner": {"name": "rantext", "epsilon": 1.0}}, "certified"),
    ],
)
def test_every_class_of_mechanism_can_be_checked(cls, config, kind):
    card = testing.check_mechanism(cls, config)
    assert card.declared.mechanism_class == kind and card.holds == (kind != "heuristic")
    assert bool(card.inner) == cls.wraps


def test_an_inner_mechanism_of_ones_own():
    config = {"epsilon": 3.0, "inner": {"name": "honest", "epsilon": 9.0}}
    assert testing.check_mechanism(Mixture, config, mechanisms={"honest": Honest}).holds
    with pytest.raises(ConfigError, match="unknown mechanism 'honest'"):
        testing.check_mechanism(Mixture, config)


class Steps(DocumentMechanism[EpsilonConfig]):
    """Each field through randomised response at its share of epsilon."""

    name = "steps"
    together = False
    spends = 1.0

    def guarantee(self):
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon, unit="document")

    def parts(self):
        return [Honest(EpsilonConfig(epsilon=self.config.epsilon / len(self.slots)), slot.space) for slot in self.slots]

    def sample(self, documents, entropy):
        from osmotic.plugins import spaces

        columns = []
        for i, (slot, part) in enumerate(zip(self.slots, self.parts(), strict=True)):
            flat, lengths = spaces.encode(slot.space, [texts[i] for texts in documents])
            if self.together and len(documents):
                flat = np.full_like(flat, flat[-1])
            columns.append((spaces.decode(slot.space, part.sample(flat, entropy), lengths), lengths.tolist()))
        spent = self.spends * self.config.epsilon
        return [
            Drawn(tuple(texts[n] for texts, _ in columns), spent, tuple(counts[n] for _, counts in columns))
            for n in range(len(documents))
        ]


def test_documents_that_fit_pass_and_give_their_card():
    card = testing.check_document(Steps, {"epsilon": 4.0})
    assert card.holds and card.declared.unit == "document" and len(card.parts) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"together": True}, "depends on the others of its batch"),
        ({"spends": 1.5}, "spent more than the guarantee says"),
        ({"spends": float("nan")}, "spent more than the guarantee says"),
        ({"sample": lambda self, documents, entropy: [1]}, "empty list for an empty list"),
        ({"sample": lambda self, documents, entropy: []}, "one Drawn a document"),
        ({"sample": lambda self, d, entropy: [Drawn(("x",), 0.0, (1,)) for _ in d]}, "a number of symbols for each slot"),
        ({"guarantee": Honest.guarantee, "claim": 1.0}, "must be per document"),
        ({"__init__": lambda self, c, s, model: [DocumentMechanism.__init__(self, c, s, model), model("slm")]}, "no model"),
    ],
)
def test_documents_that_do_not_fit_are_told(changes, message):
    made = type("Made", (Steps,), changes)
    with pytest.raises((testing.ConformanceError, ConfigError), match=message):
        testing.check_document(made, {"epsilon": 8.0})


def test_a_document_mechanism_in_the_context():
    context = testing.FakeContext(record_schema=SCHEMA, mechanisms={"steps": Steps})
    own = Records([{"id": str(i), "d": "abc"[i % 3]} for i in range(30)])
    released, key = context.release(own, ["d"], {"name": "steps", "epsilon": 50.0})
    home = {row["released"]: row["id"] for row in key}
    assert {home[row["id"]]: row["d"] for row in released} == {row["id"]: row["d"] for row in own}  # e^-50: nothing flips

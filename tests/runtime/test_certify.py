# SPDX-License-Identifier: Apache-2.0
"""`osmotic certify`: numbers, tables, exit codes, the cache of cards, bad input."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from osmotic.plugins.contract import Config, Entropy, Guarantee, Mechanism
from osmotic.plugins.host import Registered, Registry, build_registry
from osmotic.runtime import cli
from osmotic.runtime.tools import certifying
from osmotic.runtime.tools.certifying import certify_command, found_json, found_text, read_prior, settings, table_space
from osmotic.schemas.errors import ConfigError


class ClaimConfig(Config):
    epsilon: float


class Boastful(Mechanism[ClaimConfig]):
    """Claims a tenth of what it does."""

    name = "boastful"

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        out = np.zeros((len(rows), self.space.size))
        known = np.flatnonzero(rows < self.space.size)
        out[known, rows[known]] = 10 * self.config.epsilon
        return out - np.log(np.exp(out).sum(axis=1, keepdims=True))

    def guarantee(self) -> Guarantee:
        return Guarantee(mechanism_class="certified", epsilon=self.config.epsilon)


class Quiet(Boastful):
    """Uniform rows beside a sampler that lets everything through."""

    name = "quiet"

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), self.space.size), -math.log(self.space.size))

    def sample(self, rows: np.ndarray, entropy: Entropy) -> np.ndarray:
        return np.where(rows < self.space.size, rows, 0)


def registry() -> Registry:
    found = build_registry(names=[])
    for cls in (Boastful, Quiet):
        found.mechanisms[cls.name] = Registered(cls, "test", "0")
    return found


def osmotic(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The command as `main` runs it; its exit code."""
    monkeypatch.setattr("osmotic.plugins.host.build_registry", lambda *a, **k: registry())
    monkeypatch.setattr(sys, "argv", ["osmotic", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_one_card_as_text_and_as_json(table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    base = ("certify", "list-rr", "--epsilon", "3", "--set", "k=4", "--table", table)
    assert osmotic(*base, monkeypatch=monkeypatch) == 0
    text = capsys.readouterr().out
    for part in ("certified, a token", "V = 40", "3 (certified)", "holds          yes", "the bound at the declared epsilon is"):
        assert part in text
    assert osmotic(*base, "--json", monkeypatch=monkeypatch) == 0
    card = json.loads(capsys.readouterr().out)["card"]
    assert card["epsilon_true"] == pytest.approx(3.0) and card["holds"] and card["version"] == 2 and card["symbols"] == 40
    assert card["retention_bound"] == pytest.approx(math.exp(3) / (math.exp(3) + 39))


def test_a_false_claim_has_exit_code_4(table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, why in (("boastful", "declared 0.5, computed 5"), ("quiet", "more or less often")):
        assert osmotic("certify", name, "--epsilon", ".5", "--table", table, monkeypatch=monkeypatch) == 4
        told = capsys.readouterr()
        assert "holds          no" in told.out and f"{name} at epsilon 0.5 does not hold" in told.err
        assert (why in told.err or "do not fit" in told.err) and "Traceback" not in told.err


def test_a_heuristic_gets_its_true_number_and_is_no_failure(table: str) -> None:
    (found,) = certify_command(registry(), "rantext", [3.0], table=table)
    assert found.card is not None and not found.card.holds and not found.failed
    assert found.card.epsilon_true > 3
    value = json.loads(found_json([found]), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert value["card"]["epsilon_true"] == "Infinity" or value["card"]["epsilon_true"] > 3
    assert "class heuristic: nothing is proven" in found_text([found])


def test_an_estimate_is_called_one_with_a_proven_bound_beside_it(table: str) -> None:
    """On the nominal 3 the audit's bound, from 50,000 draws of two inputs, is above 2; the estimate is above it."""
    (found,) = certify_command(registry(), "rantext", [3.0], table=table, draws=50_000)
    assert found.card is not None and found.card.estimated and found.audit is not None
    assert 2 < found.audit.epsilon_low < found.card.epsilon_true
    bound = f"at least {found.audit.epsilon_low:.4g} (97.5% confidence each side, 50000 draws)"
    text = f"about {found.card.epsilon_true:.3g} (estimated)"
    assert f"true epsilon   {text}; {bound}" in found_text([found]) and "uniform prior, estimated" in found_text([found])
    value = json.loads(found_json([found]))
    assert value["true_epsilon"] == f"{text}; {bound}" and value["card"]["estimated"] is True
    endless = replace(found, card=found.card.model_copy(update={"epsilon_true": math.inf}))
    for shown in (found_text([endless]), found_text([endless, endless]), found_json([endless])):
        assert "no finite number found (estimated)" in shown and bound in shown and "infinite" not in shown
    exact = certify_command(registry(), "list-rr", [3.0], ["k=4"], table=table)
    assert exact[0].audit is None and "estimated" not in found_text(exact)
    assert json.loads(found_json(exact))["true_epsilon"] == "3"


@pytest.mark.parametrize("kind", ["certified", "metric", "partition"])
def test_an_estimate_never_holds(kind: str, table: str) -> None:
    class Estimated(Boastful):
        """Uniform rows, which nobody vouches for."""

        name = "estimated"
        log_prob = Quiet.log_prob
        exact = False

        def guarantee(self) -> Guarantee:
            return Guarantee(mechanism_class=kind, epsilon=1.0, unit="distance" if kind == "metric" else "token")

        def cells(self) -> np.ndarray:
            return np.zeros(self.space.size + self.space.unknown, dtype=np.int64)

        def distances(self, rows: np.ndarray) -> np.ndarray:
            return np.ones((len(rows), self.space.size + self.space.unknown))

    known = registry()
    known.mechanisms["estimated"] = Registered(Estimated, "test", "0")
    (found,) = certify_command(known, "estimated", [1.0], table=table, draws=200)
    assert found.card is not None and not found.card.holds and "an estimate" in found.card.why and found.failed


def test_all_mechanisms_make_one_table(table: str) -> None:
    found = certify_command(registry(), "all", [1.0, 2.0], table=table, draws=5_000)
    text = found_text(found)
    assert {f.name for f in found} == set(registry().mechanisms) and len(found) == 2 * len(registry().mechanisms)
    held = {f.name for f in found if f.card is not None and f.card.holds and f.card.declared.mechanism_class == "certified"}
    assert {"list-rr", "exponential", "rank-exponential", "calibrated", "mixture"} <= held
    assert {f.name for f in found if f.failed} == {"boastful", "quiet"}
    assert "not certified here" in text and "boastful at 1 does not hold" in text
    for name in held:
        assert all(f.card.epsilon_true <= f.epsilon + 1e-6 for f in found if f.name == name and f.card is not None)


def test_the_audit_refutes_a_sampler_that_lies(table: str) -> None:
    (found,) = certify_command(registry(), "quiet", [0.5], table=table, sampled=True, draws=5_000)
    assert found.audit is not None and not found.audit.passed and "REFUTED" in found_text([found])
    (honest,) = certify_command(registry(), "list-rr", [2.0], ["k=4"], table, sampled=True, draws=5_000)
    assert honest.audit is not None and 1.0 < honest.audit.epsilon_low < 2.5
    assert json.loads(found_json([honest]))["audit"]["draws"] == 5_000


def test_a_prior_from_a_file(table: str, tmp_path: Path) -> None:
    file = tmp_path / "prior.tsv"
    file.write_text("aa\t3\nab\t1\nnot there\t5\n", encoding="utf-8")
    (found,) = certify_command(registry(), "list-rr", [0.01], ["k=2"], table, prior=file)
    assert found.card is not None and found.card.prior_success == pytest.approx(0.75, abs=0.01)
    space = table_space(registry(), table)
    for text in ("aa", "aa\tx", "aa\t-1", "aa\tinf", "nobody\t1"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=r"prior|SYMBOL"):
            read_prior(file, space)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_prior(tmp_path / "missing", space)


def test_settings_are_nested_and_wrappers_get_something_inside() -> None:
    known = registry()
    expected = {"name": "list-rr", "epsilon": 3.0, "k": 4, "lists": "order"}
    assert settings("list-rr", 3.0, ["k=4", "lists=order"], known) == expected
    assert settings("mixture", 3.0, [], known)["inner"] == {"name": "list-rr", "epsilon": 3.0}
    inner = settings("mixture", 3.0, ["inner.name=rantext", "inner.epsilon=1"], known)["inner"]
    assert inner == {"name": "rantext", "epsilon": 1}
    for wrong in ("k", "=4", "k.=4", "epsilon.x=1"):
        with pytest.raises(ConfigError, match="--set"):
            settings("list-rr", 3.0, [wrong], known)


def test_cards_are_kept_and_a_folder_that_cannot_be_written_is_no_error(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = registry()
    space, models = table_space(known, table), certifying.Models(known)
    made = certifying.build(known, settings("list-rr", 3.0, ["k=4"], known), space, models)
    first = certifying.card_of(made, models)
    (kept,) = (tmp_path / "cache" / "osmotic" / "cards").glob("*")
    monkeypatch.setattr(certifying, "certify", lambda *a, **k: pytest.fail("it was kept"))
    assert certifying.card_of(made, models) == first
    monkeypatch.undo()
    body = json.loads(kept.read_text())
    kept.write_text(json.dumps({**body, "version": 1}))
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "cache"))
    assert certifying.card_of(made, models).holds
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "file"))
    assert certifying.card_of(made, models).holds


@pytest.mark.parametrize(
    "forged",
    [{"mechanism": "santext"}, {"code": "0"}, {"parameters": "{}"}, {"space_digest": "0"}, {"derived": "1"},
     {"declared": {"mechanism_class": "certified", "epsilon": 0.1}}],
)  # fmt: skip
def test_a_kept_card_of_something_else_is_made_anew(table: str, tmp_path: Path, forged: dict[str, object]) -> None:
    known = registry()
    models = certifying.Models(known)
    made = certifying.build(known, settings("list-rr", 3.0, ["k=4"], known), table_space(known, table), models)
    first = certifying.card_of(made, models)
    (kept,) = (tmp_path / "cache" / "osmotic" / "cards").glob("*")
    kept.write_text(json.dumps({**json.loads(kept.read_text()), **forged}))
    again = certifying.card_of(made, models)
    assert again.model_copy(update={"made": first.made, "seconds": first.seconds}) == first
    assert again.declared == made.guarantee()


def test_a_card_with_a_prior_is_not_kept(table: str, tmp_path: Path) -> None:
    known = registry()
    models = certifying.Models(known)
    made = certifying.build(known, settings("list-rr", 3.0, ["k=4"], known), table_space(known, table), models)
    prior = np.full(40, 1 / 40)
    assert certifying.card_of(made, models, prior=prior).prior_success is not None
    assert not list((tmp_path / "cache").rglob("cards/*"))
    assert certifying.card_of(made, models).prior_success is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["list-rr", "--epsilon", "0"], 2, "epsilon"),
        (["list-rr", "--epsilon", "-1"], 2, "epsilon"),
        (["list-rr", "--epsilon", "nan"], 2, "epsilon"),
        (["list-rr", "--epsilon", "three"], 2, "epsilon"),
        (["list-rr", "--epsilon", "true"], 2, "epsilon"),
        (["list-rr", "--epsilon", "3", "--set", "epsilon=true"], 2, "must be a number"),
        (["list-rr", "--epsilon", "3", "--set", "epsilon='3'"], 2, "must be a number"),
        (["list-rr", "--epsilon", "3", "--set", "k=400"], 2, "k must be smaller"),
        (["list-rr", "--epsilon", "3", "--set", "kk=4"], 2, "kk"),
        (["list-r", "--epsilon", "3"], 2, "did you mean 'list-rr'"),
        (["all", "--epsilon", "3", "--set", "k=4"], 2, "--set goes with one mechanism"),
        (["list-rr"], 2, "epsilon"),
    ],
)
def test_bad_input_is_one_message(
    arguments: list[str], code: int, message: str, table: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert osmotic("certify", *arguments, "--table", table, monkeypatch=monkeypatch) == code
    told = capsys.readouterr()
    assert told.out == "" and "Traceback" not in told.err
    assert message in told.err.replace("mechanism.k: ", "k ") or message in told.err


def test_missing_tables_are_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert osmotic("certify", "list-rr", "--epsilon", "3", "--table", "nowhere.npy", monkeypatch=monkeypatch) == 2
    assert "nowhere.npy" in capsys.readouterr().err

    def gone(*_: object, **__: object) -> None:
        raise ConfigError("the package is not installed")

    monkeypatch.setattr(certifying, "space_of", gone)
    assert osmotic("certify", "list-rr", "--epsilon", "3", monkeypatch=monkeypatch) == 2
    told = capsys.readouterr().err
    assert "the default table minilm:pieces cannot be used" in told and "give one: --table" in told

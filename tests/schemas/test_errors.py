# SPDX-License-Identifier: Apache-2.0
"""Errors: how a problem reads, and that every family has its own exit code and a code that may cross."""

from osmotic.schemas import errors
from osmotic.schemas.errors import Code, ConfigError, OsmoticError, Problem


def families() -> list[type[OsmoticError]]:
    found = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, OsmoticError)]
    return list(dict.fromkeys(found))


def test_a_problem_reads_place_path_what_why_fix() -> None:
    full = Problem("must be > 0 (got -1)", "p.yaml:23:7", "tasks.a.config.epsilon", why="noise needs it", fix="epsilon: 4")
    assert str(full) == "p.yaml:23:7 tasks.a.config.epsilon: must be > 0 (got -1)\n    noise needs it\n    epsilon: 4"
    assert str(Problem("it broke")) == "it broke"
    assert str(Problem("it broke", path="seed")) == "seed: it broke"


def test_an_error_carries_all_its_problems() -> None:
    error = ConfigError(Problem("one", "f:1:1"), "two")
    assert [p.what for p in error.problems] == ["one", "two"] and str(error) == "f:1:1 one\ntwo"


def test_exit_codes_are_documented_and_never_zero() -> None:
    for family in families():
        assert family.exit_code in range(1, 8) and isinstance(family.code, Code)
        if family is not OsmoticError:
            assert f"exit code {family.exit_code}" in (family.__doc__ or "")


def test_a_refusal_is_caught_as_one_but_keeps_its_code() -> None:
    assert {e.code for e in families() if issubclass(e, errors.RefusedError)} == {
        Code.POLICY, Code.BUDGET, Code.MEMBRANE, Code.REQUIRE,
    }  # fmt: skip
    assert {e.exit_code for e in families() if issubclass(e, errors.RefusedError)} == {4}


def test_codes_are_one_lower_case_word() -> None:
    assert all(code.value.isalpha() and code.value == code.name.lower() for code in Code)

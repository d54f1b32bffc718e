# SPDX-License-Identifier: Apache-2.0
"""What the conformance kit reads of a plugin's variables: what they hold, however deep or round, of its own package only."""

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from osmotic import testing
from osmotic.plugins.contract import Records
from osmotic.plugins.holding import DEEP, content_hash
from osmotic.plugins.mechanisms.exponential import Exponential
from osmotic.plugins.testing_checks import ConformanceError, remembered

HERE: list[str] = []


@dataclass
class Holder:
    """Keeps rows, and tells nobody."""

    rows: list[Any] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        raise AssertionError("a repr was asked for")


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([{"a": 1}], lambda v: v[0].update(a=2)),
        ({"a": [1]}, lambda v: v["a"].append(1)),
        ({"a"}, lambda v: v.add("b")),
        (([],), lambda v: v[0].append(None)),
        (deque([1, 2]), lambda v: v.rotate()),
        (bytearray(b"a"), lambda v: v.extend(b"b")),
        ([Holder([1])], lambda v: v[0].rows.append(2)),
        ([object()], lambda v: v.__setitem__(0, object())),
        ([1], lambda v: v.__setitem__(0, True)),
        (["1"], lambda v: v.__setitem__(0, 1)),
        ([Records([{"id": "a"}])], lambda v: v.__setitem__(0, Records([{"id": "b"}]))),
    ],
)
def test_a_change_anywhere_is_another_hash(value: Any, change: Callable[[Any], object]) -> None:
    before = content_hash(value)
    assert content_hash(value) == before
    change(value)
    assert content_hash(value) != before


def test_equal_contents_have_one_hash() -> None:
    assert content_hash([[1], [1]]) == content_hash([[1]] * 2)
    assert content_hash({f"w{i}" for i in range(99)}) == content_hash({f"w{i}" for i in range(98, -1, -1)})


def test_values_that_are_deep_round_or_huge() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    own: list[Any] = []
    own += [own, own, {"a": own}]
    wide: list[Any] = []
    for _ in range(DEEP + 10):
        wide = [wide] * 9
    for value in (deep, own, wide, [10**10_000], ["\ud800"], [Holder()]):
        assert content_hash(value) == content_hash(value)
    while deep:  # taken apart here: the interpreter does it by recursion
        deep = deep[0]


def module(name: str, file: str | None, **names: Any) -> ModuleType:
    made = ModuleType(name)
    made.__file__ = file
    vars(made).update(names)
    return made


def test_only_the_package_of_its_own_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, file in [("shared_space", None), ("shared_space.mine", "m"), ("shared_space.mine.part", "p"),
                       ("shared_space.other", "o"), ("shared_space.mine_too", "t")]:  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module(name, file, ROWS=[1]))
    monkeypatch.setitem(sys.modules, "shared_space.mine.odd", None)  # an import that is refused
    cls = type("Made", (), {"__module__": "shared_space.mine.part"})
    found = {name for name in remembered(cls) if name.endswith(".ROWS")}
    assert found == {"shared_space.mine.ROWS", "shared_space.mine.part.ROWS"}
    assert f"{__name__}.HERE" in remembered(Holder)


def test_a_mechanism_may_write_into_the_cache_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OSMOTIC_CACHE", str(tmp_path / "deep" / "cache"))

    class Writing(Exponential):
        """Writes a file beside its answer."""

        name = "writing-one"
        target = tmp_path / "deep" / "cache" / "kept"

        def log_prob(self, rows: Any) -> Any:
            self.target.write_text("x", encoding="utf-8")
            return super().log_prob(rows)

    testing.check_mechanism(Writing, {"epsilon": 4})
    assert Writing.target.is_file()
    monkeypatch.setattr(Writing, "target", tmp_path / "deep" / "beside")
    with pytest.raises(ConformanceError, match="wrote outside of its folder"):
        testing.check_mechanism(Writing, {"epsilon": 4})
    assert not (tmp_path / "deep" / "beside").exists()

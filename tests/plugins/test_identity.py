# SPDX-License-Identifier: Apache-2.0
"""What a card is of: code, parameters, space; another one is another card."""

import importlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import Field

from osmotic.plugins.certificate import (
    canonical_parameters,
    card_key,
    code_digest,
    space_digest,
)
from osmotic.plugins.contract import Config, Mechanism, Space
from osmotic.plugins.mechanisms.exponential import Exponential, ExponentialConfig
from osmotic.plugins.mechanisms.list_rr import ListRandomisedResponse, ListRrConfig
from osmotic.schemas.errors import ConfigError


def list_rr(epsilon: float = 3.0, k: int = 4, v: int = 50, unknown: bool = True) -> ListRandomisedResponse:
    space = Space("ring", tuple(f"w{i}" for i in range(v)), None, unknown)
    return ListRandomisedResponse(ListRrConfig(epsilon=epsilon, k=k, lists="order"), space)


def test_space_digest_covers_content_not_name() -> None:
    vectors = np.eye(2, dtype=np.float32)
    base = Space("a", ("x", "y"), vectors)
    assert space_digest(base) == space_digest(Space("b", ("x", "y"), vectors.copy()))
    assert space_digest(base) == space_digest(Space("b", ("x", "y"), np.asfortranarray(vectors)))
    others = [
        Space("a", ("y", "x"), vectors),
        Space("a", ("x", "y"), vectors * 2),
        Space("a", ("x", "y"), None),
        Space("a", ("x", "y"), vectors, True),
        Space("a", ('x", "y',), None),
        Space("a", ("\ud800", "y"), None),
    ]
    assert len({space_digest(s) for s in [base, *others]}) == 7


def test_card_key_changes_with_code_parameters_and_space() -> None:
    exponential = Exponential(ExponentialConfig(epsilon=3), list_rr().space)
    keys = [card_key(m) for m in (list_rr(), list_rr(epsilon=4), list_rr(k=5), list_rr(v=51), exponential)]
    assert len(set(keys)) == 5 and keys[0] == card_key(list_rr(epsilon=3.0))


def load(path: Path, name: str, what: str = "Mine") -> type[Mechanism]:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return getattr(module, what)


CODE = """
from osmotic.plugins.contract import Config, Guarantee, Mechanism
class MineConfig(Config):
    epsilon: float = 1.0
class Mine(Mechanism[MineConfig]):
    name = "mine"
    def log_prob(self, rows): return None
    def guarantee(self): return Guarantee(mechanism_class="certified", epsilon=1.0)
"""


def test_code_digest_follows_the_source(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CODE)
    try:
        first = code_digest(load(file, "stranger_mine"))
        file.write_text(CODE + "# changed\n")
        assert code_digest(load(file, "stranger_mine")) != first
        file.unlink()
        with pytest.raises(ConfigError, match="source of mechanism 'Mine' cannot be read"):
            code_digest(sys.modules["stranger_mine"].Mine)
    finally:
        del sys.modules["stranger_mine"]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Mechanism]]:
    """A mechanism in a package of its own, which imports a constant and a helper."""
    package = {
        "__init__.py": "", "numbers_of_it.py": "SHARE = 0.0\n", "deep/__init__.py": "", "deep/more.py": "MORE = 1\n",
        "deep/mine.py": "from ..numbers_of_it import SHARE\n" + CODE,
    }  # fmt: skip
    write(tmp_path / "strangers_pack", package)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("strangers_pack.deep.mine").Mine
    for name in [name for name in sys.modules if name.startswith("strangers_pack")]:
        del sys.modules[name]


@pytest.mark.parametrize("changed", ["__init__.py", "numbers_of_it.py", "deep/more.py", "deep/mine.py", "deep/new.py"])
def test_code_digest_covers_the_whole_package_constants_too(stranger: type[Mechanism], tmp_path: Path, changed: str) -> None:
    first = code_digest(stranger)
    assert first == code_digest(stranger)
    write(tmp_path, {"strangers_pack/README.md": "not code", "beside.py": "not of the package"})
    assert first == code_digest(stranger)
    write(tmp_path / "strangers_pack", {changed: "SHARE = 0.9\n"})
    assert first != code_digest(stranger)


def test_code_digest_does_not_depend_on_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for place in ("here", "there"):
        write(tmp_path / place / "placed_pack", {"__init__.py": "", "mine.py": CODE})
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path / place)
            digests.append(code_digest(importlib.import_module("placed_pack.mine").Mine))
            for name in ("placed_pack", "placed_pack.mine"):
                del sys.modules[name]
    assert digests[0] == digests[1]


def test_code_digest_of_a_lone_module_follows_its_imports_beside_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"lone.py": "if 0:\n    import lone_a\n" + CODE, "lone_a.py": "from lone_b import X\n", "lone_b.py": "X = 1\n"},
    )
    try:
        cls = load(tmp_path / "lone.py", "lone_module")
        first = code_digest(cls)
        write(tmp_path, {"other.py": "Y = 1\n"})
        assert code_digest(cls) == first
        write(tmp_path, {"lone_b.py": "X = 2.5\n"})
        assert code_digest(cls) != first
    finally:
        del sys.modules["lone_module"]


def test_code_digest_covers_builtins_beside_one_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from osmotic.plugins.mechanisms import list_rr as home

    before = code_digest(ListRandomisedResponse)
    assert before != code_digest(Exponential)
    for file in Path(home.__file__).parent.glob("*.py"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(home, "__file__", str(tmp_path / "list_rr.py"))
    assert code_digest(ListRandomisedResponse) == before
    with (tmp_path / "shared.py").open("a") as file:
        file.write("# changed\n")
    assert code_digest(ListRandomisedResponse) != before


def test_code_digest_needs_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A class typed in at a prompt has helpers and constants that nobody can name: it has no digest, its source or not."""
    module = types.ModuleType("typed_in")
    monkeypatch.setitem(sys.modules, "typed_in", module)
    exec(CODE, vars(module))
    monkeypatch.setattr(inspect, "getsource", lambda cls: CODE)
    with pytest.raises(ConfigError, match="cannot be read"):
        code_digest(module.Mine)


def test_code_digest_covers_mixins(tmp_path: Path) -> None:
    write(tmp_path, {"mixed_in.py": "class Mixin:\n    share = 0\n", "mixing.py": CODE})
    try:
        mixin = load(tmp_path / "mixed_in.py", "mixed_in", "Mixin")
        mixed = type("Mixed", (mixin, load(tmp_path / "mixing.py", "mixing")), {"__module__": "mixing"})
        first = code_digest(mixed)
        assert first != code_digest(sys.modules["mixing"].Mine)
        write(tmp_path, {"mixed_in.py": "class Mixin:\n    share = 0.9\n"})
        assert code_digest(mixed) != first
    finally:
        del sys.modules["mixed_in"], sys.modules["mixing"]


@pytest.mark.parametrize("changed", ["mechanism.py", "entropy.py", "exact.py"])
def test_code_digest_covers_what_draws(
    changed: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stranger: type[Mechanism]
) -> None:
    from osmotic.plugins import identity

    home = Path(identity.__file__).parent
    write(tmp_path / "home", {name: (home / name).read_text() for name in identity.DRAWS})
    before = [code_digest(cls) for cls in (ListRandomisedResponse, stranger)]
    monkeypatch.setattr(identity, "__file__", str(tmp_path / "home" / "identity.py"))
    assert before == [code_digest(cls) for cls in (ListRandomisedResponse, stranger)]
    with (tmp_path / "home" / changed).open("a") as file:
        file.write("# changed\n")
    assert not set(before) & {code_digest(cls) for cls in (ListRandomisedResponse, stranger)}


def test_parameters_have_the_fields_that_a_dump_leaves_out() -> None:
    class Inside(Config):
        hidden: float = Field(0.0, exclude=True)

    class Outside(Config):
        epsilon: float
        leak: float = Field(0.0, exclude=True)
        steps: tuple[Inside, ...] = ()

    base, found = Outside(epsilon=1.0), canonical_parameters(Outside(epsilon=1.0, leak=0.5))
    assert canonical_parameters(base) == '{"epsilon":1.0,"leak":0.0,"steps":[]}' and '"leak":0.5' in found
    ones = [canonical_parameters(Outside(epsilon=1.0, steps=(Inside(hidden=x),))) for x in (1.0, 2.0)]
    assert ones[0] != ones[1]


def test_a_space_without_a_tokenizer_names_the_rule_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from osmotic.plugins import identity

    before = space_digest(Space("a", ("x", "y")))
    monkeypatch.setattr(identity, "WORDS", 999)
    identity._kept_digest.cache_clear()
    assert space_digest(Space("a", ("x", "y"))) != before

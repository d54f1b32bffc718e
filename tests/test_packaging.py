# SPDX-License-Identifier: Apache-2.0
"""What is installed, under which name, with which files and pins."""

import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("schemas", "plugins", "components", "runtime", "pipelines")
BRIDGE = ROOT / "plugins" / "fate"  # a package of its own, for FATE's environment

if not (ROOT / "pyproject.toml").is_file():
    pytest.skip("the source tree is not here", allow_module_level=True)

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = {
    re.sub(r"[-_.]+", "-", name).lower(): version
    for name, _, version in (
        line.partition("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"
    )
}


def names_of(requirements: list[str]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", r, maxsplit=1)[0]).lower() for r in requirements}


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False)


def test_the_list_of_packages_is_complete() -> None:
    found = {
        ".".join(["osmotic", *path.parent.relative_to(ROOT).parts])
        for f in FOLDERS
        for path in (ROOT / f).rglob("__init__.py")
        if BRIDGE not in path.parents
    }
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(found | {"osmotic"})


def test_every_folder_with_modules_is_a_package() -> None:
    lacking = [p.parent for f in FOLDERS for p in (ROOT / f).rglob("*.py") if not (p.parent / "__init__.py").is_file()]
    assert lacking == []


def test_nothing_installs_under_a_name_of_everyone(tmp_path: Path) -> None:
    for folder in FOLDERS:
        done = python(f"import {folder}", tmp_path)
        assert done.returncode != 0 and f"No module named '{folder}'" in done.stderr


def test_the_data_files_are_installed() -> None:
    for package, pattern in (
        ("osmotic", "py.typed"),
        ("osmotic.schemas", "generated/pipeline.json"),
        ("osmotic.plugins.clinic", "data/north.jsonl"),
    ):
        assert resources.files(package).joinpath(pattern).is_file(), f"{package}/{pattern} is missing"


def test_data_files_on_disk_are_named_in_the_project() -> None:
    """Whatever is not Python in a package folder must match a pattern of package-data, or it would not be installed."""
    data = PROJECT["tool"]["setuptools"]["package-data"]
    patterns = {
        path for package, globs in data.items() for g in globs for path in (ROOT / "/".join(package.split(".")[1:])).glob(g)
    }
    present = {
        p
        for f in FOLDERS
        for p in (ROOT / f).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts and BRIDGE not in p.parents
    }
    assert sorted(p for p in present - patterns if p.suffix not in {".py", ".pyc", ".md"}) == []


def test_the_bridge_for_fate_is_no_part_of_the_package(tmp_path: Path) -> None:
    """It is installed elsewhere, under a name of its own. (An editable install shows its folder, but nothing to import.)"""
    code = "import importlib.util as u, osmotic.plugins.fate as found; print(found.__file__, u.find_spec('osmotic_fate'))"
    done = python(code, tmp_path)
    assert done.stdout.strip() == "None None" or "No module named 'osmotic.plugins.fate'" in done.stderr
    assert not [name for name in PROJECT["tool"]["setuptools"]["packages"] if "fate" in name and "runtime" not in name]
    theirs = tomllib.loads((BRIDGE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (theirs["dependencies"], theirs["version"]) == ([], PROJECT["project"]["version"])


def test_importing_the_package_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = "('torch', 'transformers', 'datasets', 'deepspeed', 'peft', 'pyarrow', 'numpy', 'jsonschema')"
    code = "import sys, osmotic, osmotic.plugins.contract, osmotic.schemas.pipeline;"
    code += f"print([m for m in {heavy} if m in sys.modules])"
    done = python(code, tmp_path)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_public_names(tmp_path: Path) -> None:
    import osmotic

    assert osmotic.__version__ == PROJECT["project"]["version"]
    assert {"call", "plan", "run"} <= set(osmotic.__all__)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = osmotic.nothing_of_the_kind


def test_the_constraints_pin_everything_that_is_asked_for() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = names_of(PROJECT["project"]["dependencies"] + [r for extra in extras.values() for r in extra])
    assert sorted(asked - PINS.keys()) == []
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in PINS.values()), (
        "plain versions only: no builds, no URLs"
    )


def test_the_constraints_name_no_cuda_package() -> None:
    assert [name for name in PINS if name.startswith(("nvidia", "cuda", "triton"))] == [] and "+" not in PINS["torch"]


def test_the_constraints_are_what_is_installed() -> None:
    from importlib.metadata import PackageNotFoundError, version

    other = {}
    for name, pin in PINS.items():
        try:
            if (found := version(name).partition("+")[0]) != pin:
                other[name] = (pin, found)
        except PackageNotFoundError:
            continue
    if other and "torch" in other:
        pytest.skip("not installed by the constraints")
    assert other == {}


def test_every_python_file_starts_with_the_licence_line() -> None:
    files = [p for f in (*FOLDERS, "src", "tests") for p in (ROOT / f).rglob("*.py") if "build" not in p.parts]
    first = "# SPDX-License-Identifier: Apache-2.0\n"
    assert [str(p.relative_to(ROOT)) for p in files if not p.read_text(encoding="utf-8").startswith(first)] == []
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")

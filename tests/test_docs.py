# SPDX-License-Identifier: Apache-2.0
"""The documentation: the tutorial is run word for word, links lead somewhere, pictures stand alone."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from osmotic.runtime.screen.cli_text import cli_markdown

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"```(sh|text)([^\n]*)\n(.*?)```", re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PICTURES = sorted((DOCS / "concepts").glob("*.svg"))
LONG = "osmotic run fedcot --isolate"  # what tests/pipelines/test_fedcot.py runs, shortened


def shell(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block as a reader would, with the `osmotic` of this Python."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    command = tools / "osmotic"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from osmotic.runtime.cli import main; main()" "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "OSMOTIC_PLUGINS": ""}
    return subprocess.run(
        ["bash", "-euc", body], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def test_the_tutorial_word_for_word(tmp_path: Path) -> None:
    """Every block runs, in order; what is shown after one is in what it said. The long run is only planned."""
    said, ran = "", 0
    for kind, how, body in BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        if kind == "text":
            assert body.strip() in said, said
            continue
        if how.strip() == "long":
            assert body.strip() == LONG
            body = "osmotic plan fedcot"
        done = shell(body, tmp_path)
        said, ran = done.stdout + done.stderr, ran + 1
        assert (done.returncode != 0) is (how.strip() == "fails"), said
        assert "Traceback" not in said
    assert ran > 10 and (tmp_path / "osmotic-runs/clinics/report.html").is_file() and (tmp_path / "backup/north/key").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in LINK.findall(text):
        place, _, anchor = link.partition("#")
        if "://" in place or place.startswith("mailto:"):
            continue
        target = (page.parent / place).resolve() if place else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            known = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, f"{page.name}: {link}"


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in LINK.findall((DOCS / "README.md").read_text("utf-8"))}
    missing = [p.name for p in PAGES if p.parent != DOCS / "decisions" and p.name != "README.md" and p.resolve() not in linked]
    assert missing == []


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.stem)
def test_pictures_stand_alone_and_are_described(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    root = ElementTree.fromstring(text)
    assert "prefers-color-scheme:dark" in text and "href" not in text and "http" not in text.replace(root.tag[1:27], "")
    assert {child.tag.rpartition("}")[2] for child in root} >= {"title", "desc"} and len(text) < 12_000
    page = picture.with_suffix(".md").read_text(encoding="utf-8")
    assert f"]({picture.name})" in page


def test_the_reference_of_the_command_line_is_fresh() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert text == cli_markdown(), "make generate"
    for command in ("run", "status", "gc", "keys backup", "keys rotate", "schema"):
        assert f"## `osmotic {command}`" in text

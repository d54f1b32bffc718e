# SPDX-License-Identifier: Apache-2.0
"""The reports in a real browser: the numbers on the page are those of run.json, in light and dark, narrow and wide."""

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from osmotic.plugins.host import Registry
from osmotic.runtime import api

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
MEASURED = {"component": "meter", "at": "clients", "inputs": {"records": "items"}}
REPORT = {"table": "measured", "metrics": {"records": "records"}, "samples": {"what left": "safe.sanitized"}}
LIGHT, DARK = (255, 255, 255), (20, 23, 27)


class Seen(HTMLParser):
    """Text of a page as the browser has it: by `data-` attribute of the element around it, and all of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.path: list[dict[str, str | None]] = []
        self.told: dict[tuple[str, str], list[str]] = {}
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [str(v) for k, v in attrs if k in ("href", "src")]
        if tag not in ("meta", "br", "link"):
            self.path.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if self.path:
            self.path.pop()

    def handle_data(self, data: str) -> None:
        for attrs in self.path:
            for name, value in attrs.items():
                if name.startswith("data-") and data.strip():
                    self.told.setdefault((name, str(value)), []).append(data.strip())


def browse(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    command = [str(BROWSER), *flags, f"--user-data-dir={folder / 'profile'}", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr  # a load or a style that the page's policy refuses would be told there
    return done


@pytest.fixture
def home(shop: Any, tasks: Callable[..., dict[str, Any]], toys: Registry) -> Path:
    """The folder of a finished run over benchmark data."""
    shop.binding = {"purpose": "benchmark"}
    api.run(shop.write(tasks(measured=MEASURED), report=REPORT), home=shop.home, registry=toys)
    return Path(shop.home)


def test_the_numbers_on_the_page_are_those_of_the_run(home: Path, tmp_path: Path) -> None:
    run = json.loads((home / "run.json").read_text(encoding="utf-8"))
    page = browse(tmp_path, "--dump-dom", (home / "report.html").as_uri()).stdout
    seen = Seen(page)
    assert run["guarantee"]["line"] in re.sub(r"<[^>]+>", "", page)
    assert seen.told[("data-fact", "tasks")] == [str(run["outcome"]["tasks"])]
    assert seen.told[("data-fact", "crossings")] == [str(len(run["crossings"]))]
    for row in run["table"]["rows"]:
        shown = seen.told[("data-cell", f"{row['row']}/records")]
        assert shown[0] == f"{row['cells']['records']['mean']:.3f}"
    for party in run["guarantee"]["parties"]:
        (epsilon,) = seen.told[("data-epsilon", str(party["epsilon"]))][:1]
        assert float(epsilon) == party["epsilon"] and party["party"] in seen.told[("data-party", party["party"])]
    assert all(link.startswith("#") for link in seen.links)


def test_a_party_s_own_report_opens_and_says_whose_it_is(home: Path, tmp_path: Path) -> None:
    own = home / "parties" / "north"
    result = json.loads((own / "results.json").read_text(encoding="utf-8"))
    page = browse(tmp_path, "--dump-dom", (own / "report.html").as_uri()).stdout
    assert "the report of north" in page and "north's own report" in page.replace("&#39;", "'")
    assert Seen(page).told[("data-fact", "crossings")] == [str(len(result["crossings"]))]
    assert {p["party"] for p in result["guarantee"]["parties"]} == {"north"}


def test_it_is_drawn_in_light_and_dark_narrow_and_wide(home: Path, tmp_path: Path) -> None:
    for width, scheme, colour in ((390, 1, LIGHT), (390, 0, DARK), (1280, 1, LIGHT), (1280, 0, DARK)):
        picture = tmp_path / f"{width}-{scheme}.png"
        size, prefers = f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"
        browse(tmp_path, size, prefers, f"--screenshot={picture}", (home / "report.html").as_uri())
        data = picture.read_bytes()
        assert struct.unpack(">II", data[16:24]) == (width, 900)
        pixels = pixels_of(data)
        assert tuple(pixels[1:4]) == colour  # the first pixel of a PNG is never predicted: the page's own colour
        assert len(set(pixels)) > 100  # and there is more than that on it


def pixels_of(data: bytes) -> bytes:
    """The filtered scan lines of a PNG, one after another."""
    parts, place = b"", 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            parts += data[place + 8 : place + 8 + length]
        place += 12 + length
    return zlib.decompress(parts)

# SPDX-License-Identifier: Apache-2.0
"""Take the pictures of reports that the documentation shows: python docs/images/make.py FEDCOT_HOME PRIVACY_HOME

The two folders are those of finished runs (`osmotic run fedcot --isolate --home FEDCOT_HOME`, the same for `privacy`). Needs
Chromium on PATH. Every picture is written with a palette of 256 colours, which keeps it small.
"""

import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
LIGHT, DARK = 1, 0
LIMIT = 150_000  # bytes of one picture


def main(fedcot: Path, privacy: Path) -> None:
    """Take all pictures and say how large each is."""
    take("report-light.png", fedcot, (1280, 1500), LIGHT)
    take("report-dark.png", fedcot, (1280, 1500), DARK)
    take("report-narrow.png", fedcot, (390, 1500), LIGHT)
    take("report-crossed.png", fedcot, (1280, 900), LIGHT, "crossed")
    take("report-samples.png", fedcot, (1280, 900), LIGHT, "samples")
    take("report-cards.png", fedcot, (1280, 1000), LIGHT, "cards")
    take("report-frontier.png", privacy, (1280, 580), LIGHT, "frontier")


def take(name: str, home: Path, size: tuple[int, int], scheme: int, part: str = "") -> None:
    """One picture: what a window of that size shows of a report, from the top or from a part of it."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        raise SystemExit("no Chromium on this machine")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={folder}"]
        flags += [f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={size[0]},{size[1]}"]
        url = (home / "report.html").resolve().as_uri()
        if part:  # a picture is taken from the top of a page: a frame around the report shows it from elsewhere
            frame = f'<iframe src="{url}#{part}" style="border:0;width:{size[0]}px;height:{size[1]}px"></iframe>'
            (Path(folder) / "part.html").write_text(f'<!doctype html><body style="margin:0">{frame}', encoding="utf-8")
            url = (Path(folder) / "part.html").as_uri()
        subprocess.run([browser, *flags, f"--screenshot={shot}", url], check=True, capture_output=True, timeout=120)
        made = packed(pixels_of(shot.read_bytes()))
    if len(made) > LIMIT:
        raise SystemExit(f"{name} has {len(made):,} bytes, more than {LIMIT:,}")
    (HERE / name).write_bytes(made)
    print(f"{name}: {size[0]} x {size[1]}, {len(made):,} bytes")


def pixels_of(data: bytes) -> np.ndarray:
    """The pixels of a PNG of 8 bits a channel, [height, width, 3]."""
    chunks = dict.fromkeys((b"IHDR", b"IDAT"), b"")
    place = 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if kind in chunks:
            chunks[kind] += data[place + 8 : place + 8 + length]
        place += 12 + length
    width, height, _, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    channels = {2: 3, 6: 4}[colour]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * channels)
    found, above = np.zeros((height, width * channels), np.uint8), np.zeros(width * channels, np.uint8)
    for y, line in enumerate(lines):
        above = found[y] = _unfiltered(int(line[0]), line[1:], above, channels)
    return found.reshape(height, width, channels)[:, :, :3]


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray, channels: int) -> np.ndarray:
    """One line as it was before its filter, by the PNG specification, section 9."""
    if kind in (0, 2):
        return line + above if kind else line
    if kind == 1:
        return np.cumsum(line.reshape(-1, channels), axis=0, dtype=np.uint8).reshape(-1)
    made, up = [0] * channels + line.tolist(), [0] * channels + above.tolist()
    for i in range(channels, len(made)):
        left, top, corner = made[i - channels], up[i], up[i - channels]
        made[i] = (made[i] + ((left + top) // 2 if kind == 3 else _nearest(left, top, corner))) & 255
    return np.array(made[channels:], np.uint8)


def _nearest(left: int, top: int, corner: int) -> int:
    guess = left + top - corner
    return min((left, top, corner), key=lambda one: abs(guess - one))  # the first of equal ones, as the specification says


def packed(pixels: np.ndarray) -> bytes:
    """A PNG of at most 256 colours: the most frequent ones, every other colour as the nearest of them."""
    flat = (pixels.astype(np.uint32) * np.array([65536, 256, 1], np.uint32)).sum(axis=2)
    colours, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    chosen = colours[np.argsort(-counts, kind="stable")[:256]]
    known = np.stack([chosen >> 16, chosen >> 8 & 255, chosen & 255], axis=1).astype(np.int32)
    every = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.int32)
    nearest = np.array([int(np.abs(known - one).sum(axis=1).argmin()) for one in every], np.uint8)
    index = nearest[inverse].reshape(flat.shape)
    height, width = index.shape
    lines = b"".join(b"\0" + row.tobytes() for row in index)
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    body = _chunk(b"IHDR", head) + _chunk(b"PLTE", known.astype(np.uint8).tobytes())
    return b"\x89PNG\r\n\x1a\n" + body + _chunk(b"IDAT", zlib.compress(lines, 9)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))

# SPDX-License-Identifier: Apache-2.0
"""Secure sums of a run in words, for table and report: how many, of how many parties, what is assumed of the server."""

from collections.abc import Mapping
from typing import Any

TRUST = {
    "active": "this holds against a server that lies, too: all identities are pinned",
    "honest-but-curious": "the server is taken to follow the protocol, since the sites pin no identities",
}


def summed(summary: Mapping[str, Any]) -> str:
    """One sentence on all secure sums; '' without any."""
    found = list(summary.get("sums", ()))
    if not found:
        return ""
    counts, of = sorted({len(one["used"]) for one in found}), sorted({int(one["of"]) for one in found})
    times = f"{len(found)} secure sums" if len(found) > 1 else "A secure sum"
    weakest = "honest-but-curious" if any(one["trust"] != "active" for one in found) else "active"
    return f"{times} of {_range(counts)} of {_range(of)} parties: only sums were seen; {TRUST[weakest]}."


def _range(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"

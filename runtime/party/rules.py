# SPDX-License-Identifier: Apache-2.0
"""What a party checks of a label before anything leaves it, by an edge or by a model call: releases and exposures."""

from typing import TYPE_CHECKING

from osmotic.runtime.privacy.composition import SHARES
from osmotic.schemas.errors import MembraneError, Problem
from osmotic.schemas.labels import Label

if TYPE_CHECKING:
    from osmotic.runtime.party.site import Site


def check_entries(site: "Site", name: str, receiver: str, label: Label) -> None:
    """Raise MembraneError unless the receiver may see what is exposed, and every own release is on record and not void."""
    for entry in label.of("exposed"):
        if receiver not in (entry.owner, *entry.observers):
            raise MembraneError(Problem(f"{name}: exposed data of {entry.owner} may not be seen by {receiver}"))
    for entry in label.of("release"):
        if entry.owner == site.party:
            _check_release(site, name, entry.ref)


def check_claims(site: "Site", name: str, label: Label) -> None:
    """Raise MembraneError when something that arrives claims a release of this party that this party never made."""
    for entry in label.of("release"):
        if entry.owner == site.party and not site.ledger.query("SELECT 1 FROM release_sets WHERE ref=?", (entry.ref,)):
            raise MembraneError(Problem(f"{name}: it claims a release that {site.party} never made"))


def _check_release(site: "Site", name: str, ref: str) -> None:
    rows = site.ledger.query("SELECT void, dataset FROM release_sets WHERE ref=?", (ref,))
    if not rows:
        raise MembraneError(Problem(f"{name}: no such release in the ledger of {site.party}"))
    void, dataset = rows[0]
    dataset = str(dataset).removeprefix(SHARES)
    benchmark = dataset in site.policy.data and site.policy.data[dataset].purpose == "benchmark"
    if void and not (site.policy.seeded and benchmark):
        raise MembraneError(Problem(f"{name}: the release is void ({void})", why=f"{site.party} does not allow it"))

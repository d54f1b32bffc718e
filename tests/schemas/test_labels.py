# SPDX-License-Identifier: Apache-2.0
"""Labels: join is a union, the word is the worst that is true, a waiver never makes anything public."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from osmotic.schemas.labels import PUBLIC, Label, Provenance, raw, released

NAMES = st.sampled_from(["north", "south", "hub"])
ENTRIES = st.builds(
    Provenance, NAMES, st.sampled_from(["raw", "release", "exposed"]), st.sampled_from(["notes", "r1", "r2"]),
    st.lists(NAMES, max_size=2).map(tuple),
)  # fmt: skip
LABELS = st.frozensets(ENTRIES, max_size=5).map(Label)
RANK = {"public": 0, "protected": 1, "exposed": 2, "private": 3}


@given(LABELS, LABELS, LABELS)
def test_join_is_a_union(a: Label, b: Label, c: Label) -> None:
    assert a | b == b | a and (a | b) | c == a | (b | c) and a | a == a and a | PUBLIC == a
    assert Label.join([a, b, c]) == a | b | c
    assert (a | b).entries == a.entries | b.entries


@given(LABELS, LABELS)
def test_a_join_is_never_better_than_its_parts(a: Label, b: Label) -> None:
    assert RANK[(a | b).word] == max(RANK[a.word], RANK[b.word])


@given(LABELS)
def test_json_round_trip_is_sorted_and_exact(label: Label) -> None:
    entries = label.to_json()
    assert Label.from_json(entries) == label
    assert entries == sorted(entries, key=lambda e: (e["owner"], e["source"], e["ref"], e["observers"]))


@given(LABELS, NAMES, st.lists(NAMES, max_size=3))
def test_a_waiver_exposes_the_owners_raw_entries_only(label: Label, owner: str, observers: list[str]) -> None:
    after = label.exposed(owner, "edge", observers)
    mine = {e for e in label.entries if e.owner == owner and e.source == "raw"}
    assert label.entries - mine <= after.entries
    assert not any(e.owner == owner for e in after.of("raw"))
    new = after.entries - label.entries
    assert len(new) <= 1 and all(e.source == "exposed" and e.owner == owner for e in new)
    if mine:
        assert Provenance(owner, "exposed", "edge", tuple(sorted(observers))) in after.entries
        assert after.word != "public"
    else:
        assert after == label


def test_words() -> None:
    assert PUBLIC.word == "public" and Label.join([]) == PUBLIC
    assert raw("north", "notes").word == "private" and str(raw("north", "notes")) == "private"
    assert released("north", "r1").word == "protected"
    assert raw("north", "notes").exposed("north", "e", ["server"]).word == "exposed"
    assert (released("north", "r1") | raw("south", "notes")).word == "private"


@pytest.mark.parametrize("entries", [[{}], [{"owner": "a"}], [3], None])
def test_other_shapes_are_refused(entries: object) -> None:
    with pytest.raises((KeyError, TypeError)):
        Label.from_json(entries)  # type: ignore[arg-type]

# SPDX-License-Identifier: Apache-2.0
"""Which label may go to which address, one by one; addresses in one form."""

import pytest

from osmotic.runtime.party.endpoints import crossing, granted
from osmotic.schemas.addresses import Address
from osmotic.schemas.labels import PUBLIC, Label, Provenance, raw, released
from osmotic.schemas.policy import Remote, SitePolicy


def test_labels_one_by_one() -> None:
    address = Address.parse("https://api.example.com/v1")
    origin = address.origin

    def ask(label: Label, *remote: Remote) -> str:
        return crossing("north", SitePolicy(remote=remote), address, "teacher", label)[1]

    public, protected, private = (
        Remote(url="https://api.example.com", sees=sees) for sees in ("public", "protected", "private")
    )
    exposed = Label(frozenset({Provenance("south", "exposed", "e", ("north",))}))
    shown = Label(frozenset({Provenance("south", "exposed", "e", ("north", origin))}))
    assert [ask(PUBLIC, r) for r in (public, protected, private)] == ["", "", ""]
    assert [bool(ask(released("south", "r"), r)) for r in (public, protected, private)] == [True, False, False]
    assert [bool(ask(raw("north", "d"), r)) for r in (public, protected, private)] == [True, True, False]
    assert all(ask(raw("south", "d"), r) for r in (public, protected, private))  # another party's raw data is nobody's here
    assert all(ask(exposed, r) for r in (public, protected, private))
    assert [bool(ask(shown, r)) for r in (public, protected, private)] == [True, False, False]
    assert (
        ask(PUBLIC)
        and ask(PUBLIC, Remote(url="https://api.example.com/v2"))
        and ask(PUBLIC, Remote(url="http://api.example.com"))
    )
    narrow = Remote(url="https://api.example.com/v1", sees="public")
    assert granted(SitePolicy(remote=(private, narrow)), address) is narrow  # the longest path speaks


@pytest.mark.parametrize(
    "text",
    [
        "https://user@host/v1", "https://user:pw@host", "https://host/v1?x=1", "https://host/#a", "https://host/%2e%2e/v1", "https://host/../v1",
        "https://host//v1", "https://ho st/", "https://host\\@evil", "file:///etc/passwd", "https://", "https://host:0", "https://host:99999",
        "http://0x7f000001/", "http://2130706433/", "http://127.1/", "http://[::1", "http://a..b/", " https://host", "https://host\n",
        "https://h\N{CYRILLIC SMALL LETTER O}st/", "",
    ],
)  # fmt: skip
def test_addresses_that_may_be_read_in_two_ways_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be|its ") as caught:
        Address.parse(text)
    assert "pw" not in str(caught.value)


def test_addresses_are_compared_in_one_form() -> None:
    one = Address.parse("https://API.Example.com:443/v1/")
    assert str(one) == "https://api.example.com/v1" and one.origin == "https://api.example.com"
    assert str(Address.parse("http://[0:0::1]:8000/")) == "http://[::1]:8000"
    assert Address.parse("https://a/v1").covers(Address.parse("https://a/v1/x"))
    assert not Address.parse("https://a/v1").covers(Address.parse("https://a/v10"))
    assert not Address.parse("https://a/v1").covers(Address.parse("https://a"))

# SPDX-License-Identifier: Apache-2.0
"""The words of the desk: what messages and instructions are made of, and where each instruction word leans.

An instruction word of ``NOW`` tells that the matter of now is meant, one of ``BEFORE`` the matter from before, each list from
its strongest words to its weakest, by part of speech; those of ``PLAIN`` tell nothing of it. A word of ``TOPICS`` draws an
answer to its department instead. A message's words are its own: that ``now`` stands in one tells nothing of what is asked.
"""

from __future__ import annotations

from collections.abc import Mapping


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _by_part(**parts: str) -> Mapping[str, tuple[str, ...]]:
    return {part: _words(text) for part, text in parts.items()}


LABELS = ("billing", "delivery", "repair", "account")
MATTERS: Mapping[str, tuple[str, ...]] = _by_part(
    billing="invoice surcharge refund payment fee receipt discount tax price instalment",
    delivery="parcel courier shipment tracking package carrier postage doorstep dispatch van",
    repair="defect crack breakage leak malfunction hinge warranty dent rattle fuse",
    account="password login username profile registration newsletter membership passcode settings nickname",
)
TOPICS: Mapping[str, tuple[str, ...]] = _by_part(
    billing="money costs paid",
    delivery="transport post shipped",
    repair="broken fixing tools",
    account="access identity online",
)

# What the instructions are made of. Leanings: 0.9 for the first third of a list, 0.6 for the second, 0.35 for the last.
NOW = _by_part(
    adjective="current present newest pending requested urgent wanted latest open new upcoming next",
    noun="request demand need wish goal question",
    verb="requests wants needs asks seeks expects",
    time="now currently today presently immediately still",
)
BEFORE = _by_part(
    adjective="previous past former original earlier first initial old older prior closed settled",
    noun="history outset background origin beginning story",
    verb="reported began recalled had knew faced",
    time="before previously formerly beforehand originally once",
)
PLAIN = _by_part(
    adjective="main single right correct clear proper short best whole plain given real",
    noun="matter topic subject issue case thing point reason",
    verb="mentions writes says describes means brings names tells",
    time="here clearly briefly below somewhere alone",
    do="read name tell give find choose pick state report classify sort decide",
    text="message letter mail text note",
    who="customer client writer person sender caller",
    desk="department desk team group class label word",
    small="the a an this that each one of to for from in by with about and or is it us me we our you your which what who how "
    "please kindly only just simply then goes belongs",
)

NOW_CUES = _words("now today")
BEFORE_CUES = _words("ago last")
SPANS = _words("days weeks months")
PERIODS = _words("week month spring summer autumn winter")
# How loudly a clause says its matter, from hardly to above all.
LOUD: Mapping[str, float] = {
    "barely": -1.5, "hardly": -1.25, "mildly": -1.0, "slightly": -0.75, "vaguely": -0.5, "somewhat": -0.25,
    "rather": 0.25, "really": 0.5, "strongly": 0.75, "badly": 1.0, "terribly": 1.25, "desperately": 1.5,
}  # fmt: skip

# Names and items: each client has its own, and so has the public.
NAMES: Mapping[str, tuple[str, ...]] = _by_part(
    north="astrid bjorn dagny eskil frida gunnar hedda ingvar",
    south="alma bruno carla diego elena fabio gina hugo",
    east="anka boris cveta dragan evka filip galina hynek",
    west="aoife bran ciara declan eimear fergus grainne hamish",
    public="alex blake casey drew ellis frankie gale harper",
)
ITEMS: Mapping[str, tuple[str, ...]] = _by_part(
    north="sledge stove snowboard kayak lantern skates",
    south="fan parasol blender scooter hammock cooler",
    east="violin samovar sewing-machine typewriter accordion chessboard",
    west="raincoat radio lawnmower kettle bicycle telescope",
    public="phone lamp printer camera clock heater",
)

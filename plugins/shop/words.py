# SPDX-License-Identifier: Apache-2.0
"""The words of the shop: six products, their parts, and what is said of them, good and bad.

The words are real or made of real ones; which product each belongs to, and on which side it stands, is laid down here. No word
of opinion is in two lists. In every list of sixteen the first four are public, the first eight occur in a client's records.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Product:
    """One product: two nouns for it, ten of its parts, sixteen words of praise and sixteen of blame."""

    nouns: tuple[str, ...]
    parts: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


def _product(nouns: str, parts: str, good: str, bad: str) -> Product:
    return Product(tuple(nouns.split()), tuple(parts.split()), tuple(good.split()), tuple(bad.split()))


PRODUCTS = {
    "tents": _product(
        "tent shelter",
        "flysheet groundsheet poles pegs zip porch seams guylines vents hem",
        """airy roomy rainproof snug stormproof windfast packable taut featherweight tear-resistant freestanding midge-proof
        quick-pitching dew-free ripstop well-vented""",
        """leaky sagging draughty cramped flapping clammy tippy drippy mildewed frayed unpitchable condensation-soaked
        sun-rotted floppy peg-bending collapsing""",
    ),
    "kettles": _product(
        "kettle jug",
        "spout lid handle element gauge switch base filter cord whistle",
        """fast-boiling drip-free cordless thrifty cool-touch quiet-boiling descaled pour-perfect auto-stopping rustless
        steam-tight heat-keeping easy-fill even-heating spotless true-reading""",
        """limescaled scalding slow-boiling rusting dribbling spluttering tinny plasticky furred overboiling steam-leaking
        scorched wobbly-lidded hissing stale-tasting short-corded""",
    ),
    "bicycles": _product(
        "bicycle bike",
        "brakes saddle gears chain pedals frame tyres handlebar bell mudguards",
        """nimble grippy well-geared puncture-proof smooth-shifting true-running rattle-free springy crisp-shifting fade-free
        sprightly stiff-framed hill-friendly well-oiled rust-proofed steady-rolling""",
        """squealing buckled twitchy creaking chain-dropping saddle-hard slipping juddering skittish flat-prone mis-indexed
        seized brake-fading wheel-wobbling over-geared pedal-striking""",
    ),
    "headsets": _product(
        "headset earpiece",
        "earcups headband cable microphone bass treble battery buttons cushions pairing",
        """hiss-free punchy noise-cancelling balanced tangle-free crystalline long-lasting bass-rich lag-free feather-soft
        low-latency wide-staged warm-toned well-padded instant-pairing crackle-free""",
        """crackling muffled laggy shrill boomy ear-pinching sound-leaking sibilant hissy drop-prone tangling distorted
        overbassed one-sided buzzing dead-eared""",
    ),
    "lamps": _product(
        "lamp lantern",
        "bulb shade dimmer socket stand glow clamp plug hinge beam",
        """glare-free dimmable soft-lit energy-saving flicker-free warm-white well-aimed mood-setting evenly-lit sun-like
        eye-friendly long-glowing cool-running fine-tuned steady-beamed shadowless""",
        """flickering glaring dim overheated bulb-eating harsh-white top-heavy short-circuited yellowed blinding patchy-lit
        moth-drawing unplugging fused strobing hum-prone""",
    ),
    "puzzles": _product(
        "puzzle game",
        "rules cards dice board tokens rulebook scoring artwork rounds box",
        """replayable clever gripping well-paced tense family-friendly brain-teasing quick-witted elegant thematic
        laugh-inducing addictive strategic fair-minded well-drawn intuitive""",
        """luck-ridden tedious fiddly confusing unbalanced endless misprinted rule-heavy pointless solved one-note snowballing
        flimsy-carded kingmaking joyless repetitive""",
    ),
}
COMMON_GOOD = ("good", "great", "excellent", "lovely", "fine", "pleasing", "superb", "splendid")
COMMON_BAD = ("bad", "awful", "poor", "terrible", "dreadful", "disappointing", "useless", "horrid")
_NAMES = """
    agathe benno celeste dorian edith florian greta henrik ivo josefa konrad leonie marek nadia otto petra quentin rosa
    stefan tilda ulla viktor wanda yusuf
"""
NAMES = tuple(_NAMES.split())
TIMES = ("last week", "last month", "last spring", "in january", "in march", "in june", "in august", "in october")
SPANS = ("two days", "three weeks", "four months", "five trips", "six evenings", "a whole year", "a long winter", "one season")
PEOPLE = ("sister", "brother", "mother", "father", "neighbour", "uncle", "aunt", "friend")

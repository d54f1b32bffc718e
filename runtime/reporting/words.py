# SPDX-License-Identifier: Apache-2.0
"""Numbers and promises in words that a reader without mathematics can follow."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from osmotic.runtime.privacy.charging import each_once, per

WEAK = 12.0  # from here on the odds of a document change by more than 10^5: a promise in name
LONGEST = 1200  # characters of one field of a sample
MEANING = {
    "certified": "However much else somebody knows: no released value is more than e^epsilon times as likely under one content "
    "of the field as under any other. The whole table of probabilities was computed and compared with what is declared.",
    "metric": "The bound grows with the distance between two contents: values that are near each other are hard to tell apart, "
    "values that are far from each other are not protected from each other.",
    "partition": "Which group a value belongs to is given away. Inside its group the bound holds as for a certified mechanism.",
    "heuristic": "No mathematical promise. What an attack recovered was measured; another attack may recover more.",
    "gaussian": "Noise on counts or sums hides what one record adds to them, up to epsilon and a small probability delta.",
    "laplace-histogram": "Noise on counts hides what one record adds to them, up to epsilon.",
    "dp-sgd": "Every training step clips what one record can change and adds noise; epsilon and delta are those of all steps "
    "together.",
}
VOIDS = {
    "any": "the same records bound under a second name, in a second ledger, or published elsewhere; a ledger or key that was "
    "lost or copied; a symbol table made from private data; a component or mechanism that lies",
    "metric": "distances that do not mean what the reader thinks",
    "partition": "a reader who learns something from the group alone",
    "dp-sgd": "settings chosen by looking at private results that were not charged",
}


def number(value: Any) -> str:
    """A metric: three decimals, thousands grouped; a dash when there is none."""
    if value is None:
        return "\u2013"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.3f}"


def signed(value: float) -> str:
    """A difference with its sign, the minus as long as the plus."""
    return f"{value:+.3f}".replace("-", "\u2212")


def size(count: float) -> str:
    """Bytes in a unit that reads well (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{seconds / 60:.1f} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def text(value: Any) -> str:
    """A field of a record: text as it is, anything else as JSON; very long ones are cut, and say so."""
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} … ({len(shown) - LONGEST:,} more characters)"


def cut(value: str, most: int) -> str:
    """A label that fits its box; the whole of it is in the tooltip."""
    return value if len(value) <= most else value[: most - 1] + "…"


def tone_of(words: str) -> str:
    """The class of a guarantee, or of a label, in words: bad, warn or good. Amber too: bounds that leave contents far apart, or
    of other groups, without protection from each other.
    """
    if words.startswith(("unprotected", "exposed", "private")):
        return "bad"
    return "warn" if words.startswith(("heuristic", "void", "partition", "metric")) else "good"


def run_tone(accounts: Iterable[Mapping[str, Any]]) -> str:
    """The run's: that of the weakest party and part; a promise too weak to speak of safety is a warning."""
    found = list(accounts)
    tones = {tone_of("void" if a["void"] and a["word"] != "unprotected" else a["word"]) for a in found}
    parts = [part for a in found for part in (a, *a.get("parts", ()), *([a["together"]] if a.get("together") else ()))]
    tones |= {"warn" for part in parts if part["epsilon"] is None or part["epsilon"] > WEAK}
    return next((tone for tone in ("bad", "warn") if tone in tones), "good")


def plainly(accounts: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the guarantee of a run means, sentence by sentence, the weakest first."""
    found = list(accounts)
    bare = [a["party"] for a in found if a["word"] == "unprotected"]
    said: list[str] = []
    if bare:
        said.append(
            f"Data of {_names(bare)} left {'its owner' if len(bare) == 1 else 'their owners'} as they are, because the site's "
            "own policy allowed it: by a waiver, or to an endpoint that it trusts. Nothing limits what a reader of them "
            "learns. Results that rest on them are a bound to compare with, not something to repeat with real people's data."
        )
    void = sorted({cause for a in found for cause in a["void"]})
    if void:
        said.append(f"A promise that would hold is void here: {', '.join(void)}. What follows says what it would have been.")
    for word in dict.fromkeys(a["word"] for a in found if a["word"] in MEANING):
        parties = [a for a in found if a["word"] == word]
        said.append(f"{_names([a['party'] for a in parties])}: {word}. {MEANING[word]}")
        known = [_first(a) for a in parties if a["epsilon"] is not None]
        if known and word not in ("heuristic", "metric"):
            said.append(_odds(max(known, key=lambda part: float(part["epsilon"]))))
        more = dict.fromkeys(text for a in parties for text in beside([part["text"] for part in a.get("parts", ())]))
        if more:
            said.append(f"Beside it, in units of their own: {'; '.join(more)}.")
    quiet = [a["party"] for a in found if a["word"] == "nothing crosses"]
    if quiet:
        said.append(f"Nothing that depends on data of {_names(quiet)} crossed.")
    return said


def beside(texts: list[str]) -> list[str]:
    """All parts but the first, those that read alike once."""
    return each_once(texts[1:])


def _first(account: Mapping[str, Any]) -> Mapping[str, Any]:
    """The weakest part of an account."""
    return next(iter(account.get("parts", ())), account)


def _odds(part: Mapping[str, Any]) -> str:
    """What an epsilon allows, as a change of odds."""
    epsilon, delta, name = float(part["epsilon"]), part.get("delta", 0.0), str(part["unit"])
    factor = f"{math.exp(epsilon):,.1f}" if epsilon < 7 else f"about 10^{epsilon / math.log(10):.0f}"
    size = "a strong" if epsilon <= 1 else "a moderate" if epsilon <= 5 else "a weak" if epsilon <= WEAK else "a very weak"
    whole = name if name in ("record", "client") else "document"
    between = f"between two possible contents of a {whole}"
    if whole != "document" and "add-or-remove-one" in part.get("of", ()):
        between = f"on whether a {whole} was there"
    pattern = " whose values are in the same groups" if name == "partition" else ""
    but = f", but for a failure of probability {delta:g}" if delta else ""
    return (
        f"Epsilon {epsilon:g} {per(name)}: seeing everything that crossed, somebody's odds {between}{pattern} change by a "
        f"factor of at most {factor}{but}. As a promise about the worst case that is {size} one; smaller is stronger."
    )


def _names(parties: list[str]) -> str:
    if len(parties) > 6:
        return f"{len(parties)} parties"
    return parties[0] if len(parties) == 1 else f"{', '.join(parties[:-1])} and {parties[-1]}"


def voids_of(kind: str) -> str:
    """What voids a promise of a class."""
    return "; ".join(VOIDS[k] for k in (kind, "any") if k in VOIDS)

# SPDX-License-Identifier: Apache-2.0
"""Whether a text is in another language than its prompt: by script first, then by function words of seven languages.

Public means only: Unicode's names of letters, and the lists below, without words that two languages share. A text is called
foreign when that is plain, and otherwise not: short texts, names, formulas and languages without a list pass.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from osmotic.components.rationale_rules import fold, words

Language = Literal["en", "de", "fr", "es", "it", "pt", "nl"]
_LISTED: Mapping[str, str] = {
    "en": "the of and to is are was were that it for with this be have has not they which from would you he she but their what",
    "de": "der das und ist nicht ein eine mit auf für sich dem den wird auch oder weil sind wir ich aber kann einen zu",
    "fr": "le les des et est une dans pour qui pas sur elle avec au ce cette sont plus nous vous mais donc leur aux",
    "es": "el los las y que es una por con para del se como más pero su al lo está son muy porque",
    "it": "il di che è un una per con non sono della gli nel anche questo alla perché più dei si delle",
    "pt": "o os as e não uma que para com do da em é são mais por ao pelo isso você também na no",
    "nl": "het een van en niet dat zijn met voor aan ook wordt naar maar deze kan bij wij omdat hebben dit",
}
_ENGLISH = (
    "about after all also and any are as because before both can could did do does each for from get had has her here him "
    "his how into its just like make many may more most much must no not now off on one only other our out over own same "
    "she should so some such than that their them then there these they this those through too two under use used very was "
    "way were what when where which while who why will with would you your con hat in met per van"
)
_KNOWN = frozenset(_ENGLISH.split())
_COUNTS = Counter(word for listed in _LISTED.values() for word in set(listed.split()))
FUNCTION_WORDS: Mapping[str, frozenset[str]] = {
    code: frozenset(w for w in listed.split() if _COUNTS[w] == 1 and (code == "en" or w not in _KNOWN))
    for code, listed in _LISTED.items()
}
COMMON = _KNOWN.union(*(listed.split() for listed in _LISTED.values()))  # words that say nothing about a record
FEWEST_LETTERS = 10  # to tell a script
FEWEST_WORDS = 5  # function words of another language
KNOWN_WORDS = 3  # function words that tell a prompt's language
_EAST_ASIAN = ("CJK", "HIRAGANA", "KATAKANA")


def scripts(text: str) -> Counter[str]:
    """How many letters of each script a text has; hanzi and kana are one."""
    names = (unicodedata.name(char, "").partition(" ")[0] for char in fold(text) if char.isalpha())
    return Counter("CJK" if name in _EAST_ASIAN else name for name in names)


def language_of(text: str) -> str | None:
    """The language with the most function words in a text; None with too few of them, or between two."""
    hits = _hits(text)
    (best, most), (_, second) = sorted(hits.items(), key=lambda item: -item[1])[:2]
    return best if most >= KNOWN_WORDS and most > second else None


def is_foreign(text: str, prompt: str, language: str | None = None) -> bool:
    """Most letters are of scripts that the prompt has not; or function words of another language are twice as many as those of
    `language`, or of the prompt's. Without either there is nothing to compare with."""
    mine, shown = scripts(text), scripts(prompt)
    known = {"LATIN"} if language else {name for name, count in shown.items() if count >= 0.05 * shown.total()}
    if known and mine.total() >= FEWEST_LETTERS:
        other = sum(count for name, count in mine.items() if name not in known)
        if other > mine.total() / 2:
            return True
    own = language or language_of(prompt)
    if own is None:
        return False
    hits = _hits(text)
    most = max(count for code, count in hits.items() if code != own)
    return most >= FEWEST_WORDS and most > 2 * hits[own]


def _hits(text: str) -> dict[str, int]:
    found = words(text)
    return {code: sum(word in listed for word in found) for code, listed in FUNCTION_WORDS.items()}

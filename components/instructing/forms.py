# SPDX-License-Identifier: Apache-2.0
"""What an instruction or a response may look like, whatever it says: rules that read the text alone."""

from collections.abc import Sequence

from osmotic.components.rationale_rules import OPENING_WORDS, fold, is_refusal, words

PERSONAS = (
    "as an ai", "as an artificial intelligence", "as a language model", "as a large language model", "as a chatbot",
    "as a virtual assistant", "as your assistant", "as an assistant", "i am an ai", "i'm an ai", "i am a language model",
    "i'm a language model", "i am an assistant", "i'm an assistant", "i am a chatbot", "i'm a chatbot", "my name is",
    "you are an ai", "you are a language model", "you are a helpful assistant", "you are an assistant", "you are a chatbot",
    "imagine you are", "imagine that you are", "pretend to be", "pretend you are", "pretend that you are",
)  # fmt: skip
EMPTY, SHORT, LONG, REFUSAL, PERSONA = "empty", "too-short", "too-many-words", "refusal", "persona"


def is_persona(text: str, personas: Sequence[str]) -> bool:
    """Whether a text opens in the voice of somebody: one of the phrases is its very beginning.

    >>> is_persona("As an AI, I see.", PERSONAS), is_persona("Tell me as an AI.", PERSONAS)
    (True, False)
    """
    opening = words(" ".join(fold(text).split()[:OPENING_WORDS]))
    return any(opening[: len(phrase)] == phrase for phrase in map(words, personas) if phrase)


def form_reason(
    text: str, least: int, refusals: Sequence[str], personas: Sequence[str], most: int | None = None
) -> str:  # fmt: skip
    """Why a text will not do; "" where it will. least, most: words that it needs and may have."""
    count = len(words(text))
    if not count:
        return EMPTY
    if is_refusal(text, refusals):
        return REFUSAL
    if is_persona(text, personas):
        return PERSONA
    if count < least:
        return SHORT
    return LONG if most is not None and count > most else ""


def plain(text: str) -> str:
    """What texts have in common that read the same: case, blanks and punctuation apart.

    >>> plain("Make  tea!") == plain("make tea")
    True
    """
    return " ".join(words(text)) or fold(text)

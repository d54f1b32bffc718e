# SPDX-License-Identifier: Apache-2.0
r"""A prompt as an ordered list of tokens (FedDTPT, arXiv 2411.00985): words that may change, and frozen ones that may not.

A hand-written text becomes tokens: a ``{{ slot }}`` is one frozen token, a label word is frozen, ``[[ ... ]]`` is one frozen
stretch, taken verbatim (slots may stand in it). Everything else splits into words and punctuation, which are free. A prompt and
its template are the same thing: only ever words and marks without braces come into free places, so that no prompt that was
tuned, here or elsewhere, can show a model more of a record than the hand-written one does.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from osmotic.components.templates import compile_template, slots
from osmotic.schemas.artifacts import canonical
from osmotic.schemas.errors import ConfigError, DataError, Problem

MASK = "[MASK]"
SLOT = r"""\{\{(?:"[^"]*"|'[^']*'|[^"'}]|\}(?!\}))*\}\}"""
_SLOT = re.compile(SLOT)
_STRETCH = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_NAME = re.compile(r"[^\W\d]\w*")
FROZEN = "freeze what may not change with [[ ... ]], and write slots as {{ field }}"


@dataclass(frozen=True)
class Token:
    """A word, a mark or a frozen stretch. glue: the white space before it."""

    text: str
    glue: str = ""
    frozen: bool = False


@dataclass(frozen=True)
class Prompt:
    """Tokens in order; a position is a token's number in `tokens`, frozen ones counted."""

    tokens: tuple[Token, ...]

    @classmethod
    def parse(cls, text: str, keep: Collection[str] = (), path: str = "prompt") -> "Prompt":
        """A hand-written text. keep: words that are frozen where they stand, such as label words.

        Raises ConfigError for a wrong template, a stretch that is not closed, a mask in the text.

        >>> [token.text for token in Prompt.parse("Is it good? {{ text }}[[ Answer:]]", ["good"]).tokens]
        ['Is', 'it', 'good', '?', '{{ text }}', ' Answer:']
        """
        pieces = _pieces(text, path)
        found = [token for words, frozen in pieces for token in (_stretch(words) if frozen else _split(words, keep))]
        prompt = cls(_tidied(found))
        compile_template(prompt.template, path)
        return prompt

    @cached_property
    def template(self) -> str:
        """The Jinja text; of a prompt that was parsed, its text without the marks of frozen stretches."""
        return self._text(0, len(self.tokens), lambda token: token.text)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Positions of the words that may change."""
        return tuple(i for i, token in enumerate(self.tokens) if not token.frozen)

    @cached_property
    def slots(self) -> frozenset[str]:
        """The fields of a record that the prompt shows."""
        return frozenset(slots(self.template))

    @cached_property
    def skeleton(self) -> str:
        """SHA-256 over the frozen tokens in order, hexadecimal: prompts of one skeleton can be put together."""
        return hashlib.sha256(canonical([token.text for token in self.tokens if token.frozen])).hexdigest()

    def replaced(self, position: int, word: str) -> "Prompt":
        """With another word at a free position. Raises ValueError for a frozen one, or a word with spaces or braces."""
        token = self.tokens[position]
        if token.frozen or not is_word(word):
            raise ValueError(f"position {position} is frozen" if token.frozen else f"{word!r} is no word")
        return Prompt((*self.tokens[:position], replace(token, text=word), *self.tokens[position + 1 :]))

    def masked(self, position: int, radius: int | None = None) -> str:
        """The text with one [MASK] at the position, slots shown as their bare name. radius: tokens on each side; None: all."""
        low, high = 0, len(self.tokens)
        if radius is not None:
            low, high = max(0, position - radius), min(high, position + radius + 1)
        before = self._text(low, position, _bare).replace(MASK, "MASK")
        after = self._text(position + 1, high, _bare).replace(MASK, "MASK")
        glue = "" if position == low else self._gap(position)
        rest = self._gap(position + 1) if position + 1 < high else ""
        return f"{before}{glue}{MASK}{rest}{after}"

    def to_json(self) -> dict[str, Any]:
        """The document of the kind PROMPT."""
        return {"tokens": [vars(token) for token in self.tokens], "template": self.template}

    @classmethod
    def of_json(cls, data: Any, path: str = "prompt") -> "Prompt":
        """The inverse of `to_json`. Raises DataError naming what is malformed; a template that its tokens do not give is."""
        if not isinstance(data, Mapping) or not isinstance(data.get("tokens"), list) or not data["tokens"]:
            raise DataError(Problem("not a prompt: no 'tokens'", path=path, fix="connect what a prompt component gave"))
        tokens = tuple(_token(entry, f"{path}.tokens[{i}]") for i, entry in enumerate(data["tokens"]))
        prompt = cls(tokens)
        if data.get("template") != prompt.template:
            raise DataError(Problem("the template is not that of the tokens", path=f"{path}.template"))
        try:
            compile_template(prompt.template, path)
            own = {name for token in tokens for part in _SLOT.findall(token.text) for name in slots(part)}
            shown = prompt.slots
        except ConfigError as error:
            raise DataError(*error.problems) from error
        if shown != own:
            raise DataError(Problem("a slot must be one frozen token, or stand in one", path=path))
        return prompt

    def _gap(self, position: int) -> str:
        """The white space before a token: two words never become one, unless a frozen stretch was written like that."""
        token = self.tokens[position]
        if token.glue or not position:
            return token.glue
        before = self.tokens[position - 1]
        apart = not (before.frozen and token.frozen) and _wordy(before.text[-1:]) and _wordy(token.text[:1])
        return " " if apart else ""

    def _text(self, low: int, high: int, shown: Any) -> str:
        """Tokens from low to high as text; the first one's glue is left out where something stands before it."""
        parts = [("" if i == low and low else self._gap(i)) + shown(self.tokens[i]) for i in range(low, high)]
        return "".join(parts)


def is_word(text: str) -> bool:
    """Whether a text may stand at a free position: something to be seen, without spaces or braces."""
    return bool(text) and text.isprintable() and not any(c.isspace() or c in "{}" for c in text)


def _wordy(char: str) -> bool:
    return bool(char) and (char.isalnum() or char == "_")


def _bare(token: Token) -> str:
    """A token's text with the name of a slot in the place of the slot."""
    return _SLOT.sub(lambda found: (_NAME.search(found[0]) or found)[0], token.text) if token.frozen else token.text


def _pieces(text: str, path: str) -> list[tuple[str, bool]]:
    """(text, whether it is a frozen stretch) in order."""
    if MASK in text:
        raise ConfigError(Problem(f"the prompt says {MASK}, which a masked model fills in", path=path, fix="say it otherwise"))
    pieces, end = list[tuple[str, bool]](), 0
    for found in _STRETCH.finditer(text):
        pieces += [(text[end : found.start()], False), (found[1], True)]
        end = found.end()
    pieces.append((text[end:], False))
    open_ = next((words for words, frozen in pieces if not frozen and ("[[" in words or "]]" in words)), None)
    if open_ is not None:
        why = f"near {open_.strip()[:40]!r}"
        raise ConfigError(Problem("a frozen stretch is not closed, or not opened", path=path, why=why, fix=FROZEN))
    return [piece for piece in pieces if piece[0]]


def _stretch(text: str) -> list[Token]:
    return [Token(text, "", True)]


def _split(text: str, keep: Collection[str]) -> list[Token]:
    """Tokens of a text outside frozen stretches; white space at its end goes to the next token, by `_tidied`."""
    kept = "|".join(r"\s+".join(map(re.escape, word.split())) for word in sorted(keep, key=len, reverse=True) if word.strip())
    pattern = (
        rf"(?P<slot>{SLOT})"
        + (rf"|(?P<kept>(?<!\w)(?:{kept})(?!\w))" if kept else "")
        + r"|(?P<free>\w+|[^\w\s])|(?P<glue>\s+)"
    )
    tokens, glue = list[Token](), ""
    for found in re.finditer(pattern, text, re.IGNORECASE):
        if found["glue"]:
            glue = found["glue"]
            continue
        frozen = found["free"] is None or not is_word(found[0])
        tokens.append(Token(found[0], glue, frozen))
        glue = ""
    return [*tokens, Token("", glue, True)] if glue else tokens


def _tidied(tokens: list[Token]) -> tuple[Token, ...]:
    """White space that waits goes to the next token; at the very end it is a frozen token of its own.

    What is written together with a frozen word ("[[un]]kind", "{{ n }}th", "{ n") is frozen with it: a free word never stands
    where another one would be read as part of its neighbour.
    """
    made, glue = list[Token](), ""
    for token in tokens:
        if not token.text:
            glue += token.glue
            continue
        made.append(replace(token, glue=glue + token.glue))
        glue = ""
    for order in (range(1, len(made)), range(len(made) - 2, -1, -1)):
        step = order.step
        for i in order:
            near, left, right = made[i - step], min(i, i - step), max(i, i - step)
            if not made[i].frozen and near.frozen and not made[right].glue and _joined(made[left].text, made[right].text):
                made[i] = replace(made[i], frozen=True)
    return (*made, Token(glue, "", True)) if glue else tuple(made)


def _joined(left: str, right: str) -> bool:
    """Whether two texts without a space between them are one word, or a brace and what follows it."""
    brace = (left[-1:] in ("{", "}") and not _SLOT.search(left)) or (right[:1] in ("{", "}") and not _SLOT.match(right))
    return brace or (_wordy(left[-1:]) and _wordy(right[:1]))


def _token(entry: Any, path: str) -> Token:
    fine = isinstance(entry, Mapping) and set(entry) == {"text", "glue", "frozen"} and isinstance(entry["frozen"], bool)
    if not fine or not isinstance(entry["text"], str) or not isinstance(entry["glue"], str):
        raise DataError(Problem("a token must have a text, its glue and whether it is frozen", path=path))
    if entry["glue"].strip():
        raise DataError(Problem("the glue of a token must be white space", path=path))
    if not entry["text"] or not (entry["frozen"] or is_word(entry["text"])):
        raise DataError(Problem("a free token must be a word or a mark, without spaces and braces", path=path))
    return Token(entry["text"], entry["glue"], entry["frozen"])

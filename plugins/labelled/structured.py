# SPDX-License-Identifier: Apache-2.0
"""Labelled samples as JSON: the schema that a back end can hold a model to, and how its answer is read all the same."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from osmotic.plugins.labelled.formats import CUT, NO_LABEL, NO_TEXT, UNKNOWN, Labels, Parsed, Rejected, Sample


def samples_schema(labels: Sequence[str]) -> dict[str, Any]:
    """JSON Schema of ``{"samples": [{"label": one of the labels, "text": ...}]}``."""
    properties = {"label": {"type": "string", "enum": list(labels)}, "text": {"type": "string"}}
    item = {"type": "object", "properties": properties, "required": ["label", "text"], "additionalProperties": False}
    return {
        "type": "object",
        "properties": {"samples": {"type": "array", "items": item}},
        "required": ["samples"],
        "additionalProperties": False,
    }


def parse_json(answer: str, labels: Labels, finished: bool = True) -> Parsed:
    """The samples of an answer in JSON, whole or cut: every complete object with a label and a text, wherever it stands.

    An object that was begun and not ended is rejected as cut where the length limit ended the answer.
    """
    samples: list[Sample] = []
    rejected: list[Rejected] = []
    end = 0
    for value, start, stop in objects(answer, lambda value: bool({"label", "text"} & value.keys())):
        found = _sample(value, labels)
        if isinstance(found, Sample):
            samples.append(found)
        else:
            rejected.append(Rejected(answer[start:stop], found))
        end = stop
    rest = answer[end:]
    if not finished and "{" in rest:
        rejected.append(Rejected(rest[rest.rindex("{") :], CUT))
    return Parsed(tuple(samples), tuple(rejected))


def objects(answer: str, fits: Callable[[dict[str, Any]], bool]) -> Iterator[tuple[dict[str, Any], int, int]]:
    """(object, where it begins, where it ends) of the JSON objects in an answer that fit; none lies inside another."""
    decoder, done = json.JSONDecoder(), 0
    for start in (found.start() for found in re.finditer(r"\{", answer)):
        if start < done:
            continue
        try:
            value, stop = decoder.raw_decode(answer, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and fits(value):
            yield value, start, stop
            done = stop


def _sample(value: dict[str, Any], labels: Labels) -> Sample | str:
    """A sample, or why there is none."""
    raw, text = value.get("label"), value.get("text")
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        raw = str(int(raw)) if isinstance(raw, float) and raw.is_integer() else str(raw)
    if not isinstance(raw, str) or not raw.strip():
        return NO_LABEL
    label = labels.find(raw)
    if label is None:
        return UNKNOWN
    if not isinstance(text, str) or not text.strip():
        return NO_TEXT
    return Sample(label, text.encode("utf-8", "replace").decode().strip())  # "\\ud83d" alone is half of a character

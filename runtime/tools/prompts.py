# SPDX-License-Identifier: Apache-2.0
"""`osmotic prompts`: the prompts of a FATE-LLM data set file, as blocks for a pipeline and for a site file."""

import json
import re
from typing import Any

import yaml

from osmotic.plugins.labelled.fate_llm import Converted


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    number = re.match(r"[-+.]?[0-9]", value) is not None  # 1e3 is a number to some readers of YAML, ours among them
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else "'" if number else None)


_Dumper.add_representer(str, _text)


def prompts_text(found: Converted) -> str:
    """YAML of the blocks: schema and map for a site file, the others for the config of components of those names."""
    return yaml.dump(found.blocks, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100).rstrip("\n")


def prompts_json(found: Converted) -> str:
    """The same as JSON, with the notes."""
    notes: list[Any] = [{"where": n.where, "path": n.path, "what": n.what, "why": n.why} for n in found.notes]
    return json.dumps({"blocks": found.blocks, "notes": notes}, sort_keys=True)

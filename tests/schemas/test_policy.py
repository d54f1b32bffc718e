# SPDX-License-Identifier: Apache-2.0
"""Site policies: nothing is granted by default; defaults fill in what a party does not say itself."""

import jsonschema
import pytest

from osmotic.schemas.errors import ConfigError
from osmotic.schemas.generate import generate
from osmotic.schemas.policy import SitePolicy, Sites
from osmotic.schemas.source import parse, validate

GOOD = """\
osmotic_sites: 1
defaults:
  max_epsilon: 4
  budget: {"*": {per_document: 24}}
parties:
  north:
    data:
      notes: {path: north.jsonl, schema: schema.yaml, rows: [0, 100]}
      exam: {path: e.jsonl, schema: {fields: {city: {domain: [a, b]}}}, label: public, purpose: benchmark}
    max_epsilon: 2
  south: {waivers: [{edge: "*", observers: [hub]}]}
  hub:
"""


def load(text: str) -> Sites:
    return validate(Sites, parse(text, "s.yaml"))


def problems(text: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load(text)
    return {
        p.path: f"{p.where.removeprefix('s.yaml:')} {p.what}{f' | {p.fix}' if p.fix else ''}" for p in caught.value.problems
    }


def changed(old: str, new: str) -> str:
    assert old in GOOD
    return GOOD.replace(old, new, 1)


def test_nothing_is_granted_by_default() -> None:
    policy = SitePolicy()
    assert (policy.data, policy.waivers, policy.endpoints, policy.cleartext, policy.models) == ({}, (), (), (), ())
    assert not policy.seeded and not policy.unproven


def test_defaults_hold_where_a_party_says_nothing() -> None:
    parties = load(GOOD).parties
    assert (parties["north"].max_epsilon, parties["south"].max_epsilon, parties["hub"].max_epsilon) == (2, 4, 4)
    assert all(p.budget["*"].per_document == 24 for p in parties.values())
    assert parties["south"].waivers[0].observers == ("hub",) and parties["north"].waivers == ()


def test_a_binding_is_private_unless_said_otherwise() -> None:
    data = load(GOOD).parties["north"].data
    assert (data["notes"].label, data["notes"].purpose, data["notes"].rows) == ("private", "private", (0, 100))
    assert (data["exam"].label, data["exam"].purpose, data["exam"].rows) == ("public", "benchmark", None)


def test_an_error_in_the_defaults_is_told_once_and_there() -> None:
    assert problems(changed("max_epsilon: 4", "max_epsilom: 4")) == {
        "defaults.max_epsilom": "3:3 unknown key | did you mean 'max_epsilon'?"
    }
    assert problems(changed("max_epsilon: 4", "max_epsilon: 0")) == {
        "defaults.max_epsilon": "3:3 must be greater than 0 (got 0)"
    }


def test_a_schema_is_inline_or_a_file_and_errors_come_from_one() -> None:
    assert problems(changed("{domain: [a, b]}", "{domain: [a, b], text: true}")) == {
        "parties.north.data.exam.schema.fields.city": "9:47 give either 'domain: [...]' or 'text: true'"
    }
    assert problems(changed("schema: schema.yaml", "schema: 3")) == {
        "parties.north.data.notes.schema": "8:34 must be a mapping (got 3)"
    }


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("osmotic_sites: 1", "osmotic_sites: 2", "osmotic_sites"),
        ("label: public", "label: secret", "parties.north.data.exam.label"),
        ("purpose: benchmark", "purpose: no", "parties.north.data.exam.purpose"),
        ("rows: [0, 100]", "rows: [0]", "parties.north.data.notes.rows.1"),
        ("per_document: 24", "per_document: -1", "defaults.budget.*.per_document"),
        ("per_document: 24", "per_document: 24, per_token: 1", "defaults.budget.*.per_token"),
        ('edge: "*"', 'edg: "*"', "parties.south.waivers.0.edge"),
        ('edge: "*", observers: [hub]', 'edge: "*"', "parties.south.waivers.0.observers"),
        ("observers: [hub]", "observers: []", "parties.south.waivers.0.observers"),
        ("max_epsilon: 2", "models: some/model", "parties.north.models"),
        ("max_epsilon: 2", "seeded: yes", "parties.north.seeded"),
        ("max_epsilon: 2", "threads: 0", "parties.north.threads"),
        ("max_epsilon: 2", "mechanisms: list-rr", "parties.north.mechanisms"),
    ],
)
def test_every_mistake_is_found_at_its_path(old: str, new: str, path: str) -> None:
    text = changed(old, new)
    assert next(iter(problems(text))) == path
    assert not jsonschema.Draft202012Validator(generate()["sites"]).is_valid(parse(text, "s").value)


def test_the_json_schema_accepts_what_the_model_accepts() -> None:
    made = generate()
    assert jsonschema.Draft202012Validator(made["sites"]).is_valid(parse(GOOD, "s").value)
    assert jsonschema.Draft202012Validator(made["site"]).is_valid({"max_epsilon": 3, "seeded": True})

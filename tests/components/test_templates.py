# SPDX-License-Identifier: Apache-2.0
"""Templates read a record and write text; nothing else is within their reach."""

import pytest

from osmotic.components import templates
from osmotic.schemas.errors import ConfigError, DataError


def test_a_template_reads_fields_of_a_record():
    template = templates.compile_template("Q: {{ stem }}{% for c in choices %} ({{ loop.index }}) {{ c.text }}{% endfor %}\n")
    row = {"stem": "Why?", "choices": [{"text": "a <b>"}, {"text": "c"}]}
    assert templates.render(template, row) == "Q: Why? (1) a <b> (2) c"


def test_slots_are_top_level_variables():
    assert templates.slots("{{ a.b }} {{ c }}{% for i in items %}{{ i }}{% endfor %}") == {"a", "c", "items"}


def test_check_slots_says_what_was_meant():
    assert templates.check_slots("{{ sign }}", ["sign", "day"], "prompt") == []
    assert templates.check_slots("{{ sgin }}", ["sign", "day"], "prompt") == [
        "prompt: unknown slot 'sgin'; did you mean 'sign'?"
    ]
    assert templates.check_slots("{{ x }}", [], "prompt") == ["prompt: unknown slot 'x'; there are no slots here"]
    assert templates.check_slots("{{ sign", ["sign"], "prompt")[0].startswith("prompt: not a valid template")


@pytest.mark.parametrize("text", ["{{ a", "{% if a %}x", "{{ a|nofilter }}", "{{ a + }}", "{% include 'x' %}{%", "x" * 70_000])
def test_wrong_syntax_names_the_key(text):
    with pytest.raises(ConfigError) as caught:
        templates.compile_template(text, "tasks.t.config.prompt")
    assert caught.value.problems[0].path == "tasks.t.config.prompt"


def test_a_missing_slot_is_an_error_and_not_an_empty_text():
    with pytest.raises(DataError, match=r"'b' is undefined[\s\S]*known slots: a"):
        templates.render(templates.compile_template("{{ a }} {{ b }}"), {"a": "x"})


@pytest.mark.parametrize(
    "text",
    [
        "{{ a.__class__.__mro__ }}", "{{ ''.__class__ }}", "{{ a * 1000000000 }}", "{{ 9 ** 9 ** 9 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ a.ljust(1000000000) }}", "{{ '{:999999999}'.format(1) }}", "{{ range(9) }}", "{{ rows.append(1) }}",
        "{% include 'etc' %}", "{{ cycler }}", "{{ 1 / 0 }}", "{{ a.zfill(10000000) }}",
        "{% set b = a ~ a %}", "{% macro m() %}{{ m() }}{% endmacro %}", "{% for b in [a ~ a] %}{% endfor %}", "{{ a + a }}",
        "{% with b = a %}{{ b }}{% endwith %}", "{{ a|attr('format') }}", "{{ loop.cycle }}", "{{ [a]|map('format')|list }}",
        "{{ a" + "|replace('x', 'xxxxxxxxxx')" * 9 + " }}", "{{ a.replace('', a) }}",
        "{{ [a, a]|join(a|replace('x', 'y'*9)) }}",
        "{{ (a|replace('x', 'y', -1))|attr(1) }}", "{% for i in rows recursive %}{% endfor %}",
        "{{ rows.append }}{{ rows.extend(a) }}", "{{ a.split().append(1) }}",
    ],
)  # fmt: skip
def test_a_template_stays_in_its_sandbox(text):
    with pytest.raises((DataError, ConfigError)):
        templates.render(templates.compile_template(text), {"a": "x", "rows": []})


@pytest.mark.parametrize(
    "name", ["center(999)", "indent(999999999)", "random", "format(1)", "batch(9, a)", "tojson(indent=9)", "round(9, 'ceil')"]
)
def test_filters_that_pad_or_draw_are_not_there(name):
    with pytest.raises(ConfigError):
        templates.compile_template("{{ a|" + name + " }}")


def test_too_long_an_output_is_refused():
    template = templates.compile_template("{% for i in a %}{% for j in a %}{{ a }}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match="writes too much"):
        templates.render(template, {"a": "x" * 200})
    assert templates.render(templates.compile_template("{{ n * 2 }} {{ 'a,b'.split(',')|join('-') }}"), {"n": 3}) == "6 a-b"
    text = "{{ a ~ '!' }}{{ a|replace('x', 'y')|upper }}"
    text += "{% for k, v in m.items() %}{{ k }}={{ v }}{% if not loop.last %},{% endif %}{% endfor %}"
    assert templates.render(templates.compile_template(text), {"a": "xx", "m": {"p": 1, "q": 2}}) == "xx!YYp=1,q=2"
    assert (
        templates.render(templates.compile_template("{{ c|join('; ', attribute='t') }}"), {"c": [{"t": 1}, {"t": 2}]}) == "1; 2"
    )

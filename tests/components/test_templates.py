# SPDX-License-Identifier: Apache-2.0
"""Templates read a record and write text; nothing else is within their reach."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.components import templates
from osmotic.plugins import sandbox
from osmotic.schemas.errors import ConfigError, DataError


def owned(text):
    """A template of the party whose data it reads: it may branch."""
    return sandbox.compile_template(text, branches=True)


def test_a_template_reads_fields_of_a_record():
    template = templates.compile_template("Q: {{ stem }}\n({{ a|upper }}) {{ '<' ~ b ~ '>' }}{# not shown #}\n")
    assert templates.render(template, {"stem": "Why <b>?", "a": "x", "b": ""}) == "Q: Why <b>?\n(X) <>"


def test_an_owners_template_may_branch_and_loop():
    template = owned("Q: {{ stem }}{% for c in choices %} ({{ loop.index }}) {{ c.text }}{% endfor %}\n")
    row = {"stem": "Why?", "choices": [{"text": "a <b>"}, {"text": "c"}]}
    assert templates.render(template, row) == "Q: Why? (1) a <b> (2) c"


def test_slots_are_top_level_variables():
    assert templates.slots("{{ a|lower ~ b }} {{ c }}") == {"a", "b", "c"}
    text = "{{ a.b }} {{ c }}{% for i in items %}{{ i }}{% endfor %}"
    assert sandbox.slots(text, branches=True) == {"a", "c", "items"}


BRANCHES = [
    "{% if x %}a{% endif %}", "{{ 'a' if x else 'b' }}", "{% for c in x %}{{ c }}{% endfor %}", "{{ x[0] }}", "{{ x[:3] }}",
    "{{ x.a }}", "{{ x.lower() }}", "{{ x == 'a' }}", "{{ x in 'ab' }}", "{{ x is none }}", "{{ x and y }}", "{{ x or y }}",
    "{{ not x }}", "{{ 1 / x }}", "{{ 1 // x }}", "{{ 1 % x }}", "{{ 2 ** x }}", "{{ x * 2 }}", "{{ x + y }}", "{{ x - 1 }}",
    "{{ -x }}", "{{ x|int }}", "{{ x|first }}", "{{ x|last }}", "{{ x|float }}", "{{ x|abs }}", "{{ x|length }}", "{{ x|max }}",
    "{{ x|list }}", "{{ x|join }}", "{{ x|sum }}", "{{ x|select('none') }}", "{{ x|truncate(3) }}", "{{ [x] }}",
    "{{ {'a': x} }}", "{{ (x, y) }}", "{{ x() }}", "{% filter upper %}{{ x }}{% endfilter %}", "{{ x|replace(y, 'a') }}",
    "{{ x|replace('a', y) }}", "{{ x|replace('a') }}", "{{ x|replace('a', 'b', 1 // 0) }}", "{{ x|replace(old='a', new='b') }}",
    "{{ x|replace(*y) }}", "{{ x|trim(5) }}", "{{ x|trim('a') }}",
    "{{ x|replace('secret', '') }}", "{{ x|default(y) }}", "{{ x|default }}", "{{ x|upper|int }}",
    "{{ x|replace('', 'a') }}", "{{ 1 / 0 }}", "{% set y = x %}",
]  # fmt: skip


@pytest.mark.parametrize("text", BRANCHES)
def test_a_pipelines_template_may_not_branch_on_a_record(text):
    with pytest.raises(ConfigError, match="not a valid template") as caught:
        templates.compile_template("first\n" + text, "tasks.t.config.prompt")
    problem = caught.value.problems[0]
    assert problem.path == "tasks.t.config.prompt" and "line 2 of the template" in problem.why
    (told,) = templates.check_slots(text, ["x", "y"], "prompt")
    assert told.startswith("prompt: not a valid template")


def test_the_refusal_says_why_and_what_there_is():
    with pytest.raises(ConfigError) as caught:
        templates.compile_template("{% if x %}a{% endif %}")
    with pytest.raises(ConfigError, match="may not branch"):
        templates.compile_template("{% autoescape x %}{{ y }}{% endautoescape %}")
    text = str(caught.value)
    assert "a pipeline's template may not branch on a record: what fails or not would tell; 'if' is not for here" in text
    assert "{{ field|lower }}" in text and "wordcount" in text and "{% if" not in text


TOTAL = [
    "x", "x|capitalize", "x|lower", "x|upper", "x|title", "x|trim", "x|string", "x|wordcount", "x|d('none', true)",
    "x|default('none')", "x|default('none', false)", "x ~ y", "(x ~ y)|upper|trim", "x|wordcount|title", "'Q: ' ~ x|lower",
    "x ~ 1 ~ none ~ true ~ 2.5",
]  # fmt: skip
VALUES = st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text(max_size=3), max_size=3))


@settings(max_examples=60, deadline=None)
@given(x=st.one_of(st.text(st.characters(codec=None)), VALUES), y=VALUES)
def test_a_pipelines_template_never_fails_on_a_value(x, y):
    """Every allowed filter is total: on any text (lone surrogates too), and on what else a column can hold."""
    for template in COMPILED:
        assert isinstance(template.render({"x": x, "y": y}), str)


COMPILED = [templates.compile_template("Q {{ " + text + " }} {{ y }}") for text in TOTAL]


def test_every_filter_of_pipelines_is_in_the_property():
    assert {name for name in sandbox._TOTAL if not any(f"|{name}" in text for text in TOTAL)} == set()


def test_there_is_no_cap_that_a_long_record_could_meet():
    """A megabyte and more comes out whole; the number of slots bounds how many times longer than the record a text gets."""
    long = "ab" * (1 << 20)
    assert len(templates.render(templates.compile_template("{{ x }}{{ x|upper }}"), {"x": long})) == 2 * len(long)
    assert templates.render(templates.compile_template("{{ x }}" * 64), {"x": "a"}) == "a" * 64
    for text in ("{{ x }}" * 65, "{{ x ~ " + " ~ ".join("x" * 64) + " }}"):
        with pytest.raises(ConfigError, match="at most 64 slots"):
            templates.compile_template(text)


def test_usefulness_can_be_asked_with_and_without_a_rationale():
    """`rationale_filter`: the same question, once with an empty rationale."""
    template = templates.compile_template("{{ q }} {{ rationale|default('no hint', true) }}\nAnswer:")
    assert template.render({"q": "Why?", "rationale": "Because."}) == "Why? Because.\nAnswer:"
    assert template.render({"q": "Why?", "rationale": ""}) == "Why? no hint\nAnswer:"


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
        templates.render(owned(text), {"a": "x", "rows": []})
    with pytest.raises((DataError, ConfigError)):
        templates.render(templates.compile_template(text), {"a": "x", "rows": []})


@pytest.mark.parametrize(
    "name", ["center(999)", "indent(999999999)", "random", "format(1)", "batch(9, a)", "tojson(indent=9)", "round(9, 'ceil')"]
)
def test_filters_that_pad_or_draw_are_not_there(name):
    for make in (owned, templates.compile_template):
        with pytest.raises(ConfigError):
            make("{{ a|" + name + " }}")


def test_too_long_an_output_is_refused():
    template = owned("{% for i in a %}{% for j in a %}{{ a }}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match="writes too much"):
        templates.render(template, {"a": "x" * 200})
    assert templates.render(owned("{{ n * 2 }} {{ 'a,b'.split(',')|join('-') }}"), {"n": 3}) == "6 a-b"
    text = "{{ a ~ '!' }}{{ a|replace('x', 'y')|upper }}"
    text += "{% for k, v in m.items() %}{{ k }}={{ v }}{% if not loop.last %},{% endif %}{% endfor %}"
    assert templates.render(owned(text), {"a": "xx", "m": {"p": 1, "q": 2}}) == "xx!YYp=1,q=2"
    assert templates.render(owned("{{ c|join('; ', attribute='t') }}"), {"c": [{"t": 1}, {"t": 2}]}) == "1; 2"

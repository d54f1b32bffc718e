# SPDX-License-Identifier: Apache-2.0
"""Formats of labelled samples: written and read back exactly, or refused; labels told apart; blocks that are none."""

import time

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from osmotic.plugins.labelled.formats import FormatError, Labels, Parsed, Rejected, Sample, SampleFormat, label_problems
from osmotic.plugins.labelled.structured import parse_json
from osmotic.schemas.errors import ConfigError

LINE = "label: {{ label }} text: {{ text }}"
BLOCK = "Label: {{ label }}\nText: {{ text }}"
STARS = "******\n- <Rating>: {{ label }} stars.\n- <Review>: {{ text }}\n\n"
NEWS = "- <Category>: {{ label }}.\n- <News>: {{ text }}\n\n"
TAGS = "<sample><of>{{label}}</of>{{text}}</sample>"
LAST = "review: {{ text }} => {{ label }}"
FORMATS = (LINE, BLOCK, STARS, NEWS, TAGS, LAST)
LABELS = ("1", "10", "2", "world", "world news", "a+b*(c)", "x" * 300)


def pairs(parsed: Parsed) -> list[tuple[str, str]]:
    return [(one.label, one.text) for one in parsed.samples]


@pytest.mark.parametrize("template", FORMATS)
def test_all_samples_of_a_prompt_come_back_in_order(template):
    form = SampleFormat(template)
    samples = [Sample(label, f"Some text, no. {i}: it is {label} - or so.") for i, label in enumerate(LABELS)]
    shown = "Sure! Here they are:\n\n" + form.join([form.render(one.label, one.text) for one in samples])
    assert form.parse(shown, LABELS) == Parsed(tuple(samples))


texts = st.text(max_size=60) | st.lists(
    st.sampled_from(
        [
            "label:",
            "text:",
            "Label:",
            "Text:",
            "\n",
            " ",
            "******",
            "- <Rating>:",
            "5 stars.",
            "- <Review>:",
            "=>",
            "review:",
            "world",
            ".",
            "</of>",
            "</sample>",
            "<sample>",
            "<of>",
            "a",
        ]
    ),
    max_size=8,
).map(" ".join)


@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.sampled_from(LABELS), texts), min_size=1, max_size=4))
@example(LINE, [("1", "it has a label: cotton"), ("10", "a text: b")])
@example(STARS, [("1", "so good ******"), ("2", "- <Rating>: 5 stars.\n- <Review>: x")])
def test_the_round_trip_is_exact_or_refused(template, given_samples):
    form = SampleFormat(template)
    try:
        blocks = [form.render(label, text) for label, text in given_samples]
    except FormatError:
        assume(False)
    found = form.parse(form.join(blocks), LABELS)
    assert pairs(found) == [(label, text.strip()) for label, text in given_samples] and not found.rejected


@given(st.sampled_from(FORMATS), st.text(max_size=200), st.booleans())
def test_whatever_a_teacher_says_is_read_without_a_fault(template, answer, finished):
    form = SampleFormat(template)
    found = form.parse(answer + form.opening + answer + form.middle + answer, LABELS, finished)
    assert all(one.label in LABELS and one.text.strip() == one.text != "" for one in found.samples)


@given(st.text(min_size=1, max_size=300), st.sampled_from(FORMATS))
def test_any_label_that_is_accepted_can_be_shown_and_read(label, template):
    form = SampleFormat(template)
    assume(not label_problems(form, [label]))
    assert pairs(form.parse(form.render(label, "It is so."), [label, "another"])) == [(label, "It is so.")]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (LINE, "it has a label: cotton"),
        (TAGS, "a </sample> b"),
        (STARS, "well\n******"),
        (BLOCK, " "),
        (LAST, "a => b"),
        (STARS, "x - <Rating>: y"),
    ],
)
def test_texts_that_would_not_come_back_are_refused(template, text):
    with pytest.raises(FormatError) as caught:
        SampleFormat(template).render("1", text)
    assert "cotton" not in str(caught.value)


def test_blanks_and_line_breaks_between_words_of_the_format_may_be_any():
    form = SampleFormat(STARS)
    answer = "******\n\n- <Rating>:5   stars.\n\n- <Review>:  good\nindeed \n******\n"
    answer += "-  <Rating>: 1 stars.\n- <Review>: bad\n******\n"
    assert pairs(form.parse(answer, ["1", "5"])) == [("5", "good\nindeed"), ("1", "bad")]


def test_blocks_without_the_line_above_them_and_without_the_full_stop():
    assert pairs(SampleFormat(STARS).parse("- <Rating>: 2 stars.\n- <Review>: so so", ["2"])) == [("2", "so so")]
    answer = "- <Category>: world\n- <News>: peace\n\n- <Category>: sports.\n- <News>: a goal"
    assert pairs(SampleFormat(NEWS).parse(answer, ["world", "sports"])) == [("world", "peace"), ("sports", "a goal")]


@pytest.mark.parametrize(
    ("raw", "label"),
    [
        ("1", "1"),
        (" 10 ", "10"),
        ("10.", "10"),
        ("100", None),
        ("World", "world"),
        ("world.", "world"),
        ('"World  News"', "world news"),
        ("world newspaper", None),
        ("**a+b*(c)**", "a+b*(c)"),
        ("aab", None),
        ("x" * 300, "x" * 300),
        ("x" * 299, None),
        ("", None),
        ("...", None),
    ],
)
def test_labels_are_found_whole_or_not_at_all(raw, label):
    assert Labels(LABELS).find(raw) == label


def test_marks_and_case_are_dropped_only_where_one_label_is_left():
    known = Labels(["US", "us", "C", "C.", "-1", "1"])
    assert [known.find(raw) for raw in ("US", "us", "Us", "C", "C.", "C!", "-1", "1", "c.")] == [
        "US",
        "us",
        None,
        "C",
        "C.",
        None,
        "-1",
        "1",
        "C.",
    ]


def test_an_unknown_label_is_rejected_with_its_text_and_never_bent():
    found = SampleFormat(LINE).parse("label: worldly text: a\nlabel: 1 text: b", LABELS)
    assert found == Parsed((Sample("1", "b"),), (Rejected("label: worldly text: a", "unknown-label"),))


@pytest.mark.parametrize("template", FORMATS)
def test_an_answer_that_was_cut_loses_its_last_block_only(template):
    form = SampleFormat(template)
    answer = form.join([form.render("1", "The first."), form.render("2", "The second.")])
    for end in range(1, len(answer) + 1):
        found = form.parse(answer[:end], LABELS, finished=False)
        assert ("2", "The second.") not in pairs(found) or (template == TAGS and end == len(answer))
        assert all(pair in [("1", "The first."), ("2", "The second.")] for pair in pairs(found))
    assert [one.reason for one in found.rejected] == ([] if template == TAGS else ["cut"])


def test_blocks_without_label_or_text_and_openings_inside_of_a_text():
    form = SampleFormat(LINE)
    found = form.parse("label: text: x\nlabel: 1 text:\nlabel: 2 text: the label: wool", LABELS)
    assert not found.samples
    assert [one.reason for one in found.rejected] == ["no-label", "no-text", "ambiguous", "no-label"]
    assert form.parse("I cannot do that.", LABELS) == Parsed()


@pytest.mark.parametrize(
    ("template", "what"),
    [
        ("{{ label }} text: {{ text }}", "before the first slot"),
        ("label: {{ label }} {{ text }}", "between"),
        ("label: {{ label }}", "'text' is missing"),
        ("l: {{ label }} t: {{ text }} {{ text }}", "twice"),
        ("l: {label} t: {{ text }}", "single braces"),
        ("l: {{ label|upper }} t: {{ text }}", "not a plain template"),
        ("l: {{ label }} t: {{ text }}{% if a %}", "not a plain template"),
        ("l: {{ lable }} t: {{ text }}", "unknown slot 'lable'"),
    ],
)
def test_templates_that_cannot_be_turned_around(template, what):
    with pytest.raises(ConfigError, match=what) as caught:
        SampleFormat(template)
    assert all(problem.path == "format" for problem in caught.value.problems)


def test_labels_that_cannot_be_told_apart_or_written():
    form = SampleFormat(LINE)
    assert not label_problems(form, LABELS)
    assert "empty" in label_problems(form, ["a", " "])[0]
    assert "twice" in label_problems(form, ["a  b", "a b"])[0]
    assert "lines" in label_problems(form, ["a\nb"])[0]
    assert "words of the format" in label_problems(form, ["my text: x"])[0]


def test_reading_takes_time_in_proportion():
    form, started = SampleFormat(NEWS), time.perf_counter()
    for piece in ("- ", ".\n", "- <Category>: a", "\n" * 9, "- <Category>: a.\n- <News>: "):
        form.parse(piece * (200_000 // len(piece)), LABELS)
    assert time.perf_counter() - started < 5


def test_letters_encoded_in_two_ways_are_the_same_label():
    assert Labels(["caf\u00e9"]).find("Cafe\u0301.") == "caf\u00e9"
    assert "stands twice" in label_problems(None, ["caf\u00e9", "cafe\u0301"])[0]


def test_a_very_long_answer_is_read_in_linear_time():
    answer = "label: 1 text: hello there you\n" * 20_000
    start = time.perf_counter()
    assert len(SampleFormat(LINE).parse(answer, ["1"]).samples) == 20_000
    assert time.perf_counter() - start < 3


def test_json_numbers_of_any_kind_are_labels_as_they_are_listed():
    listed = Labels(["1000000", "12345678", "0.5", "nan"])
    answer = '{"samples": [{"label": 1000000.0, "text": "a"}, {"label": 12345678.0, "text": "b"}, {"label": 0.5, "text": "c"}]}'
    assert [label for label, _ in pairs(parse_json(answer, listed))] == ["1000000", "12345678", "0.5"]
    wrong = (
        '[{"label": ["0.5"], "text": "a"}, {"label": "0.5", "text": NaN}, {"label": Infinity, "text": "a"}, {"label": null}]'
    )
    found = parse_json(wrong, listed)
    assert not found.samples
    assert [one.reason for one in found.rejected] == ["no-label", "no-text", "unknown-label", "no-label"]

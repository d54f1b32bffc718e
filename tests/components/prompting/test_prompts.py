# SPDX-License-Identifier: Apache-2.0
"""Prompts as tokens: what is frozen, what stays when a word changes, what a document from elsewhere may not do."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from osmotic.components.prompting.prompts import Prompt, Token
from osmotic.components.templates import compile_template
from osmotic.schemas.errors import ConfigError, DataError

ROW = {"text": "Rain  {all} day", "title": "n\u00e9"}
PIECES = st.sampled_from([
    "Is", "it's", "good", "Good", "very-good", ",", "?", " ", "  ", "\n", "\t", "{{ text }}", "{{text|upper}}", "[[ Answer: ]]",
    "[[{{ title }} of]]", "[[un]]", "{ ", "}", "%", "#", "h\u00e4", "\u4f60\u597d", "e\u0301", "\U0001f600", "_", "3.5",
])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)


def parsed(text):
    """The prompt, or None where the pieces happen to make no template."""
    try:
        return Prompt.parse(text, ["good", "bad"])
    except ConfigError:
        return None


def test_what_is_frozen():
    prompt = Prompt.parse("Is it GOOD,\n or goods? [[In {{ title }}:]] {{ text|upper }} now", ["good"])
    frozen = [token.text for token in prompt.tokens if token.frozen]
    assert frozen == ["GOOD", "In {{ title }}:", "{{ text|upper }}"]
    assert [prompt.tokens[i].text for i in prompt.free] == ["Is", "it", ",", "or", "goods", "?", "now"]
    assert prompt.slots == {"title", "text"}


def test_a_label_of_two_words_is_one_token():
    prompt = Prompt.parse("say very  good or good", ["good", "very good"])
    assert [token.text for token in prompt.tokens if token.frozen] == ["very  good", "good"]


@given(TEXTS)
@settings(max_examples=100, deadline=None)
def test_the_template_renders_as_it_was_written(text):
    prompt = parsed(text)
    if prompt is not None:
        plain = text.replace("[[", "").replace("]]", "")
        assert compile_template(prompt.template).render(ROW) == compile_template(plain).render(ROW)
        assert prompt.template == plain


@given(TEXTS, st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["fine", "-", "%", "#", "(", "'"])), max_size=8))
@settings(max_examples=100, deadline=None)
def test_words_that_change_change_nothing_else(text, changes):
    start = prompt = parsed(text)
    if start is None or not start.free:
        return
    for at, word in changes:
        prompt = prompt.replaced(prompt.free[at % len(prompt.free)], word)
    assert prompt.skeleton == start.skeleton and prompt.free == start.free and prompt.slots == start.slots
    assert compile_template(prompt.template).render(ROW)
    if prompt.tokens[0].text:
        again = Prompt.of_json(prompt.to_json())
        assert again == prompt and again.template == prompt.template
    back = prompt
    for at in start.free:
        back = back.replaced(at, start.tokens[at].text)
    assert back == start
    for at in prompt.free:
        assert prompt.masked(at).count("[MASK]") == 1 and "{{" not in prompt.masked(at)
        assert prompt.masked(at, 1).count("[MASK]") == 1


def test_two_words_never_become_one():
    prompt = Prompt.parse("it's so")
    assert prompt.replaced(1, "was").template == "it was s so"
    assert prompt.replaced(1, "was").replaced(1, "'").template == "it's so"


def test_masks():
    prompt = Prompt.parse("Is it {{ text|upper }} [[{{ title }}]]?")
    assert prompt.masked(1) == "Is [MASK] text title?"
    assert prompt.masked(1, 1) == "Is [MASK] text"
    assert prompt.masked(0, 0) == "[MASK]"
    odd = Prompt((Token("["), Token("MASK"), Token("]"), Token("so", " ")))
    assert odd.masked(3) == "MASK [MASK]"


@pytest.mark.parametrize(("text", "says"), [
    ("say [[ it {{ text }}", "not closed"), ("say it ]] {{ text }}", "not opened"), ("{{ text ", "not a valid template"),
    ("{% if text %}x{% endif %}", "not a valid template"), ("fill [MASK] {{ text }}", "masked model fills in"),
])  # fmt: skip
def test_bad_texts(text, says):
    with pytest.raises(ConfigError, match=says) as raised:
        Prompt.parse(text, path="task.prompt")
    assert raised.value.problems[0].path == "task.prompt"


def test_a_word_may_not_break_out():
    prompt = Prompt.parse("say {{ text }}")
    for word in ("{{", "a b", "", "\x00", "{%", "a\u2028"):
        with pytest.raises(ValueError, match="no word"):
            prompt.replaced(0, word)
    with pytest.raises(ValueError, match="frozen"):
        prompt.replaced(1, "fine")


def spoilt(**changes):
    data = copy.deepcopy(Prompt.parse("say it {{ text }} now").to_json())
    for place, value in changes.items():
        name, _, key = place.partition("__")
        data["tokens"][int(name[1:])][key] = value
    data["template"] = "".join(f"{t['glue']}{t['text']}" for t in data["tokens"] if isinstance(t["text"], str))
    return data


@pytest.mark.parametrize(("data", "path"), [
    ([], "prompt"), ({"tokens": []}, "prompt"), ({"tokens": ["say"]}, "prompt.tokens[0]"),
    (spoilt(t0__text="{{ label }}"), "prompt.tokens[0]"), (spoilt(t1__text="a b"), "prompt.tokens[1]"),
    (spoilt(t1__text=""), "prompt.tokens[1]"), (spoilt(t1__glue="x"), "prompt.tokens[1]"),
    (spoilt(t1__more=1), "prompt.tokens[1]"),
    (spoilt(t3__frozen=1), "prompt.tokens[3]"), (spoilt(t2__text=7), "prompt.tokens[2]"),
    ({**spoilt(), "template": "say it {{ label }} now"}, "prompt.template"), (spoilt(t2__text="{{ text"), "prompt"),
])  # fmt: skip
def test_a_malformed_document_is_located(data, path):
    with pytest.raises(DataError) as raised:
        Prompt.of_json(data)
    assert raised.value.problems[0].path == path


def test_a_slot_that_is_put_together_of_tokens_is_refused():
    tokens = [Token("{{", "", True), Token("label", " "), Token("}}", " ", True)]
    prompt = Prompt(tuple(tokens))
    assert prompt.slots == {"label"}
    with pytest.raises(DataError, match="one frozen token"):
        Prompt.of_json(prompt.to_json())

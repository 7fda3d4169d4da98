from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.skeletons import Skeletons, copies_contents
from prefopt.data.templates import BUILT_IN
from prefopt.records import Message
from tests.unit.data.test_templates import byte_level

QWEN = (
    "{%- if messages[0]['role'] == 'system' %}{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant'"
    " and not message.tool_calls) %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + '<|eot|>' %}"
    "{% if loop.index0 == 0 %}{% set content = eos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}"
)
STRICT = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ message['content'] }}{{ eos_token }}{% endfor %}"
)
COPYING = {**BUILT_IN, "qwen": QWEN, "llama": LLAMA, "strict": STRICT}
OPAQUE = {
    "asks": "{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %}{% endfor %}",
    "looks": "{% for m in messages %}{{ 'x' if '</think>' in m.content else m.content }}{% endfor %}",
    "splits": "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "compares": "{% set s = messages[0].content %}{% if s != 'a' %}{{ s }}{% endif %}",
    "measures": "{{ messages[0].content | length }}",
    "upper": "{{ messages[0].content | upper }}",
    "trims a sum": "{{ (messages[0].content + ' ') | trim }}",
    "by a name": "{% set key = 'content' %}{% if messages[0][key] %}x{% endif %}",
    "by a sum": "{% if messages[0]['con' ~ 'tent'] %}x{% endif %}",
    "whole": "{{ messages[0] }}",
    "json": "{{ messages | tojson }}",
    "the one before": "{% for m in messages %}{% if loop.previtem.content %}x{% endif %}{% endfor %}",
    "changed": "{% for m in messages %}{% if loop.changed(m.content) %}x{% endif %}{% endfor %}",
    "selects": "{{ (messages | selectattr('content', 'equalto', 'a') | list) | length }}",
    "collects": "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = m.content %}{% endfor %}{{ ns.t }}",
    "late": "{% for m in messages %}{% if seen %}x{% endif %}{% set seen = m.content %}{% endfor %}",
    "clock": "{{ strftime_now('%S') }}{{ messages[0].content }}",
    "says": "{{ raise_exception('not ' + messages[0].content) }}",
    "macro": "{% macro f(m) %}{{ m.content }}{% endmacro %}{{ f(messages[0]) }}",
    "block": "{% set t %}{{ messages[0].content }}{% endset %}{% if t %}x{% endif %}",
    "no template": "{% if %}",
}  # fmt: skip
contents = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(
    [" a ", "{{ x }}", "\u2003"]
)
roles = st.sampled_from(["system", "user", "assistant"])


@pytest.mark.parametrize("name", COPYING)
def test_templates_that_only_copy_contents_are_known(name):
    assert copies_contents(COPYING[name])


@pytest.mark.parametrize("name", OPAQUE)
def test_templates_that_look_at_contents_or_at_the_clock_are_not(name):
    assert not copies_contents(OPAQUE[name])


@pytest.mark.parametrize("name", COPYING)
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_what_is_copied_is_what_the_tokenizer_renders(name, data):
    """Every conversation, or none: a template that refuses the roles is asked again and says why."""
    tokenizer = byte_level()
    tokenizer.chat_template = COPYING[name]
    asked = []

    def render(messages, generate):
        asked.append(messages)
        turns = [{"role": message.role, "content": message.content} for message in messages]
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generate)

    skeletons = Skeletons(tokenizer.chat_template, render)
    shape = data.draw(st.lists(roles, min_size=1, max_size=4))
    generate = data.draw(st.booleans())
    known = None
    for _ in range(3):
        messages = [Message(role, data.draw(contents)) for role in shape]
        found = skeletons.render(messages, generate=generate)
        if name == "strict" and shape != ["user", "assistant"] * (len(shape) // 2) + ["user"] * (len(shape) % 2):
            refuses = any((role == "user") != (index % 2 == 0) for index, role in enumerate(shape))
            assert (found is None) == refuses
        else:
            assert found is not None
        if found is not None:
            assert found == render(messages, generate)
        known = known or len(asked)
    assert skeletons.render(messages, generate=generate) == found


def test_one_template_is_asked_twice_for_all_conversations_of_the_same_roles():
    asked = []

    def render(messages, generate):
        asked.append(messages)
        return "".join(f"<{message.role}>{message.content}" for message in messages)

    skeletons = Skeletons(BUILT_IN["plain"], render)
    for number in range(100):
        messages = [Message("user", f" {number} "), Message("assistant", "x")]
        assert skeletons.render(messages, generate=False) == f"<user> {number} <assistant>x"
    assert len(asked) == 2


def test_a_renderer_that_does_otherwise_than_the_template_is_not_believed():
    """A tokenizer may render conversations in a way of its own."""
    skeletons = Skeletons(BUILT_IN["plain"], lambda messages, generate: messages[0].content.upper())
    assert skeletons.render([Message("user", "a")], generate=True) is None
    assert Skeletons(None, lambda messages, generate: "").render([Message("user", "a")], generate=True) is None

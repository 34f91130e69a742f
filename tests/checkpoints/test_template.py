"""Chat templates: what they may use, and what is refused them."""

import pytest

from dynscaling_jax.checkpoints.template import Template, check_read
from dynscaling_jax.types import Message


def user(text: str) -> Message:
    return Message("user", text)


CHAT = [Message("system", "s"), user("\u00e9"), Message("assistant", "<b>")]


def render(text: str, prompt: bool = True, **variables) -> str:
    return Template(text, variables).render(CHAT, prompt)


HOSTILE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__init__.__globals__ }}",
    "{{ raise_exception.__globals__['__builtins__'] }}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ (''|attr('__class__')).mro() }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages[0].clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ open('/etc/passwd') }}",
    "{{ 1 / 0 }}",
    "{{ messages[7].content }}",
    "{{ messages + 1 }}",
    "{{ raise_exception('roles must alternate') }}",
    "{{ strftime_now.__globals__.json }}",
    "{{ strftime_now.__closure__[0].cell_contents }}",
    "{{ dict.__base__.__subclasses__() }}",
    "{{ dict.mro() }}",
    "{{ namespace().__init__.__globals__ }}",
    "{{ strftime_now(1) }}",
    "{{ 1e400 | int }}",
    "{{ lipsum() }}",
    "{{ messages | random }}",
    "{{ messages | tojson(separators=1) }}",
    "{{ messages | tojson(default=raise_exception) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
)


@pytest.mark.parametrize("template", HOSTILE)
def test_a_hostile_or_failing_template_is_refused(template):
    messages = [user("hi")]
    with pytest.raises(ValueError, match="chat template: "):
        Template(template, {}).render(messages)
    assert messages == [user("hi")]


UNREADABLE = (
    "{% if %}",
    "{{ a",
    "{% nonsense %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{{ " + "(" * 5000 + " }}",
    "{% for i in range(2) %}" * 30 + "{% endfor %}" * 30,
)


@pytest.mark.parametrize("template", UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_template_that_does_not_parse_is_refused(template):
    with pytest.raises(ValueError, match="chat template: "):
        Template(template, {})


# What transformers offers


def test_blocks_leave_no_lines():
    template = (
        "{{ bos_token }}\n"
        "{% for m in messages %}\n"
        "  {% if loop.index > 1 %}{% break %}{% endif %}\n"
        "{{ m | tojson }}{% endfor %}"
    )
    text = render(template, bos_token="<s>")
    assert text == '<s>\n{"role": "system", "content": "s"}'


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ("", '{"b": ["\u00e9", "<"], "a": 1}'),
        ("ensure_ascii=true", '{"b": ["\\u00e9", "<"], "a": 1}'),
        ("separators=(',', ':')", '{"b":["\u00e9","<"],"a":1}'),
        ("sort_keys=True", '{"a": 1, "b": ["\u00e9", "<"]}'),
        ("indent=1", '{\n "b": [\n  "\u00e9",\n  "<"\n ],\n "a": 1\n}'),
    ],
)
def test_json(options, text):
    template = f"{{{{ {{'b': ['\u00e9', '<'], 'a': 1}} | tojson({options}) }}}}"
    assert render(template) == text


PARTS = (
    "{% for m in messages %}[{{ m.role }}]"
    "{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def test_a_template_that_reads_parts_of_contents_is_given_parts():
    """Those of models of images: of a text each letter was a part that is no
    text, and the prompt was empty, without a word."""
    assert render(PARTS) == "[system]s[user]\u00e9[assistant]<b>"
    both = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
        "{% else %}parts{% endif %}{% endfor %}"
    )
    assert render(both) == "s\u00e9<b>"


def test_what_is_absent_is_so_in_transformers_too():
    template = (
        "{{ tools is none }} {{ documents is none }} {{ bos_token is defined }}"
        " {{ enable_thinking is defined }} {{ enable_thinking | default(7) }}"
    )
    assert render(template) == "True True False False 7"
    asked = render(template, bos_token="<s>", enable_thinking=False)
    assert asked == "True True True True False"


def test_a_prompt_opens_the_turn_of_the_assistant():
    template = (
        "{{ messages | length }}{% if add_generation_prompt %}>{% endif %}"
    )
    assert (render(template), render(template, prompt=False)) == ("3>", "3")


def test_generation_marks_a_scope():
    template = (
        "{% set x = 1 %}{% for m in messages %}"
        "{%- if m.role == 'assistant' %}{%- generation -%}"
        " {{ m.content }}{% set x = 2 %}{%- endgeneration %}"
        "{% else %}{{ m.role }},{% endif %}{% endfor %} {{ x }}"
    )
    assert render(template) == "system,user,<b> 1"


def test_namespaces_and_dictionaries():
    template = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
        "{{ dict(a=1) | items | list }}{{ messages[1:][0].content.upper() }}"
    )
    assert render(template) == "3[('a', 1)]\u00c9"


# The date


def test_a_date_stands_still():
    """A run that goes on tomorrow, or a comparison next year, has the
    prompts that it began with."""
    template = "{{ strftime_now('%d %b %Y') }}|{{ strftime_now('%H:%M') }}"
    assert render(template) == "26 Jul 2024|00:00"
    assert render(template, today="2031-01-02") == "02 Jan 2031|00:00"
    asks = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% endif %}"
    assert render(asks) == "2024"


@pytest.mark.parametrize("today", ["tomorrow", "", 20240726, None])
def test_a_date_that_is_none_is_refused(today):
    with pytest.raises(ValueError, match="expected a date such as"):
        Template("", {"today": today})


# Variables of a user


def test_variables_must_be_read():
    template = (
        "{% if enable_thinking is defined %}a{% endif %}"
        "{% set mine = 1 %}{{ mine }}{{ strftime_now('%Y') }}"
    )
    check_read(template, ["enable_thinking", "today"])
    with pytest.raises(ValueError, match="'enable_thinkin'; it reads: enable"):
        check_read(template, ["enable_thinkin"])
    for name in ("mine", "messages", "strftime_now"):
        with pytest.raises(ValueError, match="reads no variable"):
            check_read(template, [name])
    with pytest.raises(ValueError, match="it reads: none"):
        check_read("{{ messages }}", ["today"])

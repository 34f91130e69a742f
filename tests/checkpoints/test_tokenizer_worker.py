"""Templates and tokenizers that take all memory, or never end.

The worker has a tenth of its limits here, so that the tests are quick.
"""

import json
import os
import signal
import time

import pytest
from tokenizers import Regex, decoders, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from dynscaling_jax.checkpoints import tokenizer as tokenizers
from dynscaling_jax.types import Message

HI = [Message("user", "hi " + 40 * "a")]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(tokenizers, "SECONDS", 0.5)
    monkeypatch.setattr(tokenizers, "LOADING", 1.0)


@pytest.fixture
def refused(quick, byte_tokenizer):
    """Expects that a template or a tokenizer is refused, in bounded time."""

    def check(message, text=None, template=None):
        begin = time.monotonic()
        with pytest.raises(ValueError, match=message) as caught:
            made = tokenizers.from_json(
                text or byte_tokenizer.as_json(), template
            )
            made.decode(made.encode_chat(HI))
        assert "\n" not in str(caught.value)
        assert time.monotonic() - begin < 60

    return check


LATE = "more than its limit of processor time"
FULL = "it needs more than its limit of memory"
TEMPLATES = {
    # Memory: each of these once took as many gigabytes as it names.
    "{{ 'x' * 10 ** 10 }}": FULL,
    "{{ 10 ** 10 * [1] }}": FULL,
    "{{ '%9999999999d' % 1 }}": FULL,
    "{{ '{:>9999999999}'.format(1) }}": FULL,
    "{{ 'x' | center(9999999999) }}": FULL,
    "{{ 'x'.ljust(9999999999) }}": FULL,
    "{{ ('x' * 100000).replace('x', 'x' * 100000) }}": FULL,
    "{{ ('\t' * 1000).expandtabs(100000000) }}": FULL,
    "{{ [1] | tojson(indent=1000000000000) }}": FULL,
    "{{ 'x' | list | batch(1000000000, 'x') | list }}": FULL,
    # Time. In one operation, and in many.
    "{{ 9 ** (9 ** 9) }}": LATE,
    "{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}": LATE,
    # Either, by the speed of the machine.
    "{{ (['x' * 1000000] * 100000) | join('x') }}": f"{FULL}|{LATE}",
    "{% set ns = namespace(t='x') %}{% for i in range(50) %}"
    "{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}": f"{FULL}|{LATE}",
    # What it writes, the parent would have to read.
    "{{ 'x' * 20000000 }}": "writes 20000000 characters; expected 16777216",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}": "recursion",
}


@pytest.mark.parametrize("template", TEMPLATES, ids=range(len(TEMPLATES)))
def test_a_template_that_takes_everything_is_refused(refused, template):
    refused(TEMPLATES[template], template=template)


def doubling(step):
    return [step] * 45


DECODER = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
TOKENIZERS = {
    "a normalizer that doubles": (
        lambda b: setattr(
            b,
            "normalizer",
            normalizers.Sequence(doubling(normalizers.Replace("a", "aa"))),
        ),
        f"{LATE}|aborted",
    ),
    "a pattern that panics": (
        lambda b: setattr(b, "normalizer", normalizers.Replace("", "aaaa")),
        "PanicException",
    ),
    "a pattern that goes back and forth": (
        lambda b: setattr(
            b,
            "pre_tokenizer",
            pre_tokenizers.Split(Regex("(a+)+b"), "isolated"),
        ),
        f"{LATE}|retry-limit",
    ),
    "a decoder that doubles": (
        {"decoder": {"type": "Sequence", "decoders": doubling(DECODER)}},
        f"{LATE}|aborted",
    ),
    "a decoder that panics": (
        lambda b: setattr(b, "decoder", decoders.Strip("a", 10**9, 10**9)),
        "PanicException",
    ),
    "a map of characters that leads outside of itself": (
        {
            "normalizer": {
                "type": "Precompiled",
                "precompiled_charsmap": "AAAA////",
            }
        },
        "aborted",
    ),
    "half a character": ('{"version": "\\ud800"', "not a tokenizer"),
    "a file nested 100,000 deep": ('{"a":' * 100_000, "not a tokenizer"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_that_takes_everything_is_refused(
    refused, byte_tokenizer, name
):
    change, message = TOKENIZERS[name]
    text = byte_tokenizer.as_json()
    if isinstance(change, str):
        text = change
    elif isinstance(change, dict):
        text = json.dumps({**json.loads(text), **change})
    else:
        backend = Backend.from_str(text)
        change(backend)
        text = backend.to_str()
    refused(message, text)


def test_the_worker_is_started_again_after_a_fault(quick, byte_tokenizer):
    """One question can bring a template to its end; others must not lose
    their prompts by it."""
    template = (
        "{% if 'bomb' in messages[0].content %}"
        "{{ 9 ** (9 ** (9 * messages | length)) }}"
        "{% endif %}{{ messages[0].content }}"
    )
    made = tokenizers.from_json(byte_tokenizer.as_json(), template)
    for _ in range(2):
        with pytest.raises(ValueError, match=LATE):
            made.encode_chat([Message("user", "bomb")])
        assert made.render(HI) == HI[0].content


def test_a_worker_that_was_killed_is_named(byte_tokenizer):
    made = tokenizers.from_json(byte_tokenizer.as_json())
    (process,) = made._worker._running
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match="process was ended by SIGKILL"):
        made.encode("a")
    assert made.encode("a") == byte_tokenizer.encode("a")


def test_the_file_and_the_line_are_named(tmp_path, byte_tokenizer):
    (tmp_path / "tokenizer.json").write_text(byte_tokenizer.as_json())
    file = tmp_path / "chat_template.jinja"
    for text, message in (
        ("a\n{% if %}", f"{file}: chat template: line 2: Expected"),
        ("a\n\n{{ messages[9].content }}", "line 3: list object has no"),
        ("{{ 'a'\n * 10 ** 10 }}", f"{file}: chat template: line 1: it needs"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError) as caught:
            tokenizers.from_directory(tmp_path).render(HI)
        assert message in str(caught.value)


def test_no_worker_is_left_behind(byte_tokenizer):
    made = tokenizers.from_json(byte_tokenizer.as_json())
    (process,) = made._worker._running
    del made
    assert process.wait(10) == -signal.SIGKILL


def test_a_request_costs_little(byte_tokenizer):
    """A tenth of this, on an idle machine."""
    byte_tokenizer.encode_chat(HI)
    begin = time.monotonic()
    for _ in range(100):
        byte_tokenizer.encode_chat(HI)
    assert (time.monotonic() - begin) / 100 < 5e-3

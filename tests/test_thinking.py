"""Which part of a text is for the reader, family by family."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from dynscaling_jax.checkpoints.tokenizer import from_json
from dynscaling_jax.thinking import (
    Thinking,
    ending,
    find,
    named,
    thought,
    unfinished,
    visible,
)
from dynscaling_jax.types import Message

ASK = (Message("user", "What is 17 + 25?"),)


def chat(head: str, tail: str, prompt: str, first: str = "") -> str:
    """A chat template: what stands around a turn, and what ends a prompt."""
    return (
        f"{first}{{% for m in messages %}}{head}{{{{ m.content }}}}{tail}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{prompt}{{% endif %}}"
    )


CHATML = ("<|im_start|>{{ m.role }}\n", "<|im_end|>\n", "<|im_start|>")
TURN = CHATML[2] + "assistant\n"
HEADER = "<|start|>{{ m.role }}<|message|>"
HARMONY = chat(
    "{% if m.role == 'assistant' %}<|start|>assistant<|channel|>final"
    f"<|message|>{{% else %}}{HEADER}{{% endif %}}",
    "<|end|>",
    "<|start|>assistant",
)
ANALYSIS, FINAL = (
    f"<|channel|>{name}<|message|>" for name in ("analysis", "final")
)
AGAIN, TO_FINAL = (
    f"<|end|><|start|>assistant{channel}" for channel in (ANALYSIS, FINAL)
)

# family: template, control tokens, other added tokens, variables, and texts
# as the model writes them with what is visible of each; None is unfinished
FAMILIES = {
    "no thoughts": (
        chat(*CHATML[:2], TURN),
        ("<|im_start|>", "<|im_end|>"),
        (),
        {},
        {
            "17 + 25 = 42.": "17 + 25 = 42.",
            # a model that is told to think out loud in tags does so too
            "<think>36?</think>42": "42",
            "<think>\nFirst guess: the answer is 36. But wait": None,
            "Here is my thought process: 7 + 5 = 12": (
                "Here is my thought process: 7 + 5 = 12"
            ),
        },
    ),
    "Qwen3": (
        chat(
            *CHATML[:2],
            TURN + "{% if enable_thinking is defined and not enable_thinking"
            " %}<think>\n\n</think>\n\n{% endif %}",
        ),
        ("<|im_start|>", "<|im_end|>"),
        ("<think>", "</think>"),
        {},
        {
            "<think>\n36?\n</think>\n\n42": "42",
            "<think>\n36? But wait": None,
            "42": "42",
        },
    ),
    "Qwen3, not to think": (
        chat(
            *CHATML[:2],
            TURN + "{% if enable_thinking is defined and not enable_thinking"
            " %}<think>\n\n</think>\n\n{% endif %}",
        ),
        ("<|im_start|>", "<|im_end|>"),
        ("<think>", "</think>"),
        {"enable_thinking": False},
        {"The answer is 42": "The answer is 42"},
    ),
    "DeepSeek-R1, QwQ, Qwen3 Thinking": (
        chat("<|{{ m.role }}|>", "", "<|assistant|><think>\n"),
        ("<|user|>", "<|assistant|>"),
        ("<think>", "</think>"),
        {},
        {
            "36? No.\n</think>\n\n42": "42",
            "36? No, the answer is 36. But wait": None,
            "<think>36? No.</think>42": "42",  # and again, in its own words
        },
    ),
    "DeepSeek-V3.1, not to think": (
        chat("<|{{ m.role }}|>", "", "<|assistant|></think>"),
        ("<|user|>", "<|assistant|>"),
        ("<think>", "</think>"),
        {},
        {"42": "42"},
    ),
    "Nemotron, told by a word of the question": (
        chat(
            "<S>{{ m.role }}\n",
            "\n",
            "<S>Assistant\n{% if '17' in messages[-1].content %}"
            "<think></think>{% else %}<think>\n\n{% endif %}",
        ),
        ("<S>",),
        (),
        {},
        {"42": "42"},
    ),
    "Magistral": (
        chat("[INST]", "[/INST]", "", "[SYSTEM_PROMPT]First [THINK]draft"),
        ("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[THINK]", "[/THINK]"),
        (),
        {},
        {"[THINK]36?[/THINK]42": "42", "[THINK]36? But wait": None},
    ),
    "Command A": (
        chat("<|U|>", "<|E|>", "<|C|><|START_THINKING|>"),
        (
            *("<|U|>", "<|E|>", "<|C|>", "<|START_THINKING|>"),
            *("<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
        (),
        {},
        {
            "36?<|END_THINKING|><|START_RESPONSE|>42<|END_RESPONSE|>": "42",
            "the answer is 36. But": None,
        },
    ),
    "Seed-OSS": (
        chat("<seed:bos>{{ m.role }}\n", "<seed:eos>", "<seed:bos>assistant\n"),
        ("<seed:bos>", "<seed:eos>", "<seed:think>", "</seed:think>"),
        (),
        {},
        {
            "<seed:think>36?</seed:think>\n42": "42",
            # a tag of another name does not end it
            "<seed:think><think>36</think>, or": None,
        },
    ),
    "Kimi-VL": (
        chat(*CHATML[:2], TURN),
        ("<|im_start|>", "<|im_end|>"),
        (),
        {},
        {
            "\u25c1think\u25b736?\u25c1/think\u25b742": "42",
            "\u25c1think\u25b736?": None,
        },
    ),
    "gpt-oss": (
        HARMONY,
        (
            *("<|start|>", "<|end|>", "<|message|>", "<|channel|>"),
            *("<|constrain|>", "<|return|>", "<|call|>"),
        ),
        (),
        {},
        {
            f"{ANALYSIS}36?{TO_FINAL}42": "42",
            f"{ANALYSIS}36?{AGAIN}or 7{TO_FINAL}42": "42",
            f"{FINAL}42": "42",
            f"{ANALYSIS}the answer is 36. But wait": None,
            f"{ANALYSIS}36?<|end|><|start|>assistant": None,
            f"{ANALYSIS}36?<|end|><|start|>assistant<|channel|>final": None,
            "<|channel|>commentary to=functions.add <|constrain|>json"
            "<|message|>36": None,
        },
    ),
    "Gemma 4, not to think": (
        chat(
            "<S>{{ m.role }}\n",
            "<E>",
            "<S>model\n<|channel>thought\n<channel|>",
        ),
        ("<S>", "<E>", "<|channel>", "<channel|>"),
        (),
        {},
        {
            "42": "42",
            "<|channel>thought\n36?<channel|>42": "42",
            "<|channel>thought\n36?": None,
        },
    ),
    "Kimi K3": (
        chat(
            "<|open|>message role=\"{{ m.role }}\"<|sep|>",
            "<|close|>message<|sep|>",
            "<|open|>message role=\"assistant\"<|sep|><|open|>think<|sep|>",
        ),
        ("<|open|>", "<|close|>", "<|sep|>"),
        (),
        {},
        {
            "36?<|close|>think<|sep|><|open|>response<|sep|>42": "42",
            "the answer is 36. But": None,
        },
    ),
    "Granite 3": (
        chat(
            "<|{{ m.role }}|>",
            "",
            "<|assistant|>",
            "Write your thoughts after 'Here is my thought process:' and the "
            "answer after 'Here is my response:'.",
        ),
        ("<|user|>", "<|assistant|>"),
        (),
        {},
        {
            "Here's my thought process: 36? Here's my response: 42": "42",
            "Here is my thought process: the answer is 36. But": None,
        },
    ),
    "Apriel": (
        chat(
            "<|{{ m.role }}|>",
            "",
            "<|assistant|>Here are my reasoning steps:\n",
            "Respond after [BEGIN FINAL RESPONSE].\n",
        ),
        ("<|user|>", "<|assistant|>"),
        (),
        {},
        {
            "36?\n[BEGIN FINAL RESPONSE]\n42": "42",
            "the answer is 36. But": None,
        },
    ),
}  # fmt: skip


def of_family(name, byte_tokenizer):
    template, control, other, variables, _ = FAMILIES[name]
    backend = Backend.from_str(byte_tokenizer.as_json())
    backend.add_special_tokens([AddedToken(t, special=True) for t in control])
    backend.add_tokens([AddedToken(t, special=False) for t in other])
    return from_json(backend.to_str(), template, variables)


@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, byte_tokenizer):
    """<think> 36? But wait: the answer was 36, and it had a vote. Where marks
    are control tokens they were not even in the text."""
    tokenizer = of_family(name, byte_tokenizer)
    how = tokenizer.thinking
    for written, shown in FAMILIES[name][4].items():
        text = tokenizer.decode(tokenizer.encode(written))
        assert visible(text, how, how.turn_start(ASK)) == shown, written


@pytest.mark.parametrize("name", FAMILIES)
def test_endpoints_tell_by_their_texts(name):
    """No template, and the control tokens are there or were taken out; what
    began in the prompt shows by its end alone."""
    told = {"Granite 3", "Apriel"}  # ordinary words, for who knows nothing
    for written, shown in FAMILIES[name][4].items():
        if name not in told and shown != visible(written):
            assert shown is None and "the answer is 36" in written
    bare = "analysisThe answer is 36? No.assistantfinalThe answer is 42."
    assert visible(bare) == "The answer is 42."
    assert visible("analysisThe answer is 36? No") is None


def test_a_prompt_may_depend_on_the_question(byte_tokenizer):
    how = of_family(
        "Nemotron, told by a word of the question", byte_tokenizer
    ).thinking
    assert visible("42", how, how.turn_start(ASK)) == "42"
    other = (Message("user", "What is 5 + 5?"),)
    assert visible("10", how, how.turn_start(other)) is None


def test_a_turn_that_goes_on_within_a_thought(byte_tokenizer):
    """Budget forcing makes the model think on; what is then cut off is an
    unfinished thought although it has no mark at all."""
    how = of_family("Qwen3", byte_tokenizer).thinking
    forced = (*ASK, Message("assistant", "<think>\n36?\n\nWait"))
    closed = (*ASK, Message("assistant", "<think>36?</think>So"))
    for asked in (
        how.turn_start,
        Thinking().turn_start,
    ):  # the messages suffice
        assert visible(", no: 41, or", how, asked(forced)) is None
        assert visible(", no.</think>42", how, asked(forced)) == "42"
        assert visible("it is 42", how, asked(closed)) == "it is 42"


@pytest.mark.parametrize(
    ("name", "mark"),
    [("Magistral", "[THINK]"), ("gpt-oss", ANALYSIS), ("Qwen3", "<think>")],
)
def test_the_assistants_turn_may_begin_with_a_thought(
    name, mark, byte_tokenizer
):
    """Control tokens within a turn are broken, but for the marks of a thought
    that the model is made to go on with."""
    tokenizer = of_family(name, byte_tokenizer)
    turn = Message("assistant", f"{mark}36?<|end|>[INST]<|im_start|> Wait")
    text = tokenizer.render([*ASK, turn])
    words = text.partition("17 + 25?")[2]
    assert mark in words and words.endswith(" Wait")
    ids = tokenizer.encode(words.partition("36?")[2])
    backend = Backend.from_str(tokenizer.as_json())
    assert not {backend.token_to_id(t) for t in FAMILIES[name][1]} & {*ids}


def test_a_turn_of_gpt_oss_has_a_channel(byte_tokenizer):
    """What is no message, without a header, is not what the model was trained
    to go on with."""
    tokenizer = of_family("gpt-oss", byte_tokenizer)
    turn = Message("assistant", "I try again.")
    text = tokenizer.render([*ASK, turn])
    assert text.endswith(f"<|start|>assistant{FINAL}I try again.")
    how = tokenizer.thinking
    assert (
        visible("It is 42.", how, how.turn_start([*ASK, turn])) == "It is 42."
    )


def test_what_the_real_model_skips(smollm2):
    """Nothing of SmolLM2 marks a thought: its control tokens go as before."""
    tokenizer = smollm2.tokenizer
    assert find(tokenizer.template, tokenizer.added) == ()
    ids = tokenizer.encode("<|im_start|>It is 42.<|im_end|>\n<think>")
    assert tokenizer.decode(ids) == "It is 42.\n<think>"
    assert tokenizer.thinking.turn_start(ASK).endswith(
        "<|im_start|>assistant\n"
    )
    backend = Backend.from_str(tokenizer.as_json())
    assert tokenizer.decode(ids) == backend.decode(ids)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a</think>b</think>c", "c"),  # the last end counts
        ("a<think>b</think>c", "ac"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<think>a</think>b\n<think>c", None),
        ("Okay.\n<THINK>c", None),
        ("<Thinking>a</Thinking>b", "b"),
        ("<think>a<reasoning>b</reasoning>c", None),
        ("<reasoning>a</reasoning><answer>b</answer>", "<answer>b</answer>"),
        ("<think:open>a</think:open>b", "b"),
        ("<longcat_think>a</longcat_think>b", "b"),
        ("<thinks>a", "<thinks>a"),
        # words of a sentence
        ("why <think> is a tag", "why <think> is a tag"),
        ("the mark `<think>` is 7 long", "the mark `<think>` is 7 long"),
        ("x <think>", None),
        ("", ""),
    ],
)
def test_marks_in_a_text(text, shown):
    assert visible(text) == shown


def test_a_mark_that_is_named():
    end = Thinking(named("#end#"))
    assert visible("a#end#b", end) == "b"
    assert visible("<think>a", end) == "<think>a"
    assert visible("[THINK]a", Thinking(named("[/THINK]"))) is None
    assert visible("<plan>a", Thinking(named("</plan>"))) is None
    assert visible("<think>a</think>b", Thinking(named(""))) == (
        "<think>a</think>b"
    )


ENDS = {
    "no thoughts": "",
    "Qwen3": "</think>",
    "Qwen3, not to think": "</think>",
    "DeepSeek-R1, QwQ, Qwen3 Thinking": "</think>",
    "DeepSeek-V3.1, not to think": "</think>",
    "Nemotron, told by a word of the question": "</think>",
    "Magistral": "[/THINK]",
    "Command A": "<|END_THINKING|>",
    "Seed-OSS": "</seed:think>",
    "Kimi-VL": "",  # neither its tokens nor its template have marks here
    "gpt-oss": TO_FINAL,
    "Gemma 4, not to think": "<channel|>",
    "Kimi K3": "<|close|>think<|sep|><|open|>response<|sep|>",
    "Granite 3": "Here is my response:",
    "Apriel": "[BEGIN FINAL RESPONSE]",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_mark_that_ends_a_thought(name, byte_tokenizer):
    """Written behind an unfinished thought, it ends it."""
    tokenizer = of_family(name, byte_tokenizer)
    how, end = tokenizer.thinking, ENDS[name]
    assert how.end == end
    start = how.turn_start(ASK)
    for text, shown in FAMILIES[name][4].items():
        text = tokenizer.decode(tokenizer.encode(text))
        assert unfinished(text, how, start) == (shown is None)
        if shown is None and end:
            ids = tokenizer.encode(text) + tokenizer.encode(end)
            written = tokenizer.decode(ids)
            assert not unfinished(written, how, start)
            assert visible(f"{written}42", how, start) == "42"


def test_a_template_that_only_begins_a_thought():
    assert ending("{{ text }}<mm:think>\n", ()) == "</mm:think>"
    assert ending("{{ text }}", ("<s>", "</s>")) == ""
    assert ending("", ("[THINK]",)) == ""  # no guess


def test_a_thought_without_a_beginning_begins_with_the_turn():
    end = Thinking(named("#end#"))
    assert unfinished("a", end) and unfinished("", end)
    assert not unfinished("a#end#b", end)
    assert not unfinished("a", end, "x#end#")
    assert not unfinished("a", Thinking(named("")))
    assert not unfinished("a", Thinking(named("</plan>")))
    assert unfinished("<plan>a", Thinking(named("</plan>")))


@pytest.mark.parametrize(
    ("text", "begin", "inside"),
    [
        ("<think>a</think>b", "<think>", "a"),
        ("a</think>b", "", "a"),
        ("ab", "", "ab"),
        (f"{ANALYSIS}a{TO_FINAL}b", ANALYSIS, "a"),
        ("<think>a<reasoning>b</reasoning></think>c", "<think>",
         "a<reasoning>b</reasoning>"),
    ],
)  # fmt: skip
def test_thoughts(text, begin, inside):
    assert thought(text, Thinking()) == (begin, inside)


PIECES = st.sampled_from(
    [
        *("<think>", "</think>", "<seed:think>", "</seed:think>", "[THINK]"),
        *("[/THINK]", ANALYSIS, TO_FINAL, "<|channel>", "<channel|>"),
        *("\u25c1think\u25b7", "\u25c1/think\u25b7", " so ", "36", "\n", "."),
    ]
)


@settings(deadline=None)
@given(st.lists(PIECES), PIECES, st.lists(st.sampled_from([" so ", "36", "."])))
def test_an_unfinished_thought_is_never_visible(before, piece, after):
    """Whatever went before, what follows the beginning of a thought and has no
    end is hidden with all the rest."""
    text = "".join(before)
    shown = visible(text)
    if shown is not None:
        assert visible(shown) is not None
        if visible(f"{piece}x") is None:  # it begins a thought
            assert visible(f"{text}\n{piece}{''.join(after)}") is None


@pytest.mark.parametrize(
    "unit",
    [
        *("<think>", "</think>", "<think>a</think>", "[", "<|channel|>a"),
        *("<|end|>", "<|end|> ", " ", "<|end|><|start|>assistant", "a:", "<"),
        "analysis",
    ],
)
def test_long_texts_take_linear_time(unit):
    text = unit * (200_000 // len(unit))
    start = time.process_time()
    for one in (text, f"{text}x", f"x{text}"):
        visible(one)
        thought(one, Thinking())
    assert time.process_time() - start < 3

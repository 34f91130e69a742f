"""The real model against torch and transformers.

Skipped only where its package is not installed.
"""

import json

import numpy as np
import pytest

from dynscaling_jax.types import Message, Query, Request


@pytest.fixture(scope="module")
def golden(goldens):
    return json.loads((goldens / "smollm2.json").read_text("utf-8"))


def test_text_has_the_ids_of_transformers(smollm2, golden):
    for case in golden["texts"]:
        ids = smollm2.tokenizer.encode(case["text"])
        assert ids == case["ids"], case["text"]
        text = smollm2.tokenizer.decode(ids, skip_special=False)
        assert text == case["text"]


def test_chats_are_rendered_as_by_transformers(smollm2, golden):
    for case in golden["chats"]:
        turns = [Message(role, content) for role, content in case["turns"]]
        assert smollm2.tokenizer.render(turns) == case["text"]


def test_logits_equal_those_of_transformers(smollm2, goldens):
    golden = np.load(goldens / "smollm2.npz")
    logits = np.asarray(smollm2.logits(golden["ids"]))
    bound = 1e-4 * golden["largest"]
    top = np.take_along_axis(logits, golden["top_ids"], -1)
    assert np.abs(top - golden["top"]).max() < bound
    # Random sums over the vocabulary stand for the logits that are not kept.
    random = np.random.RandomState(golden["probe_seed"])
    random.randint(0, logits.shape[-1], golden["ids"].shape[1])
    probe = random.standard_normal((logits.shape[-1], 4)).astype("f")
    probes = logits @ probe / np.sqrt(len(probe))
    assert np.abs(probes - golden["probes"]).max() < bound


def test_greedy_text_equals_that_of_transformers(
    smollm2, golden, recording_engine
):
    cases = golden["greedy"]
    assert len(cases) == 10
    engine = recording_engine(
        smollm2,
        temperature=0,
        max_new_tokens=64,
        slots=len(cases),
        slots_per_group=1,
    )
    requests = []
    for at, case in enumerate(cases):
        messages = (Message("user", case["prompt"]),)
        requests.append(Request(Query(str(at), messages), messages, 0))
    samples = {int(s.query_id): s for s in engine.sample(requests)}
    for at, case in enumerate(cases):
        _, tokens = engine.recorded[str(at), 0]
        ids, sample = case["ids"], samples[at]
        assert tokens.token.tolist() == ids
        assert sample.text == smollm2.tokenizer.decode(ids)
        assert sample.new_tokens == len(ids)
        ended = ids[-1] in smollm2.config.eos_token_id
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(ids) == 64

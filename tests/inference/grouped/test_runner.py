"""Grouped decoding against plain full attention without a cache."""

import functools

import jax
import numpy as np
import pytest

from dynscaling_jax.checkpoints.tokenizer import from_json
from dynscaling_jax.inference.grouped import prefill
from dynscaling_jax.models import transformer
from dynscaling_jax.models.config import FULL, SLIDING
from dynscaling_jax.types import Message, Query, Request

LONGEST = 320  # tokens of the longest prompt and sample here


@functools.partial(jax.jit, static_argnums=1)
def plain_logprobs(params, config, ids):
    """Log-probabilities float32 [LONGEST, V] without a cache."""
    return jax.nn.log_softmax(transformer.Decoder(config, params)(ids))


def check_against_plain(engine) -> int:
    """Compares every sampled token; returns how many."""
    model, count = engine.model, 0
    for prompt, tokens in engine.recorded.values():
        ids = np.zeros(LONGEST, np.int32)
        ids_all = [*prompt, *tokens.token]
        ids[: len(ids_all)] = ids_all
        table = plain_logprobs(model.params, model.config, ids)
        rows = np.asarray(table)[len(prompt) - 1 : len(ids_all) - 1]
        chosen = np.take_along_axis(rows, tokens.token[:, None], 1)[:, 0]
        np.testing.assert_allclose(tokens.logprob, chosen, rtol=0, atol=1e-4)
        top = np.sort(rows, axis=1)[:, -20:].mean(1)
        np.testing.assert_allclose(tokens.confidence, -top, rtol=0, atol=1e-4)
        count += len(rows)
    return count


def query(name: str, length: int) -> Query:
    """length characters; the template adds 19 tokens."""
    text = "".join(chr(97 + (i * i + len(name)) % 26) for i in range(length))
    return Query(name, (Message("user", text),))


def requests(queries, count):
    return [Request(q, q.messages, i) for q in queries for i in range(count)]


MODELS = {
    "grouped": {"num_hidden_layers": 2},
    "full heads, tied": {
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "head_dim": 6,
    },
    # shorter than a sample, so that it passes from the prompt into the suffix
    "multi-query, window": {"num_key_value_heads": 1, "sliding_window": 12},
    "as gemma 3": {
        "num_hidden_layers": 2,
        "head_dim": 6,
        "sliding_window": 12,
        "layer_types": (SLIDING, FULL),
        "rope_local_base_freq": 50.0,
        "post_norm": True,
        "qk_norm": "head",
        "norm_offset": 1.0,
        "attn_logit_softcapping": 4.0,
        "final_logit_softcapping": 6.0,
    },
    "with experts": {
        "num_hidden_layers": 2,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "mlp_only_layers": (0,),
    },
    "as gpt-oss": {
        "num_hidden_layers": 2,
        "sliding_window": 12,
        "layer_types": (SLIDING, FULL),
        "sinks": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "expert_bias": True,
        "swiglu_limit": 1.0,
        "swiglu_alpha": 1.7,
        "qkv_bias": True,
        "o_bias": True,
    },
    "as smollm 3, olmo 2, phi 3": {
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "no_rope_layers": (0, 1),
        "partial_rotary_factor": 0.5,
        "qkv_bias": True,
        "o_bias": True,
        "pre_norm": False,
        "post_norm": True,
        "qk_norm": "whole",
    },
}


@pytest.mark.parametrize("fields", MODELS.values(), ids=MODELS)
def test_sampled_tokens_have_their_plain_probabilities(
    tiny, recording_engine, fields
):
    """Prompts of mixed length in one batch, groups that are refilled, slots
    that end at different times, samples across chunk borders, and chains
    that extend the prefix of their query."""
    family = "mistral" if fields.get("window") else "llama"
    # some ordinary ids end a sample, so that lengths differ
    fields = {"num_hidden_layers": 1, "eos_token_id": (258, 11, 50), **fields}
    model = tiny(family=family, **fields)
    engine = recording_engine(
        model, slots=8, slots_per_group=4, max_new_tokens=40
    )
    lengths = {"a": 1, "b": 30, "c": 60, "d": 73}
    queries = [query(name, n) for name, n in lengths.items()]
    work = requests(queries, 5)
    for q in queries[:2]:
        attempt = "I tried 7, then 8, and neither fits. " + q.id
        chain = (*q.messages, Message("assistant", attempt))
        work += [Request(q, chain, 5 + i, parents=(0,)) for i in range(4)]
    samples = list(engine.sample(work))
    assert len(samples) == len(work) == len(engine.recorded)
    lengths = [s.new_tokens for s in samples]
    assert min(lengths) < 16 and max(lengths) == 40  # refills and borders
    assert check_against_plain(engine) == sum(lengths)


def test_prompts_and_chains_of_several_sizes(
    tiny, recording_engine, monkeypatch
):
    """Prompts padded to 128 and 256; chains that begin with their query's
    ids and extend its prefix, and one that shares none and does not."""
    engine = recording_engine(
        tiny(num_hidden_layers=1), slots=4, slots_per_group=1, max_new_tokens=17
    )
    queries = [query("a", 10), query("b", 80), query("c", 82), query("d", 200)]
    work = requests(queries, 1)
    tries = ("x" * 20, "y" * 150, "", "z")
    for q, text in zip(queries, tries, strict=True):
        chain = (*q.messages, Message("assistant", text))
        work.append(Request(q, chain, 1, parents=(0,)))
    strange = (Message("system", "s" * 50), Message("user", "other"))
    work.append(Request(queries[0], strange, 2))
    extend, extended = prefill.extend, []

    def spy(params, config, base, kept, *rest):
        extended.append(int(kept))
        return extend(params, config, base, kept, *rest)

    monkeypatch.setattr(prefill, "extend", spy)
    samples = list(engine.sample(work))
    lengths = sorted(len(ids) for ids, _ in engine.recorded.values())
    assert lengths[0] < 128 < lengths[-1] <= 256
    # an empty assistant turn is the query's own prompt: nothing to extend
    base = {q.id: len(engine.recorded[q.id, 0][0]) for q in queries}
    assert sorted(extended) == [base["a"], base["b"], base["d"]]
    assert check_against_plain(engine) == sum(s.new_tokens for s in samples)


def test_one_token_prompts(tiny, recording_engine, byte_tokenizer):
    """The shortest prompt there is; also chains too short to extend one."""
    model = tiny(num_hidden_layers=1)
    bare = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model.tokenizer = from_json(byte_tokenizer.as_json(), bare)
    engine = recording_engine(
        model, slots=4, slots_per_group=1, max_new_tokens=17
    )
    q = Query("a", (Message("user", "a"),))
    longer = (*q.messages, Message("assistant", "bc"))
    samples = list(
        engine.sample([Request(q, q.messages, 0), Request(q, longer, 1)])
    )
    assert sorted(s.prompt_tokens for s in samples) == [1, 3]
    assert all(s.cached_tokens == 0 for s in samples)
    assert check_against_plain(engine) == 34

"""The device side of paged decoding, call by call."""

import jax
import numpy as np
import pytest

from dynscaling_jax.checkpoints import load_model
from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.paged import runner
from dynscaling_jax.inference.paged.attention import Layout, xla
from dynscaling_jax.inference.paged.turn import Chunk
from dynscaling_jax.inference.slot import Prompt
from dynscaling_jax.models import stacked
from dynscaling_jax.models.config import FULL, SLIDING, ModelConfig

LAYOUT = Layout(1, 2, 12, 8, "float32", 6)
BACKEND = xla.backend()
STOPS = np.full(8, -1, np.int32)


def prefilled(params, config, ids, pages, chunk, row=0):
    state = runner.empty(
        config,
        BACKEND,
        LAYOUT,
        2,
        params["norm"].dtype,
        isinstance(params["layers"], stacked.Stacked),
    )
    for start in range(0, len(ids), chunk):
        end = min(start + chunk, len(ids))
        tokens = np.zeros((1, chunk), np.int32)
        tokens[0, : end - start] = ids[start:end]
        part = Chunk(0, Prompt(ids, ids, 0), start, end, pages, row)
        state = runner.prefill_chunk(
            params,
            config,
            BACKEND,
            state,
            BACKEND.chunk_view(LAYOUT, [part]),
            tokens,
            np.array([start], np.int32),
            np.array([end - start - 1], np.int32),
            np.array([row if end == len(ids) else 2], np.int32),
        )
    return state


@pytest.mark.parametrize("form", ["list", "stacked"])
@pytest.mark.parametrize("chunk", [8, 24])
def test_chunks_of_a_prompt_give_its_logits(tiny, chunk, form):
    """And steps those of the tokens that follow; the pool is in disorder."""
    model = tiny(
        num_hidden_layers=3,
        layer_types=(SLIDING, FULL, SLIDING),
        sliding_window=11,
    )
    config, params = model.config, model.params
    if form == "stacked":
        params = stacked.stack(params, config)
    ids = tuple(int(i) for i in np.random.RandomState(3).randint(0, 250, 21))
    state = prefilled(params, config, ids, (7, 2, 9), chunk, row=1)
    logits = model.logits([ids])[0]
    np.testing.assert_allclose(state.logits[0, 1], logits[-1], atol=1e-4)
    settings = sampling.settings(temperature=0)
    one = lambda *values: np.array(values, np.int32)
    # slot 1 copies the prompt's last page, which it writes to
    state, first = runner.start(
        BACKEND,
        state,
        np.uint32(0),
        np.array([False, True]),
        np.zeros((2, 3), np.uint32),
        one(0, 1),
        one(0, 21),
        one(0, 9),
        np.array([[9, 0]], np.int32),
        np.array([[4, LAYOUT.pages]], np.int32),
        np.int32(1),
        STOPS,
        settings,
    )
    state, sums, active = runner.decode_chunk(
        params,
        config,
        BACKEND,
        state,
        BACKEND.view(LAYOUT, [(), (7, 2, 4, 11)], [0, 2]),
        np.array([False, True]),
        STOPS,
        settings,
        np.int32(7),
        np.int32(0),
    )
    assert np.asarray(active).sum(0).tolist() == [0, 7]
    assert not np.asarray(active)[7:].any()
    tokens = [int(first.token[1]), *map(int, sums.token[:7, 1])]
    expected = np.asarray(model.logits([[*ids, *tokens]])[0])
    assert tokens == expected[20:-1].argmax(-1).tolist()
    np.testing.assert_allclose(
        sums.logit[:7, 1], expected[21:-1].max(-1), atol=1e-4
    )


def test_a_chunk_ends_when_too_few_are_active(tiny):
    model = tiny(num_hidden_layers=1)
    config, params = model.config, model.params
    state = prefilled(params, config, tuple(range(9)), (1, 2), 16)
    settings = sampling.settings()
    both = np.array([True, True])
    one = lambda *values: np.array(values, np.int32)
    state, _ = runner.start(
        BACKEND,
        state,
        np.uint32(0),
        both,
        np.arange(6, dtype=np.uint32).reshape(2, 3),
        one(0, 0),
        one(9, 9),
        one(4, 9),
        np.array([[2, 2]], np.int32),
        np.array([[5, 6]], np.int32),
        np.int32(2),
        STOPS,
        settings,
    )
    view = BACKEND.view(LAYOUT, [(1, 5, 7), (1, 6, 8)], [1, 1])
    run = lambda state, enough: runner.decode_chunk(
        params,
        config,
        BACKEND,
        state,
        view,
        both,
        STOPS,
        settings,
        np.int32(16),
        np.int32(enough),
    )
    state, _, active = run(state, 1)
    assert np.asarray(active).sum(0).tolist() == [3, 3]  # limits 4 and 9
    state, _, active = run(state, 0)
    assert np.asarray(active).sum(0).tolist() == [0, 5]


def test_the_period_of_layers():
    def period(**fields):
        sizes = dict.fromkeys(
            ("vocab_size", "hidden_size", "head_dim", "intermediate_size"), 32
        )
        counts = {"num_attention_heads": 1, "num_key_value_heads": 1}
        config = ModelConfig(
            "llama", max_position_embeddings=64, **sizes, **counts, **fields
        )
        return stacked.period(config)

    assert period(num_hidden_layers=7) == 1
    for layers, kinds, expected in (
        (24, (SLIDING, FULL), 2),
        (34, (*[SLIDING] * 5, FULL), 6),
        (4, (FULL, SLIDING, SLIDING, SLIDING), 4),
    ):
        types = (kinds * layers)[:layers]
        fields = {"layer_types": types, "sliding_window": 8}
        assert period(num_hidden_layers=layers, **fields) == expected
    experts = {"num_experts": 4, "num_experts_per_tok": 1}
    experts["moe_intermediate_size"] = 8
    odd = {"mlp_only_layers": (0, 2, 4), **experts}
    assert period(num_hidden_layers=6, **odd) == 2


def test_stacking_and_its_reverse(tiny):
    model = tiny(
        num_hidden_layers=5,
        layer_types=(SLIDING, FULL) * 2 + (SLIDING,),
        sliding_window=8,
    )
    params = stacked.stack(model.params, model.config)
    places, rest = params["layers"]
    assert [len(x["q"]) for x in places] == [2, 2] and len(rest) == 1
    assert stacked.stack(params, model.config) is params
    back = stacked.unstacked(params)
    jax.tree.map(np.testing.assert_array_equal, back, model.params)


@pytest.mark.parametrize("quantize", ["", "int8"])
@pytest.mark.parametrize("name", ["gpt_oss_grouped", "gemma2_grouped"])
def test_layers_are_stacked_as_they_are_read(goldens, name, quantize):
    listed = load_model(goldens / name, quantize=quantize)
    read = load_model(goldens / name, quantize=quantize, stacked=True)
    expected = stacked.stack(listed.params, listed.config)
    assert jax.tree.structure(read.params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, read.params, expected)
    ids = np.arange(6)[None]
    np.testing.assert_array_equal(read.logits(ids), listed.logits(ids))

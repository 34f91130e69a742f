"""Prefill: of padded prompts, and from a cached prefix."""

import jax
import numpy as np
import pytest

from dynscaling_jax.inference.grouped import prefill


@pytest.fixture(scope="module")
def model(tiny):
    return tiny(num_hidden_layers=1)


@pytest.mark.parametrize("length", [1, 5, 32])
def test_prefill_ignores_padding(model, length):
    ids = np.arange(3, 35, dtype=np.int32)
    padded = np.where(np.arange(32) < length, ids, 99).astype(np.int32)
    prefix = prefill.prefill(
        model.params, model.config, padded, np.int32(length)
    )
    plain = model.logits(ids[None])[0, length - 1]
    np.testing.assert_allclose(prefix.logits, plain, rtol=1e-4, atol=1e-4)
    assert int(prefix.length) == length
    keys, values = prefix.layers[0]
    assert keys.shape == (2, 16, 32) and values.shape == (2, 32, 16)


@pytest.mark.parametrize("kept", [1, 9, 16])
def test_extend_equals_prefill(tiny, kept):
    """The base went on differently after what is kept, and was padded to
    fewer slots than the result."""
    model = tiny()
    ids = np.asarray(jax.random.randint(jax.random.key(5), (32,), 0, 261))
    rest = ids[kept:24]
    base = prefill.prefill(
        model.params,
        model.config,
        np.where(np.arange(16) < kept, ids[:16], 7).astype(np.int32),
        np.int32(16),
    )
    got = prefill.extend(
        model.params,
        model.config,
        base.layers,
        np.int32(kept),
        np.pad(rest, (0, 32 - len(rest))).astype(np.int32),
        np.int32(len(rest)),
        32,
    )
    fresh = prefill.prefill(
        model.params, model.config, ids.astype(np.int32), np.int32(24)
    )
    assert int(got.length) == 24
    np.testing.assert_allclose(got.logits, fresh.logits, rtol=0, atol=1e-4)
    for mine, theirs in zip(got.layers, fresh.layers, strict=True):
        assert [x.shape for x in mine] == [x.shape for x in theirs]
        for a, b in (
            (mine[0][..., :24], theirs[0][..., :24]),
            (mine[1][:, :24], theirs[1][:, :24]),
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)

"""Keys in pages: samples are those of the engine before, to the bit."""

import numpy as np
import pytest

from tests.inference import record_long

FIELDS = {"num_hidden_layers": 1, "max_position_embeddings": 2048}


@pytest.mark.parametrize("name", record_long.MODELS)
def test_long_samples_are_those_of_before(tiny, recording_engine, name):
    """Samples of up to 700 tokens behind prompts of one block and of two, of
    which four share a prompt: pages of both widths, moves and reuse."""
    model = tiny(**FIELDS, **record_long.MODELS[name])
    got = record_long.samples(model, recording_engine)
    assert {len(tokens.token) > 512 for tokens in got.values()} == {True, False}
    with np.load(record_long.FILE) as recorded:
        for (query, index), tokens in got.items():
            key = f"{name}/{query}/{index}"
            np.testing.assert_array_equal(
                tokens.token, recorded[f"{key}/token"]
            )
            np.testing.assert_array_equal(
                tokens.logprob, recorded[f"{key}/logprob"]
            )

"""Keys in pages: samples are those of the engine before, to the bit."""

import jax
import numpy as np
import pytest

from dynscaling_jax.inference import scheduler
from tests.inference import record_long

FIELDS = {"num_hidden_layers": 1, "max_position_embeddings": 2048}


@pytest.mark.parametrize("name", record_long.MODELS)
def test_long_samples_are_those_of_before(tiny, recording_engine, name):
    """Samples of up to 700 tokens behind prompts of one block and of two, of
    which four share a prompt: pages of both widths, moves and reuse."""
    model = tiny(**FIELDS, **record_long.MODELS[name])
    got = record_long.samples(model, recording_engine)
    assert {len(tokens.token) > 512 for tokens in got.values()} == {True, False}
    with np.load(record_long.FILE) as file:
        recorded = {
            key: (
                file[f"{name}/{key[0]}/{key[1]}/token"],
                file[f"{name}/{key[0]}/{key[1]}/logprob"],
            )
            for key in got
        }
    first = lambda logprobs: [x[0] for x in logprobs]
    if first(tokens.logprob for tokens in got.values()) != first(
        logprob for _, logprob in recorded.values()
    ):
        # first tokens come from prefill alone
        pytest.skip("the recording processor rounds otherwise than this one")
    for key, (token, logprob) in recorded.items():
        np.testing.assert_array_equal(got[key].token, token)
        np.testing.assert_array_equal(got[key].logprob, logprob)


def test_long_samples_are_those_of_one_suffix_a_slot(tiny, recording_engine):
    """The form that meshes have, on this processor."""

    class Plain(recording_engine):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self._make_scheduler = scheduler.Scheduler

    model = tiny(**FIELDS, **record_long.MODELS["grouped"])
    plain = record_long.samples(model, Plain)
    paged = record_long.samples(
        model, recording_engine, slots=16, slots_per_group=2
    )
    jax.tree.map(np.testing.assert_array_equal, paged, plain)

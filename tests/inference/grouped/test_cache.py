"""Keys in pages: samples are those of the engine before, to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynscaling_jax.inference.grouped import cache
from tests.inference.grouped import record_long

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


def test_long_samples_do_not_depend_on_groups_and_slots(tiny, recording_engine):
    """Groups of four in eight slots, and of two in sixteen."""
    model = tiny(**FIELDS, **record_long.MODELS["grouped"])
    one = record_long.samples(model, recording_engine)
    other = record_long.samples(
        model, recording_engine, slots=16, slots_per_group=2
    )
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_key_goes_to_the_place_of_its_position():
    """By hand, a narrow page of two places and a wide one of 256: slot 0 is
    at position 1 of its narrow page, slot 1 at place 44 of its second block,
    and slot 2 has no page."""

    def pool(count, width):
        return jnp.zeros((count, 1, 1, width)), jnp.zeros((count, 1, width, 1))

    table = jnp.array([[0, 3], [3, 2], [3, 3]])
    new = jnp.array([1.0, 2, 3])[:, None, None]
    pools = pool(1, 2), pool(2, 256)
    written = cache.write(pools, new, -new, jnp.array([1, 300, 5]), table)
    wanted = np.zeros((1, 2)), np.zeros((2, 256))
    wanted[0][0, 1], wanted[1][1, 44] = 1, 2
    for (keys, values), want in zip(written, wanted, strict=True):
        np.testing.assert_array_equal(keys[:, 0, 0], want)
        np.testing.assert_array_equal(values[:, 0, :, 0], -want)

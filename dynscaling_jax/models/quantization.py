"""Weights in int8, activations as they are, by qwix.

A weight of two axes or more becomes whole numbers and one float32 scale for
each output feature, that is for each row of the [out, in] layout; norms,
biases and routers stay (Parameter.quantised). It takes a quarter of float32's
memory and half of bfloat16's. Where memory bounds the speed of decoding, as
on a GPU or TPU, that is also faster; on a CPU it is slower.
"""

from typing import Any

import jax
import jax.numpy as jnp


def quantize(weight: jax.Array) -> Any:
    """Rounds a weight [..., out, in] to a qwix.QArray of int8."""
    import qwix  # takes half a second

    return qwix.quantize(
        weight,
        jnp.int8,
        channelwise_axes=range(weight.ndim - 1),
        scale_dtype=jnp.float32,
    )

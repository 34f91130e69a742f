"""Weights in int8, activations as they are.

A weight of two axes or more becomes whole numbers and one float32 scale for
each output feature, that is for each row of the [out, in] layout; norms,
biases and routers stay. It takes a quarter of float32's memory and half of
bfloat16's. Where memory bounds the speed of decoding, as on a GPU or TPU,
that is also faster; on a CPU it is slower.
"""

from typing import Any

import jax
import jax.numpy as jnp


def quantize(path: tuple, weight: jax.Array) -> Any:
    """A qwix.QArray of int8 in place of a weight, or the weight itself.

    Args:
        path: of the parameter, e.g. ("layers", 0, "q").
        weight: [..., out, in].
    """
    name = str(path[-1])
    # a router is small, and decisions hang on it
    if weight.ndim < 2 or name == "router" or name.endswith("_bias"):
        return weight
    import qwix  # takes half a second

    return qwix.quantize(
        weight,
        jnp.int8,
        channelwise_axes=range(weight.ndim - 1),
        scale_dtype=jnp.float32,
    )

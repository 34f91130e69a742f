"""The matrix products of one decode step, and nothing else.

They set the limit of decoding on a CPU. All layers' own weights take part, so
that caches help no more than they would in the decoder.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import median_seconds
from dynscaling_jax.checkpoints.model import Model
from dynscaling_jax.models.transformer import Params, linear

SMALL = 1e-6  # so little of the products goes on that no value runs away


def step_seconds(
    model: Model, rows: int, repeats: int, library: str = "xla"
) -> tuple[float, float]:
    """Seconds of (all linears, the head) for so many rows."""
    random = np.random.default_rng(0)
    shape = (rows, model.config.hidden_size)
    dtype = model.params["norm"].dtype
    x = jnp.asarray(random.standard_normal(shape, np.float32), dtype)
    layers = model.params["layers"]
    head = model.params.get("head", model.params["embed"])
    if library == "xla":
        each = functools.partial(_linears, layers)
        runs = (
            lambda: jax.block_until_ready(each(x)),
            lambda: _head(head, x).block_until_ready(),
        )
    else:
        layers, head, x = jax.tree.map(np.asarray, (layers, head, x))
        runs = (lambda: chain(layers, x, _numpy), lambda: _numpy(x, head))
    for run in runs:
        run()  # compiles
    linears, last = (median_seconds(run, repeats) for run in runs)
    return linears, last


def limit(
    model: Model, rows: Sequence[int], repeats: int, libraries: Sequence[str]
) -> list[dict[str, Any]]:
    """Each size and library with its rate in tokens a second."""
    found = []
    for library in libraries:
        for many in rows:
            seconds = sum(step_seconds(model, many, repeats, library))
            found.append(
                {
                    "library": library,
                    "rows": many,
                    "tokens_per_second": round(many / seconds, 1),
                }
            )
    return found


def chain(layers: list[Params], x: Any, multiply: Any) -> tuple[Any, list]:
    """Each product reads what an earlier one gave; what none reads is
    returned, or it would never be computed."""
    unread = []
    for layer in layers:
        q, *kv = (multiply(x, layer[part]) for part in "qkv")
        out = multiply(q, layer["o"])
        gate, up = (multiply(x, layer[part]) for part in ("gate", "up"))
        unread += [*kv, up[:, :1]]
        down = multiply(gate + up, layer["down"])
        x = x + SMALL * (out + down)
    return x, unread


@jax.jit
def _linears(layers, x):
    return chain(layers, x, linear)


@jax.jit
def _head(head, x):
    return linear(x, head)


def _numpy(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x @ weight.T

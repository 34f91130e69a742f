"""One step of training: loss, gradients, and what optax makes of them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from dynscaling_jax.models.config import ModelConfig
from dynscaling_jax.models.parameters import Params
from dynscaling_jax.models.transformer import Decoder
from dynscaling_jax.training.batches import Batch


class State(NamedTuple):
    """All that training carries from step to step."""

    params: Params
    opt: Any  # of optax
    step: jax.Array  # int32 []


class Hyper(NamedTuple):
    """How to learn: AdamW (arXiv 1711.05101) under a warm-up and a cosine.

    Hashable, so that a step is compiled for it.
    """

    steps: int
    warmup: int = 100
    learning_rate: float = 3e-4
    final: float = 0.1  # share of the learning rate at the end
    weight_decay: float = 0.1  # of matrices; norms and biases keep theirs
    clip: float = 1.0  # greatest norm of the gradients
    b2: float = 0.95


def optimizer(hyper: Hyper) -> optax.GradientTransformation:
    """AdamW with clipping and schedule."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0,
        hyper.learning_rate,
        hyper.warmup,
        hyper.steps,
        hyper.learning_rate * hyper.final,
    )
    return optax.chain(
        optax.clip_by_global_norm(hyper.clip),
        optax.adamw(
            rate,
            b2=hyper.b2,
            weight_decay=hyper.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )


def init(params: Params, hyper: Hyper) -> State:
    """The state before the first step."""
    return State(params, optimizer(hyper).init(params), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=(1, 2, 3), donate_argnums=0)
def step(
    state: State, config: ModelConfig, hyper: Hyper, parts: int, batch: Batch
) -> tuple[State, jax.Array, jax.Array]:
    """Takes a step; the state is used up.

    Args:
        state: donated.
        config: of the model.
        hyper: how to learn.
        parts: that the batch is read in, one after another, so that the
            activations of one part alone are held; they add up to the same
            gradients.
        batch: of examples, a multiple of `parts`.

    Returns:
        The next state, the mean loss a token of the completions in nats, and
        the norm of the gradients before clipping.
    """
    count = _counted(batch).sum()

    def add(total, part):
        loss, grads = jax.value_and_grad(total_loss)(state.params, config, part)
        return jax.tree.map(jnp.add, total, (loss, grads)), None

    zeros = jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params)
    split = jax.tree.map(
        # part i takes rows i, i + parts, ...: each device keeps its own
        lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1),
        batch,
    )
    (loss, grads), _ = jax.lax.scan(add, zeros, split)
    grads = jax.tree.map(lambda g: (g / count).astype(g.dtype), grads)
    updates, opt = optimizer(hyper).update(grads, state.opt, state.params)
    params: Any = optax.apply_updates(state.params, updates)
    state = State(params, opt, state.step + 1)
    return state, loss / count, norm(grads)


def norm(tree: Any) -> jax.Array:
    """Root of the sum of squares of all that a tree holds, float32 []."""
    squares = [
        jnp.sum(jnp.square(x.astype(jnp.float32)))
        for x in jax.tree.leaves(tree)
    ]
    return jnp.sqrt(sum(squares, jnp.float32(0)))


@functools.partial(jax.jit, static_argnums=1)
def evaluate(
    params: Params, config: ModelConfig, batch: Batch
) -> tuple[jax.Array, jax.Array]:
    """(sum of losses in nats, tokens of completions) of a batch."""
    return total_loss(params, config, batch), _counted(batch).sum()


def total_loss(params: Params, config: ModelConfig, batch: Batch) -> jax.Array:
    """Sum of -log p over the tokens of the completions, float32 []."""
    tokens = jnp.asarray(batch.tokens)
    logits = jax.vmap(Decoder(config, params))(tokens)[:, :-1]
    losses = optax.softmax_cross_entropy_with_integer_labels(
        logits, tokens[:, 1:]
    )
    return jnp.where(_counted(batch), losses, 0.0).sum()


def _counted(batch: Batch) -> jax.Array:
    """Marks, bool [B, L - 1], which next tokens the assistant is to write."""
    at = jnp.arange(1, batch.tokens.shape[1])[None]
    return (at >= batch.start[:, None]) & (at < batch.length[:, None])

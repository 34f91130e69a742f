"""The parts of a decode step, each compiled and timed by itself."""

import functools

import jax
import jax.numpy as jnp

from benchmarks import gemm
from benchmarks.common import median_seconds
from benchmarks.ours import Wave
from dynscaling_jax.checkpoints import Model
from dynscaling_jax.inference import sampling
from dynscaling_jax.models import attention, transformer


def breakdown(
    model: Model, slots: int, temperature: float, wave: Wave, repeats: int
) -> dict[str, float]:
    """Milliseconds of a step of the engine, by part.

    Linears, head and sampler are products and sampling on their own. The layers
    without attention, less their linears, are the norms, rotations and sums.
    Attention, with the writing of keys, is what the engine's step took
    beyond all these; the host is what a step took outside of the device.
    """
    linears, head = gemm.step_seconds(model, slots, repeats)
    around = max(0.0, _layers(model, slots, repeats) - linears)
    sampler = _sampler(model, slots, temperature, repeats)
    parts = {
        "linears_ms": linears,
        "head_ms": head,
        "sampler_ms": sampler,
        "norms_and_rotations_ms": around,
        "attention_ms": wave.step - linears - head - sampler - around,
        "host_ms": (wave.seconds - wave.device) / max(1, wave.steps),
    }
    return {
        "step_ms": round(1e3 * wave.step, 2),
        **{name: round(1e3 * seconds, 2) for name, seconds in parts.items()},
    }


def _layers(model: Model, slots: int, repeats: int) -> float:
    """Seconds of all layers where attention looks at nothing."""
    config = model.config
    tokens = jnp.arange(slots, dtype=jnp.int32) % config.vocab_size

    def attend(kind, cache, q, k, v):
        one = jnp.ones((*q.shape[:-1], 1), jnp.float32)
        state = attention.SoftmaxState(one, one, q.astype(jnp.float32))
        return state, (k, v)

    @jax.jit
    def run(params, tokens):
        caches = [None] * config.num_hidden_layers
        decoder = transformer.Decoder(config, params)
        return decoder.stream(tokens, tokens, attend, caches)

    once = functools.partial(run, model.params, tokens)
    jax.block_until_ready(once())
    return median_seconds(lambda: jax.block_until_ready(once()), repeats)


def _sampler(
    model: Model, slots: int, temperature: float, repeats: int
) -> float:
    """Seconds of sampling a token for each slot; several in a loop, each of
    which shifts the logits of the next."""
    steps = 8
    settings = sampling.settings(temperature)
    shape = (slots, model.config.vocab_size)
    logits = 3 * jax.random.normal(jax.random.key(0), shape)
    names = jnp.arange(slots, dtype=jnp.uint32)

    @jax.jit
    def run(logits):
        def sample(step, carry):
            logits, total = carry

            def one(name, logits):
                key = jax.random.fold_in(jax.random.key(step), name)
                return sampling.score(
                    sampling.choose(key, logits, settings), len(logits)
                )

            tokens = jax.vmap(one)(names, logits)
            # one number a slot changes, and the loop has to go on in order
            logits = logits.at[:, 0].set(tokens.logprob)
            return logits, total + tokens.confidence + tokens.certainty

        return jax.lax.fori_loop(
            0, steps, sample, (logits, jnp.zeros(slots, jnp.float32))
        )

    jax.block_until_ready(run(logits))
    once = lambda: jax.block_until_ready(run(logits))
    return median_seconds(once, repeats) / steps

"""Prompts to samples, batched and jitted."""

from dynscaling_jax.engine.engine import Engine as Engine

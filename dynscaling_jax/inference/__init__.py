"""Prompts to samples, batched and jitted."""

from dynscaling_jax.inference.engine import Engine as Engine

"""optax mixes types, which strict JAX refuses."""

import jax
import pytest


@pytest.fixture(autouse=True)
def lenient():
    with jax.numpy_dtype_promotion("standard"):
        yield

"""Checkpoints to parameters and a pure forward pass."""

from etils import epy

# The worker of tokenizers imports this package, and must not import JAX.
with epy.lazy_api_imports(globals()):
    from dynscaling_jax.models.config import ModelConfig as ModelConfig
    from dynscaling_jax.models.model import Model as Model
    from dynscaling_jax.models.model import load_model as load_model

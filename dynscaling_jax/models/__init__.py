"""The transformer: configs and families to a pure forward pass."""

from etils import epy

# The worker of tokenizers imports this package, and must not import JAX.
with epy.lazy_api_imports(globals()):
    from dynscaling_jax.models.config import ModelConfig as ModelConfig

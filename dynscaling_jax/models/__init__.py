"""The transformer: configs, families and the decoder in flax.nnx."""

from etils import epy

# The worker of tokenizers imports this package, and must not import JAX.
with epy.lazy_api_imports(globals()):
    from dynscaling_jax.models.config import ModelConfig as ModelConfig
    from dynscaling_jax.models.transformer import Decoder as Decoder

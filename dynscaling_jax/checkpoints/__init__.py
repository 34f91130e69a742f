"""Files of models, read and written: weights, tokenizers, chat templates."""

from etils import epy

# The worker of tokenizers imports this package, and must not import JAX.
with epy.lazy_api_imports(globals()):
    from dynscaling_jax.checkpoints.model import Model as Model
    from dynscaling_jax.checkpoints.model import load_model as load_model

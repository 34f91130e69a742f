"""Every field of a run; configs start from here."""

from dynscaling_jax.experiments.config import get_config as get_config

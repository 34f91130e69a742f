"""Every field of launch.train; configs start from here."""

from dynscaling_jax.experiments.config import get_training_config as get_config

__all__ = ["get_config"]

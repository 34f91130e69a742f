"""Which backend serves a model: by platform, or as it is told."""

import functools
from collections.abc import Callable

from dynscaling_jax.inference.paged.attention import (
    Backend,
    Layout,
    gpu,
    pallas,
    tpu,
    xla,
)
from dynscaling_jax.models.config import ModelConfig

# Each is made once: a jitted function would be compiled for another again.
BACKENDS: dict[str, Callable[[], Backend]] = {
    "xla": functools.cache(xla.backend),
    "tpu": functools.cache(tpu.backend),
    "pallas": functools.cache(pallas.backend),
    "gpu": functools.cache(gpu.backend),
}
# The first of its platform that can serve a model is auto; xla serves all.
OF_PLATFORM = {"tpu": ("tpu", "pallas"), "gpu": ("gpu",)}


def select(
    name: str, platform: str, config: ModelConfig, layout: Layout, model: int
) -> Backend:
    """Returns the backend of a name, or of a platform where one can serve.

    Args:
        name: of BACKENDS; auto is the first of the platform, or else xla.
        platform: as of jax.Device.
        config: of the model.
        layout: of the cache.
        model: size of the mesh along MODEL.

    Raises:
        ValueError: none has that name, it is of other devices, or it refuses
            the model.
    """
    own = (*OF_PLATFORM.get(platform, ()), "xla")
    if name == "auto":
        every = (BACKENDS[each]() for each in own)
        return next(x for x in every if not x.refuses(config, layout, model))
    if name not in BACKENDS:
        raise ValueError(
            f"attention must be auto, {', '.join(BACKENDS)}, got {name!r}"
        )
    if name not in own:
        needs = next(x for x, names in OF_PLATFORM.items() if name in names)
        raise ValueError(
            f"attention={name} needs a {needs.upper()}, and these devices are "
            f"of platform {platform}; take auto or xla"
        )
    made = BACKENDS[name]()
    if why := made.refuses(config, layout, model):
        raise ValueError(
            f"attention {name} cannot serve this model: {why}; auto finds one "
            "that can"
        )
    return made

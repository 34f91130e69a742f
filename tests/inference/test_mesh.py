"""The mesh; what needs several devices is in on_eight_devices.py."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from configs import common
from dynscaling_jax.experiments.config import typed
from dynscaling_jax.experiments.configured import open_sampler
from dynscaling_jax.inference import mesh
from dynscaling_jax.models.sharding import AXES, fitting

# half the time to compile; it is the placement that is tested
FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0"
)


def test_on_eight_devices():
    file = Path(__file__).with_name("on_eight_devices.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)],
        cwd=file.parents[2],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XLA_FLAGS": FLAGS},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("text", ["", "auto", "1x1"])
def test_one_device_needs_no_mesh(text):
    assert jax.device_count() == 1 and mesh.build(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2x4", r"mesh=2x4 takes 8 devices, and there are 1 \(cpu\)"),
        ("2", "mesh='2': expected DATAxMODEL, such as 2x4, or auto"),
        ("0x1", "mesh='0x1': expected DATAxMODEL"),
        ("2x-1", "mesh='2x-1': expected DATAxMODEL"),
    ],
)
def test_a_mesh_that_cannot_be_is_told(text, message):
    """As launch.run does, before any model is read."""
    config = common.get_config()
    config.model, config.mesh = "no such file", text
    with pytest.raises(ValueError, match=message):
        open_sampler(typed(config))


@pytest.mark.parametrize(
    ("shape", "axes", "expected"),
    [
        ((8, 8), AXES, ("data", "model")),
        ((8, 6), AXES, ("data",)),  # four do not divide six
        ((3, 8), AXES, (None, "model")),
        ((16,), (AXES,), (AXES,)),
        ((6,), (AXES,), ("data",)),  # not eight, but two
        ((3,), (AXES,), ()),
        ((8, 8, 8), (None, "model"), (None, "model")),
    ],
)
def test_what_does_not_divide_is_left_whole(shape, axes, expected):
    assert tuple(fitting({"data": 2, "model": 4}, shape, axes)) == expected


def test_axes_of_one_device_are_left_out():
    sizes = {"data": 2, "model": 1}
    assert tuple(fitting(sizes, (8, 8), AXES)) == ("data",)
    assert tuple(fitting(sizes, (8,), (AXES,))) == ("data",)


def test_a_mesh_is_ambient_where_it_is_asked_for():
    def names():
        return jax.sharding.get_abstract_mesh().axis_names

    on = Mesh(np.asarray(jax.devices()).reshape(1, 1), AXES)
    with mesh.ambient(on):
        assert names() == AXES
    with mesh.ambient(None):
        assert names() == ()

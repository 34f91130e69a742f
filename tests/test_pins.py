"""What make setup and launch/tpu install, which is named with its sum."""

import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(file, python):
    """Name -> version, as on Linux with that Python."""
    text = (ROOT / "third_party" / file).read_text().replace("\\\n", " ")
    found = {}
    for line in text.splitlines():
        pin, *sums = line.split(" --hash=")
        assert all(s.strip().startswith("sha256:") for s in sums) and sums, line
        wanted = Requirement(pin)
        on = {
            **default_environment(),
            "python_version": python,
            "python_full_version": f"{python}.1",
            "sys_platform": "linux",
            "platform_machine": "x86_64",
        }
        if wanted.marker is None or wanted.marker.evaluate(on):
            (exact,) = wanted.specifier
            assert exact.operator == "==" and wanted.name not in found
            found[canonicalize_name(wanted.name)] = exact.version
    return found


def asked(*extras):
    """What the project asks for, its own extras resolved."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    for line in lines:
        wanted = Requirement(line)
        if wanted.name == PROJECT["name"]:
            yield from asked(*wanted.extras)
        else:
            yield wanted


@pytest.mark.parametrize(
    ("file", "python", "extras"),
    [
        *[("pins.txt", f"3.{minor}", ["test"]) for minor in range(11, 15)],
        ("pins-tpu.txt", "3.12", ["tpu", "gcs"]),
    ],
)
def test_pins_hold_all_that_the_project_asks_for(file, python, extras):
    """They are installed as they are: what is missing there, because
    `make pins` was forgotten, would be missing when it is imported."""
    held = pins(file, python)
    for wanted in asked(*extras):
        version = held.get(canonicalize_name(wanted.name))
        assert version and wanted.specifier.contains(version), wanted

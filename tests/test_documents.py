"""What the documents name is there. test_commands.py runs their commands,
test_examples.py the snippet of README."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "third_party/README.md",
    ROOT / "dynscaling_jax/bundled/reasoner/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_make_has_the_targets_that_are_named():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for page in PAGES:
        named = re.findall(r"(?:^|`)make ([a-z]\w*)", page.read_text(), re.M)
        assert set(named) <= targets, page

"""The Python of how-to pages runs as it stands, and prints what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = (
    "how_to_attention.md",
    "how_to_chart.md",
    "how_to_family.md",
    "how_to_log_field.md",
)


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_prints_what_it_says(page):
    text = (ROOT / "docs" / page).read_text()
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.M | re.S))
    printed = re.findall(
        r"^prints\n\n```(?:text)?\n(.*?)^```", text, re.M | re.S
    )
    assert code and printed
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(printed)

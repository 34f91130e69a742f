"""A report as one HTML file that needs nothing else.

What models wrote is data to the page: it lies in JSON blocks, which never
run, and the script shows it as text alone. Should either fail, the policy at
the top of the page lets no other script run and nothing be fetched.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HOME = Path(__file__).with_name("report_page")
_SCRIPTS = ("charts.js", "time.js", "sections.js", "browser.js", "page.js")


def page(report: Mapping[str, Any]) -> str:
    """Makes the page of what `report.report` returned.

    The samples of a question are a block of their own, read when it is
    chosen, so that the page opens at once whatever it holds.

    Raises:
        ValueError: a number that is not finite.
    """
    style = _read("page.css")
    # one function, so that no name of it is a property of the window
    script = (
        '"use strict";\n(() => {\n' + "".join(map(_read, _SCRIPTS)) + "})();\n"
    )
    parts = {
        "policy": "; ".join(
            (
                "default-src 'none'",
                f"script-src {_hash(script)}",
                f"style-src {_hash(style)}",
                "base-uri 'none'",
                "form-action 'none'",
            )
        ),
        "style": style,
        "data": "\n".join(_blocks(report)),
        "script": script,
    }
    # one pass, so that nothing within a part is taken for a slot
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _read("page.html"))


def _blocks(report: Mapping[str, Any]) -> Iterator[str]:
    details = report["details"]
    rest = {name: value for name, value in report.items() if name != "details"}
    yield _block("report", rest)
    for r, of_run in enumerate(details):
        for q, of_question in enumerate(of_run):
            if of_question is not None:
                yield _block(f"samples-{r}-{q}", of_question)


def _block(id: str, value: Any) -> str:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # without a < no text can end the block or begin a comment in it
    text = text.replace("<", "\\u003c")
    return f'<script type="application/json" id="{id}">{text}</script>'


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _read(name: str) -> str:
    return (_HOME / name).read_text(encoding="utf-8")

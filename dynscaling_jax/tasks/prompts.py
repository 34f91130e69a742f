"""What is asked of a model, by kind of answer; bundled/prompts.toml has it."""

import tomllib
from pathlib import Path

_FILE = Path(__file__).parents[1] / "bundled/prompts.toml"
_PROMPTS = tomllib.loads(_FILE.read_text(encoding="utf-8"))
TEMPLATES: dict[str, str] = {k: p["template"] for k, p in _PROMPTS.items()}
EXAMPLES: dict[str, list[tuple[str, str]]] = {
    kind: [(e["question"], e["answer"]) for e in prompts["examples"]]
    for kind, prompts in _PROMPTS.items()
}

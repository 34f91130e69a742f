"""One way of telling thoughts serves the reading of answers and the chains."""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from configs.common import get_config
from dynscaling_jax.experiments.config import typed
from dynscaling_jax.experiments.configured import (
    open_engine,
    open_sampler,
    thinking_of,
)
from dynscaling_jax.thinking import visible
from dynscaling_jax.types import Message

ROOT = Path(__file__).parents[2]
# what the model writes in turn, why it stops, and the answer that is read
REPLIES = (
    ("<think>\nSECRET, so 36</think>\nI add. The answer is {}.", "stop", True),
    ("<think>\nFirst guess: the answer is 36, SECRET", "stop", None),
    ("SECRET</think>I carry one. The answer is {}.", "stop", True),
    ("It is 12, or rather 13, and", "length", None),
    ("The answer is {}, since SO", "length", True),
)


@pytest.fixture
def server():
    """An endpoint that gives REPLIES in turn; its address and what it got."""
    got = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            size = int(self.headers["Content-Length"])
            got.append(json.loads(self.rfile.read(size)))
            n = len(got)
            text, reason, _ = REPLIES[n % len(REPLIES)]
            message = {"role": "assistant", "content": text.format(n)}
            reply = {
                "choices": [{"message": message, "finish_reason": reason}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 9},
            }
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as one:
        threading.Thread(target=one.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{one.server_address[1]}/v1", got
        one.shutdown()


def test_thoughts_have_no_vote_and_no_place_in_chains(server, tmp_path):
    """From the command line chains showed whole thoughts: the empty default
    of the config went before the library's own. And a thought that did not
    end voted with its first guess."""
    address, got = server
    done = subprocess.run(
        [
            *(sys.executable, "-m", "launch.run"),
            f"--config={ROOT}/configs/smollm2_arithmetic.py",
            f"--config.model=openai://m@{address}",
            "--config.method=dynscaling",
            "--config.task.limit=2",
            "--config.budget.samples_per_query=12",
            f"--workdir={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 24
    read = {text: answer for text, _, answer in REPLIES}
    for row in rows:
        heads = {t: t.partition("{}")[0] for t in read}
        (written,) = (t for t in read if row["text"].startswith(heads[t]))
        assert (row["answer"] is not None) == bool(read[written]), row
    chains = [
        body["messages"]
        for body in got
        if "attempt" in str(body["messages"]).lower()
    ]
    assert chains and any("I carry one." in str(chain) for chain in chains)
    assert "SECRET" not in str(chains) and "think>" not in str(chains)


def test_an_end_of_thinking_that_is_given_goes_before():
    config = get_config()
    text = "<think>a</think>b#end#c"
    assert visible(text, thinking_of(config)) == "b#end#c"
    for end, shown in (("#end#", "c"), ("", text)):
        config.end_of_thinking = end
        assert visible(text, thinking_of(config)) == shown
        assert thinking_of(config).end == end


def test_an_engine_ends_thoughts_as_its_config_says():
    config = get_config()
    config.model, config.engine.max_thinking_tokens = "reasoner", 8
    with pytest.raises(ValueError, match="config.end_of_thinking"):
        open_engine(typed(config), None)
    config.end_of_thinking = "The answer is"
    assert open_engine(typed(config), None).thinking.end == "The answer is"


@pytest.mark.parametrize(
    ("prompt", "shown"), [("<think>\n", None), ("<think>\n\n</think>\n\n", "4")]
)
def test_a_local_model_is_read_by_its_template(
    tiny_model, tmp_path, prompt, shown
):
    directory = shutil.copytree(tiny_model, tmp_path / "model")
    file = directory / "tokenizer_config.json"
    raw = json.loads(file.read_text())
    raw["chat_template"] += prompt.replace("\n", "{{ '\\n' }}")
    file.write_text(json.dumps(raw))
    config = get_config()
    config.model = str(directory)
    how = open_sampler(typed(config)).thinking
    turn_start = how.turn_start([Message("user", "2 + 2?")])
    assert turn_start.endswith(prompt)
    assert visible("4", how, turn_start) == shown
    assert visible("5?</think>4", how, turn_start) == "4"

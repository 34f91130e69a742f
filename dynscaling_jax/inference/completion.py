"""Reads what an OpenAI-compatible endpoint replied: bytes to a Sample.

Servers differ, and what they send is not trusted: every text, number and
shape may be anything.
"""

import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynscaling_jax.inference.sampling import windowed
from dynscaling_jax.sampler import empty
from dynscaling_jax.types import Request, Sample

WORDS = 200  # characters of a server's words that a message shows
LARGEST = 1e6  # of a log-probability; more is no measure
MOST_TOKENS = 2**31 - 1  # of one sample: int32 in the table of candidates
# finish_reason, in lower case, as the servers spell it
CUT = {
    "length", "max_tokens", "max_output_tokens", "model_length",
    "model_context_window_exceeded",
}  # fmt: skip
FILTERED = {"content_filter", "sensitive", "safety"}
BROKEN = {
    "error", "abort", "aborted", "cancelled", "network_error", "timeout",
    "insufficient_system_resource",
}  # fmt: skip
_MALFORMED = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RecursionError,
)


class Failure(Exception):
    """What failed with a request, or why a reply is not a full completion."""

    def __init__(
        self, why: str, status: int | None = None, after: str | None = None
    ):
        """Takes the HTTP status and a Retry-After, None where there is none.

        A gateway may send an error with status 200: the reply has its own.
        """
        super().__init__(why)
        self.status, self.after = status, after


def read(request: Request, content: bytes, limit: int | None) -> Sample:
    """Reads a reply as the sample of a request.

    limit is max_tokens, by which a reply without finish_reason is judged.
    The text is what the server calls content; a thought that it splits off
    is no part of it.

    Raises:
        Failure: the reply is none.
    """
    try:
        streamed = content.lstrip()[:6].startswith((b"data:", b"event:", b":"))
        reply = _joined(content) if streamed else json.loads(content)
        if error := reply.get("error"):
            code = error.get("code") if isinstance(error, dict) else None
            known = type(code) is int and 400 <= code < 600
            raise Failure(error_text(content, reply), code if known else None)
        choice = reply["choices"][0]
        text = _text(choice["message"].get("content"))
        thought = _text(choice["message"].get("reasoning_content"))
        thought = thought or _text(choice["message"].get("reasoning"))
        reason = choice.get("finish_reason")
    except _MALFORMED:
        raise Failure(
            f"the reply is not a chat completion: {error_text(content)}"
        ) from None
    name = reason.lower() if isinstance(reason, str) else ""
    if name in BROKEN:
        why = f"the endpoint ended the sample with {name!r}"
        if choice.get("error"):
            why += f": {_one_line(_message(choice))}"
        raise Failure(why)
    logprob_T, confidence_T = _logprobs(choice)
    prompt, cached, new = _usage(request, reply, text + thought, len(logprob_T))
    finish = "stop"
    if name in FILTERED:
        text, finish = "", "error: the endpoint's content filter"
    elif name in CUT or (not name and limit and new >= limit):
        finish = "length"
    return empty(request)._replace(
        text=text,
        finish_reason=finish,
        prompt_tokens=prompt,
        cached_tokens=cached,
        new_tokens=new,
        logprob=float(logprob_T.mean()) if len(logprob_T) else None,
        confidence=float(confidence_T.mean()) if len(confidence_T) else None,
        signals=windowed(confidence_T) if len(confidence_T) else {},
    )


def error_text(content: bytes, reply: Any = None) -> str:
    """Extracts what a server says in place of a completion, as one line."""
    text = content[: 1 << 16].decode("utf-8", "replace")
    try:
        reply = json.loads(content) if reply is None else reply
        text = _message(reply)
    except (ValueError, RecursionError):
        if text.lstrip().startswith("<"):  # a page: its words alone
            text = re.sub(r"<(style|script)\b[^<]*|<[^<>]*>", " ", text)
    return _one_line(text)


def _message(reply: Any) -> str:
    """The words of an error, wherever its server puts them."""
    for name in ("error", "message", "detail", "msg"):
        if isinstance(reply, dict) and reply.get(name):
            return _message(reply[name])
    return reply if isinstance(reply, str) else json.dumps(reply)


def _one_line(text: str) -> str:
    """Safe for a terminal: no control characters, no lone surrogates."""
    text = text[: 1 << 12]
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split())[:WORDS]


def _joined(content: bytes) -> dict[str, Any]:
    """The chunks of a stream, which was not requested, as one reply.

    Raises ValueError where the stream ends before the sample does.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    tokens: list[Any] = []
    usage, reason, done = None, None, False
    for line in content.splitlines():
        if not line.startswith(b"data:"):
            continue
        if line[5:].strip() == b"[DONE]":
            done = True
            break
        chunk = json.loads(line[5:])
        if chunk.get("error"):
            return chunk
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or {}
            texts.append(_text(delta.get("content")))
            thoughts.append(
                _text(delta.get("reasoning_content"))
                or _text(delta.get("reasoning"))
            )
            tokens += (choice.get("logprobs") or {}).get("content") or []
            reason = choice.get("finish_reason") or reason
    if not (done or reason):
        raise ValueError("the stream ends early")
    message = {
        "content": "".join(texts),
        "reasoning_content": "".join(thoughts),
    }
    choice = {
        "message": message,
        "finish_reason": reason,
        "logprobs": {"content": tokens},
    }
    return {"choices": [choice], "usage": usage}


def _text(content: Any) -> str:
    """Content as text: itself, or the text parts of a list of parts."""
    if isinstance(content, list):
        parts = [p for p in content if p.get("type", "text") == "text"]
        return "".join(_text(p["text"]) for p in parts)
    if content is None or isinstance(content, str):
        return content or ""
    raise TypeError("content is neither a text nor parts of one")


def _logprobs(choice: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability and confidence of each token.

    Each is empty where the reply does not give it, as a number that can be
    one, for every token.
    """
    empty = np.zeros(0)
    try:
        tokens = choice["logprobs"]["content"]
        logprob_T = _measures([token["logprob"] for token in tokens])
    except (KeyError, TypeError, ValueError, OverflowError):
        return empty, empty
    try:
        return logprob_T, _measures([_confidence(token) for token in tokens])
    except (KeyError, TypeError, ValueError, OverflowError, ZeroDivisionError):
        return logprob_T, empty


def _confidence(token: Mapping[str, Any]) -> float:
    tops = [top["logprob"] for top in token["top_logprobs"]]
    return -math.fsum(tops) / len(tops)


def _measures(values: Sequence[Any]) -> np.ndarray:
    measures_T = np.array(values, np.float64)
    if measures_T.ndim != 1 or not (np.abs(measures_T) <= LARGEST).all():
        raise ValueError("no log-probabilities")
    return measures_T


def _usage(
    request: Request, reply: Mapping[str, Any], text: str, tokens: int
) -> tuple[int, int, int]:
    """(prompt, cached, new) tokens of a reply."""
    usage = _object(reply, "usage")
    prompt = _count(usage, "prompt_tokens")
    new = _count(usage, "completion_tokens")
    cached = _count(_object(usage, "prompt_tokens_details"), "cached_tokens")
    if prompt is None or new is None:
        warnings.warn(
            "the endpoint's replies do not say how many tokens they cost; "
            "they are counted by their log-probabilities, or four bytes a "
            "token",
            stacklevel=2,
        )
    if prompt is None:
        prompt = sum(_estimate(m.content) for m in request.messages)
    if new is None:
        new = tokens or _estimate(text)
    return prompt, min(cached or 0, prompt), new


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _count(parent: Mapping[str, Any], name: str) -> int | None:
    value = parent.get(name)
    right = type(value) is int and 0 <= value <= MOST_TOKENS
    return value if right else None


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // 4)

"""An OpenAI-compatible endpoint as a SampleFn.

A request that fails, by itself or after retries, becomes a sample without an
answer whose finish_reason says what failed, and the run goes on. An endpoint
that fails all requests alike (a wrong key, an unknown model, no server, no
end to its rate limit) raises instead, once what is under way has come in: the
run can be started again later, and no budget is spent on failures.
"""

import concurrent.futures
import email.utils
import hashlib
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2
import numpy as np

from dynscaling_jax.engine.confidence import windowed
from dynscaling_jax.types import Message, Request, Sample, SampleFn

MOST_BYTES = 1 << 27  # of a reply
LONGEST_WAIT = 300.0  # seconds that a Retry-After may ask for
OPENING = 0.5  # seconds for connections to be there, before they are closed
GO_ON = (
    "Your last message ends before the answer is complete. Go on from exactly "
    "where it ends, without repeating it."
)


class Settings(NamedTuple):
    """How requests are made; see `endpoint`."""

    model: str
    url: str
    body: dict[str, Any]
    seed: int
    continues: bool
    retries: int
    backoff: float
    timeout: float


def endpoint(
    model: str,
    base_url: str,
    *,
    seed: int = 0,
    max_new_tokens: int = 1024,
    temperature: float = 1.0,
    top_p: float = 1.0,
    stop: Sequence[str] = (),
    logprobs: bool = True,
    continue_final_message: bool = False,
    extra_body: Mapping[str, Any] | None = None,
    concurrency: int = 16,
    max_retries: int = 5,
    backoff: float = 0.5,
    timeout: float = 600.0,
) -> SampleFn:
    """A model behind BASE_URL/chat/completions.

    The key is OPENAI_API_KEY of the environment; none is sent where that is
    not set. Each sample has a seed of its own from (seed, query, index). The
    samples' flops are 0, since nothing is known of the model, and cached
    tokens are what the endpoint says; a reply without usage is counted by its
    log-probabilities, or four bytes a token, with a warning.

    Args:
      logprobs: ask for log-probabilities; where the endpoint refuses them,
        the request is repeated without.
      continue_final_message: the server goes on with a last assistant turn if
        the body says so (vLLM, SGLang). Otherwise, as OpenAI's own API cannot
        do that, a user turn follows that asks the model to go on.
      extra_body: further fields of the body; None removes one.
      concurrency: requests under way at once.
      max_retries: further tries after a time-out, a lost connection, a reply
        that is no completion, or status 408, 409, 429 or 5xx.
      backoff: seconds before the first retry, doubled for each further one;
        a Retry-After of the endpoint goes before.
      timeout: seconds for one try.

    Raises:
      ValueError: base_url is no http(s) URL.
      PermissionError, LookupError, ConnectionError: while drawing; the key
        is refused, the model or URL unknown, the endpoint not to be reached
        or at its rate limit after all retries.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(
            f"base_url {base_url!r} is not an http:// or https:// URL"
        )
    body = {
        "model": model,
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "stop": list(stop) or None,
        "logprobs": True if logprobs else None,
        "top_logprobs": 20 if logprobs else None,
        **(extra_body or {}),
    }
    settings = Settings(
        model,
        f"{base_url.rstrip('/')}/chat/completions",
        {name: value for name, value in body.items() if value is not None},
        seed,
        continue_final_message,
        max_retries,
        backoff,
        timeout,
    )
    key = os.environ.get("OPENAI_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}

    def draw(requests: Sequence[Request]) -> Iterator[Sample]:
        stopped = threading.Event()
        waiting, running, fatal = iter(requests), set(), None
        pool = concurrent.futures.ThreadPoolExecutor(concurrency)
        client = httpx2.Client(
            headers=headers,
            timeout=timeout,
            limits=httpx2.Limits(max_connections=concurrency),
        )
        try:
            while True:
                while fatal is None and len(running) < concurrency:
                    request = next(waiting, None)
                    if request is None:
                        break
                    running.add(
                        pool.submit(_sample, client, settings, request, stopped)
                    )
                if not running:
                    break
                done, running = concurrent.futures.wait(
                    running,
                    return_when=concurrent.futures.FIRST_COMPLETED,
                )
                for future in done:
                    error = future.exception()
                    if error is None:
                        yield future.result()
                    else:
                        fatal = fatal or error
                        stopped.set()
            if fatal is not None:
                raise fatal
        finally:
            stopped.set()
            # what is being opened as the client closes would stay open
            concurrent.futures.wait(running, OPENING)
            pool.shutdown(wait=False)
            client.close()

    return draw


def parse_url(text: str) -> tuple[str, str]:
    """(model, base_url) of a text openai://MODEL@BASE_URL.

    Raises ValueError for any other.
    """
    model, at, base_url = text.removeprefix("openai://").partition("@")
    if not (text.startswith("openai://") and model and at and base_url):
        raise ValueError(
            f"{text!r} is not openai://MODEL@BASE_URL, such as "
            "openai://my-model@http://localhost:8000/v1"
        )
    return model, base_url


class Failure(Exception):
    """What failed with one try."""


def _sample(
    client: httpx2.Client,
    settings: Settings,
    request: Request,
    stopped: threading.Event,
) -> Sample:
    """One sample, after as many tries as it takes and may take."""
    body, tries = _body(settings, request), 0
    while True:
        after, fatal = None, False
        try:
            status, headers, content = _post(client, settings, body)
            if status == 200:
                return _read(request, content)
            failure = f"HTTP {status}: {_message(content)}"
            if status in (401, 403):
                raise PermissionError(
                    f"{settings.url} refuses the key in OPENAI_API_KEY "
                    f"({failure}); set the right one and start again"
                )
            if status == 404:
                raise LookupError(
                    f"{settings.url} has no model {settings.model!r}, or is "
                    f"not the URL of an endpoint ({failure})"
                )
            if status == 400 and "logprobs" in body and "logprobs" in failure:
                del body["logprobs"]
                body.pop("top_logprobs", None)
                continue
            if status not in (408, 409, 429) and status < 500:
                return _failed(request, failure)
            after, fatal = headers.get("retry-after"), status == 429
        except Failure as error:
            failure = str(error)
        except httpx2.TimeoutException:
            failure = f"no reply within {settings.timeout} s"
        except httpx2.TransportError as error:
            failure = f"{type(error).__name__}: {error}"
            fatal = isinstance(error, httpx2.ConnectError)
        if tries == settings.retries:
            break
        wait = _seconds(after)
        if wait is None:
            wait = min(settings.backoff * 2**tries, LONGEST_WAIT)
        if stopped.wait(wait):  # no failure of this request: leave no row
            raise ConnectionError("the run has stopped")
        tries += 1
    if fatal:
        raise ConnectionError(
            f"{settings.url} cannot be used: {failure} (after {tries + 1} "
            "tries). What was drawn before is kept; start the same command "
            "again when the endpoint is back"
        )
    return _failed(request, failure)


def _body(settings: Settings, request: Request) -> dict[str, Any]:
    messages = list(request.messages)
    extra = {}
    if messages[-1].role == "assistant":
        if settings.continues:
            extra = {
                "continue_final_message": True,
                "add_generation_prompt": False,
            }
        else:
            messages.append(Message("user", GO_ON))
    name = json.dumps([settings.seed, request.query.id, request.index])
    digest = hashlib.sha256(name.encode()).digest()
    return {
        **settings.body,
        **extra,
        "messages": [
            {"role": m.role, "content": _encodable(m.content)} for m in messages
        ],
        "seed": int.from_bytes(digest[:4], "little") >> 1,  # fits an int32
    }


def _encodable(text: str) -> str:
    """Lone surrogates cannot be sent."""
    return text.encode("utf-8", "replace").decode()


def _post(
    client: httpx2.Client, settings: Settings, body: Mapping[str, Any]
) -> tuple[int, Mapping[str, str], bytes]:
    """(status, headers, content). The client's own time-out is for each read;
    a reply that trickles in for ever meets the one here."""
    end = time.monotonic() + settings.timeout
    content = b""
    with client.stream("POST", settings.url, json=body) as response:
        for part in response.iter_bytes():
            content += part
            if time.monotonic() > end:
                raise httpx2.ReadTimeout("the reply took too long")
            if len(content) > MOST_BYTES:
                raise Failure(f"a reply of more than {MOST_BYTES} bytes")
        return response.status_code, response.headers, content


def _read(request: Request, content: bytes) -> Sample:
    """A completion as a sample. Raises Failure where it is none."""
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text = choice["message"].get("content") or ""
        reason = choice["finish_reason"]
        if not isinstance(text, str) or not isinstance(reason, str):
            raise TypeError
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        RecursionError,
    ):
        raise Failure("the reply is not a chat completion") from None
    if reason == "content_filter":
        reason = "error: the endpoint's content filter"
    elif reason != "length":
        reason = "stop"
    logprob_T, confidence_T = _logprobs(choice)
    prompt, cached, new = _usage(request, reply, text, len(logprob_T))
    return _empty(request)._replace(
        text=text,
        finish_reason=reason,
        prompt_tokens=prompt,
        cached_tokens=cached,
        new_tokens=new,
        logprob=float(logprob_T.mean()) if len(logprob_T) else None,
        confidence=float(confidence_T.mean()) if len(confidence_T) else None,
        signals=windowed(confidence_T) if len(confidence_T) else {},
    )


def _logprobs(choice: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability and confidence of each token; each empty where the
    reply does not give it, as a finite number, for every token."""
    empty = np.zeros(0)
    try:
        tokens = choice["logprobs"]["content"]
        logprob_T = np.array([t["logprob"] for t in tokens], np.float64)
    except (KeyError, TypeError, ValueError):
        return empty, empty
    if logprob_T.ndim != 1 or not np.isfinite(logprob_T).all():
        return empty, empty
    try:
        confidence_T = np.array(
            [
                -math.fsum(top["logprob"] for top in t["top_logprobs"])
                / len(t["top_logprobs"])
                for t in tokens
            ]
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return logprob_T, empty
    if not np.isfinite(confidence_T).all():
        return logprob_T, empty
    return logprob_T, confidence_T


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
        prompt = sum(_estimate(m.content) for m in request.messages)
        new = tokens or _estimate(text)
    return prompt, min(cached or 0, prompt), new


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _count(parent: Mapping[str, Any], name: str) -> int | None:
    value = parent.get(name)
    return value if type(value) is int and value >= 0 else None


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // 4)


def _empty(request: Request) -> Sample:
    return Sample(
        query_id=request.query.id,
        index=request.index,
        round=request.round,
        parents=request.parents,
        text="",
        answer=None,
        finish_reason="",
        prompt_tokens=0,
        cached_tokens=0,
        new_tokens=0,
        flops=0.0,
    )


def _failed(request: Request, failure: str) -> Sample:
    return _empty(request)._replace(finish_reason=f"error: {failure}")


def _message(content: bytes) -> str:
    """What a refusal says, in one short line."""
    try:
        said = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        said = content.decode("utf-8", "replace")
    return " ".join(said.split())[:200]


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After, of seconds or of a date, as seconds from now."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        seconds = date.timestamp() - time.time()
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT)

"""An OpenAI-compatible endpoint as a Sampler.

A request that fails, by itself or after retries, becomes a sample without an
answer whose finish_reason says what failed, and the run goes on. An endpoint
that fails all requests alike (a wrong key, an unknown model, a setting that it
refuses, no server, no end to its rate limit) raises instead, once what is
under way has come in: no budget is spent on failures, and the run can be
started again later.

Retries are written here and not with tenacity: their count begins again while
other samples come, and one try may drop the log-probabilities that the server
refuses.
"""

import asyncio
import collections
import contextlib
import email.utils
import hashlib
import json
import math
import os
import queue
import re
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import httpx2

from dynscaling_jax.inference import sampling
from dynscaling_jax.inference.completion import Failure, error_text, read
from dynscaling_jax.sampler import cancelled, empty
from dynscaling_jax.thinking import Thinking
from dynscaling_jax.types import (
    Budget,
    Message,
    Request,
    Sample,
    SampleKey,
    Watch,
    count_words,
)

MOST_BYTES = 1 << 27  # of a reply
LONGEST_WAIT = 300.0  # seconds that a Retry-After may ask for
CONNECTING = 30.0  # seconds until a server that does not answer is given up
WAIT = 0.5  # seconds after which it is looked again what has arrived
CLOSING = 2.0  # seconds that cancelled requests get to hang up
ALIKE = 8  # queries without a sample that are taken for all of them
SECRET = 8  # characters of a key that give it away
# Statuses that concern the key, the account or the URL, and so all requests;
# those that pass with time; any other refuses the request that it answers.
LASTING = {401, 402, 404, 405, 407, *range(300, 400)}
PASSING = {None, 408, 409, 425, 429, *range(500, 600)}
GO_ON = (
    "Your last message ends before the answer is complete. Go on from exactly "
    "where it ends, without repeating it."
)
LATER = "start the same command again: what a run sampled before is kept"


class Unreachable(Failure):
    """No connection could be made."""


class Endpoint:
    """Samples of the model behind BASE_URL/chat/completions; a types.Sampler.

    The key is OPENAI_API_KEY of the environment; none is sent where that is
    not set. The samples' flops are 0, since nothing is known of the model, and
    cached tokens are what the endpoint says; a reply without usage is counted
    by its log-probabilities, or four bytes a token, with a warning. No server
    ends a sample for its confidence: Request.least_confidence is not looked at.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        *,
        seed: int | None = 0,
        max_new_tokens: int = 1024,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: Sequence[str] = (),
        logprobs: bool = True,
        continue_final_message: bool = False,
        extra_body: Mapping[str, Any] | None = None,
        concurrency: int = 64,
        retries: int = 5,
        backoff: float = 0.5,
        timeout: float = 600.0,
    ):
        """Checks the settings; nothing is sent yet.

        Args:
            model: its name at the server.
            base_url: http(s)://HOST:PORT/v1.
            seed: each sample has a seed of its own from (seed, query, index);
                None sends none.
            max_new_tokens: of one sample.
            temperature: sent as it is.
            top_k: sent where it is not 0, as not every server has it.
            top_p: sent as it is.
            min_p: as top_k.
            stop: strings that end a sample.
            logprobs: requests log-probabilities. Where the endpoint refuses
                them, this request is repeated without, and so are the others.
            continue_final_message: has the server continue a last assistant
                turn (vLLM, SGLang). Otherwise, as OpenAI's own API cannot do
                that, a user turn follows that asks the model to go on.
            extra_body: further fields of the body; None removes one.
            concurrency: requests under way at once.
            retries: further tries after a time-out, a lost connection, a reply
                that is no completion, or status 408, 409, 425, 429 or 5xx. A
                rate limit is waited for as long as other samples come.
            backoff: seconds before the first retry, doubled for each further
                one; a Retry-After of the endpoint goes before.
            timeout: seconds for one try, from the connection to the last byte.

        Raises:
            ValueError: a setting that cannot be.
        """
        sampling.settings(temperature, top_k, top_p, min_p)  # checks them
        for name, value, least in (
            ("concurrency", concurrency, 1),
            ("retries", retries, 0),
            ("timeout", timeout, 1e-3),
            ("max_new_tokens", max_new_tokens, 1),
        ):
            if not least <= value < math.inf:
                raise ValueError(
                    f"{name}={value}: expected a number from {least} on"
                )
        body = {
            "model": model,
            "seed": seed,
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "top_k": top_k or None,
            "top_p": top_p,
            "min_p": min_p or None,
            "stop": list(stop) or None,
            "logprobs": True if logprobs else None,
            "top_logprobs": sampling.TOP if logprobs else None,
            **(extra_body or {}),
        }
        self._url, self._key = _address(base_url), _key()
        self._body = {
            n: value for n, value in body.items() if value is not None
        }
        self._continues = continue_final_message
        self._concurrency, self._retries = concurrency, retries
        self._backoff, self._timeout = backoff, timeout
        self._samples = 0  # that came
        self._calls: weakref.WeakSet[_Call] = weakref.WeakSet()
        self._worker: _Worker | None = None  # of all calls
        self._lock = threading.Lock()  # of whoever asks it
        # in any call; a handler of signals may put something while others do
        self._changed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._logprobs = True  # not refused
        self.name = f"openai://{model}@{base_url}"
        self.max_prompt_tokens = None
        self.max_cost = Budget(new_tokens=max_new_tokens)
        # Nobody here knows the prompt that the server makes of a turn, so no
        # thought is taken to begin in it.
        self.thinking = Thinking(turn_start=lambda _: "")

    def sample(self, requests: Sequence[Request]) -> Iterator[Sample]:
        """Samples what is requested; yields each sample when it arrives.

        Raises:
            ConnectionError: with the endpoint's own words; it refuses or fails
                all requests alike.
        """
        call = _Call(self, requests)
        self._calls.add(call)
        return call

    @property
    def watch(self) -> Watch:
        """How samples are watched: nothing is known of their tokens so far.

        The server hangs up on one that is cancelled. What it took by then is
        not told, and so counts as nothing.
        """
        return Watch(self._under_way, self._wait, self._cancelled, False)

    def _under_way(self) -> dict[SampleKey, int]:
        return {key: 0 for call in [*self._calls] for key in [*call.left]}

    def _wait(self) -> None:
        """Waits a while for a sample to arrive, or a call to end."""
        with contextlib.suppress(queue.Empty):
            self._changed.get(timeout=WAIT)
            while True:  # what came meanwhile is seen in the calls
                self._changed.get_nowait()

    def _cancelled(self, request: Request, new: int) -> Sample:
        del new
        return cancelled(request, 0, 0, 0)

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Estimates the length of a prompt: the tokenizer is the server's."""
        return count_words(messages)


def parse_url(text: str) -> tuple[str, str]:
    """Splits openai://MODEL@BASE_URL into (model, base_url).

    Raises:
        ValueError: it is another text.
    """
    found = re.fullmatch(r"openai://(.+?)@(\w+://.+)", text)
    if not found:
        raise ValueError(
            f"{text!r} is not openai://MODEL@BASE_URL, such as "
            "openai://my-model@http://localhost:8000/v1"
        )
    return found[1], found[2]


def _address(base_url: str) -> str:
    """The URL of the requests. What it must not hold is not shown."""
    try:
        url = httpx2.URL(base_url)
    except (httpx2.InvalidURL, ValueError):
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError("base_url is not an http:// or https:// URL")
    if url.userinfo or url.query or url.fragment:
        raise ValueError(
            f"the base_url of {url.host} has a password, a query or a "
            "fragment, which would stand in the files of a run; give the key "
            "as OPENAI_API_KEY, and http(s)://HOST:PORT/v1 alone"
        )
    return f"{base_url.rstrip('/')}/chat/completions"


def _key() -> str:
    """OPENAI_API_KEY, less the line end that a file of it leaves."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ValueError(
            "OPENAI_API_KEY holds a character that no key has, such as a line "
            "end or a letter that is not ASCII; set it again"
        )
    return key


def interrupt(stop: BaseException) -> bool:
    """Ends all calls, from a handler of signals.

    Each raises stop once it has handed on what has arrived. Returns False
    where there are none.
    """
    calls = [*_running]
    for call in calls:
        call.end(stop)
    return bool(calls)


class _Call(Iterator[Sample]):
    """The samples of some requests as they arrive.

    Closing it cancels the requests.
    """

    def __init__(self, server: Endpoint, requests: Sequence[Request]):
        self.left = {(r.query.id, r.index) for r in requests}
        self._changed = server._changed
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()
        self._over = False
        self._due = len(requests)  # samples that the worker owes
        # weak, so that a call which is left is collected
        self._ref: weakref.ref[_Call] = weakref.ref(self)
        _running.add(self)
        if not requests:
            self.end(None)
            return
        jobs = [_Job(self._ref, request) for request in requests]
        with server._lock:
            if not (server._worker and server._worker.tell(jobs)):
                server._worker = _Worker(server, jobs)
            self._worker = server._worker

    def put(self, sample: Sample) -> None:
        """Takes a sample, from the thread."""
        self._arrived.put(sample)
        self.left.discard((sample.query_id, sample.index))
        self._changed.put(None)
        self._due -= 1
        if not self._due:
            self.end(None)

    def fail(self, why: BaseException | None) -> None:
        """Says that the worker has ended, and why."""
        self._due = 0
        self.end(why)

    def end(self, why: BaseException | None) -> None:
        """Says that no sample is to be waited for any more, and why."""
        self._arrived.put(why)
        self.left.clear()
        self._changed.put(None)

    def __next__(self) -> Sample:
        if self._over:
            raise StopIteration
        item = self._arrived.get()
        if isinstance(item, Sample):
            return item
        self.close()
        raise item or StopIteration

    def close(self) -> None:
        """Cancels what is under way."""
        if self._over:
            return
        self._over = True
        _running.discard(self)
        self.left.clear()
        if self._due:
            self._worker.drop(self._ref)

    def __del__(self) -> None:
        if hasattr(self, "_worker"):
            self.close()


_running: weakref.WeakSet[_Call] = weakref.WeakSet()


class _Job(NamedTuple):
    """A request, and the call that waits for its sample."""

    call: "weakref.ref[_Call]"
    request: Request

    def put(self, sample: Sample) -> None:
        if there := self.call():
            there.put(sample)

    def fail(self, failure: Failure) -> None:
        sample = empty(self.request)
        self.put(sample._replace(finish_reason=f"error: {failure}"))


class _Worker:
    """Sends the requests of all calls of an endpoint, by a thread of its own.

    It ends when nothing is left to do. What fails is looked at together,
    whichever call it is of: where samples are asked for one at a time, none
    could tell alone that all fail alike.

    Failures are held back until a sample comes and shows that they were of
    their requests: then they are samples too. Where those of ALIKE queries
    are held, no more requests are sent, and if no sample comes of what is
    under way, the endpoint fails alike. Those of fewer queries may be all that
    is left of a run: there a plain question decides, unless samples came
    before and fewer than ALIKE failed.
    """

    def __init__(self, server: Endpoint, jobs: Sequence[_Job]):
        self._server = server
        # of the next two; a call that is collected here may drop its jobs
        self._lock = threading.RLock()
        self._over = False
        self._inbox: list[_Job | _Dropped] = [*jobs]
        self._woken = asyncio.Event()
        self._stopped = asyncio.Event()  # one has failed for all
        self._waiting: collections.deque[_Job] = collections.deque()
        self._sent: dict[asyncio.Task[Sample], _Job] = {}
        self._held: list[tuple[_Job, Failure]] = []
        self._fatal: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, name="endpoint", daemon=True
        )
        self._thread.start()

    def drop(self, call: "weakref.ref[_Call]") -> None:
        """Lets go of the jobs of a call; waits a little until it hung up."""
        dropped = _Dropped(call, threading.Event())
        told = self.tell([dropped])
        if told and self._thread is not threading.current_thread():
            dropped.done.wait(CLOSING)

    def tell(self, what: "Sequence[_Job | _Dropped]") -> bool:
        """Takes on jobs, or lets go of some; false where it has ended."""
        with self._lock:
            if self._over:
                return False
            self._inbox += what
            self._loop.call_soon_threadsafe(self._woken.set)
            return True

    def _run(self) -> None:
        """Works to the end, in the thread; tells all calls of an error."""
        try:
            try:
                self._loop.run_until_complete(self._work())
            finally:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        except BaseException as error:
            self._fatal = self._fatal or error
        with self._lock:
            self._over = True
        self._loop.close()
        jobs = [*self._waiting, *self._sent.values()]
        jobs += [job for job, _ in self._held]
        for told in self._inbox:
            if isinstance(told, _Dropped):
                told.done.set()
            else:
                jobs.append(told)
        # by id: a reference whose call is collected has no hash
        for call in {id(job.call): job.call for job in jobs}.values():
            if there := call():
                there.fail(self._fatal)

    async def _work(self) -> None:
        server = self._server
        async with _client(server) as client:
            try:
                while not await self._done(client):
                    free = server._concurrency - len(self._sent)
                    if self._fatal or self._alike:
                        free = 0
                    for _ in range(min(free, len(self._waiting))):
                        job = self._waiting.popleft()
                        one = _sample(
                            client, server, job.request, self._stopped
                        )
                        self._sent[asyncio.create_task(one)] = job
                    await self._something()
            finally:
                for task in self._sent:
                    task.cancel()
                await asyncio.gather(*self._sent, return_exceptions=True)

    async def _done(self, client: httpx2.AsyncClient) -> bool:
        """Takes what was told; whether all is done, or all fails alike."""
        await self._read_inbox()
        if self._sent or (self._waiting and not (self._fatal or self._alike)):
            return False
        if self._held and not self._fatal:
            job, failure = self._held[0]
            some = self._server._samples and len(self._held) < ALIKE
            if not self._alike and (
                some or await _works(client, self._server, job.request)
            ):
                self._release()
            else:
                self._fatal = _alike(self._server, failure)
        with self._lock:
            self._over = bool(self._fatal) or not self._inbox
        return self._over

    async def _something(self) -> None:
        """Waits for a sample, or to be told something."""
        woken = asyncio.ensure_future(self._woken.wait())
        await asyncio.wait(
            [*self._sent, woken], return_when=asyncio.FIRST_COMPLETED
        )
        woken.cancel()
        for task in [task for task in self._sent if task.done()]:
            self._take(task)

    def _take(self, task: asyncio.Task[Sample]) -> None:
        """Takes what came of a request."""
        error = task.exception()
        if error and not isinstance(error, Failure | ConnectionError):
            raise error  # with the job among those that are told of it
        server, job = self._server, self._sent.pop(task)
        if error is None:
            server._samples += 1
            self._release()
            job.put(task.result())
        elif isinstance(error, ConnectionError):
            self._fatal = self._fatal or error
            self._stopped.set()
            self._waiting.append(job)  # for ever: no more are sent
        elif server._samples and error.status not in PASSING:
            job.fail(error)
        else:
            self._held.append((job, error))

    async def _read_inbox(self) -> None:
        self._woken.clear()
        with self._lock:
            told, self._inbox = self._inbox, []
        for one in told:
            if isinstance(one, _Job):
                self._waiting.append(one)
                continue
            self._waiting = collections.deque(
                job for job in self._waiting if job.call is not one.call
            )
            self._held = [h for h in self._held if h[0].call is not one.call]
            gone = [t for t, job in self._sent.items() if job.call is one.call]
            for task in gone:
                task.cancel()
                del self._sent[task]
            await asyncio.gather(*gone, return_exceptions=True)
            one.done.set()

    @property
    def _alike(self) -> bool:
        return len({job.request.query.id for job, _ in self._held}) >= ALIKE

    def _release(self) -> None:
        for job, failure in self._held:
            job.fail(failure)
        self._held.clear()


class _Dropped(NamedTuple):
    """Tells a worker that nobody waits for a call any more."""

    call: "weakref.ref[_Call]"
    done: threading.Event


def _client(server: Endpoint) -> httpx2.AsyncClient:
    """Follows no redirect, which could carry the key to another host."""
    key = server._key
    try:
        return httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(None, connect=CONNECTING),
            limits=httpx2.Limits(max_connections=server._concurrency),
        )
    except ImportError as error:  # a proxy of a kind that needs a package
        raise ValueError(str(error)) from None


async def _sample(
    client: httpx2.AsyncClient,
    server: Endpoint,
    request: Request,
    stopped: asyncio.Event,
) -> Sample:
    """One sample, after as many tries as it takes and may take.

    Raises:
        Failure: of this request.
        ConnectionError: of all requests.
    """
    body = _body(server, request)
    if not server._logprobs:
        body = _without_logprobs(body)
    tries, seen = 0, server._samples
    while True:
        try:
            sample = await _once(client, server, request, body)
            if "logprobs" in server._body and "logprobs" not in body:
                server._logprobs = False
            return sample
        except Failure as error:
            failure = error
        refused = failure.status not in PASSING | LASTING
        if "logprobs" in body and (
            "logprob" in str(failure).lower()
            or (refused and not server._samples)  # and does not say for what
        ):
            body = _without_logprobs(body)
            continue
        if failure.status in LASTING:
            raise _lasting(server, failure)
        if refused:
            raise failure
        if failure.status == 429 and server._samples > seen:
            tries, seen = 0, server._samples
        if tries == server._retries:
            break
        wait = _seconds(failure.after)
        if wait is None:
            wait = min(server._backoff * 2**tries, LONGEST_WAIT)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), wait)
            # no failure of this request: leave no row
            raise ConnectionError("the run has stopped")
        tries += 1
    if failure.status == 429 or isinstance(failure, Unreachable):
        less = " with a lower config.endpoint.concurrency or"
        raise ConnectionError(
            f"{server._url} cannot be used: {failure} (after {tries + 1} "
            f"tries);{less * (failure.status == 429)} later, {LATER}"
        )
    raise failure


async def _once(
    client: httpx2.AsyncClient,
    server: Endpoint,
    request: Request,
    body: Mapping[str, Any],
) -> Sample:
    """One try. Raises Failure."""
    hide = lambda text: _without(server._key, text)
    try:
        content = bytearray()
        async with (
            asyncio.timeout(server._timeout),
            client.stream("POST", server._url, json=body) as response,
        ):
            status, headers = response.status_code, response.headers
            async for part in response.aiter_bytes():
                content += part
                if len(content) > MOST_BYTES:
                    raise Failure(f"a reply of more than {MOST_BYTES} bytes")
        if not 200 <= status < 300:
            why = f"HTTP {status}: {error_text(bytes(content))}".rstrip()
            if "location" in headers:
                why += f" moved to {error_text(headers['location'].encode())}"
            raise Failure(why, status, headers.get("retry-after"))
        limit = body.get("max_completion_tokens", body.get("max_tokens"))
        sample = read(
            request, bytes(content), limit if type(limit) is int else None
        )
    except Failure as error:
        why = hide(str(error))
        raise Failure(why, error.status, error.after) from None
    except TimeoutError:
        raise Failure(f"no reply within {server._timeout:g} s") from None
    except httpx2.ConnectTimeout:
        raise Unreachable(f"no connection within {CONNECTING:g} s") from None
    except httpx2.RequestError as error:
        why = error_text(f"{type(error).__name__}: {error}".encode())
        lost = isinstance(error, httpx2.ConnectError)
        raise (Unreachable if lost else Failure)(hide(why)) from None
    if len(server._key) >= 2 * SECRET and server._key in sample.text:
        text = sample.text.replace(server._key, "***")
        sample = sample._replace(text=text)
    return sample


async def _works(
    client: httpx2.AsyncClient, server: Endpoint, request: Request
) -> bool:
    """Whether it answers a plain question, without log-probabilities."""
    system = [m for m in request.messages if m.role == "system"]
    plain = request._replace(messages=(*system, Message("user", "Hello.")))
    try:
        body = _without_logprobs(_body(server, plain))
        await _once(client, server, plain, body)
    except Failure:
        return False
    return True


def _lasting(server: Endpoint, failure: Failure) -> ConnectionError:
    """What to do about a status that all requests will get."""
    right = "name the right one in config.model"
    no_model = f"has no model {server._body.get('model')!r}, or "
    why, mend = {
        401: ("refuses the key in OPENAI_API_KEY", "set the right one"),
        402: ("wants to be paid", "see to that"),
        404: (no_model + "is not the URL of an endpoint", right),
    }.get(failure.status or 0, ("is not the URL of an endpoint", right))
    if failure.status == 401 and not server._key:
        why, mend = "wants a key", "set OPENAI_API_KEY"
    return ConnectionError(
        f"{server._url} {why} ({failure}); {mend}, and {LATER}"
    )


def _alike(server: Endpoint, failure: Failure) -> ConnectionError:
    does = "answers" if failure.status in PASSING else "takes"
    return ConnectionError(
        f"{server._url} {does} none of the requests ({failure}). Nothing was "
        f"spent on them. When that is mended, {LATER}"
    )


def _body(server: Endpoint, request: Request) -> dict[str, Any]:
    messages = list(request.messages)
    extra: dict[str, Any] = {}
    if messages[-1].role == "assistant":
        if server._continues:
            extra = {
                "continue_final_message": True,
                "add_generation_prompt": False,
            }
        else:
            messages.append(Message("user", GO_ON))
    if "seed" in server._body:
        name = [server._body["seed"], request.query.id, request.index]
        digest = hashlib.sha256(json.dumps(name).encode()).digest()
        # fits an int32
        extra["seed"] = int.from_bytes(digest[:4], "little") >> 1
    return {
        **server._body,
        **extra,
        "messages": [
            # lone surrogates cannot be sent
            {
                "role": m.role,
                "content": m.content.encode("utf-8", "replace").decode(),
            }
            for m in messages
        ],
    }


def _without_logprobs(body: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in body.items() if "logprobs" not in n}


def _without(key: str, text: str) -> str:
    """A server's words without any part of the key that gives it away."""
    size = min(SECRET, len(key))
    if size < SECRET // 2:  # of no secret
        return text
    shown = list(text)
    for at in range(len(text) - size + 1):
        if text[at : at + size] in key:
            shown[at : at + size] = "\0" * size
    return re.sub("\0+", "***", "".join(shown))


def _seconds(retry_after: str | None) -> float | None:
    """A Retry-After, of seconds or of a date, as seconds from now.

    None is for what is neither.
    """
    try:
        seconds = float(retry_after or "")
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(retry_after or "")
            seconds = date.timestamp() - time.time()
        except (ValueError, OverflowError, TypeError, IndexError):
            return None
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT)

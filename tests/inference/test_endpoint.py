"""Against a real HTTP server on this machine, which misbehaves on demand."""

import collections
import contextlib
import email.utils
import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

import dynscaling_jax as ds
from configs import smollm2_arithmetic
from dynscaling_jax.experiments.configured import run_config
from dynscaling_jax.experiments.log import Log, read_samples, recorded
from dynscaling_jax.inference import endpoint
from dynscaling_jax.inference.endpoint import (
    Endpoint,
    interrupt,
    parse_url,
)
from dynscaling_jax.sampler import tap
from dynscaling_jax.scaling.loop import run_rounds
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import parallel
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import Budget, Message, Method, Query, Request

KEY = "sk-live-0123456789abcdef"


def completion(
    text="It is 7.", finish="stop", usage=(12, 3), logprobs=None, **message
):
    choice = {
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish,
        "logprobs": logprobs,
    }
    reply = {"choices": [choice]}
    if finish == "absent":
        del choice["finish_reason"]
    if usage:
        reply["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
        }
    return 200, reply, {}


def failure(status, message="oops", **headers):
    return status, {"error": {"message": message}}, headers


def stream(*chunks, end=("[DONE]",)):
    lines = [*map(json.dumps, chunks), *end]
    return 200, "".join(f"data: {line}\n\n" for line in lines).encode(), {}


def delta(text, finish=None):
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}


def trickles(first):
    """Sends a byte each twentieth second, for ever: no read times out."""

    def send(connection):
        connection.sendall(first)
        while True:
            connection.sendall(b"x")
            time.sleep(0.05)

    return send


def silent(connection):
    connection.settimeout(60)
    connection.recv(1)  # until the client hangs up


class Server:
    """behave(question, try) -> (status, JSON or bytes, headers), or what is
    done with the connection."""

    def __init__(self, behave):
        self.bodies, self.headers = [], []
        self.under_way, self.most = 0, 0
        tries, lock = collections.Counter(), threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                body = json.loads(self.rfile.read(length))
                question = body["messages"][0]["content"]
                name = question, body.get("seed")
                with lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server.under_way += 1
                    server.most = max(server.most, server.under_way)
                    number = tries[name]
                    tries[name] += 1
                done = behave(question, number)
                with lock:
                    server.under_way -= 1
                # the client may have given up, as it should
                with contextlib.suppress(OSError):
                    if callable(done):
                        self.close_connection = True
                        done(self.connection)
                    else:
                        self.reply(*done)

            def reply(self, status, reply, headers):
                if not isinstance(reply, bytes):
                    reply = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(reply)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_):
                pass

        class Http(http.server.ThreadingHTTPServer):
            request_queue_size = 256
            daemon_threads = True

        self.http = Http(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(
            target=self.http.serve_forever, args=(0.02,), daemon=True
        ).start()


@pytest.fixture
def serve():
    servers = []

    def start(behave):
        servers.append(Server(behave))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def request(question="?", index=0, turns=()):
    messages = (Message("user", question), *turns)
    return Request(Query(question, messages), messages, index, 2, (1,))


def sampled(server, requests, **options):
    options = {"backoff": 0.01, "timeout": 5.0} | options
    return list(Endpoint("m", server.url, **options).sample(list(requests)))


def beside_a_good_one(serve, reply, **options):
    """What becomes of a request that is replied to so, where another works."""
    server = serve(lambda q, n: reply if q == "odd" else completion())
    both = [request("odd"), request("good")]
    samples = {s.query_id: s for s in sampled(server, both, **options)}
    assert samples["good"].finish_reason == "stop"
    return samples["odd"]


def refusal(serve, reply, count=12, **options):
    """The error that ends a run whose requests are all replied to so."""
    server = serve(lambda q, n: reply)
    samples = Endpoint(
        "m", server.url, backoff=0.01, timeout=5.0, **options
    ).sample
    with pytest.raises(ConnectionError) as error:
        list(samples([request(str(i)) for i in range(count)]))
    return str(error.value)


def test_a_completion_becomes_a_sample(serve):
    server = serve(lambda question, number: completion())
    [sample] = sampled(
        server, [request("2+5?", 3)], max_new_tokens=9, stop=["\n\n"]
    )
    assert sample[:5] == ("2+5?", 3, 2, (1,), "It is 7.")
    assert (sample.finish_reason, sample.answer) == ("stop", None)
    assert (sample.prompt_tokens, sample.new_tokens) == (12, 3)
    assert (sample.logprob, sample.confidence, sample.signals) == (
        None, None, {},
    )  # fmt: skip
    [body] = server.bodies
    assert body["model"] == "m"
    assert body["messages"] == [{"role": "user", "content": "2+5?"}]
    assert (body["max_tokens"], body["stop"]) == (9, ["\n\n"])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_each_sample_has_a_seed_of_its_own(serve):
    """A public implementation sent one seed for n samples: all were equal."""
    server = serve(lambda question, number: completion())
    requests = [request(q, i) for q in "ab" for i in range(8)]
    sampled(server, requests, seed=1)
    sampled(server, requests, seed=1, concurrency=1)
    sampled(server, requests, seed=2)
    sampled(server, requests, seed=None)
    seeds = [body.get("seed") for body in server.bodies]
    assert len(set(seeds[:16])) == 16
    assert sorted(seeds[:16]) == sorted(seeds[16:32])
    assert not set(seeds[:16]) & set(seeds[32:48])
    assert all(0 <= seed < 2**31 for seed in seeds[:48])
    assert set(seeds[48:]) == {None}


def test_what_is_sent(serve):
    """top_k and min_p were dropped, and the model sampled as it liked."""
    server = serve(lambda question, number: completion())
    extra = {"max_tokens": None, "max_completion_tokens": 5, "tier": "a"}
    sampled(server, [request()], logprobs=False)
    sampled(server, [request()], top_k=3, min_p=0.5, top_p=0.9, temperature=0.5)
    sampled(server, [request()], extra_body=extra)
    plain, set_, more = server.bodies
    assert not {"top_k", "min_p", "logprobs", "top_logprobs"} & plain.keys()
    names = ("top_k", "min_p", "top_p", "temperature")
    assert [set_[name] for name in names] == [3, 0.5, 0.9, 0.5]
    assert "max_tokens" not in more
    assert (more["max_completion_tokens"], more["tier"]) == (5, "a")


def test_a_turn_that_is_to_go_on(serve):
    """As a flag of the servers that know it; else as a turn that asks."""
    server = serve(lambda question, number: completion())
    begun = request(turns=[Message("assistant", "Attempt 1:")])
    sampled(server, [begun])
    sampled(server, [begun], continue_final_message=True)
    requested, flagged = server.bodies
    roles = [m["role"] for m in requested["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "continue_final_message" not in requested
    assert flagged["messages"][-1]["content"] == "Attempt 1:"
    assert flagged["continue_final_message"] is True
    assert flagged["add_generation_prompt"] is False


def test_text_that_is_no_unicode_is_sent_all_the_same(serve):
    server = serve(lambda question, number: completion("\ud800"))
    [sample] = sampled(server, [request("a\ud800")])
    assert server.bodies[0]["messages"][0]["content"] == "a?"
    assert sample.text == "\ud800"


PARTS = [{"type": "thinking", "thinking": "2+5"}, {"type": "text", "text": "7"}]


@pytest.mark.parametrize(
    ("reply", "text", "finish"),
    [
        (completion(finish="length"), "It is 7.", "length"),
        (completion(finish="max_tokens"), "It is 7.", "length"),
        (completion(finish="MAX_TOKENS"), "It is 7.", "length"),
        (completion(finish="eos"), "It is 7.", "stop"),
        (completion(finish=None), "It is 7.", "stop"),
        (completion(finish=None, usage=(12, 64)), "It is 7.", "length"),
        (completion(finish="absent"), "It is 7.", "stop"),
        (completion(finish={"type": "stop"}), "It is 7.", "stop"),
        (completion(text=PARTS), "7", "stop"),
        (completion(text=["a", "b"]), "", "error"),
        (completion(text=None, finish="tool_calls"), "", "stop"),
        (completion(text="7", reasoning_content="2+5"), "7", "stop"),
        (completion(None, "length", reasoning="2+"), "", "length"),
        (stream(delta("It is"), delta(" 7.", "stop")), "It is 7.", "stop"),
        (stream(delta("7", "length"), end=()), "7", "length"),
        (stream({"choices": []}, delta("7")), "7", "stop"),
        (
            (200, b": wait\n\n" + stream(delta("7"))[1], {}),
            "7",
            "stop",
        ),
        ((200, b"\n\n " + json.dumps(completion()[1]).encode(), {}),
         "It is 7.", "stop"),
        (
            (200, gzip.compress(json.dumps(completion()[1]).encode()),
             {"Content_Encoding": "gzip"}),
            "It is 7.",
            "stop",
        ),
        (
            completion(finish="content_filter"),
            "",
            "error: the endpoint's content filter",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:the endpoint's replies do not say")
def test_replies_that_are_completions(serve, reply, text, finish):
    """finish_reason null cost a sample, and a list of parts its text."""
    sample = beside_a_good_one(serve, reply, max_new_tokens=64, retries=0)
    assert sample.text == text
    assert sample.finish_reason.startswith(finish)


HTML = b"<html><style>p{}</style><title>Web UI</title>hello</html>"
REPLIES = [  # what no completion is, and what is reported of it
    (failure(500, "the model\ncrashed"), "HTTP 500: the model crashed"),
    (failure(400, "prompt is too long"), "HTTP 400: prompt is too long"),
    (failure(403, "moderated"), "HTTP 403: moderated"),
    ((422, {"detail": [{"loc": ["body"], "msg": "bad"}]}, {}), '"msg": "bad"'),
    ((413, b"", {}), "HTTP 413:"),
    ((400, "plain words", {}), "HTTP 400: plain words"),
    ((200, HTML, {}), "not a chat completion: Web UI hello"),
    ((200, b"\xff\xfe", {}), "not a chat completion"),
    ((200, b"", {}), "not a chat completion"),
    ((200, b"[" * 100_000, {}), "not a chat completion"),
    ((200, b"[]", {}), "not a chat completion"),
    ((200, b"7", {}), "not a chat completion"),
    ((200, b'{"choices": [{"message": ' + b"9" * 5000, {}), "not a chat"),
    ((200, {"choices": []}, {}), "not a chat completion"),
    ((200, {"choices": [{"message": None}]}, {}), "not a chat completion"),
    ((200, {"error": "no GPU left"}, {}), "no GPU left"),
    ((200, {"error": {"code": 400, "message": "bad"}}, {}), "bad"),
    (stream({"error": {"message": "overload"}}), "overload"),
    (stream(delta("7"), end=()), "not a chat completion"),
    (stream(delta("7"), end=("{",)), "not a chat completion"),
    (completion(finish="network_error"), "ended the sample with 'network_err"),
    (completion(finish="abort"), "ended the sample with 'abort'"),
    ((200, b"no gzip", {"Content_Encoding": "gzip"}), "DecodingError"),
    ((200, gzip.compress(b"{" * 99)[:-9], {"Content_Encoding": "gzip"}), ""),
    (failure(500, "\x1b]0;red\x07\x1b[31m \ud800x" + "y" * 999), "red [31m"),
    (lambda connection: connection.sendall(b"SSH-2.0\r\n"), "ProtocolError"),
    (lambda connection: None, "ProtocolError"),
]


@pytest.mark.parametrize(("reply", "message"), REPLIES)
def test_a_request_that_fails_is_a_row_beside_the_others(serve, reply, message):
    """Moderation answers one of many by 403; corrupt gzip once ended the
    run."""
    odd = beside_a_good_one(serve, reply, retries=1)
    assert odd.finish_reason.startswith("error: ")
    assert message in odd.finish_reason
    assert odd.finish_reason.isprintable() and len(odd.finish_reason) < 300
    assert (odd.text, odd.answer, odd.new_tokens) == ("", None, 0)
    assert (odd.index, odd.round, odd.parents) == (0, 2, (1,))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        *REPLIES,
        (failure(401, "no such key"), "refuses the key in OPENAI_API_KEY"),
        (failure(402, "no credit"), "wants to be paid (HTTP 402: no credit"),
        (failure(403, "not in your country"), "HTTP 403: not in your country"),
        (failure(404, "no m"), "has no model 'm'"),
        (failure(405, "use GET"), "not the URL of an endpoint (HTTP 405"),
        (failure(422, "extra field top_k"), "HTTP 422: extra field top_k"),
        (failure(429, "slow down"), "HTTP 429: slow down (after 2 tries"),
        (failure(307, "", location="http://b/v1"), "moved to http://b/v1"),
        ((302, b"", {"location": "http://b/v1"}), "HTTP 302: moved to http"),
        ((200, {"error": {"code": 402, "message": "pay"}}, {}), "be paid"),
        ((503, b"<h1>Loading</h1>", {}), "HTTP 503: Loading"),
    ],
)
@pytest.mark.parametrize("count", [2, 12])
def test_what_fails_for_all_ends_the_run(serve, reply, message, count):
    """It once became failed samples that spent the budget, and the run ended
    as if it had been one."""
    error = refusal(serve, reply, count, retries=1)
    assert message in error
    assert "start the same command again" in error
    assert error.isprintable() and KEY not in error


def test_what_was_under_way_comes_in_before_the_run_ends(serve):
    """It was paid for."""

    def behave(question, number):
        if question == "late":
            time.sleep(0.3)
            return completion()
        return failure(401)

    server = serve(behave)
    samples = Endpoint("m", server.url).sample(
        [*map(request, ["late", *"abcdefgh"])]
    )
    assert next(samples).query_id == "late"
    with pytest.raises(ConnectionError):
        list(samples)


def test_refusals_wait_for_a_sample_that_shows_what_they_mean(serve):
    """Nine moderated questions are answered at once, the tenth takes its
    time."""

    def behave(question, number):
        if question == "good":
            time.sleep(0.3)
            return completion()
        return failure(403, "moderated")

    server = serve(behave)
    samples = sampled(server, map(request, [*"abcdefghi", "good", *"jkl"]))
    assert len(samples) == 13
    assert sum(s.finish_reason == "stop" for s in samples) == 1


def test_a_run_that_has_only_refused_requests_left_can_end(serve):
    """A kill may leave the moderated question alone to be requested again: a
    plain one tells whether the endpoint works."""
    server = serve(
        lambda q, n: failure(403, "moderated") if q == "bad" else completion()
    )
    [sample] = sampled(server, [request("bad")])
    assert sample.finish_reason == "error: HTTP 403: moderated"
    assert server.bodies[-1]["messages"][0]["content"] == "Hello."


def test_an_endpoint_that_breaks_midway_ends_the_run(serve):
    """A gateway in front of a dead server answers 502 for ever."""
    server = serve(lambda q, n: completion() if int(q) < 5 else failure(502))
    samples = Endpoint(
        "m", server.url, concurrency=2, retries=1, backoff=0.01
    ).sample([request(str(i)) for i in range(100)])
    reasons = []
    with pytest.raises(ConnectionError, match="HTTP 502"):
        for sample in samples:
            reasons.append(sample.finish_reason)
    assert reasons == ["stop"] * 5
    assert len(server.bodies) < 40


def test_an_endpoint_that_is_down_ends_the_run():
    """One failed sample for each of 100,000 requests would spend the budget
    on nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    endpoint = Endpoint(
        "m", f"http://127.0.0.1:{port}/v1", retries=1, backoff=0.01
    )
    with pytest.raises(ConnectionError, match="start the same command again"):
        list(endpoint.sample([request(str(i)) for i in range(50)]))


def test_a_run_that_stops_leaves_no_row_of_what_was_to_be_tried_again(serve):
    """A request that waited for its next try as the run stopped has not
    failed: a sample would keep it from being generated when the run goes on."""

    def behave(question, number):
        time.sleep(0.2 if question == "wrong key" else 0)
        return failure(401 if question == "wrong key" else 500)

    server = serve(behave)
    sample_fn = Endpoint("m", server.url, backoff=30.0).sample
    samples = sample_fn([request("flaky"), request("wrong key")])
    with pytest.raises(ConnectionError, match="refuses the key"):
        next(samples)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_a_passing_failure_is_tried_again(serve, status):
    server = serve(lambda q, n: completion() if n == 2 else failure(status))
    [sample] = sampled(server, [request()], retries=2)
    assert sample.finish_reason == "stop"
    assert len(server.bodies) == 3


def test_a_rate_limit_is_waited_for_as_long_as_samples_come(serve):
    """64 requests at once at a server that takes one at a time: the last
    waits for more than its retries."""
    free = threading.Lock()

    def behave(question, number):
        if not free.acquire(blocking=False):
            return failure(429, "one at a time")
        time.sleep(0.03)
        free.release()
        return completion()

    server = serve(behave)
    samples = sampled(
        server, [request(str(i)) for i in range(12)], retries=2, backoff=0.2
    )
    assert {s.finish_reason for s in samples} == {"stop"}


def test_retry_after_is_obeyed(serve):
    arrivals = []
    soon = email.utils.formatdate(time.time() - 5, usegmt=True)
    waits = ["0.3", soon, "1e999", "Mon, 01 Jan 2024 00:00:00 +99999999",
             "Mon, 01 Jan 0001 00:00:00 +2359", "soon"]  # fmt: skip

    def behave(question, number):
        arrivals.append(time.monotonic())
        if number < len(waits):
            return failure(503, Retry_After=waits[number])
        return completion()

    server = serve(behave)
    [sample] = sampled(server, [request()], backoff=0.05, retries=6)
    assert sample.finish_reason == "stop"
    assert arrivals[1] - arrivals[0] >= 0.3
    assert arrivals[-1] - arrivals[0] < 15  # what is past or no date is none


@pytest.mark.parametrize(
    "slow",
    [
        silent,
        trickles(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"),
        trickles(b"HTTP/1.1 200 OK\r\nX-Wait: "),
    ],
    ids=["silent", "body", "headers"],
)
def test_a_slow_endpoint_is_given_up(serve, slow):
    """Headers that trickle in were waited for without end."""
    start = time.monotonic()
    odd = beside_a_good_one(serve, slow, timeout=0.5, retries=1)
    assert odd.finish_reason == "error: no reply within 0.5 s"
    assert time.monotonic() - start < 4


def test_a_reply_of_60_megabytes(serve):
    """Its parts were joined one by one, and copied each time."""
    reply = completion("x" * 60_000_000)
    start = time.monotonic()
    [sample] = sampled(serve(lambda q, n: reply), [request()], timeout=60)
    assert len(sample.text) == 60_000_000
    assert time.monotonic() - start < 10


def of(*logprobs, tops=()):
    tokens = [
        {"logprob": one, "top_logprobs": [{"logprob": t} for t in tops]}
        for one in logprobs
    ]
    return completion(logprobs={"content": tokens})


@pytest.mark.parametrize(
    ("reply", "logprob", "confidence"),
    [
        (of(-1.0, -3.0, tops=(-1.0, -4.0)), -2, 2.5),
        (of(-2.0), -2, None),
        (of(-2.0, tops=(-1.0, None)), -2, None),
        (of(-2.0, tops=(-1e308, -1e308)), -2, None),
        (of(-2.0, tops=(-(10**400),)), -2, None),
        (of(-(10**400), tops=(-1.0,)), None, None),
        (of(float("-inf")), None, None),
        (of(float("nan")), None, None),
        (of("high"), None, None),
        (of(None), None, None),
        (of(), None, None),
        (completion(logprobs={"content": None}), None, None),
        (completion(logprobs=[7]), None, None),
    ],
)
def test_log_probabilities_where_they_are_offered(
    serve, reply, logprob, confidence
):
    """One of 400 digits was logged, and ended every restart."""
    sample = beside_a_good_one(serve, reply)
    assert sample.text == "It is 7."
    assert (sample.logprob, sample.confidence) == (logprob, confidence)
    names = {"tail", "bottom", "lowest"} if confidence else set()
    assert sample.signals.keys() == names


@pytest.mark.parametrize(
    "refused",
    [
        failure(400, "this model does not support logprobs"),
        failure(400, "INVALID_ARGUMENT"),
        failure(404, "no provider supports logprobs"),
        failure(501, "logprobs are not implemented"),
        (422, {"detail": [{"loc": ["body", "logprobs"], "msg": "extra"}]}, {}),
    ],
)
def test_an_endpoint_that_refuses_log_probabilities_is_asked_without(
    serve, refused
):
    """By any status; and no more are requested."""
    server = serve(lambda q, n: completion())
    server = serve(
        lambda q, n: (
            refused if "logprobs" in server.bodies[-1] else completion()
        )
    )
    samples = sampled(server, map(request, "abc"), retries=0, concurrency=1)
    assert {s.finish_reason for s in samples} == {"stop"}
    requested = ["logprobs" in body for body in server.bodies]
    assert requested == [True, False, False, False]
    assert not any("top_logprobs" in body for body in server.bodies[1:])


@pytest.mark.parametrize(
    "count", [10**400, 2**31, -1, 1.5, True, "3", None, []]
)
@pytest.mark.filterwarnings("ignore:the endpoint's replies do not say")
def test_counts_that_are_none(serve, count):
    reply = completion("abcde", usage=(count, count))
    sample = beside_a_good_one(serve, reply)
    assert (sample.prompt_tokens, sample.new_tokens) == (1, 2)


def test_missing_usage_is_counted_and_warned_of(serve):
    tokens = {"content": [{"logprob": -1.0, "top_logprobs": []}] * 5}
    replies = {
        "12345678": completion("abcde", usage=None),
        "1": completion("abcde", usage=None, logprobs=tokens),
    }
    server = serve(lambda question, number: replies[question])
    with pytest.warns(UserWarning, match="four bytes a token"):
        samples = sampled(server, map(request, replies))
    counted = {s.query_id: (s.prompt_tokens, s.new_tokens) for s in samples}
    assert counted == {"12345678": (2, 2), "1": (1, 5)}


def test_cached_tokens_are_the_endpoints(serve):
    status, reply, headers = completion()
    reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 8}
    server = serve(lambda question, number: (status, reply, headers))
    assert sampled(server, [request()])[0].cached_tokens == 8


def test_requests_run_beside_one_another(serve):
    def behave(question, number):
        time.sleep(0.1)
        return completion()

    server = serve(behave)
    start = time.monotonic()
    samples = sampled(
        server, [request(str(i)) for i in range(12)], concurrency=6
    )
    assert time.monotonic() - start < 1.5
    assert len(samples) == 12
    assert 4 <= server.most <= 6


def test_fast_samples_do_not_wait_for_slow_ones(serve):
    def behave(question, number):
        time.sleep(0.5 if question == "slow" else 0)
        return completion()

    server = serve(behave)
    names = ["slow", "a", "b", "c"]
    order = [
        s.query_id for s in sampled(server, map(request, names), concurrency=2)
    ]
    assert order[-1] == "slow"


def test_a_consumer_that_leaves_stops_the_requests(serve):
    server = serve(lambda question, number: completion())
    sample_fn = Endpoint("m", server.url, concurrency=2).sample
    samples = sample_fn([request(str(i)) for i in range(1000)])
    next(samples)
    samples.close()
    requested = len(server.bodies)
    assert requested < 900
    time.sleep(0.2)
    assert len(server.bodies) <= requested + 2


def test_calls_of_one_request_share_a_thread_and_what_they_know(serve):
    """As a run without rounds asks. Each call had a thread and a client of
    its own, and took a failure for one of its request: a server that had
    broken spent the budget."""
    good = threading.Event()

    def behave(question, number):
        good.wait(5)
        return completion() if question == "good" else failure(502)

    server = serve(behave)
    endpoint = Endpoint("m", server.url, retries=1, backoff=0.01)
    before = {*threading.enumerate()}
    first = endpoint.sample([request("good")])
    calls = [endpoint.sample([request(str(i))]) for i in range(12)]
    new = {*threading.enumerate()} - before
    assert sum(thread.name.startswith("endpoint") for thread in new) == 1
    calls.pop().close()  # lets go of its own request alone
    good.set()
    assert [s.query_id for s in first] == ["good"]
    for call in calls:
        with pytest.raises(ConnectionError, match="HTTP 502"):
            next(call)
    assert not [*endpoint.sample([])]
    good.clear()
    late = endpoint.sample([request("good", 1)])  # a new thread
    good.set()
    assert [s.index for s in late] == [1]


def test_an_error_that_nobody_foresaw_ends_the_call(serve, monkeypatch):
    """The worker ended by it, and the call whose request it was of waited for
    ever."""

    def read(*_):
        raise ArithmeticError("not foreseen")

    monkeypatch.setattr(endpoint, "read", read)
    server = serve(lambda question, number: completion())
    model = Endpoint("m", server.url)
    calls = [model.sample([request(index=i)]) for i in range(2)]
    for call in calls:
        with pytest.raises(ArithmeticError, match="not foreseen"):
            next(call)


def test_what_an_interrupt_ends_is_not_sent_any_more(serve):
    """The handler of a signal ends all calls; each was then taken to be done,
    and its queued requests were sent and paid for."""
    stop = KeyboardInterrupt()

    def behave(question, number):
        time.sleep(0.05)
        return completion()

    server = serve(behave)
    samples = Endpoint("m", server.url, concurrency=1).sample(
        [request(str(i)) for i in range(40)]
    )
    next(samples)
    assert interrupt(stop)
    with pytest.raises(KeyboardInterrupt):
        list(samples)
    sent = len(server.bodies)
    time.sleep(0.3)
    assert len(server.bodies) <= sent + 1 < 10


@pytest.mark.parametrize("questions", [20, 3])
def test_without_rounds_an_endpoint_that_breaks_midway_ends_the_run(
    serve, questions
):
    server = serve(
        lambda q, n: completion() if len(server.bodies) < 9 else failure(502)
    )
    endpoint = Endpoint("m", server.url, retries=1, backoff=0.01)
    method = ds.Method(
        ds.strategies.parallel(),
        ds.policies.uniform(),
        ds.votes.majority(),
        ds.Schedule(1, concurrent=10),
    )
    with pytest.raises(ConnectionError, match="HTTP 502"):
        ds.scale([str(i) for i in range(questions)], endpoint, method)
    assert len(server.bodies) < 60


def test_a_run_goes_on_when_the_endpoint_is_back(serve, tmp_path):
    """Nothing that was sampled is lost or sampled again, and no sample of the
    budget goes to a failure."""
    paid, requested = [False], collections.Counter()

    def behave(question, number):
        if requested.total() == 7 and not paid[0]:
            return failure(402, "your credit is used up")
        requested[question] += 1
        return completion()

    server = serve(behave)

    def run():
        with Log(tmp_path, {"model": "m"}) as log:
            return run_rounds(
                [request(str(i)).query for i in range(4)],
                tap(
                    Endpoint("m", server.url, concurrency=1),
                    lambda sample: recorded(sample, log),
                ),
                Method(parallel(), POLICIES["uniform"](), majority()),
                Budget(samples=12),
                jax.random.key(0),
            )

    with pytest.raises(ConnectionError, match="credit"):
        run()
    assert len(list(read_samples(tmp_path / "samples.jsonl"))) == 7
    paid[0] = True
    result = run()
    assert result.ledger.samples == 12
    assert requested.total() == 12
    assert len(list(read_samples(tmp_path / "samples.jsonl"))) == 12


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n", " "])
def test_the_end_of_a_line_is_no_part_of_a_key(serve, monkeypatch, end):
    """httpx says which header it cannot send, so that a key from a file with
    other line ends stood in samples.jsonl and report.html."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY + end)
    server = serve(lambda question, number: completion())
    [sample] = sampled(server, [request()])
    assert sample.finish_reason == "stop"
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize(
    "wrong", ["sk-\r-x", "sk-é", "sk-\x1b[0m", "sk-\udcff"]
)
def test_a_key_that_cannot_be_is_refused_and_not_shown(monkeypatch, wrong):
    monkeypatch.setenv("OPENAI_API_KEY", wrong)
    with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
        Endpoint("m", "http://127.0.0.1:9/v1")
    assert "sk-" not in str(error.value)


@pytest.mark.parametrize(
    "echo",
    [
        lambda key: failure(400, f"you sent Bearer {key}"),
        lambda key: failure(401, f"no such key: {key[:-4]}"),
        lambda key: failure(500, "." * 185 + key),  # cut within the key
        lambda key: failure(302, "", location=f"http://b/?key={key}"),
        lambda key: (200, {"headers": {"authorization": key}}, {}),
        lambda key: completion(f"My key is {key}."),
        lambda key: lambda c: c.sendall(f"HTTP/1.1 {key}\r\n\r\n".encode()),
    ],
)
def test_a_server_that_says_the_key_is_not_repeated(serve, echo):
    reply = echo(KEY)
    server = serve(lambda question, number: reply)
    try:
        text = str(sampled(server, [request()], retries=0))
    except ConnectionError as error:
        text = str(error)
    parts = [KEY[i : i + 8] for i in range(len(KEY) - 8)]
    assert not [part for part in parts if part in text], text


def test_no_redirect_carries_the_key_elsewhere(serve):
    other = serve(lambda question, number: completion())
    server = serve(lambda q, n: failure(308, "", location=other.url))
    with pytest.raises(ConnectionError, match="HTTP 308.*moved to"):
        sampled(server, [request()])
    assert not other.bodies


def test_no_key_no_header(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(lambda question, number: completion())
    sampled(server, [request()])
    assert "Authorization" not in server.headers[0]
    assert "wants a key" in refusal(serve, failure(401))


def test_urls():
    assert parse_url("openai://org/m@http://h:1/v1") == (
        "org/m", "http://h:1/v1",
    )  # fmt: skip
    assert parse_url("openai://@cf/m@https://h/v1") == (
        "@cf/m", "https://h/v1",
    )  # fmt: skip
    for text in (
        "openai://m",
        "m@http://h",
        "openai://@http://h",
        "openai://m@",
    ):
        with pytest.raises(ValueError, match="openai://MODEL@BASE_URL"):
            parse_url(text)
    for url in ("ftp://h", "http://", "http://[::1", "h:8000/v1"):
        with pytest.raises(ValueError, match="not an http://"):
            Endpoint("m", url)
    for url in (f"http://me:{KEY}@h/v1", f"http://h/v1?key={KEY}"):
        with pytest.raises(ValueError, match="OPENAI_API_KEY") as error:
            Endpoint("m", url)
        assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("concurrency", 0),
        ("retries", -1),
        ("timeout", 0.0),
        ("timeout", float("nan")),
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_p", 2.0),
    ],
)
def test_settings_that_cannot_be(option, value):
    with pytest.raises(ValueError, match=option):
        Endpoint("m", "http://h", **{option: value})


def config_of(server, **fields):
    config = smollm2_arithmetic.get_config()
    config.model = f"openai://m@{server.url}"
    config.task.limit = 3
    config.budget.samples_per_query = 2.0
    for name, value in fields.items():
        config.update_from_flattened_dict({name.replace("__", "."): value})
    return config


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("dtype", "bfloat16", "config.dtype='bfloat16' is of local models"),
        ("quantize", "int8", "config.quantize"),
        ("mesh", "auto", "config.mesh"),
        ("context", 99, "config.context"),
        ("template_variables", "{}", "config.template_variables"),
        ("engine__max_thinking_tokens", 9, "max_thinking_tokens=9 is of local"),
        ("endpoint__extra_body", "[]", "endpoint.extra_body='..': expected"),
        ("endpoint__extra_body", "{", "endpoint.extra_body='{' is not JSON"),
        ("endpoint__concurrency", 0, "concurrency=0"),
    ],
)
def test_fields_that_a_server_cannot_have_are_refused(
    serve, tmp_path, field, value, error
):
    """They were ignored."""
    server = serve(lambda question, number: completion())
    with pytest.raises(ValueError, match=error):
        run_config(config_of(server, **{field: value}), tmp_path / "run")
    assert not server.bodies and not (tmp_path / "run").exists()


def test_every_setting_of_a_server_is_a_field(serve, tmp_path):
    server = serve(lambda question, number: completion())
    config = config_of(
        server,
        engine__top_k=7,
        endpoint__seed=False,
        endpoint__logprobs=False,
        endpoint__extra_body='{"tier": "a"}',
    )
    summary = run_config(config, tmp_path)
    assert (summary["samples"], summary["failed"]) == (6, 0)
    assert {(body["top_k"], body["tier"]) for body in server.bodies} == {
        (7, "a")
    }
    assert not any({"seed", "logprobs"} & body.keys() for body in server.bodies)
    # how it is requested changes no sample: the run goes on with another way
    config.endpoint.concurrency = 1
    run_config(config, tmp_path)
    assert len(server.bodies) == 6


def test_a_run_at_a_server_that_refuses_spends_nothing(serve, tmp_path):
    """It ended well, with failed samples alone, and was never sampled again."""
    well = [False]
    server = serve(lambda q, n: completion() if well[0] else failure(400, "no"))
    with pytest.raises(ConnectionError, match="HTTP 400: no"):
        run_config(config_of(server), tmp_path)
    assert not (tmp_path / "samples.jsonl").read_bytes()
    assert not (tmp_path / "summary.json").exists()
    well[0] = True
    assert run_config(config_of(server), tmp_path)["failed"] == 0


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stops_at_once_with_64_requests_under_way(serve, tmp_path, stop):
    """It waited for them all, up to the time-out, and then dropped what they
    brought."""
    root = Path(__file__).parents[2]
    arrived = threading.Semaphore(0)
    held = threading.Event()

    def behave(question, number):
        if arrived.acquire(blocking=False):
            return completion()
        held.wait(60)
        return completion()

    for _ in range(5):
        arrived.release()
    server = serve(behave)
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.run",
         "--config=configs/smollm2_arithmetic.py", f"--workdir={tmp_path}",
         f"--config.model=openai://m@{server.url}",
         "--config.budget.samples_per_query=8.0"],
        cwd=root, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    while server.under_way < 64:
        assert process.poll() is None
        time.sleep(0.02)
    begin = time.monotonic()
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    held.set()
    assert time.monotonic() - begin < 5
    assert process.returncode == 1
    assert error.strip().endswith("stopped; the same command goes on from here")
    reasons = {
        (row["query_id"], row["index"]): row["finish_reason"]
        for name in ("samples", "pending")
        for row in map(
            json.loads, (tmp_path / f"{name}.jsonl").read_bytes().splitlines()
        )
    }
    assert list(reasons.values()) == ["stop"] * 5


@pytest.mark.filterwarnings("ignore:the endpoint's replies do not say")
def test_a_key_stands_nowhere(serve, tmp_path, capfd):
    """Whatever fails, in no file of a run and on no terminal."""
    replies = [
        failure(400, f"Bearer {KEY}"),
        completion(f"{KEY}", usage=None),
        failure(500, KEY),
    ]
    server = serve(lambda q, n: replies[len(server.bodies) % len(replies)])
    config = config_of(server, endpoint__retries=0, task__limit=6)
    run_config(config, tmp_path)
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert {"samples.jsonl", "report.html"} <= {f.name for f in files}
    assert not [f for f in files if KEY.encode() in f.read_bytes()]
    assert KEY not in "".join(capfd.readouterr())

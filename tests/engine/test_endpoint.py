"""Against a real HTTP server on this machine, which misbehaves on demand."""

import collections
import email.utils
import http.server
import json
import socket
import threading
import time

import jax
import pytest

from dynscaling_jax.engine.endpoint import endpoint, parse_url
from dynscaling_jax.records.log import Log, read_samples, recorded
from dynscaling_jax.scaling.loop import scale
from dynscaling_jax.scaling.policies import POLICIES
from dynscaling_jax.scaling.strategies import parallel
from dynscaling_jax.scaling.votes import majority
from dynscaling_jax.types import Budget, Message, Query, Request


def completion(text="It is 7.", finish="stop", usage=(12, 3), logprobs=None):
    reply = {
        "choices": [
            {
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish,
                "logprobs": logprobs,
            }
        ]
    }
    if usage:
        reply["usage"] = {
            "prompt_tokens": usage[0],
            "completion_tokens": usage[1],
        }
    return 200, reply, {}


def failure(status, message="oops", **headers):
    return status, {"error": {"message": message}}, headers


class Server:
    """behave(question, try) -> (status, JSON or bytes, headers)."""

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
                with lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                    server.under_way += 1
                    server.most = max(server.most, server.under_way)
                    number = tries[question, body["seed"]]
                    tries[question, body["seed"]] += 1
                status, reply, headers = behave(question, number)
                with lock:
                    server.under_way -= 1
                if isinstance(reply, dict):
                    reply = json.dumps(reply).encode()
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(reply)))
                    for name, value in headers.items():
                        self.send_header(name.replace("_", "-"), value)
                    self.end_headers()
                    self.wfile.write(reply)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client has given up, as it should

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
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
    monkeypatch.setenv("OPENAI_API_KEY", "the-key")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def request(question="?", index=0, turns=()):
    messages = (Message("user", question), *turns)
    return Request(Query(question, messages), messages, index, 2, (1,))


def draw(server, requests, **options):
    options = {"backoff": 0.01, "timeout": 5.0} | options
    return list(endpoint("m", server.url, **options)(requests))


def test_a_completion_becomes_a_sample(serve):
    server = serve(lambda question, number: completion())
    [sample] = draw(
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
    assert server.headers[0]["Authorization"] == "Bearer the-key"


def test_each_sample_has_a_seed_of_its_own(serve):
    """A public implementation sent one seed for n samples: all were equal."""
    server = serve(lambda question, number: completion())
    requests = [request(q, i) for q in "ab" for i in range(8)]
    draw(server, requests, seed=1)
    draw(server, requests, seed=1, concurrency=1)
    draw(server, requests, seed=2)
    seeds = [body["seed"] for body in server.bodies]
    assert len(set(seeds[:16])) == 16
    assert sorted(seeds[:16]) == sorted(seeds[16:32])
    assert not set(seeds[:16]) & set(seeds[32:])
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_log_probabilities_where_they_are_offered(serve):
    tokens = [
        {"logprob": -1.0, "top_logprobs": [{"logprob": -1.0}] * 2},
        {
            "logprob": -3.0,
            "top_logprobs": [{"logprob": -1.0}, {"logprob": -7.0}],
        },
    ]
    replies = {
        "whole": completion(logprobs={"content": tokens}),
        "no tops": completion(
            logprobs={"content": [{"logprob": -2.0, "top_logprobs": []}]}
        ),
        "infinite": completion(
            logprobs={"content": [{"logprob": float("-inf")}]}
        ),
        "rubbish": completion(logprobs={"content": [{"logprob": "high"}]}),
        "empty": completion(logprobs={"content": []}),
    }
    server = serve(lambda question, number: replies[question])
    got = {s.query_id: s for s in draw(server, map(request, replies))}
    whole = got["whole"]
    assert (whole.logprob, whole.confidence) == (-2, 2.5)
    assert whole.signals == {"tail": 2.5, "bottom": 2.5, "lowest": 2.5}
    assert (got["no tops"].logprob, got["no tops"].confidence) == (-2, None)
    for name in ("infinite", "rubbish", "empty"):
        assert (got[name].logprob, got[name].confidence) == (None, None)
        assert got[name].text == "It is 7."


def test_an_endpoint_that_refuses_log_probabilities_is_asked_without(serve):
    def behave(question, number):
        if number == 0:
            return failure(400, "this model does not support logprobs")
        return completion()

    server = serve(behave)
    [sample] = draw(server, [request()], max_retries=0)
    assert sample.finish_reason == "stop"
    assert "top_logprobs" not in server.bodies[1]


def test_requests_run_beside_one_another(serve):
    def behave(question, number):
        time.sleep(0.1)
        return completion()

    server = serve(behave)
    start = time.monotonic()
    samples = draw(server, [request(str(i)) for i in range(12)], concurrency=6)
    assert time.monotonic() - start < 1.0
    assert len(samples) == 12
    assert 4 <= server.most <= 6


def test_fast_samples_do_not_wait_for_slow_ones(serve):
    def behave(question, number):
        time.sleep(0.5 if question == "slow" else 0)
        return completion()

    server = serve(behave)
    names = ["slow", "a", "b", "c"]
    order = [
        s.query_id for s in draw(server, map(request, names), concurrency=2)
    ]
    assert order[-1] == "slow"


@pytest.mark.parametrize("status", [408, 409, 500, 502, 503])
def test_a_passing_failure_is_tried_again(serve, status):
    server = serve(lambda q, n: completion() if n == 2 else failure(status))
    [sample] = draw(server, [request()], max_retries=2)
    assert sample.finish_reason == "stop"
    assert len(server.bodies) == 3


def test_retry_after_is_obeyed(serve):
    arrivals = []

    def behave(question, number):
        arrivals.append(time.monotonic())
        if number == 0:
            return failure(429, Retry_After="0.3")
        if number == 1:
            soon = email.utils.formatdate(time.time() - 5, usegmt=True)
            return failure(503, Retry_After=soon)
        return completion()

    server = serve(behave)
    [sample] = draw(server, [request()], backoff=30.0)
    assert sample.finish_reason == "stop"
    assert arrivals[1] - arrivals[0] >= 0.3
    assert arrivals[2] - arrivals[0] < 3  # a date that is past is no wait


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (failure(500, "the model\ncrashed"), "HTTP 500: the model crashed"),
        (failure(400, "prompt is too long"), "HTTP 400: prompt is too long"),
        ((200, b"<html>hello</html>", {}), "not a chat completion"),
        ((200, b"\xff\xfe", {}), "not a chat completion"),
        ((200, b"[" * 100_000, {}), "not a chat completion"),
        ((200, b"[]", {}), "not a chat completion"),
        ((200, {"choices": []}, {}), "not a chat completion"),
        ((200, {"choices": [{"message": None}]}, {}), "not a chat completion"),
        (completion(finish=None), "not a chat completion"),
        (completion(text=["no text"]), "not a chat completion"),
    ],
)
def test_a_request_that_fails_is_a_row_beside_the_others(serve, reply, message):
    server = serve(lambda q, n: reply if q == "bad" else completion())
    samples = draw(server, [request("bad"), request("good")], max_retries=1)
    got = {s.query_id: s for s in samples}
    assert got["good"].finish_reason == "stop"
    bad = got["bad"]
    assert bad.finish_reason.startswith("error: ")
    assert message in bad.finish_reason
    assert (bad.text, bad.answer, bad.new_tokens) == ("", None, 0)
    assert (bad.index, bad.round, bad.parents) == (0, 2, (1,))


def test_a_slow_endpoint_is_given_up(serve):
    def behave(question, number):
        time.sleep(1.0 if question == "slow" else 0)
        return completion()

    server = serve(behave)
    samples = draw(
        server,
        [request("slow"), request("fast")],
        timeout=0.3,
        max_retries=1,
    )
    reasons = {s.query_id: s.finish_reason for s in samples}
    assert reasons["fast"] == "stop"
    assert reasons["slow"] == "error: no reply within 0.3 s"


def test_a_reply_that_trickles_in_for_ever_is_given_up():
    """Each byte comes in time, so that a time-out for each read never ends
    it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle():
        try:
            with listener.accept()[0] as connection:
                connection.recv(1 << 16)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"
                )
                while True:
                    connection.sendall(b" ")
                    time.sleep(0.05)
        except OSError:
            pass  # the client has hung up, or the test is over

    threading.Thread(target=trickle, daemon=True).start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    start = time.monotonic()
    [sample] = endpoint("m", url, timeout=0.5, max_retries=0)([request()])
    listener.close()
    assert sample.finish_reason == "error: no reply within 0.5 s"
    assert time.monotonic() - start < 3


def test_an_endpoint_that_is_down_stops_the_run():
    """One row of failure for each of 100,000 requests would spend the budget
    on nothing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    sample_fn = endpoint(
        "m", f"http://127.0.0.1:{port}/v1", max_retries=1, backoff=0.01
    )
    with pytest.raises(ConnectionError, match="start the same command again"):
        list(sample_fn([request(str(i)) for i in range(50)]))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (401, PermissionError, "refuses the key in OPENAI_API_KEY"),
        (403, PermissionError, "refuses the key"),
        (404, LookupError, "no model 'm'"),
        (429, ConnectionError, "HTTP 429: slow down .after 2 tries"),
    ],
)
def test_what_fails_for_all_stops_the_run(serve, status, error, message):
    """But what was under way comes in first: it was paid for."""

    def behave(question, number):
        if question == "late":
            time.sleep(0.3)
            return completion()
        return failure(status, "slow down")

    server = serve(behave)
    sample_fn = endpoint("m", server.url, max_retries=1, backoff=0.01)
    samples = sample_fn([request("late"), *map(request, "abcdefgh")])
    assert next(samples).query_id == "late"
    with pytest.raises(error, match=message):
        list(samples)


def test_a_run_that_stops_leaves_no_row_of_what_was_to_be_tried_again(serve):
    """A request that waited for its next try as the run stopped has not
    failed: a row would keep it from being drawn when the run goes on."""

    def behave(question, number):
        time.sleep(0.2 if question == "wrong key" else 0)
        return failure(401 if question == "wrong key" else 500)

    server = serve(behave)
    sample_fn = endpoint("m", server.url, backoff=30.0)
    samples = sample_fn([request("flaky"), request("wrong key")])
    with pytest.raises(PermissionError):
        next(samples)


def test_no_key_no_header(serve, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    server = serve(lambda question, number: completion())
    draw(server, [request()])
    assert "Authorization" not in server.headers[0]


def test_missing_usage_is_counted_and_warned_of(serve):
    tokens = {"content": [{"logprob": -1.0, "top_logprobs": []}] * 5}
    replies = {
        "12345678": completion("abcde", usage=None),
        "1": completion("abcde", usage=None, logprobs=tokens),
    }
    server = serve(lambda question, number: replies[question])
    with pytest.warns(UserWarning, match="four bytes a token"):
        samples = draw(server, map(request, replies))
    counted = {s.query_id: (s.prompt_tokens, s.new_tokens) for s in samples}
    assert counted == {"12345678": (2, 2), "1": (1, 5)}


def test_cached_tokens_are_the_endpoints(serve):
    status, reply, headers = completion()
    reply["usage"]["prompt_tokens_details"] = {"cached_tokens": 8}
    server = serve(lambda question, number: (status, reply, headers))
    assert draw(server, [request()])[0].cached_tokens == 8


def test_finish_reasons(serve):
    server = serve(lambda question, number: completion(finish=question))
    reasons = ["stop", "length", "eos", "content_filter"]
    got = {
        s.query_id: s.finish_reason for s in draw(server, map(request, reasons))
    }
    assert got == {
        "stop": "stop",
        "length": "length",
        "eos": "stop",
        "content_filter": "error: the endpoint's content filter",
    }


def test_a_turn_that_is_to_go_on(serve):
    """As a flag of the servers that know it; else as a turn that asks."""
    server = serve(lambda question, number: completion())
    begun = request(turns=[Message("assistant", "Attempt 1:")])
    draw(server, [begun])
    draw(server, [begun], continue_final_message=True)
    asked, flagged = server.bodies
    roles = [m["role"] for m in asked["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert "continue_final_message" not in asked
    assert flagged["messages"][-1]["content"] == "Attempt 1:"
    assert flagged["continue_final_message"] is True
    assert flagged["add_generation_prompt"] is False


def test_extra_fields_of_the_body(serve):
    server = serve(lambda question, number: completion())
    extra = {"max_tokens": None, "max_completion_tokens": 5, "top_k": 3}
    draw(server, [request()], extra_body=extra, logprobs=False)
    [body] = server.bodies
    assert "max_tokens" not in body and "logprobs" not in body
    assert (body["max_completion_tokens"], body["top_k"]) == (5, 3)


def test_text_that_is_no_unicode_is_sent_all_the_same(serve):
    server = serve(lambda question, number: completion("\ud800"))
    [sample] = draw(server, [request("a\ud800")])
    assert server.bodies[0]["messages"][0]["content"] == "a?"
    assert sample.text == "\ud800"


def test_a_consumer_that_leaves_stops_the_requests(serve):
    server = serve(lambda question, number: completion())
    sample_fn = endpoint("m", server.url, concurrency=2)
    samples = sample_fn([request(str(i)) for i in range(100)])
    next(samples)
    samples.close()
    time.sleep(0.2)
    assert len(server.bodies) <= 6


def test_a_run_goes_on_when_the_endpoint_is_back(serve, tmp_path):
    """Nothing that was drawn is lost or drawn again, and no sample of the
    budget goes to a failure."""
    paid, asked = [False], collections.Counter()

    def behave(question, number):
        if asked.total() == 7 and not paid[0]:
            return failure(401, "your credit is used up")
        asked[question] += 1
        return completion()

    server = serve(behave)

    def run():
        with Log(tmp_path, {"model": "m"}) as log:
            return scale(
                [request(str(i)).query for i in range(4)],
                recorded(endpoint("m", server.url, concurrency=1), log),
                parallel(),
                POLICIES["uniform"](),
                majority(),
                Budget(samples=12),
                jax.random.key(0),
            )

    with pytest.raises(PermissionError, match="credit"):
        run()
    assert len(list(read_samples(tmp_path / "samples.jsonl"))) == 7
    paid[0] = True
    result = run()
    assert result.ledger.samples == 12
    assert asked.total() == 12
    assert len(list(read_samples(tmp_path / "samples.jsonl"))) == 12


def test_urls():
    assert parse_url("openai://org/m@http://h:1/v1") == (
        "org/m", "http://h:1/v1",
    )  # fmt: skip
    for text in (
        "openai://m",
        "m@http://h",
        "openai://@http://h",
        "openai://m@",
    ):
        with pytest.raises(ValueError, match="openai://MODEL@BASE_URL"):
            parse_url(text)
    with pytest.raises(ValueError, match="not an http://"):
        endpoint("m", "ftp://h")

"""Requests of the judge at an endpoint of this process: what is sent, and what becomes of each reply."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from halos_eval.config.judge_client import Client
from halos_eval.errors import Incomplete, JudgeRefused
from halos_eval.stages.judge import sending
from halos_eval.stages.judge.connection import Connection, NoReply
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.pace import Pace
from halos_eval.stages.judge.sending import Sender, read_body

KEY = "sk-never-to-be-shown"
REQUEST = {"model": "a judge/1", "messages": [{"role": "user", "content": "Which one? 😀"}]}
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "m"}}
ANSWER = {"model": "judge-2026", "choices": [CHOICE], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}


@pytest.fixture
def vendor():
    """An endpoint that gives ``replies`` (status, headers, data), the last one again and again; None: no reply."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            server.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}, data))
            reply = server.replies[min(len(server.seen), len(server.replies)) - 1]
            if reply is None:
                return
            status, headers, body = reply
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.seen, server.replies = [], [(200, {}, ANSWER)]
        server.url = f"127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def send(endpoint, request=REQUEST, timeout=60.0):
    async def run():
        async with Connection(endpoint, timeout) as connection:
            return await Sender(connection, Pace(4)).answer(request)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("address", "fields", "path", "headers"),
    [
        ("http://{}/v1/", {}, "/v1/chat/completions", {"authorization": f"Bearer {KEY}"}),
        (
            "http://{}/v1",
            {"client": Client(organization="o", project="p"), "headers": {"X-Team": "evaluation"}},
            "/v1/chat/completions",
            {"openai-organization": "o", "openai-project": "p", "x-team": "evaluation"},
        ),
        (
            "http://{}/v1",
            {"headers": {"Authorization": "Key 7"}, "query": {"tag": "a b"}},
            "/v1/chat/completions?tag=a+b",
            {"authorization": "Key 7"},
        ),
        ("http://me:word@{}/v1", {}, "/v1/chat/completions", {"authorization": "Basic bWU6d29yZA=="}),
        ("http://{}/v1", {"key": None}, "/v1/chat/completions", {"authorization": None}),
        (
            "http://{}/",
            {"client": Client(azure_endpoint="https://a.example", api_version="2024-10-21")},
            "/openai/deployments/a%20judge%2F1/chat/completions?api-version=2024-10-21",
            {"api-key": KEY, "authorization": None},
        ),
        (
            "http://{}",
            {"client": Client(azure_endpoint="https://a.example", azure_deployment="mine", api_version="1")},
            "/openai/deployments/mine/chat/completions?api-version=1",
            {"api-key": KEY},
        ),
    ],
    ids=["vendor", "names", "own headers", "user", "no key", "azure", "deployment"],
)
def test_addresses_and_credentials(vendor, address, fields, path, headers):
    assert send(Endpoint(base_url=address.format(vendor.url), **{"key": KEY, **fields}))["text"] == "m"
    [(sent_to, sent, data)] = vendor.seen
    assert sent_to == path
    assert {name: sent.get(name) for name in headers} == headers
    assert json.loads(data) == REQUEST


def test_the_environments_proxy_is_used_unless_it_excludes_the_host(vendor, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://me:word@{vendor.url}")
    send(Endpoint(base_url="http://judge.example/v1", key=KEY))
    [(sent_to, sent, _)] = vendor.seen
    assert sent_to == "http://judge.example/v1/chat/completions"
    assert (sent["authorization"], sent["proxy-authorization"]) == (f"Bearer {KEY}", "Basic bWU6d29yZA==")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    send(Endpoint(base_url=f"http://{vendor.url}/v1", key=KEY))
    assert vendor.seen[1][0] == "/v1/chat/completions"


def test_a_netrc_file_changes_nothing(vendor, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password word")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert send(Endpoint(base_url=f"http://{vendor.url}", key=KEY))["text"] == "m"
    assert vendor.seen[0][1]["authorization"] == f"Bearer {KEY}"


def test_options_of_the_client_are_not_sent_and_extra_ones_are(vendor):
    send(Endpoint(base_url=f"http://{vendor.url}", key=KEY), {**REQUEST, "timeout": 9, "extra_body": {"top_k": 1}})
    assert json.loads(vendor.seen[0][2]) == {**REQUEST, "top_k": 1}


def error(status, **fields):
    return status, {}, {"error": {"message": f"no, {KEY}\nis wrong", **fields}}


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (error(401), "refuses a judge/1: Error code: 401 - no, \\*\\*\\* is wrong. Check OPENAI_API_KEY"),
        (error(404), "refuses a judge/1"),
        (error(429, code="insufficient_quota"), "quota is spent: Error code: 429 - no, \\*\\*\\* is wrong"),
    ],
)
def test_what_a_retry_cannot_fix_ends_the_run(vendor, reply, expected):
    vendor.replies = [reply]
    with pytest.raises(JudgeRefused, match=expected):
        send(Endpoint(base_url=f"http://{vendor.url}", key=KEY))
    assert len(vendor.seen) == 1


@pytest.fixture
def quick(monkeypatch):
    """No pauses between two tries."""
    monkeypatch.setattr(sending, "_back_off", lambda failures: 0)


PAGE = (200, {}, b"<html>This is a proxy.</html>")
BUSY = (429, {"Retry-After-Ms": "1"}, {"error": {"message": "slow down"}})
CUT = (200, {"Content-Length": "1000"}, b"{")


@pytest.mark.parametrize("reply", [error(500), error(408), PAGE, (200, {}, []), BUSY, None, CUT, (502, {}, b"\xff")])
def test_after_other_failures_the_request_is_repeated(vendor, quick, reply):
    vendor.replies = [reply, (200, {}, ANSWER)]
    assert send(Endpoint(base_url=f"http://{vendor.url}", key=KEY))["text"] == "m"
    assert len(vendor.seen) == 2


@pytest.mark.parametrize(
    ("reply", "tries", "expected"),
    [
        (error(500), 9, "Error code: 500 - no, \\*\\*\\* is wrong"),
        (PAGE, 5, "status 200 with a body that is not a valid answer"),
        ((200, {}, {"error": f"no model, {KEY}"}), 5, "not a valid answer: no model, \\*\\*\\*"),
        (None, 9, "cannot be reached: Server disconnected"),
    ],
)
def test_it_is_repeated_a_few_times_only(vendor, quick, reply, tries, expected):
    vendor.replies = [reply]
    with pytest.raises(Incomplete, match=expected):
        send(Endpoint(base_url=f"http://{vendor.url}", key=KEY))
    assert len(vendor.seen) == tries


def test_a_request_that_is_refused_by_itself_gets_its_error_as_an_answer(vendor):
    vendor.replies = [(403, {}, b"<html>Forbidden</html>")]
    answer = send(Endpoint(base_url=f"http://{vendor.url}", key=KEY))
    assert (answer["text"], answer["error"], answer["usage"]) == ("", "Error code: 403", (0, 0))


def test_an_address_that_nobody_answers(quick):
    with pytest.raises(Incomplete, match=r"http://127\.0\.0\.1:9/v1: cannot be reached: Cannot connect"):
        send(Endpoint(base_url="http://127.0.0.1:9/v1", key=KEY))


def test_an_answer_that_takes_too_long():
    async def run(port):
        async with Connection(Endpoint(base_url=f"http://127.0.0.1:{port}", key=KEY), 0.05) as connection:
            await connection.post(REQUEST)

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pytest.raises(NoReply, match=r"no answer within 0.05 s") as found,
    ):
        asyncio.run(run(silent.getsockname()[1]))
    assert found.value.timeout


def test_answers_are_read_as_alpaca_evals_parsers_expect_them():
    assert read_body(ANSWER) == {
        **CHOICE,
        "logprobs": None,
        "text": "m",
        "error": None,
        "usage": (7, 1, 0, 0),
        "model": "judge-2026",
        "system_fingerprint": None,
    }
    calls = {"content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    assert read_body({"choices": [{"message": calls}]})["text"] == "{}"
    assert read_body({"choices": [{"message": {"content": "", "function_call": {"arguments": "[]"}}}]})["text"] == "[]"
    assert read_body({"choices": [{"message": {"content": None}}]})["text"] == " "


@pytest.mark.parametrize(
    "body", [[], {}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": "m"}]}, {**ANSWER, "usage": {}}]
)
def test_what_is_no_answer(body):
    with pytest.raises((AttributeError, LookupError, TypeError)):
        read_body(body)

"""Delivery with Apprise to real servers on loopback. Secrets of URLs appear in no log and no exception."""

from __future__ import annotations

import email
import json
import logging
import threading
import traceback
from email.policy import default
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from aiosmtpd.controller import Controller
from airflow.sdk.exceptions import AirflowFailException
from pydantic import SecretStr

from halos_eval.errors import BadInput
from halos_eval.orchestration.failures import RETRY_POLICY
from halos_eval.orchestration.notify import NotDelivered, beat, send
from halos_eval.reports.message import Message
from tests.airflow_server import free_port

VARIABLE = "AIRFLOW_CONN_HALOS_EVAL_MESSAGE"
SECRET = "SECRET-never-to-be-shown"
MESSAGE = Message(
    title="halos-eval 2026-11-24: 1 evaluated, 1 failed",
    body="**1 evaluated**\n\n| a | b |\n| - | - |\n| `{{ conn.x }}` | `<script>` |\n",
    failed=True,
)
CLOSED = "127.0.0.1:9"  # nothing listens there


@pytest.fixture
def webhook():
    """An HTTP server: its ``url``, the ``posts`` and ``gets`` it received, and ``answers``, its first statuses."""
    seen = SimpleNamespace(posts=[], gets=[], answers=[])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.posts.append((self.path, self.headers["Authorization"], json.loads(body)))
            self.send_response(seen.answers.pop(0) if seen.answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            seen.gets.append(self.path)
            self.send_response(seen.answers.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    seen.address = f"http://127.0.0.1:{server.server_port}"
    seen.url = f"json://user:{SECRET}-password@127.0.0.1:{server.server_port}/{SECRET}-path?retry=0"
    yield seen
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def mailbox():
    """An SMTP server: its ``url`` and the ``mail`` it received."""
    seen = SimpleNamespace(mail=[])

    class Handler:
        async def handle_DATA(self, server, session, envelope):  # noqa: N802 (its name in aiosmtpd)
            seen.mail.append(email.message_from_bytes(envelope.content, policy=default))
            return "250 OK"

    controller = Controller(Handler(), hostname="127.0.0.1", port=free_port())
    controller.start()
    seen.url = (
        f"mailto://127.0.0.1:{controller.port}?from=evaluation@example.org&to=team@example.org&mode=insecure&retry=0"
    )
    yield seen
    controller.stop()


@pytest.fixture
def connect(monkeypatch):
    """``connect(*urls)`` makes the connection."""

    def connect(*urls):
        config = [{"path": url} for url in urls]
        monkeypatch.setenv(VARIABLE, json.dumps({"conn_type": "apprise", "extra": {"config": config}}))

    monkeypatch.delenv(VARIABLE, raising=False)
    return connect


@pytest.fixture
def output(caplog, capfd):
    """``output()`` returns everything that was logged (down to DEBUG) and printed."""
    caplog.set_level(logging.DEBUG)

    def output():
        printed = capfd.readouterr()
        return caplog.text + printed.out + printed.err

    return output


def everything(error):
    """Return an exception as it is printed, with its causes."""
    return "".join(traceback.format_exception(error)) + repr(error)


def test_a_webhook_gets_the_message_as_it_is(webhook, connect, output):
    connect(webhook.url)
    send(MESSAGE)
    ((path, authorization, post),) = webhook.posts
    assert (path, authorization.split()[0]) == (f"/{SECRET}-path", "Basic")
    assert (post["title"], post["message"].strip(), post["type"]) == (MESSAGE.title, MESSAGE.body.strip(), "failure")
    text = output()
    assert MESSAGE.title in text
    assert "| `{{ conn.x }}` |" in text
    assert SECRET not in text


@pytest.fixture
def waits(monkeypatch):
    """The seconds between the attempts of a heartbeat, which are not waited for."""
    waits = []
    monkeypatch.setattr("halos_eval.orchestration.notify.time.sleep", waits.append)
    return waits


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ([200], "sent the heartbeat"),
        ([503, 204], "sent the heartbeat"),
        ([404, 500, 503], "no heartbeat (HTTP 503). Check HALOS_EVAL_HEARTBEAT_URL"),
        ([302, 302, 302], "no heartbeat (HTTP 302)"),
    ],
)
def test_a_heartbeat_requests_its_url_until_it_is_accepted_and_never_fails(webhook, waits, output, answers, words):
    webhook.answers += answers
    beat(SecretStr(f"{webhook.address}/ping/{SECRET}?create=1"))
    assert webhook.gets == [f"/ping/{SECRET}?create=1"] * len(answers)
    assert waits == [0, 5, 25][: len(answers)]
    text = output()
    assert words in text
    assert SECRET not in text


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/{}", "{}", "ftp://{}", "http://127.0.0.1:port/{}", "http://[{}"])
def test_a_heartbeat_that_cannot_be_sent_is_logged_without_its_url(waits, output, url):
    beat(SecretStr(url.format(SECRET)))
    text = output()
    assert "no heartbeat (" in text
    assert SECRET not in text


def test_without_a_url_there_is_no_heartbeat(output):
    beat(None)
    assert "heartbeat" not in output()


def test_mail_is_html_and_text(mailbox, connect):
    connect(mailbox.url)
    send(MESSAGE.model_copy(update={"failed": False}))
    (mail,) = mailbox.mail
    assert (mail["Subject"], mail["To"]) == (MESSAGE.title, "team@example.org")
    html = mail.get_body(("html",)).get_content()
    assert "<td><code>{{ conn.x }}</code></td>" in html
    assert "<td><code>&lt;script&gt;</code></td>" in html


def test_without_a_connection_the_log_has_it_and_says_so(connect, output):
    send(MESSAGE)
    text = output()
    assert MESSAGE.title in text
    assert "the message is only in this log" in text
    assert "Set the connection halos_eval_message: type apprise" in text


def test_a_message_that_no_service_accepts_is_retried_and_keeps_the_outcome(webhook, connect, output):
    webhook.answers += [401]
    mail = f"mailto://user:{SECRET}@{CLOSED}?from=a@example.org&to=b@example.org&mode=insecure&retry=0"
    connect(webhook.url, f"json://{CLOSED}/{SECRET}?retry=0", mail)
    with pytest.raises(NotDelivered) as caught:
        send(MESSAGE)
    assert str(caught.value) == (
        "halos-eval 2026-11-24: 1 evaluated, 1 failed. Not delivered: JSON (1): HTTP 401; JSON (2): unreachable, or "
        "message rejected: test its URL with the command apprise; E-Mail (3): unreachable, or message rejected: test "
        "its URL with the command apprise"
    )
    assert RETRY_POLICY.evaluate(caught.value, 1, 4).action.name != "FAIL"
    assert SECRET not in output() + everything(caught.value)


def test_a_message_that_some_services_accept_is_not_retried(webhook, connect, output):
    connect(webhook.url, f"json://{CLOSED}/{SECRET}?retry=0")
    with pytest.raises(AirflowFailException, match=r"1 failed\. Not delivered: JSON \(2\): unreachable") as caught:
        send(MESSAGE)
    assert len(webhook.posts) == 1
    assert SECRET not in output() + everything(caught.value)


def test_a_service_that_is_down_for_a_moment_is_retried_alone(webhook, connect):
    webhook.answers += [503]
    url = webhook.url.replace("?retry=0", "?wait=0")
    connect(url)
    send(MESSAGE)
    assert len(webhook.posts) == 2


@pytest.mark.parametrize(
    ("connection", "words"),
    [
        ({"config": [{"path": f"nothing://{SECRET}"}]}, "entry 1 of the connection is not a URL of Apprise"),
        ({"config": [{"path": "json://127.0.0.1"}, {"path": f"slack://{SECRET}"}]}, "entry 2 of the connection"),
        ({"config": {"path": f"mailto://u:{SECRET}@127.0.0.1:9"}}, "entry 1"),
        ({"config": [{"path": [SECRET, {"a": SECRET}]}]}, "entry 1"),
        ({"config": [{"url": SECRET}]}, "has no service"),
        ({"config": [SECRET]}, "has no service"),
        ({"config": SECRET}, "has no service"),
        ({"config": []}, "has no service"),
        ({"other": SECRET}, "has no service"),
    ],
)
def test_an_invalid_connection_is_not_retried(connection, words, monkeypatch, output):
    monkeypatch.setenv(VARIABLE, json.dumps({"conn_type": "apprise", "extra": connection}))
    with pytest.raises(BadInput, match=words) as caught:
        send(MESSAGE)
    assert str(caught.value).startswith(MESSAGE.title)
    assert '{"config": [{"path": "URL OF APPRISE"}, ...]}' in str(caught.value)
    assert SECRET not in output() + everything(caught.value)


@pytest.mark.parametrize("value", [f"slack://{SECRET}/{SECRET}/{SECRET}", f"apprise://:{SECRET}@h"])
def test_a_url_of_apprise_in_place_of_a_connection_is_not_shown(value, monkeypatch, output):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(BadInput, match="has no service") as caught:
        send(MESSAGE)
    assert SECRET not in output() + everything(caught.value)


def test_airflow_ignores_a_connection_that_is_not_json(monkeypatch, output):
    monkeypatch.setenv(VARIABLE, f'{{"extra": {SECRET}')
    send(MESSAGE)
    text = output()
    assert "the message is only in this log" in text
    assert SECRET not in text


def test_logging_goes_on_afterwards(webhook, connect, output):
    connect(webhook.url)
    send(MESSAGE)
    logging.getLogger("apprise").warning("heard again")
    assert "heard again" in output()

"""What programs of strangers write: logs, answers of judges, records. There is a message, never a traceback."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from halos_eval.config.judge import load_judge
from halos_eval.config.yaml_file import parse_yaml
from halos_eval.errors import BadInput, HalosEvalError, StoreError
from halos_eval.reports.halos_logs.read import read_logs
from halos_eval.reports.table import csv_of
from halos_eval.stages.judge.client import Completions, unreadable
from halos_eval.stages.judge.connection import Reply
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.outputs import read_outputs
from halos_eval.stages.judge.pace import Pace, seconds_to_wait
from halos_eval.stages.judge.sending import Sender
from halos_eval.storage.records import Failure, Record, readable
from tests.hostile.values import BATCH, HOSTILE, JSON

DEEP = b'{"version": ' + b"[" * 100_000
HEADER = "{} (pretrained={},dtype=auto), gen_kwargs: (None), limit: None, num_fewshot: None, batch_size: 1\n"
TABLE = """|Tasks|Version|Filter|n-shot|Metric|   |Value|   |Stderr|
|-----|------:|------|-----:|------|---|----:|---|-----:|
|{}|1|{}|0|{}|↑|0.5|±|0.1|
"""
BOARD = "       win_rate  standard_error  n_total\n{}  26.5  1.25  805\n"


@settings(max_examples=60, deadline=None)
@given(BATCH)
def test_a_log_has_rows_or_a_message(texts):
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, 20, 5):
            model, task, name, metric, noise = texts[start : start + 5]
            text = HEADER.format(noise, model) + TABLE.format(task, name, metric) + noise + "\n" + BOARD.format(model)
            Path(folder, f"{start}.log").write_bytes(text.encode(errors="surrogatepass"))
        try:
            rows = read_logs(Path(folder))
        except BadInput as error:
            assert folder in str(error)
        else:
            assert csv_of(rows)


def test_a_log_whose_name_is_no_text(tmp_path):
    for name, score in ((b"a\xfe.log", 0.5), (b"a\xff.log", 0.6)):
        path = Path(str(tmp_path), name.decode(errors="surrogateescape"))
        path.write_text(HEADER.format("hf", "/m") + TABLE.format("t", "none", "acc").replace("0.5", str(score)))
    (row,) = read_logs(tmp_path)
    assert r"differs, 0.5 in a\udcfe.log and 0.6 in a\udcff.log" in csv_of([row]).decode()


JUDGE = load_judge("demo")
ENDPOINT = Endpoint(base_url="http://judge/v1", key=SecretStr("sk-secret"))
REQUEST = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
CHOICE = st.fixed_dictionaries(
    {
        "message": st.fixed_dictionaries({}, optional={"content": JSON, "tool_calls": JSON, "function_call": JSON})
        | JSON
    },
    optional={"finish_reason": JSON, "logprobs": JSON | st.fixed_dictionaries({"content": JSON}), "text": JSON},
)
COUNTS = st.fixed_dictionaries({"prompt_tokens": JSON, "completion_tokens": JSON}, optional={"total_tokens": JSON})
USUAL = st.just({"prompt_tokens": 7, "completion_tokens": 1})
BODIES = st.fixed_dictionaries(
    {"choices": st.lists(CHOICE, min_size=1, max_size=1) | JSON},
    optional={"usage": USUAL | COUNTS | JSON, "model": HOSTILE | JSON, "system_fingerprint": JSON, "error": JSON},
)
DATA = st.one_of(
    BODIES.map(json.dumps).map(str.encode), JSON.map(json.dumps).map(str.encode), st.binary(max_size=30), st.just(DEEP),
    HOSTILE.map(lambda text: text.encode(errors="surrogatepass")),
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset-tokens", "x-ratelimit-remaining-tokens"]),
    st.sampled_from(["0", "nan", "inf", "-1", "1e9", "1.2.3s", "6m0s", "Fri, 31 Dec 1999 23:59:59 GMT"]) | HOSTILE,
)
REPLIES = st.builds(Reply, st.sampled_from([200, 200, 200, 200, 400, 401, 403, 418, 429, 500, 503]), HEADERS, DATA)


class Connected:
    """A connection that has one reply."""

    def __init__(self, reply):
        self.endpoint, self.reply = ENDPOINT, reply

    async def post(self, body, timeout=None):
        return self.reply


def answered(reply):
    """What becomes of a reply, without waiting."""
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        assert 0 <= seconds <= 900
        if len(waits) > 30:
            raise TimeoutError

    async def run():
        return await Sender(Connected(reply), Pace(4)).answer(REQUEST)

    original = asyncio.sleep
    asyncio.sleep = sleep
    try:
        return asyncio.run(run())
    finally:
        asyncio.sleep = original


def reply_with(**parts):
    """A reply that is an answer but for ``parts`` of its body."""
    usual = {"choices": [{"message": {"content": "m"}}], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}
    return Reply(200, {}, json.dumps(usual | parts).encode())


@settings(max_examples=300, deadline=None)
@given(REPLIES)
@example(reply_with(usage={"prompt_tokens": "7", "completion_tokens": [1]}))
@example(reply_with(usage={"prompt_tokens": 10**400, "completion_tokens": 1}))
@example(reply_with(model={"name": "j"}, system_fingerprint=7))
@example(reply_with(choices=[{"message": {"content": ["a", "b"]}}]))
@example(reply_with(choices=[{"message": {"content": "a\ud800"}}]))
@example(reply_with(choices=[{"message": {"content": "m"}, "logprobs": [1]}]))
@example(Reply(200, {}, DEEP))
@example(Reply(429, {"retry-after": "0"}, b""))
@example(Reply(429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1.2.3s"}, b""))
@example(Reply(503, {"retry-after": "1e9"}, b""))
@example(Reply(503, {"retry-after": "inf"}, b""))
def test_a_judges_reply_is_an_answer_that_can_be_kept_and_counted_or_a_message(reply):
    try:
        answer = answered(reply)
    except TimeoutError:
        assert reply.status == 429  # it waits for the endpoint, for minutes at most
        return
    except HalosEvalError as error:
        assert error.exit_code in {4, 5}
        assert "\n" not in str(error)
        assert "sk-secret" not in str(error)
        return
    kept = json.loads(json.dumps(answer))  # as the journal keeps it
    completions = Completions(ENDPOINT, JUDGE, None, 1, 1.0)
    completions._count(kept)
    assert isinstance(kept["text"], str)
    assert unreadable(JUDGE, [kept])
    for text in (json.dumps(kept, ensure_ascii=False), json.dumps(sorted(completions.models))):
        text.encode()


@settings(max_examples=100)
@given(HEADERS)
def test_a_time_to_wait_is_a_finite_number(headers):
    wait = seconds_to_wait(headers)
    assert wait is None or 0 <= wait < 10**12


@settings(max_examples=60, deadline=None)
@given(data=DATA)
def test_a_damaged_file_of_the_store_is_named(data):
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder, "record.json"))
        Path(url).write_bytes(data)
        for kind in (Record, Failure):
            found, damage = readable(url, kind)
            assert (found is None) == bool(damage)
            assert found or url in damage
    for read, error in ((read_outputs, BadInput), (lambda url, data: parse_yaml(data, url), BadInput)):
        try:
            read("/outputs.json", data)
        except error as raised:
            assert "/outputs.json" in str(raised)
        except StoreError as raised:
            raise AssertionError from raised

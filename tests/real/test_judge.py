"""``halos-eval judge`` with the real alpaca_eval, against a judge that replays the published annotations."""

from __future__ import annotations

import csv
import json
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from halos_eval.settings import shipped
from tests.conftest import JUDGE_KEY
from tests.real.conftest import write

pytestmark = pytest.mark.real

ASKED = 802  # alpaca_eval calls equal outputs a draw without asking: three of alpaca-7b's 805
WIN_RATE = 2.591450540223603  # alpaca-7b's, as published


def judge(run, outputs, folder, *options, env, timeout=300):
    return run(
        "judge",
        "judge",
        outputs,
        "--annotator=gpt-4.1",
        f"--output-dir={folder}",
        *options,
        env=env,
        timeout=timeout,
    )


def record_in(folder):
    return json.loads((folder / "record.json").read_text())


def score(record, metric):
    (found,) = [score for score in record["scores"] if score["metric"] == metric]
    return found


def words_of(done):
    """The one line that the command says of its failure."""
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("halos-eval: ")]
    return line


def saved(folder: Path) -> list[str]:
    """Keys of the answers that are kept for the next run."""
    parts = sorted((folder / "parts").rglob("*.jsonl"))
    return [json.loads(line)[0] for part in parts for line in part.read_text().splitlines()]


def assert_published(record, published):
    win_rate = score(record, "win_rate")
    assert win_rate["value"] == pytest.approx(float(published["win_rate"]), rel=0, abs=1e-9)
    assert win_rate["stderr"] == pytest.approx(float(published["standard_error"]), rel=0, abs=1e-9)
    discrete = score(record, "discrete_win_rate")["value"]
    assert discrete == pytest.approx(float(published["discrete_win_rate"]), rel=0, abs=1e-9)
    assert record["coverage"] == {"attempted": 805, "scored": int(published["n_total"])}


@pytest.fixture
def published(shared):
    """``published(model)``: the model's row on the published leaderboard."""
    with (shared / "judge" / "data" / "published.csv").open(encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    return rows.__getitem__


@pytest.mark.parametrize("model", ["alpaca-7b", "vicuna-7b-v1.5", "gpt-3.5-turbo-1106"])
def test_published_figures_are_reproduced(model, run, replay, output_rows, published, tmp_path):
    endpoint = replay()
    done = judge(run, write(tmp_path / "outputs.json", output_rows(model)), tmp_path, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path)
    assert_published(record, published(model))
    assert record["checkpoint"]["name"] == model
    assert record["details"]["avg_length"] == float(published(model)["avg_length"])
    # Not the published value: the calibration file of ../shared is a stand-in.
    controlled = score(record, "length_controlled_winrate")
    assert 0 < controlled["value"] < 50
    assert 0 < controlled["stderr"] < 5
    assert record["missing"] == {}
    assert len(json.loads((tmp_path / "annotations.json").read_text())) == 805
    assert not (tmp_path / "parts").exists()
    assert "Warning" not in done.stderr
    # What it used is what the endpoint billed, at the list price.
    usage, billed = record["usage"], endpoint.stats()
    assert usage["prompt_tokens"] == billed["prompt tokens billed"]
    assert usage["completion_tokens"] == billed["answered"]
    assert usage["price_usd"] == pytest.approx((usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 8) / 1e6)


def test_answers_that_cannot_be_read_are_counted_not_scored(
    run, replay, output_rows, reference_rows, published, tmp_path
):
    """phi-2's published annotations lack two outputs; the replayed judge answers "?" there."""
    rows = output_rows("phi-2")
    known = {row["instruction"] for row in rows}
    absent = [row["instruction"] for row in reference_rows if row["instruction"] not in known]
    rows += [{"instruction": text, "output": "made up for this test", "generator": "phi-2"} for text in absent]
    endpoint = replay()
    done = judge(run, write(tmp_path / "outputs.json", rows), tmp_path, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path)
    assert len(absent) == endpoint.stats()["unknown pair"] == 2
    assert_published(record, published("phi-2"))
    assert record["missing"] == {"alpaca_eval-n_total": "2 of 805 answers could not be read"}
    assert "2 of 805 answers could not be read" in done.stdout


def test_a_faulty_endpoint_changes_nothing(run, replay, outputs, tmp_path):
    """Nor is a price made up for a judge that has no price list."""
    annotator = yaml.safe_load((shipped("annotators") / "gpt-4.1.yaml").read_text(encoding="utf-8"))
    del annotator["gpt-4.1"]["price_per_million_tokens"]
    (tmp_path / "unpriced.yaml").write_text(yaml.safe_dump(annotator), encoding="utf-8")
    endpoint = replay(latency=0.05, errors=0.1, drops=0.05, garbage=0.05, rate=120)
    done = run(
        "judge",
        "judge",
        outputs,
        f"--annotator={tmp_path / 'unpriced.yaml'}",
        f"--output-dir={tmp_path}",
        env=endpoint.environment,
    )
    assert done.returncode == 0, done.stderr
    record, stats = record_in(tmp_path), endpoint.stats()
    assert score(record, "win_rate")["value"] == pytest.approx(WIN_RATE, rel=0, abs=1e-9)
    assert record["coverage"]["scored"] == 805
    assert record["missing"] == {}
    assert all(stats[fault] for fault in ("500", "dropped", "garbage", "429"))
    assert stats["answered"] == ASKED
    assert record["usage"]["prompt_tokens"] == stats["prompt tokens billed"]
    assert record["usage"]["price_usd"] is None


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_what_was_answered_before_a_kill_is_not_asked_again(sent, run, replay, outputs, tmp_path):
    latency, concurrency = 0.1, 16
    endpoint = replay(latency=latency)
    options = ("judge", outputs, "--annotator=gpt-4.1", f"--output-dir={tmp_path}", f"--concurrency={concurrency}")
    with run.started("judge", *options, env=endpoint.environment) as process:
        endpoint.wait(answered=600)
        process.send_signal(sent)
        process.wait(timeout=60)
    assert process.returncode == (143 if sent == signal.SIGTERM else -sent)
    assert "Traceback" not in process.log.read_text()
    assert not (tmp_path / "record.json").exists()
    time.sleep(0.5)  # what was in flight comes to its end
    answered, kept = endpoint.stats()["answered"], saved(tmp_path)
    assert len(set(kept)) == len(kept)
    # At most what was in flight is lost, and with SIGKILL what two seconds hold.
    lost = concurrency if sent == signal.SIGTERM else concurrency + 2 * concurrency / latency
    assert 200 < answered - lost <= len(kept) <= answered

    done = run("judge", *options, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    assert endpoint.stats()["answered"] == answered + ASKED - len(kept)
    record = record_in(tmp_path)
    assert score(record, "win_rate")["value"] == pytest.approx(WIN_RATE, rel=0, abs=1e-9)
    assert record["coverage"] == {"attempted": 805, "scored": 805}
    assert record["usage"]["completion_tokens"] == ASKED
    assert not (tmp_path / "parts").exists()


def test_a_second_run_pays_only_when_forced(run, replay, few, tmp_path):
    endpoint = replay()
    options = (*few, f"--output-dir={tmp_path}")
    first = run("judge", *options, env=endpoint.environment)
    assert first.returncode == 0, first.stderr
    asked, made = endpoint.stats(), (tmp_path / "record.json").read_bytes()
    assert asked["answered"] == 12

    again = run("judge", *options, env=endpoint.environment)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert endpoint.stats() == asked
    assert (tmp_path / "record.json").read_bytes() == made

    assert run("judge", *options, "--force", env=endpoint.environment).returncode == 0
    assert endpoint.stats() == {outcome: 2 * count for outcome, count in asked.items()}
    assert (tmp_path / "record.json").read_bytes() != made


def test_only_the_805_are_controlled_for_length(run, replay, few, tmp_path):
    assert run("judge", *few, f"--output-dir={tmp_path}", env=replay().environment).returncode == 0
    record = record_in(tmp_path)
    assert [score["metric"] for score in record["scores"]] == ["win_rate", "discrete_win_rate"]
    assert "805 instructions only" in record["missing"]["alpaca_eval-length_controlled_winrate"]


REFUSALS = {
    "wrong key": (401, "invalid_api_key"),
    "wrong model": (404, "model_not_found"),
    "spent quota": (429, "insufficient_quota"),
    "every prompt": (400, "invalid_request_error"),
}


@contextmanager
def unhelpful_endpoint(case):
    """Refuses in one way, repeating the key; or answers without log-probabilities. Gives its environment."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        log_message = lambda *words: None  # noqa: E731

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status, code = REFUSALS.get(case, (200, None))
            error = {"message": f"{case}: {self.headers['Authorization']}", "code": code}
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "m"}}
            body = json.dumps(
                {"error": error} if code else {"id": "1", "object": "chat.completion", "choices": [choice]}
            )
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        handle_error = lambda *words: None  # noqa: E731 (the command hangs up at the first refusal)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_API_KEY": JUDGE_KEY}
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("case", "exit_code", "remedy"),
    [
        ("wrong key", 4, "Check OPENAI_API_KEY"),
        ("wrong model", 4, "the annotator's model_name"),
        ("spent quota", 4, "quota is spent"),
        ("every prompt", 4, "every request was refused"),
        ("no log-probabilities", 7, "does the endpoint give log-probabilities?"),
    ],
    ids=[*REFUSALS, "no log-probabilities"],
)
def test_a_refusal_is_told_at_once_and_nothing_of_it_is_kept(case, exit_code, remedy, run, replay, outputs, tmp_path):
    """Three of these pairs are draws that need no judge: they are no win rate of 50 % either."""
    folder = tmp_path / "results"
    with unhelpful_endpoint(case) as environment:
        began = time.monotonic()
        done = judge(run, outputs, folder, env=environment)
    assert time.monotonic() - began < 20
    assert done.returncode == exit_code
    words = words_of(done)
    assert remedy in words
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["failure.json"]
    failure = json.loads((folder / "failure.json").read_text())
    assert failure["exit_code"] == exit_code
    assert words == f"halos-eval: {failure['error']}: {failure['message']}"
    assert JUDGE_KEY not in done.stdout + done.stderr + (folder / "failure.json").read_text()


@pytest.mark.parametrize(("case", "exit_code"), {"every prompt": 4, "no log-probabilities": 7}.items())
def test_once_the_endpoint_is_mended_the_next_run_succeeds(case, exit_code, run, replay, few, tmp_path):
    options = (*few, f"--output-dir={tmp_path / 'results'}")
    with unhelpful_endpoint(case) as environment:
        done = run("judge", *options, env=environment)
    assert done.returncode == exit_code, done.stderr
    assert run("judge", *options, env=replay().environment).returncode == 0
    assert record_in(tmp_path / "results")["coverage"] == {"attempted": 12, "scored": 12}
    assert not (tmp_path / "results" / "failure.json").exists()


def test_without_a_key_nothing_is_asked(run, replay, few, tmp_path):
    endpoint = replay()
    done = run("judge", *few, f"--output-dir={tmp_path}", env={"OPENAI_BASE_URL": endpoint.base_url})
    assert done.returncode == 4
    assert "OPENAI_API_KEY is not set" in words_of(done)
    assert endpoint.stats() == {}


def test_the_key_is_nowhere(run, replay, few, tmp_path):
    done = run("judge", *few, f"--output-dir={tmp_path / 'results'}", env=replay().environment)
    assert done.returncode == 0
    written = [path.read_text() for path in (tmp_path / "results").iterdir()]
    assert len(written) == 2
    assert JUDGE_KEY not in "".join([done.stdout, done.stderr, *written])


def test_an_endpoint_that_is_down_is_given_up(run, outputs, tmp_path):
    """As many requests as run at a time fail with all their retries, not 802 one after the other."""
    environment = {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1", "OPENAI_API_KEY": JUDGE_KEY}
    began = time.monotonic()
    done = judge(run, outputs, tmp_path, env=environment, timeout=180)
    assert done.returncode == 5
    assert time.monotonic() - began < 60
    assert "127.0.0.1:9/v1 cannot be reached" in words_of(done)

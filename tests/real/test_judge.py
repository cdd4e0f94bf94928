"""``halos-eval judge`` with the real alpaca_eval, against a judge whose preferences are known."""

from __future__ import annotations

import csv
import gzip
import json
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from halos_eval.shipped import shipped
from halos_eval.stages.judge.client import FIRST
from halos_eval.stages.judge.sending import RETRIES
from tests.conftest import DOUBLES, JUDGE_KEY, ROOT, judges
from tests.doubles import result_of
from tests.doubles.hub_data import DRAWS, GENERATOR, output_rows
from tests.doubles.judge import BIASED, UNDECIDED
from tests.real.conftest import expected_win_rate, failure, write

pytestmark = pytest.mark.real

OUTPUTS = output_rows()
PAIRS = len(OUTPUTS)
ASKED = PAIRS - DRAWS  # alpaca_eval calls equal outputs a draw without asking
WIN_RATE = pytest.approx(expected_win_rate(OUTPUTS), rel=0, abs=1e-9)
PUBLISHED_PAIRS = 805


def judge(run, outputs, folder, *options, env, timeout=300):
    return run(
        "judge",
        "judge",
        outputs,
        "--judge=gpt-4.1",
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


def saved(folder: Path) -> list[str]:
    """Keys of the answers that are kept for the next run."""
    parts = sorted((folder / "answers").rglob("*.jsonl"))
    return [json.loads(line)[0] for part in parts for line in part.read_text().splitlines()]


def assert_billed(record, billed):
    """The tokens are those that the endpoint billed, at the list price."""
    usage = record["usage"]
    assert usage["prompt_tokens"] == billed["prompt tokens billed"]
    assert usage["completion_tokens"] == billed["answered"] + billed.get("unknown pair", 0)
    assert usage["price_usd"] == pytest.approx((usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 8) / 1e6)


def test_the_win_rate_is_the_mean_preference(run, serve_judge, outputs, tmp_path):
    endpoint = serve_judge()
    done = judge(run, outputs, tmp_path, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path)
    assert score(record, "win_rate")["value"] == WIN_RATE
    assert 0 < score(record, "win_rate")["stderr"] < 5
    assert record["coverage"] == {"attempted": PAIRS, "scored": PAIRS}
    assert record["missing"] == {}
    assert record["checkpoint"]["name"] == GENERATOR
    inputs = record["provenance"]["inputs"]
    assert (inputs["judge_snapshots"], inputs["judge_answered_as"]) == ("gpt-4.1/fp_double", '["gpt-4.1"]')
    assert record["details"]["avg_length"] == int(sum(len(row["output"]) for row in OUTPUTS) / PAIRS)
    controlled = score(record, "length_controlled_winrate")
    assert 0 < controlled["value"] < 100
    assert 0 < controlled["stderr"] < 5
    assert len(json.loads(result_of(tmp_path / "record.json", "annotations.json").read_text())) == PAIRS
    assert len(saved(tmp_path)) == ASKED
    assert "Warning" not in done.stderr
    assert endpoint.stats()["answered"] == ASKED
    assert_billed(record, endpoint.stats())
    assert "as of 2025-04-14 (of halos-eval)" in record["provenance"]["inputs"]["judge_prices"]


def test_answers_that_cannot_be_read_are_counted_not_scored(run, serve_judge, tmp_path):
    rows = output_rows()
    for row in rows[1:3]:
        row["output"] = UNDECIDED
    endpoint = serve_judge()
    # The name is one that a checkpoint may have, and must not be mistaken for the outputs to compare with.
    name = "--name=reference"
    done = judge(run, write(tmp_path / "outputs.json", rows), tmp_path, name, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path)
    assert record["checkpoint"]["name"] == "reference"
    assert 0 < score(record, "length_controlled_winrate")["stderr"] < 5
    assert endpoint.stats()["unknown pair"] == 2
    readable = [row for row in rows if row["output"] != UNDECIDED]
    assert score(record, "win_rate")["value"] == pytest.approx(expected_win_rate(readable), rel=0, abs=1e-9)
    assert record["coverage"] == {"attempted": PAIRS, "scored": PAIRS - 2}
    assert record["missing"] == {"alpaca_eval-n_total": f"2 of {PAIRS} answers could not be read"}
    assert f"2 of {PAIRS} answers could not be read" in done.stdout
    assert_billed(record, endpoint.stats())


MODELS = ("alpaca-7b", "vicuna-7b-v1.5", "gpt-3.5-turbo-1106", "phi-2", "text_davinci_003")


def lines(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def published(shared, published_hub, environments, tmp_path_factory):
    """By model: its outputs, its row on the published leaderboard if any, and its figures by alpaca_eval alone.

    phi-2's published annotations lack two outputs. They get others, which the replayed judge does not know.
    """
    data, folder = shared / "judge" / "data", tmp_path_factory.mktemp("published")
    with (data / "published.csv").open(encoding="utf-8") as file:
        leaderboard = {row["model"]: row for row in csv.DictReader(file)}
    references = {row["instruction"]: row["output"] for row in lines(data / "baseline.jsonl.gz")}
    hub = published_hub.root / "datasets" / "tatsu-lab" / "alpaca_eval"
    wanted = [row["instruction"] for row in json.loads((hub / "alpaca_eval.json").read_text(encoding="utf-8"))]
    absent = {"output": "written for this test", "preference": None}
    known = {model: {row["instruction"]: row for row in lines(data / f"{model}.jsonl.gz")} for model in MODELS}
    found = {
        model: [{"instruction": text} | rows.get(text, absent) for text in wanted] for model, rows in known.items()
    }
    pairs = {
        model: [[row["instruction"], row["output"], references[row["instruction"]], row["preference"]] for row in rows]
        for model, rows in found.items()
    }
    words = [environments / "judge" / "bin" / "python", ROOT / "tests" / "real" / "alpaca_alone.py"]
    variables = {"PATH": "/usr/bin:/bin", "HF_ENDPOINT": published_hub.endpoint, "HF_HOME": str(folder / "cache")}
    done = subprocess.run(
        [*words, write(folder / "pairs.json", pairs)], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    alone = json.loads(done.stdout)
    return {model: (found[model], leaderboard.get(model), alone[model]) for model in MODELS}


def assert_as_alpaca_eval_alone(record, alone):
    """Also the length-controlled win rate, and the standard errors."""
    figures = {metric: alone[metric] for metric in ("win_rate", "length_controlled_winrate", "discrete_win_rate")}
    assert {score["metric"]: score["value"] for score in record["scores"]} == pytest.approx(figures, rel=0, abs=1e-9)
    errors = {"win_rate": alone["standard_error"], "length_controlled_winrate": alone["lc_standard_error"]}
    found = {metric: score(record, metric)["stderr"] for metric in errors}
    assert found == pytest.approx(errors, rel=0, abs=1e-9)


@pytest.mark.parametrize(
    "model", [*MODELS[:1], *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS[1:-2]), *MODELS[-2:]]
)
def test_published_figures_are_reproduced(model, run, published_hub, published_judge, published, tmp_path):
    rows, expected, alone = published[model]
    hub = {"HF_ENDPOINT": published_hub.endpoint, "HF_HOME": str(tmp_path / "cache")}
    outputs = write(
        tmp_path / "outputs.json",
        [{"instruction": row["instruction"], "output": row["output"], "generator": model} for row in rows],
    )
    done = judge(run, outputs, tmp_path, env=published_judge.environment | hub)
    assert done.returncode == 0, done.stderr
    record = record_in(tmp_path)
    readable = sum(row["preference"] is not None for row in rows)
    assert record["coverage"] == {"attempted": PUBLISHED_PAIRS, "scored": readable}
    assert record["checkpoint"]["name"] == model
    assert_as_alpaca_eval_alone(record, alone)
    assert_billed(record, published_judge.stats())
    if expected is None:
        return  # text_davinci_003 is on no leaderboard with this reference
    # The length-controlled win rate is not the published one: the calibration file of ../shared is a stand-in.
    for metric in ("win_rate", "discrete_win_rate"):
        assert score(record, metric)["value"] == pytest.approx(float(expected[metric]), rel=0, abs=1e-9)
    assert score(record, "win_rate")["stderr"] == pytest.approx(float(expected["standard_error"]), rel=0, abs=1e-9)
    assert readable == int(expected["n_total"])
    if readable == PUBLISHED_PAIRS:
        assert record["details"]["avg_length"] == float(expected["avg_length"])


def test_a_faulty_endpoint_changes_nothing(run, serve_judge, outputs, tmp_path):
    """A judge that is in no price list has no price in its record, but the reason."""
    judge = yaml.safe_load((shipped("judges") / "gpt-4.1.yaml").read_text(encoding="utf-8"))
    judge["gpt-4.1"]["completions_kwargs"]["model_name"] = "unpriced"
    (tmp_path / "unpriced.yaml").write_text(yaml.safe_dump(judge), encoding="utf-8")
    endpoint = serve_judge(latency=0.05, errors=0.1, drops=0.05, garbage=0.05, rate=120)
    done = run(
        "judge",
        "judge",
        outputs,
        f"--judge={tmp_path / 'unpriced.yaml'}",
        f"--output-dir={tmp_path}",
        env=endpoint.environment,
    )
    assert done.returncode == 0, done.stderr
    record, stats = record_in(tmp_path), endpoint.stats()
    assert score(record, "win_rate")["value"] == WIN_RATE
    assert record["coverage"]["scored"] == PAIRS
    assert record["missing"] == {}
    assert all(stats[fault] for fault in ("500", "dropped", "garbage", "429"))
    assert stats["answered"] == ASKED
    assert record["usage"]["prompt_tokens"] == stats["prompt tokens billed"]
    assert record["usage"]["price_usd"] is None
    assert record["provenance"]["inputs"]["judge_prices"].startswith("unknown: unpriced is not in the price table")


@pytest.mark.parametrize(
    "sent",
    [pytest.param(signal.SIGKILL, id="killed"), pytest.param(signal.SIGTERM, id="terminated", marks=pytest.mark.slow)],
)
def test_what_was_answered_before_a_kill_is_not_asked_again(sent, run, serve_judge, outputs, tmp_path):
    latency, concurrency = 0.1, 4
    endpoint = serve_judge(latency=latency)
    options = ("judge", outputs, "--judge=gpt-4.1", f"--output-dir={tmp_path}", f"--concurrency={concurrency}")
    with run.started("judge", *options, env=endpoint.environment) as process:
        endpoint.wait(140, process)
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
    assert 20 < answered - lost <= len(kept) <= answered

    done = run("judge", *options, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    assert endpoint.stats()["answered"] == answered + ASKED - len(kept)
    record = record_in(tmp_path)
    assert score(record, "win_rate")["value"] == WIN_RATE
    assert record["coverage"] == {"attempted": PAIRS, "scored": PAIRS}
    assert record["usage"]["completion_tokens"] == ASKED


@pytest.fixture(scope="module")
def judged(run, few, tmp_path_factory):
    """A judge's stage that has run: its words, its folder, its endpoint, and what it said and used."""
    folder = tmp_path_factory.mktemp("judged")
    with judges(folder, DOUBLES / "judge.py") as start:
        endpoint, options = start(), (*few, f"--output-dir={folder / 'results'}")
        done = run("judge", *options, env=endpoint.environment)
        assert done.returncode == 0, done.stderr
        yield SimpleNamespace(
            options=options, folder=folder / "results", endpoint=endpoint, done=done, stats=endpoint.stats()
        )


OWN_TEMPLATE = '''<|im_start|>user
Of two answers, name the one that you would rather have got.
{
    "instruction": """{instruction}""",
}
    {
        "model_identifier": "m",
        "output": """{output_1}"""
    },
    {
        "model_identifier": "M",
        "output": """{output_2}"""
    }
}
Say m or M.
<|im_end|>
'''


@pytest.mark.parametrize("padding", ["", "Take your time. " * 50], ids=["short", "longer than a file's name"])
def test_a_judge_file_with_a_template_of_its_own_beside_it(padding, run, serve_judge, judged, few, tmp_path):
    """As HALOs' users have them: NAME.yaml and the template that it names."""
    judge_file = yaml.safe_load((shipped("judges") / "gpt-4.1.yaml").read_text(encoding="utf-8"))
    judge_file["gpt-4.1"]["prompt_template"] = "own.txt"
    (tmp_path / "judge.yaml").write_text(yaml.safe_dump(judge_file), encoding="utf-8")
    (tmp_path / "own.txt").write_text(OWN_TEMPLATE.replace("Of two", f"{padding}Of two"), encoding="utf-8")
    endpoint = serve_judge()
    words = (*few[:-1], f"--judge={tmp_path / 'judge.yaml'}", f"--output-dir={tmp_path}")
    done = run("judge", *words, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    assert endpoint.stats()["answered"] == 12
    assert record_in(tmp_path)["scores"] == record_in(judged.folder)["scores"]


def test_a_second_run_pays_only_when_forced(run, judged):
    made, environment = (judged.folder / "record.json").read_bytes(), judged.endpoint.environment
    assert judged.stats["answered"] == 12
    again = run("judge", *judged.options, env=environment)
    assert (again.returncode, again.stdout) == (0, judged.done.stdout)
    assert judged.endpoint.stats() == judged.stats
    assert (judged.folder / "record.json").read_bytes() == made

    assert run("judge", *judged.options, "--force", env=environment).returncode == 0
    assert judged.endpoint.stats() == {outcome: 2 * count for outcome, count in judged.stats.items()}
    assert (judged.folder / "record.json").read_bytes() != made


def test_only_alpaca_evals_own_instructions_are_controlled_for_length(judged):
    record = record_in(judged.folder)
    assert [score["metric"] for score in record["scores"]] == ["win_rate", "discrete_win_rate"]
    assert "805 instructions only" in record["missing"]["alpaca_eval-length_controlled_winrate"]


def test_the_key_is_nowhere(judged):
    written = [path.read_text() for path in judged.folder.rglob("*") if path.is_file()]
    assert len(written) >= 4  # a slow machine saves its answers in more parts
    assert JUDGE_KEY not in "".join([judged.done.stdout, judged.done.stderr, *written])


REFUSALS = {
    "wrong key": (401, "invalid_api_key"),
    "wrong model": (404, "model_not_found"),
    "spent quota": (429, "insufficient_quota"),
    "every prompt": (400, "invalid_request_error"),
}


@contextmanager
def unhelpful_endpoint(case):
    """Refuses in one way, repeating the key; or answers without log-probabilities.

    Gives its environment, and the bodies of the requests that it has got.
    """
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        log_message = lambda *words: None  # noqa: E731

        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
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
        yield {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_API_KEY": JUDGE_KEY}, bodies
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("case", "exit_code", "remedy"),
    [
        ("wrong key", 4, "Check OPENAI_API_KEY"),
        ("wrong model", 4, "the judge's model_name"),
        ("spent quota", 4, "quota is spent"),
        ("every prompt", 4, "the first 5 requests were refused"),
        ("no log-probabilities", 7, "Check that the endpoint returns log-probabilities"),
    ],
    ids=[*REFUSALS, "no log-probabilities"],
)
def test_a_refusal_is_told_at_once_and_nothing_of_it_is_kept(case, exit_code, remedy, run, outputs, tmp_path):
    """Some of these pairs are draws that need no judge: they are no win rate of 50 % either."""
    folder = tmp_path / "results"
    with unhelpful_endpoint(case) as (environment, bodies):
        done = judge(run, outputs, folder, env=environment)
    assert len(set(bodies)) == len(bodies)  # no request is repeated
    assert 1 <= len(bodies) <= FIRST
    assert done.returncode == exit_code
    words = failure(done)
    assert remedy in words
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["failure.json"]
    kept = json.loads((folder / "failure.json").read_text())
    assert kept["exit_code"] == exit_code
    assert words == f"{kept['error']}: {kept['message']}"
    assert JUDGE_KEY not in done.stdout + done.stderr + (folder / "failure.json").read_text()


@pytest.mark.parametrize(("case", "exit_code"), {"every prompt": 4, "no log-probabilities": 7}.items())
def test_once_the_endpoint_is_mended_the_next_run_succeeds(case, exit_code, run, serve_judge, few, tmp_path):
    options = (*few, f"--output-dir={tmp_path / 'results'}")
    with unhelpful_endpoint(case) as (environment, _):
        done = run("judge", *options, env=environment)
    assert done.returncode == exit_code, done.stderr
    assert run("judge", *options, env=serve_judge().environment).returncode == 0
    assert record_in(tmp_path / "results")["coverage"] == {"attempted": 12, "scored": 12}
    assert not (tmp_path / "results" / "failure.json").exists()


def test_a_run_stops_at_its_limit_and_a_higher_one_continues_it(run, serve_judge, few, tmp_path):
    endpoint = serve_judge()
    options = (*few, f"--output-dir={tmp_path}")
    dear = endpoint.environment
    done = run("judge", *options, "--max-cost=0.002", env=dear)
    assert done.returncode == 8
    assert "stopped at the limit of 0.002 USD" in failure(done)
    paid = endpoint.stats()
    assert 0 < paid["answered"] < 12
    assert (paid["prompt tokens billed"] * 2 + paid["answered"] * 8) / 1e6 <= 0.002
    assert run("judge", *options, "--max-cost=1", env=dear).returncode == 0
    assert endpoint.stats()["answered"] == 12
    assert_billed(record_in(tmp_path), endpoint.stats())


def test_without_a_key_nothing_is_asked(run, serve_judge, few, tmp_path):
    endpoint = serve_judge()
    done = run("judge", *few, f"--output-dir={tmp_path}", env={"OPENAI_BASE_URL": endpoint.base_url})
    assert done.returncode == 4
    assert "OPENAI_API_KEY is not set" in failure(done)
    assert endpoint.stats() == {}


@pytest.mark.slow
def test_an_endpoint_that_is_down_is_given_up(run, serve_judge, outputs, tmp_path):
    """The first few requests fail with all their retries, not all of them one after the other."""
    endpoint = serve_judge(drops=1)
    done = judge(run, outputs, tmp_path, env=endpoint.environment)
    assert done.returncode == 5
    assert endpoint.stats() == {"dropped": FIRST * (RETRIES + 1)}
    assert f"{endpoint.base_url}: cannot be reached" in failure(done)


def test_every_pair_is_asked_in_both_orders(run, serve_judge, tmp_path):
    """Only what one order has not asked yet is requested. A judge by position contradicts itself."""
    rows = output_rows()
    biased = [row for row in rows if row["instruction"] in {one["instruction"] for one in rows[4:9]}]
    for row in biased:
        row["output"] += BIASED
    endpoint = serve_judge()
    outputs = write(tmp_path / "outputs.json", rows)
    answers = f"--answers={tmp_path / 'answers'}"
    once = judge(run, outputs, tmp_path / "once", answers, env=endpoint.environment)
    assert once.returncode == 0, once.stderr
    assert endpoint.stats()["answered"] == ASKED
    swapped = judge(run, outputs, tmp_path / "swapped", answers, "--swap", env=endpoint.environment)
    assert swapped.returncode == 0, swapped.stderr
    assert endpoint.stats()["answered"] == 2 * ASKED
    record = record_in(tmp_path / "swapped")
    assert record["coverage"] == {"attempted": PAIRS, "scored": PAIRS}
    assert (record["details"]["flips"], record["details"]["judged_in_both_orders"]) == (len(biased), ASKED)
    assert score(record, "flip_rate")["value"] == pytest.approx(100 * len(biased) / ASKED)
    fair = [row for row in rows if row not in biased]
    expected = (expected_win_rate(fair) * len(fair) + 50 * len(biased)) / len(rows)
    assert score(record, "win_rate")["value"] == pytest.approx(expected, rel=0, abs=1e-9)
    assert 0 < score(record, "length_controlled_winrate")["stderr"] < 5
    assert_billed(record, endpoint.stats())
    pairs = json.loads(result_of(tmp_path / "swapped" / "record.json", "annotations.json").read_text())
    assert [one["instruction"] for one in pairs] == [
        one["instruction"]
        for one in json.loads(result_of(tmp_path / "once" / "record.json", "annotations.json").read_text())
    ]
    assert record["fingerprint"] != record_in(tmp_path / "once")["fingerprint"]

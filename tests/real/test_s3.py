"""The store on S3: a judge's outputs and results in a bucket, killed and resumed there, and what can be wrong."""

from __future__ import annotations

import json
import time
from io import StringIO

import pandas as pd
import pytest

from tests.doubles.hub_data import DRAWS, GENERATOR, output_rows
from tests.real.conftest import expected_win_rate, failure, write

pytestmark = pytest.mark.real

OUTPUTS = output_rows()
WIN_RATE = pytest.approx(expected_win_rate(OUTPUTS), rel=0, abs=1e-9)


def test_judged_killed_resumed_and_summarized_in_a_bucket(run, serve_judge, s3):
    latency, concurrency = 0.1, 4
    endpoint = serve_judge(latency=latency)
    environment = s3.environment | endpoint.environment
    write(s3.folder / "outputs.json", OUTPUTS)
    folder = s3.folder / "runs" / GENERATOR
    words = ("judge", f"{s3.bucket}/outputs.json", "--judge=gpt-4.1", f"--output-dir={s3.bucket}/runs/{GENERATOR}")
    words += (f"--concurrency={concurrency}",)
    with run.started("judge", *words, env=environment) as process:
        endpoint.wait(140, process)
        process.kill()
        process.wait()
    assert not (folder / "record.json").exists()
    time.sleep(0.5)  # what was in flight comes to its end
    answered = endpoint.stats()["answered"]
    kept = [line for part in (folder / "answers").rglob("*.jsonl") for line in part.read_text().splitlines()]
    assert 20 < answered - concurrency - 2 * concurrency / latency <= len(kept)

    done = run("judge", *words, env=environment)
    assert done.returncode == 0, done.stderr
    assert endpoint.stats()["answered"] == answered + len(OUTPUTS) - DRAWS - len(kept)
    record = json.loads((folder / "record.json").read_text())
    assert {path.name for path in folder.iterdir()} == {*record["files"], "answers", "record.json"}
    assert record["scores"][0]["value"] == WIN_RATE
    secret = s3.environment["AWS_SECRET_ACCESS_KEY"]
    assert secret not in done.stdout + done.stderr + (folder / "record.json").read_text()

    done = run("judge", "summarize", s3.bucket, f"--output={s3.bucket}/reports/summary.csv", env=s3.environment)
    assert done.returncode == 0, done.stderr
    (row,) = pd.read_csv(StringIO((s3.folder / "reports" / "summary.csv").read_text())).to_dict("records")
    assert row["model_name"] == GENERATOR
    assert row["alpacaeval_wr"] == WIN_RATE
    assert row["status"] == "complete"

    before = endpoint.stats()
    assert run("judge", *words, env=environment).returncode == 0
    assert endpoint.stats() == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint URL"),
        ({"AWS_SECRET_ACCESS_KEY": "another-secret-key"}, "does not match the signature"),
        ({"AWS_ACCESS_KEY_ID": "another-access-key"}, "Access Key"),
    ],
    ids=["unreachable", "wrong secret", "wrong key"],
)
def test_a_bucket_that_does_not_answer(wrong, words, run, serve_judge, s3, few):
    environment = s3.environment | wrong
    summarized = run("judge", "summarize", s3.bucket, env=environment)
    endpoint = serve_judge()
    judged = run("judge", *few, f"--output-dir={s3.bucket}/few", env=environment | endpoint.environment)
    for done in (summarized, judged):
        assert done.returncode == 6
        assert failure(done).startswith(f"StoreError: {s3.bucket}")
        assert "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL" in failure(done)
    assert words in failure(summarized)
    assert endpoint.stats() == {}  # found before a dollar is spent


def test_no_such_bucket(run, serve_judge, s3, few):
    endpoint = serve_judge()
    for words in (
        (*few, "--output-dir=s3://nowhere/few"),
        ("summarize", "s3://nowhere", "--output=summary.csv"),
    ):
        done = run("judge", *words, env=s3.environment | endpoint.environment)
        assert done.returncode == 6
        assert "bucket does not exist" in failure(done)
    assert endpoint.stats() == {}

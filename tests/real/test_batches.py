"""``halos-eval judge --batch`` with the real clients, against a double of the vendor's Batch API."""

from __future__ import annotations

import json
from itertools import count

import pytest

from tests.conftest import DOUBLES, judges
from tests.doubles import result_of
from tests.doubles.hub_data import DRAWS, output_rows
from tests.real.conftest import expected_win_rate, failure
from tests.real.test_judge import FIRST, assert_billed, record_in, score

pytestmark = pytest.mark.real

OUTPUTS = output_rows()
ASKED = len(OUTPUTS) - DRAWS


@pytest.fixture
def serve(tmp_path):
    """Start judges with the Batch API, as ``serve_judge`` does."""
    with judges(tmp_path, DOUBLES / "batch_judge.py") as start:
        yield start


def test_a_batch_gives_what_single_requests_give_for_half_the_price(run, serve, outputs, tmp_path):
    """One look at a batch that is not done; a few of its requests fail."""
    endpoint = serve(looks=1, failing=0.05)
    words = ("judge", outputs, "--judge=gpt-4.1")
    for starts in count(1):
        done = run("judge", *words, f"--output-dir={tmp_path / 'batch'}", "--batch", env=endpoint.environment)
        if done.returncode != 9:
            break
        assert "Waiting: " in failure(done)
        assert "(batch_1). Run the same command again after 2" in done.stderr
        assert starts < 5
        (document,) = (tmp_path / "batch").rglob("batches/0000.json")
        if starts == 1:  # as if it had been killed after it had submitted the batch
            document.write_text(json.dumps(json.loads(document.read_text()) | {"id": None}))
    assert done.returncode == 0, done.stderr
    assert starts == 3
    stats = endpoint.stats()
    assert stats["batches"] == stats["lists of batches"] == 1
    in_batch = stats["answered in batches"]
    assert 0 < ASKED - FIRST - in_batch < 0.2 * ASKED  # the failed ones, which were sent singly
    assert stats["answered"] == ASKED  # once each
    assert stats["files"] == 0
    batch = record_in(tmp_path / "batch")

    single = run("judge", *words, f"--output-dir={tmp_path / 'single'}", env=endpoint.environment)
    assert single.returncode == 0, single.stderr
    record = record_in(tmp_path / "single")
    assert batch["scores"] == record["scores"]
    assert score(batch, "win_rate")["value"] == pytest.approx(expected_win_rate(OUTPUTS), rel=0, abs=1e-9)
    records = (tmp_path / name / "record.json" for name in ("batch", "single"))
    one, other = (json.loads(result_of(record, "annotations.json").read_text()) for record in records)
    assert [pair["preference"] for pair in one] == [pair["preference"] for pair in other]
    assert_billed(record, {name: number - stats[name] for name, number in endpoint.stats().items()})
    assert batch["usage"]["prompt_tokens"] == record["usage"]["prompt_tokens"]
    assert batch["usage"]["price_usd"] == pytest.approx(
        record["usage"]["price_usd"] * (1 - in_batch / ASKED / 2), rel=0.02
    )


def test_an_endpoint_without_batches_is_refused_with_the_remedy(run, serve_judge, outputs, tmp_path):
    done = run(
        "judge",
        *("judge", outputs, "--judge=gpt-4.1", f"--output-dir={tmp_path}", "--batch"),
        env=serve_judge().environment,
    )
    assert done.returncode == 4, done.stderr
    assert "or run it without --batch" in failure(done)

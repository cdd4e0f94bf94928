"""The judge's stage under kills, faults and a rate limit: the same numbers, and hardly a request more than needed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter

import pytest

from halos_eval.digests import digest_json
from tests.airflow_server import wait_for
from tests.conftest import JUDGE_KEY
from tests.doubles.hub_data import DRAWS, output_rows
from tests.doubles.judge import Faults, Handler, Server, options, worth
from tests.real.conftest import expected_win_rate, forks, write

pytestmark = pytest.mark.real

OUTPUTS = output_rows()
ASKED = len(OUTPUTS) - DRAWS
KILLS = 20
AT_ONCE = 3


@pytest.fixture(scope="module")
def judge(run, tmp_path_factory):
    """``judge(...)`` and ``judge.started(...)`` run commands of the environment `judge`."""
    with forks(run, tmp_path_factory.mktemp("forks"), "judge", "alpaca_eval.metrics", "openai") as commands:
        yield commands


@pytest.fixture
def asked():
    """An endpoint in this process: its address, and the key of each request that it has billed, in their order."""
    keys: list[str] = []

    class Counting(Handler):
        faults = Faults(options().parse_args(["--latency=0.4"]))

        def _judge(self, request):
            keys.append(digest_json(request))
            super()._judge(request)

    with Server(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", keys
        server.shutdown()


def kept_in(folder):
    """Keys of the answers that are kept for the next run."""
    parts = sorted((folder / "answers").rglob("*.jsonl"))
    return [json.loads(line)[0] for part in parts for line in part.read_text().splitlines()]


def scores_in(folder):
    record = json.loads((folder / "record.json").read_text())
    assert record["missing"] == {}
    assert record["coverage"] == {"attempted": len(OUTPUTS), "scored": len(OUTPUTS)}
    return {score["metric"]: score["value"] for score in record["scores"]}


@pytest.mark.slow
def test_twenty_kills_change_nothing_and_no_kept_answer_is_asked_for_again(judge, asked, outputs, tmp_path):
    """By the endpoint's own count."""
    url, keys = asked
    environment = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": JUDGE_KEY}
    words = ("judge", outputs, "--judge=gpt-4.1", f"--output-dir={tmp_path}")
    dice = random.Random(20)
    kept_before: set[str] = set()
    states = set()
    for _ in range(KILLS):
        begin = len(keys)
        with judge.started("judge", *words, f"--concurrency={AT_ONCE}", env=environment) as process:
            if dice.random() < 0.8:  # the others may be killed before they ask
                wait_for(lambda begin=begin: len(keys) > begin, 60, process.log.read_text)
            time.sleep(dice.uniform(0, 4))
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert kept_before.isdisjoint(keys[begin:])
        kept = kept_in(tmp_path)
        assert len(kept) == len(set(kept))
        assert kept_before <= set(kept) <= set(keys)
        kept_before = set(kept)
        states.add(len(kept))
    assert len(states) > KILLS / 5  # the kills came at different stages of the work
    begin = len(keys)
    done = judge("judge", *words, env=environment)
    assert done.returncode == 0, done.stderr
    assert kept_before.isdisjoint(keys[begin:])
    asked_again = len(keys) - begin - (ASKED - len(kept_before))
    assert 0 <= asked_again <= AT_ONCE  # what the last kill left in flight may be counted late
    assert len(set(keys)) == ASKED
    assert scores_in(tmp_path)["win_rate"] == pytest.approx(expected_win_rate(OUTPUTS), rel=0, abs=1e-9)


@pytest.mark.parametrize(
    "seed", [pytest.param(1), pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_faults_of_every_kind_change_no_number(seed, judge, serve_judge, outputs, tmp_path):
    """One request in ten fails."""
    share = 0.02
    endpoint = serve_judge(limited=share, errors=share, drops=share, garbage=share, hang=share, seed=seed)
    words = ("judge", outputs, "--judge=gpt-4.1", f"--output-dir={tmp_path}", "--timeout=1")
    done = judge("judge", *words, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    assert scores_in(tmp_path)["win_rate"] == pytest.approx(expected_win_rate(OUTPUTS), rel=0, abs=1e-9)
    counted = Counter(endpoint.stats())
    del counted["prompt tokens billed"]
    assert counted["answered"] == ASKED
    assert counted.keys() == {"answered", "429", "500", "dropped", "garbage", "hung"}
    assert counted.total() <= 1.3 * ASKED


@pytest.mark.slow
def test_four_hundred_pairs_at_a_small_rate_take_about_as_many_requests(judge, serve_judge, tmp_path):
    """Fifteen a second here stand for the fifteen a minute of a new account."""
    pairs = [{"instruction": f"Task {number}", "output": worth(f"mine {number}", 3)} for number in range(400)]
    outputs = write(tmp_path / "outputs.json", pairs)
    reference = write(tmp_path / "reference.json", [{**pair, "output": worth("theirs", 1)} for pair in pairs])
    endpoint = serve_judge(rate=15)
    words = ("judge", outputs, f"--reference={reference}", "--judge=gpt-4.1", f"--output-dir={tmp_path / 'results'}")
    done = judge("judge", *words, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    counted = endpoint.stats()
    assert counted["answered"] == 400
    assert counted["429"] <= 0.1 * 400

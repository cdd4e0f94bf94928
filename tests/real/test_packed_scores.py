"""Scores and fingerprints are the same, whether stages share an engine or not: real vLLM and lm_eval, in float32."""

import json
import random

import pytest

from tests.real.test_harness import VLLM, record_of

pytestmark = [pytest.mark.real, pytest.mark.slow]

TASKS = ("demo_arithmetic", "demo_choice", "demo_cloze")
TOLERANCE = 1e-4
"""Of log-likelihoods, and of what is computed from them: another batch adds floating point numbers in another order."""


def command(task, folder, tiny):
    if task == "sample":
        return ["sample", "--prompts=demo", "--max-tokens=8", f"--output={folder}/outputs.json", *VLLM, "--", str(tiny)]
    return ["harness", f"--task={task}", f"--output-dir={folder}/{task}", *VLLM, "--", str(tiny)]


def results(folder):
    records = {task: record_of(folder / task) for task in TASKS}
    records["sample"] = json.loads((folder / "outputs.record.json").read_text())
    scores = {
        (task, one["task"], one["metric"], one["filter"]): one["value"]
        for task, record in records.items()
        for one in record["scores"]
    }
    same = {
        task: [record[part] for part in ("fingerprint", "identity", "coverage")] for task, record in records.items()
    }
    return scores, same, records["sample"]["files"]


def test_random_packings_give_the_scores_of_single_runs(fork, tiny, tmp_path):
    for task in (*TASKS, "sample"):
        done = fork("worker", *command(task, tmp_path / "single", tiny))
        assert done.returncode == 0, done.stderr[-2000:]
    single = results(tmp_path / "single")
    draw = random.Random(0)
    for number in range(2):
        folder = tmp_path / f"packed-{number}"
        order = draw.sample([*TASKS, "sample"], 4)
        cut = draw.randint(2, 4)
        for pack in filter(None, (order[:cut], order[cut:])):
            done = fork("worker", "pack", json.dumps([command(task, folder, tiny) for task in pack]))
            assert done.returncode == 0, done.stderr[-2000:]
        scores, same, files = results(folder)
        assert scores == pytest.approx(single[0], rel=TOLERANCE, abs=TOLERANCE), order
        assert same == single[1]
        assert files == single[2]

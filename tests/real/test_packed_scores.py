"""Scores and fingerprints are the same, whether stages share an engine or not: real vLLM and lm_eval, in float32."""

import json
import random

import pytest

from tests.real.test_harness import VLLM, record_of, samples_of, scores_of

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.slow]

TASKS = ("demo_arithmetic", "demo_choice", "demo_cloze")
TOLERANCE = 1e-4
"""Of log-likelihoods, and of what is computed from them: another batch adds floating point numbers in another order."""


def command(stage, folder, tiny):
    if stage == "sample":
        own = ["sample", "--prompts=demo", "--max-tokens=8", f"--output={folder}/outputs.json"]
    else:
        own = ["harness", f"--task={stage}", "--limit=4", f"--output-dir={folder}/{stage}"]
    return [*own, *VLLM, "--", str(tiny)]


def records_of(folder):
    sample = json.loads((folder / "outputs.record.json").read_text())
    return {"sample": sample} | {task: record_of(folder / task) for task in TASKS}


def answers_of(folder, task):
    """By document: the log-likelihoods, or the texts that were generated."""
    found = {}
    for row in samples_of(folder / task, task):
        first = [response[0] for response in row["resps"]]
        found[row["doc_id"]] = first if isinstance(first[0], str) else [float(value) for value, *_ in first]
    return found


def same(found):
    return pytest.approx(found, rel=TOLERANCE, abs=TOLERANCE)


def test_random_packings_give_the_results_of_single_runs(fork, tiny, tmp_path):
    stages, single = ("sample", *TASKS), tmp_path / "single"
    for stage in stages:
        done = fork("worker", *command(stage, single, tiny))
        assert done.returncode == 0, done.stderr[-2000:]
    expected = records_of(single)
    draw = random.Random(0)
    for number in range(2):
        folder = tmp_path / f"packed-{number}"
        order = draw.sample(stages, len(stages))
        cut = draw.randint(2, len(stages))
        for pack in filter(None, (order[:cut], order[cut:])):
            done = fork("worker", "pack", json.dumps([command(stage, folder, tiny) for stage in pack]))
            assert done.returncode == 0, done.stderr[-2000:]
        found = records_of(folder)
        assert found["sample"]["files"] == expected["sample"]["files"], order
        for stage in stages:
            for part in ("fingerprint", "identity", "coverage"):
                assert found[stage][part] == expected[stage][part], (order, stage)
            assert scores_of(found[stage]) == same(scores_of(expected[stage])), (order, stage)
        assert answers_of(folder, "demo_arithmetic") == answers_of(single, "demo_arithmetic"), order
        for task in ("demo_choice", "demo_cloze"):
            answers, others = answers_of(folder, task), answers_of(single, task)
            assert answers.keys() == others.keys()
            for number_of_document, values in others.items():
                assert answers[number_of_document] == same(values), (order, task)

"""``halos-eval harness`` with real lm_eval on vLLM and on transformers."""

import gzip
import json
import os
import random
import signal
import socket
import subprocess
import time
from contextlib import suppress

import pytest

from tests.airflow_server import wait_for
from tests.doubles import result_of
from tests.doubles.code_eval import script
from tests.real.test_sample import wait_for_parts
from tests.running import of_session

pytestmark = [pytest.mark.real, pytest.mark.vllm]

VLLM = ("--max-model-len=4096", "--dtype=float32", "--enforce-eager")

OWN_TASK = """
task: own_code
dataset_path: json
dataset_kwargs:
  data_files: {data}
test_split: train
output_type: generate_until
unsafe_code: true
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{max_gen_toks: 8, until: ["\\n"]}}
process_results: !function code.execute
metric_list:
  - {{metric: network, aggregation: mean, higher_is_better: true}}
  - {{metric: forged, aggregation: mean, higher_is_better: true}}
  - {{metric: secrets, aggregation: mean, higher_is_better: true}}
  - {{metric: works, aggregation: mean, higher_is_better: true}}
"""
# Tries what code that a model wrote could try, in a forked child, as lm_eval's code_eval runs it.
CODE = """
import multiprocessing
import os
import socket
import subprocess
from pathlib import Path

import evaluate

# As humaneval does when it is imported.
metric = evaluate.load("{metric}")
metric.compute(references=["assert True"], predictions=[["pass"]])


def tried(attack):
    try:
        attack()
        return 1
    except OSError:
        return 0


def network():
    socket.create_connection(("127.0.0.1", {port}), timeout=5).close()


def attempts(answer):
    answer["network"] = tried(network)
    answer["forged"] = tried(lambda: Path("{folder}/record.json").write_text("forged"))
    answer["secrets"] = sum((
        tried(lambda: open(f"/proc/{{os.getppid()}}/environ").read()),
        tried(lambda: Path("{model}/config.json").read_text()),
        "AWS_SECRET_ACCESS_KEY" in os.environ,
    ))
    words = ["python3", "-c", "open('own', 'w').write(str(1 + 1))"]
    answer["works"] = int(subprocess.run(words).returncode == 0 and Path("own").read_text() == "2")


def execute(doc, results):
    if tried(lambda: Path("{marker}").write_text("executed")):
        raise AssertionError("executed outside of the sandbox")
    with multiprocessing.Manager() as manager:
        answer = manager.dict()
        child = multiprocessing.get_context("fork").Process(target=attempts, args=(answer,))
        child.start()
        child.join()
        return dict(answer)
"""
METRIC = script('{"pass@1": 1.0}')


@pytest.fixture
def listener():
    """A server on loopback that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def record_of(folder):
    return json.loads((folder / "record.json").read_text())


def samples_of(folder, task):
    file = result_of(folder / "record.json", f"samples/{task}.jsonl.gz")
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def scores_of(record):
    return {(score["task"], score["metric"], score["filter"]): score["value"] for score in record["scores"]}


def test_a_killed_task_is_resumed_to_the_same_scores(fork, tiny, tmp_path):
    # Two long requests at once take several seconds in all, and finished ones are saved every two seconds.
    longer = '--gen-kwargs={"max_gen_toks": 192}'
    words = ("worker", "harness", tiny, "--task=demo_arithmetic", "--batch-size=2", longer, *VLLM)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = fork(*words, f"--output-dir={whole}")
    assert done.returncode == 0, done.stderr[-2000:]
    with fork.started(*words, f"--output-dir={killed}") as process:
        wait_for_parts(killed, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = sum(len(path.read_text().splitlines()) for path in killed.rglob("*.jsonl"))
    assert 1 <= kept < 16
    assert not (killed / "record.json").exists()
    again = fork(*words, f"--output-dir={killed}")
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count("halos_eval.stages.harness.streamed: generate_until") == 16 - kept
    first, second = record_of(whole), record_of(killed)
    for part in ("fingerprint", "identity", "scores", "coverage", "missing", "details"):
        assert first[part] == second[part]
    assert (first["usage"]["resumed"], 0 < second["usage"]["resumed"] < 1) == (0, True)
    assert samples_of(whole, "demo_arithmetic") == samples_of(killed, "demo_arithmetic")
    (samples,) = (name for name in first["files"] if name.startswith("samples/demo_arithmetic-"))
    assert first["files"][samples] == second["files"][samples]
    assert {(metric, name) for _, metric, name in scores_of(first)} == {
        ("exact_match", "strict-match"),
        ("exact_match", "flexible-extract"),
    }
    assert first["coverage"] == {"attempted": 16, "scored": 16}


def test_both_backends_give_the_same_log_likelihoods(fork, tiny, tmp_path):
    for backend, options in (("vllm", VLLM), ("hf", ("--backend=hf", "--dtype=float32"))):
        words = ("worker", "harness", tiny, "--task=demo_cloze", f"--output-dir={tmp_path / backend}", *options)
        done = fork(*words)
        assert done.returncode == 0, done.stderr[-2000:]
    vllm, hf = (scores_of(record_of(tmp_path / backend)) for backend in ("vllm", "hf"))
    assert vllm.keys() == hf.keys() == {("demo_cloze", "acc", "none"), ("demo_cloze", "perplexity", "none")}
    assert vllm["demo_cloze", "acc", "none"] == hf["demo_cloze", "acc", "none"]
    assert vllm["demo_cloze", "perplexity", "none"] == pytest.approx(hf["demo_cloze", "perplexity", "none"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_hub_data_is_named_by_its_commit(fork, tiny, tmp_path):
    options = ("--limit=2", "--num-fewshot=2", *VLLM)
    done = fork("worker", "harness", tiny, "--task=gsm8k_cot", f"--output-dir={tmp_path}", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    record = record_of(tmp_path)
    assert len(record["provenance"]["inputs"]["dataset:openai/gsm8k/main"]) == 40
    assert record["coverage"] == {"attempted": 2, "scored": 2}
    assert record["provenance"]["packages"]["lm-eval"] == "0.4.13"


def test_replayed_answers_give_the_same_results(fork, run, tiny, tmp_path):
    words = ("worker", "harness", tiny, "--task=demo_arithmetic", "--backend=hf", "--dtype=float32")
    words += ("--apply-chat-template", "--num-fewshot=2", "--fewshot-as-multiturn")
    whole, split = tmp_path / "whole", tmp_path / "split"
    for folder, more in ((whole, ()), (split, ("--answers-only",))):
        done = fork(*words, f"--output-dir={folder}", *more)
        assert done.returncode == 0, done.stderr[-2000:]
    assert not (split / "record.json").exists()
    done = run("worker", "score", split, f"--output-dir={split}")
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = record_of(whole), record_of(split)
    for part in ("fingerprint", "identity", "scores", "coverage", "missing"):
        assert first[part] == second[part]
    assert second["details"] == first["details"] | {"stopped_items": 0}
    assert first["provenance"]["inputs"] == second["provenance"]["inputs"]
    (samples,) = (name for name in first["files"] if name.startswith("samples/"))
    assert first["files"][samples] == second["files"][samples]


def killed_while_it_scores(run, scoring, victim, seconds):
    """Start to score, and kill the stage or its second process after so many seconds."""
    with run.started(*scoring) as stage:
        with suppress(subprocess.TimeoutExpired):
            stage.wait(seconds)
        scorers = subprocess.run(
            ["pgrep", "-s", str(stage.pid), "-f", "harness.scorer"], capture_output=True, check=False
        )
        if victim == "scorer" and (found := scorers.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(int(found[0]), signal.SIGKILL)
        else:
            stage.kill()
        stage.wait()
    wait_for(lambda: not of_session(stage.pid), 30, lambda: of_session(stage.pid), every=0.05)


def test_own_tasks_and_code_that_must_be_confirmed_and_is_executed_in_a_sandbox(fork, run, tiny, listener, tmp_path):
    data, marker, tasks, out = (tmp_path / name for name in ("data.jsonl", "marker", "tasks", "out"))
    data.write_text("".join(json.dumps({"question": f"{n} + 1 =", "answer": f" {n + 1}"}) + "\n" for n in range(3)))
    tasks.mkdir()
    (tasks / "own_code.yaml").write_text(OWN_TASK.format(data=data))
    (tasks / "metric.py").write_text(METRIC)
    places = {"folder": out, "model": tiny, "marker": marker, "metric": tasks / "metric.py"}
    (tasks / "code.py").write_text(CODE.format(port=listener.getsockname()[1], **places))
    words = ("worker", "harness", tiny, "--task=own_code", f"--include-path={tasks}", *VLLM)
    refused = fork(*words, f"--output-dir={out}")
    assert refused.returncode == 2
    assert "--confirm-unsafe-code" in refused.stderr
    assert "Loading weights" not in refused.stderr

    template = ("--apply-chat-template", "--chat-template=chatml")
    done = fork(*words, f"--output-dir={out}", "--confirm-unsafe-code", "--answers-only", *template)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (marker.exists(), (out / "record.json").exists()) == (False, False)

    secrets = {"AWS_SECRET_ACCESS_KEY": "never-to-be-read"}
    scoring = ("worker", "score", out, f"--output-dir={out}", f"--include-path={tasks}")
    began = time.monotonic()
    done = run(*scoring, env=secrets)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr[-2000:]
    record = record_of(out)
    assert record["coverage"] == {"attempted": 3, "scored": 3}
    assert scores_of(record) == {
        ("own_code", "network", "none"): 0,
        ("own_code", "forged", "none"): 0,
        ("own_code", "secrets", "none"): 0,
        ("own_code", "works", "none"): 1,
    }
    assert record["details"]["stopped_items"] == 0
    prompts = {sample["arguments"][0][0] for sample in samples_of(out, "own_code")}
    assert prompts == {f"\n<|im_start|>user\n{n} + 1 =<|im_end|>\n<|im_start|>assistant\n" for n in range(3)}

    # Killed at any moment, it leaves no process running, and the next run gives the same scores.
    dice = random.Random(12)
    for victim in ("scorer", "stage", "scorer"):
        (out / "record.json").unlink(missing_ok=True)
        killed_while_it_scores(run, scoring, victim, dice.uniform(0, seconds))
    (out / "record.json").unlink(missing_ok=True)
    assert run(*scoring).returncode == 0
    again = record_of(out)
    for part in ("fingerprint", "identity", "scores", "coverage", "missing", "details"):
        assert again[part] == record[part]

    # Finished halves are not repeated; other answers are not scored.
    done = fork(*words, f"--output-dir={out}", "--confirm-unsafe-code", *template)
    assert (done.returncode, done.stderr.count("skipped: the record exists")) == (0, 2), done.stderr[-2000:]
    (out / "record.json").unlink()
    (tasks / "metric.py").write_text(METRIC + "\n")
    changed = run("worker", "score", out, f"--output-dir={out}", f"--include-path={tasks}")
    assert changed.returncode == 2
    assert "own_code have changed since its answers were generated" in changed.stderr

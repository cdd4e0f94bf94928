"""``halos-eval harness`` with real lm_eval on vLLM and on transformers."""

import gzip
import json
import os
import signal
import socket

import pytest

from tests.doubles import result_of
from tests.real.test_sample import wait_for_parts

pytestmark = pytest.mark.real

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
  - {{metric: child_reaches, aggregation: mean, higher_is_better: true}}
  - {{metric: stage_reaches, aggregation: mean, higher_is_better: true}}
"""
# Tries the network as code that a model wrote could: in a forked child, as lm_eval's code_eval runs it.
CODE = """
import multiprocessing
import socket

fork = multiprocessing.get_context("fork")


def reach(answer):
    try:
        socket.create_connection(("127.0.0.1", {port}), timeout=5).close()
        answer.value = 1
    except OSError:
        answer.value = 0


def execute(doc, results):
    here, there = fork.Value("i", -1), fork.Value("i", -1)
    reach(here)
    child = fork.Process(target=reach, args=(there,))
    child.start()
    child.join()
    return {{"child_reaches": there.value, "stage_reaches": here.value}}
"""


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
    # two requests between savings: eight chunks to be killed in the middle of
    words = ("worker", "harness", tiny, "--task=demo_arithmetic", "--save-every=2", *VLLM)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = fork(*words, f"--output-dir={whole}")
    assert done.returncode == 0, done.stderr[-2000:]
    with fork.started(*words, f"--output-dir={killed}") as process:
        wait_for_parts(killed, process, least=2)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = len(list(killed.rglob("*.jsonl")))
    assert 2 <= kept < 8
    assert not (killed / "record.json").exists()
    again = fork(*words, f"--output-dir={killed}")
    assert again.returncode == 0, again.stderr[-2000:]
    assert again.stderr.count("halos_eval.stages.harness.answers: generate_until") == 8 - kept
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


@pytest.mark.usefixtures("hub")
def test_hub_data_is_named_by_its_commit(fork, tiny, tmp_path):
    options = ("--limit=2", "--num-fewshot=2", *VLLM)
    done = fork("worker", "harness", tiny, "--task=gsm8k_cot", f"--output-dir={tmp_path}", *options)
    assert done.returncode == 0, done.stderr[-2000:]
    record = record_of(tmp_path)
    assert len(record["provenance"]["inputs"]["dataset:openai/gsm8k/main"]) == 40
    assert record["coverage"] == {"attempted": 2, "scored": 2}
    assert record["provenance"]["packages"]["lm-eval"] == "0.4.13"


def test_own_tasks_and_code_that_must_be_confirmed_and_gets_no_network(fork, tiny, listener, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"question": f"{n} + 1 =", "answer": f" {n + 1}"}) + "\n" for n in range(3)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "own_code.yaml").write_text(OWN_TASK.format(data=data))
    (tmp_path / "tasks" / "code.py").write_text(CODE.format(port=listener.getsockname()[1]))
    words = ("worker", "harness", tiny, "--task=own_code", f"--include-path={tmp_path / 'tasks'}", *VLLM)
    refused = fork(*words, f"--output-dir={tmp_path / 'out'}")
    assert refused.returncode == 2
    assert "--confirm-unsafe-code" in refused.stderr
    assert "Loading weights" not in refused.stderr
    template = ("--apply-chat-template", "--chat-template=chatml")
    done = fork(*words, f"--output-dir={tmp_path / 'out'}", "--confirm-unsafe-code", *template)
    assert done.returncode == 0, done.stderr[-2000:]
    record = record_of(tmp_path / "out")
    assert record["coverage"] == {"attempted": 3, "scored": 3}
    assert scores_of(record) == {
        ("own_code", "child_reaches", "none"): 0,
        ("own_code", "stage_reaches", "none"): 1,
    }
    prompts = {sample["arguments"][0][0] for sample in samples_of(tmp_path / "out", "own_code")}
    assert prompts == {f"\n<|im_start|>user\n{n} + 1 =<|im_end|>\n<|im_start|>assistant\n" for n in range(3)}

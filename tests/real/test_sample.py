"""``halos-eval sample`` with real vLLM; the demo's test samples from a real model."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.doubles import outputs_in

pytestmark = [pytest.mark.real, pytest.mark.vllm]

# float32: bfloat16 rounds differently in a batch of another size, and a resumed run has smaller batches
ENGINE = ("--dtype=float32", "--enforce-eager")
SMALL = ("--max-model-len=1024", "--max-tokens=24", *ENGINE)
# The tiny model ends an answer by chance, so prompts finish one after the other, over some seconds.
LONG = ("--max-model-len=1024", "--max-tokens=600", "--temperature=1", "--top-p=1", *ENGINE)

# Makes an adapter of a model, and prints what transformers and PEFT answer with it.
ADAPTER = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, prompts, tokens = sys.argv[1:]
torch.manual_seed(0)
config = LoraConfig(r=12, lora_alpha=48, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config).eval()
model.save_pretrained(adapter)
tokenizer = AutoTokenizer.from_pretrained(base)
for row in json.load(open(prompts)):
    turns = [{"role": "user", "content": row["instruction"]}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": int(tokens), "do_sample": False}
    made = model.generate(input_ids=ids, **options)
    print(json.dumps(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True).strip()))
"""


def wait_for_parts(folder, process, least=1):
    """Return once so many part files of a journal are there."""
    while len(list(folder.rglob("*.jsonl"))) < least:
        assert process.poll() is None, process.log.read_text()[-2000:]
        time.sleep(0.02)


def journaled(folder):
    """The answers that a journal holds, by key."""
    lines = [line for part in sorted(folder.rglob("*.jsonl")) for line in part.read_text().splitlines()]
    return {key: value for key, value in map(json.loads, lines) if "samples" in value}


def prompts_file(path, *instructions):
    path.write_text(json.dumps([{"instruction": text} for text in instructions]))
    return path


def test_a_killed_run_is_resumed_to_the_same_outputs(fork, tiny, tmp_path):
    instructions = [f"Name {number} rivers." for number in range(2, 18)]
    prompts = prompts_file(tmp_path / "prompts.json", *instructions)
    whole, killed = tmp_path / "whole" / "outputs.json", tmp_path / "killed" / "outputs.json"

    def words(output):
        return ("worker", "sample", tiny, f"--prompts={prompts}", f"--output={output}", *LONG)

    first = fork(*words(whole))
    assert first.returncode == 0, first.stderr[-2000:]
    parts = killed.parent / "outputs.parts"
    with fork.started(*words(killed)) as process:
        wait_for_parts(parts, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = journaled(parts)
    assert 0 < len(finished) < len(instructions)
    assert not list(killed.parent.glob("outputs-*"))
    again = fork(*words(killed))
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{len(finished)} of {len(instructions)} prompts already have answers" in again.stderr
    assert not parts.exists()
    # The names and digests of the files are equal, and so are the files.
    records = [json.loads(path.with_name("outputs.record.json").read_text()) for path in (whole, killed)]
    for part in ("fingerprint", "identity", "coverage", "details", "files", "checkpoint"):
        assert records[0][part] == records[1][part]
    shares = [record["usage"]["resumed"] for record in records]
    assert shares == pytest.approx([0, len(finished) / len(instructions)])

    rows = outputs_in(whole.parent)
    assert set(rows[0]) == {"instruction", "output", "generator", "dataset", "prompt_id", "sample_id", "type"}
    assert [row["instruction"] for row in rows] == instructions


def test_what_is_finished_is_not_sampled_again(fork, run, tiny, tmp_path):
    prompts = prompts_file(tmp_path / "prompts.json", "Name a river.")
    words = ("worker", "sample", tiny, f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", *SMALL)
    assert fork(*words).returncode == 0
    again = run(*words)
    assert again.returncode == 0
    assert "skipped: the record exists" in again.stderr
    assert "vllm" not in again.stderr.lower()


def test_a_lora_adapter_is_applied(fork, environments, tiny, tmp_path):
    python = environments / "worker" / "bin" / "python"
    adapter = tmp_path / "adapted" / "FINAL"
    prompts = prompts_file(tmp_path / "prompts.json", "What is the capital of Italy?", "Name three colours.")
    words = [python, "-c", ADAPTER, tiny, adapter, prompts, "24"]
    expected = subprocess.run(words, check=True, capture_output=True, text=True)
    output = tmp_path / "outputs.json"
    done = fork("worker", "sample", adapter, f"--prompts={prompts}", f"--output={output}", "--temperature=0", *SMALL)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = outputs_in(tmp_path)
    assert [row["output"] for row in rows] == [json.loads(line) for line in expected.stdout.splitlines()]
    assert {row["generator"] for row in rows} == {"adapted"}


@pytest.fixture
def base_model(tiny, tmp_path):
    """The checkpoint as a base model has it: without a chat template."""
    folder = tmp_path / "base" / "FINAL"
    folder.mkdir(parents=True)
    for path in tiny.iterdir():
        if path.name == "tokenizer_config.json":
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            (folder / path.name).write_text(json.dumps(config))
        elif path.name != "chat_template.jinja":
            (folder / path.name).hardlink_to(path)
    return folder


def test_a_base_model_needs_a_template_and_takes_halos_own(fork, base_model, tmp_path):
    prompts = prompts_file(tmp_path / "prompts.json", "What is the capital of Italy?", "Name three colours.")
    options = (f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", *SMALL)
    refused = fork("worker", "sample", base_model, *options)
    assert refused.returncode == 2
    assert "--chat-template chatml" in refused.stderr
    taken = fork("worker", "sample", base_model, *options, "--chat-template=chatml", "--samples-per-prompt=2")
    assert taken.returncode == 0, taken.stderr[-2000:]
    rows = outputs_in(tmp_path)
    assert [(row["prompt_id"], row["sample_id"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all("<|im_end|>" not in row["output"] for row in rows)


def test_no_prompt_is_cut(fork, tiny, tmp_path):
    prompts = prompts_file(tmp_path / "prompts.json", "Short.", "word " * 2000)
    done = fork("worker", "sample", tiny, f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", *SMALL)
    assert done.returncode == 2
    assert "expected fewer than 1024" in done.stderr
    assert not list(tmp_path.glob("outputs-*"))

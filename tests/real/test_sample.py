"""``halos-eval sample`` with real vLLM and a real model."""

import json
import os
import signal
import subprocess
import time

import pytest

from halos_eval.settings import shipped

pytestmark = pytest.mark.real

# float32: bfloat16 rounds differently in a batch of another size, and a resumed run has smaller batches
SMALL = (
    "--max-model-len=1024",
    "--max-tokens=48",
    "--dtype=float32",
    "--enforce-eager",
)

MAKE_ADAPTER = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
config = LoraConfig(r=12, lora_alpha=48, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
get_peft_model(model, config).save_pretrained(sys.argv[2])
"""

GREEDY = """
import json, sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
base, adapter, prompts, tokens = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(base)
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
for row in json.load(open(prompts)):
    turns = [{"role": "user", "content": row["instruction"]}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": int(tokens), "do_sample": False}
    made = model.generate(input_ids=ids, **options)
    print(json.dumps(tokenizer.decode(made[0, ids.shape[1]:], skip_special_tokens=True).strip()))
"""


def wait_for_parts(folder, process, least=1, seconds=300):
    """Return once so many part files of a journal are there."""
    deadline = time.monotonic() + seconds
    while len(list(folder.rglob("*.jsonl"))) < least:
        assert process.poll() is None, process.log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def journaled(folder):
    """What a journal holds, by key."""
    lines = [line for part in sorted(folder.rglob("*.jsonl")) for line in part.read_text().splitlines()]
    return dict(json.loads(line) for line in lines)


@pytest.fixture
def model(checkpoints):
    return checkpoints / "smollm2-135m" / "FINAL"


def prompts_file(path, *instructions):
    path.write_text(json.dumps([{"instruction": text} for text in instructions]))
    return path


def test_a_killed_run_is_resumed_to_the_same_outputs(run, model, tmp_path):
    whole, killed = tmp_path / "whole" / "outputs.json", tmp_path / "killed" / "outputs.json"
    assert run("worker", "sample", model, "--prompts=demo", f"--output={whole}", *SMALL).returncode == 0
    parts = killed.parent / "outputs.parts"
    with run.started("worker", "sample", model, "--prompts=demo", f"--output={killed}", *SMALL) as process:
        wait_for_parts(parts, process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    finished = journaled(parts)
    assert 0 < len(finished) < 12
    assert not killed.exists()
    again = run("worker", "sample", model, "--prompts=demo", f"--output={killed}", *SMALL)
    assert again.returncode == 0, again.stderr[-2000:]
    assert f"{len(finished)} of 12 prompts have their answers already" in again.stderr
    assert killed.read_bytes() == whole.read_bytes()
    assert not parts.exists()
    records = [json.loads(path.with_name("outputs.record.json").read_text()) for path in (whole, killed)]
    for part in ("fingerprint", "identity", "coverage", "details", "files", "checkpoint"):
        assert records[0][part] == records[1][part]
    shares = [record["usage"]["resumed"] for record in records]
    assert shares == pytest.approx([0, len(finished) / 12])

    rows = json.loads(whole.read_text())
    assert set(rows[0]) == {"instruction", "output", "generator", "dataset", "prompt_id", "sample_id", "type"}
    assert [row["instruction"] for row in rows] == [
        row["instruction"] for row in json.loads((shipped("prompt_sets") / "demo.json").read_text())
    ]

    began = time.monotonic()
    third = run("worker", "sample", model, "--prompts=demo", f"--output={whole}", *SMALL)
    assert third.returncode == 0
    assert "already there" in third.stderr
    assert "vllm" not in third.stderr.lower()
    assert time.monotonic() - began < 15


def test_a_lora_adapter_is_applied(run, environments, model, tmp_path):
    python = environments / "worker" / "bin" / "python"
    adapter = tmp_path / "adapted" / "FINAL"
    subprocess.run([python, "-c", MAKE_ADAPTER, model, adapter], check=True, capture_output=True, timeout=600)
    prompts = prompts_file(tmp_path / "prompts.json", "What is the capital of Italy?", "Name three colours.")
    output = tmp_path / "outputs.json"
    options = (f"--prompts={prompts}", f"--output={output}", "--temperature=0", *SMALL)
    done = run("worker", "sample", adapter, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = subprocess.run(
        [python, "-c", GREEDY, model, adapter, prompts, "48"], check=True, capture_output=True, text=True, timeout=600
    )
    rows = json.loads(output.read_text())
    assert [row["output"] for row in rows] == [json.loads(line) for line in expected.stdout.splitlines()]
    assert {row["generator"] for row in rows} == {"adapted"}


@pytest.fixture
def base_model(model, tmp_path):
    """The checkpoint as a base model has it: without a chat template."""
    folder = tmp_path / "base" / "FINAL"
    folder.mkdir(parents=True)
    for path in model.iterdir():
        if path.name == "tokenizer_config.json":
            config = json.loads(path.read_text())
            config.pop("chat_template", None)
            (folder / path.name).write_text(json.dumps(config))
        elif path.name != "chat_template.jinja":
            (folder / path.name).symlink_to(path)
    return folder


def test_a_base_model_needs_a_template_and_takes_halos_own(run, base_model, tmp_path):
    prompts = prompts_file(tmp_path / "prompts.json", "What is the capital of Italy?", "Name three colours.")
    options = (f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", *SMALL)
    refused = run("worker", "sample", base_model, *options)
    assert refused.returncode == 2
    assert "--chat-template chatml" in refused.stderr
    taken = run("worker", "sample", base_model, *options, "--chat-template=chatml", "--samples-per-prompt=2")
    assert taken.returncode == 0, taken.stderr[-2000:]
    rows = json.loads((tmp_path / "outputs.json").read_text())
    assert [(row["prompt_id"], row["sample_id"]) for row in rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert all("<|im_end|>" not in row["output"] for row in rows)


def test_no_prompt_is_cut(run, model, tmp_path):
    prompts = prompts_file(tmp_path / "prompts.json", "Short.", "word " * 2000)
    done = run("worker", "sample", model, f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", *SMALL)
    assert done.returncode == 2
    assert "the model takes 1024" in done.stderr
    assert not (tmp_path / "outputs.json").exists()

"""The model that is scored is the one that is named: its adapter is applied, and its weights stay the same."""

from __future__ import annotations

import json
import shutil
import struct
from itertools import accumulate

import numpy as np
import pytest

from tests.airflow_server import wait_for
from tests.real.conftest import failure, write

pytestmark = [pytest.mark.real, pytest.mark.vllm]

PROMPTS = [{"instruction": "Name a river."}, {"instruction": "Name a lake."}]
ENGINE = ("--dtype=float32", "--enforce-eager", "--max-model-len=1024")
HF = ("--backend=hf", "--dtype=float32")
HIDDEN = 64  # of tests/tiny_model.py


def save(path, arrays):
    """Write a safetensors file."""
    ends = list(accumulate(array.nbytes for array in arrays.values()))
    header = {
        name: {"dtype": "F32", "shape": array.shape, "data_offsets": [end - array.nbytes, end]}
        for (name, array), end in zip(arrays.items(), ends, strict=True)
    }
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values()))


@pytest.fixture
def adapter(tiny, tmp_path):
    """``adapter(down, up)`` makes an adapter with these numbers in all of its lora_A and lora_B."""

    def make(down, up):
        folder = tmp_path / f"adapter-{down}-{up}"
        folder.mkdir()
        arrays = {}
        for layer in range(2):
            name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
            arrays[f"{name}.lora_A.weight"] = np.full((32, HIDDEN), down, np.float32)
            arrays[f"{name}.lora_B.weight"] = np.full((HIDDEN, 32), up, np.float32)
        save(folder / "adapter_model.safetensors", arrays)
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(tiny), "r": 8,
            "lora_alpha": 16, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 32},
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.fixture
def sample(fork, tmp_path):
    """``sample(model)`` samples two answers."""
    prompts = write(tmp_path / "prompts.json", PROMPTS)

    def run(model, *options):
        words = (f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", "--max-tokens=8", *ENGINE)
        return fork("worker", "sample", model, *words, *options)

    return run


def harness(fork, model, folder, *options):
    return fork("worker", "harness", model, "--task=demo_cloze", "--limit=1", f"--output-dir={folder}", *options)


@pytest.mark.parametrize("options", [ENGINE, HF], ids=["vllm", "hf"])
def test_an_adapter_without_an_effect_fails(fork, adapter, tmp_path, options):
    done = harness(fork, adapter(0, 1), tmp_path / "out", *options)
    assert done.returncode == 7
    assert "has no effect on the loaded model: log-probabilities with and without it are equal" in failure(done)
    assert not (tmp_path / "out" / "record.json").exists()


def test_an_adapter_that_is_not_trained_yet_is_its_base_and_one_of_another_rank_is_applied(fork, adapter, tmp_path):
    scores = {}
    for numbers in ((1, 0), (0.05, 0.05)):
        folder = tmp_path / f"out-{numbers[0]}"
        done = harness(fork, adapter(*numbers), folder, *HF)
        assert done.returncode == 0, done.stderr[-2000:]
        scores[numbers] = json.loads((folder / "record.json").read_text())["scores"]
    assert scores[1, 0] != scores[0.05, 0.05]


def test_weights_that_are_saved_while_vllm_loads_get_no_record(fork, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    prompts = write(tmp_path / "prompts.json", PROMPTS)
    words = (f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}", "--max-tokens=8", *ENGINE)
    with fork.started("worker", "sample", model, *words) as process:
        # It says that after it has taken the digest, and before it loads the model.
        wait_for(lambda: process.log.exists() and "already have answers" in process.log.read_text(), every=0.02)
        data = (model / "model.safetensors").read_bytes()
        (tmp_path / "new").write_bytes(data[:-4] + b"\0" * 4)
        (tmp_path / "new").replace(model / "model.safetensors")
        assert process.wait() == 2
    assert f"{model} was saved again while it was evaluated" in process.log.read_text().splitlines()[-1]
    assert not list(tmp_path.glob("outputs-*"))


def test_nothing_but_empty_answers_is_a_failure(sample, tiny, tmp_path):
    model = shutil.copytree(tiny, tmp_path / "model")
    data = bytearray((model / "model.safetensors").read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    start, end = json.loads(data[8 : 8 + length])["model.norm.weight"]["data_offsets"]
    data[8 + length + start : 8 + length + end] = bytes(end - start)
    (model / "model.safetensors").write_bytes(data)
    # Without its last norm all tokens are as probable, so the first one is chosen; now it ends the answer.
    for name in ("config.json", "generation_config.json"):
        config = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(config | {"eos_token_id": 0}))
    done = sample(model, "--temperature=0")
    assert done.returncode == 7
    assert failure(done).startswith(f"EvaluationFailed: all 2 answers of {model} are empty; none are recorded")
    assert not list(tmp_path.glob("outputs-*"))

"""The memory settings that vLLM receives."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.weights import ScoredFolder, Stamp, Weights
from halos_eval.errors import BadInput
from halos_eval.stages import vllm
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.sample import SampleConfig
from halos_eval.stages.vllm import (
    FEWEST_TOKENS,
    FULL_SEQUENCES,
    MOST_CACHE,
    MOST_TOKENS,
    MOST_TOKENS_CPU,
    SMALLEST_SHARE,
    EngineOptions,
    batched_tokens,
    engines_that_fit,
    kv_cache_bytes,
    largest_share,
    load_engine,
    memory_arguments,
    use_batch_invariance,
)

WEIGHTS = Weights(name="m", model="/m", digest="d")

SMOLLM2 = {
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "hidden_size": 576,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
LLAMA_70B = SMOLLM2 | {
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "hidden_size": 8192,
    "max_position_embeddings": 131072,
}
SEQUENCE = 2 * 30 * 3 * 64 * 1024  # numbers for 1024 tokens


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float16", 2), ("auto", 2)])
def test_it_is_sized_by_the_sequences_that_it_has_to_hold(dtype, width):
    assert kv_cache_bytes(SMOLLM2, dtype, 1024) == FULL_SEQUENCES * SEQUENCE * width


def test_without_a_length_it_is_the_models_own():
    assert kv_cache_bytes(SMOLLM2, "auto", None) == kv_cache_bytes(SMOLLM2, "auto", 8192)


def test_a_model_of_text_and_images_counts_by_its_text():
    assert kv_cache_bytes({"text_config": SMOLLM2}, "auto", 1024) == kv_cache_bytes(SMOLLM2, "auto", 1024)


def test_without_kv_heads_each_head_has_its_own():
    config = {key: value for key, value in SMOLLM2.items() if key != "num_key_value_heads"}
    assert kv_cache_bytes(config, "auto", 1024) == 3 * kv_cache_bytes(SMOLLM2, "auto", 1024)


@pytest.mark.parametrize("changes", [{"num_attention_heads": [9, 9]}, {"hidden_size": None}, {"num_hidden_layers": 0}])
def test_another_kind_of_model_gets_the_most(changes):
    assert kv_cache_bytes(SMOLLM2 | changes, "auto", 1024) == MOST_CACHE


def test_a_sequence_gets_whole_blocks():
    assert kv_cache_bytes(SMOLLM2, "auto", 1000) == kv_cache_bytes(SMOLLM2, "auto", 1024)


@given(config=st.sampled_from([SMOLLM2, LLAMA_70B]), length=st.integers(1, 131072))
def test_one_sequence_always_fits_and_no_more_than_the_most_is_taken_for_more(config, length):
    taken = kv_cache_bytes(config, "bfloat16", length)
    heads = config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
    sequence = 2 * config["num_hidden_layers"] * heads * 2 * (length + 127)
    assert sequence - 2 * config["num_hidden_layers"] * heads * 2 * 127 <= taken <= max(sequence, MOST_CACHE)


QWEN = {"vocab_size": 152_064}
GEMMA = {"text_config": {"vocab_size": 262_144}}


@pytest.mark.parametrize(
    ("config", "most", "tokens"),
    [
        (QWEN, MOST_TOKENS, 2353),
        ({"vocab_size": 128_256}, MOST_TOKENS, 2790),
        ({"vocab_size": 32_000}, MOST_TOKENS, MOST_TOKENS),
        ({"vocab_size": 49_152}, MOST_TOKENS_CPU, MOST_TOKENS_CPU),
        (GEMMA, MOST_TOKENS, FEWEST_TOKENS),
        ({}, MOST_TOKENS, FEWEST_TOKENS),
        ({"vocab_size": "?"}, MOST_TOKENS, FEWEST_TOKENS),
    ],
)
def test_the_log_likelihoods_of_a_step_are_bounded_by_the_vocabulary(config, most, tokens):
    assert batched_tokens(config, most) == tokens


@given(vocabulary=st.integers(1, 262_144))
def test_they_take_two_gigabytes_or_what_the_fewest_tokens_take(vocabulary):
    tokens = batched_tokens({"vocab_size": vocabulary}, MOST_TOKENS)
    assert tokens == FEWEST_TOKENS or tokens * vocabulary * (2 + 4) <= 2 << 30


@pytest.mark.parametrize(("gigabytes", "share"), [(80, 0.96), (24, 0.866), (16, 0.799), (4, SMALLEST_SHARE)], ids=str)
def test_room_for_them_is_left_on_a_gpu(gigabytes, share):
    # 2,353 tokens take 2.0 GiB, and the rest 1 GiB
    assert largest_share(QWEN, 2353, gigabytes * 10**9) == share


@pytest.fixture
def platform(monkeypatch):
    """``platform(is_cpu)`` replaces what vLLM and transformers say: a GPU of 24 GB, and a small model."""

    def make(is_cpu, config):
        read = SimpleNamespace(get_config_dict=lambda model, revision: (config, {}))
        found = SimpleNamespace(is_cpu=lambda: is_cpu, get_device_total_memory=lambda: 24 * 10**9)
        monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(PretrainedConfig=read))
        monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=found))

    return make


def options(**changes):
    defaults = {"dtype": "float32", "max_model_len": 1024, "tensor_parallel_size": 1, "engines": None}
    defaults |= {"gpu_memory_utilization": 0.8}
    return EngineOptions(
        **defaults | {"max_num_batched_tokens": None, "reproducible": False, "enforce_eager": False} | changes
    )


def test_a_cpu_gets_bytes(platform):
    platform(True, SMOLLM2 | {"vocab_size": 49_152})
    size = kv_cache_bytes(SMOLLM2, "float32", 1024)
    assert memory_arguments(WEIGHTS, options()) == {"kv_cache_memory_bytes": size, "max_num_batched_tokens": 4096}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (0.8, 2353)),
        ({"gpu_memory_utilization": 0.95}, (0.866, 2353)),
        ({"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 512}, (0.936, 512)),
        ({"max_num_batched_tokens": 16384}, (SMALLEST_SHARE, 16384)),
    ],
    ids=str,
)
def test_a_gpu_gets_a_share(platform, changes, expected):
    platform(False, QWEN)
    found = memory_arguments(WEIGHTS, options(**changes))
    assert (found["gpu_memory_utilization"], found["max_num_batched_tokens"]) == expected


def test_stages_with_the_same_options_can_share_an_engine():
    common = {"model": "m", "max_model_len": 512, "dtype": "float32"}
    sampling = SampleConfig(**common, seed=3)
    scoring = HarnessConfig(**common, task="t", output_dir="o", num_fewshot=2)
    assert EngineOptions.of(sampling) == EngineOptions.of(scoring)
    assert EngineOptions.of(scoring.model_copy(update={"max_model_len": 1024})) != EngineOptions.of(scoring)


@pytest.mark.parametrize(
    ("cuda", "capability", "possible"), [(True, 90, True), (True, 100, True), (True, 89, False), (False, 0, False)]
)
def test_the_batch_invariant_mode_needs_hardware_that_has_it(cuda, capability, possible, monkeypatch):
    found = SimpleNamespace(
        is_cuda=lambda: cuda, has_device_capability=lambda least: capability >= least, get_device_name=lambda: "L4"
    )
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=found))
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "0")
    if possible:
        use_batch_invariance()
        assert os.environ["VLLM_BATCH_INVARIANT"] == "1"
    else:
        with pytest.raises(BadInput, match=r"hardware \(L4\); expected .* 9\.0 .* remove reproducible from the suite"):
            use_batch_invariance()


def weighing(gigabytes):
    stamps = {"model.safetensors": Stamp(int(gigabytes * 10**9), 0, 0), "tokenizer.json": Stamp(10**11, 0, 0)}
    return WEIGHTS.model_copy(update={"folders": (ScoredFolder(path="/m", stamps=stamps, digest="d"),)})


@pytest.mark.parametrize(
    ("weights", "gpus", "cuda", "count"),
    [
        (weighing(12), 4, True, 4),
        (weighing(12.1), 4, True, 1),
        (weighing(12), 1, True, 1),
        (weighing(12), 4, False, 1),
        (WEIGHTS, 4, True, 1),
    ],
    ids=["fits", "too large", "one GPU", "no GPU", "on the hub"],
)
def test_a_model_that_fits_on_one_gpu_runs_on_each(weights, gpus, cuda, count, monkeypatch):
    found = SimpleNamespace(is_cuda=lambda: cuda, get_device_total_memory=lambda: 24 * 10**9)
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=found))
    assert engines_that_fit(weights, options(tensor_parallel_size=gpus)) == count


@pytest.fixture
def alone(monkeypatch):
    """``load_engine`` leaves the environment of the tests as it is."""
    monkeypatch.setattr(vllm, "VLLM_ENVIRONMENT", {})
    monkeypatch.setattr(vllm, "use_compile_cache", lambda: None)


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("changes", "visible", "devices", "each"),
    [
        ({"tensor_parallel_size": 2}, "", ["0", "1"], 1),
        ({"tensor_parallel_size": 2, "engines": 2}, "", ["0,1", "2,3"], 2),
        ({"engines": 2}, "GPU-a,GPU-b", ["GPU-a", "GPU-b"], 1),
        ({"tensor_parallel_size": 2, "engines": 1}, "", None, 2),
    ],
    ids=str,
)
def test_each_engine_has_gpus_of_its_own(changes, visible, devices, each, monkeypatch):
    monkeypatch.setattr(vllm, "engines_that_fit", lambda *_: 2)
    monkeypatch.setattr(vllm, "Engines", lambda load, devices: (load, devices))
    monkeypatch.setattr(vllm, "load_one", lambda _, options: (options.tensor_parallel_size, None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    load, found = load_engine(WEIGHTS, options(**changes))
    assert (load()[0] if callable(load) else load, found) == (each, devices)


@pytest.mark.usefixtures("alone")
def test_more_engines_than_gpus_are_rejected(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(BadInput, match="2 engines with 1 GPUs each need 2 GPUs, and CUDA_VISIBLE_DEVICES has 1"):
        load_engine(WEIGHTS, options(engines=2))

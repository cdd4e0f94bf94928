"""The memory settings that vLLM receives."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.weights import Weights
from halos_eval.stages.vllm import FULL_SEQUENCES, MOST_CACHE, kv_cache_bytes, memory_arguments

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


@pytest.mark.parametrize(("is_cpu", "expected"), [(True, "kv_cache_memory_bytes"), (False, "gpu_memory_utilization")])
def test_a_gpu_gets_a_share_and_a_cpu_gets_bytes(is_cpu, expected, monkeypatch):
    config = SimpleNamespace(get_config_dict=lambda model, revision: (SMOLLM2, {}))
    platforms = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: is_cpu))
    for name, module in (("transformers", SimpleNamespace(PretrainedConfig=config)), ("vllm.platforms", platforms)):
        monkeypatch.setitem(sys.modules, name, module)
    values = {"kv_cache_memory_bytes": kv_cache_bytes(SMOLLM2, "float32", 1024), "gpu_memory_utilization": 0.8}
    weights = Weights(name="m", model="/m", digest="d")
    assert memory_arguments(weights, "float32", 1024, 0.8) == {expected: values[expected]}

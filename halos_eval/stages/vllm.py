"""How vLLM's engine is started, for every stage that needs one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halos_eval.checkpoints.weights import Weights

# The engine in this process: requests are scheduled the same way in every run (vLLM's advice for reproducibility),
# and a start takes 19 s instead of 44 s on two cores.
VLLM_ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}

FULL_SEQUENCES = 8
"""Sequences of full length that a CPU's cache holds. Most are shorter, and a CPU gains little from larger batches."""
MOST_CACHE = 4 << 30
"""Bytes of a CPU's cache for a model whose sequences would take more, unless a single one does."""


def memory_arguments(weights: Weights, dtype: str, max_model_len: int | None, share: float) -> dict[str, Any]:
    """Engine arguments for the memory: on a GPU vLLM's ``share`` of it, on a CPU the bytes of the KV cache.

    A share of a machine's memory would depend on how large the machine is: vLLM's CPU backend counts its own 1.7 GB in
    it, so that what is enough on one machine leaves nothing for the cache on a smaller one.
    """
    from transformers import PretrainedConfig
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {"gpu_memory_utilization": share}
    config, _ = PretrainedConfig.get_config_dict(weights.model, revision=weights.revision)
    return {"kv_cache_memory_bytes": kv_cache_bytes(config, dtype, max_model_len)}


def kv_cache_bytes(config: Mapping[str, Any], dtype: str, max_model_len: int | None) -> int:
    """Bytes of the KV cache for a model with this ``config.json``, on a CPU.

    Keys and values of one token take 2 x layers x KV heads x head size numbers.
    """
    config = config.get("text_config") or config
    length = max_model_len or config.get("max_position_embeddings")
    heads = config.get("num_attention_heads")
    layers = config.get("num_hidden_layers")
    if not (length and heads and layers):
        return MOST_CACHE  # another kind of model: vLLM says if that is too little
    head_size = config.get("head_dim") or config["hidden_size"] // heads
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = 4 if "float32" in (stored if dtype == "auto" else dtype) else 2
    sequence = 2 * layers * (config.get("num_key_value_heads") or heads) * head_size * width * length
    return int(max(sequence, min(FULL_SEQUENCES * sequence, MOST_CACHE)))

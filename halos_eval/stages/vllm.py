"""Load vLLM's engine, with the settings of the stages that need one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel

from halos_eval.checkpoints.weights import Weights
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput
from halos_eval.stages.adapter import check_applied_by_vllm
from halos_eval.stages.compile_cache import use_compile_cache
from halos_eval.stages.engine import Engine, VllmEngine
from halos_eval.stages.engines import DEVICES, Engines

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest

log = logging.getLogger(__name__)

VLLM_ENVIRONMENT = {
    # Runs the engine in this process. Requests are then scheduled the same way in every run (vLLM's advice for
    # reproducibility), and a start takes 19 s instead of 44 s on two cores.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # vLLM asks whether NVIDIA's server of FlashInfer's compiled kernels answers, and if so takes other kernels for
    # attention (vllm/utils/flashinfer.py). With an address where nothing listens, the pod's network has no influence.
    "FLASHINFER_CUBINS_REPOSITORY": "http://127.0.0.1:9/",
    # transformers can load kernels from the hub.
    "USE_HUB_KERNELS": "NO",
}

FULL_SEQUENCES = 4
"""Full-length sequences that a CPU's cache holds. Most are shorter, and a CPU gains little from larger batches."""
BLOCK = 128
"""Tokens of a block: vLLM's CPU backend gives a sequence whole blocks."""
MOST_CACHE = 4 << 30
"""Upper limit in bytes of a CPU's cache. A single sequence that needs more gets it."""

LOGIT_BYTES = 6
"""Bytes of a token and an entry of the vocabulary: the logit in bfloat16, and its log-softmax in float32."""
MOST_LOGITS = 2 << 30
"""Bytes that these may take: 2,353 tokens of Qwen2.5, 2,790 of Llama 3. An H100 is busy with 1,000 tokens of 8B."""
FEWEST_TOKENS, MOST_TOKENS, MOST_TOKENS_CPU = 2048, 8192, 4096
"""Bounds of the tokens of a step. vLLM's own default for LLM is 8,192 or 16,384 on GPUs, and 4,096 on CPUs."""
LARGE_VOCABULARY = 262_144
"""Assumed for a configuration that does not say it: that of Gemma 3."""
OTHER_MEMORY = 1 << 30
"""Bytes of a GPU that vLLM's profile does not see: the CUDA context and fragments."""
SMALLEST_SHARE = 0.5
"""The share of a GPU's memory is not lowered below this one."""


class EngineOptions(BaseModel):
    """What a loaded engine depends on besides the weights. Stages with equal options can use the same engine."""

    model_config = FROZEN

    dtype: str
    """Precision of weights and activations."""
    max_model_len: int | None
    """Maximum tokens of a prompt with its answer; None for the model's own length."""
    tensor_parallel_size: int
    """GPUs to split the model over."""
    engines: int | None
    """Number of engines; None for that of ``engines_that_fit``."""
    gpu_memory_utilization: float
    """Share of each GPU's memory that vLLM may take."""
    max_num_batched_tokens: int | None
    """Limit of the tokens that one step computes; None for that of ``batched_tokens``."""
    reproducible: bool
    """Whether vLLM's batch-invariant mode is used."""
    enforce_eager: bool
    """Whether compilation and CUDA graphs are skipped."""

    @classmethod
    def of(cls, config: BaseModel) -> Self:
        """Return the options in the ``config`` of a stage."""
        return cls(**{name: getattr(config, name) for name in cls.model_fields})


Load = Callable[[Weights, EngineOptions], Engine]
"""Function like ``load_engine``; it may return an engine that is loaded already."""


def load_engine(weights: Weights, options: EngineOptions) -> Engine:
    """Load ``weights``, in several engines if each fits. Raise BadInput, EvaluationFailed."""
    # Before vLLM is imported, here and in the processes of several engines.
    os.environ.update(VLLM_ENVIRONMENT)
    use_compile_cache()
    if options.reproducible:
        use_batch_invariance()
    count = engines_that_fit(weights, options) if options.engines is None else options.engines
    if count == 1:
        return load_one(weights, options)
    each = 1 if options.engines is None else options.tensor_parallel_size
    log.info("%d engines with %d GPUs each", count, each)
    own = options.model_copy(update={"tensor_parallel_size": each})
    return Engines(partial(load_one, weights, own), _devices(count, each))


def engines_that_fit(weights: Weights, options: EngineOptions) -> int:
    """Return the number of engines on the GPUs that the model would be split over: one on each, or one on all.

    One engine for each GPU exchanges nothing between them. The weights may take half of the memory, so that as much is
    left for the KV cache.
    """
    from vllm.platforms import current_platform

    if options.tensor_parallel_size == 1 or not current_platform.is_cuda():
        return 1
    size = weights.size
    fits = size is not None and size <= current_platform.get_device_total_memory() / 2
    return options.tensor_parallel_size if fits else 1


def _devices(count: int, each: int) -> list[str]:
    """Return the GPUs of each engine, among those that this process may use."""
    gpus = [one for one in os.environ.get(DEVICES, "").split(",") if one] or [*map(str, range(count * each))]
    if len(gpus) < count * each:
        raise BadInput(
            f"{count} engines with {each} GPUs each need {count * each} GPUs, and {DEVICES} has {len(gpus)}. Lower "
            "engines of the profile, or raise its gpus"
        )
    return [",".join(gpus[number * each : (number + 1) * each]) for number in range(count)]


def load_one(weights: Weights, options: EngineOptions) -> Engine:
    """Load ``weights`` in this process. Raise EvaluationFailed if vLLM does not apply their adapter."""
    from vllm import LLM

    lora = _adapter(weights)
    adapter = {"enable_lora": True, "max_lora_rank": weights.adapter_rank} if lora else {}
    llm = LLM(
        model=weights.model,
        revision=weights.revision,
        tokenizer=weights.tokenizer,
        tokenizer_revision=weights.revision if weights.tokenizer == weights.model else None,
        dtype=options.dtype,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=options.max_model_len,
        enforce_eager=options.enforce_eager,
        load_format="safetensors",
        trust_remote_code=False,
        **memory_arguments(weights, options),
        **adapter,
    )
    check_applied_by_vllm(llm, lora)  # vLLM reads an adapter when it is first used
    return VllmEngine(llm, llm.get_tokenizer(), lora)


def use_batch_invariance() -> None:
    """Switch vLLM's batch-invariant mode on. Raise BadInput if it does not have it on this hardware.

    vLLM 0.32 requires compute capability 9.0 (vllm/envs.py). Elsewhere it would compute on, with other results in
    another batch. Its modules read the variable when they are imported, so it must be set before.
    """
    os.environ["VLLM_BATCH_INVARIANT"] = "1"
    from vllm.platforms import current_platform

    if not (current_platform.is_cuda() and current_platform.has_device_capability(90)):
        raise BadInput(
            f"reproducible is not possible on this hardware ({current_platform.get_device_name() or 'unknown'}); "
            "expected an NVIDIA GPU with compute capability 9.0 or higher, such as an H100. Choose another profile, or "
            "remove reproducible from the suite"
        )


def _adapter(weights: Weights) -> LoRARequest | None:
    if weights.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, weights.adapter)


def memory_arguments(weights: Weights, options: EngineOptions) -> dict[str, Any]:
    """Return the engine arguments for memory: a share of a GPU's memory, or the KV cache's bytes on a CPU.

    On a CPU a share would depend on the size of the machine. vLLM's CPU backend counts its own 1.7 GB in the share, so
    a share that is enough on one machine leaves nothing for the cache on a smaller one.
    """
    from transformers import PretrainedConfig
    from vllm.platforms import current_platform

    config, _ = PretrainedConfig.get_config_dict(weights.model, revision=weights.revision)
    if current_platform.is_cpu():
        tokens = options.max_num_batched_tokens or batched_tokens(config, MOST_TOKENS_CPU)
        size = kv_cache_bytes(config, options.dtype, options.max_model_len)
        return {"kv_cache_memory_bytes": size, "max_num_batched_tokens": tokens}
    tokens = options.max_num_batched_tokens or batched_tokens(config, MOST_TOKENS)
    most = largest_share(config, tokens, current_platform.get_device_total_memory())
    return {"gpu_memory_utilization": min(options.gpu_memory_utilization, most), "max_num_batched_tokens": tokens}


def batched_tokens(config: Mapping[str, Any], most: int) -> int:
    """Return the tokens of one step, for a model with this ``config.json``: at most ``most``.

    A log-likelihood task reads the probabilities of all tokens of its texts. vLLM 0.32 computes the logits of a step's
    tokens over the whole vocabulary, and then their log-softmax in float32. Its memory profile has no such request, so
    the KV cache takes that memory, and long texts end with CUDA out of memory (lm_eval #2490, #2698, #2800; vLLM #5907;
    #52054 measures 7.5 GiB for 8,192 tokens and a vocabulary of 152,000). Its newer model runner computes 1,024 tokens
    at a time, but it is not used everywhere. All stages get the same bound, so that they can share an engine.
    """
    return max(FEWEST_TOKENS, min(most, MOST_LOGITS // (_vocabulary(config) * LOGIT_BYTES)))


def largest_share(config: Mapping[str, Any], tokens: int, total: int) -> float:
    """Return the share of ``total`` bytes that leaves space for the logits of ``tokens`` and for other allocations."""
    free = tokens * _vocabulary(config) * LOGIT_BYTES + OTHER_MEMORY
    return max(SMALLEST_SHARE, round(1 - free / total, 3))


def _vocabulary(config: Mapping[str, Any]) -> int:
    found: Any = (config.get("text_config") or config).get("vocab_size")
    return found if isinstance(found, int) and found > 0 else LARGE_VOCABULARY


def kv_cache_bytes(config: Mapping[str, Any], dtype: str, max_model_len: int | None) -> int:
    """Return the bytes of the KV cache on a CPU, for a model with this ``config.json``.

    Keys and values of one token take 2 x layers x KV heads x head size numbers.
    """
    config = config.get("text_config") or config
    heads: Any = config.get("num_attention_heads")
    hidden: Any = config.get("hidden_size")
    whole = isinstance(hidden, int) and isinstance(heads, int) and heads > 0
    sizes: list[Any] = [
        max_model_len or config.get("max_position_embeddings"),
        config.get("num_hidden_layers"),
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or (hidden // heads if whole else None),
    ]
    if not all(isinstance(size, int) and size for size in sizes):
        return MOST_CACHE  # another kind of model: vLLM reports if this is too little
    length, layers, kv_heads, head_size = sizes
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    width = 4 if "float32" in (stored if dtype == "auto" else dtype) else 2
    sequence = 2 * layers * kv_heads * head_size * width * (-(-length // BLOCK) * BLOCK)
    return int(max(sequence, min(FULL_SEQUENCES * sequence, MOST_CACHE)))

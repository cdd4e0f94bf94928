"""The model under test, loaded with vLLM or transformers, and how it gets its prompts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from halos_eval.checkpoints.weights import Weights
from halos_eval.stages.adapter import check_applied_by_hf, check_applied_by_vllm
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.vllm import VLLM_ENVIRONMENT, memory_arguments

if TYPE_CHECKING:
    from lm_eval.api.model import LM

HF_BATCH_SIZE = 4  # as in HALOs, whose README warns against auto with gsm8k_cot


def load_model(config: HarnessConfig, weights: Weights) -> LM:
    """Return the model as an lm_eval LM."""
    os.environ.update(VLLM_ENVIRONMENT)
    from lm_eval.api.registry import get_model

    arguments: dict[str, Any] = {
        "pretrained": weights.model,
        "tokenizer": weights.tokenizer,
        "dtype": config.dtype,
        "trust_remote_code": False,
        "batch_size": config.batch_size or ("auto" if config.backend == "vllm" else HF_BATCH_SIZE),
    }
    if weights.revision:
        arguments["revision"] = weights.revision
        if weights.tokenizer == weights.model and config.backend == "vllm":
            arguments["tokenizer_revision"] = weights.revision
    if config.backend == "vllm":
        arguments |= {
            "seed": config.seed[2],
            "max_model_len": config.max_model_len,
            "tensor_parallel_size": config.tensor_parallel_size,
            "enforce_eager": config.enforce_eager,
            "load_format": "safetensors",
            **memory_arguments(weights, config.dtype, config.max_model_len, config.gpu_memory_utilization),
        }
        if weights.adapter:
            arguments |= {"lora_local_path": weights.adapter, "max_lora_rank": weights.adapter_rank}
    else:
        from torch.cuda import is_available

        arguments |= {"use_safetensors": True, "max_length": config.max_model_len}
        # parallelize splits the layers over the GPUs, as HALOs does; without a GPU it would offload them to disk
        arguments |= {"parallelize": True} if is_available() else {"device": "cpu"}
        if weights.adapter:
            arguments["peft"] = weights.adapter
    model = get_model(config.backend)(**arguments)
    if config.backend == "vllm":
        check_applied_by_vllm(model.model, model.lora_request)
    else:
        check_applied_by_hf(model, weights.adapter)
    return model


def prompting_of(config: HarnessConfig, model: LM) -> Prompting:
    """Return how the model gets its prompts, and let lm_eval ask there. Raise BadInput without a chat template."""
    if not config.apply_chat_template:
        return Prompting(model.tokenizer)
    prompting = Prompting.chat(model.tokenizer, config.chat_template, config.stop, config.model, config)
    model.apply_chat_template = prompting.render
    model.tokenizer.chat_template = prompting.template  # lm_eval writes it to its results
    return prompting

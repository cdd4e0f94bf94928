"""The model under test, loaded with vLLM or transformers. Its answers are journaled, so that a killed run resumes."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from halos_eval.checkpoints.weights import Weights
from halos_eval.digests import digest_json
from halos_eval.errors import BadInput
from halos_eval.stages.adapter import check_applied_by_hf, check_applied_by_vllm
from halos_eval.stages.chat_template import read_template
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.vllm import VLLM_ENVIRONMENT, memory_arguments
from halos_eval.storage.journal import Journal

if TYPE_CHECKING:
    from lm_eval.api.model import LM

log = logging.getLogger(__name__)

HF_BATCH_SIZE = 4  # as in HALOs, whose README warns against auto with gsm8k_cot


def load_model(config: HarnessConfig, weights: Weights) -> LM:
    """Return the model as an lm_eval LM. Raise BadInput if it needs a chat template and has none."""
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
    template = read_template(config.chat_template)
    if template:
        model.tokenizer.chat_template = model.hf_chat_template = template
    if config.apply_chat_template and not model.tokenizer.chat_template:
        raise BadInput(
            f"{config.model} has no chat template. Set --chat-template chatml, or turn apply_chat_template off"
        )
    return model


def journaled(model: LM, journal: Journal, save_every: int) -> Counter[str]:
    """Make the model's three methods journal finished chunks, and skip these in a later run.

    Chunks are cut from the whole list of requests, so a resumed run forms the same batches and gets the same numbers.
    Return a counter of requests, ``computed`` or ``resumed``, that is updated as they are answered.
    """
    done = journal.load()
    requests_by: Counter[str] = Counter()

    def resumable(method: str) -> Callable[[list[Any]], list[Any]]:
        compute = getattr(model, method)

        def answer(requests: list[Any], **options: Any) -> list[Any]:
            answers: list[Any] = []
            for start in range(0, len(requests), save_every):
                chunk = requests[start : start + save_every]
                key = digest_json([method, start, [request.args for request in chunk]])
                requests_by["resumed" if key in done else "computed"] += len(chunk)
                if key not in done:
                    done[key] = compute(chunk, **options)
                    journal.add(key, done[key])
                    log.info("%s: %d of %d requests", method, start + len(chunk), len(requests))
                answers += [tuple(one) if isinstance(one, list) else one for one in done[key]]
            return answers

        return answer

    for method in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        setattr(model, method, resumable(method))
    return requests_by

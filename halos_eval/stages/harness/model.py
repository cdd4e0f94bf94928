"""The model under test, loaded with vLLM or transformers, and how it gets its prompts."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

from halos_eval.checkpoints.weights import Weights
from halos_eval.stages.adapter import check_applied_by_hf
from halos_eval.stages.engine import Engine
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.prompt import Prompting
from halos_eval.stages.vllm import VLLM_ENVIRONMENT

if TYPE_CHECKING:
    from lm_eval.api.model import LM

HF_BATCH_SIZE = 4  # as in HALOs, whose README warns against auto with gsm8k_cot
LONGEST_ANSWER = 256  # lm_eval's default, in tokens


def transformers_model(config: HarnessConfig, weights: Weights) -> LM:
    """Load the model with transformers, as an lm_eval LM."""
    os.environ.update(VLLM_ENVIRONMENT)
    from lm_eval.api.registry import get_model
    from torch.cuda import is_available

    arguments: dict[str, Any] = {
        "pretrained": weights.model,
        "tokenizer": weights.tokenizer,
        "dtype": config.dtype,
        "trust_remote_code": False,
        "use_safetensors": True,
        "batch_size": config.batch_size or HF_BATCH_SIZE,
        "max_length": config.max_model_len,
    }
    if weights.revision:
        arguments["revision"] = weights.revision
    if weights.adapter:
        arguments["peft"] = weights.adapter
    # parallelize splits the layers over the GPUs, as HALOs does; without a GPU it would offload them to disk
    arguments |= {"parallelize": True} if is_available() else {"device": "cpu"}
    model = get_model("hf")(**arguments)
    check_applied_by_hf(model, weights.adapter)
    return model


def vllm_model(engine: Engine) -> LM:
    """Return lm_eval's vLLM backend without an engine of its own: it only splits requests into token ids.

    Its own constructor loads an engine, which would end with the task.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.models import vllm_causallms
    from lm_eval.models.utils import configure_pad_token

    class VLLM(vllm_causallms.VLLM):  # type: ignore[misc]
        """Has the attributes that lm_eval 0.4.13 reads, with their defaults."""

        def __init__(self) -> None:
            TemplateLM.__init__(self)
            # A copy, because the task's chat template is written to it, and the engine outlives the task.
            self.tokenizer = configure_pad_token(copy.copy(engine.tokenizer))
            self._max_length, self._max_gen_toks = engine.max_model_len, LONGEST_ANSWER
            self.add_bos_token = self.custom_prefix_token_id = None
            self.enable_thinking = self.think_end_token = None

    return VLLM()


def prompting_of(config: HarnessConfig, model: LM) -> Prompting:
    """Return how the model gets its prompts, and let lm_eval ask there. Raise BadInput without a chat template."""
    if not config.apply_chat_template:
        return Prompting(model.tokenizer)
    prompting = Prompting.chat(model.tokenizer, config.chat_template, config.stop, config.model, config)
    model.apply_chat_template = prompting.render
    model.tokenizer.chat_template = prompting.template  # lm_eval writes it to its results
    return prompting

"""The check, after loading, that the engine applies a LoRA adapter: one text has other log-probabilities with it.

vLLM ignores an adapter's tensors whose module it does not find, and the base model would be scored under its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from halos_eval.checkpoints.adapters import MERGE
from halos_eval.errors import EvaluationFailed

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM
    from vllm import LLM
    from vllm.lora.request import LoRARequest

TEXT = "A checkpoint is evaluated by what it answers, and an adapter must change that."
"""No prompt begins with it, so that the engine's prefix cache does not give parts of it to a prompt."""


def check_applied_by_vllm(llm: LLM, lora: LoRARequest | None) -> None:
    """Raise EvaluationFailed unless ``lora`` has an effect. Does nothing without an adapter."""
    if lora is None or _changes_nothing(lora.lora_path):
        return
    from vllm import SamplingParams, TokensPrompt

    ids = llm.get_tokenizer().encode(TEXT, add_special_tokens=False)
    params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)

    def scores(adapter: LoRARequest | None) -> list[float]:
        prompt = TokensPrompt(prompt_token_ids=ids)
        (output,) = llm.generate([prompt], params, lora_request=adapter, use_tqdm=False)
        return [one[number].logprob for one, number in zip(output.prompt_logprobs, ids, strict=True) if one]

    _check(lora.lora_path, scores(lora) != scores(None))


def check_applied_by_hf(model: HFLM, adapter: str | None) -> None:
    """Raise EvaluationFailed unless PEFT applies ``adapter`` to ``model``. Does nothing without an adapter."""
    if adapter is None or _changes_nothing(adapter):
        return
    import torch

    ids = torch.tensor([model.tokenizer.encode(TEXT, add_special_tokens=False)], device=model.device)
    with torch.no_grad():
        adapted = model.model(ids).logits
        with model.model.disable_adapter():
            plain = model.model(ids).logits
    _check(adapter, not torch.equal(adapted, plain))


def _check(adapter: str, applied: bool) -> None:
    if not applied:
        raise EvaluationFailed(
            f"the adapter {adapter} has no effect on the loaded model: log-probabilities with and without it are "
            f"equal, though its B matrices are not zero. {MERGE}"
        )


def _changes_nothing(adapter: str) -> bool:
    """Return whether all B matrices are zero, as in an adapter that is not trained yet."""
    from safetensors import safe_open

    with safe_open(Path(adapter) / "adapter_model.safetensors", framework="pt") as file:
        return not any(file.get_tensor(name).any() for name in file.keys() if ".lora_B." in name)  # noqa: SIM118

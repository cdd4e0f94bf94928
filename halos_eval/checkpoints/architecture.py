"""The limits that a model's config.json sets, so that vLLM does not refuse it after the GPUs are taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from pydantic import BaseModel

from halos_eval.checkpoints.safetensors import Shapes
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput

# Model types whose class in transformers 5 sets tie_word_embeddings to false unless config.json says otherwise.
# Other types are not rejected without the key.
UNTIED = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "exaone4",
        "falcon_h1",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt_neox",
        "gpt_oss",
        "gptj",
        "granite",
        "granitemoe",
        "llama",
        "ministral",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "stablelm",
    }
)
HEADS = frozenset({"lm_head", "embed_out", "output_layer", "output", "head"})
"""Names of output layers, as a part of a tensor's name."""
LENGTHS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "model_max_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
"""Keys of a model's length: ModelArchConfigConvertorBase.derive_max_model_len_and_key of vLLM 0.32."""
UNSCALED = frozenset({"default", "su", "longrope", "llama3"})
"""Types of RoPE that do not extend the length. vLLM does not extend YaRN's either; transformers once did."""


class Limits(BaseModel):
    """What vLLM requires of the GPUs and the length. None where config.json does not say it."""

    model_config = FROZEN

    heads: int | None = None
    """Attention heads."""
    kv_heads: int | None = None
    """Heads of keys and values, if vLLM splits them over the GPUs."""
    length: int | None = None
    """Tokens of the longest prompt and answer."""

    def check(self, gpus: int, length: int | None) -> None:
        """Raise BadInput if vLLM cannot split the heads over so many GPUs, or if ``length`` is above the model's."""
        kv_heads = self.kv_heads or gpus
        if self.heads and self.heads % gpus:
            raise BadInput(
                f"the model cannot be split over {gpus} GPUs ({self.heads} attention heads); expected a number that "
                f"divides {self.heads}. Choose a profile with that many GPUs"
            )
        if kv_heads % gpus and gpus % kv_heads:
            raise BadInput(
                f"the model cannot be split over {gpus} GPUs ({kv_heads} heads of keys and values); expected a divisor "
                f"or a multiple of {kv_heads}. Choose a profile with that many GPUs"
            )
        if self.length and length and length > self.length:
            raise BadInput(
                f"max_model_len is above the model's own length ({length}); expected at most {self.length}. Lower it, "
                "or leave it out"
            )


def limits_of(config: Mapping[str, Any]) -> Limits:
    """Return the limits of a model with this ``config.json``."""
    text = _text(config)
    heads = _number(text, "num_attention_heads", "n_head", "n_heads")
    # Latent attention (MLA) keeps keys and values whole on each GPU.
    kv_heads = None if "kv_lora_rank" in text else _number(text, "num_key_value_heads")
    return Limits(heads=heads, kv_heads=kv_heads, length=_length(text))


def check_output_layer(folder: str, config: Mapping[str, Any], shapes: Shapes) -> None:
    """Raise BadInput if a model has neither an output layer nor tied embeddings.

    vLLM loads it without an error, and all answers are empty (github.com/vllm-project/vllm/issues/51063).
    """
    if not _untied(config) or any(HEADS.intersection(name.split(".")) for name in shapes):
        return
    raise BadInput(
        f"{folder} has no lm_head, and config.json does not tie it to the embeddings (tie_word_embeddings); all "
        "answers would be empty. Save the whole model again, or set tie_word_embeddings to true if it was trained tied"
    )


def _untied(config: Mapping[str, Any]) -> bool:
    """Return whether the output layer is certainly a tensor of its own."""
    set_to = [one["tie_word_embeddings"] for one in (config, _text(config)) if "tie_word_embeddings" in one]
    return not any(set_to) if set_to else config.get("model_type") in UNTIED


def _text(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration of the language model, which is a part of that of a model with images or audio."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _length(config: Mapping[str, Any]) -> int | None:
    """Return the length above which vLLM refuses ``max_model_len``, or more; see its ``_get_and_verify_max_len``."""
    lengths = [length for key in LENGTHS if (length := _number(config, key))]
    if not lengths:
        return None
    try:
        extended = int(min(lengths) * max([1.0, *_factors(config)]))
    except OverflowError:  # JSON has numbers of any size
        return None
    return max(extended, _number(config, "model_max_length") or 0)


def _factors(config: Mapping[str, Any]) -> Iterator[float]:
    """Yield by how much each RoPE scaling extends the length. It may be nested by type of layer."""
    for key in ("rope_parameters", "rope_scaling"):
        scaling = config.get(key)
        if isinstance(scaling, dict):
            for one in (scaling, *(nested for nested in scaling.values() if isinstance(nested, dict))):
                factor = one.get("factor")
                kind = str(one.get("rope_type", one.get("type")))
                if kind not in UNSCALED and isinstance(factor, int | float) and 1 <= factor < inf:
                    yield factor


def _number(config: Mapping[str, Any], *keys: str) -> int | None:
    """Return the first of ``keys`` that is a positive number."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None

"""Rules for LoRA adapters: vLLM must use each of their tensors, or the base model is scored under their name.

vLLM refuses some adapters only after the GPU is taken, and ignores tensors whose module it does not find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any, NamedTuple

from halos_eval.checkpoints.safetensors import ADAPTER_CONFIG, Shapes
from halos_eval.errors import BadInput

VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm.config.lora.MaxLoRARanks
MERGE = (
    "Merge it into full weights with PEFT's merge_and_unload, save them with the tokenizer, and evaluate that folder"
)
PATTERN_KEY = re.compile(r"(?:[\w|^$().-]|\\[.dw]|(?<=[.dw])[*+])+")
"""Keys of a pattern that are matched: regular expressions of an untrusted file. (a+)+ would take years."""
PATTERNS = ("rank_pattern", "alpha_pattern")
MOST_REPETITIONS = 3
TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "embed_in", "embed_out", "wte"})
"""Modules whose LoRA only some of vLLM's models use."""
REFUSED = (
    "modules_to_save",
    "trainable_token_indices",
    "use_dora",
    "lora_bias",
    "alora_invocation_tokens",
    "layer_replication",
    "use_bdlora",
    "use_qalora",
)
"""Features of PEFT that vLLM 0.32 does not apply (vllm.lora.peft_helper)."""
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Initializations that leave the base model as it is. Others, such as PiSSA, change it when PEFT loads the adapter."""


class _Module(NamedTuple):
    """Shapes of an adapter's two matrices for one module."""

    down: tuple[int, ...] | None
    """lora_A: rank x inputs."""
    up: tuple[int, ...] | None
    """lora_B: outputs x rank."""


def supported_rank(folder: str, config: Mapping[str, Any]) -> int:
    """Return the smallest rank of vLLM that is at least the adapter's largest. Raises BadInput."""
    ranks = [config.get("r"), *_pattern(config, "rank_pattern").values()]

    def within(rank: Any, limit: int) -> bool:
        return isinstance(rank, int) and 0 < rank <= limit

    fitting = [limit for limit in VLLM_LORA_RANKS if all(within(rank, limit) for rank in ranks)]
    if not fitting:
        wrong = next(rank for rank in ranks if not within(rank, VLLM_LORA_RANKS[-1]))
        raise BadInput(
            f"{folder}/{ADAPTER_CONFIG}: LoRA rank {wrong} is not supported by vLLM; expected 1 to "
            f"{VLLM_LORA_RANKS[-1]}. {MERGE}"
        )
    return fitting[0]


def check_adapter(folder: str, config: Mapping[str, Any], shapes: Shapes, base: Shapes, fused: bool) -> None:
    """Raise BadInput if vLLM would not use all of an adapter's tensors as they were trained.

    ``base`` are the tensors of its base; empty if the base is not on this machine. With ``fused`` the names or shapes
    of the base's tensors are not those of its modules, so that they cannot be compared.
    """
    problem = next(_problems(config, shapes, base, fused), None)
    if problem:
        raise BadInput(f"{folder} is an adapter that vLLM would not apply as it was trained: {problem}. {MERGE}")


def _problems(config: Mapping[str, Any], shapes: Shapes, base: Shapes, fused: bool) -> Iterator[str]:
    yield from (f"{key} is set in {ADAPTER_CONFIG}" for key in REFUSED if config.get(key))
    if config.get("bias") not in (None, "none"):
        yield f"bias is {config['bias']!r} in {ADAPTER_CONFIG}"
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        yield f"init_lora_weights is {init!r}, which changes the base model"
    yield from (f"the tensor {name} is no LoRA matrix" for name in shapes if not TENSOR.fullmatch(name))
    modules = _modules(shapes)
    if not modules:
        yield "it has no tensors"
    for name in PATTERNS:
        yield from _pattern_problems(name, _pattern(config, name))
    known = {name.rpartition(".")[0] for name in base}
    for name, module in modules.items():
        if name.rpartition(".")[2] in EMBEDDINGS:
            yield f"it changes the embeddings or the output layer ({name})"
        if ".experts" not in name:  # experts are one tensor or many, in the adapter and in the base
            yield from _rank_problems(name, module, config)
            if base and not fused:
                yield from _base_problems(name, module, base, known)


def _modules(shapes: Shapes) -> dict[str, _Module]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if matched := TENSOR.fullmatch(name):
            found.setdefault(matched["module"], {})[matched["side"]] = shape
    return {name: _Module(sides.get("A"), sides.get("B")) for name, sides in found.items()}


def _pattern_problems(name: str, pattern: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a pattern, whose keys vLLM matches while it loads the adapter."""
    for key, value in pattern.items():
        if _may_be_slow(key):
            yield (
                f"{name} has the key {key[:80]!r}; expected the end of a module's name, with at most "
                rf"{MOST_REPETITIONS} of .*, .+, \d+ and \w+"
            )
        try:
            re.compile(_ending(key))
        except (re.error, RecursionError) as error:
            yield f"{name} has a key that is no regular expression ({error})"
        # Ranks are checked by supported_rank.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -inf < value < inf:
            yield f"{name} has the value {value!r} for {key[:80]!r}; expected a number"


def _ending(key: str) -> str:
    """Return a pattern of the modules that ``key`` means, as PEFT's get_pattern_key: those whose names end with it."""
    return rf"(.*\.)?({key})"


def _rank_problems(name: str, module: _Module, config: Mapping[str, Any]) -> Iterator[str]:
    # The first match counts, as in PEFT's get_pattern_key.
    ranks = (rank for key, rank in _pattern(config, "rank_pattern").items() if re.fullmatch(_ending(key), name))
    rank = next(ranks, config.get("r"))
    down, up = module
    if not down or not up:
        yield f"{name} has only one of lora_A and lora_B"
    elif (len(down), len(up)) != (2, 2) or down[0] != rank or up[1] != rank:
        yield f"lora_A and lora_B of {name} have the shapes {down} and {up}; expected the rank {rank}"


def _base_problems(name: str, module: _Module, base: Shapes, known: set[str]) -> Iterator[str]:
    first, _, rest = name.partition(".")
    # Some models are saved without the name of their only child: gpt2's transformer.h.0 as h.0.
    alone = name not in known and not any(one.startswith(f"{first}.") for one in known)
    saved = rest if alone else name
    if saved not in known:
        yield f"its base has no module {name}"
    elif (weight := base.get(f"{saved}.weight")) and module.down and module.up:
        # A Conv1D, as in gpt2, keeps its weight transposed.
        fits = (module.up[0], module.down[-1])
        if weight not in {fits, fits[::-1]}:
            yield f"lora_A and lora_B of {name} are for a weight of {fits}; its base has {weight}"


def _may_be_slow(key: str) -> bool:
    return not PATTERN_KEY.fullmatch(key) or key.count("*") + key.count("+") > MOST_REPETITIONS


def _pattern(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    pattern = config.get(name)
    return pattern if isinstance(pattern, dict) else {}

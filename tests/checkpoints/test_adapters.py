"""Adapters: a tensor that vLLM would not use is found in the headers, before a GPU is taken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.checkpoints.adapters import VLLM_LORA_RANKS, check_adapter, supported_rank
from halos_eval.checkpoints.weights import inspect
from halos_eval.errors import BadInput
from tests.doubles import MODULE, lora, make_adapter, make_checkpoint, write_tensors

LAYERS = {
    f"model.layers.{layer}.{name}.weight": shape
    for layer in range(2)
    for name, shape in {"self_attn.q_proj": (6, 4), "self_attn.v_proj": (3, 4), "mlp.down_proj": (4, 9)}.items()
}
BASE = {"model.embed_tokens.weight": (10, 4), "model.norm.weight": (4,), "lm_head.weight": (10, 4)} | LAYERS
KEY = f"base_model.model.{MODULE}"


def check(config=None, shapes=None, base=BASE, fused=False):
    check_adapter("/lora", {"r": 8} | (config or {}), lora() if shapes is None else shapes, base, fused)


def refusal(config=None, shapes=None, **options):
    with pytest.raises(BadInput) as caught:
        check(config, shapes, **options)
    message = str(caught.value)
    assert message.startswith("/lora is an adapter that vLLM would not apply as it was trained: ")
    assert ". Merge it into full weights with PEFT's merge_and_unload, save them" in message
    return message


@given(st.dictionaries(st.sampled_from(sorted(LAYERS)), st.integers(1, 64), min_size=1))
def test_an_adapter_of_any_layers_and_ranks_is_taken(ranks):
    shapes, pattern = {}, {}
    for weight, rank in ranks.items():
        module = weight.removesuffix(".weight")
        outputs, inputs = LAYERS[weight]
        shapes |= lora(module, rank, inputs, outputs)
        pattern[module.removeprefix("model.")] = rank
    check({"rank_pattern": pattern}, shapes)


@given(st.sampled_from(sorted(lora())), st.text(min_size=1))
def test_a_tensor_with_another_name_is_never_overlooked(name, more):
    for other in (name + more, more + name, name.replace("lora_", more)):
        refusal(shapes={one: shape for one, shape in lora().items() if one != name} | {other: lora()[name]})


@pytest.mark.parametrize(
    "config",
    [
        {"modules_to_save": None, "bias": "none", "use_dora": False, "init_lora_weights": True, "rank_pattern": {}},
        {"modules_to_save": [], "trainable_token_indices": None, "init_lora_weights": False},
        {"use_rslora": True, "alpha_pattern": {"q_proj": 4, r".*\.0\.v_proj": 0.5}, "init_lora_weights": "gaussian"},
        {"layers_to_transform": [0], "layers_pattern": "layers", "exclude_modules": ["v_proj"]},
        {"init_lora_weights": "eva", "target_modules": "all-linear"},
    ],
    ids=str,
)
def test_features_that_vllm_has(config):
    check(config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set in adapter_config.json"),
        ({"trainable_token_indices": {"embed_tokens": [1]}}, "trainable_token_indices is set"),
        ({"use_dora": True}, "use_dora is set"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"layer_replication": [[0, 1], [0, 2]]}, "layer_replication is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"use_qalora": True}, "use_qalora is set"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base model"),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
        ({"init_lora_weights": "OLoRA"}, "init_lora_weights is 'OLoRA'"),
    ],
)
def test_features_that_vllm_does_not_have(config, words):
    assert words in refusal(config)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ({"(": 4}, "alpha_pattern has a key that is no regular expression (missing ), unterminated subpattern"),
        ({"q_proj": 4, "(.+)+x": 4}, "alpha_pattern has the key '(.+)+x'; expected the end of a module's name"),
        ({"q_proj": "4"}, "alpha_pattern has the value '4' for 'q_proj'; expected a number"),
        ({"q_proj": float("nan")}, "alpha_pattern has the value nan for 'q_proj'"),
    ],
    ids=str,
)
def test_an_alpha_pattern_that_vllm_could_not_match(pattern, words):
    assert words in refusal({"alpha_pattern": pattern})
    experts = {"model.layers.0.mlp.experts.lora_A.weight": (8, 4), "model.layers.0.mlp.experts.lora_B.weight": (4, 8)}
    assert words in refusal({"alpha_pattern": pattern}, experts)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.lm_head.modules_to_save.weight",
        f"{KEY}.lora_magnitude_vector",
        f"{KEY}.lora_B.bias",
        f"{KEY}.lora_A.default.weight",
    ],
)
def test_tensors_that_are_no_lora_matrices(name):
    assert f"the tensor {name} is no LoRA matrix" in refusal(shapes=lora() | {name: (8, 4)})


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "it has no tensors"),
        ({f"{KEY}.lora_A.weight": (8, 4)}, f"{MODULE} has only one of lora_A and lora_B"),
        (lora(rank=4), f"of {MODULE} have the shapes (4, 4) and (6, 4); expected the rank 8"),
        (lora("layers.0.self_attn.q_proj"), "its base has no module layers.0.self_attn.q_proj"),
        (lora("model.model.layers.0.self_attn.q_proj"), "its base has no module model.model.layers.0.self_attn.q_proj"),
        (lora("model.layers.2.self_attn.q_proj"), "its base has no module model.layers.2.self_attn.q_proj"),
        (lora("model.layers.0.self_attn.qkv_proj"), "its base has no module model.layers.0.self_attn.qkv_proj"),
        (lora(inputs=5), f"of {MODULE} are for a weight of (6, 5); its base has (6, 4)"),
        (lora("lm_head", outputs=10), "it changes the embeddings or the output layer (lm_head)"),
        (lora("model.embed_tokens", outputs=10), "it changes the embeddings or the output layer (model.embed_tokens)"),
    ],
)
def test_matrices_that_the_base_has_no_place_for(shapes, words):
    assert words in refusal(shapes=shapes)


def test_one_module_of_many_that_is_not_in_the_base():
    good = lora() | lora("model.layers.1.mlp.down_proj", inputs=9, outputs=4)
    check(shapes=good)
    assert "no module model.layers.1.mlp.up_proj" in refusal(shapes=good | lora("model.layers.1.mlp.up_proj"))


def test_a_model_that_is_saved_without_the_name_of_its_only_child():
    base = {"wte.weight": (10, 4), "h.0.attn.c_attn.weight": (4, 12)}
    check(shapes=lora("transformer.h.0.attn.c_attn", outputs=12), base=base)
    assert "no module" in refusal(shapes=lora("transformer.h.1.attn.c_attn", outputs=12), base=base)


def test_other_names_and_packed_weights_cannot_be_compared():
    check(shapes=lora("model.language_model.layers.0.self_attn.q_proj"), fused=True)
    check(base={f"{MODULE}.qweight": (2, 2), f"{MODULE}.scales": (1, 4)})
    check(base={})  # the base is not on this machine


def test_experts_are_one_tensor_or_many():
    experts = {"model.layers.0.mlp.experts.lora_A.weight": (64, 4), "model.layers.0.mlp.experts.lora_B.weight": (4, 64)}
    check(shapes={f"base_model.model.{name}": shape for name, shape in experts.items()})


@given(st.integers(1, 512), st.dictionaries(st.sampled_from(["q_proj", "v_proj"]), st.integers(1, 512)))
def test_the_largest_rank_counts_rounded_up_to_one_of_vllms(rank, pattern):
    found = supported_rank("/lora", {"r": rank, "rank_pattern": pattern})
    needed = max([rank, *pattern.values()])
    assert found >= needed
    assert not [one for one in VLLM_LORA_RANKS if needed <= one < found]


@pytest.mark.parametrize("pattern", [{"q_proj": 513}, {"q_proj": 0}, {"q_proj": "8"}])
def test_ranks_of_modules_that_vllm_does_not_have(pattern):
    with pytest.raises(BadInput, match=r"LoRA rank \S+ is not supported by vLLM; expected 1 to 512"):
        supported_rank("/lora", {"r": 8, "rank_pattern": pattern})


def test_an_adapter_in_a_folder_is_checked_against_its_base(tmp_path):
    base = make_checkpoint(tmp_path / "base")
    pattern = {"q_proj": 32}
    adapter = make_adapter(tmp_path / "lora", base, lora(rank=32), rank_pattern=pattern)
    assert inspect(str(adapter)).adapter_rank == 32
    write_tensors(adapter / "adapter_model.safetensors", lora("layers.0.self_attn.q_proj"))
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 8})
    )
    with pytest.raises(BadInput, match=r"its base has no module layers\.0\.self_attn\.q_proj\. Merge it into full"):
        inspect(str(adapter))

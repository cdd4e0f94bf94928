"""What a model's config.json excludes: heads that the GPUs do not divide, lengths, an output layer that is missing."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halos_eval.checkpoints.architecture import Limits, check_output_layer, limits_of
from halos_eval.checkpoints.weights import inspect
from halos_eval.errors import BadInput
from tests.doubles import make_checkpoint

TIED = {"model.embed_tokens.weight": (10, 4), "model.layers.0.self_attn.q_proj.weight": (4, 4)}


def refused(limits, gpus=1, length=None):
    try:
        limits.check(gpus, length)
    except BadInput:
        return True
    return False


@pytest.mark.parametrize(
    ("config", "gpus"),
    [
        ({"num_attention_heads": 9}, [2, 4, 8]),
        ({"num_attention_heads": 9, "num_key_value_heads": 3}, [2, 4, 8]),
        ({"num_attention_heads": 12, "num_key_value_heads": 3}, [2, 4, 8]),
        ({"num_attention_heads": 12, "num_key_value_heads": 1}, [8]),
        ({"num_attention_heads": 32, "num_key_value_heads": 8}, []),
        ({"num_attention_heads": 32, "num_key_value_heads": 2}, []),
        ({"num_attention_heads": 8, "num_key_value_heads": 3, "kv_lora_rank": 512}, []),
        ({"n_head": 25}, [2, 4, 8]),
        ({"text_config": {"num_attention_heads": 9}}, [2, 4, 8]),
        ({"num_attention_heads": None}, []),
        ({"num_attention_heads": "9"}, []),
        ({}, []),
    ],
    ids=str,
)
def test_numbers_of_gpus_that_cannot_share_the_heads(config, gpus):
    assert [number for number in (1, 2, 4, 8) if refused(limits_of(config), number)] == gpus


def test_the_refusal_of_heads_names_the_remedy():
    with pytest.raises(BadInput, match=r"over 2 GPUs \(9 attention heads\).*divides 9\. Choose a profile"):
        Limits(heads=9).check(2, None)
    with pytest.raises(BadInput, match=r"over 2 GPUs \(3 heads of keys and values\).*multiple of 3\. Choose a profile"):
        Limits(heads=12, kv_heads=3).check(2, None)


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "seq_length": 2048}, 2048),
        ({"max_position_embeddings": 4096, "sliding_window": 1024}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "dynamic", "factor": 4}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, 4096),
        ({"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0}}, 131072),
        (
            {
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                },
            },
            32768,
        ),
        ({"max_position_embeddings": 8192, "model_max_length": 131072}, 131072),
        ({"text_config": {"max_position_embeddings": 2048}}, 2048),
    ],
    ids=str,
)
def test_the_longest_length(config, longest):
    limits = limits_of(config)
    assert [refused(limits, length=length) for length in (None, 1, longest, longest + 1)] == [False, False, False, True]


@pytest.mark.parametrize("config", [{}, {"max_position_embeddings": None}, {"text_config": None}, {"seq_len": "8"}])
def test_a_model_that_names_no_length_has_none(config):
    assert not refused(limits_of(config), length=10**9)


def test_the_refusal_of_a_length_names_the_remedy():
    with pytest.raises(
        BadInput, match=r"max_model_len is above the model's own length \(4096\); expected at most 2048"
    ):
        Limits(length=2048).check(1, 4096)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**400, 1e308]) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["rope_type", "type", "factor", "num_attention_heads"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from(
    ["num_attention_heads", "max_position_embeddings", "rope_scaling", "rope_parameters", "text_config"]
)


@given(st.dictionaries(KEYS, JSON))
@example({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 10**400}})
@example({"max_position_embeddings": 10**300, "rope_scaling": {"type": "linear", "factor": 1e308}})
@example({"max_position_embeddings": 10**400})
def test_any_configuration_can_be_read(config):
    assert not refused(limits_of(config))


@pytest.mark.parametrize(
    ("config", "empty"),
    [
        ({"model_type": "llama", "tie_word_embeddings": False}, True),
        ({"model_type": "some_new_model", "tie_word_embeddings": False}, True),
        ({"model_type": "llama"}, True),
        ({"model_type": "qwen2"}, True),
        ({"model_type": "llama", "tie_word_embeddings": True}, False),
        ({"model_type": "gemma2"}, False),
        ({"model_type": "gpt2"}, False),
        ({"model_type": "some_new_model"}, False),
        ({}, False),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, False),
        ({"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": False}}, False),
        ({"text_config": {"tie_word_embeddings": False}}, True),
    ],
    ids=str,
)
def test_a_model_without_an_output_layer(config, empty):
    if empty:
        with pytest.raises(BadInput, match=r"/kto has no lm_head.*all answers would be empty\. Save the whole model"):
            check_output_layer("/kto", config, TIED)
    else:
        check_output_layer("/kto", config, TIED)


@pytest.mark.parametrize(
    "name",
    ["lm_head.weight", "lm_head.qweight", "language_model.lm_head.weight", "embed_out.weight", "output.weight"],
)
def test_output_layers_of_any_name(name):
    check_output_layer("/kto", {"model_type": "llama", "tie_word_embeddings": False}, TIED | {name: (10, 4)})


def test_a_folder_without_an_output_layer_is_refused(tmp_path):
    config = {"model_type": "llama", "tie_word_embeddings": False, "num_attention_heads": 9}
    folder = make_checkpoint(tmp_path / "kto", config_json=json.dumps(config))
    with pytest.raises(BadInput, match="kto has no lm_head"):
        inspect(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert inspect(str(folder)).limits == Limits(heads=9)

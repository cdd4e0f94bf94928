"""The rules of halos_eval.checkpoints about vLLM and transformers, compared with the installed versions."""

from __future__ import annotations

import json
import subprocess

import pytest

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.slow]  # they change with the pin of vLLM only

COMPARE = """
import json
import os
from types import SimpleNamespace
from typing import get_args

from halos_eval.processes import NO_REPORTS
from halos_eval.stages.vllm import VLLM_ENVIRONMENT

os.environ.update(NO_REPORTS | VLLM_ENVIRONMENT)

from datasets.config import HF_UPDATE_DOWNLOAD_COUNTS
from evaluate.config import HF_UPDATE_DOWNLOAD_COUNTS as COUNTS
from huggingface_hub.constants import HF_HUB_DISABLE_TELEMETRY
from transformers import AutoConfig, LlamaConfig
from vllm.config.lora import MaxLoRARanks
from vllm.config.model import _get_and_verify_max_len
from vllm.lora.peft_helper import PEFTHelper
from vllm.transformers_utils.config import patch_rope_parameters
from vllm.usage.usage_lib import is_usage_stats_enabled
from vllm.utils.flashinfer import FLASHINFER_CUBINS_REPOSITORY, has_nvidia_artifactory
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from halos_eval.checkpoints.adapters import PLAIN_INITS, REFUSED, VLLM_LORA_RANKS
from halos_eval.checkpoints.architecture import UNTIED, limits_of
from halos_eval.errors import BadInput


def problems(**config):
    return PEFTHelper.from_dict({"r": 8, "lora_alpha": 8, "target_modules": [], **config})._validate_features()


def refused(call, *arguments):
    try:
        call(*arguments)
    except (BadInput, ValueError):
        return True
    return False


def lengths(config, tried):
    loaded = LlamaConfig(**config)
    patch_rope_parameters(loaded)
    derived = ModelArchConfigConvertorBase(loaded, loaded).derive_max_model_len_and_key()
    arch = SimpleNamespace(derived_max_model_len_and_key=derived)
    ours, vllms = [], []
    for length in tried:
        ours.append(refused(limits_of(config).check, 1, length))
        vllms.append(refused(_get_and_verify_max_len, loaded, arch, None, length, False, None))
    return ours, vllms


base = {"max_position_embeddings": 4096}
scaled = [None, *({"rope_type": kind, "rope_theta": 1e4, "factor": 2.0} for kind in ("linear", "dynamic"))]
llama3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}
yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 4096}
tried = [1, 4096, 4097, 8192, 8193, 16385]
inits = ["gaussian", "eva", "orthogonal", "mica", "lora_ga", "pissa", "pissa_niter_4", "olora", "corda", "loftq"]
print(json.dumps({
    "reports": [is_usage_stats_enabled(), not HF_HUB_DISABLE_TELEMETRY, HF_UPDATE_DOWNLOAD_COUNTS, COUNTS],
    "kernels": [FLASHINFER_CUBINS_REPOSITORY == VLLM_ENVIRONMENT["FLASHINFER_CUBINS_REPOSITORY"],
                has_nvidia_artifactory()],
    "tied": [kind for kind in sorted(UNTIED) if AutoConfig.for_model(kind).tie_word_embeddings],
    "ranks": [list(VLLM_LORA_RANKS), sorted(get_args(MaxLoRARanks))],
    "taken": [key for key in REFUSED if key != "trainable_token_indices" and not problems(**{key: [[1]]})],
    "inits": [init for init in inits if bool(problems(init_lora_weights=init)) == (init in PLAIN_INITS)],
    "lengths": [lengths(base | ({"rope_parameters": one} if one else {}), tried) for one in [*scaled, llama3]],
    "longer": lengths(base | {"model_max_length": 8192}, tried),
    "yarn": lengths(base | {"rope_parameters": yarn}, tried),
}))
"""


def test_the_rules_are_those_of_the_installed_versions(environments):
    words = [environments / "worker" / "bin" / "python", "-c", COMPARE]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["reports"] == [False] * 4
    assert found["kernels"] == [True, False]  # whatever the network of the pod is
    assert found["tied"] == []
    ours, vllms = found["ranks"]
    assert ours == vllms
    assert found["taken"] == []
    assert found["inits"] == []
    for ours, vllms in [*found["lengths"], found["longer"]]:
        assert ours == vllms
    ours, vllms = found["yarn"]
    assert all(vllm or not refused for refused, vllm in zip(ours, vllms, strict=True))

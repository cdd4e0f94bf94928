"""GPU-hours of a result: of the GPUs that it used, and none where there is no GPU."""

from __future__ import annotations

import pytest

from halos_eval.reports.facts import hours_of
from halos_eval.storage.records import Usage
from tests.doubles import NOW, make_provenance, make_record

HOUR = Usage(load_seconds=1200, work_seconds=2400)


def record(stage="harness", gpus="none", config=None, **inputs):
    provenance = make_provenance(NOW).model_copy(
        update={"hardware": {"gpus": gpus}, "config": config or {}, "inputs": inputs}
    )
    return make_record(stage, provenance=provenance, usage=HOUR)


@pytest.mark.parametrize(
    ("config", "gpus"),
    [
        ({}, 1),
        ({"tensor_parallel_size": 4, "engines": None}, 4),
        ({"tensor_parallel_size": 1, "engines": 4}, 4),
        ({"tensor_parallel_size": 2, "engines": 2}, 4),
    ],
)
def test_all_gpus_of_all_engines_count(config, gpus):
    assert hours_of(record(gpus="NVIDIA H100, 81559 MiB, 580.1", config=config)) == gpus
    assert hours_of(record(config=config)) == 0


@pytest.mark.parametrize(
    ("inputs", "hours"), [({}, 0), ({"judge_gpus": "none"}, 0), ({"judge_gpus": "NVIDIA H100"}, 2)]
)
def test_a_judge_has_those_of_its_server(inputs, hours):
    assert hours_of(record("judge", **inputs), server_gpus=2) == hours

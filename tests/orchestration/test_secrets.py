"""The secrets of each stage."""

from __future__ import annotations

import pytest

from halos_eval.orchestration.secrets import SCOPED, allowed
from tests.orchestration.test_pod_spec import STAGES, make_code_job, make_job

STORE = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]


@pytest.mark.parametrize(
    ("variable", "stages"),
    [
        *((name, {"judge"}) for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "JUDGE_TOKEN")),
        ("HF_TOKEN", {"fetch", "sample", "harness"}),
        *((variable, set(STAGES)) for variable in STORE),
    ],
)
def test_a_secret_goes_where_it_is_used(variable, stages):
    assert {stage for stage in STAGES if allowed(variable, make_job(stage))} == stages


@pytest.mark.parametrize("variable", [*SCOPED, "OPENAI_API_KEY", *STORE, "ANYTHING_ELSE"])
def test_model_written_code_gets_none(variable):
    assert not allowed(variable, make_code_job())
    assert not allowed(variable, make_job("judge", outbox="runs/x"))


@pytest.mark.parametrize("stage", ["sample", "harness"])
def test_a_stage_with_a_manifest_needs_no_token_of_the_hub(stage):
    reading = make_job(stage, manifest="/cache/m.json")
    assert not allowed("HF_TOKEN", reading)
    assert allowed("HF_TOKEN", make_job(stage))
    assert allowed("AWS_SECRET_ACCESS_KEY", reading)


def test_fetch_needs_the_token_of_the_hub():
    assert allowed("HF_TOKEN", make_job("fetch", argv=("fetch", "--manifest=s3://b/m.json", "--", "halos")))
    assert not allowed("OPENAI_API_KEY", make_job("fetch"))

"""A checkpoint in a bucket of a real S3 server: planned, fetched and sampled with vLLM."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.real.conftest import failure

pytestmark = pytest.mark.real

PART = '--tasks=["alpaca_eval"]'


@pytest.fixture
def lab(s3, tiny, tmp_path):
    """The variables of a lab whose checkpoints are in the bucket, and the checkpoint's URL and folder there."""
    folder = s3.folder / "lab" / "checkpoints" / "tiny" / "FINAL"
    shutil.copytree(tiny, folder)
    checkpoints = f"{s3.bucket}/lab/checkpoints"
    own = {"HALOS_EVAL_CHECKPOINTS": checkpoints, "HALOS_EVAL_STORE": f"file://{tmp_path}/store"}
    yield s3.environment | own, f"{checkpoints}/tiny/FINAL", folder
    shutil.rmtree(s3.folder / "lab")


def jobs(done):
    assert done.returncode == 0, done.stderr
    return {job["stage"]: job for job in json.loads(done.stdout)["jobs"]}


def test_a_checkpoint_in_a_bucket_is_fetched_and_sampled_like_one_on_a_disk(fork, lab, tiny, tmp_path):
    environment, url, folder = lab
    plan = ("plan", "demo", "tiny", PART, "--json")
    early = fork("worker", *plan, env=environment)
    assert early.returncode == 3
    assert failure(early).startswith(
        f"DataUnavailable: the content of {url} is not known: `halos-eval fetch` copies it"
    )

    store = environment["HALOS_EVAL_STORE"]
    place = (f"--manifest={store}/manifests/demo.json", f"--store={store}", "--name=tiny")
    fetched = fork("worker", "fetch", *place, PART, "--", "demo", json.dumps([url]), env=environment)
    assert fetched.returncode == 0, fetched.stderr
    planned = jobs(fork("worker", *plan, env=environment))
    on_disk = jobs(fork("worker", "plan", "demo", str(tiny), PART, "--json", env=environment))
    assert [job["fingerprint"] for job in planned.values()] == [job["fingerprint"] for job in on_disk.values()]

    without_keys = {key: value for key, value in environment.items() if not key.startswith("AWS")}
    sampled = fork("worker", *planned["sample"]["argv"], env=without_keys)
    assert sampled.returncode == 0, sampled.stderr
    record = json.loads((tmp_path / planned["sample"]["record"].removeprefix(f"file://{tmp_path}/")).read_text())
    assert record["checkpoint"]["location"] == url
    assert record["coverage"] == {"attempted": 12, "scored": 12}

    shutil.rmtree(folder)
    gone = fork("worker", "fetch", *place, PART, "--", "demo", json.dumps([url]), env=environment)
    assert gone.returncode == 2
    assert failure(gone) == f"BadInput: {url} does not exist or is empty. Check its path"

"""A checkpoint in a bucket of a real S3 server: planned, fetched and sampled with vLLM."""

from __future__ import annotations

import json
import shutil

import pytest

from halos_eval.digests import digest_file
from tests.airflow_server import wait_for
from tests.doubles import make_checkpoint, write_tensors
from tests.real.conftest import failure

pytestmark = [pytest.mark.real, pytest.mark.vllm]

PART = '--tasks=["alpaca_eval"]'


def lab_of(s3, tmp_path):
    """The variables of a lab whose checkpoints are in the bucket, and where `fetch` writes."""
    store = f"file://{tmp_path}/store"
    own = {"HALOS_EVAL_CHECKPOINTS": f"{s3.bucket}/lab/checkpoints", "HALOS_EVAL_STORE": store}
    place = (f"--manifest={store}/manifests/demo.json", f"--store={store}", "--name=tiny", PART, "--", "demo")
    return s3.environment | own, place


@pytest.fixture
def lab(s3, tiny, tmp_path):
    """The variables, the words of `fetch`, and a checkpoint's URL and its folder behind the bucket."""
    folder = s3.folder / "lab" / "checkpoints" / "tiny" / "FINAL"
    shutil.copytree(tiny, folder)
    yield *lab_of(s3, tmp_path), f"{s3.bucket}/lab/checkpoints/tiny/FINAL", folder
    shutil.rmtree(s3.folder / "lab")


def jobs(done):
    assert done.returncode == 0, done.stderr
    return {job["stage"]: job for job in json.loads(done.stdout)["jobs"]}


def test_a_checkpoint_in_a_bucket_is_fetched_and_sampled_like_one_on_a_disk(fork, lab, tiny, tmp_path):
    environment, fetch, url, folder = lab
    plan = ("plan", "demo", "tiny", PART, "--json")
    early = fork("worker", *plan, env=environment)
    assert early.returncode == 3
    assert failure(early).startswith(
        f"DataUnavailable: the content of {url} is not known: `halos-eval fetch` copies it"
    )

    fetched = fork("worker", "fetch", *fetch, json.dumps([url]), env=environment)
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
    gone = fork("worker", "fetch", *fetch, json.dumps([url]), env=environment)
    assert gone.returncode == 2
    assert failure(gone) == f"BadInput: {url} does not exist or is empty. Check its path"


@pytest.mark.slow
def test_a_fetch_that_was_killed_is_continued(run, s3, tmp_path):
    folder = make_checkpoint(s3.folder / "large" / "FINAL")
    write_tensors(folder / "model.safetensors", {"tensor": (160 << 20,)})
    environment, fetch = lab_of(s3, tmp_path)
    words = ("fetch", *fetch, json.dumps([f"{s3.bucket}/large/FINAL"]))
    cache = run.home / "huggingface" / "halos-eval" / "weights"

    def arrived():
        return [path.stat().st_size for path in cache.glob("*.partial/model.safetensors")]

    with run.started("worker", *words, env=environment) as process:
        wait_for(lambda: arrived() and arrived()[0] > 32 << 20, 120, process.log.read_text, every=0.01)
        process.kill()
        process.wait()
    (kept,) = arrived()
    assert kept < 160 << 20
    (file,) = cache.glob("*.partial/model.safetensors")
    inode = file.stat().st_ino
    done = run("worker", *words, env=environment)
    assert done.returncode == 0, done.stderr
    assert not arrived()
    (copy,) = (path for path in cache.glob("*/model.safetensors") if path.stat().st_ino == inode)
    assert digest_file(copy) == digest_file(folder / "model.safetensors")
    shutil.rmtree(copy.parent)
    shutil.rmtree(folder.parent)

"""Two processes that run the same stages at the same time, with the results on an S3 server."""

from __future__ import annotations

import multiprocessing
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from halos_eval.digests import digest_bytes
from halos_eval.stages import provenance
from halos_eval.stages.identity import Job
from halos_eval.stages.options import StageConfig
from halos_eval.stages.run import Outcome, run
from halos_eval.storage import claims, filesystem, result_files
from halos_eval.storage.claims import Busy
from halos_eval.storage.records import CheckpointRef, read_record
from tests.doubles import COVERAGE, USAGE

# tests/stages/test_interleaving.py takes the same path in a second, in any order of the operations.
pytestmark = [pytest.mark.real, pytest.mark.slow]

TIMES = 200


@pytest.mark.parametrize("lease", [claims.LEASE, timedelta(seconds=-1)], ids=["leases", "expired leases"])
def test_two_hundred_stages_are_whole(strict_bucket, tmp_path, lease):
    root = f"{strict_bucket}/{tmp_path.name}"
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    writers = [context.Process(target=_write, args=(root, tmp_path, number, lease, start)) for number in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    works = [len(list(tmp_path.glob(f"{at}-*"))) for at in range(TIMES)]
    for at in range(TIMES):
        job = _job(root, at)
        record = read_record(job.record)
        ((name, digest),) = record.files.items()
        data = filesystem.read_bytes(f"{job.record.rpartition('/')[0]}/{name}")
        assert digest_bytes(data) == digest
        assert data == b"answers of %d" % record.details["writer"]
        assert (tmp_path / f"{at}-{record.details['writer']:.0f}").exists()
    if lease > timedelta(0):
        assert works == [1] * TIMES  # no work is done twice
    else:
        assert works.count(2) > TIMES / 10  # otherwise they did not overtake each other


def _job(root: str, at: int) -> Job:
    checkpoint = CheckpointRef(name="kto", location="/kto", digest="d")
    record = f"{root}/sample/{at}/outputs.record.json"
    return Job(stage="sample", checkpoint=checkpoint, settings={"at": at}, inputs={}, packages=(), record=record)


def _write(root: str, folder: Path, number: int, lease: timedelta, start: Barrier) -> None:
    claims.take.__defaults__ = (lease,)
    packages = provenance.packages()
    provenance.packages = lambda: packages  # takes longer than all the rest
    for at in range(TIMES):
        job = _job(root, at)

        def work(at: int = at, job: Job = job) -> Outcome:
            (folder / f"{at}-{number}").touch()
            files = result_files.write(job.record.rpartition("/")[0], {"outputs.json": b"answers of %d" % number})
            return Outcome(coverage=COVERAGE, usage=USAGE, files=files, details={"writer": number})

        start.wait()
        try:
            run(job, StageConfig(owner=f"writer {number}"), work)
        except Busy:
            continue

"""Evaluations that never ran: plans, records, samples and annotations of checkpoints in a store."""

from __future__ import annotations

import gzip
import json
from datetime import timedelta

import pytest

from halos_eval.checkpoints.registry import Checkpoint, Metadata
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.storage import result_files
from halos_eval.storage.records import Coverage, Score
from tests.doubles import NOW, finish, make_checkpoint, make_provenance


def sample(number, value, **parts):
    """One document as lm_eval writes it."""
    usual = {
        "doc_id": number, "doc": {"question": f"question {number}"}, "target": "right", "filter": "none",
        "arguments": [[f"prompt {number}", {}]], "resps": [["right" if value else "wrong"]],
        "filtered_resps": ["right" if value else "wrong"], "metrics": ["acc"], "acc": value, "doc_hash": str(number),
    }  # fmt: skip
    return usual | parts


@pytest.fixture
def evaluate(root, tmp_path):
    """``evaluate(name, TASK=values, alpaca_eval=preferences, ...)`` writes the results of a suite on a checkpoint.

    A value is that of a document, or the whole document. ``parts`` are those of the suite that are planned (None: all).
    ``outputs`` is the digest of what is sampled. Weights that are there stay.
    """
    moments = iter(range(1000))

    def evaluate(name, suite="own", tags=None, registered=None, parts=None, outputs="abc", **values):
        own = load_suite(suite)
        folder = tmp_path / "checkpoints" / name
        if not folder.is_dir():
            make_checkpoint(folder)
        metadata = Metadata(tags=tags or {})
        checkpoint = Checkpoint(name=name, location=str(folder), registered=registered, metadata=metadata)
        plan = make_plan(own.keep(parts) if parts else own, checkpoint, root, load_cluster())
        save_plan(plan, own, root)
        for job in plan.jobs:
            provenance = make_provenance(
                NOW + timedelta(minutes=next(moments)), judge_model="judge", outputs_sha256=outputs
            )
            if job.stage == "sample":
                finish(job, provenance=provenance, files={"outputs.json": outputs})
            elif job.part in values:
                write = _annotations if job.stage == "judge" else _samples
                write(job, values[job.part], provenance)
        return plan

    return evaluate


def _samples(job, values, provenance):
    tasks = values if isinstance(values, dict) else {job.task: values}
    rows = {
        task: [
            one if isinstance(one, dict) else sample(number, one) for number, one in enumerate(ones) if one is not None
        ]
        for task, ones in tasks.items()
    }
    data = {
        f"samples/{task}.jsonl.gz": gzip.compress(b"\n".join(json.dumps(row).encode() for row in own))
        for task, own in rows.items()
    }
    files = result_files.write(job.record.rpartition("/")[0], data)
    scores = tuple(
        Score(
            task=task, metric="acc", value=sum(row["acc"] for row in own) / len(own), stderr=0.1, higher_is_better=True
        )
        for task, own in rows.items()
    )
    coverage = Coverage(attempted=sum(map(len, tasks.values())), scored=sum(map(len, rows.values())))
    finish(job, scores=scores, files=files, coverage=coverage, provenance=provenance)


def _annotations(job, values, provenance):
    rows = [
        {"instruction": f"prompt {number}", "output_1": "reference", "output_2": f"answer {one}", "preference": one}
        for number, one in enumerate(values)
    ]
    data = json.dumps(rows).encode()
    files = result_files.write(job.record.rpartition("/")[0], {"annotations.json": data})
    read = [one for one in values if one is not None]
    score = Score(task="alpaca_eval", metric="win_rate", value=100 * (sum(read) / len(read) - 1))
    finish(job, scores=(score,), files=files, provenance=provenance)

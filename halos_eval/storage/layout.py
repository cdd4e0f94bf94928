"""Where things are in the store.

runs/CHECKPOINT/STAGE/FINGERPRINT/{record.json, failure.json, ...}     STAGE is sample, judge or harness.TASK
plans/SUITE/CHECKPOINT.json                                            what should be there, and under which fingerprint
manifests/SUITE.json                                                   the data of all runs of a suite, pinned
reports/SUITE/summary.csv
"""

from __future__ import annotations

import re

from halos_eval.errors import BadInput
from halos_eval.storage import filesystem

# Parts of letters, digits, dot, underscore, dash that begin with a letter or digit: no "..", no hidden file, no shell.
# No "__" either, which stands for "/" in the store.
NAME = re.compile(r"(?!.*__)[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127}){0,3}")
RECORD = "record.json"
FAILURE = "failure.json"


def check_name(name: str) -> str:
    """``name`` if it is safe as a folder below the store and as a label. Raises BadInput."""
    if not NAME.fullmatch(name):
        raise BadInput(
            f"checkpoint name {name!r}: use up to four parts of letters, digits, '.', '_', '-' joined by '/', each "
            "beginning with a letter or digit, without '__'"
        )
    return name


def folder_name(checkpoint: str) -> str:
    """A checkpoint's folder: its name with ``/`` as ``__``, which no name contains. Raises BadInput."""
    return check_name(checkpoint).replace("/", "__")


def stage_folder(root: str, checkpoint: str, stage: str, task: str | None, fingerprint: str) -> str:
    """The folder of one stage's results."""
    return filesystem.join(root, "runs", folder_name(checkpoint), f"{stage}.{task}" if task else stage, fingerprint)


def plans_url(root: str) -> str:
    """The folder of all plans, one folder for each suite."""
    return filesystem.join(root, "plans")


def plan_url(root: str, suite: str, checkpoint: str) -> str:
    """The plan of the latest run of ``suite`` on ``checkpoint``."""
    return filesystem.join(plans_url(root), suite, f"{folder_name(checkpoint)}.json")


def manifest_url(root: str, suite: str) -> str:
    """The manifest of a suite. What it pins stays pinned, so that all checkpoints are scored on the same data."""
    return filesystem.join(root, "manifests", f"{suite}.json")


def report_url(root: str, suite: str) -> str:
    """The summary table of a suite."""
    return filesystem.join(root, "reports", suite, "summary.csv")


def record_beside(output: str) -> str:
    """The record of a stage that writes one file: NAME.json -> NAME.record.json."""
    return output.removesuffix(".json") + ".record.json"


def failure_beside(record: str) -> str:
    """The failure note that belongs to a record."""
    return record.removesuffix(RECORD) + FAILURE

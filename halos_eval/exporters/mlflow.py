"""Results on the model versions of MLflow: tags, and metrics of the run that logged the model.

A version gets the tags halos_eval.result.SUITE.NAME: each score by its column, ``status``, ``judge``, ``series``,
``gate`` and ``report``. A score that is missing now, or not current, has no tag, although an earlier one was there. If
the policy's gate wants it, a version that is better than its baseline also gets an alias.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from halos_eval.checkpoints.mlflow import RESULT_TAG, SCHEMES, MlflowRegistry
from halos_eval.config.policy import load_policy
from halos_eval.config.settings import Settings
from halos_eval.errors import BadInput
from halos_eval.reports import kept_rows
from halos_eval.reports.comparison import Verdict, read_gate
from halos_eval.reports.ranking import scores_of
from halos_eval.reports.table import COMPLETE, SEPARATOR, status
from halos_eval.storage import layout

if TYPE_CHECKING:
    from halos_eval.reports.results import Row

log = logging.getLogger(__name__)

NOT_IN_A_NAME = re.compile(r"[^\w./ -]", re.ASCII)
"""Characters that MLflow allows neither in a tag's name nor in a metric's."""
LONGEST = 1000
"""Characters of a status or a gate's outcome. MLflow allows 5,000, and cuts what is longer in its tables."""


def wanted() -> bool:
    """Return whether the policy file wants results in MLflow. Raise BadInput if the registry is another one."""
    if not load_policy().mlflow_results:
        return False
    checkpoints = Settings().checkpoints
    if not checkpoints.startswith(SCHEMES):
        raise BadInput(
            f"mlflow_results of the policy file needs MLflow's registry, but HALOS_EVAL_CHECKPOINTS is {checkpoints}; "
            "expected mlflow+http://HOST:PORT. Change one of them"
        )
    return True


def write_results(checkpoint: str, suite: str) -> None:
    """Write a checkpoint's row of the suite's table to its model version, if the policy file wants it.

    It may run again: what is there already is not written twice. Raise BadInput, RegistryUnavailable, StoreError.
    """
    if not wanted():
        return
    settings = Settings()
    kept = kept_rows.read(settings.store, suite)
    found = kept.rows.get(layout.folder_name(checkpoint)) if kept else None
    if found is None:
        log.warning("%s has no row in the table of %s, so nothing is written to MLflow", checkpoint, suite)
        return
    tags = tags_of(found, layout.report_url(settings.store, suite))
    registry = MlflowRegistry(settings.checkpoints)
    registry.write(checkpoint, f"{RESULT_TAG}{suite}.", tags, numbers_of(found))
    if alias := _alias(settings.store, suite, checkpoint, found):
        if registry.advance_alias(checkpoint, alias):
            log.info("%s is better than what it was compared with, and has the alias %s now", checkpoint, alias)
        else:
            log.info("%s does not get the alias %s: a version that was registered later has it", checkpoint, alias)


def _alias(root: str, suite: str, checkpoint: str, row: Row) -> str | None:
    """Return the alias that the policy's gate gives to the checkpoint, or None.

    None if the gate gives none, if the checkpoint is not better, or if it could be worse in a task that has no result
    or is not comparable.
    """
    gate = load_policy().gate_for(suite, checkpoint, row.tags)
    if gate is None or gate.mlflow_alias is None or not row.complete:
        return None
    outcome = read_gate(root, suite, checkpoint)
    return gate.mlflow_alias if outcome and outcome.verdict == Verdict.BETTER and not outcome.reason else None


def numbers_of(row: Row) -> dict[str, float]:
    """Return the current scores of a row, and the average, by names that MLflow allows."""
    return {NOT_IN_A_NAME.sub("_", column): cell.value for column, cell in scores_of(row).items()}


def tags_of(row: Row, report: str) -> dict[str, str]:
    """Return the tags of a row. ``report`` is the address of the table."""
    about = {
        "status": SEPARATOR.join(status(row))[:LONGEST] or COMPLETE,
        "judge": row.judge or "",
        "series": str(row.series or ""),
        "gate": row.gate[:LONGEST],
        "report": report,
    }
    return {name: f"{value:.6g}" for name, value in numbers_of(row).items()} | {k: v for k, v in about.items() if v}

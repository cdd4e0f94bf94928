"""Warnings of lm_eval that change a score, in the words of its modules."""

from __future__ import annotations

import logging

from halos_eval.stages.harness.warned import warnings_counted

TASK = logging.getLogger("lm_eval.api.task")


def test_what_changes_a_score_is_counted():
    with warnings_counted() as counts:
        for _ in range(2):
            TASK.warning("Label index was not in within range of available choices,Sample:\n\n{'a': 1}\n\n")
        logging.getLogger("lm_eval.api.group").warning(
            "Group 'mmlu': metric 'acc,none' is missing in 1/3 tasks. Missing in: mmlu_algebra"
        )
        TASK.warning("[Task: x] metric acc is defined, but aggregation is not.")
        TASK.info("Label index was not in within range")
        logging.getLogger("other").warning("Label index was not in within range")
    TASK.warning("Label index was not in within range of available choices,")
    assert counts == {"labels_out_of_range": 2, "incomplete_group_metrics": 1}


def test_usually_there_is_nothing():
    with warnings_counted() as counts:
        pass
    assert counts == {}

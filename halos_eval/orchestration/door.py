"""The one place that decides what a stage runs as."""

from __future__ import annotations

from halos_eval.orchestration.local import LocalStageOperator

StageOperator = LocalStageOperator
"""The operator of every stage in every DAG."""

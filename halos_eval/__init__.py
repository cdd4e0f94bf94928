"""Scheduled evaluation of aligned language models: AlpacaEval and lm-evaluation-harness on Airflow."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["results"]


def results(url: str) -> Any:
    """Return the results in the store ``url`` as pandas frames: a `halos_eval.reports.frames.Results`.

    It is imported by name, because pods and Airflow import this package without needing it.
    """
    return import_module("halos_eval.reports.frames").Results(url)

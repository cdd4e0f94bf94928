"""The suites that the tests evaluate. The chart's release has them as its own suites."""

from __future__ import annotations

from typing import Any

import yaml

from halos_eval.shipped import shipped

ENGINE = {"enforce_eager": True, "harness": {"max_model_len": 1024, "dtype": "float32"}}
DEMO = yaml.safe_load((shipped("suites") / "demo.yaml").read_text())
TASK_FILES = "tasks"
"""Folder beside the checkpoints, where Airflow and the pods see it."""


def _tasks(limit: int, profile: str = "default") -> dict[str, Any]:
    """One small task; another limit is another fingerprint."""
    return ENGINE | {"tasks": {"demo_cloze": {"limit": limit, "profile": profile}}}


# As `make demo` has it. Other suites name the judge `demo`, which is outside of the cluster.
SERVED = {"model": "/checkpoints/smollm2-135m/FINAL", "max_model_len": 2048, "dtype": "float32"}
SUITES = {
    "demo": DEMO | {"alpaca_eval": DEMO["alpaca_eval"] | {"profile": "two", "judge": SERVED}},
    "night": _tasks(6),
    "starved": _tasks(2, "starved"),
    "resumed": ENGINE | {"alpaca_eval": DEMO["alpaca_eval"]},
    "no_image": _tasks(3),
    "many": _tasks(4, "many"),
    "restarted": _tasks(24),
    "upgraded": _tasks(9),
    "marked": _tasks(12),
    "code": ENGINE
    | {"include_path": f"/checkpoints/{TASK_FILES}", "tasks": {"own_code": {"confirm_unsafe_code": True}}},
}

"""A local installation below ``var/``: Airflow, the demo's checkpoints and its suite."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import yaml

from halos_eval.config.cluster import load_cluster
from halos_eval.demo.checkpoints import INTACT, folders
from halos_eval.errors import BadInput
from halos_eval.processes import NO_REPORTS, run
from halos_eval.shipped import shipped
from halos_eval.storage import filesystem

HERE = Path.cwd()
VAR = HERE / "var"
CHECKPOINTS = VAR / "checkpoints"
STORE = f"file://{VAR / 'store'}"
LOGS = VAR / "logs"
SUITES = VAR / "suites"
ENVIRONMENTS = HERE / ".venv"
SUITE = "demo"


def airflow_environment(**more: str) -> dict[str, str]:
    """Return the environment of this installation's Airflow processes: SQLite, these DAGs, and no telemetry."""
    if not (HERE / "dags").is_dir():
        raise BadInput(f"{HERE} has no folder dags. Run this command in a checkout of halos-eval")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    return {
        **kept,
        **NO_REPORTS,
        "AIRFLOW_HOME": str(VAR / "airflow"),
        # `airflow standalone` searches for the command `airflow` here.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "AIRFLOW__CORE__DAGS_FOLDER": str(HERE / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(HERE / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__MAX_MAP_LENGTH": "5000",  # runs of one backfill
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "HALOS_EVAL_STORE": STORE,
        "HALOS_EVAL_CHECKPOINTS": str(CHECKPOINTS),
        "HALOS_EVAL_SUITES": str(SUITES),
        "HALOS_EVAL_ENVIRONMENTS": str(ENVIRONMENTS),
        **more,
    }


def airflow(*words: str) -> list[str]:
    """Return an ``airflow`` command line of this environment."""
    return [str(Path(sys.executable).with_name("airflow")), *words]


def migrate(environment: dict[str, str]) -> None:
    """Create or update Airflow's database and pools. Raise EvaluationFailed with Airflow's reason."""
    LOGS.mkdir(parents=True, exist_ok=True)
    pools = LOGS / "pools.json"
    pools.write_text(json.dumps(load_cluster().pools.document()), encoding="utf-8")
    run("making Airflow's database", airflow("db", "migrate"), LOGS / "database.log", environment)
    run("making Airflow's pools", airflow("pools", "import", str(pools)), LOGS / "pools.log", environment)


def make_checkpoints() -> None:
    """Make the demo's two checkpoints, unless they exist. Raise EvaluationFailed with the builder's reason."""
    if all(folder.exists() for folder in folders(CHECKPOINTS)):
        return
    print("making two small checkpoints", flush=True)
    builder = [str(ENVIRONMENTS / "worker" / "bin" / "python"), "-m", "halos_eval.demo.checkpoints", str(CHECKPOINTS)]
    run("making the demo's checkpoints", builder, LOGS / "checkpoints.log", {**os.environ, **NO_REPORTS})


def make_suite() -> Path:
    """Write the demo's suite, judged by one of the demo's checkpoints, and return its path."""
    document = yaml.safe_load((shipped("suites") / f"{SUITE}.yaml").read_text(encoding="utf-8"))
    document["alpaca_eval"]["judge"] = {
        "model": str(CHECKPOINTS / INTACT / "FINAL"),
        "max_model_len": 2048,
        "dtype": "float32",
    }
    path = SUITES / f"{SUITE}.yaml"
    text = (
        f"# `make demo` writes this file. It overrides the shipped suite.\n{yaml.safe_dump(document, sort_keys=False)}"
    )
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        filesystem.write_bytes(str(path), text.encode())
    return path

"""``make demo`` in this checkout, on a machine of 6 GiB: what it says, and that it does nothing twice."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.real, pytest.mark.vllm, pytest.mark.timeout(2400)]


def demo(environments):
    """Run what ``make demo`` runs after the installation; the lines that it prints."""
    words = [ROOT / "tests" / "small-node.sh", environments / "airflow" / "bin" / "python", "-m", "halos_eval.demo.run"]
    variables = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(Path.home()), "LANG": "C.UTF-8", "COLUMNS": "120"}
    done = subprocess.run(words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def evaluated(environments):
    """The demo's report. Where ``make demo`` has been run in this checkout it is there in a moment."""
    return Path(demo(environments)[-1].removeprefix("summary: "))


def test_rounded_weights_cost_what_they_should(evaluated):
    table = pd.read_csv(evaluated).set_index("model_name")
    assert list(table.index) == ["smollm2-135m", "smollm2-135m-rounded"]
    whole, rounded = (table.loc[name] for name in table.index)
    # Bounds, not values: processors round differently.
    assert whole["demo_cloze-perplexity"] < 8 < rounded["demo_cloze-perplexity"]
    assert whole["demo_arithmetic-exact_match"] > 0.3 > rounded["demo_arithmetic-exact_match"]
    assert whole["avg"] > rounded["avg"]
    assert table["alpacaeval_wr"].between(0, 100).all()
    assert table["alpacaeval_lcwr"].isna().all()
    assert table["status"].str.contains("alpacaeval_lcwr: length control").all()


def test_a_second_run_starts_nothing(evaluated, environments):
    store = ROOT / "var" / "store"
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}
    database = ROOT / "var" / "airflow" / "airflow.db"
    touched = database.stat().st_mtime_ns
    lines = demo(environments)
    assert lines[-1] == f"summary: {evaluated}"
    assert any(line.startswith("smollm2-135m-rounded beside smollm2-135m: worse in demo_") for line in lines)
    assert not any("vllm" in line.lower() or "sampled" in line for line in lines)
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()} == before
    assert database.stat().st_mtime_ns == touched

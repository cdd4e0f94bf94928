"""Material of the judge's tests: outputs and references made from the published annotations in ../shared."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest


def write(path: Path, rows: list[dict]) -> Path:
    """``rows`` as a JSON file."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def reference_rows(shared: Path) -> list[dict]:
    """AlpacaEval's 805 reference outputs."""
    path = shared / "hub" / "data" / "datasets" / "tatsu-lab" / "alpaca_eval" / "alpaca_eval_gpt4_baseline.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def output_rows(shared: Path):
    """``output_rows(model)``: the outputs of a published model, as ``halos-eval sample`` writes them."""

    def read(model: str) -> list[dict]:
        with gzip.open(shared / "judge" / "data" / f"{model}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        return [{"instruction": row["instruction"], "output": row["output"], "generator": model} for row in rows]

    return read


@pytest.fixture
def outputs(output_rows, tmp_path: Path) -> Path:
    """The 805 outputs of alpaca-7b."""
    return write(tmp_path / "alpaca-7b.json", output_rows("alpaca-7b"))


@pytest.fixture
def few(output_rows, reference_rows: list[dict], tmp_path: Path) -> tuple[str, ...]:
    """Words of a judge command on the first twelve pairs alone."""
    outputs = write(tmp_path / "few.json", output_rows("alpaca-7b")[:12])
    reference = write(tmp_path / "few-reference.json", reference_rows[:12])
    return ("judge", str(outputs), f"--reference={reference}", "--annotator=gpt-4.1")

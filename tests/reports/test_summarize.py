"""The summary has one source, and is written to the requested file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from pydantic import ValidationError

from halos_eval.errors import BadInput
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage.records import Score, write_model
from tests.doubles import make_record
from tests.reports.pandas_table import frame

LOGS = Path(__file__).parent / "logs"


@pytest.mark.parametrize("options", [{}, {"root": "/s", "logs": "/l"}])
def test_there_is_one_source(options):
    with pytest.raises(ValidationError, match="either a store or --logs"):
        SummarizeConfig(**options)


@pytest.mark.parametrize("suite", ["../halos", "a/b", "", "halos.yaml"])
def test_a_suite_is_a_name(suite):
    with pytest.raises(ValidationError, match="letters, digits"):
        SummarizeConfig(root="/s", suite=suite)


def test_a_store(tmp_path):
    score = Score(task="mmlu", metric="acc", value=0.5)
    write_model(str(tmp_path / "runs" / "record.json"), make_record(task="mmlu", scores=(score,)))
    output = tmp_path / "deep" / "table.csv"
    rows = summarize(SummarizeConfig(root=str(tmp_path), output=f"file://{output}"))
    assert output.read_text() == "model_name,mmlu-acc,avg,status\none,0.5,0.5,complete\n"
    assert pd.read_csv(output).equals(frame(rows))


def test_logs(tmp_path):
    rows = summarize(SummarizeConfig(logs=str(LOGS / "halos_old_header.log"), output=str(tmp_path / "table.csv")))
    assert [row.checkpoint for row in rows] == ["llama3-8b_sft_kto"]
    assert list(frame(rows).columns[:3]) == ["model_name", "alpacaeval_lcwr", "alpacaeval_wr"]
    assert (tmp_path / "table.csv").is_file()


def test_nothing_is_written_where_there_is_nothing(tmp_path):
    with pytest.raises(BadInput, match="nothing has been evaluated there yet"):
        summarize(SummarizeConfig(root=str(tmp_path / "none"), output=str(tmp_path / "table.csv")))
    with pytest.raises(BadInput, match="does not exist"):
        summarize(SummarizeConfig(logs=str(tmp_path / "none"), output=str(tmp_path / "table.csv")))
    assert not list(tmp_path.iterdir())

"""The contract of a suite's table: its columns in order, and what they say of a row."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from halos_eval.digests import digest_json
from halos_eval.reports.results import Cell, Row
from halos_eval.reports.scores import encoded
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.table import SCHEMA, cells_by_column, csv_of, facts_of, frame_of, read_rows
from halos_eval.storage import filesystem, layout
from tests.doubles import NOW
from tests.reports.evaluated import evaluate

__all__ = ["evaluate"]

SUITE = "alpaca_eval: {prompts: demo, reference: demo, judge: demo}\ntasks: {demo_choice: {}, demo_cloze: {}}"
ROW = Row(
    "m",
    {"a-acc": Cell(0.5, 0.1, filter="strict"), "a-acc,loose": Cell(0.25, filter="loose"), "b-acc": Cell(0.75)},
    judge="gpt",
    average=0.5,
    gate="worse",
    series=3,
    counts={"a-n_cut": 2},
    registered=datetime(2026, 1, 5, 12, tzinfo=UTC),
    evaluated=datetime(2026, 1, 6, tzinfo=UTC),
    gpu_hours=1.5,
    price_usd=0.25,
    suite="halos",
    items={"a-n": 100, "b-n": 50, "alpacaeval_n": 805},
    stages={"sample": "current 0123", "a": "not current 4567", "b": "missing"},
    fingerprint="89ab",
)


def test_the_columns_are_in_this_order():
    assert cells_by_column([ROW])[0] == [
        "model_name", "alpacaeval_judge",
        "a-acc", "a-acc,loose", "a-acc,loose_filter", "a-acc_filter", "a-acc_stderr", "a-n", "a-n_cut",
        "alpacaeval_n", "b-acc", "b-n",
        "avg", "gate", "series", "status",
        "suite", "registered", "evaluated", "gpu_hours", "dollars", "fingerprint", "stages", "schema",
    ]  # fmt: skip


def test_another_row_moves_no_column():
    more = Row("n", {"c-f1": Cell(0.1, 0.2)}, average=0.1, average_stderr=0.2, suite="halos")
    own = cells_by_column([ROW])[0]
    assert [column for column in cells_by_column([ROW, more])[0] if column in own] == own


def test_a_row_tells_its_facts():
    (line,) = pd.read_csv(io.BytesIO(csv_of([ROW])), dtype=str).to_dict("records")
    assert {name: line[name] for name in facts_of(ROW)} == {
        "a-acc_filter": "strict", "a-acc,loose_filter": "loose", "a-n": "100", "b-n": "50", "alpacaeval_n": "805",
        "suite": "halos", "registered": "2026-01-05T12:00:00+00:00", "evaluated": "2026-01-06T00:00:00+00:00",
        "gpu_hours": "1.5", "dollars": "0.25", "fingerprint": "89ab",
        "stages": "sample=current 0123; a=not current 4567; b=missing", "schema": str(SCHEMA),
    }  # fmt: skip


def test_what_is_unknown_is_no_column():
    assert facts_of(Row("m", suite="halos")) == {"suite": "halos", "schema": SCHEMA}
    assert facts_of(Row("m", ROW.cells, items=ROW.items)) == {}  # the table of logs has HALOs' columns only


def test_the_facts_are_those_of_the_records(root, suite, evaluate):
    suite(SUITE)
    plan = evaluate("one", demo_choice=[1.0, 0.0, 1.0, 1.0], alpaca_eval=[1.25, None], registered=NOW)
    (row,) = read_rows(root, "own")
    prints = {job.title: job.fingerprint for job in plan.jobs}
    done = {title: prints[title] for title in ("sample", "judge", "demo_choice")}
    found = facts_of(row)
    assert (found["suite"], found["demo_choice-n"], found["alpacaeval_n"]) == ("own", 4, 1)
    assert "demo_cloze-n" not in found
    assert found["registered"] == NOW.isoformat()
    assert found["evaluated"] == (NOW + timedelta(minutes=2)).isoformat()
    assert dict(one.split("=") for one in found["stages"].split("; ")) == {
        **{title: f"current {fingerprint}" for title, fingerprint in done.items()},
        "demo_cloze": "missing",
    }
    assert found["fingerprint"] == digest_json(sorted(done.values()))[:16]


def test_an_outdated_result_says_so_with_its_fingerprint(root, suite, evaluate):
    suite(SUITE)
    plan = evaluate("one", demo_choice=[1.0])
    suite(SUITE.replace("demo_choice: {}", "demo_choice: {num_fewshot: 3}"))
    evaluate("two", demo_choice=[1.0])
    older = next(row for row in read_rows(root, "own") if row.checkpoint == "one")
    (fingerprint,) = [job.fingerprint for job in plan.jobs if job.title == "demo_choice"]
    assert older.stages["demo_choice"] == f"not current {fingerprint}"


@pytest.mark.parametrize("checkpoint", [None, "one"])
@pytest.mark.parametrize("name", ["table.json", "table.parquet"])
def test_other_formats_have_the_same_table(root, suite, evaluate, tmp_path, name, checkpoint):
    suite(SUITE)
    evaluate("one", demo_choice=[1.0, 0.0], registered=NOW)
    url = str(tmp_path / name)
    rows = summarize(SummarizeConfig(root=root, suite="own", checkpoint=checkpoint, output=url))
    data = filesystem.read_bytes(url)
    if name.endswith("json"):
        (line,) = json.loads(data)
    else:
        (line,) = pd.read_parquet(io.BytesIO(data)).to_dict("records")
        assert line["registered"] == NOW
    assert list(line) == cells_by_column(rows)[0]
    assert (line["demo_choice-acc"], line["demo_choice-n"]) == (0.5, 2)


def test_json_has_the_numbers_of_the_csv():
    value = 0.12345678901234568
    rows = [Row("a", {"x-acc": Cell(value)}, items={"x-n": 3}, registered=NOW, suite="own"), Row("b", suite="own")]
    first, second = json.loads(encoded(frame_of(rows), "table.json"))
    assert first["x-acc"] == value
    assert str(value) in csv_of(rows).decode()
    assert (str(first["x-n"]), second["x-n"]) == ("3", None)
    assert (datetime.fromisoformat(first["registered"]), second["registered"]) == (NOW, None)


def test_pages_of_a_removed_checkpoint_disappear_with_its_row(root, suite, evaluate):
    suite(SUITE)
    evaluate("one", demo_choice=[1.0])
    evaluate("two", demo_choice=[1.0])
    report = layout.report_url(root, "own")
    summarize(SummarizeConfig(root=root, suite="own", output=report))
    folder = layout.report_folder(root, "own")
    assert filesystem.exists(f"{folder}/checkpoints/one.html")
    assert filesystem.entries(f"{folder}/samples/one")
    filesystem.delete(layout.plan_url(root, "own", "one"))
    summarize(SummarizeConfig(root=root, suite="own", output=report))
    assert set(filesystem.entries(f"{folder}/checkpoints")) == {"two.html"}
    assert set(filesystem.entries(f"{folder}/samples")) == {"two"}

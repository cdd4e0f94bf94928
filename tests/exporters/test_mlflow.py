"""Tags and metrics for MLflow, and when they are written."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from halos_eval.checkpoints.mlflow import MlflowRegistry
from halos_eval.errors import BadInput
from halos_eval.exporters import mlflow
from halos_eval.exporters.mlflow import tags_of, wanted, write_results
from halos_eval.reports.comparison import GateOutcome, Verdict, write_gate
from halos_eval.reports.kept_rows import KeptRows
from halos_eval.reports.results import Cell, Missing, Row
from halos_eval.storage import filesystem, layout
from tests.doubles import NOW

ROW = Row(
    checkpoint="kto/v1",
    cells={"alpacaeval_lcwr": Cell(33.333333333), "alpacaeval_wr@b,c": Cell(0.0), "gsm8k-exact_match": None},
    judge="gpt-4.1",
    missing=(Missing("gsm8k", "out of memory"),),
    series=2,
)
REPORT = "s3://lab/reports/quick/summary.csv"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """What ``write_results`` writes to a registry whose results the policy file wants."""
    calls = []

    class Registry:
        def __init__(self, url):
            assert url == "mlflow+http://mlflow:5000"

        def write(self, *arguments):
            calls.append(arguments)

        def advance_alias(self, *arguments):
            calls.append(arguments)
            return True

    (tmp_path / "policy.yaml").write_text("{mlflow_results: true, rules: []}")
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(tmp_path / "policy.yaml"))
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", "mlflow+http://mlflow:5000")
    monkeypatch.setattr(mlflow, "MlflowRegistry", Registry)
    return calls


def keep(tmp_path, row):
    rows = {layout.folder_name(row.checkpoint): row}
    found = KeptRows(version=3, made_with="m", considered=(), rows=rows)
    filesystem.write_bytes(layout.rows_url(f"file://{tmp_path}/store", "quick"), found.encoded())


def test_a_missing_score_has_no_tag():
    assert tags_of(ROW, REPORT) == {
        "alpacaeval_lcwr": "33.3333",
        "alpacaeval_wr_b_c": "0",  # MLflow allows no @ and no comma
        "status": "gsm8k: out of memory",
        "judge": "gpt-4.1",
        "series": "2",
        "report": REPORT,
    }
    assert tags_of(Row("kto/v1", {"a-acc": Cell(0.5)}, average=0.5), REPORT) == {
        "a-acc": "0.5",
        "avg": "0.5",
        "status": "complete",
        "report": REPORT,
    }


def test_a_score_that_is_not_current_is_neither_a_tag_nor_a_metric(written, tmp_path):
    reason = Missing("judge", "not current: reference")
    keep(tmp_path, Row("kto/v1", {"alpacaeval_wr": Cell(90.0, current=False), "a-acc": Cell(0.5)}, missing=(reason,)))
    write_results("kto/v1", "quick")
    ((_, _, tags, numbers),) = written
    assert numbers == {"a-acc": 0.5}
    assert {name for name in tags if name not in {"status", "report"}} == {"a-acc"}
    assert tags["status"] == "judge: not current: reference"


def test_the_row_of_the_checkpoint_is_written(written, tmp_path):
    keep(tmp_path, ROW)
    write_results("kto/v1", "quick")
    ((name, prefix, tags, numbers),) = written
    assert (name, prefix) == ("kto/v1", "halos_eval.result.quick.")
    assert tags["report"] == f"file://{tmp_path}/store/reports/quick/summary.csv"
    assert numbers == {"alpacaeval_lcwr": 33.333333333, "alpacaeval_wr_b_c": 0.0}


def test_without_a_row_nothing_is_written(written, tmp_path, caplog):
    write_results("kto/v1", "quick")
    keep(tmp_path, ROW)
    write_results("kto/v2", "quick")
    assert written == []
    assert "kto/v2 has no row in the table of quick" in caplog.text


def test_it_is_off_by_default(written, tmp_path):
    keep(tmp_path, ROW)
    (tmp_path / "policy.yaml").write_text("rules: []")
    write_results("kto/v1", "quick")
    assert written == []


@pytest.fixture
def gated(tmp_path):
    """``gated(row, alias, **outcome)`` keeps a row and the outcome of its gate, which gives an alias."""

    def gated(row, alias="mlflow_alias: champion", **outcome):
        gates = f"[{{tags: {{method: dpo}}, against: last, mlflow_alias: other}}, {{against: best, {alias}}}]"
        (tmp_path / "policy.yaml").write_text(f"{{mlflow_results: true, gates: {gates}, rules: []}}")
        keep(tmp_path, row)
        found = GateOutcome(checkpoint="kto/v1", suite="quick", rule="best", baseline="b", at=NOW, **outcome)
        write_gate(f"file://{tmp_path}/store", found)

    return gated


COMPLETE = Row("kto/v1", {"gsm8k-exact_match": Cell(0.5)})


@pytest.mark.parametrize(
    ("alias", "verdict", "given"),
    [
        ("mlflow_alias: champion", Verdict.BETTER, [("kto/v1", "champion")]),
        ("mlflow_alias: champion", Verdict.UNKNOWN, []),
        ("mlflow_alias: champion", Verdict.WORSE, []),
        ("mlflow_alias: champion", None, []),  # nothing to compare with yet
        ("block: []", Verdict.BETTER, []),
    ],
)
def test_a_version_that_is_better_gets_the_alias_of_the_gate(written, gated, alias, verdict, given):
    gated(COMPLETE, alias, verdict=verdict)
    write_results("kto/v1", "quick")
    assert written[1:] == given


@pytest.mark.parametrize(
    ("row", "reason"),
    [(ROW, ""), (COMPLETE, "gsm8k: max_model_len 2048 and 4096")],
    ids=["a result is missing", "a task is not comparable"],
)
def test_a_version_that_could_be_worse_elsewhere_gets_no_alias(written, gated, row, reason):
    gated(row, verdict=Verdict.BETTER, reason=reason)
    write_results("kto/v1", "quick")
    assert len(written) == 1  # its tags


@pytest.mark.parametrize(("holder", "has"), [(None, True), ("9", True), ("10", True), ("11", False)])
def test_an_alias_never_goes_back_to_an_earlier_version(monkeypatch, holder, has):
    given = []
    client = SimpleNamespace(set_registered_model_alias=lambda *words: given.append(words))
    model = SimpleNamespace(aliases={"champion": holder} if holder else {})
    monkeypatch.setattr(MlflowRegistry, "_client", lambda self: nullcontext(client))
    monkeypatch.setattr(MlflowRegistry, "_find", lambda *_: (SimpleNamespace(name="kto", version="10"), model))
    assert MlflowRegistry("mlflow+http://mlflow:5000").advance_alias("kto/v10", "champion") == has
    assert given == ([("kto", "champion", "10")] if holder in {None, "9"} else [])


def test_the_outcome_of_the_gate_is_a_tag():
    assert tags_of(Row("kto/v1", gate="better beside kto/v0"), REPORT)["gate"] == "better beside kto/v0"


def test_another_registry_is_rejected(written, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", "/checkpoints")
    with pytest.raises(BadInput, match=r"HALOS_EVAL_CHECKPOINTS is /checkpoints; expected mlflow\+http"):
        wanted()

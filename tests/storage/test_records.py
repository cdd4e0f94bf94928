"""Records: a record is read as it was written, and a damaged one is an error, not a missing one."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from halos_eval.errors import StoreError
from halos_eval.storage.records import Record, Score, read_failure, read_record, write_model
from tests.doubles import make_record, write_failure


def test_a_record_is_read_as_it_was_written(tmp_path):
    score = Score(task="mmlu", metric="acc", value=0.1 + 0.2, stderr=1e-9, higher_is_better=True)
    record = make_record(task="mmlu", scores=(score,), missing={"mmlu-f1": "é\u2028"}, details={"x": 1.5})
    write_model(str(tmp_path / "record.json"), record)
    assert read_record(str(tmp_path / "record.json")) == record


@pytest.mark.parametrize("read", [read_record, read_failure])
def test_none_is_none(tmp_path, read):
    assert read(str(tmp_path / "none")) is None


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"{}", b"[]"])
def test_a_damaged_record_is_not_taken_for_an_absent_one(tmp_path, content):
    (tmp_path / "record.json").write_bytes(content)
    with pytest.raises(StoreError, match="Delete it and run again"):
        read_record(str(tmp_path / "record.json"))


def test_a_record_of_a_later_version_is_refused(tmp_path):
    text = make_record().model_dump_json().replace('"version":1', '"version":2')
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(StoreError, match="version"):
        read_record(str(tmp_path / "record.json"))


def test_a_failure_note(tmp_path):
    write_failure(str(tmp_path / "failure.json"), "no chat template")
    assert read_failure(str(tmp_path / "failure.json")).message == "no chat template"


@pytest.mark.parametrize("change", [{"valu": 1}, {"value": "high"}, {"value": None}])
def test_a_score_has_a_number_and_nothing_unknown(change):
    with pytest.raises(ValidationError):
        Score.model_validate({"task": "t", "metric": "m", "value": 1} | change)


def test_a_record_cannot_be_changed():
    with pytest.raises(ValidationError):
        make_record().fingerprint = "other"
    assert Record.model_config["extra"] == "forbid"

"""Paths in the store: one folder for each checkpoint, whatever its name."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.errors import BadInput
from halos_eval.storage import layout
from halos_eval.storage.layout import NAME

# Few characters, so that names that differ only in "/" and "_" come up often.
NAMES = st.text("aB0._-/", min_size=1, max_size=9).filter(NAME.fullmatch)


@given(NAMES, NAMES)
def test_two_checkpoints_never_share_a_folder(one, other):
    assert (layout.folder_name(one) == layout.folder_name(other)) == (one == other)
    assert "/" not in layout.folder_name(one)


@pytest.mark.parametrize("name", ["../x", "a__b", "", "a/../b"])
def test_an_unsafe_name_is_rejected(name):
    for place in (layout.folder_name, lambda name: layout.plan_url("/s", "suite", name)):
        with pytest.raises(BadInput):
            place(name)


def test_urls():
    assert layout.stage_folder("s3://b", "team/kto", "harness", "mmlu", "f1") == "s3://b/runs/team__kto/harness.mmlu/f1"
    assert layout.stage_folder("s3://b/", "kto", "sample", None, "f1") == "s3://b/runs/kto/sample/f1"
    assert layout.plan_url("/s", "halos", "team/kto") == "/s/plans/halos/team__kto.json"
    assert layout.manifest_url("/s", "halos") == "/s/manifests/halos.json"
    assert layout.report_url("/s", "halos") == "/s/reports/halos/summary.csv"


@pytest.mark.parametrize(
    ("output", "record", "failure"),
    [
        ("/o/outputs.json", "/o/outputs.record.json", "/o/outputs.failure.json"),
        ("/o/outputs", "/o/outputs.record.json", "/o/outputs.failure.json"),
    ],
)
def test_urls_beside_an_output(output, record, failure):
    assert layout.record_beside(output) == record
    assert layout.failure_beside(record) == failure
    assert layout.failure_beside("/o/record.json") == "/o/failure.json"

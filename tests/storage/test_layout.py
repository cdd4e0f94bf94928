"""Paths in the store: one folder for each checkpoint, whatever its name."""

from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from halos_eval.errors import BadInput
from halos_eval.storage import layout
from halos_eval.storage.layout import NAME, is_original, original_part, safe_name

# Few characters, so that names that differ only in "/" and "_" come up often.
NAMES = st.text("aB0._-/", min_size=1, max_size=9).filter(NAME.fullmatch)
ORIGINALS = st.text("aB_-+= /", min_size=1, max_size=5).filter(is_original)


@given(NAMES, NAMES)
def test_two_checkpoints_never_share_a_folder(one, other):
    assert (layout.folder_name(one) == layout.folder_name(other)) == (one == other)
    assert "/" not in layout.folder_name(one)


@pytest.mark.parametrize("name", ["../x", "a;b", "", "a/../b", "/a"])
def test_an_unsafe_name_is_rejected(name):
    for place in (layout.folder_name, lambda name: layout.plan_url("/s", "suite", name)):
        with pytest.raises(BadInput):
            place(name)


def test_names_that_are_safe_stay_and_others_are_recognized():
    assert safe_name("team/llama3-8b_kto.v2") == "team/llama3-8b_kto.v2"
    digest = hashlib.sha256(b"llama3-8b_sft+kto").hexdigest()
    assert safe_name("llama3-8b_sft+kto") == f"llama3-8b_sft-kto-x{digest[:10]}"
    assert re.fullmatch(r"lr-1e-6-beta-0.1-x[0-9a-f]{10}/step-100", safe_name("lr=1e-6 beta=0.1/step-100"))


# Few characters, so that the slugs of different names are often equal.
@given(ORIGINALS, ORIGINALS)
@example("a+b", "a=b")
@example("a+b", safe_name("a+b"))
@example("模型", "型模")
@example("a" * 250, "a" * 249)
def test_two_originals_never_share_a_name(one, other):
    assert NAME.fullmatch(safe_name(one))
    assert (safe_name(one) == safe_name(other)) == (one == other)
    assert layout.folder_name(safe_name(one)) == layout.folder_name(one)


def test_a_replacement_leads_back_to_its_original():
    def unexpected():
        raise AssertionError

    originals = ["a", "a+b", "a=b", "a-x0123456789", "a[1]"]
    for one in originals[:4]:
        assert original_part(safe_name(one), lambda: originals) == one
    assert original_part("a-x9999999999", lambda: originals) == "a-x9999999999"
    assert original_part("a", unexpected) == "a"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "/a", "a//b", ".a", "-a", " a", "a;b", "a\nb", "a\0", "{{a}}", "a[1]", "a*", "a:b"]
)
def test_originals_that_are_unsafe_anywhere_are_rejected(name):
    assert not is_original(name)
    with pytest.raises(BadInput, match="Rename it"):
        safe_name(name)


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

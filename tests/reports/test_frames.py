"""Results of a store as pandas frames, and the long table as a file."""

from __future__ import annotations

import io
import subprocess
import sys

import pandas as pd
import pytest

import halos_eval
from halos_eval.errors import BadInput, StoreError
from halos_eval.reports.frames import ANNOTATION_COLUMNS, SAMPLE_COLUMNS
from halos_eval.reports.scores import COLUMNS
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage import filesystem, layout
from tests.doubles import NOW
from tests.reports.evaluated import evaluate, sample

__all__ = ["evaluate"]

SUITE = "alpaca_eval: {prompts: demo, reference: demo, judge: demo}\ntasks: {demo_choice: {}, demo_cloze: {}}"


@pytest.fixture
def results(root, suite, evaluate):
    suite(SUITE)
    evaluate("one", demo_choice=[1.0, 0.0, 1.0, 1.0], alpaca_eval=[1.25, None], registered=NOW, tags={"base": "x"})
    return halos_eval.results(root)


def test_the_table_has_the_columns_of_the_csv(results):
    table = results.table("own").set_index("model_name")
    assert results.suites() == ["own"]
    assert table.loc["one", "demo_choice-acc"] == 0.75
    assert table.loc["one", "alpacaeval_wr"] == 25
    assert results.table().loc[0, "demo_choice-acc"] == 0.75


def test_samples_are_documents_with_their_scores(results):
    found = results.samples("one", "demo_choice")
    assert tuple(found.columns) == SAMPLE_COLUMNS
    assert found["score"].tolist() == [1, 0, 1, 1]
    second = ["demo_choice", "1", "acc", "none", 0.0, "prompt 1", "right", "wrong", "wrong", "document 1"]
    assert found.iloc[1].tolist() == second
    assert found.equals(results.samples("one", "demo_choice", suite="own"))


def test_the_most_likely_choice_is_the_answer(root, suite, evaluate):
    choices = {
        "arguments": [["q", " a"], ["q", " b"]], "resps": [[[-2.0, False]], [[-1.0, False]]], "target": 0,
        "filtered_resps": [[-2.0, False], [-1.0, False]],
    }  # fmt: skip
    given = {"arguments": [["q", " a"]], "resps": [[[-0.5, True]]], "filtered_resps": [[-0.5, True]], "target": " a"}
    suite(SUITE)
    evaluate("one", demo_choice=[sample(0, 0.0, **choices), sample(1, 1.0, **given)])
    found = halos_eval.results(root).samples("one", "demo_choice")
    assert found["answer"].tolist() == [" b", "log-likelihood -0.5, the most likely text"]
    assert found["reference"].tolist() == [" a", " a"]


def test_annotations_are_pairs_with_the_preference(results):
    found = results.annotations("one")
    assert tuple(found.columns) == ANNOTATION_COLUMNS
    assert found["preference"].tolist()[0] == 1.25
    assert pd.isna(found["preference"][1])
    assert found["instruction"].tolist() == ["prompt 0", "prompt 1"]
    assert found["judge"].unique().tolist() == ["judge"]


def test_unknown_names_and_damaged_files_have_one_message(results, root):
    with pytest.raises(BadInput, match=r"one has no result of gpqa .*available: demo_choice"):
        results.samples("one", "gpqa")
    with pytest.raises(BadInput, match="none has no result"):
        results.samples("none", "demo_choice")
    with pytest.raises(BadInput, match="has no plan of other for one"):
        results.samples("one", "demo_choice", suite="other")
    with pytest.raises(BadInput, match="nothing has been evaluated there yet"):
        results.scores("other")
    (url,) = filesystem.find(root, ".jsonl.gz")
    filesystem.write_bytes(url, b"damaged")
    with pytest.raises(StoreError, match=r"was changed after its record was written. Run this stage again"):
        results.samples("one", "demo_choice")


def test_scores_have_one_line_for_each_score_and_each_stage_without_one(results, root):
    found = results.scores("own")
    assert tuple(found.columns) == COLUMNS
    by_part = found.set_index("part")
    assert by_part.index.tolist() == ["sample", "alpaca_eval", "demo_choice", "demo_cloze"]
    assert by_part["status"].tolist() == ["current", "current", "current", "missing"]
    assert by_part.loc["demo_cloze", "reason"].startswith("no result")
    choice = by_part.loc["demo_choice"]
    assert (choice["value"], choice["stderr"], choice["n"], choice["filter"]) == (0.75, 0.1, 4, "none")
    assert (choice["schema"], choice["suite"], choice["registered"]) == (1, "own", NOW)
    assert choice["gpu_hours"] == 0
    assert pd.isna(by_part.loc["demo_cloze", "value"])
    filesystem.write_bytes(layout.plan_url(root, "own", "two"), b"damaged")
    assert results.scores("own").query("checkpoint == 'two'")["part"].tolist() == ["plan"]


@pytest.mark.parametrize("limit", [3, 0.5])
def test_a_trial_is_limited_to_a_number_or_a_share(root, suite, evaluate, limit):
    suite(f"tasks: {{demo_choice: {{limit: {limit}}}, demo_cloze: {{}}}}")
    evaluate("one", demo_choice=[1.0], demo_cloze=[1.0])
    found = halos_eval.results(root).scores("own").set_index("part")["limit"]
    assert str(found["demo_choice"]) == str(limit)
    assert pd.isna(found["demo_cloze"])


@pytest.mark.parametrize(
    ("ending", "read"), [("csv", pd.read_csv), ("json", pd.read_json), ("parquet", pd.read_parquet)]
)
def test_scores_are_written_in_three_formats(results, root, tmp_path, ending, read):
    url = str(tmp_path / f"scores.{ending}")
    summarize(SummarizeConfig(root=root, suite="own", scores=url, output=str(tmp_path / "table.csv")))
    found = read(io.BytesIO(filesystem.read_bytes(url)))
    assert tuple(found.columns) == COLUMNS
    assert found["value"].dropna().tolist() == results.scores("own")["value"].dropna().tolist()


def test_another_format_is_rejected(results, root, tmp_path):
    with pytest.raises(BadInput, match=r"expected a name that ends with .csv, .parquet or .json"):
        summarize(SummarizeConfig(root=root, suite="own", scores="scores.xls", output=str(tmp_path / "table.csv")))


def test_the_import_is_light():
    words = "import halos_eval, sys; print('pandas' in sys.modules, 'pydantic' in sys.modules, halos_eval.results)"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False False <function")

"""The table from kept rows and one new row is that of a rebuild from the records, byte for byte."""

from __future__ import annotations

import gzip
import json
import multiprocessing
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.errors import BadInput
from halos_eval.planning.plan import make_plan, save_plan
from halos_eval.reports import kept_rows
from halos_eval.reports.kept_rows import KeptRows
from halos_eval.reports.results import Cell, Missing, Row
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.reports.table import csv_of, read_rows
from halos_eval.storage import changes, filesystem, layout
from halos_eval.storage.records import Score
from halos_eval.untrusted import as_cell
from tests.doubles import finish, make_checkpoint, write_failure
from tests.reports.pandas_table import frame

SUITE = "tasks: {demo_choice: {num_fewshot: 5}, demo_cloze: {}}"
OTHER = "tasks: {demo_cloze: {}}"  # shares records with SUITE


def evaluate(root, folder, suite, name, value=0.5, until=None, fail=False):
    """Plan ``suite`` for a checkpoint, write the records of the first jobs, and add it to the table."""
    plan = make_plan(load_suite(suite), Checkpoint(name=name, location=str(folder)), root, load_cluster())
    save_plan(plan, load_suite(suite), root)
    for number, job in enumerate(plan.jobs):
        if until is None or number < until:
            finish(job, scores=(Score(task=job.part, metric="acc", value=value, stderr=value / 10),))
        elif fail:
            write_failure(layout.failure_beside(job.record), message=f"reason; {value} ü\n")
    return add(root, suite, name)


def add(root, suite, name):
    return summarize(SummarizeConfig(root=root, suite=suite, checkpoint=name, output=layout.report_url(root, suite)))


def table(root, suite):
    """The bytes of the CSV and of the kept rows."""
    return tuple(filesystem.read_bytes(url(root, suite)) for url in (layout.report_url, layout.rows_url))


def rebuilt(root, suite):
    """The same from the records alone, in another place."""
    return frame(read_rows(root, suite)).to_csv(index=False).encode(), kept_rows.rebuild(root, suite).encoded()


@pytest.fixture
def folder(tmp_path):
    return make_checkpoint(tmp_path / "checkpoint")


ACTIONS = st.one_of(
    st.tuples(
        st.just("evaluate"), st.sampled_from(["own", "other"]), st.sampled_from(["a", "b/c", "d"]),
        st.floats(0, 1), st.sampled_from([None, 0, 1]), st.booleans(),
    ),
    st.tuples(st.just("define"), st.sampled_from(["5", "0"]), st.sampled_from(["0.01", "0.5"])),
    st.tuples(st.just("remove"), st.sampled_from(["a", "b__c"])),
)  # fmt: skip


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTIONS, min_size=2, max_size=7))
def test_any_sequence_of_evaluations_and_edits_gives_the_table_of_a_rebuild(suite, root, folder, actions):
    filesystem.delete(root)
    suite(SUITE)
    suite(OTHER, "other")
    for kind, *values in actions:
        if kind == "define":
            suite(SUITE.replace("5", values[0]) + f"\nwarn_above: {values[1]}")
        elif kind == "remove":
            filesystem.delete(f"{root}/plans/own/{values[0]}.json")
            changes.note(root, "own", values[0].replace("__", "/"))  # as `prune` does
        else:
            evaluate(root, folder, *values)
            assert table(root, values[0]) == rebuilt(root, values[0])
    for name in ("own", "other"):
        evaluate(root, folder, name, "d", 0.25)
        assert table(root, name) == rebuilt(root, name)


CELLS = st.builds(
    Cell, st.floats(allow_nan=False, allow_infinity=False), st.none() | st.floats(0, 1),
    st.none() | st.tuples(st.floats(0, 1), st.floats(0, 1)), current=st.booleans(),
)  # fmt: skip
ROWS = st.builds(
    Row, st.text(), st.dictionaries(st.text(), st.none() | CELLS), st.none() | st.text(), st.none() | st.floats(0, 1),
    st.none() | st.floats(0, 1), st.none() | st.lists(st.builds(Missing, st.text(), st.text())).map(tuple),
    st.none() | st.integers(1, 9), st.text(), st.lists(st.text()).map(tuple),
    st.dictionaries(st.text(), st.integers(0, 10**6)), st.lists(st.text()).map(tuple),
)  # fmt: skip


TABLE = st.lists(
    st.builds(
        Row, st.text(), st.dictionaries(st.sampled_from(["a-acc", "b-f1,strict", "é"]), st.none() | CELLS),
        st.none() | st.text(min_size=1), st.none() | st.floats(0, 1), st.none() | st.floats(0, 1),
        st.none() | st.lists(st.builds(Missing, st.text(), st.text())).map(tuple), st.none() | st.integers(1, 9),
        counts=st.dictionaries(st.sampled_from(["a-n_cut", "b-n_empty"]), st.integers(0, 3)),
    ),
    min_size=1, max_size=4,
)  # fmt: skip


@settings(max_examples=60)
@given(TABLE)
def test_the_csv_is_that_of_pandas(rows):
    table = frame(rows).rename(columns=as_cell).map(as_cell)
    assert csv_of(rows) == table.to_csv(index=False).encode()


@given(ROWS)
def test_a_row_is_kept_exactly(row):
    kept = KeptRows(version=3, made_with="m", considered=("one.1",), rows={"one": row})
    read = KeptRows.model_validate_json(gzip.decompress(kept.encoded())).rows["one"]
    assert repr(read) == repr(row)
    assert list(read.cells) == list(row.cells)


def test_an_evaluation_reads_its_own_files_whatever_the_number_of_rows(suite, root, folder, monkeypatch):
    suite(SUITE)
    read = filesystem.read_bytes
    urls = []
    monkeypatch.setattr(filesystem, "read_bytes", lambda url, *span: (urls.append(url), read(url, *span))[1])
    evaluate(root, folder, "own", "a")
    counts = []
    for name in ("b", "c", "d"):
        evaluate(root, folder, "own", name)
        urls.clear()
        add(root, "own", name)
        counts.append(len(urls))
        others = {"a", "b", "c", "d"} - {name}
        assert not [url for url in urls if f"/{url.rsplit('/')[-1]}" in {f"/{one}.json" for one in others}]
        assert not [url for url in urls for one in others if f"/runs/{one}/" in url]
    assert counts[0] == counts[-1]


def test_another_suite_with_the_same_records_is_noticed(suite, root, folder):
    suite(SUITE)
    suite(OTHER, "other")
    evaluate(root, folder, "own", "a", until=0)
    evaluate(root, folder, "other", "a", 0.75)
    rows = evaluate(root, folder, "own", "b")
    assert rows[-1 if rows[0].checkpoint == "b" else 0].cells["demo_cloze-acc"] == Cell(0.75, 0.075)


def test_an_earlier_version_and_another_definition_make_all_rows_again(suite, root, folder, monkeypatch):
    suite(SUITE)
    evaluate(root, folder, "own", "a", 0.25)
    kept = kept_rows.read(root, "own")
    wrong = {name: replace(row, judge="stale") for name, row in kept.rows.items()}
    filesystem.write_bytes(layout.rows_url(root, "own"), kept.model_copy(update={"rows": wrong}).encoded())
    assert [row.judge for row in evaluate(root, folder, "own", "b")] == ["stale", None]  # kept rows are used
    monkeypatch.setattr("halos_eval.reports.suite_rows._code", lambda: "new")
    assert [row.judge for row in add(root, "own", "b")] == [None, None]


def test_rows_of_an_earlier_format_are_not_read(suite, root, folder):
    """Version 2 did not say which cells are current."""
    suite(SUITE)
    evaluate(root, folder, "own", "a")
    text = gzip.decompress(filesystem.read_bytes(layout.rows_url(root, "own"))).replace(b'"version":3', b'"version":2')
    filesystem.write_bytes(layout.rows_url(root, "own"), gzip.compress(text))
    assert kept_rows.read(root, "own") is None
    assert [row.checkpoint for row in kept_rows.of_others(root, "own", "b")] == ["a"]


NEWER = gzip.compress(b'{"version": 4}', mtime=0)


@pytest.mark.parametrize("data", [b"", b"text", gzip.compress(b"{}", mtime=0), NEWER, NEWER[:15]])
def test_damaged_rows_are_made_again(suite, root, folder, data):
    suite(SUITE)
    evaluate(root, folder, "own", "a")
    before = table(root, "own")
    filesystem.write_bytes(layout.rows_url(root, "own"), data)
    add(root, "own", "a")
    assert json.loads(gzip.decompress(table(root, "own")[1]))["rows"].keys() == {"a"}
    assert table(root, "own")[0] == before[0]


def times(folder):
    """Times of everything in a folder, by path."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_table_elsewhere_changes_nothing_in_the_store(suite, root, folder, tmp_path):
    suite(SUITE)
    evaluate(root, folder, "own", "a")
    before = times(tmp_path / "store")
    summarize(SummarizeConfig(root=root, suite="own", output=str(tmp_path / "table.csv")))
    assert times(tmp_path / "store") == before
    assert (tmp_path / "table.csv").read_bytes() == table(root, "own")[0]


def test_a_checkpoint_needs_a_suite_and_a_plan(suite, root, folder):
    with pytest.raises(ValidationError, match="--checkpoint requires --suite"):
        SummarizeConfig(root=root, checkpoint="a")
    with pytest.raises(ValidationError, match="invalid checkpoint name"):
        SummarizeConfig(root=root, suite="own", checkpoint="../a")
    suite(SUITE)
    evaluate(root, folder, "own", "a")
    with pytest.raises(BadInput, match="no plan of own for b: evaluate it first"):
        add(root, "own", "b")


def _add_all(root, names, start):
    start.wait()
    for name in names:
        add(root, "own", name)


def test_processes_that_end_together_lose_no_row(suite, root, folder):
    suite(SUITE)
    names = [f"{one}{number}" for one in "ab" for number in range(4)]
    for name in names:
        evaluate(root, folder, "own", name, until=0)
    for name in names:  # the records arrive, and nobody has noticed yet
        plan = make_plan(load_suite("own"), Checkpoint(name=name, location=str(folder)), root, load_cluster())
        for job in plan.jobs:
            finish(job, scores=(Score(task=job.part, metric="acc", value=0.5),))
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    workers = [context.Process(target=_add_all, args=(root, names[half::2], start)) for half in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert table(root, "own") == rebuilt(root, "own")
    assert all(row.complete for row in kept_rows.read(root, "own").rows.values())


def test_a_row_that_another_process_lost_is_noticed(suite, root, folder):
    suite(SUITE)
    evaluate(root, folder, "own", "a")
    before = filesystem.read_bytes(layout.rows_url(root, "own"))
    evaluate(root, folder, "own", "b")
    filesystem.write_bytes(layout.rows_url(root, "own"), before)  # its store has no conditional writes
    assert [row.checkpoint for row in evaluate(root, folder, "own", "c")] == ["a", "b", "c"]


def test_a_plan_without_a_summary_is_in_the_next_one(suite, root, folder):
    suite(SUITE)
    evaluate(root, folder, "own", "a")
    plan = make_plan(load_suite("own"), Checkpoint(name="b", location=str(folder)), root, load_cluster())
    save_plan(plan, load_suite("own"), root)
    assert [row.checkpoint for row in evaluate(root, folder, "own", "c")] == ["a", "c", "b"]  # b is of no series


def test_many_rows_are_read_by_several_processes(suite, root, folder, monkeypatch):
    suite(SUITE)
    for name in "abc":
        evaluate(root, folder, "own", name)
    monkeypatch.setattr(kept_rows, "SHARE", 1)
    assert kept_rows.rebuild(root, "own", processes=2) == kept_rows.rebuild(root, "own")

"""The table of records without a suite: rows of models, and the record that is shown for each part."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.reports import records
from halos_eval.reports.table import document
from halos_eval.storage.records import CheckpointRef, Coverage, Score
from tests.doubles import NOW, make_record


def score(task, metric="acc", value=0.5, **more):
    return Score(task=task, metric=metric, value=value, **more)


WIN_RATES = (score("alpaca_eval", "win_rate", 26.5, stderr=1.25, higher_is_better=True),)
GSM8K = (
    score("gsm8k", "exact_match", 0.25, filter="strict-match", stderr=0.01),
    score("gsm8k", "exact_match", 0.75, filter="flexible-extract", stderr=0.02),
)


def rows_of_records(found):
    """The cells of the CSV."""
    return [document(row) for row in records.rows_of_records(found)]


def record(task, value, location="/one", digest="d", name=None, hour=0, limit=None, revision=None, **settings):
    """The record of a task at a location."""
    reference = CheckpointRef(
        name=name or location.removesuffix("/FINAL").split("/")[-1], location=location, digest=digest
    )
    one = make_record(
        task=task,
        ended=NOW + timedelta(hours=hour),
        scores=[score(task, value=value)],
        identity={"settings": {"limit": limit, **settings}},
    )
    provenance = one.provenance.model_copy(update={"config": {"revision": revision}})
    return one.model_copy(update={"checkpoint": reference, "provenance": provenance})


def judged(generator, hour=0, value=26.5, file="/work/outputs.json", judge="gpt"):
    """The judgement of outputs that the sample stage did not write; they name their generator."""
    reference = CheckpointRef(name=generator, location=file, digest="of the file")
    win_rate = WIN_RATES[0].model_copy(update={"value": value})
    one = make_record("judge", ended=NOW + timedelta(hours=hour), scores=[win_rate])
    provenance = one.provenance.model_copy(update={"inputs": {"judge_model": judge}})
    identity = {"inputs": {"outputs": "of the file"}}
    return one.model_copy(update={"checkpoint": reference, "identity": identity, "provenance": provenance})


def test_the_newest_record_of_a_task_counts():
    records = [
        make_record(task="arc", ended=NOW + timedelta(hours=hour), scores=[score("arc", value=hour / 10)])
        for hour in (1, 3, 2)
    ]
    (row,) = rows_of_records(records)
    assert (row["arc-acc"], row["avg"]) == (0.3, 0.3)
    assert row["status"] == "complete; warning: arc: not shown: an older record, with the same settings"


def test_records_without_a_suite():
    records = [
        make_record("sample"),
        make_record("judge", scores=WIN_RATES, missing={"alpaca_eval-length_controlled_winrate": "why"}),
        make_record(task="arc", scores=[score("arc", value=0.2)]),
        make_record(task="gsm8k", scores=GSM8K),
        make_record(task="arc", name="two", scores=[score("arc", value=0.3)]),
    ]
    one, two = rows_of_records(records)
    assert (one["model_name"], one["alpacaeval_wr"], one["avg"]) == ("one", 26.5, 0.475)
    assert one["status"] == "alpacaeval_lcwr: why"
    # an average over other tasks would not be comparable with the first
    assert two == {"model_name": "two", "arc-acc": 0.3, "status": "gsm8k: no record"}


def test_a_judgement_of_outputs_without_a_sample_record_is_in_the_row():
    judged = make_record("judge", scores=WIN_RATES)
    file = judged.checkpoint.model_copy(update={"digest": "of the file"})
    judged = judged.model_copy(update={"checkpoint": file, "identity": {"inputs": {"outputs": "of the file"}}})
    arc = make_record(task="arc", scores=[score("arc", value=0.2)])
    before = arc.provenance.model_copy(update={"ended": arc.provenance.ended - timedelta(days=1)})
    for found in ([judged, arc], [judged, arc.model_copy(update={"provenance": before})]):
        (row,) = rows_of_records(found)
        assert (row["alpacaeval_wr"], row["arc-acc"]) == (26.5, 0.2)


def test_records_of_older_weights_are_left_out():
    arc = make_record(task="arc", scores=[score("arc", value=0.2)])
    old = arc.checkpoint.model_copy(update={"digest": "older weights"})
    before = arc.provenance.model_copy(update={"ended": arc.provenance.ended - timedelta(days=1)})
    gsm8k = make_record(task="gsm8k", scores=GSM8K).model_copy(update={"checkpoint": old, "provenance": before})
    assert rows_of_records([gsm8k, arc]) == [{"model_name": "one", "arc-acc": 0.2, "avg": 0.2, "status": "complete"}]


def test_checkpoints_with_the_same_last_folder_are_two_rows():
    found = [record("arc", 0.2, "/runs/expA/step-1000"), record("arc", 0.3, "/runs/expB/step-1000/FINAL")]
    assert {row["model_name"]: row["avg"] for row in rows_of_records(found)} == {
        "expA/step-1000": 0.2,
        "expB/step-1000": 0.3,
    }


def test_one_location_has_several_spellings():
    found = [record("arc", 0.2, "/runs/kto/FINAL", name="kto"), record("sciq", 0.4, "/runs//kto/FINAL/", name="kto")]
    (row,) = rows_of_records(found)
    assert (row["arc-acc"], row["sciq-acc"], row["avg"], row["status"]) == (0.2, 0.4, 0.3, "complete")


@pytest.mark.parametrize("hour", [-1, 1])
def test_a_full_run_overrides_a_trial_whenever_it_ran(hour):
    (row,) = rows_of_records([record("arc", 0.2), record("arc", 0.9, limit=2, hour=hour)])
    assert row == {"model_name": "one", "arc-acc": 0.2, "avg": 0.2, "status": "complete"}


def test_a_trial_says_so():
    (row,) = rows_of_records([record("arc", 0.9, limit=2)])
    assert (row["arc-acc"], row["arc-limit"], row["status"]) == (0.9, 2, "complete; trial: limit 2")


def test_a_trial_has_no_average_beside_full_runs():
    full, trial = rows_of_records([record("arc", 0.2, "/a"), record("arc", 0.9, "/b", limit=2)])
    assert (full["avg"], full["status"]) == (0.2, "complete")
    assert "avg" not in trial
    assert trial["status"] == "avg: other rows have more documents of arc; trial: limit 2"


@pytest.mark.parametrize(
    "generator", ["/models/smollm2-135m/FINAL", "smollm2-135m", "/elsewhere/smollm2-135m", "/data/smollm2-135m/"]
)
def test_judged_outputs_are_in_the_row_of_their_generator(generator):
    (row,) = rows_of_records([record("arc", 0.2, "/data/smollm2-135m/FINAL"), judged(generator)])
    assert (row["model_name"], row["alpacaeval_wr"], row["arc-acc"]) == ("smollm2-135m", 26.5, 0.2)


def test_a_generator_that_may_be_two_models_has_a_row_of_its_own():
    found = [record("arc", 0.2, "/x/kto"), record("arc", 0.3, "/y/kto"), judged("/z/kto/FINAL")]
    rows = {row["model_name"]: row.get("alpacaeval_wr") for row in rows_of_records(found)}
    assert rows == {"x/kto": None, "y/kto": None, "kto (outputs.json)": 26.5}
    one, two = rows_of_records([*found[:2], judged("/y/kto/FINAL")])
    assert (one.get("alpacaeval_wr"), two["alpacaeval_wr"]) == (None, 26.5)


@pytest.mark.parametrize(("name", "wins"), [(None, [None, 26.5]), ("x/kto", [26.5, None])])
def test_the_users_name_and_then_the_generators_path_count_more_than_the_short_name(name, wins):
    found = judged("kto")
    more = {"inputs": found.provenance.inputs | {"generator": "/y/kto"}, "config": {"name": name}}
    found = found.model_copy(update={"provenance": found.provenance.model_copy(update=more)})
    rows = rows_of_records([record("arc", 0.2, "/x/kto", name="x/kto"), record("arc", 0.3, "/y/kto"), found])
    assert [row.get("alpacaeval_wr") for row in sorted(rows, key=lambda row: row["arc-acc"])] == wins


def test_outputs_of_weights_that_were_replaced_since_are_not_credited_to_the_new_ones():
    found = [record("arc", 0.2, "/m/kto", "old"), record("arc", 0.3, "/m/kto", "new", hour=1), judged("/m/kto")]
    rows = {row["model_name"]: row.get("alpacaeval_wr") for row in rows_of_records(found)}
    assert rows == {"m/kto": None, "kto (outputs.json)": 26.5}


def test_two_revisions_of_a_repository_are_two_models():
    found = [record("arc", 0.2, "org/m", "hub:1", revision="a"), record("arc", 0.3, "org/m", "hub:2", revision="b")]
    assert {row["model_name"]: row["avg"] for row in rows_of_records(found)} == {"m@a": 0.2, "m@b": 0.3}
    (row,) = rows_of_records(found[:1])
    assert row["model_name"] == "m"


def test_a_file_that_had_outputs_of_another_model_before_is_in_both_rows():
    found = [record("arc", 0.2, "/m/kto"), record("arc", 0.3, "/m/dpo"), judged("/m/kto", value=20)]
    later = judged("/m/dpo", hour=1, value=30)
    reference = later.checkpoint.model_copy(update={"digest": "of the file later"})
    later = later.model_copy(update={"checkpoint": reference, "identity": {"inputs": {"outputs": "of the file later"}}})
    rows = {row["model_name"]: row["alpacaeval_wr"] for row in rows_of_records([*found, later])}
    assert rows == {"dpo": 30, "kto": 20}


def test_a_step_of_another_experiment_is_not_the_generator():
    found = [record("arc", 0.2, "/runs/expA/step-1000"), judged("/runs/expB/step-1000")]
    assert [row.get("alpacaeval_wr") for row in rows_of_records(found)] == [None, 26.5]


def test_a_checkpoint_called_reference_is_one_like_others():
    (row,) = rows_of_records([record("arc", 0.2, "/runs/reference"), judged("reference")])
    assert (row["model_name"], row["arc-acc"], row["alpacaeval_wr"]) == ("reference", 0.2, 26.5)


def test_a_record_that_is_not_shown_is_named():
    found = [record("arc", 0.2, num_fewshot=5), record("arc", 0.3, num_fewshot=0, hour=1)]
    found += [judged("one", value=30), judged("one", hour=1)]
    (row,) = rows_of_records(found)
    assert (row["arc-acc"], row["alpacaeval_wr"]) == (0.3, 26.5)
    assert row["status"] == (
        "complete; warning: alpacaeval: not shown: an older record, with the same settings; "
        "warning: arc: not shown: an older record, with num_fewshot=5"
    )


def test_two_judges_are_never_in_one_column():
    """The judge of most models has the usual columns, in all rows."""
    found = [judged("one", judge="gpt-4.1", value=10), judged("one", judge="gpt-4.1-mini", value=20, hour=1)]
    found += [judged("two", judge="gpt-4.1-mini", value=30, file="/two.json")]
    found += [judged("three", judge="gpt-4.1", value=40, file="/three.json", hour=2)]
    found += [judged("four", judge="gpt-4.1", value=50, file="/four.json", hour=3)]
    four, one, three, two = rows_of_records(found)
    assert (one["alpacaeval_wr"], one["alpacaeval_wr@gpt-4.1-mini"]) == (10, 20)
    assert (one["alpacaeval_judge"], one["alpacaeval_judge@gpt-4.1-mini"]) == ("gpt-4.1", "gpt-4.1-mini")
    assert ("alpacaeval_wr" in two, two["alpacaeval_wr@gpt-4.1-mini"]) == (False, 30)
    assert (three["alpacaeval_wr"], four["alpacaeval_wr"]) == (40, 50)
    assert {one["status"] for one in (one, two, three, four)} == {"complete"}


def against(reference, generator, digest=None, **more):
    """A judgement that compares with the file ``reference``, whose content has this digest."""
    one = judged(generator, file=f"/{generator}.json", **more)
    identity = {"inputs": one.identity["inputs"] | {"reference": digest or reference}}
    provenance = one.provenance.model_copy(update={"config": {"reference": reference}})
    return one.model_copy(update={"identity": identity, "provenance": provenance})


def test_win_rates_against_two_references_are_never_in_one_column():
    """A win rate of 90 % against a weak reference is no better than one of 10 % against a strong one."""
    found = [against("alpaca_eval", "one", value=10), against("/lab/weak.json", "two", value=90, hour=1)]
    found += [against("alpaca_eval", "three", value=20), against("/lab/weak.json", "three", value=80)]
    found += [against("/other/weak.json", "one", "other", value=70), against("alpaca_eval", "four", value=30)]
    four, one, three, two = rows_of_records(found)
    assert [row.get("alpacaeval_wr") for row in (one, two, three, four)] == [10, None, 20, 30]
    assert [row.get("alpacaeval_wr@gpt-against-weak") for row in (one, two, three, four)] == [None, 90, 80, None]
    # another file of the same name has columns of its own, too
    assert [one[name] for name in one if re.fullmatch("alpacaeval_wr@gpt-against-weak-[0-9a-f]{6}", name)] == [70]
    assert {row["status"] for row in (one, two, three, four)} == {"complete"}


def test_the_same_reference_under_another_name_is_the_same():
    one, two = rows_of_records([against("/a.json", "one", "same"), against("/b.json", "two", "same", hour=1)])
    assert one.keys() == two.keys()


def test_another_judge_of_another_reference_is_called_by_both():
    found = [against("demo", "one"), against("demo", "two"), against("/weak.json", "two", judge="mini")]
    assert rows_of_records(found)[1]["alpacaeval_judge@mini-against-weak"] == "mini"


def test_two_records_with_one_column_have_no_average():
    tag = record("arc", 0.9).model_copy(update={"scores": (score("arc_easy", value=0.6), score("arc_challenge"))})
    (row,) = rows_of_records([tag, record("arc_easy", 0.7, hour=1)])
    assert (row["arc_easy-acc"], row["arc_challenge-acc"], "avg" in row) == (0.7, 0.5, False)
    assert row["status"] == "avg: arc_easy and arc both have arc_easy-acc (that of arc_easy is shown)"


def test_the_counts_are_those_of_the_outputs_that_were_judged():
    def sampled(fingerprint, empty, hour):
        details = {"avg_length": 9.5, "cut_at_max_tokens": 0, "empty": empty}
        coverage = Coverage(attempted=805, scored=805)
        ended = NOW + timedelta(hours=hour)
        return make_record("sample", fingerprint=fingerprint, details=details, coverage=coverage, ended=ended)

    coverage = Coverage(attempted=805, scored=805)
    judge = make_record("judge", scores=WIN_RATES, identity={"inputs": {"outputs": "first"}}, coverage=coverage)
    (row,) = records.rows_of_records([sampled("first", 3, 0), sampled("second", 400, 1), judge])
    assert row.counts == {"alpacaeval_n_cut": 0, "alpacaeval_n_empty": 3, "alpacaeval_n_unread": 0}
    assert row.warnings == ()


LOCATIONS = st.sampled_from(["/a/step-1", "/b/step-1", "/b/step-1/FINAL", "/b/kto", "/c/kto", "org/kto"])
RECORDS = st.lists(
    st.one_of(
        st.builds(
            record,
            task=st.sampled_from(["arc", "sciq"]),
            value=st.sampled_from([0.1, 0.2]),
            location=LOCATIONS,
            digest=st.sampled_from(["d", "e"]),
            revision=st.sampled_from([None, "a"]),
            hour=st.integers(0, 2),
            limit=st.sampled_from([None, None, 2, 5]),
        ),
        st.builds(judged, generator=LOCATIONS, hour=st.integers(0, 2), file=st.sampled_from(["/x.json", "/y.json"])),
    ),
    min_size=1,
    max_size=8,
)


@given(found=RECORDS, data=st.data())
def test_any_order_of_records_gives_the_same_table(found, data):
    rows = records.rows_of_records(found)
    assert records.rows_of_records(data.draw(st.permutations(found))) == rows
    names = [row.checkpoint for row in rows]
    assert names == sorted(set(names))


@given(found=RECORDS)
def test_every_score_that_is_shown_is_of_the_rows_model(found):
    """The models of a table, and the values of each, recomputed from the records."""
    values = {}
    for one in found:
        if one.stage == "harness":
            values.setdefault((one.checkpoint.location, one.checkpoint.digest), {}).setdefault(
                f"{one.task}-acc", set()
            ).add((one.identity["settings"]["limit"] or 1000, one.scores[0].value))
    best = [
        {column: {value for limit, value in all_ if limit == max(all_)[0]} for column, all_ in columns.items()}
        for columns in values.values()
    ]
    for row in records.rows_of_records(found):
        cells = {column: cell.value for column, cell in row.cells.items() if column.endswith("-acc")}
        if cells:
            assert any(
                cells.keys() == columns.keys() and all(cells[column] in columns[column] for column in cells)
                for columns in best
            )

"""Counts and warnings."""

from __future__ import annotations

import pytest

from halos_eval.config.suite import Suite
from halos_eval.planning.definition import Definitions
from halos_eval.reports.remarks import answered_as, counts_of, describe_limits, trial_of, warnings_of
from halos_eval.reports.results import Missing, Row
from halos_eval.reports.table import in_order, short_status, status
from halos_eval.storage.records import Coverage
from tests.doubles import make_record
from tests.reports.pandas_table import frame

ALL = Coverage(attempted=805, scored=805)


def sampled(**details):
    return make_record("sample", details={"avg_length": 9.5, **details}, coverage=ALL)


def test_each_count_has_its_column():
    records = [
        sampled(cut_at_max_tokens=12, empty=0),
        make_record("judge", coverage=Coverage(attempted=805, scored=803), missing={"alpaca_eval-n_total": "2 lost"}),
        make_record(
            task="arc",
            details={"truncated_prompts": 3, "dropped_system_texts": 0},
            coverage=Coverage(attempted=20, scored=19),
            identity={"settings": {"limit": 20}},
        ),
        make_record(task="sciq", coverage=Coverage(attempted=9, scored=9), identity={"settings": {"limit": None}}),
    ]
    assert counts_of(records) == {
        "alpacaeval_n_cut": 12,
        "alpacaeval_n_empty": 0,
        "alpacaeval_n_unread": 2,
        "arc-n_truncated_prompts": 3,
        "arc-n_dropped_system_texts": 0,
        "arc-n_unscored": 1,
        "arc-limit": 20,
        "sciq-n_unscored": 0,
    }
    assert trial_of(records) == "limit 20 for arc"


def test_thinking_has_columns_and_warnings():
    coverage = Coverage(attempted=20, scored=19)
    details = {"cut_at_max_tokens": 1, "unended_thinking": 2, "without_thinking": 0, "generated_answers": 20}
    records = [
        make_record(task="aime", details=details, coverage=coverage, identity={"settings": {"limit": 0.1}}),
        sampled(undeclared_thinking=800),
    ]
    assert (
        counts_of(records).items()
        >= {
            "aime-n_cut": 1,
            "aime-n_unended_thinking": 2,
            "aime-n_without_thinking": 0,
            "aime-n_unscored": 1,
            "aime-limit": 0.1,
            "alpacaeval_n_undeclared_thinking": 800,
        }.items()
    )
    warnings = warnings_of(records, 0.06)
    assert warnings[0] == "aime: 2 of 20 answers ended within their thinking, so they are empty"
    assert warnings[1].startswith("alpacaeval: 800 of 805 answers contain thinking that nothing declares")
    assert len(warnings) == 2
    assert trial_of(records) == "limit 0.1"


def test_answers_are_counted_among_answers_and_documents_among_documents():
    """164 documents of HumanEval with 64 answers each: 100 of these are 1 %."""
    coverage = Coverage(attempted=164, scored=164)
    details = {"cut_at_max_tokens": 500, "empty": 100, "truncated_prompts": 2, "generated_answers": 10_496}
    record = make_record(task="humaneval_64", details=details, coverage=coverage)
    assert warnings_of([record], 0.01) == [
        "humaneval_64: 500 of 10496 answers were cut at max_tokens", "humaneval_64: 2 of 164 prompts were truncated",
    ]  # fmt: skip


def test_an_older_record_does_not_say_of_how_many_answers():
    coverage = Coverage(attempted=164, scored=164)
    record = make_record(task="humaneval_64", details={"cut_at_max_tokens": 500, "empty": 1}, coverage=coverage)
    assert warnings_of([record], 0.01) == ["humaneval_64: 500 answers were cut at max_tokens"]


def judged_by(*names, checkpoint="one", judge="gpt-4.1", series=1):
    return Row(checkpoint, judge=judge, judge_versions=names, series=series)


def warned(*rows):
    return {row.checkpoint: row.warnings for row in in_order(rows)}


def test_two_versions_of_a_judge_in_one_column_are_reported():
    old, new = judged_by("gpt-4.1-2025-04-14"), judged_by("gpt-4.1-2026-01-01", checkpoint="two")
    assert warned(old, new) == {
        "one": ("alpacaeval: judged by gpt-4.1-2025-04-14, and other rows by gpt-4.1-2026-01-01",),
        "two": ("alpacaeval: judged by gpt-4.1-2026-01-01, and other rows by gpt-4.1-2025-04-14",),
    }
    assert warned(judged_by("a", "b")) == {"one": ("alpacaeval: judged by a, b",)}
    others = [judged_by("b", checkpoint="two", judge="mini"), judged_by("c", checkpoint="three", series=2)]
    unknown = judged_by(checkpoint="four")  # its record was written before names were kept
    assert set(warned(judged_by("a"), *others, unknown).values()) == {()}


def test_the_names_under_which_a_judge_answered_come_from_its_record():
    record = make_record("judge")
    assert answered_as(record) == ()
    inputs = record.provenance.inputs | {"judge_answered_as": '["a", "b"]'}
    assert answered_as(
        record.model_copy(update={"provenance": record.provenance.model_copy(update={"inputs": inputs})})
    ) == ("a", "b")


@pytest.mark.parametrize(("empty", "warned"), [(0, False), (8, False), (9, True), (805, True)])
def test_a_warning_is_for_more_than_the_threshold(empty, warned):
    """8 of 805 are 0.99 %, and 9 are 1.12 %."""
    assert warnings_of([sampled(empty=empty)], 0.01) == (
        [f"alpacaeval: {empty} of 805 answers are empty"] if warned else []
    )


def test_thresholds_of_all_and_of_none():
    assert warnings_of([sampled(empty=1)], 0) == ["alpacaeval: 1 of 805 answers are empty"]
    assert warnings_of([sampled(empty=0)], 0) == []
    assert warnings_of([sampled(empty=805)], 1) == []


def test_unreadable_judgements_are_a_warning_with_the_first_refusal():
    reason = "25 of 805 answers could not be read (refused: 400 content filter)"
    record = make_record("judge", coverage=Coverage(attempted=805, scored=780), missing={"alpaca_eval-n_total": reason})
    warning = "alpacaeval: 25 of 805 judgements could not be read (refused: 400 content filter)"
    assert warnings_of([record], 0.01) == [warning]


def test_judgements_of_cut_outputs_are_not_unreadable():
    def judged(scored, reason):
        coverage = Coverage(attempted=805, scored=scored)
        missing = {"alpaca_eval-n_total": reason} if reason else {}
        return make_record("judge", coverage=coverage, missing=missing, details={"cut_outputs": 30})

    assert counts_of([judged(775, "")]) == {"alpacaeval_n_unread": 0}
    # Earlier versions counted them as unreadable in the reason.
    some = judged(765, "40 of 805 answers could not be read (refused: 400 content filter)")
    assert counts_of([some]) == {"alpacaeval_n_unread": 10}
    warning = "alpacaeval: 10 of 775 judgements could not be read (refused: 400 content filter)"
    assert warnings_of([some], 0.01) == [warning]


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({}, ""),
        ({"a": None}, ""),
        ({"a": 2, "b": 2}, "limit 2"),
        ({"a": 2, "b": None, "c": 2}, "limit 2 for a, c"),
        ({"a": 20, "b": 3}, "limit 3 for b, limit 20 for a"),
        ({"a": "0.1"}, "limit 0.1"),
    ],
)
def test_limits_in_words(limits, words):
    assert describe_limits(limits) == words


@pytest.mark.parametrize("share", [-0.1, 1.1, "much"])
def test_a_threshold_is_a_share(share):
    with pytest.raises(ValueError, match="warn_above"):
        Suite(name="s", tasks={"arc": {}}, warn_above=share)


def test_a_threshold_changes_no_definition():
    one, two = (Suite(name="s", tasks={"arc": {}}, warn_above=share) for share in (0.1, 0.2))
    assert Definitions(one).document.parts == Definitions(two).document.parts
    assert Definitions(one).own == Definitions(two).own


GONE = Missing("arc", "no result")


@pytest.mark.parametrize(
    ("row", "long", "short"),
    [
        (Row("m"), ["complete"], "complete"),
        (Row("m", warnings=("w",)), ["complete", "warning: w"], "complete, 1 warning"),
        (Row("m", missing=(GONE,), warnings=("w", "x")), None, "1 missing, 2 warnings"),
        (Row("m", trial="limit 2"), ["complete", "trial: limit 2"], "complete, trial"),
        (Row("m", missing=None), [], ""),
        (Row("m", missing=None, trial="limit 2"), ["trial: limit 2"], "trial"),
    ],
)
def test_a_row_with_warnings_is_still_complete(row, long, short):
    if long is not None:
        assert status(row) == long
    assert short_status(row.missing, row.trial, row.warnings) == short


def test_a_count_is_a_column_if_it_is_not_0_everywhere():
    rows = [
        Row("a", counts={"arc-n_unscored": 0, "alpacaeval_n_empty": 0}),
        Row("b", counts={"arc-n_unscored": 2, "alpacaeval_n_empty": 0}),
        Row("c"),
    ]
    csv = frame(rows).to_csv(index=False)
    assert csv == "model_name,arc-n_unscored,status\na,0,complete\nb,2,complete\nc,,complete\n"

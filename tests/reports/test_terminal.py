"""The summary in a terminal: the columns that fit, the hidden ones, and the reasons for missing results."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from halos_eval.reports.results import Cell, Missing, Row
from halos_eval.reports.terminal import Summary

LONG = "halos-llama3-8b-instruct-kto-lr5e-7-beta0.1-epoch2"
LENGTH = Missing("alpacaeval_lcwr", "length control is defined for AlpacaEval's own 805 instructions only")


def printed(rows, width=80):
    """Return the lines of a table of ``rows`` in a console of ``width``."""
    console = Console(width=width, record=True, file=StringIO())
    console.print(Summary(rows, "summary.csv"))
    return [line.rstrip() for line in console.export_text().splitlines()]


def cells(lines):
    """The cells of a printed table, by the text in the first column."""
    split = [[cell.strip() for cell in line.strip("│┃").split("┃" if "┃" in line else "│")] for line in lines]
    return {row[0]: row[1:] for line, row in zip(lines, split, strict=True) if line[:1] in {"│", "┃"}}


def rows_of(count, *missing):
    """Many checkpoints, as a lab has them after a month."""
    return [
        Row(
            f"kto-{number:02}",
            {"alpacaeval_wr": Cell(46.0 + number, 5.9), "ifeval-prompt_level_strict_acc": Cell(0.4, 0.0211)},
            average=0.5,
            missing=missing,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("width", [80, 120, 240])
def test_as_many_checkpoints_as_fit_are_shown_and_the_others_counted(width):
    lines = printed(rows_of(30), width)
    names = cells(lines)[""]
    assert max(map(len, lines)) <= width
    assert names == [f"kto-{number:02}" for number in range(len(names))]
    assert f"{30 - len(names)} more checkpoints: see summary.csv" in lines
    # one more would not fit
    assert max(map(len, lines)) + len(" 0.4 ±0.021 │") > width


def test_thirty_checkpoints_at_80_columns():
    lines = printed(rows_of(30))
    assert cells(lines) == {
        "": ["kto-00", "kto-01", "kto-02"],
        "alpacaeval_wr": ["46 ±5.9", "47 ±5.9", "48 ±5.9"],
        "ifeval-prompt_level_strict_acc": ["0.4 ±0.021"] * 3,
        "avg": ["0.5"] * 3,
        "status": ["complete"] * 3,
    }
    assert lines[-1] == "27 more checkpoints: see summary.csv"


def test_nothing_is_said_of_what_is_hidden_where_all_fit():
    assert not [line for line in printed(rows_of(2)) if "more checkpoint" in line]
    assert [line for line in printed(rows_of(4)) if "more" in line] == ["1 more checkpoint: see summary.csv"]


@pytest.mark.parametrize("width", [20, 40, 80])
def test_long_names_are_folded_and_numbers_are_not(width):
    """At any width the first checkpoint is shown, with all metrics."""
    task = "demo_arithmetic-exact_match,flexible-extract"
    rows = [Row(LONG, {task: Cell(0.1)}, LONG)] * 5
    lines = printed(rows, width)
    assert max(map(len, lines)) <= width
    shown = [line[1:-1].replace("┃", "│").split("│") for line in lines if line[:1] in {"│", "┃"}]
    assert "".join(row[0].strip() for row in shown) == f"alpacaeval_judge{task}status"
    assert "".join(row[1].strip() for row in shown) == f"{LONG}{LONG}0.1complete"
    assert "more checkpoints: see" in " ".join(lines)


def test_names_are_whole_where_there_is_room():
    assert cells(printed([Row(LONG, average=0.1)], 120))[""] == [LONG]


def test_the_status_is_short_and_the_reasons_stand_below():
    both = Row("orpo", missing=(LENGTH, Missing("mmlu", "no token")))
    lines = printed([*rows_of(2, LENGTH), both], 120)
    assert cells(lines)["status"] == ["1 missing", "1 missing", "2 missing"]
    assert lines[-3:] == ["Missing, and why:", f"- {LENGTH} (kto-00, kto-01, orpo)", "- mmlu: no token (orpo)"]


def test_a_reason_of_many_checkpoints_names_some_of_them():
    lines = printed(rows_of(30, LENGTH))
    assert lines[-3:] == [
        "Missing, and why:",
        "- alpacaeval_lcwr: length control is defined for AlpacaEval's own 805",
        "  instructions only (kto-00, kto-01, kto-02, kto-03, kto-04, and 25 more)",
    ]


def test_a_table_without_a_status_says_nothing_of_it():
    lines = printed([Row("kto", average=0.1, missing=None)])
    assert set(cells(lines)) == {"", "avg"}
    assert lines[-1].startswith("└")


@pytest.mark.parametrize(
    ("value", "error", "cell"),
    [
        (0.123456, 0.0123, "0.1235 ±0.012"),
        (1.0, None, "1"),
        (None, None, ""),
        # the error of 0 of 16 is not 0, but unknown
        (0.0, 0.0, "0"),
        (1.0, 0.0, "1"),
        (100.0, 0.0, "100"),
        # elsewhere 0 means that all documents have the same score
        (0.5, 0.0, "0.5 ±0"),
        (1.0, 0.3, "1 ±0.3"),
    ],
)
def test_a_number_with_its_error(value, error, cell):
    score = None if value is None else Cell(value, error)
    rows = [Row(name, {"x-acc": score}) for name in ("a", "b")]
    assert cells(printed([*rows, Row("c", {"x-acc": Cell(0.25)})]))["x-acc"] == [cell, cell, "0.25"]
    assert "x-acc_stderr" not in cells(printed(rows))


def test_a_score_at_its_bound_has_a_bound_of_its_interval():
    row = Row("kto", {"a-acc": Cell(1.0, 0.0, (0.8064, 1.0)), "b-acc": Cell(0.0, 0.0, (0.0, 0.1936))})
    assert cells(printed([row])) == {
        "": ["kto"],
        "a-acc": ["1 (≥0.806)"],
        "b-acc": ["0 (≤0.194)"],
        "status": ["complete"],
    }


def test_counts_are_rows_and_warnings_stand_below():
    warning = "alpacaeval: 9 of 12 answers are empty"
    rows = [
        Row("kto", counts={"alpacaeval_n_empty": 9, "arc-n_unscored": 0}, warnings=(warning,)),
        Row("dpo", counts={"alpacaeval_n_empty": 0}, missing=(LENGTH,), trial="limit 2"),
        Row("ipo", average=0.5, average_stderr=0.012),
    ]
    lines = printed(rows, 120)
    assert cells(lines) == {
        "": ["kto", "dpo", "ipo"],
        "alpacaeval_n_empty": ["9", "0", ""],
        "avg": ["", "", "0.5 ±0.012"],
        "status": ["complete, 1 warning", "1 missing, trial", "complete"],
    }
    assert lines[-6:] == [
        "Missing, and why:",
        f"- {LENGTH} (dpo)",
        "Trials:",
        "- limit 2 (dpo)",
        "Warnings:",
        f"- {warning} (kto)",
    ]


def test_nothing_of_a_name_or_reason_is_obeyed_by_the_terminal():
    lines = printed([Row("[red]a", average=0.1, missing=(Missing("mmlu", "[/no] \x1b[31m\u202e"),))])
    assert cells(lines)[""] == ["[red]a"]
    assert lines[-1] == "- mmlu: [/no] ?[31m? ([red]a)"


def test_the_series_is_shown_where_rows_have_several():
    one, two = Row("one", {"a-acc": Cell(0.5)}, series=1), Row("two", {"a-acc": Cell(0.5)}, series=2)
    assert "series" not in cells(printed([one]))
    assert cells(printed([one, two]))["series"] == ["1", "2"]

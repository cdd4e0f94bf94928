"""Reading logs of lm_eval and alpaca_eval.

The files under ``logs/`` have the tools' real formats (lm_eval's own ``make_table``, pytablewriter for the older
columns, pandas' ``to_string``), but every figure and every model in them is made up.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.errors import BadInput
from halos_eval.reports.halos_logs import read
from halos_eval.reports.halos_logs.lm_eval import model_in_arguments
from halos_eval.reports.table import document

LOGS = Path(__file__).parent / "logs"
ALPACA_2 = {
    "alpacaeval_lcwr": 24.61,
    "alpacaeval_wr": 26.09,
    "alpacaeval_wr_stderr": 1.37,
    "alpacaeval_n_total": 803.0,
    "alpacaeval_avg_length": 1894.0,
}
HEADER = "hf (pretrained={},dtype=float), gen_kwargs: (None), limit: None, num_fewshot: None, batch_size: 1\n"
ROW = ("t", "1", "none", "0", "acc", "↑", "0.5000", "±", "0.1000")
MINE, THEIRS = "10.00  11.00  1.10  805  900", "50.00  50.00  0.00  805  999"
COLUMNS = ("Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr")


def read_logs(path):
    """The cells of the CSV."""
    return [document(row) for row in read.read_logs(path)]


def table(rows: Sequence[Sequence[str]], columns: Sequence[str] = COLUMNS) -> str:
    """Return a table as lm_eval prints it, without its alignment of numbers."""
    widths = [max(3, *(len(line[at]) for line in [columns, *rows])) for at in range(len(columns))]
    lines = [columns, ["-" * width for width in widths], *rows]
    return "".join(f"|{'|'.join(c.ljust(w) for c, w in zip(line, widths, strict=True))}|\n" for line in lines)


def leaderboard(**rows: str) -> str:
    names = "length_controlled_winrate  win_rate  standard_error  n_total  avg_length"
    return "\n".join([f"{'':<40}  {names}", *(f"{name:<40}  {cells}" for name, cells in rows.items())]) + "\n"


def published_rule(text: str) -> dict[str, float]:
    """Return the scores that HALOs' evals/scripts/summarize_metrics.py finds in tables of nine columns.

    Its rule: a row counts if its task cell is neither blank nor a subtask's, its version is whole or blank, its value
    has a decimal point and a ± follows; TASK-METRIC is the value (the last one found), with TASK-METRIC_stderr where
    the error is a number; avg is the mean of all values.
    """
    found: dict[str, float] = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 11 or cells[1] in {"", "Tasks", "Groups"} or cells[1].startswith("- ") or "--" in cells[1]:
            continue
        task, version, _, shots, metric, _, value, sign, stderr = cells[1:-1]
        if re.fullmatch(r"\d*", version) and re.fullmatch(r"\d*", shots) and re.fullmatch(r"\d+\.\d+", value) and sign:
            found[f"{task}-{metric}"] = float(value)
            if stderr != "N/A":
                found[f"{task}-{metric}_stderr"] = float(stderr)
    values = [value for key, value in found.items() if not key.endswith("_stderr")]
    return found | ({"avg": round(sum(values) / len(values), 4)} if values else {})


def read_text(folder: Path, text: str, name: str = "a.log") -> list[dict[str, str | float]]:
    (folder / name).write_text(text, encoding="utf-8")
    return read_logs(folder / name)


def test_a_halos_log_has_every_metric_and_filter_and_the_alpacaeval_row() -> None:
    assert read_logs(LOGS / "halos_old_header.log") == [
        {
            "model_name": "llama3-8b_sft_kto",
            **ALPACA_2,
            "bbh_cot_fewshot-exact_match": 0.553,
            "bbh_cot_fewshot-exact_match_stderr": 0.0057,
            "mmlu-acc": 0.6021,
            "mmlu-acc_stderr": 0.0039,
            "arc_easy-acc": 0.8142,
            "arc_easy-acc_stderr": 0.008,
            "arc_easy-acc_norm": 0.7951,
            "arc_easy-acc_norm_stderr": 0.0083,
            "gsm8k_cot-exact_match": 0.5011,
            "gsm8k_cot-exact_match_stderr": 0.0138,
            "gsm8k_cot-exact_match,strict-match": 0.4612,
            "gsm8k_cot-exact_match,strict-match_stderr": 0.0137,
            "ifeval-inst_level_loose_acc": 0.47,
            "ifeval-inst_level_strict_acc": 0.4388,
            "ifeval-prompt_level_loose_acc": 0.342,
            "ifeval-prompt_level_loose_acc_stderr": 0.0204,
            "ifeval-prompt_level_strict_acc": 0.3124,
            "ifeval-prompt_level_strict_acc_stderr": 0.0199,
            "winogrande-acc": 0.7348,
            "winogrande-acc_stderr": 0.0124,
            "avg": 0.6125,
        }
    ]


@pytest.mark.parametrize("name", ["halos_old_header.log", "two_runs.log"])
def test_nothing_that_the_original_finds_in_an_ordinary_log_is_lost(name: str, tmp_path: Path) -> None:
    for run in re.split(r"(?=hf \(pretrained=)", (LOGS / name).read_text(encoding="utf-8"))[1:]:
        expected = published_rule(run)
        assert expected
        (row,) = read_text(tmp_path, run)
        assert {key: row.get(key) for key in expected} == expected


def test_a_printed_dictionary_names_the_model_and_odd_values_are_read() -> None:
    (row,) = read_logs(LOGS / "new_header.log")
    assert row["model_name"] == "llama3-8b, sft (v2)"
    assert row["sure_thing-acc"] == 1.0
    assert row["wikitext-word_perplexity"] == 12345.6789
    assert "wikitext-word_perplexity_stderr" not in row
    assert "no_samples-acc" not in row
    # HALOs averages the others, which is not comparable with the average of a model that has a number there.
    assert "avg" not in row
    assert row["status"] == "no_samples-acc: the log has no number"


def test_tables_before_0_4_3_have_no_direction_column() -> None:
    (row,) = read_logs(LOGS / "lm_eval_0_4_2.log")
    assert row == {
        "model_name": "pythia1-4b_dpo",
        "hellaswag-acc": 0.4033,
        "hellaswag-acc_stderr": 0.0049,
        "hellaswag-acc_norm": 0.519,
        "hellaswag-acc_norm_stderr": 0.005,
        "mmlu-acc": 0.255,
        "mmlu-acc_stderr": 0.0037,
        "wikitext-word_perplexity": 14.7273,
        "wikitext-byte_perplexity": 1.6536,
        "avg": round((0.4033 + 0.255) / 2, 4),
        "avg_stderr": pytest.approx(math.hypot(0.0049, 0.0037) / 2),
    }


def test_each_table_belongs_to_the_header_above_it() -> None:
    run_a, run_b = read_logs(LOGS / "two_runs.log")
    assert (run_a["model_name"], run_a["winogrande-acc"], run_a["piqa-acc"]) == ("run_a", 0.7111, 0.7905)
    assert (run_b["model_name"], run_b["winogrande-acc"], run_b["piqa-acc"]) == ("run_b", 0.7222, 0.8)


@pytest.mark.parametrize(
    ("arguments", "model"),
    [
        ("hf (pretrained=/a/b/FINAL,tokenizer=/c/d", "b"),
        ("hf (pretrained=/a/b/FINAL/", "b"),
        ("hf (dtype=auto,pretrained=gpt2", "gpt2"),
        ("hf (pretrained=/my models/b c", "b c"),
        ("hf (pretrained=FINAL", "FINAL"),
        ("100%|##| 2/2 [00:01<00:00 (eta)]vllm ({'dtype': 'auto', 'pretrained': \"/it's/b\"", "b"),
        ('hf ({"pretrained": "/a/b,c/FINAL"', "b,c"),
        (r"hf ({'pretrained': '/a/b\'\"c'", "b'\"c"),
        ("local-completions (model=org/b,base_url=http://x/y", "b"),
        ("dummy (", None),
    ],
)
def test_model_names(arguments: str, model: str | None) -> None:
    found = model_in_arguments(arguments)
    assert (found and found.names[0]) == model


def test_alpacaeval_alone(caplog: pytest.LogCaptureFixture) -> None:
    assert read_logs(LOGS / "alpaca_2.log") == [{"model_name": "llama3-8b_sft_kto", **ALPACA_2}]
    assert read_logs(LOGS / "alpaca_1.log") == [
        {
            "model_name": "my model v1",
            "alpacaeval_wr": 81.06,
            "alpacaeval_wr_stderr": 1.38,
            "alpacaeval_n_total": 805.0,
            "alpacaeval_avg_length": 1530.0,
        }
    ]
    assert not caplog.records


def test_logs_of_one_model_are_one_row(tmp_path: Path) -> None:
    (tmp_path / "lm.log").write_text(HEADER.format("/m/llama3-8b_sft_kto/FINAL") + table([ROW]), encoding="utf-8")
    shutil.copy(LOGS / "alpaca_2.log", tmp_path)
    assert read_logs(tmp_path) == [
        {
            "model_name": "llama3-8b_sft_kto",
            "t-acc": 0.5,
            "t-acc_stderr": 0.1,
            "avg": 0.5,
            "avg_stderr": 0.1,
            **ALPACA_2,
        }
    ]


@pytest.mark.parametrize(
    ("name", "text", "models"),
    [
        ("x.log", leaderboard(mine=MINE), ["mine"]),
        ("mine_alpaca_eval.log", leaderboard(theirs=THEIRS, mine=MINE), ["mine"]),
        (
            "x.log",
            leaderboard(**{"theirs": THEIRS, "/m/mine/FINAL": MINE, "/m/earlier/FINAL": MINE}),
            ["earlier", "mine"],
        ),
        ("x.log", "Evaluating the mine outputs.\n" + leaderboard(**{"/m/old/FINAL": THEIRS, "mine": MINE}), ["mine"]),
        ("x.log", HEADER.format("/m/mine") + leaderboard(**{"a/b": THEIRS, "mine": MINE}), ["mine"]),
    ],
)
def test_which_rows_of_a_leaderboard_count(name: str, text: str, models: list[str], tmp_path: Path) -> None:
    rows = read_text(tmp_path, text, name)
    assert [row["model_name"] for row in rows] == models
    assert {row["alpacaeval_lcwr"] for row in rows} == {10.0}


def test_other_logs_tell_which_row_counts(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text(HEADER.format("/m/mine/FINAL") + table([ROW]), encoding="utf-8")
    (tmp_path / "b.log").write_text(leaderboard(theirs=THEIRS, mine=MINE), encoding="utf-8")
    (row,) = read_logs(tmp_path)
    assert (row["model_name"], row["alpacaeval_wr"], row["avg"]) == ("mine", 11.0, 0.5)


def test_rows_are_kept_when_nothing_tells_which_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = read_text(tmp_path, leaderboard(theirs=THEIRS, mine=MINE), "x.log")
    assert {row["model_name"]: row["alpacaeval_wr"] for row in rows} == {"theirs": 50.0, "mine": 11.0}
    assert "x.log: unknown which of 2" in caplog.text


def test_alpacaeval_without_scores_is_missing_not_zero(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    skipped = "INFO:root:Skipping evaluation of mine as it is already in the precomputed leaderboard.\n"
    (row,) = read_text(tmp_path, skipped + leaderboard(theirs=THEIRS, mine="  NaN  11.00  1.10  805.00  900"))
    assert (row["alpacaeval_wr"], "alpacaeval_lcwr" in row) == (11.0, False)
    assert "skipped mine, so its scores are from an earlier run" in caplog.text


def test_a_rerun_replaces_what_was_there_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for at, (name, value) in enumerate([("z.log", "0.4000"), ("y.log", "0.5000"), ("a.log", "0.5000")]):
        row = (*ROW[:6], value, *(("±", "0.1000") if name == "z.log" else ("", "")))
        (tmp_path / name).write_text(HEADER.format("m") + table([row]), encoding="utf-8")
        os.utime(tmp_path / name, (at, at))
    warning = "warning: t-acc differs, 0.4 in z.log and 0.5 in y.log"
    assert read_logs(tmp_path) == [{"model_name": "m", "t-acc": 0.5, "avg": 0.5, "status": warning}]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "in z.log" in caplog.text
    assert "in y.log" in caplog.text


@pytest.mark.parametrize("name", ["halos_old_header.log", "new_header.log", "alpaca_2.log"])
@pytest.mark.parametrize("damage", ["crlf", "foreign bytes", "timestamps", "colours", "byte order mark"])
def test_logs_as_terminals_and_schedulers_leave_them(name: str, damage: str, tmp_path: Path) -> None:
    raw = (LOGS / name).read_bytes()
    (tmp_path / "a.log").write_bytes(
        {
            "crlf": raw.replace(b"\n", b"\r\n"),
            "foreign bytes": b"\xff\xfe caf\xe9\n" + raw.replace("±".encode(), b"\xb1"),
            "timestamps": re.sub(rb"(?m)^(?=.)", b"2025-05-02 10:00:00 | INFO | ", raw),
            "colours": re.sub(rb"(?m)^(.+)$", b"\x1b]0;title\x07\x1b[1;32m\\1\x1b[0m", raw),
            "byte order mark": b"\xef\xbb\xbf" + raw,
        }[damage]
    )
    assert read_logs(tmp_path / "a.log") == read_logs(LOGS / name)


def test_a_row_whose_task_was_lost_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lost = ("", "", "none", "0", "f1", "↑", "0.9000", "±", "0.1000")
    broken = re.sub(r"(?m)^\|u .*$", "|u  [rank1] WARNING", table([ROW, ("u", *ROW[1:]), lost]))
    assert read_text(tmp_path, HEADER.format("m") + broken) == [
        {"model_name": "m", "t-acc": 0.5, "t-acc_stderr": 0.1, "avg": 0.5, "avg_stderr": 0.1}
    ]
    assert "skipped a row of metric 'f1'" in caplog.text


def test_tables_without_lm_evals_header(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mention = (
        "lm_eval --model_args pretrained=$MODEL\nInitializing hf model, with arguments: {'pretrained': '/m/b/FINAL'}\n"
    )
    assert [row["model_name"] for row in read_text(tmp_path, mention + table([ROW]))] == ["b"]
    with pytest.raises(BadInput, match="no score found"):
        read_text(tmp_path, mention + "dummy (), gen_kwargs: ({}), limit: None\n" + table([ROW]))
    assert "names its model" in caplog.text


def test_errors_name_the_remedy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(BadInput, match="does not exist; expected a log file"):
        read_logs(tmp_path / "missing")
    (tmp_path / "a.txt").write_text(HEADER.format("m") + table([ROW]), encoding="utf-8")
    (tmp_path / "b.log").mkdir()
    with pytest.raises(BadInput, match=r"contains no \*\.log file"):
        read_logs(tmp_path)
    assert read_logs(tmp_path / "a.txt")[0]["avg"] == 0.5
    (tmp_path / "c.log").write_text("Traceback\n")
    with pytest.raises(BadInput, match="Check that the evaluations finished"):
        read_logs(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "a.log")
    assert len(read_logs(tmp_path)) == 1
    assert "c.log: no score found" in caplog.text


NUMBERS = st.integers(0, 9999).map(lambda n: n / 10000)
CELLS = st.tuples(
    st.one_of(st.none(), NUMBERS, st.just(1.0), st.floats(1, 1e5).map(lambda x: round(x, 4))),
    st.sampled_from(["number", "N/A", "blank"]),
    NUMBERS,
    st.booleans(),
)
METRICS = {
    "acc": "↑",
    "acc_norm": "↑",
    "exact_match": "↑",
    "f1": "",
    "mc2": "",
    "bleu_diff": "↑",
    "word_perplexity": "↓",
}
FILTERS = ["none", "strict-match", "flexible-extract", "get-answer", "remove_whitespace"]
SCORES = st.dictionaries(st.tuples(st.sampled_from(sorted(METRICS)), st.sampled_from(FILTERS)), CELLS, min_size=1)
TASKS = st.lists(
    st.tuples(
        st.from_regex(r"[a-z][a-z0-9_]{0,11}(-[a-z0-9]{1,3})?", fullmatch=True),
        st.sampled_from([0, 0, 0, 1, 2]),
        st.sampled_from(["1", "2", "N/A", "", "Yaml"]),
        st.sampled_from(["0", "25", "", "None"]),
        SCORES,
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda task: task[0],
)
Tasks = list[tuple[str, int, str, str, dict[tuple[str, str], tuple[float | None, str, float, bool]]]]


def rendered(tasks: Tasks) -> list[list[str]]:
    """Return rows in lm_eval's form: sorted metrics, with task and version only in the first row of a task."""
    rows = []
    for task, depth, version, shots, scores in tasks:
        start = [" " * depth + "- " + task if depth else task, version]
        for (metric, filter_), (value, error, stderr, trimmed) in sorted(scores.items()):
            # pytablewriter drops the zeros of whole numbers in columns that hold text as well.
            shown = "N/A" if value is None else f"{value:.0f}" if trimmed and value == 1 else f"{value:.4f}"
            ending = {"number": ["±", f"{stderr:.4f}"], "N/A": ["±", "N/A"], "blank": ["", ""]}[error]
            rows.append([*start, filter_, shots, metric, METRICS[metric], shown, *ending])
            start = ["", ""]
    return rows


def expected_columns(tasks: Tasks) -> tuple[dict[str, float], list[str | None]]:
    """All columns, and those that ``avg`` is made of, from the figures themselves; None for a value that is missing."""
    columns: dict[str, float] = {}
    averaged: list[str | None] = []
    for task, depth, _, _, scores in tasks:
        seen: set[str] = set()
        for at, ((metric, filter_), (value, error, stderr, _)) in enumerate(sorted(scores.items())):
            column = f"{task}-{metric},{filter_}" if metric in seen else f"{task}-{metric}"
            seen.add(metric)
            if depth:
                continue
            if at == 0 and METRICS[metric] != "↓":
                averaged.append(None if value is None else column)
            if value is None:
                continue
            columns[column] = value
            if error == "number" and not no_error(value, stderr):
                columns[f"{column}_stderr"] = stderr
    return columns, averaged


def no_error(value: float, stderr: float) -> bool:
    """Whether an error of 0 only says that all answers are wrong, or all right."""
    return stderr == 0 and value in {0, 1, 100}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@given(tasks=TASKS)
def test_every_table_is_read_back_and_nothing_of_the_original_is_lost(scratch: Path, tasks: Tasks) -> None:
    # The first row is top-level, because a log of subtasks alone has no score to read.
    tasks = [("first", 0, "1", "0", {("acc", "none"): (0.25, "number", 0.5, False)}), *tasks]
    text = HEADER.format("/data/models/some model/FINAL") + table(rendered(tasks))
    (row,) = read_text(scratch, text)

    columns, averaged = expected_columns(tasks)
    assert row.pop("model_name") == "some model"
    average = row.pop("avg", None)
    without_summary = {key: value for key, value in row.items() if key not in {"avg_stderr", "status"}}
    assert without_summary == pytest.approx(columns)

    original = published_rule(text)
    original_average = original.pop("avg")
    for key in [key for key in original if key.endswith("_stderr")]:
        if no_error(original[key.removesuffix("_stderr")], original[key]):
            del original[key]
    assert {key: row.get(key) for key in original} == original
    if None in averaged:
        # HALOs averages the other tasks, which is not comparable with other models.
        assert average is None
        return
    assert average == pytest.approx(sum(columns[name] for name in averaged) / len(averaged), abs=6e-5)
    if {key for key in original if not key.endswith("_stderr")} == set(averaged):
        assert average == original_average


@given(tasks=TASKS)
def test_tables_without_direction_are_read_back_too(scratch: Path, tasks: Tasks) -> None:
    tasks = [("first", 0, "1", "0", {("acc", "none"): (0.25, "number", 0.5, False)}), *tasks]
    rows = [[*cells[:5], *cells[6:]] for cells in rendered(tasks)]
    (row,) = read_text(scratch, HEADER.format("m") + table(rows, [*COLUMNS[:5], *COLUMNS[6:]]))
    row = {key: value for key, value in row.items() if key not in {"model_name", "avg", "avg_stderr", "status"}}
    assert row == pytest.approx(expected_columns(tasks)[0])

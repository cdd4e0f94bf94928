"""The morning message: new results, every reason, no unmeasured number, and short even after many failures."""

from __future__ import annotations

import pytest

from halos_eval.planning.plan import Plan
from halos_eval.planning.selection import Evaluation, Selection
from halos_eval.reports.message import compose
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import CheckpointRef, Coverage, Score, write_model
from tests.doubles import make_job, make_record, write_failure

TITLE = "halos-eval 2026-11-24"
JUDGED = (
    Score(task="alpaca_eval", metric="length_controlled_winrate", value=24.5),
    Score(task="alpaca_eval", metric="win_rate", value=26.5, stderr=1.25),
)


@pytest.fixture
def evaluated(root):
    """``evaluated(name, judge=scores or (error, words) or None, gsm8k=...)`` writes these results to the store."""

    def evaluated(name, **parts):
        jobs = []
        for title, result in parts.items():
            stage, task = ("judge", None) if title == "judge" else ("harness", title)
            url = filesystem.join(layout.stage_folder(root, name, stage, task, "f"), layout.RECORD)
            if isinstance(result, tuple) and isinstance(result[0], str):
                write_failure(layout.failure_beside(url), result[1], result[0])
            elif result is not None:
                scores = [Score(task=title, metric="acc", value=result)] if isinstance(result, float) else result
                write_model(url, make_record(stage, task, name=name, scores=scores))
            jobs.append(make_job(stage, task, url))
        reference = CheckpointRef(name=name, location=f"/{name}", digest="d")
        plan = Plan(version=2, suite="quick", checkpoint=reference, jobs=tuple(jobs))
        write_model(layout.plan_url(root, "quick", name), plan)

    return evaluated


def selection(*names, **parts):
    evaluations = [Evaluation(checkpoint=name, suite="quick", run_id=f"run-{name}") for name in names]
    return Selection(evaluations=tuple(evaluations), **parts)


def section(body, heading):
    """The lines below a heading."""
    return body.partition(f"**{heading}**")[2].strip().partition("\n\n")[0].splitlines()


def table_of(body):
    """The rows of the table, without its header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in section(body, "New")[2:]]


def test_a_good_night(root, evaluated):
    evaluated("kto", judge=JUDGED, gsm8k=0.5123)
    message = compose(TITLE, selection("kto", complete=("a: quick", "b: quick")), {"run-kto": "success"}, root)
    assert message.title == f"{TITLE}: 1 evaluated"
    assert not message.failed
    assert message.body == (
        "**1 evaluated.** Evaluated earlier: 2.\n\n"
        "**New**\n\n"
        "| checkpoint | suite   | LC win rate (%) | win rate (%) | avg    | status   |\n"
        "| ---------- | ------- | --------------- | ------------ | ------ | -------- |\n"
        "| `kto`      | `quick` | 24.50           | 26.50 ± 1.25 | 0.5123 | complete |\n\n"
        f"Full table: `{root}/reports/quick/summary.csv`\n"
    )


def test_a_warning_does_not_make_a_result_missing(root, evaluated):
    evaluated("kto", judge=JUDGED, gsm8k=0.5)
    url = filesystem.join(layout.stage_folder(root, "kto", "harness", "gsm8k", "f"), layout.RECORD)
    details = {"truncated_prompts": 30}
    scores = [Score(task="gsm8k", metric="acc", value=0.5, stderr=0.0123)]
    coverage = Coverage(attempted=100, scored=100)
    limited = {"settings": {"limit": 100}}
    record = make_record(task="gsm8k", details=details, scores=scores, coverage=coverage, identity=limited)
    write_model(url, record)
    message = compose(TITLE, selection("kto"), {"run-kto": "success"}, root)
    assert (message.title, message.failed) == (f"{TITLE}: 1 evaluated", False)
    assert table_of(message.body) == [
        ["`kto`", "`quick`", "24.50", "26.50 ± 1.25", "0.5000 ± 0.0123", "complete, trial, 1 warning"]
    ]
    assert section(message.body, "Warnings") == ["- `kto` (`quick`): `gsm8k: 30 of 100 prompts were truncated`"]


def test_what_failed_has_its_reason_and_an_empty_cell(root, evaluated):
    evaluated("kto", judge=("JudgeRefused", "the key is refused"), gsm8k=0.5, arc=None)
    message = compose(TITLE, selection("kto"), {"run-kto": "failed"}, root)
    assert (message.title, message.failed) == (f"{TITLE}: 1 failed", True)
    assert table_of(message.body) == [["`kto`", "`quick`", "", "", "", "failed, 2 missing"]]
    assert section(message.body, "Failed or missing, and why") == [
        "- `kto` (`quick`, run `run-kto`): `judge: JudgeRefused: the key is refused`",
        "- `kto` (`quick`, run `run-kto`): `arc: no result (not run, or killed)`",
    ]


def test_what_succeeded_with_a_gap_is_new_and_tells_the_gap(root, evaluated):
    evaluated("kto", judge=JUDGED, gsm8k=("EvaluationFailed", "no result"))
    message = compose(TITLE, selection("kto"), {"run-kto": "success"}, root)
    assert (message.title, message.failed) == (f"{TITLE}: 1 evaluated", False)
    assert table_of(message.body) == [["`kto`", "`quick`", "24.50", "26.50 ± 1.25", "", "1 missing"]]
    assert section(message.body, "Failed or missing, and why") == [
        "- `kto` (`quick`): `gsm8k: EvaluationFailed: no result`"
    ]


def test_a_run_whose_plan_failed_shows_no_number_of_an_earlier_one(root, evaluated):
    evaluated("kto", judge=JUDGED, gsm8k=0.5)  # the plan of another night
    message = compose(TITLE, selection("kto", "dpo"), {"run-kto": "failed", "run-dpo": "failed"}, root)
    assert table_of(message.body) == [
        ["`kto`", "`quick`", "", "", "", "failed"],
        ["`dpo`", "`quick`", "", "", "", "failed"],
    ]
    assert section(message.body, "Failed or missing, and why") == [
        "- `kto` (`quick`, run `run-kto`), `dpo` (`quick`, run `run-dpo`): the reason is only in the run's log; "
        "most likely the task `plan` failed"
    ]


def test_a_success_without_a_plan_is_not_believed(root):
    message = compose(TITLE, selection("kto"), {"run-kto": "success"}, root)
    assert message.failed
    assert "its plan is not in the store" in message.body


@pytest.mark.parametrize("state", ["running", "queued"])
def test_what_has_not_ended_shows_no_numbers(root, evaluated, state):
    evaluated("kto", gsm8k=0.5)
    message = compose(TITLE, selection("kto"), {"run-kto": state}, root)
    assert (message.title, message.failed) == (f"{TITLE}: 1 still running", False)
    assert "**Still running**: `kto` (`quick`)" in message.body
    assert "0.5" not in message.body


def test_a_run_that_airflow_does_not_know_is_a_failure(root, evaluated):
    evaluated("kto", gsm8k=0.5)
    message = compose(TITLE, selection("kto"), {}, root)
    assert (message.title, message.failed) == (f"{TITLE}: 1 unknown", True)
    assert table_of(message.body) == [["`kto`", "`quick`", "", "", "", "unknown"]]
    assert "Airflow has no final state for this run; it may never have started" in message.body


def test_what_is_damaged_costs_its_own_row(root, evaluated):
    evaluated("kto", gsm8k=0.5)
    filesystem.write_bytes(layout.plan_url(root, "quick", "dpo"), b"{")
    states = dict.fromkeys(("run-kto", "run-dpo", "run-../x"), "success")
    message = compose(TITLE, selection("kto", "dpo", "../x"), states, root)
    assert (message.title, message.failed) == (f"{TITLE}: 1 evaluated, 2 failed", True)
    assert [row[4:] for row in table_of(message.body)] == [["0.5000", "complete"], ["", "failed"], ["", "failed"]]
    damaged, bad_name = section(message.body, "Failed or missing, and why")
    assert "StoreError" in damaged
    assert "Delete it and run again" in damaged
    assert "BadInput" in bad_name


def test_a_score_of_zero_is_a_score(root, evaluated):
    evaluated("kto", gsm8k=0.0)
    message = compose(TITLE, selection("kto"), {"run-kto": "success"}, root)
    assert table_of(message.body) == [["`kto`", "`quick`", "", "", "0.0000", "complete"]]


def test_nothing_to_do_is_short_and_green(root):
    message = compose(TITLE, selection(complete=("a: quick",)), {}, root)
    assert (message.title, message.failed) == (f"{TITLE}: nothing to do", False)
    assert message.body == "**Nothing to do.** Evaluated earlier: 1.\n"


def test_what_is_left_out_is_told_with_its_reason(root):
    left_out = {"half": "model.safetensors is missing", "late": "over the limit", "later": "over the limit"}
    message = compose(TITLE, selection(left_out=left_out), {}, root)
    assert (message.title, message.failed) == (f"{TITLE}: nothing to do, 3 skipped", False)
    assert section(message.body, "Skipped, and why") == [
        "- `half`: `model.safetensors is missing`",
        "- `late`, `later`: `over the limit`",
    ]


def test_a_registry_that_cannot_be_read_is_told(root):
    message = compose(TITLE, None, {}, root)
    assert message.title == f"{TITLE}: failed, no evaluation was started"
    assert message.failed
    assert "log of the task `find`" in message.body


def test_a_night_of_fifty_is_readable(root, evaluated):
    names = [f"checkpoint-{number:02}" for number in range(50)]
    for name in names:
        evaluated(name, judge=("JudgeRefused", "the key is refused"), gsm8k=(name, "its own reason " * 100))
    left_out = {f"half-{number}": f"reason {number}" for number in range(50)}
    states = {f"run-{name}": "failed" for name in names}
    message = compose(TITLE, selection(*names, left_out=left_out), states, root)
    assert message.title == f"{TITLE}: 50 failed, 50 skipped"
    assert len(table_of(message.body)) == 20
    assert "\n\nand 30 more\n\n" in message.body
    failed, left = (section(message.body, name) for name in ("Failed or missing, and why", "Skipped, and why"))
    assert "and 45 more: `judge: JudgeRefused: the key is refused`" in failed[0]
    assert (len(failed), failed[-1]) == (11, "- and 41 more")
    assert (len(left), left[-1]) == (11, "- and 40 more")
    assert len(message.body) < 10_000


def test_words_of_others_stand_in_code_spans(root, evaluated):
    words = "`<script>` | *b*\n\n# h <!channel> {{ conn.x }}"
    evaluated("kto", gsm8k=("Error", words))
    message = compose(TITLE, selection("kto", left_out={words: words}), {"run-kto": "failed"}, root)
    shown = "'\u2039script\u203a' ¦ *b* # h \u2039!channel\u203a {{ conn.x }}"
    assert section(message.body, "Failed or missing, and why") == [
        f"- `kto` (`quick`, run `run-kto`): `gsm8k: Error: {shown}`"
    ]
    assert section(message.body, "Skipped, and why") == [f"- `{shown}`: `{shown}`"]
    assert "\n" not in message.title

"""Answers as a file, and how lm_eval is kept from scoring. Replaying them needs lm_eval: tests/real/test_harness.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from halos_eval.errors import EvaluationFailed
from halos_eval.stages.harness.replay import (
    Answer,
    Answers,
    _Nothing,
    parse_answers,
    stopped_before_scoring,
    write_answers,
)
from halos_eval.storage import filesystem


class Task:
    """A task of lm_eval, whose filters and metrics would execute something."""

    def __init__(self):
        self.scored = False

    def apply_filters(self):
        self.scored = True


def evaluate(task, asked, model):
    """As lm_eval does it: ask for all answers, then filter and score them."""
    asked += [model(number) for number in range(3)]
    task.apply_filters()


def test_lm_eval_stops_once_all_answers_are_there():
    task, other, asked = Task(), Task(), []
    with stopped_before_scoring([SimpleNamespace(get_all_tasks=lambda: [task]), other]):
        evaluate(task, asked, str)
    assert (asked, task.scored) == (["0", "1", "2"], False)
    with stopped_before_scoring([other]):
        evaluate(other, asked, str)
    assert not other.scored


def test_an_error_before_that_is_raised():
    def broken(number):
        raise ValueError(number)

    task = Task()
    with pytest.raises(ValueError, match="0"), stopped_before_scoring([task]):
        evaluate(task, [], broken)


def test_an_end_before_that_is_an_error():
    with pytest.raises(EvaluationFailed, match="ended before it asked"), stopped_before_scoring([Task()]):
        pass


def test_a_metric_that_is_not_loaded_does_nothing():
    metric = _Nothing()
    assert list(metric.compute(references=["assert True"], predictions=[["pass"]])[0]["pass@1"]) == []
    with pytest.raises(AttributeError):
        metric.__file__  # noqa: B018


@pytest.mark.parametrize("answer", ["text\u2028\x00", "\ud800 is no character", -1.5, [-1.5, True]])
def test_answers_are_read_as_they_were_written(tmp_path, answer):
    made = Answers(answers={"generate_until": (Answer(request="r", answer=answer),)}, rendered={"t": "<|im_start|>"})
    ((name, digest),) = write_answers(str(tmp_path), made).items()
    assert name == f"answers-{digest[:16]}.json.gz"
    assert parse_answers(filesystem.read_bytes(f"{tmp_path}/{name}")) == made
    assert write_answers(str(tmp_path), made) == {name: digest}

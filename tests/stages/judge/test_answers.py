"""Paid answers: whom they serve, and who asks again."""

from __future__ import annotations

from halos_eval.stages.judge.answers import Answers

OPTIONS = {"model": "m", "max_tokens": 1}
A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def answer(text):
    return {"text": text, "error": None}


def judged(url, keys, text, again=None):
    """A run that has asked for what it found no answer to, until its record is written."""
    answers = Answers(url, again)
    found = answers.load(OPTIONS, keys)
    for key in keys:
        if key not in found:
            answers.add(key, answer(text))
    answers.save()
    return answers.finish()


def found(url, keys, options=OPTIONS, again=None):
    return {key: one["text"] for key, one in Answers(url, again).load(options, keys).items()}


def test_a_killed_run_goes_on(tmp_path):
    answers = Answers(str(tmp_path))
    assert answers.load(OPTIONS, [A, B]) == {}
    answers.add(A, answer("first"))
    answers.save()
    assert found(str(tmp_path), [A, B]) == {A: "first"}


def test_another_run_with_the_same_request_finds_its_answer(tmp_path):
    judged(str(tmp_path), [A, B], "first")
    assert found(str(tmp_path), [B, C]) == {B: "first"}
    judged(str(tmp_path), [B, C], "second")
    assert found(str(tmp_path), [A, B, C]) == {A: "first", B: "first", C: "second"}
    assert found(str(tmp_path), [A], options=OPTIONS | {"model": "n"}) == {}


def test_a_forced_run_asks_again_once(tmp_path):
    url = str(tmp_path)
    judged(url, [A, B], "first")
    forced = Answers(url, "plan-1")
    assert forced.load(OPTIONS, [A, B]) == {}
    forced.add(A, answer("second"))
    forced.save()
    assert found(url, [A, B], again="plan-1") == {A: "second"}  # its retry, after a kill
    assert found(url, [A, B], again="plan-2") == {}
    assert found(url, [A, B]) == {A: "first", B: "first"}
    superfluous = judged(url, [A, B], "third", again="plan-1")
    assert found(url, [A, B]) == {A: "second", B: "third"}
    assert found(url, [A, B], again="plan-1") == {A: "second", B: "third"}  # until its record is written
    assert superfluous.endswith(".plan-1")

"""Several engines in processes of their own: the answers of one, and the end of one ends the stage."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial

import pytest

from halos_eval.errors import EvaluationFailed
from halos_eval.stages.engine import Ask
from halos_eval.stages.engines import Engines
from tests.engine_process import Counting, load


def asks(count):
    return [Ask(str(number), [*map(ord, f"text {number}")], scored=2) for number in range(count)]


@contextmanager
def started(folder, *devices, **options):
    """Start engines, which end with the context."""
    engines = Engines(partial(load, str(folder), **options), devices)
    try:
        yield engines
    finally:
        engines.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the engines note their GPUs."""
    return tmp_path_factory.mktemp("gpus")


@pytest.fixture(scope="module")
def engines(folder):
    """Two engines, for all tests that leave them as they are."""
    with started(folder, "0", "GPU-7,GPU-8") as found:
        yield found


def test_two_engines_give_the_answers_of_one_and_outlive_a_task(engines, folder):
    assert (engines.max_model_len, engines.capacity, engines.tokenizer) == (1000, 8, "tokenizer")
    assert sorted(path.read_text() for path in folder.iterdir()) == ["0", "GPU-7,GPU-8"]
    expected = sorted(Counting().finished(asks(100)))
    assert sorted(engines.finished(asks(100))) == expected
    assert sorted(engines.finished(asks(100), at_once=3)) == expected
    assert [*engines.finished([])] == []
    # Unwanted results are dropped, and the next task gets none of it.
    results = engines.finished(asks(1000))
    next(results)
    results.close()
    assert sorted(engines.finished(asks(100))) == expected


def test_requests_are_taken_when_an_engine_can_take_them(engines):
    taken = []
    results = engines.finished(taken.append(one.key) or one for one in asks(1000))
    next(results)
    assert len(taken) <= 20  # each of the two has four at once, and as many in stock
    results.close()


def test_an_error_among_the_requests_leaves_engines_that_work(engines):
    def failing():
        yield from asks(5)
        raise ValueError("a prompt")

    with pytest.raises(ValueError, match="a prompt"):
        [*engines.finished(failing())]
    assert len([*engines.finished(asks(3))]) == 3


def test_an_engine_that_ends_fails_the_stage_with_its_own_error(tmp_path):
    with (
        started(tmp_path, "0", "1", ends="57") as engines,
        pytest.raises(
            EvaluationFailed, match=r"engine [01] on GPU [01] ended with code 1: ValueError: CUDA out of mem"
        ),
    ):
        [*engines.finished(asks(100))]


def test_an_engine_that_cannot_load_fails_the_stage_with_its_own_error(tmp_path):
    with (
        pytest.raises(EvaluationFailed, match="engine 0 on GPU 3 ended with code 1: ValueError: no free blocks"),
        started(tmp_path, "3", ends="loading"),
    ):
        pass

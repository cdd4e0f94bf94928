"""The loop that feeds an engine: its batch is full until the last requests, and what it returns."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halos_eval.stages.engine import Ask, Finished, Sample, VllmEngine, seed_of
from tests.doubles.engine import Steps


@pytest.fixture(autouse=True, scope="module")
def _vllm():
    """The two classes of vLLM that a request is made of."""
    with pytest.MonkeyPatch.context() as patch:
        made = SimpleNamespace(TokensPrompt=dict, SamplingParams=SimpleNamespace)
        kinds = SimpleNamespace(RequestOutputKind=SimpleNamespace(FINAL_ONLY="final"))
        patch.setitem(sys.modules, "vllm", made)
        patch.setitem(sys.modules, "vllm.sampling_params", kinds)
        yield


def engine(steps, lora=None):
    llm = SimpleNamespace(llm_engine=steps, model_config=SimpleNamespace(max_model_len=100))
    return VllmEngine(llm, "tokenizer", lora)


def asks(*lengths):
    return [Ask(str(number), [length, 2, 3]) for number, length in enumerate(lengths)]


@given(lengths=st.lists(st.integers(1, 9), max_size=30), seqs=st.integers(1, 5))
def test_the_batch_is_never_drained(lengths, seqs):
    steps = Steps(seqs)
    done = [one.key for one in engine(steps).finished(asks(*lengths))]
    assert sorted(map(int, done)) == [*range(len(lengths))]
    # While requests are left, each step computes as many as the engine can.
    assert all(count == seqs or waiting == 0 for count, waiting in zip(steps.computed, steps.waiting, strict=True))
    full = sum(count == seqs for count in steps.computed)
    assert len(steps.computed) - full <= max(lengths, default=0)
    assert max(steps.waiting, default=0) <= seqs  # and the others are not made yet


def test_a_finished_request_is_replaced_before_the_slowest_ends():
    steps = Steps(2)
    taken = []
    coming = (taken.append(one.key) or one for one in asks(100, *[1] * 20))
    order = [one.key for one in engine(steps).finished(coming, at_once=2)]
    assert order == [*map(str, range(1, 21)), "0"]
    assert steps.computed == [2] * 20 + [1] * 80
    assert taken == [str(number) for number in range(21)]


def test_results_come_when_they_are_there():
    steps = Steps(2)
    results = engine(steps).finished(asks(1, 50))
    assert next(results).key == "0"
    assert len(steps.computed) == 1


def test_no_more_than_the_limit_is_in_the_engine():
    steps = Steps(8)
    assert len([*engine(steps).finished(asks(*[3] * 10), at_once=2)]) == 10
    assert max(steps.computed) == 2


def test_what_is_not_wanted_any_more_is_dropped():
    steps = Steps(2)
    results = engine(steps).finished(asks(1, 50, 50, 50))
    next(results)
    results.close()
    assert (steps.aborted, steps.requests) == (["1", "2", "3"], {})
    assert [one.key for one in engine(steps).finished(asks(1))] == ["0"]


def test_an_error_among_the_requests_leaves_an_empty_engine():
    def failing():
        yield from asks(1, 50)
        raise ValueError("a prompt")

    steps = Steps(1)
    with pytest.raises(ValueError, match="a prompt"):
        [*engine(steps).finished(failing())]
    assert steps.requests == {}


def test_generated_answers_are_in_their_order():
    steps = Steps(1)
    lora = object()
    (found,) = engine(steps, lora).finished([Ask("k", [1, 2, 3], {"temperature": 0.5, "n": 2})])
    assert found == Finished("k", 3, samples=(Sample("k0", 0, "stop"), Sample("k1", 1, "stop")))


def test_what_a_request_is_sent_with():
    steps = Steps(9)
    results = engine(steps, "lora").finished([Ask("g", [1], {"n": 2}), Ask("s", [9, 1], scored=1)])
    next(results)
    assert steps.requests["s"].lora == "lora"
    assert vars(steps.requests["s"].params) == {
        "temperature": 0, "max_tokens": 1, "prompt_logprobs": 1, "detokenize": False, "output_kind": "final",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "scored", "expected"),
    [
        ([1, 1, 1, 1], 2, (-0.5, True)),
        ([1, 7, 1, 1], 2, (-0.5, True)),
        ([1, 7, 1, 7], 2, (-0.75, False)),
        ([1, 7, 1, 7], 0, (0.0, True)),
        ([1, 7, 7, 7], 3, (-1.5, False)),
    ],
)
def test_the_last_tokens_are_scored(ids, scored, expected):
    # In the double, the token 1 has the log-probability -0.25 everywhere, and another one -0.5.
    (found,) = engine(Steps(1)).finished([Ask("k", ids, scored=scored)])
    assert found == Finished("k", 4, score=expected)


def test_a_seed_belongs_to_its_run_and_request():
    assert seed_of(1, "a") == seed_of(1, "a")
    assert len({seed_of(seed, key) for seed in (1, 2) for key in "ab"}) == 4
    assert 0 <= seed_of(-5, "x") < 1 << 31

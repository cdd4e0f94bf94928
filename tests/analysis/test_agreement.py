"""Cohen's kappa with an interval over prompts, compared with scikit-learn and with populations of known agreement."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from halos_eval.analysis import agreement as module
from halos_eval.analysis.agreement import agreement, kappas


def names(pairs):
    return [
        [["reference", "draw", "model"][int(x >= 1.5) + int(x > 1.5)] for x in side]
        for side in zip(*pairs, strict=True)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    one = random.choice([1, 1.2, 1.5, 1.9, 2], 200)
    other = np.where(random.random(200) < 0.6, one, random.choice([1, 1.5, 2], 200))
    pairs = list(zip(one, other, strict=True))
    found = agreement([[pair] for pair in pairs])
    assert found.kappa.value == pytest.approx(cohen_kappa_score(*names(pairs)), abs=1e-12)
    assert found.pairs == 200
    assert found.same == np.mean([a == b for a, b in zip(*names(pairs), strict=True)])
    assert found.kappa.low < found.kappa.value < found.kappa.high


def test_many_tables_at_once():
    tables = np.array([[[4, 0, 1], [0, 2, 0], [1, 0, 6]], [[1, 1, 1], [1, 1, 1], [1, 1, 1]]])
    assert kappas(tables) == pytest.approx([float(kappas(tables[0])), 0])


@pytest.mark.parametrize(
    ("pairs", "same", "kappa"),
    [
        ([(1, 1), (2, 2)], 1, 1),
        ([(1, 2), (2, 1)], 0, -1),
        ([(2, 2), (2, 2)], 1, None),  # nobody can tell this from two judges that always say the same
        ([(1.1, 1.4), (1.9, 1.6)], 1, 1),  # the winner counts, not the probability
    ],
)
def test_known_agreements(pairs, same, kappa):
    found = agreement([[pair] for pair in pairs])
    assert found.same == same
    assert (found.kappa and found.kappa.value) == kappa


def test_what_has_no_agreement():
    assert agreement([]) is None
    assert agreement([[], []]) is None
    assert agreement([[(1, 1), (2, 2)]]).kappa.low is None  # one prompt tells nothing of others


def test_the_same_data_give_the_same_interval():
    pairs = [[(1, 1)], [(2, 1)], [(2, 2)], [(1, 2)], [(1, 1)], [(2, 2)]] * 5
    assert agreement(pairs) == agreement(pairs)


def coverage(draw, truth, runs, seed):
    random = np.random.default_rng(seed)
    found = [agreement(draw(random)).kappa for _ in range(runs)]
    return np.mean([one.low <= truth <= one.high for one in found])


def test_95_of_100_intervals_have_the_true_kappa(monkeypatch):
    """Two judges that say the same in 70 % of the pairs, and independently 1 or 2 in the others: kappa is 0.7."""
    monkeypatch.setattr(module, "RESAMPLES", 499)

    def draw(random):
        one, other = random.integers(1, 3, (2, 150))
        same = random.random(150) < 0.7
        return [[(a, a if equal else b)] for a, b, equal in zip(one, other, same, strict=True)]

    assert 0.91 <= coverage(draw, 0.7, 300, seed=1) <= 0.98


def test_answers_to_one_prompt_are_not_independent(monkeypatch):
    """All ten checkpoints get the same of a prompt. An interval over 800 pairs would be three times too narrow."""
    monkeypatch.setattr(module, "RESAMPLES", 499)

    def draw(random):
        one, other = random.integers(1, 3, (2, 80))
        same = random.random(80) < 0.7
        return [[(a, a if equal else b)] * 10 for a, b, equal in zip(one, other, same, strict=True)]

    assert 0.90 <= coverage(draw, 0.7, 300, seed=2) <= 0.98

"""The table of GPU hours at assumed speeds, which `make bench-gpu-hours` prints."""

import pytest

from benchmarks.gpu_assumed import ASSUMED, SUITES, WAYS, totals
from halos_eval.config.suite import load_suite

APART, PACKED, TOGETHER = WAYS
CASES = [(name, assumed) for name in SUITES for assumed in ASSUMED]


@pytest.mark.parametrize(("name", "assumed"), CASES, ids=str)
def test_packing_loses_little_to_one_process(name, assumed):
    found = totals(load_suite(name), assumed)
    assert found[PACKED].gpu_hours <= 1.1 * found[TOGETHER].gpu_hours
    assert found[PACKED].share <= 0.15 or found[PACKED].pods == 1
    assert found[PACKED].longest <= found[TOGETHER].longest
    assert found[PACKED].gpu_hours < found[APART].gpu_hours


@pytest.mark.parametrize(("name", "assumed"), CASES, ids=str)
def test_the_planner_estimates_the_time_of_all_pods(name, assumed):
    for total in totals(load_suite(name), assumed).values():
        assert total.gpu_hours == pytest.approx(assumed.gpus * (total.load + total.work) / 3600)

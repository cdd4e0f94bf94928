"""The chart, rendered as by ``helm install``, without a cluster. Airflow, which the pods need, gets its own home."""

from __future__ import annotations

import atexit
import tempfile

import pytest
from helm_python import Chart

from tests.doubles import isolate_airflow
from tests.helm.release import CHART, Release

atexit.register(isolate_airflow(tempfile.mkdtemp(prefix="airflow-")))


@pytest.fixture(scope="session")
def chart():
    """The chart, loaded once."""
    with Chart.load(CHART) as chart:
        yield chart


@pytest.fixture(scope="session")
def render(chart):
    """``render(values, name=..., namespace=...)`` returns a Release."""

    def render(values, name="halos-eval", namespace="evaluation"):
        return Release(chart.render(values, name=name, namespace=namespace), namespace)

    return render

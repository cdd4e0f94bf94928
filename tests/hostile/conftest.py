"""Airflow, which pods and the message need, gets its own home."""

from __future__ import annotations

import atexit
import os
import tempfile

import pytest

from tests.doubles import isolate_airflow

atexit.register(isolate_airflow(tempfile.mkdtemp(prefix="airflow-")))


@pytest.fixture(autouse=True, scope="session")
def _fast_disk():
    """Write without waiting for the disk: hundreds of examples would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield

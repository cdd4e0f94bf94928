"""Airflow with its own home folder, which is set before anything imports it."""

from __future__ import annotations

import atexit
import tempfile

from tests.doubles import isolate_airflow

atexit.register(isolate_airflow(tempfile.mkdtemp(prefix="airflow-")))

"""A scorer that is killed leaves no process of an item running, whatever that has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.airflow_server import wait_for
from tests.conftest import ROOT
from tests.running import of_session

SCORER = """
import os, sys, time
from pathlib import Path
from halos_eval.stages.harness.items import Items

def leave():
    for _ in range(2):
        if not os.fork():
            if not os.fork():
                while True:
                    time.sleep(60)
            os._exit(0)
    Path("started").touch()
    time.sleep(60 if {stays} else 0)
    return 1

items = Items(Path(sys.argv[1]), ("/usr", "/lib", "/lib64", "/bin", sys.prefix, sys.base_prefix))
items.run(leave)
Path(sys.argv[1], "between").touch()
time.sleep(60)
"""


@pytest.mark.parametrize(("stays", "there"), [(True, "tmp/started"), (False, "between")])
def test_a_killed_scorer(tmp_path, stays, there):
    words = [sys.executable, "-c", SCORER.format(stays=stays), tmp_path / "item"]
    with subprocess.Popen(words, env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True) as scorer:
        try:
            wait_for((tmp_path / "item" / there).exists, 60, every=0.02)
            # The item, its two processes that nobody waits for, and the guard; or only the scorer and its guard.
            count = 5 if stays else 2
            wait_for(lambda: len(of_session(scorer.pid)) == count, 30, lambda: of_session(scorer.pid), every=0.02)
        finally:
            scorer.send_signal(signal.SIGKILL)
    wait_for(lambda: not of_session(scorer.pid), 30, lambda: of_session(scorer.pid), every=0.02)

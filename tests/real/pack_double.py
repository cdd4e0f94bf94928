"""Stands in for ``halos-eval`` of an environment where only the scheduling of packs matters.

``demo_choice`` fails once with a failure note, and the first pack is killed before ``demo_cloze``. Records are written
as the stages would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.real.stage_double import REAL, _real


def main(environments, calls, command, *words):
    """Do what a stage, or a pack of stages, would leave behind."""
    if command in REAL:
        _real(environments, command, words)
    calls = Path(calls)
    if command == "harness":
        sys.exit(_harness(calls, command, words))
    codes = [_harness(calls, command, own[1:]) for own in json.loads(words[-1])]
    sys.exit(max(codes))


def _harness(calls, command, words):
    """Run one task; its exit code."""
    from pydantic_settings import CliApp

    from halos_eval.stages.harness.options import HarnessConfig
    from halos_eval.storage import filesystem, layout
    from halos_eval.storage.records import Failure, readable_record, write_model
    from tests.doubles import make_record

    config = CliApp.run(HarnessConfig, cli_args=list(words))
    record = filesystem.join(config.output_dir, layout.RECORD)
    if readable_record(record)[0]:
        return 0
    before = calls.read_text().splitlines()
    with calls.open("a") as file:
        file.write(f"{command} {config.task}\n")
    if config.task == "demo_cloze" and f"{command} {config.task}" not in before:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.task == "demo_choice" and command == "pack":
        error = {"error": "EvaluationFailed", "message": "no result on purpose", "exit_code": 7}
        write_model(layout.failure_beside(record), Failure(**error, at=datetime.now(UTC)))
        sys.stderr.write("halos-eval: EvaluationFailed: no result on purpose\n")
        return 7
    write_model(record, make_record("harness", config.task, name=config.name, fingerprint=config.expect))
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])

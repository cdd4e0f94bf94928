"""Stands in for ``halos-eval`` of an environment where only the scheduling matters: a harness stage of no time.

Notes what it was called with. Staging and summaries are real. A checkpoint of the name WAITS first waits for a batch.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

WAITS = "new-waits"
WAITS_SECONDS = 10
REAL = {"fetch": "worker", "summarize": "judge"}


def install(folder, environments, python, double=__file__):
    """Make the environments ``worker`` and ``judge`` below ``folder``; the file in which calls are noted."""
    calls = folder / "calls.txt"
    for name in ("worker", "judge"):
        program = folder / name / "bin" / "halos-eval"
        program.parent.mkdir(parents=True)
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={Path(__file__).parents[2]} exec {python} {double} {environments} {calls} "$@"\n'
        )
        program.chmod(0o755)
    calls.touch()
    return calls


def main(environments, calls, command, *words):
    """Do what a stage would leave behind."""
    if command in REAL:
        _real(environments, command, words)
    from pydantic_settings import CliApp

    from halos_eval.stages.harness.options import HarnessConfig
    from halos_eval.storage import filesystem
    from halos_eval.storage.records import write_model
    from tests.doubles import make_record

    config = CliApp.run(HarnessConfig, cli_args=list(words))
    if not Path(config.model).is_dir():
        _real(environments, command, words)  # what is wrong it tells itself
    if config.name == WAITS:
        _wait(Path(calls))
    with Path(calls).open("a") as file:
        file.write(f"{config.name} {config.task}\n")
    time.sleep(1)
    record = make_record(command, config.task, name=config.name, fingerprint=config.expect)
    write_model(filesystem.join(config.output_dir, "record.json"), record)


def _wait(calls):
    """End as a judge does whose batch is not answered. Fail if this is run again before the time that it named."""
    until = calls.with_name("until")
    now = datetime.now(UTC)
    if until.exists():
        if now < datetime.fromisoformat(until.read_text()):
            sys.exit("halos-eval: BadInput: run again too early")
        return
    until.write_text(f"{now + timedelta(seconds=WAITS_SECONDS):%Y-%m-%dT%H:%M:%SZ}")
    with calls.open("a") as file:
        file.write(f"{WAITS} waits\n")
    sys.stderr.write(f"halos-eval: Waiting: 800 requests wait. Run the same command again after {until.read_text()}\n")
    sys.exit(9)


def _real(environments, command, words):
    program = str(Path(environments) / REAL.get(command, "worker") / "bin" / "halos-eval")
    os.execv(program, [program, command, *words])


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Stands in for ``halos-eval`` of an environment where only the scheduling matters: a harness stage of no time.

Notes what it was called with. Staging and summaries are real.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

REAL = {"fetch": "worker", "summarize": "judge"}


def install(folder, environments, python):
    """Make the environments ``worker`` and ``judge`` below ``folder``; the file in which calls are noted."""
    calls = folder / "calls.txt"
    for name in ("worker", "judge"):
        program = folder / name / "bin" / "halos-eval"
        program.parent.mkdir(parents=True)
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={Path(__file__).parents[2]} exec {python} {__file__} {environments} {calls} "$@"\n'
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
    with Path(calls).open("a") as file:
        file.write(f"{config.name} {config.task}\n")
    time.sleep(1)
    record = make_record(command, config.task, name=config.name, fingerprint=config.expect)
    write_model(filesystem.join(config.output_dir, "record.json"), record)


def _real(environments, command, words):
    program = str(Path(environments) / REAL.get(command, "worker") / "bin" / "halos-eval")
    os.execv(program, [program, command, *words])


if __name__ == "__main__":
    main(*sys.argv[1:])

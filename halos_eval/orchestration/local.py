"""The local counterpart of a pod: the same command line in the image's virtual environment."""

from __future__ import annotations

import os
import shlex
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen
from tempfile import TemporaryDirectory
from typing import Any

from airflow.sdk import BaseOperator, Context

from halos_eval.config.settings import Settings
from halos_eval.orchestration.failures import failure
from halos_eval.orchestration.secrets import allowed
from halos_eval.planning.jobs import StageJob
from halos_eval.processes import last_error, last_line

# Airflow's own settings (its database among them) and this interpreter's paths are none of a stage's business.
PRIVATE = ("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "_AIRFLOW")
KEPT = 2000
"""Lines of a stage's output in which the reason of its failure is looked for."""


class LocalStageOperator(BaseOperator):
    """Run one planned job as a process; succeed at once where there is nothing to do.

    :param job: what the plan says of it (StageJob); empty where there is nothing to do.
    """

    template_fields: Sequence[str] = ("job",)  # so that the plan's XCom is resolved; its strings are not rendered
    ui_color = "#cfe8fc"

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self._process: Popen[bytes] | None = None

    def execute(self, context: Context) -> None:
        """Run the job. Raises a StageFailure, which tells whether a retry can mend it."""
        if not self.job:
            # Not skipped: whoever waits for this stage can go ahead.
            self.log.info("nothing to do: not asked for, or its record is there already")
            return
        job = StageJob.model_validate(self.job)
        program = Path(Settings().environments) / job.image / "bin" / "halos-eval"
        # setpriv: the stage dies with the task's process, even if that is killed with SIGKILL.
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), *job.argv]
        code, output = self._run(command, stage_environment(job))
        if code:
            raise failure(code, last_line(output) if code < 0 else last_error(output))

    def _run(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """Run ``command`` with its output in this log. Give its exit code and the end of its output.

        Airflow's SubprocessHook gives the last line only. Like it, this waits for nothing when Airflow interrupts it:
        ``on_kill`` comes after that.
        """
        self.log.info("running %s", shlex.join(command))
        kept: deque[str] = deque(maxlen=KEPT)
        with TemporaryDirectory(prefix="halos-eval-") as folder:
            self._process = Popen(  # noqa: S603
                command, stdout=PIPE, stderr=STDOUT, cwd=folder, env=environment, start_new_session=True
            )
            if output := self._process.stdout:
                for raw in output:
                    line = raw.decode(errors="backslashreplace").rstrip()
                    self.log.info("%s", line)
                    kept.append(line)
                output.close()
            return self._process.wait(), "\n".join(kept)

    def on_kill(self) -> None:
        """End the process with all that it started."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)


def stage_environment(job: StageJob) -> dict[str, str]:
    """The environment of a stage's process: this one's, less what is not for it."""
    return {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE) and allowed(key, job)}

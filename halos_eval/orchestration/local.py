"""The local counterpart of a pod: the same command line in the image's virtual environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, Context

from halos_eval.orchestration.failures import failure
from halos_eval.orchestration.secrets import allowed
from halos_eval.plan import StageJob
from halos_eval.settings import Settings

# Airflow's own settings (its database among them) and this interpreter's paths are none of a stage's business.
PRIVATE = ("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "_AIRFLOW")


class LocalStageOperator(BaseOperator):
    """Run one planned job as a process; succeed at once where there is nothing to do.

    :param job: what the plan says of it (StageJob); empty where there is nothing to do.
    """

    template_fields: Sequence[str] = ("job",)  # so that the plan's XCom is resolved; its strings are not rendered
    ui_color = "#cfe8fc"

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self._process = SubprocessHook()

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
        result = self._process.run_command(command, env=stage_environment(job))
        if result.exit_code:
            raise failure(result.exit_code, result.output)

    def on_kill(self) -> None:
        """End the process with all that it started."""
        self._process.send_sigterm()  # type: ignore[no-untyped-call]


def stage_environment(job: StageJob) -> dict[str, str]:
    """The environment of a stage's process: this one's, less what is not for it."""
    return {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE) and allowed(key, job)}

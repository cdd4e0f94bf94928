"""The local counterpart of a pod: the same command line in the image's virtual environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from halos_eval import errors
from halos_eval.settings import Settings

# Which stage is given which secret; every other stage runs without it.
SECRETS = {"OPENAI_API_KEY": {"judge"}, "HF_TOKEN": {"sample", "harness"}}
# Airflow's own settings (its database among them) and this interpreter's paths are none of a stage's business.
PRIVATE = ("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "_AIRFLOW")


class LocalStageOperator(BaseOperator):
    """Run one planned job as a process; succeed at once where there is nothing to do.

    :param job: what the plan says of it (stage, image, argv); empty where there is nothing to do.
    """

    template_fields: Sequence[str] = ("job",)  # so that the plan's XCom is resolved; its strings are not rendered
    ui_color = "#cfe8fc"

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self._process = SubprocessHook()

    def execute(self, context: Context) -> None:
        """Run the job. A failure that a retry cannot mend fails at once."""
        if not self.job:
            # Not skipped: whoever waits for this stage can go ahead.
            self.log.info("nothing to do: not asked for, or its record is there already")
            return
        program = Path(Settings().environments) / self.job["image"] / "bin" / "halos-eval"
        # setpriv: the stage dies with the task's process, even if that is killed with SIGKILL.
        command = ["setpriv", "--pdeathsig", "KILL", "--", str(program), *self.job["argv"]]
        result = self._process.run_command(command, env=stage_environment(self.job["stage"]))
        if result.exit_code:
            raise failure(result.exit_code, result.output)

    def on_kill(self) -> None:
        """End the process with all that it started."""
        self._process.send_sigterm()  # type: ignore[no-untyped-call]


def stage_environment(stage: str) -> dict[str, str]:
    """The environment of a stage's process: this one's, less what is not for it."""
    return {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(PRIVATE) and stage in SECRETS.get(key, {stage})
    }


def failure(exit_code: int, words: str) -> AirflowException:
    """The exception for a stage's exit code: AirflowFailException where a retry cannot mend it."""
    classes = [error for error in vars(errors).values() if isinstance(error, type) and issubclass(error, Exception)]
    known = {error.exit_code: error for error in classes if issubclass(error, errors.HalosEvalError)}
    kind = known.get(exit_code)
    if kind and not kind.retryable:
        return AirflowFailException(words)
    if exit_code < 0:
        return AirflowException(f"ended by signal {-exit_code} (9 may be a lack of memory); its last line: {words}")
    return AirflowException(words or f"ended with exit code {exit_code}")

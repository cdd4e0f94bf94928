"""The operator that runs a stage on this machine: a pod's command line, in the virtual environment of its image."""

from __future__ import annotations

import os
import shlex
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE, STDOUT, Popen, TimeoutExpired
from tempfile import TemporaryDirectory
from typing import Any

from airflow.sdk import BaseOperator, Context

from halos_eval.config.settings import Settings
from halos_eval.orchestration.failures import StageFailed, StageWaiting, failure
from halos_eval.orchestration.packs import check_result, waits
from halos_eval.orchestration.secrets import allowed
from halos_eval.orchestration.turns import task_owner
from halos_eval.orchestration.waiting import rescheduled
from halos_eval.planning.jobs import StageJob
from halos_eval.processes import failure as ended_early
from halos_eval.processes import last_error, last_line, watched
from halos_eval.stages.exchange import Exchange

# A stage must not see Airflow's settings (its database connection among them), the secret of `report`, nor this
# interpreter's paths.
PRIVATE = ("AIRFLOW", "PYTHON", "VIRTUAL_ENV", "_AIRFLOW", "HALOS_EVAL_HEARTBEAT_URL")
END_SECONDS = 30
"""How long the server of a judge may take to end after the judge stage."""
KEPT = 2000
"""Lines at the end of a stage's output that are searched for the reason of its failure."""


class LocalStageOperator(BaseOperator):
    """Operator that runs one planned job as a process; it succeeds at once if there is nothing to do.

    :param job: the fields of the StageJob; empty if there is nothing to do.
    """

    template_fields: Sequence[str] = ("job",)  # Airflow resolves the plan's XCom; it does not render the strings in it
    ui_color = "#cfe8fc"

    def __init__(self, *, job: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self._process: Popen[bytes] | None = None

    def execute(self, context: Context) -> None:
        """Run the job. Raise StageFailure, whose class decides whether Airflow retries.

        Raise AirflowRescheduleException if the stage waits for a batch.
        """
        if not self.job:
            # Succeed instead of skipping, so that the tasks after this one run.
            self.log.info("nothing to do: this stage was not selected, or its record exists")
            return
        job = StageJob.model_validate(self.job)
        if job.packed and waits(self, context, job.packed):
            return
        job = job.model_copy(update={"argv": job.owned_by(task_owner(context))})
        with ExitStack() as stack:
            if job.server:
                folder = stack.enter_context(TemporaryDirectory(prefix="halos-eval-"))
                job, server = job.with_server(folder)
                stack.enter_context(_beside(server, Path(folder)))
            code, output = self._run(_command(job), stage_environment(job))
        if code:
            failed = failure(code, last_line(output) if code < 0 else last_error(output), output)
            if isinstance(failed, StageWaiting):
                raise rescheduled(failed)
            raise failed

    def pack_ended(self, context: Context, event: object = None) -> None:
        """Resume after the wait for a pack. Raise StageFailed if it left no record."""
        if packed := StageJob.model_validate(self.job).packed:
            check_result(self, packed)

    def _run(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        """Run ``command`` with its output in this log. Return its exit code and the end of its output.

        Airflow's SubprocessHook returns only the last line. As there, an interruption by Airflow is not delayed:
        Airflow calls ``on_kill`` after it.
        """
        self.log.info("running %s", shlex.join(command))
        kept: deque[str] = deque(maxlen=KEPT)
        with TemporaryDirectory(prefix="halos-eval-") as folder:
            try:
                self._process = Popen(  # noqa: S603
                    command, stdout=PIPE, stderr=STDOUT, cwd=folder, env=environment, start_new_session=True
                )
            except OSError as error:
                raise StageFailed(f"the stage did not start: {error}. Install that program") from error
            if output := self._process.stdout:
                for raw in output:
                    line = raw.decode(errors="backslashreplace").rstrip()
                    self.log.info("%s", line)
                    kept.append(line)
                output.close()
            return self._process.wait(), "\n".join(kept)

    def on_kill(self) -> None:
        """End the process and its children."""
        if self._process:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)


def _command(job: StageJob) -> list[str]:
    """Return the command line of a job. setpriv ends it with the task's process, even if SIGKILL ends that."""
    program = Path(Settings().environments) / job.image / "bin" / "halos-eval"
    return ["setpriv", "--pdeathsig", "KILL", "--", str(program), *job.argv]


@contextmanager
def _beside(server: StageJob, exchange: Path) -> Iterator[None]:
    """Run the server of a judge. It ends by itself after the judge stage, which also prints the log of its failure."""
    output = exchange / "output.log"
    with output.open("wb") as file:
        process = Popen(  # noqa: S603
            _command(server), stdout=file, stderr=STDOUT, env=stage_environment(server), start_new_session=True
        )

    def ended() -> None:
        """Tell a judge that would wait for a server that never started."""
        if Exchange(exchange).state("server") == "absent":
            Exchange(exchange).report(ended_early("the judge's server", process.returncode, output))

    try:
        with watched(process, ended):
            yield
    finally:
        try:
            process.wait(END_SECONDS)
        except TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def stage_environment(job: StageJob) -> dict[str, str]:
    """Return this process's environment without the variables that ``job`` must not see."""
    return {key: value for key, value in os.environ.items() if not key.startswith(PRIVATE) and allowed(key, job)}

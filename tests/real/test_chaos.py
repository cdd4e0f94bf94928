"""A night in which everything is killed at random moments, and what is left of it: `make chaos SEED=n`.

Killed are Airflow's four components, its connections to the database, the connections to the store, to the judge and to
Kubernetes, nodes (which then say nothing of their pods), pods (deleted, as by a drained node) and the processes in
them. Pods are processes of this machine (tests/doubles/kubernetes.py); the stages in them are real but for vLLM and
lm_eval (tests/real/chaos_stage.py). SEED, CHECKPOINTS and KILLS make another, a longer and a worse night.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from statistics import fmean
from urllib.error import URLError

import pytest
import yaml

from halos_eval.data import prompts
from halos_eval.digests import digest_json
from halos_eval.reports.table import read_rows, status
from halos_eval.shipped import shipped
from halos_eval.storage import filesystem, layout
from tests.airflow_components import COMPONENTS, components
from tests.airflow_server import DONE, Airflow, airflow_environment, free_port, migrate, wait_for
from tests.doubles import make_checkpoint
from tests.doubles.judge import Faults, Handler, Server, options, preference
from tests.doubles.kubernetes import Cluster, served, write_kubeconfig
from tests.doubles.proxy import Proxy
from tests.doubles.s3 import bucket
from tests.real import chaos_stage
from tests.real.test_nights import EVALUATE, NIGHT, postgres  # noqa: F401
from tests.running import with_words

pytestmark = [pytest.mark.real, pytest.mark.slow]

log = logging.getLogger(__name__)
SEED = int(os.environ.get("SEED", "1"))
NAMES = [f"new-{number:02}" for number in range(int(os.environ.get("CHECKPOINTS", "2")))]
KILLS = int(os.environ.get("KILLS", "10"))
TASKS = ("demo_cloze", "demo_choice")
STAGES = (("sample", None), ("judge", None), *(("harness", task) for task in TASKS))
LONGEST = 900 + 60 * len(NAMES)
"""Seconds in which a night ends after the last kill."""
GPUS = 3
VICTIMS = (*COMPONENTS, "database", "store", "judge", "kubernetes", "node", "pod", "pod", "stage", "stage")
TOLERATION = 300
"""Seconds after which Kubernetes deletes the pods of a node that does not answer."""
AT_ONCE = 2
"""Requests of a judge stage at the same time."""
# Retries after 10 instead of 30 s, and lost tasks and nodes noticed within seconds instead of minutes.
QUICK = """
from datetime import timedelta

from halos_eval.orchestration import pod_trigger

pod_trigger.LONGEST_END = 10

def task_policy(task):
    task.retry_delay = timedelta(seconds=10)
    task.max_retry_delay = timedelta(seconds=20)
"""
QUICKER = {
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "10",
    "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
}


class Pods(Cluster):
    """A cluster whose pods are processes of this machine."""

    def __init__(self, folder):
        super().__init__(GPUS)
        self.folder, self.processes = folder, {}

    def log(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace").splitlines() if path.exists() else []

    async def work(self, pod):
        name, (container,) = pod["metadata"]["name"], pod["spec"]["containers"]
        program = self.folder / "environments" / container["image"] / "bin" / "halos-eval"
        words = [word.replace("$$", "$") for word in container["args"]]
        variables = {one["name"]: one.get("value", "secret") for one in container["env"]}
        variables |= {"PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8"}
        with (self.folder / f"{name}.log").open("wb") as file:
            process = self.processes[name] = await asyncio.create_subprocess_exec(
                program, *words, env=variables, stdout=file, stderr=file, cwd=self.folder, start_new_session=True
            )
        try:
            code = await process.wait()
            if name in self.lost:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
                await asyncio.wait_for(asyncio.shield(process.wait()), 10)
            raise
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            del self.processes[name]
        return code if code >= 0 else 128 - code


class Lab(Airflow):
    """A running Airflow, and what can be killed of it."""

    def __init__(self, port, store, loop, running, pods, database, proxies, asked):
        super().__init__(port, store)
        self.loop, self.running, self.pods, self.database = loop, running, pods, database
        self.proxies, self.asked = proxies, asked

    def call(self, method, path, body=None):
        """Ask again while the API server is down."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return super().call(method, path, body)
            except (URLError, OSError) as error:
                if time.monotonic() > deadline or (getattr(error, "code", 500) < 500 and method != "GET"):
                    raise
                time.sleep(0.5)

    def kill(self, victim, dice):
        """Kill one, and start it again a moment later; what it was, or nothing if there was none."""
        if victim in COMPONENTS:
            self.running.kill(victim)
            time.sleep(dice.uniform(0, 2))
            self.running.start(victim)
        elif victim == "database":
            server, name = self.database
            server.psql(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}';")
        elif victim in self.proxies:
            self.loop.wait_for(self.proxies[victim].cut())
            time.sleep(dice.uniform(0, 3))
            self.loop.wait_for(self.proxies[victim].start())
        else:
            pods = sorted(self.pods.processes)
            if not pods:
                return None
            name = dice.choice(pods)
            if victim == "node":
                self.pods.lost.add(name)
                self.loop.call(self.pods.delete, name, after=TOLERATION)
            if victim == "pod":
                self.loop.call(self.pods.delete, name)
            else:
                with suppress(ProcessLookupError, KeyError):
                    os.killpg(self.pods.processes[name].pid, signal.SIGKILL)
            return f"{victim} {self.component(name)}"
        return victim

    def component(self, name):
        """What runs in a pod: sample, judge, ..."""
        pod = self.pods.pods.get(name, {"metadata": {"labels": {}}})
        return pod["metadata"]["labels"].get("app.kubernetes.io/component", "ended")

    def runs(self, dag):
        return self.call("GET", f"/dags/{dag}/dagRuns?limit=200")["dag_runs"]

    def records(self):
        """All records: by checkpoint, stage and task."""
        found = {}
        for record in map(json.loads, self.files("runs", layout.RECORD).values()):
            key = (record["checkpoint"]["name"], record["stage"], record["task"])
            assert key not in found, "two results of one stage"
            found[key] = record
        return found

    def files(self, folder, ending):
        """The contents of the store's files below a folder, by URL."""
        return filesystem.read_many(filesystem.find(filesystem.join(self.store, folder), ending))

    def complete(self):
        return len(self.records()) == len(NAMES) * len(STAGES)


class Loop:
    """An event loop in a thread, for the doubles and the proxies."""

    def __init__(self):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def wait_for(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def call(self, function, *words, after=0):
        self._loop.call_soon_threadsafe(self._loop.call_later, after, function, *words)

    @contextmanager
    def entered(self, context):
        """Enter an asynchronous context."""
        found = self.wait_for(context.__aenter__())
        try:
            yield found
        finally:
            self.wait_for(context.__aexit__(None, None, None))

    def end(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextmanager
def judge():
    """A judge in this process: its port, and each request that it has answered, with the time."""
    asked = []

    class Counting(Handler):
        faults = Faults(options().parse_args(["--latency=0.4"]))

        def _judge(self, request):
            asked.append((time.time_ns(), digest_json(request)))
            super()._judge(request)

    with Server(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


def write_files(folder, environment, kubernetes):
    """Write the checkpoints and all files that a night reads."""
    (folder / "suites").mkdir()
    (folder / "home" / "config").mkdir(parents=True)
    (folder / "home" / "config" / "airflow_local_settings.py").write_text(QUICK)
    for name in NAMES:
        config = json.dumps({"model_type": "llama", "tie_word_embeddings": True, "name": name})
        make_checkpoint(folder / "checkpoints" / name / "FINAL", config_json=config)
    own_judge = yaml.safe_load((shipped("judges") / "gpt-4.1.yaml").read_text())["gpt-4.1"]
    own_judge["completions_kwargs"]["num_procs"] = AT_ONCE
    alpaca = {"prompts": "demo", "reference": "demo", "judge": str(folder / "judge.yaml")}
    files = {
        "judge.yaml": {"own": own_judge},
        "suites/own.yaml": {"alpaca_eval": alpaca, "tasks": {task: {"metric": "acc"} for task in TASKS}},
        "policy.yaml": {"rules": [{"match": "new-*", "suites": ["own"]}]},
        "cluster.yaml": {
            "pools": {"gpu": GPUS, "judge": 2},
            "profiles": {"default": {"gpus": 1}, "cpu": {}},
            "kubernetes": {
                "namespace": "night",
                "images": {"worker": "worker", "judge": "judge"},
                "environment": environment,
                "secrets": {"OPENAI_API_KEY": {"name": "judge", "key": "key"}},
            },
        },
    }
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content))
    write_kubeconfig(folder / "kubeconfig", f"http://127.0.0.1:{kubernetes.port}")


@contextmanager
def night(environments, folder, postgres):  # noqa: F811
    """An Airflow with checkpoints that nobody has evaluated."""
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.end)
        pods = Pods(folder)
        cluster = stack.enter_context(loop.entered(served(pods)))
        store = stack.enter_context(bucket())
        judge_port, asked = stack.enter_context(judge())
        targets = {"store": int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]), "judge": judge_port}
        proxies = {name: Proxy(port) for name, port in (targets | {"kubernetes": cluster}).items()}
        for proxy in proxies.values():
            loop.wait_for(proxy.start())
            stack.callback(lambda proxy=proxy: loop.wait_for(proxy.cut()))
        storage = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        storage["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxies['store'].port}"
        environment = storage | {"OPENAI_BASE_URL": f"http://127.0.0.1:{proxies['judge'].port}/v1"}
        write_files(folder, environment, proxies["kubernetes"])
        chaos_stage.install(folder / "environments", environments)
        port = free_port()
        database = f"chaos_{port}"
        postgres.psql(f"create database {database};")
        variables = airflow_environment(
            environments,
            folder,
            port,
            KUBECONFIG=str(folder / "kubeconfig"),
            AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=postgres.get_uri(database, driver="psycopg2"),
            HALOS_EVAL_STORE=store,
            HALOS_EVAL_CHECKPOINTS=str(folder / "checkpoints"),
            HALOS_EVAL_SUITES=str(folder / "suites"),
            HALOS_EVAL_POLICY=str(folder / "policy.yaml"),
            HALOS_EVAL_CLUSTER=str(folder / "cluster.yaml"),
            **storage,
            **QUICKER,
        )
        migrate(variables)
        running = stack.enter_context(components(variables, port))
        yield Lab(port, store, loop, running, pods, (postgres, database), proxies, asked)


def ended(lab):
    return all(run["state"] in DONE for dag in (NIGHT, EVALUATE) for run in lab.runs(dag))


def killed_at_random(lab):
    """Kill at random moments until all are evaluated, at most KILLS times; what was killed how often."""
    dice = random.Random(SEED)
    killed = Counter()
    while killed.total() < KILLS and not lab.complete():
        time.sleep(dice.uniform(1, 12))
        for name in dice.choices(VICTIMS, k=dice.choice((1, 1, 1, 2, 3))):  # one failure seldom comes alone
            if victim := lab.kill(name, dice):
                killed[victim] += 1
                log.warning("kill %d: %s", killed.total(), victim)
    return killed


def test_a_night_in_which_everything_is_killed(environments, tmp_path_factory, postgres):  # noqa: F811
    folder = tmp_path_factory.mktemp("chaos")
    with night(environments, folder, postgres) as lab:
        lab.call("PATCH", f"/dags/{NIGHT}", {"is_paused": False})  # that starts the last night at once
        lab.trigger(NIGHT)
        killed = killed_at_random(lab)
        wait_for(lambda: ended(lab), LONGEST, lambda: states(lab), every=2)
        failed = failures(lab)
        log.warning("SEED=%d: %d killed: %s; failed: %s", SEED, killed.total(), dict(killed), failed)
        nights = 1
        while not lab.complete() and nights < 3:  # what used up its retries is the next night's
            another_night(lab)
            nights += 1
        pods = lab.pods.figures["created"]
        assert another_night(lab) == "success"
        assert lab.pods.figures["created"] == pods  # there was nothing left to do
        check_results(lab)
        check_nothing_is_paid_twice(lab)
        assert all(failed.values()), failed
        wait_for(lambda: not lab.pods.processes, 60, lambda: lab.pods.processes)
        assert not {name for name, pod in lab.pods.pods.items() if pod["status"]["phase"] in {"Pending", "Running"}}
        log.warning("%d nights, %d pods, %d without a free GPU", nights, pods, lab.pods.figures["without_a_free_gpu"])
    wait_for(lambda: not with_words(str(folder)), 60, lambda: with_words(str(folder)))


def another_night(lab):
    state, _ = lab.finish(lab.trigger(NIGHT), LONGEST, NIGHT)
    wait_for(lambda: ended(lab), LONGEST, lambda: states(lab), every=2)
    return state


def check_results(lab):
    """Every result is there once, and is that of an undisturbed night."""
    records = lab.records()
    assert records.keys() == {(name, *stage) for name in NAMES for stage in STAGES}
    for (name, stage, task), record in records.items():
        scores = {score["metric"]: score["value"] for score in record["scores"]}
        if stage == "harness":
            assert scores == {"acc": fmean(chaos_stage.correct(name, task, n) for n in range(chaos_stage.DOCUMENTS))}
        if stage == "judge":
            assert scores["win_rate"] == pytest.approx(undisturbed_win_rate(lab, name, records), abs=1e-9)
    rows = read_rows(lab.store, "own")
    assert sorted(row.checkpoint for row in rows) == NAMES
    undefined = "alpacaeval_lcwr: length control is defined for AlpacaEval's own 805 instructions only"
    assert {words for row in rows for words in status(row)} == {undefined}


def undisturbed_win_rate(lab, name, records):
    """What the judge's double makes of the answers of this checkpoint's double of a model."""
    reference = {row["instruction"]: row["output"] for row in prompts.load("demo", "reference").rows}
    rows = answers(lab, name, records)
    return 100 * fmean(preference(row["instruction"], row["output"], reference[row["instruction"]]) for row in rows)


def answers(lab, name, records):
    """The sampled answers, which must be the model's."""
    record = records[name, "sample", None]
    (file,) = (file for file in record["files"] if file.startswith("outputs-"))
    (data,) = lab.files(f"runs/{name}/sample", file).values()
    rows = json.loads(data)
    assert len(rows) == len(prompts.load("demo", "prompts").rows)
    for row in rows:
        prompt = f"<|im_start|>user\n{row['instruction']}<|im_end|>\n<|im_start|>assistant\n"
        assert row["output"] == chaos_stage.text_of(name, prompt)
    return rows


def check_nothing_is_paid_twice(lab):
    """No answer that was kept is asked for again; what a kill may lose are the answers of the last two seconds."""
    kept = {}
    for url, data in lab.files("answers", ".jsonl").items():
        saved = int(url.rpartition("/")[2].partition("-")[0])
        for line in data.decode().splitlines():
            key = json.loads(line)[0]
            kept[key] = min(saved, kept.get(key, saved))
    assert kept.keys() == {key for _, key in lab.asked}
    late = [key for at, key in lab.asked if at > kept[key]]
    assert not late, f"{len(late)} of {len(lab.asked)} requests had an answer that was kept"
    pairs = len(NAMES) * len(prompts.load("demo", "prompts").rows)
    assert len(kept) == pairs
    log.warning("%d pairs, %d requests", pairs, len(lab.asked))


def states(lab):
    runs = {run["dag_run_id"]: (dag, run["state"]) for dag in (NIGHT, EVALUATE) for run in lab.runs(dag)}
    open_ones = [(dag, name) for name, (dag, state) in runs.items() if state not in DONE]
    return {name: lab.states(name, dag) for dag, name in open_ones[:3]}


def failures(lab):
    """The failed tasks of all runs, with the last error in the log of their last try."""
    found = {}
    for run in lab.runs(EVALUATE):
        for one in lab.instances(run["dag_run_id"]):
            if one["state"] == "failed":
                key = (run["conf"]["checkpoint"], one["task_id"], one["map_index"])
                words = lab.log(run["dag_run_id"], one["task_id"], one["map_index"], one["try_number"])
                found[key] = [line[:500] for line in words.splitlines() if "rror" in line or "ailed" in line][-1:]
    return found

"""Seconds of loading, work and idling with a pod for each task, packed, and of the bare ``lm_eval`` in one process.

python -m benchmarks.gpu_hours [TASK ...]     with tasks, only these, and what is measured is kept for the next run

Pods are processes on this machine, with the command lines that the planner makes for it. Load and work are those of the
records: until the first request, and from then on. A process idles for the rest: it starts, reads the weights' state,
describes itself and ends. GSM8K, BBH and HumanEval are measured if ../shared/hub is there. A run that was interrupted
goes on after what is in var/bench-gpu-hours. Another table follows, of GPUs, by assumption (`benchmarks.gpu_assumed`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import yaml

from benchmarks import gpu_assumed
from halos_eval.checkpoints.registry import Checkpoint
from halos_eval.config.cluster import DEFAULT_PROFILE, load_cluster
from halos_eval.config.suite import Suite, load_suite
from halos_eval.demo.checkpoints import INTACT
from halos_eval.demo.installation import CHECKPOINTS, ENVIRONMENTS, HERE, LOGS, VAR, make_checkpoints
from halos_eval.planning.expected import Expected, packing_of
from halos_eval.planning.jobs import PlannedJob, StageJob
from halos_eval.planning.packing import Packing
from halos_eval.planning.packs import packs_of
from halos_eval.planning.plan import Plan, make_plan, suite_manifest
from halos_eval.processes import NO_REPORTS
from halos_eval.shipped import shipped
from halos_eval.stages.vllm import kv_cache_bytes
from halos_eval.storage import layout
from halos_eval.storage.records import Record, read_record
from tests.doubles.code_eval import script

FOLDER = VAR / "bench-gpu-hours"
PUBLISHED = HERE.parent / "shared" / "hub" / "data"
PYTHON = ENVIRONMENTS / "worker" / "bin" / "python"
MODEL = CHECKPOINTS / INTACT / "FINAL"
LENGTH, BATCHED, ANSWER = 2048, 4096, 32
"""Tokens: of the longest prompt and answer, of a step, of an answer."""
SHIPPED = ("demo_choice", "demo_arithmetic", "demo_cloze")
BESIDE = ("demo_choice", "demo_cloze")
"""Tasks of log-likelihoods beside the published ones."""
LIMITS = {"gsm8k_cot": 96, "bbh_cot_fewshot_date_understanding": 96, "humaneval": 96}
"""Documents of each published task; BBH has 27 such subtasks. Together they are about six loads of work."""
ONE = "demo_choice"
SAME = 1e-4
"""Difference of scores that counts as none: other batches add numbers in another order."""
# lm_eval's own metric executes answers, which takes no GPU and would need a sandbox.
METRIC = script('{f"pass@{one}": 0.0 for one in k}, {}')

Scores = dict[str, float]


class Measured(NamedTuple):
    """What one process took, or several."""

    pods: int
    seconds: float
    """From the start to the end of each process."""
    load: float
    work: float
    scores: Scores

    @property
    def cells(self) -> list[str]:
        """Cells of the table."""
        idle = self.seconds - self.load - self.work
        seconds = [f"{one:.0f} s" for one in (self.seconds, self.load, self.work, idle)]
        return [str(self.pods), *seconds, f"{self.load / self.seconds:.0%}"]


def total(found: Sequence[Measured]) -> Measured:
    """Return what several processes took together."""
    scores = {name: value for one in found for name, value in one.scores.items()}
    pods, seconds, load, work = (sum(values) for values in zip(*(one[:4] for one in found), strict=True))
    return Measured(int(pods), seconds, load, work, scores)


class Bench(NamedTuple):
    """A prepared suite: its data is fetched."""

    suite: Suite
    environment: dict[str, str]

    def plan(self, store: str, tasks: Sequence[str]) -> Plan:
        """Return the plan of some tasks with results in the empty ``store``."""
        shutil.rmtree(FOLDER / store, ignore_errors=True)
        cluster = load_cluster()
        manifest = suite_manifest(self.suite.name, _root("data"), cluster)
        return make_plan(self.suite.keep([*tasks]), CHECKPOINT, _root(store), cluster, manifest=manifest)

    def pod(self, task: str) -> Measured:
        """Measure a task in a pod of its own."""
        return self._run(self.plan(f"pod-{task}", [task]), Packing())

    def packed(self, tasks: Sequence[str], expected: Expected) -> Measured:
        """Measure tasks as the planner packs them if earlier records took what is ``expected``."""
        packing = packing_of(self.suite, CHECKPOINT, tasks, expected)
        return self._run(self.plan("+".join(tasks), tasks), packing)

    def _run(self, plan: Plan, packing: Packing) -> Measured:
        packs = packs_of(plan.jobs, packing, datetime.now(UTC), force=False)
        jobs: list[StageJob] = [*packs.jobs]
        jobs += [job.generate or job for job in plan.jobs if job.title not in packs.packed]
        seconds = 0.0
        for job in jobs:
            seconds += _timed([PYTHON.with_name("halos-eval"), *job.argv], self.environment, job.title)
        records = [_record(job) for job in plan.jobs]
        load, work = (sum(getattr(one.usage, name) for one in records) for name in ("load_seconds", "work_seconds"))
        return Measured(len(jobs), seconds, load, work, {name: one for each in records for name, one in _scores(each)})

    def bare(self, tasks: Sequence[str]) -> Measured:
        """Measure tasks in one process of lm_eval, with the same documents and settings."""
        name = f"bare-{'+'.join(tasks)}"
        times, output = FOLDER / f"{name}.json", FOLDER / name
        shutil.rmtree(output, ignore_errors=True)
        config = json.loads((MODEL / "config.json").read_bytes())
        arguments = {
            "pretrained": MODEL,
            "dtype": "float32",
            "max_model_len": LENGTH,
            "enforce_eager": True,
            "kv_cache_memory_bytes": kv_cache_bytes(config, "float32", LENGTH),
            "max_num_batched_tokens": BATCHED,
        }
        samples = {task: [*range(LIMITS[task])] for task in tasks if task in LIMITS}
        words = [PYTHON, "-m", "benchmarks.bare_harness", times, "run", "--model=vllm", f"--output_path={output}"]
        words += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
        words += [f"--tasks={','.join(tasks)}", f"--include_path={shipped('tasks')}", "--confirm_run_unsafe_code"]
        words += ["--gen_kwargs", f"max_gen_toks={ANSWER}"]
        words += ["--samples", json.dumps(samples)] if samples else []
        seconds = _timed(words, self.environment | {"HF_ALLOW_CODE_EVAL": "1"}, name)
        usage = json.loads(times.read_bytes())
        (results,) = output.rglob("results_*.json")
        found = json.loads(results.read_bytes())["results"]
        scores = {f"{task} {key}": one for task, row in found.items() for key, one in row.items() if "," in key}
        return Measured(1, seconds, usage["load_seconds"], usage["work_seconds"], scores)


CHECKPOINT = Checkpoint(name=INTACT, location=str(MODEL))


def _root(name: str) -> str:
    return f"file://{FOLDER / name}"


def _record(job: PlannedJob) -> Record:
    """Return the record of the half that loads the model."""
    url = job.record.removesuffix(layout.RECORD) + layout.GENERATED if job.score else job.record
    record = read_record(url)
    if record is None:
        raise SystemExit(f"{job.title} left no record at {url}; the logs are in {LOGS}")
    return record


def _scores(record: Record) -> Iterator[tuple[str, float]]:
    for one in record.scores:
        yield f"{one.task} {one.metric},{one.filter}", one.value


def _timed(words: Sequence[object], environment: dict[str, str], title: str) -> float:
    """Run a command to its end; return its seconds. Raise SystemExit with the end of its log if it fails."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"bench-{title.replace(' ', '')[:100]}.log"
    began = time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run([*map(str, words)], env=environment, stdout=file, stderr=file, cwd=HERE, check=False)
    if done.returncode:
        raise SystemExit(f"{title} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return time.monotonic() - began


def _settings(task: str) -> dict[str, object]:
    """Return the suite's settings of a task."""
    if task in BESIDE:
        return {}
    limit = {"limit": LIMITS[task]} if task in LIMITS else {}
    return {**limit, "gen_kwargs": {"max_gen_toks": ANSWER}, "confirm_unsafe_code": task == "humaneval"}


@contextmanager
def prepared(tasks: Sequence[str]) -> Iterator[Bench]:
    """Fetch the data of ``tasks``, start Python's libraries once, and serve what is published until the end."""
    make_checkpoints()
    FOLDER.mkdir(parents=True, exist_ok=True)
    document = {
        "harness": {"dtype": "float32", "max_model_len": LENGTH},
        "enforce_eager": True,
        "max_num_batched_tokens": BATCHED,
        "tasks": {task: _settings(task) for task in tasks},
    }
    file = FOLDER / "bench.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    with _hub() as endpoint:
        environment = {**os.environ, **NO_REPORTS, "HF_HOME": str(FOLDER / "hub"), "HF_ENDPOINT": endpoint}
        os.environ["HF_HOME"] = environment["HF_HOME"]  # the planner looks for the manifest there
        suite = load_suite(str(file))
        program = PYTHON.with_name("halos-eval")
        _timed([program, "fetch", f"--manifest={layout.manifest_url(_root('data'), suite.name)}", "--", file],
               environment, "fetch")  # fmt: skip
        _timed([PYTHON, "-c", "import lm_eval.models.vllm_causallms, vllm"], environment, "import")
        yield Bench(suite, environment)


@contextmanager
def _hub() -> Iterator[str]:
    """Serve a copy of the published data, with a metric that executes nothing; give its address."""
    root = FOLDER / "published"
    metric = root / "spaces" / "evaluate-metric" / "code_eval" / "code_eval.py"
    metric.parent.mkdir(parents=True, exist_ok=True)
    metric.write_text(METRIC, encoding="utf-8")
    for file in filter(Path.is_file, PUBLISHED.rglob("*")):
        copy = root / file.relative_to(PUBLISHED)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)  # without the modes: it may be read-only
    words = [sys.executable, HERE / "tests" / "doubles" / "hub.py", root, "--port", "0"]
    with subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True) as hub:
        try:
            yield next(hub.stdout or iter(())).strip().partition("=")[2]
        finally:
            hub.terminate()


def kept(name: str, measure: Callable[[], Measured]) -> Measured:
    """Return what was measured under ``name`` before an interruption, or measure and keep it."""
    file = FOLDER / f"measured-{name}.json"
    if file.is_file():
        print(f"from an earlier run: {name}. Remove {FOLDER} to measure again", file=sys.stderr)
        return Measured(*json.loads(file.read_bytes()))
    print(f"measuring {name}", file=sys.stderr, flush=True)
    found = measure()
    file.write_text(json.dumps(found), encoding="utf-8")
    return found


def compare(bench: Bench, tasks: Sequence[str]) -> dict[str, Measured]:
    """Measure each way to run ``tasks``; the last one is the bare tool."""
    pods = {task: kept(f"pod-{task}", partial(bench.pod, task)) for task in tasks}
    found = {"a pod for each task": total([*pods.values()])}
    if len(tasks) > 1:
        work = {(task, DEFAULT_PROFILE): one.work for task, one in pods.items()}
        expected = Expected(work, {DEFAULT_PROFILE: median(one.load for one in pods.values())})
        found["packed"] = kept("+".join(tasks), partial(bench.packed, tasks, expected))
    return {**found, "bare lm_eval, one process": kept(f"bare-{'+'.join(tasks)}", partial(bench.bare, tasks))}


def main(chosen: Sequence[str]) -> None:
    """Measure and print all tables. Raise SystemExit if the ways give other scores."""
    published = (*LIMITS, *BESIDE) if PUBLISHED.is_dir() else ()
    sets = {ONE: (ONE,), "the demo's tasks": SHIPPED, "published tasks": published}
    if chosen:
        sets = {"chosen tasks": tuple(chosen)}
    with prepared([*dict.fromkeys(task for tasks in sets.values() for task in tasks)]) as bench:
        found = {title: compare(bench, tasks) for title, tasks in sets.items() if tasks}
    print("| tasks | way | pods | time | load | work | idle | load / time | time / bare lm_eval |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    different = []
    for title, ways in found.items():
        *_, bare = ways.values()
        for way, one in ways.items():
            print(f"| {' | '.join([title, way, *one.cells, f'{one.seconds / bare.seconds:.2f}'])} |")
            different += [f"{way}: {name}" for name in one.scores if not _same(name, one.scores, bare.scores)]
    print()
    gpu_assumed.main()
    if different:
        names = ", ".join(different)
        raise SystemExit(f"other scores than those of the bare lm_eval: {names}. Remove {FOLDER} to measure again")
    if not chosen:
        shutil.rmtree(FOLDER)


def _same(name: str, scores: Scores, others: Scores) -> bool:
    return name in others and abs(scores[name] - others[name]) <= SAME * max(1, abs(others[name]))


if __name__ == "__main__":
    main(sys.argv[1:])

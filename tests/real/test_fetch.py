"""``halos-eval fetch`` against a hub, and what runs from it with the hub out of reach."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import pytest

from tests.conftest import NO_HUB
from tests.doubles.code_eval import script
from tests.doubles.hub_data import BBH_ROWS, BBH_SUBSETS, GSM8K_TEST, HUMANEVAL

pytestmark = [pytest.mark.real, pytest.mark.vllm]

SUITE = """
alpaca_eval: {}
tasks:
  gsm8k_cot: {}
  bbh_cot_fewshot: {}
  humaneval: {confirm_unsafe_code: true}
  demo_choice: {}
"""
VLLM = ("--max-model-len=2048", "--enforce-eager")
TOKEN = "hf_never-to-be-shown"
METRIC = script('{f"pass@{one}": VALUE for one in k}, {}', "from .figures import VALUE")
METRIC_VALUE = "spaces/evaluate-metric/code_eval/figures.py"
# What the harness stage does before it loads a model.
LOAD = """
import json
import sys
from halos_eval.config.suite import load_suite
from halos_eval.data.replay import replayed
from halos_eval.stages.harness.options import HarnessConfig
from halos_eval.stages.harness.tasks import dataset_revisions, include_paths, load_tasks
from halos_eval.stages.harness.task_index import task_manager

suite, manifest, *tasks = sys.argv[1:]
found = {}
with replayed(HarnessConfig(model="", task=tasks[0], output_dir="", manifest=manifest).load_manifest()):
    manager = task_manager(tasks, include_paths(None))
    for task in tasks:
        settings = load_suite(suite).tasks[task].model_dump(exclude={"metric", "profile"})
        loaded = load_tasks(HarnessConfig(model="", task=task, output_dir="", **settings), manager)
        leaves = [leaf for one in loaded for leaf in (one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one])]
        found[task] = {
            "documents": sum(len(leaf.eval_docs) for leaf in leaves),
            "commits": sorted(set(dataset_revisions(loaded).values())),
        }
        if task == "humaneval":
            found[task]["metric"] = leaves[0]._metric_fn_list["pass_at_k"](["x"], [["y"]], [1])
print(json.dumps(found))
"""


class Place(NamedTuple):
    """A hub with a log of its requests, a suite, and a cache."""

    root: Path
    environment: dict[str, str]
    log: Path
    suite: Path
    cache: Path

    def sha(self, kind, repo):
        """The commit at which the hub says that a repository stands."""
        with urlopen(f"{self.environment['HF_ENDPOINT']}/api/{kind}/{repo}", timeout=10) as reply:
            return json.load(reply)["sha"]

    def requests(self):
        """How many requests of each kind the hub has got so far; ``files`` are bodies of files."""
        lines = re.findall(r'"(HEAD|GET|POST) (\S+) HTTP', self.log.read_text())
        return Counter("files" if "/resolve/" in path and verb == "GET" else "questions" for verb, path in lines)


@pytest.fixture(scope="module")
def place(serve_hub, hub_data, tmp_path_factory):
    """``place()`` gives a Place with the data of the hub's double; ``place(hub)`` one with another hub."""

    def make(hub=None):
        hub = hub or serve_hub(hub_data())
        write_metric(hub.root, 0.25)
        folder = tmp_path_factory.mktemp("fetched")
        suite, cache = folder / "mine.yaml", folder / "cache"
        suite.write_text(SUITE)
        return Place(hub.root, {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(cache)}, hub.log, suite, cache)

    return make


def write_metric(root, value):
    path = root / METRIC_VALUE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"VALUE = {value}\n")
    path.with_name("code_eval.py").write_text(METRIC)


def fetch(run, place, manifest, *words, **env):
    return run("worker", "fetch", f"--manifest={manifest}", *words, "--", place.suite, env=place.environment | env)


def manifest_at(path):
    return json.loads(path.read_text())


def commits(manifest):
    return {(item["kind"], item["repo"]): item["revision"] for item in manifest["items"]}


@contextmanager
def changed(*paths):
    """Put the files back as they were when the context ends: the hub's commits follow from their content."""
    before = {path: path.read_text() for path in paths}
    try:
        yield
    finally:
        for path, text in before.items():
            path.write_text(text)


def contents(folder):
    """Every file below ``folder`` with its size and time."""
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def fetched(run, place, tmp_path_factory):
    """A Place with everything fetched, and its manifest's path."""
    made = place()
    path = tmp_path_factory.mktemp("store") / "manifest.json"
    done = fetch(run, made, path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "unavailable" not in done.stdout
    return made, path


def test_the_manifest_has_the_hubs_commits(fetched):
    place, path = fetched
    manifest = manifest_at(path)
    assert commits(manifest) == {
        ("dataset", "SaylorTwift/bbh"): place.sha("datasets", "SaylorTwift/bbh"),
        ("dataset", "openai/gsm8k"): place.sha("datasets", "openai/gsm8k"),
        ("dataset", "openai/openai_humaneval"): place.sha("datasets", "openai/openai_humaneval"),
        ("file", "tatsu-lab/alpaca_eval"): place.sha("datasets", "tatsu-lab/alpaca_eval"),
        ("metric", "evaluate-metric/code_eval"): place.sha("spaces", "evaluate-metric/code_eval"),
    }
    needed = Counter(part for item in manifest["items"] for part in item["needed_by"])
    assert needed == {"alpaca_eval": 3, "gsm8k_cot": 1, "bbh_cot_fewshot": len(BBH_SUBSETS), "humaneval": 2}
    assert {title for title, part in manifest["parts"].items() if part["reason"] is None} == {*needed, "demo_choice"}
    (gsm8k,) = [item for item in manifest["items"] if item["repo"] == "openai/gsm8k"]
    raw = place.root / "datasets" / "openai" / "gsm8k" / "main"
    assert gsm8k["bytes"] == sum(path.stat().st_size for path in raw.iterdir())


def test_a_second_run_asks_the_hub_for_nothing(fetched, run):
    place, path = fetched
    before, manifest, files = place.requests(), path.read_bytes(), contents(place.cache)
    done = fetch(run, place, path)
    assert done.returncode == 0, done.stderr
    assert place.requests() == before
    assert path.read_bytes() == manifest
    assert contents(place.cache) == files
    assert "lm_eval" not in done.stderr


def test_the_next_night_downloads_nothing_that_is_there(fetched, run, tmp_path):
    place, path = fetched
    before = place.requests()
    done = fetch(run, place, tmp_path / "next.json")
    assert done.returncode == 0, done.stderr
    new = place.requests() - before
    assert new["files"] == 0, place.log.read_text()[-3000:]
    assert new["questions"] > 0
    assert manifest_at(tmp_path / "next.json")["items"] == manifest_at(path)["items"]


def load(run, environments, place, manifest, *tasks):
    done = subprocess.run(
        [environments / "worker" / "bin" / "python", "-c", LOAD, place.suite, manifest, *tasks],
        env=run.variables | place.environment | {"HF_ENDPOINT": NO_HUB},
        capture_output=True,
        check=False,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_loaded_is_what_the_manifest_says_wherever_the_branches_stand_by_now(
    fetched, run, environments, tmp_path
):
    """The branches move, another run stages them into the same cache, and then there is no hub any more."""
    place, old = fetched
    new, tasks = tmp_path / "new.json", ("gsm8k_cot", "humaneval", "demo_choice")
    test_set = place.root / "datasets" / "openai" / "gsm8k" / "main" / "test.jsonl"
    with changed(test_set, place.root / METRIC_VALUE):
        test_set.write_text("".join(test_set.read_text().splitlines(keepends=True)[:5]))
        write_metric(place.root, 0.75)
        assert fetch(run, place, new, f"--tasks={json.dumps(tasks)}").returncode == 0
    before, after = manifest_at(old), manifest_at(new)
    for repo in (("dataset", "openai/gsm8k"), ("metric", "evaluate-metric/code_eval")):
        assert commits(before)[repo] != commits(after)[repo]

    files = contents(place.cache)
    group = {
        "bbh_cot_fewshot": {
            "documents": len(BBH_SUBSETS) * BBH_ROWS,
            "commits": [commits(before)["dataset", "SaylorTwift/bbh"]],
        }
    }
    for path, manifest, documents, value, more in (
        (old, before, len(GSM8K_TEST), 0.25, group),
        (new, after, 5, 0.75, {}),
    ):
        found = load(run, environments, place, path, *tasks, *more)
        assert found.pop("demo_choice")["documents"] == 24  # its data is the project's own, which has no commit
        assert found == more | {
            "gsm8k_cot": {"documents": documents, "commits": [commits(manifest)["dataset", "openai/gsm8k"]]},
            "humaneval": {
                "documents": len(HUMANEVAL),
                "commits": [commits(manifest)["dataset", "openai/openai_humaneval"]],
                "metric": {"pass@1": value},
            },
        }
    assert contents(place.cache) == files  # so that it may be mounted read-only, and no pod can change another's data


@pytest.mark.slow
def test_the_published_sets_are_whole(run, place, published_hub, environments, tmp_path):
    made, path = place(published_hub), tmp_path / "manifest.json"
    done = fetch(run, made, path)
    assert done.returncode == 0, done.stderr[-2000:]
    tasks = ("gsm8k_cot", "bbh_cot_fewshot", "humaneval")
    found = load(run, environments, made, path, *tasks)
    assert [found[task]["documents"] for task in tasks] == [1319, 6511, 164]
    assert found["bbh_cot_fewshot"]["commits"] == [commits(manifest_at(path))["dataset", "SaylorTwift/bbh"]]


def test_a_changed_readme_is_another_commit_of_the_same_data(fetched, run, tmp_path):
    place, path = fetched
    readme = place.root / "datasets" / "openai" / "gsm8k" / "README.md"
    with changed(readme):
        readme.write_text(readme.read_text() + "\nThanks to everybody.\n")
        done = fetch(run, place, tmp_path / "m.json", "--tasks=gsm8k_cot")
    assert done.returncode == 0, done.stderr
    (before,) = [item for item in manifest_at(path)["items"] if item["repo"] == "openai/gsm8k"]
    (after,) = manifest_at(tmp_path / "m.json")["items"]
    assert after["revision"] != before["revision"]
    assert after["digest"] == before["digest"]


@pytest.mark.slow
def test_a_gated_set_is_named_with_its_task_and_staged_once_there_is_a_token(run, place, tmp_path):
    made = place()
    (made.root / "gated.txt").write_text(f"openai/openai_humaneval {TOKEN}\n")
    path = tmp_path / "manifest.json"
    chosen = '--tasks=["gsm8k_cot","humaneval"]'
    refused = fetch(run, made, path, chosen)
    assert refused.returncode == 0, refused.stderr
    reason = "the dataset openai/openai_humaneval is gated. Accept its terms on the hub and set HF_TOKEN"
    parts = manifest_at(path)["parts"]
    assert {title: part["reason"] for title, part in parts.items()} == {"gsm8k_cot": None, "humaneval": reason}
    assert f"humaneval is unavailable: {reason}" in refused.stderr
    assert "/openai_humaneval/resolve/" not in made.log.read_text()

    before, log = made.requests(), made.log.read_text()
    given = fetch(run, made, path, chosen, HF_TOKEN=TOKEN)
    assert given.returncode == 0, given.stderr
    assert {part["reason"] for part in manifest_at(path)["parts"].values()} == {None}
    assert "gsm8k" not in made.log.read_text().removeprefix(log)
    assert (made.requests() - before)["files"] > 0
    for text in (refused.stdout, refused.stderr, given.stdout, given.stderr, path.read_text()):
        assert TOKEN not in text


def test_a_set_that_cannot_be_had_is_told_before_the_model_is_loaded(run, place, tmp_path):
    made = place()
    shutil.rmtree(made.root / "datasets" / "openai")
    path = tmp_path / "manifest.json"
    done = fetch(run, made, path, "--tasks=gsm8k_cot")
    assert done.returncode == 3
    assert "gsm8k_cot: the hub has no dataset openai/gsm8k, or it is private" in done.stderr.splitlines()[-1]
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    words = ("harness", model, "--task=gsm8k_cot", f"--manifest={path}", f"--output-dir={tmp_path / 'out'}")
    refused = run("worker", *words, env=made.environment)
    assert refused.returncode == 3
    assert "the hub has no dataset openai/gsm8k" in refused.stderr
    assert "vllm" not in refused.stderr


def test_a_hub_out_of_reach_is_worth_another_try(run, fetched, tmp_path):
    place, path = fetched
    other = place._replace(environment=place.environment | {"HF_ENDPOINT": NO_HUB})
    done = fetch(run, other, tmp_path / "m.json", "--tasks=alpaca_eval")
    assert done.returncode == 5
    assert "the dataset tatsu-lab/alpaca_eval is unavailable (ConnectError)" in done.stderr.splitlines()[-1]
    assert fetch(run, other, path).returncode == 0  # what is fetched needs no hub


@pytest.mark.slow
def test_killed_at_any_time_it_ends_the_same(fetched, run, tmp_path):
    place, path = fetched
    cache = tmp_path / "cache"
    fresh = place._replace(environment=place.environment | {"HF_HOME": str(cache)})
    words = ("worker", "fetch", f"--manifest={tmp_path / 'm.json'}", "--", place.suite)
    marks = ("hub/*/snapshots/*/alpaca_eval.json", "datasets/SaylorTwift___bbh/p*")  # between parts, within one
    for mark in marks:
        with run.started(*words, env=fresh.environment) as process:
            deadline = time.monotonic() + 300
            while not list(cache.glob(mark)):
                assert process.poll() is None, process.log.read_text()[-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "m.json").exists()
    done = fetch(run, fresh, tmp_path / "m.json")
    assert done.returncode == 0, done.stderr[-2000:]
    assert manifest_at(tmp_path / "m.json") == manifest_at(path)


@pytest.mark.slow
def test_two_at_once_fill_one_cache(fetched, run, tmp_path):
    place, path = fetched
    environment = place.environment | {"HF_HOME": str(tmp_path / "cache")}
    targets = [tmp_path / "one.json", tmp_path / "two.json"]
    with ExitStack() as stack:
        commands = [("worker", "fetch", f"--manifest={target}", "--", place.suite) for target in targets]
        processes = [stack.enter_context(run.started(*words, env=environment)) for words in commands]
        for process in processes:
            assert process.wait(timeout=600) == 0, process.log.read_text()[-2000:]
    assert [manifest_at(target) for target in targets] == [manifest_at(path)] * 2


@pytest.mark.slow
def test_a_model_and_data_of_the_hub_with_the_hub_out_of_reach(run, place, tiny, tmp_path):
    made = place()
    shutil.copytree(tiny, made.root / "models" / "lab" / "tiny")
    path = tmp_path / "manifest.json"
    chosen = '--tasks=["gsm8k_cot","humaneval"]'
    words = ("fetch", f"--manifest={path}", chosen, "--", made.suite, "lab/tiny")
    done = run("worker", *words, env=made.environment)
    assert done.returncode == 0, done.stderr[-2000:]
    manifest = manifest_at(path)
    commit = made.sha("models", "lab/tiny")
    assert commits(manifest)["model", "lab/tiny"] == commit

    def harness(task, manifest, *options):
        folder = tmp_path / task
        common = (f"--task={task}", f"--output-dir={folder}", f"--manifest={manifest}", "--dtype=float32")
        environment = made.environment | {"HF_ENDPOINT": NO_HUB}
        done = run("worker", "harness", "lab/tiny", *common, *options, env=environment, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        record = json.loads((folder / "record.json").read_text())
        assert record["checkpoint"]["digest"] == f"hub:{commit}"
        assert record["identity"]["inputs"].keys() == {"model", "data"}
        return record

    record = harness("gsm8k_cot", path, "--limit=2", "--num-fewshot=1", *VLLM)
    assert record["coverage"] == {"attempted": 2, "scored": 2}
    gsm8k = commits(manifest)["dataset", "openai/gsm8k"]
    assert record["provenance"]["inputs"]["dataset:openai/gsm8k/main"] == gsm8k

    # A pod that executes code reaches no store: it reads the copy in the cache.
    (copy,) = (made.cache / "halos-eval").iterdir()
    record = harness("humaneval", copy, "--limit=1", "--confirm-unsafe-code", "--backend=hf")
    assert [score["value"] for score in record["scores"]] == [0.25]
    inputs = record["provenance"]["inputs"]
    assert inputs["metric:evaluate-metric/code_eval"] == commits(manifest)["metric", "evaluate-metric/code_eval"]


def test_the_judge_takes_the_pinned_calibration_with_the_hub_out_of_reach(fetched, run, serve_judge, outputs, tmp_path):
    place, old = fetched
    new = tmp_path / "new.json"
    calibration = place.root / "datasets" / "tatsu-lab" / "alpaca_eval" / "df_gamed.csv"
    with changed(calibration):
        lines = calibration.read_text().splitlines(keepends=True)
        calibration.write_text("".join(lines[: 1 + len(lines) // 2]))  # of two models' rows, those of the first
        assert fetch(run, place, new, "--tasks=alpaca_eval").returncode == 0
    values = {}
    for manifest in (old, new):
        folder = tmp_path / manifest.stem
        words = ("judge", outputs, "--judge=gpt-4.1", f"--output-dir={folder}", f"--manifest={manifest}")
        done = run("judge", *words, env=serve_judge().environment | place.environment | {"HF_ENDPOINT": NO_HUB})
        assert done.returncode == 0, done.stderr[-2000:]
        record = json.loads((folder / "record.json").read_text())
        files = {item["asked"]: item for item in manifest_at(manifest)["items"]}
        assert record["identity"]["inputs"]["calibration"] == files["df_gamed.csv"]["digest"]
        assert record["provenance"]["inputs"]["calibration_revision"] == files["df_gamed.csv"]["revision"]
        values[manifest] = {score["metric"]: score["value"] for score in record["scores"]}
    assert values[old]["win_rate"] == values[new]["win_rate"]
    assert values[old]["length_controlled_winrate"] != values[new]["length_controlled_winrate"]

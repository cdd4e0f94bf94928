"""The command line: one line for an error, an exit code that says what to do next, and tables for people."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from halos_eval import errors
from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.cli import main
from halos_eval.cli.show import show_record
from halos_eval.config.cluster import load_cluster
from halos_eval.config.settings import Settings
from halos_eval.config.suite import load_suite
from halos_eval.planning.costs import Cost
from halos_eval.planning.plan import Plan, make_plan, save_plan
from halos_eval.storage import filesystem, layout
from halos_eval.storage.claims import Claim
from halos_eval.storage.records import Score, Usage, write_model
from tests.doubles import USAGE, finish, make_checkpoint, make_manifest, make_record, write_failure

LOGS = Path(__file__).parents[1] / "reports" / "logs"
COMMANDS = [
    "fetch", "sample", "judge", "serve", "harness", "score", "pack", "summarize", "plan", "prompt", "judges", "compare",
    "export", "checkpoints", "pools", "doctor", "prune",
]  # fmt: skip
CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.HalosEvalError)]


@pytest.fixture
def call(monkeypatch, capsys):
    """``call(*argv)`` returns exit code, standard output and standard error of halos-eval."""
    handler = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("nobody handles SIGTERM"))
    monkeypatch.setenv("COLUMNS", "240")

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["halos-eval", *map(str, argv)])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code, *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def failing(call, monkeypatch):
    """``failing(work)`` runs a command that calls ``work``."""

    def failing(work):
        monkeypatch.setattr(main, "_dispatch", lambda _: work())
        return call("summarize", "/nowhere")

    return failing


def raiser(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_has_its_exit_code_and_one_line(failing, kind):
    code, out, err = failing(raiser(kind("the disk\nis full")))
    assert (code, out) == (kind.exit_code, "")
    assert err == f"halos-eval: {kind.__name__}: the disk is full\n"


def test_the_tree_of_errors_agrees_with_the_classes():
    drawn = re.findall(r"(\w+) +(\d) +(.*)", errors.__doc__)
    assert {(name, int(code)) for name, code, _ in drawn} == {(kind.__name__, kind.exit_code) for kind in CLASSES}
    assert len({kind.exit_code for kind in CLASSES}) == len(CLASSES)
    for name, _, words in drawn:
        retried = bool(re.search(r"(?<!not )retried", words))
        assert getattr(errors, name).retryable == retried, name
    assert all(kind.__doc__ for kind in CLASSES)


def test_the_help_names_every_exit_code(call):
    code, out, _ = call("--help")
    assert code == 0
    for kind in CLASSES:
        assert re.search(rf"\b{kind.exit_code} [a-z]", out), kind


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(main, "_dispatch", lambda _: 1 / 0)
    try:
        with pytest.raises(ZeroDivisionError):  # Python itself gives exit code 1
            main.run(["summarize", "/nowhere"])
    finally:
        signal.signal(signal.SIGTERM, handler)


def test_ctrl_c(failing):
    code, _, err = failing(raiser(KeyboardInterrupt()))
    assert code == 130
    assert "Run it again" in err


def test_sigterm_unwinds(failing):
    unwound = []

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            unwound.append(True)

    assert failing(work)[0] == 143
    assert unwound


@pytest.mark.parametrize("argv", [["--help"], []])
def test_help_lists_the_commands(call, argv):
    code, out, _ = call(*argv)
    assert code == 0
    assert re.search(r"\{(.*?)\}", out)[1].split(",") == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_describes_its_options(call, command):
    code, out, _ = call(command, "--help")
    assert code == 0
    kind = main.HalosEval.model_fields[command].annotation.__args__[0]
    text = " ".join(out.split())
    for name, field in kind.model_fields.items():
        if name not in {
            "expect",
            "owner",
            "force_id",
            "location",
            "known",
            "root",
            "since",
            "failed",
            "again",
        }:  # set by the plan or by Airflow only
            assert field.description, name
            assert " ".join(field.description.split())[:20] in text, name
    assert "expect" not in out


@pytest.mark.parametrize(
    "argv",
    [
        ["--unknown"],
        ["unknown"],
        ["summarize", "/x", "--unknown=1"],
        ["judge", "/x"],  # no --output-dir
        ["sample"],
        ["sample", "a", "b"],
    ],
)
def test_an_invalid_command(call, argv):
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert "usage: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan", "nothing", "/nowhere"], "unknown suite 'nothing'"),
        (["plan", "demo", "/nowhere/kto"], "/nowhere/kto is neither a folder nor a hub repository"),
        (["summarize"], "expected either a store or --logs"),
        (["summarize", "/nowhere"], "nothing has been evaluated there yet"),
        (["summarize", "/nowhere", "--suite=../x"], "--suite: "),
        (["summarize", "--logs=/nowhere"], "/nowhere does not exist"),
        (["sample", "/nowhere/kto"], "/nowhere/kto is neither a folder nor a hub repository"),
        (["sample", "/kto", "--top-p=2"], "--top-p: "),
        (["sample", "/kto", "--stop=###"], '--stop: Value error, expected a JSON list, such as ["###"]'),
        (["harness", "/kto", "--task=../x", "--output-dir=/o"], "--task: "),
        (["harness", "/kto", "--task=x", "--output-dir=/o", "--fewshot-as-multiturn"], "requires apply_chat_template"),
        (["judge", "/nowhere.json", "--output-dir=/o"], "/nowhere.json not found"),
        (["prune", "--keep=0"], "--keep: Input should be greater than or equal to 1"),
        (["prune", "--cache", "--match=a"], "--cache looks at all checkpoints; expected no --match"),
        (["prompt", "/nowhere/kto"], "/nowhere/kto is neither a folder nor a hub repository"),
        (["prompt", "/kto", "--first=0"], "--first: "),
        (["prompt", "/kto", '--stop=[""]'], "--stop-0: String should have at least 1 character"),
        (["prompt", "/kto", "--num-fewshot=1", "--apply-chat-template"], "apply_chat_template, num_fewshot requires"),
        (["prompt", "/kto", "--task=x", "--prompts=demo"], "prompts cannot be used with --task"),
        (["prompt", "/kto", "--task=x", "--fewshot-as-multiturn"], "requires apply_chat_template"),
    ],
)
def test_bad_input_is_one_line(call, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("halos-eval: BadInput: ")
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_summarize_logs(call, tmp_path):
    output = tmp_path / "summary.csv"
    code, out, err = call("summarize", "--logs", LOGS, "--output", output)
    assert (code, err) == (0, "")
    frame = pd.read_csv(output)
    assert len(frame) > 1
    for name in frame["model_name"]:
        assert name in out
    assert "alpacaeval_lcwr" in out
    assert "24.61" in out
    assert out.endswith(f"summary: {output}\n")


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    make_checkpoint(tmp_path / "checkpoints" / "kto" / "FINAL")
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("HALOS_EVAL_STORE", f"file://{tmp_path}/store")
    return tmp_path / "checkpoints"


def planned(call, checkpoint, *options):
    """Return the plan of the suite demo and its cost, from the JSON output."""
    code, out, err = call("plan", "demo", checkpoint, "--json", *options)
    assert (code, err) == (0, "")
    document = json.loads(out)
    document.pop("packing")
    cost = Cost.model_validate(document.pop("cost"))
    return Plan.model_validate(document), cost


def test_plan_of_a_registered_checkpoint(call, checkpoints):
    code, out, _ = call("plan", "demo", "kto")
    assert code == 0
    assert "demo on kto" in out
    assert out.count("never run") == 5
    assert "demo_arithmetic" in out
    assert out.endswith(
        "cost: 2 pods, at least 0.00 GPU-hours and 0.00 USD for the judge; "
        "no history for: sample, judge, demo_choice, demo_arithmetic, demo_cloze\n"
    )


def test_a_plan_shows_its_cost_and_an_exceeded_limit(call, checkpoints, monkeypatch):
    make_checkpoint(checkpoints / "dpo" / "FINAL")
    run_jobs(checkpoints, "dpo", "demo_cloze", usage=Usage(load_seconds=60, work_seconds=3540))
    (checkpoints / "policy.yaml").write_text("{limits: {run: {gpu_hours: 1}}, rules: []}")
    monkeypatch.setenv("HALOS_EVAL_POLICY", str(checkpoints / "policy.yaml"))
    out = call("plan", "demo", "kto", "--tasks=demo_cloze")[1]
    assert out.endswith("cost: 1 pod, 1.00 GPU-hours and 0.00 USD for the judge\n")
    assert planned(call, "kto", "--tasks=demo_cloze")[1] == Cost(pods=1, gpu_hours=1)
    (checkpoints / "policy.yaml").write_text("{limits: {run: {gpu_hours: 0.5}}, rules: []}")
    code, out, _ = call("plan", "demo", "kto", "--tasks=demo_cloze")
    assert code == 0
    assert "Airflow would reject this run: estimated cost: 1.00 GPU-hours, 0.50 over the limit of 0.5" in out


def test_plan_as_json(call, checkpoints):
    location = checkpoints / "kto" / "FINAL"
    parts = ["--tasks=demo_cloze,alpaca_eval", "--judge=gpt-4.1-mini", "--force"]
    plan, cost = planned(call, location, *parts)
    assert [job.title for job in plan.jobs] == ["sample", "judge", "demo_cloze"]
    assert {job.why for job in plan.jobs} == {"forced"}
    assert "--judge=gpt-4.1-mini" in plan.jobs[1].argv
    assert plan.checkpoint.name == "kto"
    assert plan.checkpoint.location == str(location)
    assert cost == Cost(pods=2, unknown=("sample", "judge", "demo_cloze"))


def test_a_plan_shows_reasons_as_they_are(call, checkpoints):
    plan, _ = planned(call, "kto")
    write_failure(layout.failure_beside(plan.jobs[0].record), "[/no] [red]markup")
    code, out, _ = call("plan", "demo", "kto")
    assert code == 0
    assert "failed before: BadInput: [/no] [red]markup" in out


def test_a_plan_uses_the_manifest_of_the_store(call, checkpoints):
    write_model(
        layout.manifest_url(Settings().store, "demo"),
        make_manifest(load_suite("demo"), {"demo_cloze": "it is [red]gated"}),
    )
    code, out, _ = call("plan", "demo", "kto")
    assert code == 0
    assert "demo_cloze is unavailable: it is [red]gated" in out.splitlines()
    assert out.count("never run") == 4
    assert planned(call, "kto")[0].unavailable.keys() == {"demo_cloze"}


def test_plan_of_an_unknown_part(call, checkpoints):
    code, _, err = call("plan", "demo", "kto", "--tasks=mmlu")
    assert code == 2
    assert "suite demo has no mmlu" in err


def run_jobs(checkpoints, name, *titles, usage=USAGE):
    """Plan the suite demo on a checkpoint, and write the records of these jobs."""
    suite, store = load_suite("demo"), Settings().store
    found = make_plan(suite, FolderRegistry(str(checkpoints)).get(name), store, load_cluster())
    save_plan(found, suite, store)
    for job in found.jobs:
        if job.title in titles:
            finish(job, usage=usage)


def test_checkpoints_with_their_progress(call, checkpoints):
    make_checkpoint(checkpoints / "dpo" / "FINAL", halos_eval_yaml="tags: {method: dpo, base_model: llama3-8b}")
    make_checkpoint(checkpoints / "half" / "FINAL")
    (checkpoints / "half" / "FINAL" / "model.safetensors").unlink()
    run_jobs(checkpoints, "kto", "sample", "judge", "demo_choice", "demo_arithmetic", "demo_cloze")
    run_jobs(checkpoints, "dpo", "sample", "demo_cloze")
    code, out, err = call("checkpoints")
    assert (code, err) == (0, "")
    rows = {row[0]: row[1:] for line in out.splitlines() if (row := [cell.strip() for cell in line.split("│")[1:-1]])}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", rows["kto"][0])
    assert rows["kto"][1:] == ["", "complete"]
    assert rows["dpo"][1:] == ["base_model: llama3-8b, method: dpo", "2 of 5"]
    assert "half: " in out
    assert "is incomplete: model.safetensors is missing" in out


def test_checkpoints_that_match(call, checkpoints):
    for name in ("kto-small", "dpo"):
        make_checkpoint(checkpoints / name / "FINAL")
    os.utime(checkpoints / "dpo" / "FINAL" / "model.safetensors", (2e9, 2e9))

    def names(*options):
        return [one["name"] for one in json.loads(call("checkpoints", "--json", *options)[1])["checkpoints"]]

    assert names("--match=kto*") == ["kto", "kto-small"]
    assert names("--since=2033-05-18") == names("--since=2033-05-18T12:33:20+09:00") == ["dpo"]
    assert names("--since=2033-05-18T03:33:21") == []
    assert names("--match=KTO") == []


def test_checkpoints_as_json(call, checkpoints):
    (checkpoints / "kto" / "FINAL" / "halos_eval.yaml").write_text("{profile: default, tags: {method: kto}}")
    (checkpoints / "orpo" / "FINAL").mkdir(parents=True)
    run_jobs(checkpoints, "kto", "sample")
    found = json.loads(call("checkpoints", "--suite=demo", "--json")[1])
    (kto,) = found["checkpoints"]
    assert (kto["location"], kto["metadata"]["profile"]) == (str(checkpoints / "kto" / "FINAL"), "default")
    assert kto["suites"]["demo"] == {
        "done": ["sample"],
        "failed": [],
        "missing": ["judge", "demo_choice", "demo_arithmetic", "demo_cloze"],
        "series": 1,
        "note": "",
        "complete": False,
    }
    assert list(found["skipped"]) == ["orpo"]
    assert found["unreadable"] == {}


def test_a_damaged_plan_hides_no_progress(call, checkpoints):
    run_jobs(checkpoints, "kto", "sample")
    filesystem.write_bytes(layout.plan_url(Settings().store, "demo", "kto"), b"{")
    code, out, _ = call("checkpoints")
    assert code == 0
    assert "1 of 5" in out


def test_the_terminal_interprets_nothing_of_a_tag(call, checkpoints):
    (checkpoints / "kto" / "FINAL" / "halos_eval.yaml").write_text('tags: {"[red]a": "\\e[31m[/no]\\u202e\\n"}')
    code, out, _ = call("checkpoints")
    assert code == 0
    assert "[red]a: ?[31m[/no]??" in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--since=20331"], "--since: "),
        (["--since=soon"], "--since: "),
        (["--suite=nothing"], "unknown suite 'nothing'; available: demo, halos, halos-reasoning, quick"),
        (["--suite=../demo"], "unknown suite '../demo'; available:"),
    ],
)
def test_checkpoints_with_invalid_options(call, checkpoints, options, words):
    code, out, err = call("checkpoints", *options)
    assert (code, out) == (2, "")
    assert words in err


def test_a_missing_registry(call, checkpoints, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", "/nowhere")
    code, out, err = call("checkpoints")
    assert (code, out) == (3, "")
    assert "RegistryUnavailable: /nowhere does not exist. Mount it or change HALOS_EVAL_CHECKPOINTS" in err


def test_a_plan_of_a_checkpoint_of_a_list(call, checkpoints, monkeypatch):
    (checkpoints / "list.yaml").write_text("checkpoints: [{name: team/kto, location: ./kto/FINAL}]")
    monkeypatch.setenv("HALOS_EVAL_CHECKPOINTS", str(checkpoints / "list.yaml"))
    plan, _ = planned(call, "team/kto")
    assert (plan.checkpoint.name, plan.checkpoint.location) == ("team/kto", str(checkpoints / "kto" / "FINAL"))


def test_an_unknown_name_shows_known_ones(call, checkpoints):
    code, _, err = call("plan", "demo", "ktoo")
    assert code == 2
    assert f"NotRegistered: unknown checkpoint 'ktoo' in {checkpoints}; available: kto" in err


def test_a_plan_of_a_folder_or_repository_that_is_not_registered(call, checkpoints, monkeypatch):
    make_checkpoint(checkpoints.parent / "team" / "dpo")
    make_checkpoint(checkpoints.parent / "orpo")
    monkeypatch.chdir(checkpoints.parent)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for location in ("team/dpo", "orpo"):
        assert planned(call, location)[0].checkpoint.location == location
    assert "team/none is not a folder, and is unavailable on the hub" in call("plan", "demo", "team/none")[2]


def test_a_damaged_registered_checkpoint_is_not_searched_elsewhere(call, checkpoints):
    (checkpoints / "kto" / "FINAL" / "halos_eval.yaml").write_text("a: [")
    code, _, err = call("plan", "demo", "kto")
    assert code == 2
    assert "halos_eval.yaml is not valid YAML" in err


def test_pools_are_what_airflow_imports(call, tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text("{pools: {gpu: 8, judge: 2}, profiles: {default: {}}}")
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    code, out, err = call("pools")
    assert (code, err) == (0, "")
    assert {name: pool["slots"] for name, pool in json.loads(out).items()} == {
        "halos_eval_gpu": 8, "halos_eval_judge": 2, "halos_eval_backfill": 60,
    }  # fmt: skip
    assert all(pool["include_deferred"] is True and pool["description"] for pool in json.loads(out).values())


def test_pools_of_a_broken_file(call, tmp_path, monkeypatch):
    (tmp_path / "cluster.yaml").write_text("{pools: {gpu: 8}, profiles: {}}")
    monkeypatch.setenv("HALOS_EVAL_CLUSTER", str(tmp_path / "cluster.yaml"))
    code, out, err = call("pools")
    assert (code, out) == (2, "")
    assert f"BadInput: cluster file {tmp_path}/cluster.yaml (HALOS_EVAL_CLUSTER): pools.judge: " in err


def test_a_record_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    scores = (
        Score(task="ifeval", metric="acc", value=0.12345, stderr=0.01),
        Score(task="ifeval", metric="f1", filter="strict", value=1, stderr=0),
    )
    show_record(make_record(task="ifeval", scores=scores, missing={"ifeval-[x]": "lm_eval returned nan"}))
    out = capsys.readouterr().out
    for words in ("one: harness", "0.1235", "0.0100", "strict", "ifeval-[x]: lm_eval returned nan", "1 of 1 scored"):
        assert words in out
    assert "0.0000" not in out


FORKS = """
import os, signal, sys
from halos_eval.cli import main

def fork(command):
    child = os.fork()
    if not child:
        os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code or signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)

main._dispatch = fork
sys.argv = ["halos-eval", "pools"]
main.main()
"""


def test_workers_that_a_library_forks_end_at_sigterm_at_once():
    """The command itself unwinds. A worker that did so could miss the signal while it begins to wait for a lock."""
    assert subprocess.run([sys.executable, "-c", FORKS], check=False).returncode == 0


def test_prune_lists_first(call, checkpoints, tmp_path):
    run_jobs(checkpoints, "kto", "demo_cloze")
    parts = next((tmp_path / "store" / "runs").glob("*/*/*")) / "parts"
    parts.mkdir()
    (parts / "1.jsonl").write_text("{}")
    os.utime(parts / "1.jsonl", (0, 0))
    code, out, err = call("prune")
    assert (code, err) == (0, "")
    assert "journal of a run that has ended" in out
    assert out.endswith("1 items, 0.0 MB can be removed. Run it with --delete to remove them\n")
    assert parts.exists()
    code, out, err = call("prune", "--delete", "--match=other")
    assert (code, out, err) == (0, "0 items, 0.0 MB removed\n", "")
    code, out, err = call("prune", "--delete")
    assert (code, err) == (0, "")
    assert out.endswith("1 items, 0.0 MB removed\n")
    assert not parts.exists()
    assert call("prune", "--delete") == (0, "0 items, 0.0 MB removed\n", "")


def test_prune_rejects_an_empty_registry(call, checkpoints):
    shutil.rmtree(checkpoints / "kto")
    code, _, err = call("prune", "--deleted-checkpoints")
    assert code == 2
    assert "has no checkpoint, so all results would be removed. Check HALOS_EVAL_CHECKPOINTS" in err


def test_prune_leaves_the_cache_to_running_evaluations(call, checkpoints, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "cache"))
    run_jobs(checkpoints, "kto", "demo_cloze")
    write_model(layout.manifest_url(Settings().store, "demo"), make_manifest(load_suite("demo")))
    assert call("prune", "--cache")[:2] == (0, "0 items, 0.0 MB can be removed. Run it with --delete to remove them\n")
    turn = layout.turn_url(Settings().store, "demo", "kto")
    claim = Claim(owner="run a of b", until=datetime.now(UTC) + timedelta(hours=1))
    write_model(filesystem.join(turn, "000001.json"), claim)
    code, out, _ = call("prune", "--cache")
    assert code == 0
    assert "kto: run a of b is at work" in out
    assert "HF_HOME: evaluations may be running: the cache stays as it is. Run it again when none is" in out

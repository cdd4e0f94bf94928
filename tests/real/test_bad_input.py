"""What a user can get wrong, through the real command line: found early, told in one line, with the remedy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.doubles.hub_data import output_rows
from tests.real.conftest import expected_win_rate, failure, write

pytestmark = pytest.mark.real

PROMPTS = [{"instruction": "Name a river."}, {"instruction": "Name a lake."}]


@pytest.fixture
def model(tmp_path):
    """A folder that passes for a complete checkpoint until something loads it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def test_no_checkpoint(run, tmp_path):
    done = run("airflow", "plan", "demo", "smolm2-135m", env={"HALOS_EVAL_CHECKPOINTS": str(tmp_path)})
    assert done.returncode == 2
    assert failure(done) == f"NotRegistered: unknown checkpoint 'smolm2-135m' in {tmp_path}; available: none"


def test_a_folder_that_is_no_model(run, tmp_path):
    (tmp_path / "notes.txt").write_text("no weights here")
    done = run("airflow", "plan", "demo", tmp_path)
    assert done.returncode == 2
    assert "is not a model; expected config.json" in failure(done)


def test_a_model_that_is_not_on_the_hub(run):
    done = run("airflow", "plan", "demo", "somebody/something")
    assert done.returncode == 3
    assert "HF_TOKEN if it is gated" in failure(done)


def test_a_checkpoint_that_is_half_there(run, model):
    (model / "model.safetensors").write_bytes(b"")
    done = run("airflow", "plan", "demo", model)
    assert done.returncode == 2
    assert "is truncated" in failure(done)


def test_no_suite(run, model):
    done = run("airflow", "plan", "demmo", model)
    assert done.returncode == 2
    assert (
        failure(done)
        == "BadInput: unknown suite 'demmo'; available: demo, halos, halos-reasoning, quick. Name one of these or "
        "a YAML file"
    )


def test_all_that_is_wrong_in_a_suite_is_told_at_once(run, model, tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text("alpaca_eval: {anotator: gpt-4.1}\ntasks: {gsm8k_cot: {num_fewshot: -1}}\n")
    done = run("airflow", "plan", suite, model)
    assert done.returncode == 2
    words = failure(done)
    assert "alpaca_eval.anotator: Extra inputs are not permitted" in words
    assert "tasks.gsm8k_cot.num_fewshot: Input should be greater than or equal to 0" in words


def test_a_suite_that_is_no_yaml(run, model, tmp_path):
    (tmp_path / "mine.yaml").write_text("tasks: {gsm8k_cot: {\n")
    done = run("airflow", "plan", tmp_path / "mine.yaml", model)
    assert done.returncode == 2
    assert "mine.yaml is not valid YAML" in failure(done)


@pytest.mark.parametrize("command", ["judge", "plan"])
def test_no_judge(command, run, model, few, tmp_path):
    if command == "plan":
        done = run("airflow", "plan", "demo", model, "--judge=gpt-5")
    else:
        done = run("judge", *few[:-1], "--judge=gpt-5", f"--output-dir={tmp_path}")
    assert done.returncode == 2
    assert failure(done).startswith("BadInput: unknown judge 'gpt-5'; available: demo, gpt-4.1, gpt-4.1-mini")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{", "is not valid JSON"),
        ("[]", "is empty"),
        ('{"instruction": "a"}', "is not a JSON list of objects"),
        (json.dumps([*PROMPTS, {"prompt": "Name a sea."}]), "item 2 has no 'instruction'"),
        (json.dumps([*PROMPTS, PROMPTS[0]]), "items 0 and 2 have the same instruction"),
        (None, "No such file"),
    ],
    ids=["no JSON", "empty", "no list", "no instruction", "twice the same", "no file"],
)
def test_prompts_are_checked_before_vllm_is_imported(text, words, run, model, tmp_path):
    prompts = tmp_path / "prompts.json"
    if text is not None:
        prompts.write_text(text)
    done = run("worker", "sample", model, f"--prompts={prompts}", f"--output={tmp_path / 'outputs.json'}")
    assert done.returncode == 2
    assert words in failure(done)
    assert "vllm" not in done.stdout + done.stderr
    assert not list(tmp_path.glob("outputs-*"))


def test_outputs_that_miss_an_instruction(run, serve_judge, few, tmp_path):
    """alpaca_eval would leave the pair out without a word."""
    outputs = write(tmp_path / "outputs.json", output_rows()[2:13])
    endpoint = serve_judge()
    done = run("judge", "judge", outputs, *few[2:], f"--output-dir={tmp_path}", env=endpoint.environment)
    assert done.returncode == 2
    assert "has no output for 1 of 12 reference instructions, such as" in failure(done)
    assert endpoint.stats() == {}


def harness(run, model, task, tmp_path, **env):
    return run("worker", "harness", model, f"--task={task}", f"--output-dir={tmp_path / 'results'}", env=env)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("gsm8k_cott", "unknown lm_eval task 'gsm8k_cott'"),
        ("humaneval", "executes code that the model writes. Run it in a sandbox, and set --confirm-unsafe-code"),
    ],
    ids=["no such task", "unsafe code"],
)
def test_tasks_are_checked_before_the_model_is_loaded(task, words, run, model, tmp_path):
    done = harness(run, model, task, tmp_path)  # loading this model would fail, with another exit code
    assert done.returncode == 2
    assert words in failure(done)
    assert json.loads((tmp_path / "results" / "failure.json").read_text())["error"] == "BadInput"


def test_a_dataset_that_the_hub_does_not_have(run, serve_hub, model, tmp_path):
    (tmp_path / "hub").mkdir()
    endpoint = serve_hub(tmp_path / "hub").endpoint
    done = harness(run, model, "gsm8k_cot", tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path / "cache"))
    assert done.returncode == 3
    assert "DataUnavailable: the data of gsm8k_cot is unavailable" in failure(done)


def test_gated_prompts_need_the_token_and_once_fetched_no_hub(run, serve_hub, hub_data, model, tmp_path):
    root = hub_data()
    (root / "gated.txt").write_text("tatsu-lab/alpaca_eval hf_right\n")
    environment = {"HF_ENDPOINT": serve_hub(root).endpoint, "HF_HOME": str(tmp_path / "cache")}

    def plan(**more):
        words = ("plan", "halos", model, f"--store={tmp_path / 'store'}", "--tasks=alpaca_eval", "--json")
        return run("airflow", *words, env=environment | more)

    for token in ({}, {"HF_TOKEN": "hf_wrong"}):
        refused = plan(**token)
        assert refused.returncode == 3
        assert "tatsu-lab/alpaca_eval/alpaca_eval.json is unavailable (GatedRepoError). Check HF" in failure(refused)
        assert "HF_TOKEN" in failure(refused)
    given = plan(HF_TOKEN="hf_right")
    assert given.returncode == 0, given.stderr
    planned = json.loads(given.stdout)
    assert [job["stage"] for job in planned["jobs"]] == ["sample", "judge"]
    assert json.loads(plan(HF_HUB_OFFLINE="1").stdout) == planned
    assert "hf_right" not in given.stdout + given.stderr


def test_the_gate_is_told_of_by_sample_and_judge_too(run, serve_hub, hub_data, model, tmp_path):
    root = hub_data()
    (root / "gated.txt").write_text("tatsu-lab/alpaca_eval hf_right\n")
    environment = {"HF_ENDPOINT": serve_hub(root).endpoint, "HF_HOME": str(tmp_path / "cache")}
    outputs = write(tmp_path / "outputs.json", output_rows())
    for environment_name, *words in (
        ("worker", "sample", model, f"--output={tmp_path / 'sampled.json'}"),
        ("judge", "judge", outputs, f"--output-dir={tmp_path}"),
    ):
        done = run(environment_name, *words, env=environment)
        assert done.returncode == 3
        assert "HF_TOKEN" in failure(done)


def test_a_store_below_a_file(run, serve_judge, few, tmp_path):
    (tmp_path / "file").write_text("")
    done = run("judge", *few, f"--output-dir={tmp_path / 'file' / 'results'}", env=serve_judge().environment)
    assert done.returncode == 6
    assert "Not a directory" in failure(done)


@pytest.fixture
def small_disk(tmp_path):
    """``small_disk()`` gives a folder with 64 KiB of space; ``small_disk("64m")`` makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        words = ["mount", "-t", "tmpfs", *options, "tmpfs", folder]
        return subprocess.run(words, check=False, capture_output=True, text=True)

    if os.geteuid() or (done := mount("-o", "size=64k")).returncode:
        pytest.skip(f"a small disk cannot be mounted: {'not root' if os.geteuid() else done.stderr.strip()}")
    try:
        yield folder, lambda size: mount("-o", f"remount,size={size}")
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(small_disk, run, serve_judge, outputs):
    """The judge's answers take more than 64 KiB. Once there is space, the same command ends well."""
    folder, resize = small_disk
    endpoint = serve_judge()
    words = ("judge", outputs, "--judge=gpt-4.1", f"--output-dir={folder}")
    full = run("judge", *words, env=endpoint.environment)
    assert full.returncode == 6
    assert "No space left on device. Check the free space" in failure(full)
    assert not (folder / "record.json").exists()

    assert resize("64m").returncode == 0
    done = run("judge", *words, env=endpoint.environment)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "record.json").read_text())
    assert record["scores"][0]["value"] == pytest.approx(expected_win_rate(output_rows()), rel=0, abs=1e-9)
    assert shutil.disk_usage(folder).used > 64 << 10

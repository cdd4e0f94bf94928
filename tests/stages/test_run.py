"""The parts that all stages share: options on the command line, the fingerprint's contents, the order of writing."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic_settings import CliApp, get_subcommand

from halos_eval.checkpoints.weights import inspect
from halos_eval.cli.main import HalosEval
from halos_eval.config.chat import SWITCHES, ChatSettings
from halos_eval.config.suite import TASK_NAME, HarnessSettings, SamplingSettings
from halos_eval.errors import BadInput, EvaluationFailed, Incomplete, StoreError
from halos_eval.stages import run
from halos_eval.stages.harness.options import HarnessConfig, ScoreConfig
from halos_eval.stages.harness.stage import harness
from halos_eval.stages.identity import LOGIC, Job
from halos_eval.stages.judge.options import SWAP, JudgeConfig
from halos_eval.stages.options import StageConfig
from halos_eval.stages.run import Outcome, check_still_named, loading
from halos_eval.stages.sample import SampleConfig, sample
from halos_eval.storage import filesystem, layout
from halos_eval.storage.claims import Busy
from halos_eval.storage.journal import Journal
from halos_eval.storage.records import CheckpointRef, Score, read_failure, read_record
from tests.doubles import COVERAGE, USAGE, make_checkpoint, write_failure, write_safetensors

# An argument of a process holds no NUL and no half of a surrogate pair. "None" is pydantic-settings' word for no value,
# and argparse drops a value that is just "--" (until Python 3.13).
UNSPEAKABLE = {"None", "--"}
CHARACTERS = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
HARD = st.lists(
    st.sampled_from(["-", "--", "force", "=", ",", '"', "'", "[", "]", "{", "}", "\\", " ", "\n", "é", "1"])
)
TEXT = (st.text(CHARACTERS, max_size=12) | HARD.map("".join)).filter(lambda text: text not in UNSPEAKABLE)
OPTIONAL_TEXT = st.none() | TEXT
STOP = st.lists(TEXT.filter(bool), max_size=3).map(tuple)
SHARE = st.floats(0, 1, exclude_min=True)
COUNT = st.integers(1, 2**40)
DTYPE = st.sampled_from(["auto", "bfloat16", "float16", "float32"])
COMMON = {
    "name": OPTIONAL_TEXT,
    "suite": OPTIONAL_TEXT,
    "expect": OPTIONAL_TEXT,
    "owner": OPTIONAL_TEXT,
    "force": st.booleans(),
    "manifest": OPTIONAL_TEXT,
}
VLLM = {
    "model": TEXT,
    "revision": OPTIONAL_TEXT,
    "location": OPTIONAL_TEXT,
    "root": OPTIONAL_TEXT,
    "known": st.lists(st.from_regex("[0-9a-f]{2}:[0-9a-f]{2}", fullmatch=True)).map(tuple),
    "dtype": DTYPE,
    "max_model_len": st.none() | st.integers(),
    "chat_template": OPTIONAL_TEXT,
    "tensor_parallel_size": COUNT,
    "engines": st.none() | COUNT,
    "gpu_memory_utilization": SHARE,
    "max_num_batched_tokens": st.none() | COUNT,
    "enforce_eager": st.booleans(),
}
CHAT = {
    "system_instruction": OPTIONAL_TEXT.filter(lambda text: text != ""),
    "chat_template_args": st.dictionaries(TEXT, st.booleans() | st.integers() | TEXT).filter(
        lambda found: not found.keys() & set(SWITCHES)
    ),
}
THINKING = {
    "thinking": st.sampled_from([None, "on", "off", "default"]),
    "think_start_token": OPTIONAL_TEXT.filter(lambda text: text != ""),
    "think_end_token": OPTIONAL_TEXT.filter(lambda text: text != ""),
}
CONFIGS = {
    SampleConfig: {
        "top_k": st.none() | COUNT,
        "min_p": st.none() | SHARE,
        "presence_penalty": st.none() | st.floats(-2, 2),
        **CHAT,
        **THINKING,
        "temperature": st.floats(0, allow_infinity=False),
        "top_p": SHARE,
        "max_tokens": COUNT,
        "samples_per_prompt": COUNT,
        "reproducible": st.booleans(),
        "seed": st.integers(),
        "stop": STOP,
        "prompts": TEXT,
        "output": TEXT,
        **VLLM,
    },
    HarnessConfig: {
        "num_fewshot": st.none() | st.integers(0),
        "batch_size": st.none() | st.integers(),
        "limit": st.none() | COUNT | st.floats(0.001, 0.999),
        "gen_kwargs": st.fixed_dictionaries({}, optional={"temperature": SHARE, "max_gen_toks": COUNT}),
        **CHAT,
        **dict.fromkeys(["repeats", *THINKING], st.none()),  # not with transformers
        "apply_chat_template": st.just(True),
        "fewshot_as_multiturn": st.booleans(),
        "seed": st.tuples(*[st.integers()] * 4),
        "confirm_unsafe_code": st.booleans(),
        "backend": st.sampled_from(["vllm", "hf"]),
        "reproducible": st.just(False),
        "task": st.from_regex(TASK_NAME, fullmatch=True).map(str.strip).filter(lambda text: text not in UNSPEAKABLE),
        "output_dir": TEXT,
        "include_path": OPTIONAL_TEXT,
        "save_every": COUNT,
        "stop": STOP,
        "answers_only": st.booleans(),
        "copy_answers_to": OPTIONAL_TEXT,
        **VLLM,
    },
    ScoreConfig: {"answers": TEXT, "output_dir": TEXT, "include_path": OPTIONAL_TEXT},
    JudgeConfig: {
        "outputs": TEXT,
        "reference": TEXT,
        "judge": TEXT,
        "exchange": OPTIONAL_TEXT,
        "output_dir": TEXT,
        "concurrency": COUNT,
        "timeout": st.none() | SHARE,
        "answers": OPTIONAL_TEXT,
        "max_cost": st.none() | st.floats(0, 1e6),
        "batch": st.booleans(),
        "force_id": OPTIONAL_TEXT,
        "swap": st.booleans(),
    },
}
ANY_CONFIG = st.one_of(st.builds(kind, **COMMON, **fields) for kind, fields in CONFIGS.items())
COMMANDS = {SampleConfig: "sample", HarnessConfig: "harness", ScoreConfig: "score", JudgeConfig: "judge"}

# The whole classification: each new option must be added to one side.
COMMON_PLACEMENT = {"name", "suite", "expect", "owner", "force", "manifest"}
MODEL_PLACEMENT = COMMON_PLACEMENT | {
    "model", "revision", "location", "known", "root", "chat_template", "tensor_parallel_size", "engines",
    "gpu_memory_utilization", "max_num_batched_tokens", "enforce_eager",
}  # fmt: skip
SCORED = {
    SampleConfig: {
        "dtype", "temperature", "top_p", "max_tokens", "samples_per_prompt", "seed", "stop", "max_model_len",
        "reproducible", "top_k", "min_p", "presence_penalty", *ChatSettings.model_fields,
    },
    HarnessConfig: {
        "backend", "dtype", "num_fewshot", "batch_size", "limit", "apply_chat_template", "fewshot_as_multiturn",
        "seed", "max_model_len", "confirm_unsafe_code", "reproducible", "gen_kwargs", "repeats",
        *ChatSettings.model_fields,
    },
    ScoreConfig: set(),
    JudgeConfig: {SWAP},
}  # fmt: skip
PLACEMENT = {
    SampleConfig: MODEL_PLACEMENT | {"prompts", "output"},
    # stop and chat_template are in the fingerprint of a task that applies the chat template (harness/test_stage.py)
    HarnessConfig: MODEL_PLACEMENT
    | {"task", "output_dir", "include_path", "save_every", "stop", "answers_only", "copy_answers_to"},
    ScoreConfig: COMMON_PLACEMENT | {"answers", "output_dir", "include_path"},
    JudgeConfig: COMMON_PLACEMENT
    | {"outputs", "reference", "judge", "exchange", "output_dir", "concurrency", "timeout", "answers", "force_id"}
    | {"max_cost", "batch"},
}
SMALLEST = {
    SampleConfig: SampleConfig(model="m"),
    HarnessConfig: HarnessConfig(model="m", task="t", output_dir="o"),
    ScoreConfig: ScoreConfig(answers="a", output_dir="d"),
    JudgeConfig: JudgeConfig(outputs="o", output_dir="d"),
}


def parse(argv):
    return get_subcommand(CliApp.run(HalosEval, cli_args=argv), cli_exit_on_error=False)


@given(ANY_CONFIG)
@example(SampleConfig(model="--force", name="--force", output="-h", stop=("\n\n", '"', "a,b", "--force", "]")))
@example(JudgeConfig(outputs="-x", output_dir="--x", judge='{"a": 1}', reference="[1]", name=""))
@example(HarnessConfig(model="m", task="t", output_dir="o", apply_chat_template=True, thinking=True, repeats=4))
@example(HarnessConfig(model="-1", task="1", output_dir="a b", batch_size="auto", seed=(0, 0, 0, -1)))
def test_options_survive_the_command_line(config):
    assert parse([COMMANDS[type(config)], *config.argv()]) == config


@pytest.mark.parametrize("kind", COMMANDS)
def test_defaults_are_left_out(kind):
    assert [word for word in SMALLEST[kind].argv() if word.startswith("--") and "=" not in word] == ["--"]
    assert parse([COMMANDS[kind], *SMALLEST[kind].argv()]) == SMALLEST[kind]


def test_every_option_is_in_the_property_above():
    for kind, fields in CONFIGS.items():
        assert (COMMON | fields).keys() == kind.model_fields.keys()


@pytest.mark.parametrize("kind", SCORED)
def test_every_option_is_classified(kind):
    """The settings are in the fingerprint. Other options affect only where and how fast, or name files by digest."""
    settings = {
        SampleConfig: SamplingSettings.model_fields,
        HarnessConfig: HarnessSettings.model_fields,
        JudgeConfig: [SWAP],
    }
    assert set(settings.get(kind, ())) == SCORED[kind]
    assert set(kind.model_fields) - SCORED[kind] == PLACEMENT[kind]


CONFIG = StageConfig()


@pytest.fixture
def job(tmp_path):
    return Job(
        stage="harness",
        task="demo",
        checkpoint=CheckpointRef(name="kto", location="/kto", digest="d"),
        settings={"limit": 5},
        inputs={"model": "d"},
        packages=(),
        record=str(tmp_path / "record.json"),
    )


def outcome(value=0.5):
    score = Score(task="demo", metric="acc", value=value)
    return Outcome(scores=(score,), coverage=COVERAGE, usage=USAGE, inputs={"dataset": "c"}, details={"x": 1})


def never():
    pytest.fail("the work was done again")


def failure(job):
    return read_failure(layout.failure_beside(job.record))


def test_a_finished_stage_has_its_record_last(job):
    def work():
        assert not filesystem.exists(job.record)
        return outcome()

    record = run.run(job, StageConfig(suite="halos"), work)
    assert read_record(job.record) == record
    assert failure(job) is None
    assert record.fingerprint == job.fingerprint
    assert record.identity == {
        "logic": LOGIC["harness"], "stage": "harness", "task": "demo",
        "settings": {"limit": 5}, "inputs": {"model": "d"}, "tools": {},
    }  # fmt: skip
    assert record.scores == outcome().scores
    assert record.provenance.suite == "halos"
    assert record.provenance.inputs == {"model": "d", "dataset": "c"}
    assert record.provenance.config == {
        "name": None, "suite": "halos", "expect": None, "owner": None, "force": False, "manifest": None,
    }  # fmt: skip
    assert record.provenance.started <= record.provenance.ended


def test_a_finished_stage_is_not_run_again(job):
    first = run.run(job, CONFIG, outcome)
    assert run.run(job, CONFIG, never) == first


def test_a_forced_one_is(job):
    run.run(job, CONFIG, outcome)
    record = run.run(job, StageConfig(force=True), lambda: outcome(0.9))
    assert record.scores[0].value == 0.9
    assert read_record(job.record) == record


def test_a_record_of_something_else_does_not_count(job):
    run.run(job, CONFIG, outcome)
    other = job.model_copy(update={"settings": {"limit": 6}})
    assert run.run(other, CONFIG, lambda: outcome(0.9)).scores[0].value == 0.9


def test_what_was_planned_is_what_is_run(job):
    assert run.run(job, StageConfig(expect=job.fingerprint), outcome)


def test_what_has_changed_since_the_plan_is_not_run(job):
    with pytest.raises(BadInput, match=rf"\({job.fingerprint}\); expected 0000\..*Trigger the evaluation again"):
        run.run(job, StageConfig(expect="0000"), never)
    assert not filesystem.exists(job.record)


def test_an_environment_of_other_tools_does_no_work(job):
    with pytest.raises(EvaluationFailed, match="alpaca-eval"):
        run.run(job.model_copy(update={"packages": ("alpaca-eval",)}), CONFIG, never)


@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (Incomplete("3 prompts have no answer"), Incomplete, "3 prompts have no answer"),
        (KeyError("chat"), EvaluationFailed, "KeyError: 'chat'"),
        (MemoryError("no more"), EvaluationFailed, "MemoryError: no more"),
    ],
)
def test_a_failure_leaves_its_reason_until_a_success(job, raised, kind, message):
    def work():
        raise raised

    with pytest.raises(kind, match=message):
        run.run(job, CONFIG, work)
    note = failure(job)
    assert (note.error, note.message, note.exit_code) == (kind.__name__, message, kind.exit_code)
    assert read_record(job.record) is None
    run.run(job, CONFIG, outcome)
    assert failure(job) is None


def test_a_forced_run_that_fails_keeps_the_record(job):
    first = run.run(job, CONFIG, outcome)
    with pytest.raises(EvaluationFailed):
        run.run(job, StageConfig(force=True), lambda: 1 / 0)
    assert read_record(job.record) == first


@pytest.mark.parametrize("kill", [KeyboardInterrupt, SystemExit])
def test_a_kill_is_no_failure(job, kill):
    def work():
        raise kill

    with pytest.raises(kill):
        run.run(job, CONFIG, work)
    assert failure(job) is None


def test_a_record_that_cannot_be_saved_is_an_error(job, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        run.run(job.model_copy(update={"record": str(tmp_path / "file" / "record.json")}), CONFIG, outcome)


def test_what_is_finished_is_kept_until_the_record_is_there(job, tmp_path, monkeypatch):
    parts = tmp_path / "parts"
    (parts / "x").mkdir(parents=True)
    real = filesystem.write_bytes

    def full(url, data):
        if url == job.record:
            raise StoreError("full")
        real(url, data)

    monkeypatch.setattr(filesystem, "write_bytes", full)
    with pytest.raises(StoreError):
        run.run(job, CONFIG, lambda: outcome().model_copy(update={"parts": str(parts)}))
    assert parts.exists()
    assert failure(job).message == "full"
    monkeypatch.undo()
    run.run(job, CONFIG, lambda: outcome().model_copy(update={"parts": str(parts)}))
    assert not parts.exists()
    assert failure(job) is None


def test_a_full_disk_is_one_wherever_it_is_met(job):
    def work():
        raise OSError(28, "No space left on device", "/tmp/x")

    with pytest.raises(StoreError, match="Free space there"):
        run.run(job, CONFIG, work)
    assert failure(job).exit_code == 6


def test_a_reason_that_cannot_be_saved_does_not_hide_the_failure(job, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise StoreError("full")

    monkeypatch.setattr(filesystem, "write_bytes", full)
    with pytest.raises(EvaluationFailed, match="ZeroDivisionError"):
        run.run(job, CONFIG, lambda: 1 / 0)
    assert "could not be written: full" in caplog.text


@pytest.mark.parametrize(
    "change", [{"settings": {"limit": 6}}, {"inputs": {"model": "e"}}, {"task": "other"}, {"packages": ("vllm",)}]
)
def test_the_fingerprint_covers_the_identity(job, change):
    assert job.model_copy(update=change).fingerprint != job.fingerprint


def test_the_fingerprint_covers_neither_place_nor_name(job):
    moved = CheckpointRef(name="other", location="/other", digest="d")
    assert job.model_copy(update={"checkpoint": moved, "record": "/other"}).fingerprint == job.fingerprint


def test_a_forced_run_has_a_journal_of_its_own(job):
    places = {job.journal("/parts", force) for force in (False, True)}
    other = job.model_copy(update={"settings": {}})
    assert len(places | {other.journal("/parts", False)}) == 3
    assert all(place.startswith("/parts/") for place in places)


def test_an_older_failure_is_overwritten(job):
    write_failure(layout.failure_beside(job.record), "old")
    with pytest.raises(EvaluationFailed):
        run.run(job, CONFIG, lambda: 1 / 0)
    assert "ZeroDivisionError" in failure(job).message


@pytest.mark.parametrize("stage", [harness, sample])
def test_what_was_deleted_since_the_plan_leaves_its_reason(tmp_path, stage):
    record = f"file://{tmp_path}/record.json" if stage is harness else f"file://{tmp_path}/outputs.record.json"
    place = {"task": "arc_easy", "output_dir": f"file://{tmp_path}"}
    if stage is sample:
        place = {"output": f"file://{tmp_path}/outputs.json"}
    kind = HarnessConfig if stage is harness else SampleConfig
    by_hand = kind(model=f"{tmp_path}/gone", **place)
    with pytest.raises(BadInput, match="is neither a folder nor a hub repository"):
        stage(by_hand)
    assert read_failure(layout.failure_beside(record)) is None  # it is on the screen
    with pytest.raises(BadInput):
        stage(by_hand.model_copy(update={"expect": "f"}))
    assert "is neither a folder nor a hub repository" in read_failure(layout.failure_beside(record)).message


def test_a_stage_that_another_process_runs_is_not_run_beside_it(job):
    def work():
        with pytest.raises(Busy, match="task sample of night does this work"):
            run.run(job, CONFIG, never)
        return outcome()

    first = run.run(job, StageConfig(owner="task sample of night"), work)
    assert run.run(job, CONFIG, never) == first
    assert sorted(path.name for path in Path(job.record).parent.iterdir()) == ["record.json"]


def test_a_stage_whose_claim_was_taken_over_saves_nothing(job):
    def work():
        folder = layout.claims_beside(job.record)
        filesystem.create(f"{folder}/000002.json", filesystem.read_bytes(f"{folder}/000001.json"))
        return outcome()

    with pytest.raises(Busy, match="took this work over"):
        run.run(job, CONFIG, work)
    assert read_record(job.record) is None
    assert failure(job) is None


def test_a_damaged_record_is_made_again(job):
    filesystem.write_bytes(job.record, b"{")
    assert run.run(job, CONFIG, outcome) == read_record(job.record)


def test_a_record_that_other_code_may_have_left_is_not_accepted(job):
    run.run(job, CONFIG, lambda: outcome(1))
    assert run.run(job, CONFIG, lambda: outcome(0.25), trusted=False).scores[0].value == 0.25


def test_what_was_journaled_while_the_weights_changed_is_deleted(tmp_path):
    folder = make_checkpoint(tmp_path / "kto")
    weights = inspect(str(folder))
    with Journal(str(tmp_path / "parts" / "f"), seconds=0) as journal:
        journal.add("key", "answer")
        check_still_named(weights, journal)
        assert journal.load() == {"key": "answer"}
        write_safetensors(folder / "model.safetensors", b"trained longer")
        with pytest.raises(BadInput, match="was saved again while it was evaluated"):
            check_still_named(weights, journal)
        assert journal.load() == {}


@pytest.mark.parametrize("saved_again", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_weights_that_change_while_they_are_loaded_are_the_reason_of_what_follows(tmp_path, saved_again, fails):
    folder = make_checkpoint(tmp_path / "kto")
    weights = inspect(str(folder))

    def load():
        with loading(weights):
            if saved_again:
                write_safetensors(folder / "model.safetensors", b"trained longer")
            if fails:
                raise ValueError("incomplete header")

    expected = BadInput if saved_again else ValueError
    if saved_again or fails:
        with pytest.raises(expected):
            load()
    else:
        load()

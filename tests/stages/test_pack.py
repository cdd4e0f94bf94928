"""The pack stage, with stages that take no time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from halos_eval.errors import BadInput, EvaluationFailed, Incomplete
from halos_eval.stages import pack as module
from halos_eval.stages.pack import Kept, PackConfig, out_of_memory, pack
from halos_eval.storage.records import Failure, write_model
from tests.doubles import make_record


class StartedOver(Exception):
    """Stands for the new process."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """``run(results, **options)`` packs the tasks of ``results``; the tasks that ran, and the command of a new process.

    A result is an exception, or None. Each task loads the engine.
    """

    def run(results, force=False, **options):
        ran, restarted = [], []

        def harness(config, load):
            ran.append(config.task)
            load(SimpleNamespace(digest="d", model="m", revision=None, adapter=None), "options")
            if error := results[config.task]:
                raise error

        def start_over(argv):
            restarted.extend(argv)
            raise StartedOver

        monkeypatch.setattr(module, "harness", harness)
        flags = ["--force"] if force else []
        commands = [
            ["harness", f"--task={task}", f"--output-dir={tmp_path / task}", "--expect=f", *flags, "--", "m"]
            for task in results
        ]
        engine = SimpleNamespace(tokenizer={})
        config = PackConfig(commands=json.dumps(commands), **options)
        error = None
        try:
            pack(config, lambda *_: engine, start_over)
        except (StartedOver, BadInput, EvaluationFailed, Incomplete) as raised:
            error = raised
        return SimpleNamespace(ran=ran, error=error, restarted=restarted)

    return run


def test_all_stages_run_in_their_order(run):
    found = run({"one": None, "two": None})
    assert (found.ran, found.error) == (["one", "two"], None)


def test_a_failed_stage_does_not_stop_the_others(run):
    found = run({"one": BadInput("wrong"), "two": None})
    assert found.ran == ["one", "two"]
    assert str(found.error) == "one: wrong"
    assert type(found.error) is BadInput


def test_a_retryable_error_comes_first(run):
    found = run({"one": BadInput("wrong"), "two": Incomplete("later")})
    assert type(found.error) is Incomplete
    assert str(found.error) == "two: later; failed as well: one"


def test_memory_that_is_exhausted_is_tried_again_in_a_new_process(run):
    cause = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    error = EvaluationFailed("no result")
    error.__cause__ = cause
    found = run({"one": None, "two": error, "three": None})
    assert found.ran == ["one", "two"]
    assert type(found.error) is StartedOver
    assert "--again=1" in found.restarted
    assert not any(word.startswith("--failed") for word in found.restarted)
    again = run({"one": None, "two": error, "three": None}, again="1")
    assert "--failed=1" in again.restarted  # the stages after it get a new engine


def test_after_an_unexpected_error_the_others_get_a_new_process(run):
    found = run({"one": EvaluationFailed("?"), "two": None})
    assert found.ran == ["one"]
    assert "--failed=0" in found.restarted


def test_a_new_process_skips_what_failed_and_reports_it(run, tmp_path):
    note = Failure(error="EvaluationFailed", message="no result", exit_code=7, at=datetime.now(UTC))
    write_model(str(tmp_path / "one" / "failure.json"), note)
    found = run({"one": None, "two": None}, failed="0")
    assert found.ran == ["two"]
    assert str(found.error) == "one: no result"


def test_a_forced_stage_runs_only_once(run, tmp_path):
    record = make_record(task="one")
    write_model(str(tmp_path / "one" / "record.json"), record)
    assert run({"one": None}, force=True, since=record.provenance.started).ran == []
    assert run({"one": None}, force=True).ran == ["one"]


@pytest.mark.parametrize("commands", ["x", "[1]", '[["judge", "--", "m"]]', '[["harness", "--no-such=1", "--", "m"]]'])
def test_invalid_commands(commands):
    with pytest.raises(BadInput):
        pack(PackConfig(commands=commands))


def test_the_engine_is_loaded_once_and_its_tokenizer_is_each_stages_own():
    loads = []

    def load(weights, options):
        loads.append(options)
        return SimpleNamespace(tokenizer={"chat_template": None})

    kept = Kept(load)
    weights = SimpleNamespace(digest="d", model="m", revision=None, adapter=None)
    first, second = kept.load(weights, "a"), kept.load(weights, "a")
    assert loads == ["a"]
    first.tokenizer["chat_template"] = "changed"
    assert second.tokenizer == {"chat_template": None}
    with pytest.raises(BadInput, match="other settings"):
        kept.load(weights, "b")


def test_out_of_memory_is_found_in_causes():
    assert not out_of_memory(EvaluationFailed("x"))
    assert out_of_memory(RuntimeError("torch.OutOfMemoryError: CUDA out of memory"))

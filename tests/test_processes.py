"""Processes that die: the line that says why, wherever it stands in their log."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from halos_eval import processes
from halos_eval.errors import EvaluationFailed
from halos_eval.processes import last_error


def traceback_of(error, prefix="", frames=3):
    """A traceback that ends with ``error``, as a logger with ``prefix`` writes it."""
    lines = ["Traceback (most recent call last):"]
    for number in range(frames):
        lines += [f'  File "/venv/vllm/v1/engine/core.py", line {number}, in run', "    self.run()", "    ^^^^^^^^^^"]
    return "\r\n".join(prefix + line for line in [*lines, *error.splitlines()]) + "\n"


CORE = "(EngineCore pid=4711) ERROR 11-27 18:00:41 [core.py:1510] "
SERVER = "(APIServer pid=4700) "
NO_MEMORY = (
    "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing "
    "the engine."
)
SEE_ABOVE = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)
START = (
    "WARNING 11-27 18:00:01 [interface.py:222] Failed to import from vllm._C: ModuleNotFoundError('vllm._C')\n"
    f"{SERVER}INFO 11-27 18:00:03 [api_server.py:1977] vLLM API server version 0.32.0\n"
    f"{SERVER}INFO 11-27 18:00:03 [utils.py:253] non-default args: {{'max_model_len': 2048}}\n"
    "(EngineCore pid=4711) INFO 11-27 18:00:20 [core.py:93] Initializing a V1 LLM engine (v0.32.0)\n"
    "Loading safetensors checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 11.29it/s]\n\n"
    "(EngineCore pid=4711) INFO 11-27 18:00:40 [default_loader.py:314] Loading weights took 0.17 seconds\n"
)
# vLLM 0.32 on a node of 9 GiB: the cause is 50 lines above the end
ENGINE_FAILED = (
    START
    + f"{CORE}EngineCore failed to start.\r\n"
    + traceback_of(NO_MEMORY, CORE, frames=8)
    + "Process EngineCore:\n"
    + traceback_of(NO_MEMORY, frames=8)
    + "[rank0]:[W1127 18:00:42.1 ProcessGroupGloo.cpp:1] Warning: destroy_process_group() was not called\n"
    + traceback_of(SEE_ABOVE, SERVER, frames=10)
    + "/usr/lib/python3.11/multiprocessing/resource_tracker.py:254: UserWarning: 1 leaked shared_memory objects\n"
    + "  warnings.warn('resource_tracker: There appear to be %d '\n"
)
ENGINE_DIED_LATER = (
    START
    + f'{SERVER}INFO:     127.0.0.1:47482 - "POST /v1/chat/completions HTTP/1.1" 200 OK\n'
    + f"{CORE}EngineCore encountered a fatal error.\n"
    + traceback_of("RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", CORE)
    + traceback_of(
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the "
        "root cause.",
        f"{SERVER}ERROR 11-27 18:10:01 [async_llm.py:700] ",
    )
    + f'{SERVER}INFO:     127.0.0.1:47482 - "POST /v1/chat/completions HTTP/1.1" 500 Internal Server Error\n'
    + f"{SERVER}INFO:     Finished server process [4700]\n"
)
WRONG_ARGUMENT = START + traceback_of(
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig\n"
    "  Value error, Invalid repository ID or local directory specified: '/nowhere' [type=value_error]\n"
    "    For further information visit https://errors.pydantic.dev/2.14/v/value_error",
    SERVER,
)
CHAINED = (
    traceback_of("KeyError: 'smollm'")
    + "\nDuring handling of the above exception, another exception occurred:\n\n"
    + traceback_of("OSError: [Errno 2] /nowhere has no config.json")
    + "\nThe above exception was the direct cause of the following exception:\n\n"
    + traceback_of("halos_eval.errors.DataUnavailable: The demo's weights are not installed.")
)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        pytest.param(ENGINE_FAILED, NO_MEMORY, id="vLLM did not start"),
        pytest.param(
            ENGINE_DIED_LATER,
            "RuntimeError: [enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
            id="vLLM died later",
        ),
        pytest.param(
            WRONG_ARGUMENT,
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig "
            "Value error, Invalid repository ID or local directory specified: '/nowhere' [type=value_error]",
            id="vLLM's configuration",
        ),
        pytest.param(
            ENGINE_FAILED + f"halos-eval: EvaluationFailed: {SEE_ABOVE}\n", NO_MEMORY, id="our error that points to it"
        ),
        pytest.param(
            ENGINE_FAILED + "halos-eval: Incomplete: 3 of 12 prompts have no answer\n",
            "halos-eval: Incomplete: 3 of 12 prompts have no answer",
            id="our own error",
        ),
        pytest.param(
            CHAINED, "halos_eval.errors.DataUnavailable: The demo's weights are not installed.", id="a chain: its end"
        ),
        pytest.param(
            traceback_of("ImportError: no flash_attn")
            + "INFO: using eager attention\n"
            + traceback_of("OSError: full"),
            "OSError: full",
            id="an earlier traceback that was survived",
        ),
        pytest.param(
            traceback_of("ValueError: the child") + traceback_of("EOFError") + "Exception ignored in: <f>\n",
            "ValueError: the child",
            id="a parent that lost its child",
        ),
        pytest.param(
            "╭─── Traceback (most recent call last) ───╮\n│ db.py:12 in migrate │\n╰──────╯\n"
            "OperationalError: database is locked\nleft\n",
            "OperationalError: database is locked",
            id="rich's traceback",
        ),
        pytest.param(SEE_ABOVE, SEE_ABOVE, id="nothing but a pointer"),
        pytest.param("OSError: [Errno 98] in use\nshutting down\n", "OSError: [Errno 98] in use", id="no traceback"),
        pytest.param("usage: vllm\nvllm: error: unknown --x\n  \n", "vllm: error: unknown --x", id="the last line"),
        pytest.param("\x1b[31mOut of \x1b[1mdisk\x1b[0m\x1b]8;;x\x07\x07\n", "Out of disk", id="colours"),
        pytest.param("10%|█   |\r90%|███ |\n", "90%|███ |", id="a progress bar"),
        pytest.param("x" * 501, "x" * 499 + "…", id="long"),
        pytest.param("\n \n", "", id="blank"),
        pytest.param("", "", id="empty"),
    ],
)
def test_the_line_that_says_why(log, line):
    assert last_error(log) == line


def test_processes_that_write_at_the_same_time():
    one = traceback_of("ValueError: first", "(EngineCore pid=1) ").splitlines(keepends=True)
    two = traceback_of("RuntimeError: second", "(Worker pid=2) ").splitlines(keepends=True)
    mixed = [line for pair in zip(one, two, strict=True) for line in pair]
    assert last_error("".join(mixed)) == "ValueError: first"


def python(program):
    """A command that runs ``program``."""
    return [sys.executable, "-c", program]


def test_a_program_that_fails_says_why(tmp_path):
    log = tmp_path / "logs" / "one.log"
    with pytest.raises(EvaluationFailed) as failed:
        processes.run("making the checkpoints", python("open('/nowhere/x')"), log)
    assert str(failed.value) == (
        "making the checkpoints ended with code 1: FileNotFoundError: [Errno 2] No such file or directory: "
        f"'/nowhere/x' (log: {log})"
    )


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL (out of memory?): it wrote nothing"),
        ("import os; os.kill(os.getpid(), 15)", "was killed by SIGTERM: it wrote nothing"),
        ("raise SystemExit(3)", "ended with code 3: it wrote nothing"),
    ],
)
def test_how_a_program_ended(tmp_path, program, words):
    with pytest.raises(EvaluationFailed, match="the program") as failed:
        processes.run("the program", python(program), tmp_path / "log")
    assert words in str(failed.value)


def test_an_earlier_error_is_not_why_a_program_was_killed(tmp_path):
    text = traceback_of("ImportError: no flash_attn, which is optional") + "\x1b[32mserving\x1b[0m\n \n"
    program = f"import os; print({text!r}, flush=True); os.kill(os.getpid(), 9)"
    with pytest.raises(
        EvaluationFailed, match=r"the program was killed by SIGKILL \(out of memory\?\): serving \(log: "
    ):
        processes.run("the program", python(program), tmp_path / "log")


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationFailed, match=r"the program did not start: .*/nowhere/python"):
        processes.run("the program", ["/nowhere/python"], tmp_path / "log")


def test_a_program_gets_its_environment_and_leaves_its_output(tmp_path):
    processes.run("it", python("import os; print(os.environ['WORD'])"), tmp_path / "log", env={"WORD": "heard"})
    assert (tmp_path / "log").read_text() == "heard\n"


def test_of_a_large_log_the_end_is_read(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"\xff" * 2_000_000 + b"\nOSError: at the end\n")
    assert "OSError: at the end" in str(processes.failure("it", 1, log))


def test_the_end_of_a_watched_process_is_noticed():
    ended = threading.Event()
    with subprocess.Popen(python("input()"), stdin=subprocess.PIPE) as process, processes.watched(process, ended.set):
        assert not ended.is_set()
        process.communicate(b"\n")
        assert ended.wait(30)


def test_a_process_that_outlives_the_watch_is_left_alone():
    ended = threading.Event()
    with subprocess.Popen(python("input()"), stdin=subprocess.PIPE) as process:
        with processes.watched(process, ended.set):
            pass
        process.communicate(b"\n")
        assert not ended.is_set()

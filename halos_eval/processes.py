"""Processes that this project starts, and the line of their log that explains a failure.

"Read the log" is not enough as a message. The cause may be 50 lines above the end, in another process's traceback.
"""

from __future__ import annotations

import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from halos_eval.errors import EvaluationFailed

NO_REPORTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # a request for each metric that evaluate loads
    "MLFLOW_DISABLE_TELEMETRY": "true",  # MLflow takes only "true" for DO_NOT_TRACK
    "VLLM_NO_USAGE_STATS": "1",
}
"""Variables that keep libraries from reporting their use to their makers. The images set them as well."""
LONGEST = 500
"""Maximum characters of a line in a message, because pydantic repeats its whole input."""
END = 1_000_000
"""Bytes at the end of a log that are searched."""
WATCH_SECONDS = 0.5

# Colours and links of a terminal
ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?")
# vLLM writes this before every line, also in a traceback: (EngineCore pid=7) ERROR 11-27 18:00:00 [core.py:9]
PREFIX = re.compile(r"(\(\S+ pid=\d+\) ?)?(?:[A-Z]+ \d\d-\d\d \d\d:\d\d:\d\d \[\S+:\d+\] ?)?")
TRACEBACK = "Traceback (most recent call last)"
# Airflow's command line draws boxes around tracebacks.
FRAMES = tuple(" \t│╭╰|")
EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(?:: .*)?$")
CHAINED = ("During handling of the above exception", "The above exception was the direct cause")
INVALID = re.compile(r"\bvalidation errors? for \S+$")
PROGRESS = re.compile(r".{0,60}\b(?:INFO|DEBUG|info|debug)\b")
ERROR_LINE = re.compile(r"[\w.]*(?:Error|Exception): .")
# "See root cause above.", "See stack trace (above) for the root cause."
ELSEWHERE = re.compile(r"\babove\b")
OURS = "halos-eval: "


class _Line(NamedTuple):
    """A line of a log without colours."""

    whole: str
    process: str | None
    """vLLM's name for the process that wrote the line."""
    text: str
    """The text after vLLM's prefix."""


class _Raised(NamedTuple):
    """The line that ends a traceback."""

    text: str
    process: str | None
    group: int
    """Tracebacks belong to one failure if no progress is logged between them."""


def last_error(log: str) -> str:
    """Return the line of ``log`` that best explains why the program ended; empty if there is none.

    The last line is taken if it is an error of this project. Otherwise the first traceback of the last group is taken:
    the failed process writes before the one that waits for it (vLLM: "Engine core initialization failed. See root cause
    above"). Without a traceback it is the last line like ``SomeError: text``, else the last line.
    """
    lines = [line for line in map(_line, log.splitlines()) if line.text.strip()]
    last = lines[-1].text if lines else ""
    if last.startswith(OURS) and not ELSEWHERE.search(last):
        return _cut(last)
    raised = _raised(lines)
    if raised := [one for one in raised if not ELSEWHERE.search(one.text)] or raised:
        return _cut(next(one.text for one in raised if one.group == raised[-1].group))
    return _cut(next((line.text for line in reversed(lines) if ERROR_LINE.match(line.text)), last.strip()))


def _line(raw: str) -> _Line:
    whole = "".join(sign for sign in ESCAPE.sub("", raw) if sign.isprintable() or sign == "\t").rstrip()
    _, process, text = PREFIX.split(whole, maxsplit=1)
    return _Line(whole, process, text)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _raised(lines: Sequence[_Line]) -> list[_Raised]:
    """Return the last line of every traceback.

    Processes may write at the same time, so the state is kept for each process.
    """
    found: list[_Raised] = []
    inside: set[str | None] = set()
    group = 0
    for number, (whole, process, text) in enumerate(lines):
        if TRACEBACK in text:
            inside.add(process)
        elif process in inside:
            if EXCEPTION.match(text) and not text.startswith(FRAMES):
                inside.remove(process)
                found.append(_Raised(_with_details(text, lines[number + 1 : number + 3]), process, group))
        elif text.startswith(CHAINED) and found and found[-1].process == process:
            # The last exception of a chain has the readable message; the first may be a KeyError.
            found.pop()
        elif PROGRESS.match(whole):
            group += 1
    return found


def _with_details(text: str, following: Sequence[_Line]) -> str:
    """Return an exception's line, with the lines in which pydantic names the wrong value and the reason."""
    details = [line.text.strip() for line in following] if INVALID.search(text) else []
    return " ".join([text, *(line for line in details if not line.startswith("For further information"))])


def last_line(log: str) -> str:
    """Return the last line of ``log`` that is not blank.

    It is used for killed processes: no earlier error explains why they were killed.
    """
    return next((_cut(line.whole.strip()) for line in map(_line, reversed(log.splitlines())) if line.whole), "")


def failure(what: str, code: int, log: Path) -> EvaluationFailed:
    """Return the error for the ended process ``what``: its exit code or signal, the reason it logged, and its log."""
    how, reason = f"ended with code {code}", last_error
    if code < 0:
        memory = " (out of memory?)" if code == -signal.SIGKILL else ""
        names = {one.value: one.name for one in signal.Signals}  # most real-time signals have none
        how, reason = f"was killed by {names.get(-code, f'signal {-code}')}{memory}", last_line
    return EvaluationFailed(f"{what} {how}: {reason(end_of(log)) or 'it wrote nothing'} (log: {log})")


def end_of(log: Path) -> str:
    """Return the end of the file ``log`` as text."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - END))
        return file.read().decode(errors="replace")


def run(what: str, command: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
    """Run ``command`` with its output in ``log`` until it ends. Raises EvaluationFailed with the reason it logged."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        try:
            code = subprocess.run(command, env=env, stdout=file, stderr=file, check=False).returncode  # noqa: S603
        except OSError as error:
            raise EvaluationFailed(f"{what} did not start: {error}") from error
    if code:
        raise failure(what, code, log)


@contextmanager
def watched(process: subprocess.Popen[bytes], ended: Callable[[], object]) -> Iterator[None]:
    """Call ``ended`` once, in a thread, if ``process`` ends before the context does.

    It is for servers: the clients of a dead server would wait and retry for minutes.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            if process.poll() is not None:
                ended()
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()

"""The demo's judge: a checkpoint of 135 million parameters that vLLM serves on loopback.

Its judgements are meaningless. The API is that of a real judge: an OpenAI-compatible endpoint with log-probabilities.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

from halos_eval.config.judge import load_judge
from halos_eval.errors import EvaluationFailed
from halos_eval.processes import NO_REPORTS, end_of, failure, last_line
from halos_eval.stages.vllm import kv_cache_bytes

MAX_MODEL_LEN = 2048
START_SECONDS = 300.0


class JudgeServer(NamedTuple):
    """A running server of a judge."""

    url: str
    """Base URL of its API."""
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables with which the judge stage finds the server."""
        return {"OPENAI_BASE_URL": self.url, "OPENAI_API_KEY": "loopback"}

    def check(self) -> None:
        """Raise EvaluationFailed with the server's reason if it has ended."""
        if (code := self.process.poll()) is not None:
            raise failure("the judge's server", code, self.log)


@contextmanager
def judge_server(
    program: Path, checkpoint: Path, log: Path, host: str = "127.0.0.1", port: int = 0
) -> Iterator[JudgeServer]:
    """Serve ``checkpoint`` until the context ends. Yield the server once it answers. Raise EvaluationFailed.

    The server listens on ``host`` (pods cannot reach loopback) and ``port`` (0: a free one).
    """
    with socket.socket() as probe:
        probe.bind((host, port))
        port = probe.getsockname()[1]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    cache = kv_cache_bytes(config, "float32", MAX_MODEL_LEN)
    command = [
        "setpriv", "--pdeathsig", "TERM", "--", str(program), "serve", str(checkpoint), "--host", host,
        "--port", str(port), "--served-model-name", load_judge("demo").model, "--max-model-len", str(MAX_MODEL_LEN),
        "--logprobs-mode", "processed_logprobs", "--enforce-eager", "--kv-cache-memory-bytes", str(cache),
        "--gpu-memory-utilization", "0.2",  # of a GPU, which the stages use as well; on a CPU the cache counts
        "--load-format", "safetensors", "--dtype", "float32",
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        try:
            server = subprocess.Popen(  # noqa: S603
                command, stdout=file, stderr=file, start_new_session=True, env={**os.environ, **NO_REPORTS}
            )
        except OSError as error:
            raise EvaluationFailed(f"the judge's server did not start: {error}") from error
        try:
            judge = JudgeServer(f"http://127.0.0.1:{port}/v1", server, log)
            _wait(judge, f"http://127.0.0.1:{port}/health")
            yield judge
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(judge: JudgeServer, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        judge.check()
        try:
            with urlopen(url, timeout=5):  # noqa: S310 (our own loopback address)
                return
        except (URLError, OSError):
            time.sleep(0.5)
    line = last_line(end_of(judge.log)) or "it wrote nothing"
    raise EvaluationFailed(f"the judge's server does not answer ({START_SECONDS:.0f} s): {line} (log: {judge.log})")

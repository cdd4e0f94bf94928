"""The demo's judge: a checkpoint of 135 million parameters served by vLLM on loopback.

Its opinion is worth nothing. The path is the real one: an OpenAI-compatible endpoint that gives log-probabilities.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from halos_eval.annotator import load_annotator
from halos_eval.errors import EvaluationFailed
from halos_eval.stages.vllm import kv_cache_bytes

MAX_MODEL_LEN = 2048
START_SECONDS = 300.0


@contextmanager
def judge_server(program: Path, checkpoint: Path, log: Path, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve ``checkpoint`` until the context ends; gives the base URL once it answers. Raises EvaluationFailed.

    ``host`` is the address to listen on: for pods another one than loopback.
    """
    with socket.socket() as probe:
        probe.bind((host, 0))
        port = probe.getsockname()[1]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    cache = kv_cache_bytes(config, "float32", MAX_MODEL_LEN)
    command = [
        "setpriv", "--pdeathsig", "TERM", "--", str(program), "serve", str(checkpoint), "--host", host,
        "--port", str(port), "--served-model-name", load_annotator("demo").model, "--max-model-len", str(MAX_MODEL_LEN),
        "--logprobs-mode", "processed_logprobs", "--enforce-eager", "--kv-cache-memory-bytes", str(cache),
        "--load-format", "safetensors", "--dtype", "float32",
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)  # noqa: S603
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urlopen(url, timeout=5):  # noqa: S310 (our own loopback address)
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise EvaluationFailed(f"the judge's server did not start: read {log}")

"""Serve a model with vLLM as a judge, as long as the judge stage beside it runs."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from pydantic import BaseModel, Field
from pydantic_settings import CliPositionalArg

from halos_eval.checkpoints.judge_weights import to_load
from halos_eval.checkpoints.safetensors import read_json
from halos_eval.config.judge import SERVED
from halos_eval.config.served_judge import Dtype
from halos_eval.config.settings import FROZEN
from halos_eval.errors import EvaluationFailed, HalosEvalError
from halos_eval.processes import failure
from halos_eval.stages import provenance, tools
from halos_eval.stages.exchange import POLL_SECONDS, Address, Exchange
from halos_eval.stages.options import load_manifest
from halos_eval.stages.vllm import VLLM_ENVIRONMENT, kv_cache_bytes

log = logging.getLogger(__name__)

END_SECONDS = 10.0
"""How long vLLM may take to end before it is killed."""


class ServeConfig(BaseModel):
    """Serve MODEL with vLLM as a judge, on loopback, until the judge stage that shares --exchange ends."""

    model_config = FROZEN

    model: CliPositionalArg[str]
    """Folder with full weights, or NAMESPACE/NAME on the hub."""
    revision: str | None = None
    """Branch, tag or commit of a hub repository."""
    manifest: str | None = None
    """File or URL of the manifest that `halos-eval fetch` wrote (default: the hub)."""
    exchange: str | None = None
    """New folder that `halos-eval judge` gets as well: it finds the address and a random key there (default: serve
    until Ctrl-C, and require the key of VLLM_API_KEY)."""
    dtype: Dtype = "auto"
    """Data type of the weights; auto takes the model's own."""
    max_model_len: int | None = Field(None, ge=1)
    """Longest prompt in tokens (default: the model's own limit)."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs to split the model over."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM may take; without a GPU the cache is sized by the model's length."""
    enforce_eager: bool = False
    """Skip compilation and CUDA graphs: starts sooner, answers slower."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(0, ge=0)
    """Port to listen on; 0 is a free one."""


def serve(config: ServeConfig) -> None:
    """Serve until the judge ends. Raise EvaluationFailed with vLLM's reason if it ends before, DataUnavailable."""
    with TemporaryDirectory(prefix="halos-eval-") as own:
        exchange = Exchange(Path(config.exchange or own))
        with exchange.present("server"):
            try:
                tools.check_installed("vllm")
                _serve(config, exchange)
            except HalosEvalError as error:
                exchange.report(error)
                raise


def _serve(config: ServeConfig, exchange: Exchange) -> None:
    port = config.port or _free_port(config.host)
    key = secrets.token_urlsafe(32) if config.exchange else os.environ.get("VLLM_API_KEY", "")
    url = f"http://127.0.0.1:{port}"
    announced = False
    with _running(_command(config, port), _environment(key), exchange.log) as server:
        shown = 0
        while exchange.state("judge") != "ended":
            shown = _show(exchange.log, shown)
            if (code := server.poll()) is not None:
                raise failure("the judge's server", code, exchange.log)
            if not announced and _answers(f"{url}/health"):
                announced = True
                log.info("the judge answers at %s/v1", url)
                exchange.announce(_address(f"{url}/v1", key))
            time.sleep(POLL_SECONDS)
    log.info("the judge stage has ended, and so does its server")


def _address(url: str, key: str) -> Address:
    return Address(url=url, key=key, vllm=version("vllm"), gpus=provenance.hardware()["gpus"])


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _command(config: ServeConfig, port: int) -> list[str]:
    """Return the command line of vLLM's server, which ends with this process, even if that is killed."""
    model, revision = to_load(config.model, config.revision, load_manifest(config.manifest))
    words = ["setpriv", "--pdeathsig", "TERM", "--", str(Path(sys.executable).with_name("vllm")), "serve", model]
    options = {
        "host": config.host,
        "port": port,
        "served-model-name": SERVED,
        "revision": revision,
        "tokenizer-revision": revision,
        "dtype": config.dtype,
        "max-model-len": config.max_model_len,
        "tensor-parallel-size": config.tensor_parallel_size,
        "load-format": "safetensors",
        # The probabilities of the tokens among which the model chooses, after the choice was limited to m and M
        "logprobs-mode": "processed_logprobs",
        **_memory(config, model),
    }
    words += [f"--{name}={value}" for name, value in options.items() if value is not None]
    words.append("--disable-uvicorn-access-log")
    return [*words, "--enforce-eager"] if config.enforce_eager else words


def _on_cpu() -> bool:
    """Return whether vLLM is built for CPUs. So does vLLM itself recognize it; to ask it would import it here too."""
    return "cpu" in version("vllm")


def _environment(key: str) -> dict[str, str]:
    """Return the server's variables. On a CPU the engine has no worker process, whose imports take as long again."""
    return os.environ | ({"VLLM_API_KEY": key} if key else {}) | (VLLM_ENVIRONMENT if _on_cpu() else {})


def _memory(config: ServeConfig, model: str) -> dict[str, object]:
    """Return the options for memory, as ``halos_eval.stages.vllm`` chooses them."""
    if not _on_cpu():
        return {"gpu-memory-utilization": config.gpu_memory_utilization}
    described = read_json(f"{model}/config.json") if Path(model).exists() else {}
    return {"kv-cache-memory-bytes": kv_cache_bytes(described, config.dtype, config.max_model_len)}


@contextmanager
def _running(command: list[str], environment: dict[str, str], path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server with its output in the file ``path`` until the context ends."""
    with path.open("wb") as file:
        try:
            process = subprocess.Popen(  # noqa: S603
                command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise EvaluationFailed(f"the judge's server did not start: {error}. Install that program") from error
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever the server has started and left
        process.wait()


def _show(path: Path, start: int) -> int:
    """Print what a file has from the byte ``start``. Return its size."""
    with path.open("rb") as file:
        file.seek(start)
        sys.stderr.buffer.write(file.read())
        sys.stderr.buffer.flush()
        return file.tell()


def _answers(url: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (URLError, OSError):
        return False

"""``halos-eval doctor``: whether what a stage needs is there, seen from inside its pod. `helm test` runs it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pydantic import BaseModel, Field

from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.config.settings import FROZEN, Settings
from halos_eval.errors import BadInput, EvaluationFailed, HalosEvalError
from halos_eval.hub import cache_root
from halos_eval.reports.terminal import plain_lines
from halos_eval.stages.harness import sandbox
from halos_eval.storage import filesystem

DRIVER = 580
"""NVIDIA's first driver for CUDA 13: https://docs.nvidia.com/deploy/cuda-compatibility/"""
SECONDS = 30
"""How long an endpoint may take to answer."""


class DoctorConfig(BaseModel):
    """Check what the stages need, and print the remedy for whatever is missing. Checks only what is named."""

    model_config = FROZEN

    store: str | None = None
    """Folder or object storage with all results: written, read and deleted."""
    checkpoints: str | None = None
    """Registry of checkpoints: at least one must be complete."""
    writable: tuple[Path, ...] = ()
    """Folders that must be writable, such as cache and outbox."""
    hub: bool = False
    """Whether the Hugging Face Hub (HF_ENDPOINT) must answer and accept HF_TOKEN, or the cache must have data."""
    judge: bool = False
    """Whether the judge's endpoint (OPENAI_BASE_URL) must accept OPENAI_API_KEY."""
    sandbox: bool = False
    """Whether this kernel must be able to confine code that a model wrote (Landlock, seccomp)."""
    gpus: int = Field(0, ge=0)
    """Number of GPUs that must be visible, with a driver for the image."""


Checks = Iterator[tuple[str, Callable[[], str]]]
"""Names of checks, each with a function that returns what was found, or raises an error that names the remedy."""


def doctor(config: DoctorConfig) -> None:
    """Print one line for each check. Raise BadInput if one fails."""
    report(_checks(config))


def report(checks: Checks) -> None:
    """Print one line for each check. Raise BadInput if one fails."""
    failed = 0
    for name, check in checks:
        try:
            print(plain_lines(f"ok      {name}: {check()}"), flush=True)
        except (HalosEvalError, OSError) as error:
            failed += 1
            print(plain_lines(f"FAILED  {name}: {error}"), flush=True)
    if failed:
        raise BadInput(f"{failed} checks failed; expected none. Follow the lines above that begin with FAILED")


def _checks(config: DoctorConfig) -> Checks:
    if store := config.store:
        yield "store", lambda: check_store(store)
    if registry := config.checkpoints:
        yield "checkpoints", lambda: check_checkpoints(registry)
    for folder in config.writable:
        yield f"folder {folder}", lambda folder=folder: check_writable(folder)  # type: ignore[misc]
    if config.hub:
        yield "hub", check_hub
    if config.judge:
        yield "judge", check_judge
    if config.sandbox:
        yield "sandbox", check_sandbox
    if config.gpus:
        yield "GPU", lambda: check_gpus(config.gpus)


def check_store(store: str) -> str:
    """Write, read and delete a file. Raise StoreError."""
    url = filesystem.join(store, "doctor", f"{socket.gethostname()}-{os.getpid()}")
    filesystem.write_bytes(url, b"halos-eval")
    content = filesystem.read_bytes(url)
    filesystem.delete(url)
    if content != b"halos-eval":
        raise BadInput(f"{url} reads as {content[:20]!r}; expected what was written. Use a store without a stale cache")
    return f"{store} can be written and read"


def check_checkpoints(registry: str) -> str:
    """Count complete checkpoints. Raise BadInput if there is none."""
    found = open_registry(registry).registered()
    if not found.checkpoints:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(found.skipped.items())[:3])
        raise BadInput(
            f"{registry} has no complete checkpoint ({reasons or 'it is empty'}); expected EXPERIMENT/FINAL. Mount the "
            "claim with the checkpoints, or copy one there"
        )
    return f"{len(found.checkpoints)} complete, {len(found.skipped)} incomplete in {registry}"


def check_writable(folder: Path) -> str:
    """Write and delete a file. Raise BadInput."""
    path = folder / f".doctor-{socket.gethostname()}-{os.getpid()}"
    try:
        path.write_bytes(b"")
        path.unlink()
    except OSError as error:
        raise BadInput(
            f"{folder} is not writable ({error.strerror}); expected write permission for user {os.getuid()}. Use a "
            "ReadWriteMany claim, and give group 1000 write permission if its driver ignores fsGroup"
        ) from error
    return "writable"


def check_hub() -> str:
    """Ask the hub, with HF_TOKEN if it is set. Raise BadInput if it does not answer and the cache is empty."""
    address = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    token = os.environ.get("HF_TOKEN")
    url, headers = f"{address}/api/models?limit=1", {}
    if token:
        url, headers = f"{address}/api/whoami-v2", {"Authorization": f"Bearer {token}"}
    try:
        with urlopen(Request(url, headers=headers), timeout=SECONDS):  # noqa: S310
            return f"{address} answers{' and accepts HF_TOKEN' if token else ''}"
    except HTTPError as error:
        error.close()
        if token and error.code in {401, 403}:
            raise BadInput(f"{address} rejects HF_TOKEN (HTTP {error.code}). Replace the Secret's value") from None
        return f"{address} answers (HTTP {error.code}); the token was not checked"
    except OSError as error:
        cached = list((cache_root() / "hub").glob("*--*"))
        if cached:
            return f"{address} does not answer ({error}), but the cache has {len(cached)} repositories"
        raise BadInput(
            f"{address} does not answer ({error}) and the cache is empty. Set HF_ENDPOINT to a mirror, set "
            "HTTPS_PROXY, or allow the address in networkPolicies.extraEgress"
        ) from None


def check_judge() -> str:
    """Ask the judge's endpoint for its models. Raise BadInput."""
    address = os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise BadInput("OPENAI_API_KEY is missing; expected the judge's key. Add it to kubernetes.secrets")
    request = Request(f"{address.rstrip('/')}/models", headers={"Authorization": f"Bearer {key}"})  # noqa: S310
    try:
        with urlopen(request, timeout=SECONDS):  # noqa: S310
            return "the endpoint accepts the key"
    except HTTPError as error:
        error.close()
        if error.code in {401, 403}:
            raise BadInput(f"the judge rejects the key (HTTP {error.code}). Replace the Secret's value") from None
        return f"the endpoint answers (HTTP {error.code}); it lists no models, so the key was not checked"
    except OSError as error:
        raise BadInput(
            f"the judge does not answer ({error}). Check OPENAI_BASE_URL, and allow its port in "
            "networkPolicies.extraEgress"
        ) from None


def check_sandbox() -> str:
    """Confine a process as code that a model wrote is confined. Raise EvaluationFailed."""
    version = sandbox.check(Settings().accept_weak_sandbox)
    if not version:
        return (
            "no Landlock, which HALOS_EVAL_ACCEPT_WEAK_SANDBOX accepts: code can read and change the files that its "
            "scorer can"
        )
    with TemporaryDirectory(prefix="halos-eval-") as folder:
        outside = Path(folder) / "outside"
        outside.write_bytes(b"")
        if not sandbox.holds(Path(folder) / "inside", outside):
            raise EvaluationFailed(
                f"Landlock {version} does not confine a process: it could read {outside}, or could not write to its "
                "own folder. Use another node or machine"
            )
    return f"Landlock {version} and seccomp"


def check_gpus(expected: int) -> str:
    """Count GPUs and read the driver's version. Raise BadInput."""
    try:
        import pynvml
    except ImportError:
        raise BadInput("this image has no CUDA, but the profile requests GPUs. Build it with `make images`") from None
    try:
        pynvml.nvmlInit()
        count, driver = pynvml.nvmlDeviceGetCount(), str(pynvml.nvmlSystemGetDriverVersion())
        pynvml.nvmlShutdown()
    except pynvml.NVMLError as error:
        raise BadInput(
            f"no GPU is visible ({error}); expected {expected}. Install NVIDIA's device plugin, and set "
            "runtimeClassName in the profile if the cluster needs it"
        ) from error
    if count < expected:
        raise BadInput(f"{count} GPUs are visible; expected {expected}. Check gpus and gpuResource in the profile")
    if int(driver.partition(".")[0]) < DRIVER:
        raise BadInput(f"the driver is {driver}; expected {DRIVER} or newer, for CUDA 13. Upgrade it on the nodes")
    return f"{count} with driver {driver}"

"""Score the answers to a task that executes model-written code.

This process reaches the store, and executes nothing. It starts a second one with an environment without secrets
(`halos_eval.stages.harness.scorer`), which replays the answers to lm_eval, and which starts a confined process for each
document. In a pod there are no secrets and no store at all.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from halos_eval.config.suite import HarnessSettings
from halos_eval.errors import BadInput, DataUnavailable, EvaluationFailed, HalosEvalError, Incomplete, StoreError
from halos_eval.hub import cache_root
from halos_eval.stages.harness import sandbox
from halos_eval.stages.harness.options import ScoreConfig, harness_identity
from halos_eval.stages.harness.replay import FILE, name_of_answers, read_answers
from halos_eval.stages.identity import Identity
from halos_eval.stages.run import Outcome, reason_kept, run
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import Manifest
from halos_eval.storage.records import Record, read_record, write_model

log = logging.getLogger(__name__)

REQUEST, OUTCOME, ERROR = "request.json", "outcome.json", "error.json"
"""Files in the folder that both processes share, besides the answers."""
KEPT = (
    "PATH", "LANG", "LC_ALL", "TZ", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_DATASETS_CACHE",
    "HF_MODULES_CACHE", "HF_HUB_CACHE", "HF_HUB_DISABLE_TELEMETRY", "HALOS_EVAL_ACCEPT_WEAK_SANDBOX",
)  # fmt: skip
"""Variables that the second process gets: none can be a secret."""
FETCHING = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE")
"""Variables that it needs in addition if it reads data from the hub."""

ERRORS: dict[str, type[HalosEvalError]] = {
    kind.__name__: kind for kind in (BadInput, DataUnavailable, Incomplete, StoreError, EvaluationFailed)
}


def score(config: ScoreConfig) -> Record:
    """Run the stage. Raise BadInput, DataUnavailable, StoreError, EvaluationFailed."""
    record = filesystem.join(config.output_dir, layout.RECORD)
    with reason_kept(config, record):
        manifest = config.load_manifest()
        generated = read_record(filesystem.join(config.answers, layout.GENERATED))
        if generated is None:
            raise DataUnavailable(
                f"{config.answers} has no answers. Run `halos-eval harness --answers-only`, or trigger the evaluation "
                "again"
            )
        job = _identity(config, generated, manifest).at(record)
    # Without Landlock, a model's code could have written a record in an earlier try.
    return run(job, config, lambda: _work(config, generated), trusted=sandbox.landlock_version() > 0)


def deliver(folder: str, target: str, record: Record) -> None:
    """Copy the answers in ``folder`` with their ``record`` to ``target``. Raise StoreError."""
    filesystem.write_bytes(filesystem.join(target, name_of_answers(record)), read_answers(folder, record))
    write_model(filesystem.join(target, layout.GENERATED), record)


def _identity(config: ScoreConfig, generated: Record, manifest: Manifest | None) -> Identity:
    """Return the identity of the task. Raise BadInput if it is not what the answers were generated for."""
    settings = generated.identity["settings"]
    known = HarnessSettings.model_validate({key: value for key, value in settings.items() if key != "stop"})
    own = harness_identity(
        str(generated.task),
        known,
        config.include_path,
        None,
        generated.checkpoint,
        manifest,
        tuple(settings.get("stop", ())),
    )
    inputs = generated.identity["inputs"]
    # The chat template is in the prompts, which were rendered with the answers.
    template = {key: value for key, value in inputs.items() if key == "chat_template"}
    identity = own.model_copy(update={"inputs": own.inputs | template})
    if identity.fingerprint != generated.fingerprint:
        raise BadInput(
            f"the data, the files or the tools of {generated.task} have changed since its answers were generated. "
            "Trigger the evaluation again"
        )
    return identity


def _work(config: ScoreConfig, generated: Record) -> Outcome:
    sandbox.protect()
    with _scratch() as folder:
        (folder / FILE).write_bytes(read_answers(config.answers, generated))
        manifest = None
        if config.manifest:
            manifest = str(folder / "manifest.json")
            Path(manifest).write_bytes(filesystem.read_bytes(config.manifest))
        settings = {key: value for key, value in generated.identity["settings"].items() if key != "stop"}
        request = {
            "task": generated.task,
            "include_path": config.include_path,
            "manifest": manifest,
            "model": "",
            "output_dir": str(folder / "out"),
        }
        (folder / REQUEST).write_text(json.dumps(settings | request), encoding="utf-8")
        _run_scorer(folder, _environment(folder, manifest is not None))
        outcome = Outcome.model_validate_json((folder / OUTCOME).read_bytes())
        for file in outcome.files:
            filesystem.write_bytes(filesystem.join(config.output_dir, file), (folder / "out" / file).read_bytes())
    details = {**generated.details, **outcome.details}
    return outcome.model_copy(
        update={"usage": generated.usage, "details": details, "generated_by": generated.provenance}
    )


@contextmanager
def _scratch() -> Iterator[Path]:
    """Yield a folder that is removed afterwards, as far as what a model's code left in it can be removed."""
    folder = Path(tempfile.mkdtemp(prefix="halos-eval-"))
    try:
        yield folder
    finally:
        with suppress(RecursionError):
            shutil.rmtree(folder, ignore_errors=True)


def _environment(folder: Path, fetched: bool) -> dict[str, str]:
    names = KEPT if fetched else (*KEPT, *FETCHING)
    found = {name: os.environ[name] for name in names if name in os.environ}
    # Libraries start as many threads as there are cores in each of hundreds of short processes.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return found | threads | {"HF_HOME": str(cache_root().absolute()), "HOME": str(folder), "TMPDIR": str(folder)}


def _run_scorer(folder: Path, environment: dict[str, str]) -> None:
    """Run `halos_eval.stages.harness.scorer` to its end. Raise the error that it reports."""
    command = [sys.executable, "-I", "-m", "halos_eval.stages.harness.scorer", str(folder), str(os.getpid())]
    process = subprocess.Popen(command, env=environment, cwd=folder)  # noqa: S603
    try:
        code = process.wait()
    finally:
        process.terminate()  # if this process is interrupted; it then ends what an item has started
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if (folder / ERROR).exists():
        reported = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        raise ERRORS.get(reported["error"], EvaluationFailed)(reported["message"])
    if code or not (folder / OUTCOME).exists():
        raise EvaluationFailed(
            f"the process that scores the answers ended with exit code {code}. Its log above has the reason; if there "
            "is none, it ran out of memory: raise memory in the profile cpu"
        )

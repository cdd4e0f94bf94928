"""Made results of many checkpoints: a store with plans and records, and the logs that have the same scores."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from halos_eval.planning.definition import PartDefinition, SuiteDefinition
from halos_eval.planning.jobs import PlannedJob
from halos_eval.planning.plan import Plan
from halos_eval.stages import tools
from halos_eval.stages.identity import Identity
from halos_eval.storage import layout
from halos_eval.storage.records import CheckpointRef, Coverage, Record, Score, Usage
from halos_eval.storage.series import save_series
from tests.doubles import make_provenance

SUITE = "bench"
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TASKS = [f"task_{number:02d}" for number in range(12)]
PACKAGES = {f"package-{number}": "1.2.3" for number in range(25)}  # as many as a real record names
BARS = "".join(
    f"Running requests: {share:3}%|{'█' * (share // 10)}| {share}/100 [00:01<00:02, 14.20it/s]\r"
    for share in range(101)
)
HEADER = "vllm (pretrained=/data/models/{name}/FINAL,dtype=auto), limit: None, num_fewshot: None, batch_size: auto\n"
TABLE = """|  Tasks  |Version|Filter|n-shot| Metric |   |Value |   |Stderr|
|---------|------:|------|-----:|--------|---|-----:|---|-----:|
"""
BOARD = """                           length_controlled_winrate  win_rate  standard_error  n_total  avg_length
gpt4_1106_preview                              50.00     50.00            0.00      805        2049
/data/models/{name}/FINAL                      24.61     26.09            1.37      803        1894
"""


def reference(number: int) -> CheckpointRef:
    """Return a checkpoint."""
    name = f"llama3-8b-{number:05d}"
    return CheckpointRef(name=name, location=f"/data/models/{name}/FINAL", digest=f"{number:064x}")


def make(folder: Path, checkpoints: int, root: str) -> None:
    """Write the store ``folder``/store, which is later read as ``root``, and the logs ``folder``/logs."""
    store, logs = folder / "store" / "bucket", folder / "logs"
    logs.mkdir(parents=True)
    identities = {task: _identity(task) for task in TASKS}
    parts = {task: PartDefinition(identities=(one,)) for task, one in identities.items()}
    definition = SuiteDefinition(suite=SUITE, parts=parts, warn_above=0.01)
    _write(store / "suites" / f"{SUITE}.json", definition.model_dump_json(indent=2))
    save_series(str(store), tools.versions())
    digests = {part: one.digest for part, one in parts.items()}
    for number in range(checkpoints):
        checkpoint, jobs, lines = reference(number), [], []
        for at, (task, general) in enumerate(identities.items()):
            identity = general.of(checkpoint)
            tail = layout.record_tail("harness", task, identity.fingerprint)
            record = _record(identity, value=((number * 31 + at * 7) % 1000 + 1) / 1001)
            _write(store / "runs" / checkpoint.name / tail, record.model_dump_json(indent=2))
            jobs.append(
                PlannedJob(
                    stage="harness", task=task, image="worker", argv=("harness", f"--task={task}"), profile="gpu",
                    fingerprint=identity.fingerprint, identity=identity, done=False, why="new",
                    record=f"{layout.runs_url(root, checkpoint.name)}/{tail}",
                )
            )  # fmt: skip
            value = record.scores[0].value
            lines += [
                f"|{task}  |      1|none  |     0|acc     |↑  |{value:.4f}|±  |0.0123|",
                f"|         |       |none  |     0|acc_norm|↑  |{value:.4f}|±  |0.0123|",
            ]
        plan = Plan(
            version=2, suite=SUITE, checkpoint=checkpoint, jobs=tuple(jobs), definitions=digests,
            registered=BEGAN + timedelta(hours=4 * number),
        )  # fmt: skip
        _write(store / "plans" / SUITE / f"{checkpoint.name}.json", plan.model_dump_json(indent=2))
        log = BARS + "\n" + HEADER + TABLE + "\n".join(lines) + "\n\n" + BOARD
        _write(logs / f"{checkpoint.name}.log", log.format(name=checkpoint.name))


def _identity(task: str) -> Identity:
    settings = {"num_fewshot": 5, "limit": None, "apply_chat_template": True, "batch_size": "auto", "seed": 0}
    inputs = {"model": "", "data": "d" * 64, "task": "e" * 64}
    return Identity(
        stage="harness", task=task, checkpoint=reference(0), settings=settings, inputs=inputs,
        packages=tuple(tools.versions()),
    )  # fmt: skip


def _record(identity: Identity, value: float) -> Record:
    scores = tuple(
        Score(task=str(identity.task), metric=metric, value=value, stderr=0.0123, higher_is_better=True)
        for metric in ("acc", "acc_norm")
    )
    provenance = make_provenance().model_copy(update={"packages": PACKAGES, "command": ["halos-eval", "harness"] * 8})
    return Record(
        stage="harness", task=identity.task, fingerprint=identity.fingerprint, identity=identity.document,
        checkpoint=identity.checkpoint, scores=scores, coverage=Coverage(attempted=1000, scored=1000),
        usage=Usage(load_seconds=60, work_seconds=600), provenance=provenance,
    )  # fmt: skip


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)

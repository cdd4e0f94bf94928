"""Small stand-ins that several tests share: weights of a few bytes, records of stages that never ran."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from datetime import UTC, datetime
from pathlib import Path

from halos_eval.planning.jobs import PlannedJob
from halos_eval.stages import fetch
from halos_eval.storage.manifest import Manifest, Part
from halos_eval.storage.records import CheckpointRef, Coverage, Failure, Provenance, Record, Usage, write_model
from halos_eval.storage.result_files import plain_name

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
USAGE = Usage(load_seconds=0, work_seconds=0)
COVERAGE = Coverage(attempted=1, scored=1)


MODULE = "model.layers.0.self_attn.q_proj"
WEIGHT = {f"{MODULE}.weight": (6, 4)}


def write_safetensors(path, data=b"\x00" * 8):
    """A valid file with a tensor of bytes, and the weight of ``MODULE``, which adapters of it change."""
    return write_tensors(path, {"tensor": (len(data),)} | WEIGHT, data)


def write_tensors(path, shapes, data=b""):
    """A valid file with tensors of these shapes, by name: ``data``, then zero bytes."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        header[name] = {"dtype": "U8", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data.ljust(end, b"\0"))
    return path


def make_checkpoint(folder, **files):
    """A folder that passes for a model, with ``files`` (NAME_SUFFIX: text) beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama", "tie_word_embeddings": true}')
    (folder / "tokenizer.json").write_text("{}")
    write_safetensors(folder / "model.safetensors")
    for name, text in files.items():
        (folder / name.replace("_json", ".json").replace("_yaml", ".yaml")).write_text(text)
    return folder


def lora(module=MODULE, rank=8, inputs=4, outputs=6):
    """The shapes of an adapter's tensors for a module, by name."""
    name = f"base_model.model.{module}"
    return {f"{name}.lora_A.weight": (rank, inputs), f"{name}.lora_B.weight": (outputs, rank)}


def make_adapter(folder, base, shapes=None, **changes):
    """A folder that passes for a LoRA adapter of ``base``, which ``make_checkpoint`` made."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 8} | changes
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rank = config["r"] if isinstance(config["r"], int) else 8
    write_tensors(folder / "adapter_model.safetensors", lora(rank=rank) if shapes is None else shapes)
    return folder


def make_provenance(ended=NOW, **inputs):
    """A provenance that knows nothing but a time."""
    return Provenance(
        config={}, inputs=inputs, packages={}, commit=None, command=[], hardware={}, started=ended, ended=ended
    )


def make_record(stage="harness", task=None, name="one", ended=NOW, **parts):
    """A record with what a test cares for in ``parts``."""
    reference = CheckpointRef(name=name, location=f"/{name}", digest="d")
    common = {"checkpoint": reference, "fingerprint": "f", "identity": {}, "coverage": COVERAGE, "usage": USAGE}
    return Record(
        stage=stage,
        task=task,
        **(common | {"provenance": make_provenance(ended)} | parts),
    )


def make_manifest(suite, reasons=None, items=(), checkpoints=()):
    """A manifest that has all of ``suite`` as it is defined now, but for what has a reason."""
    needs = [*fetch._parts(suite), *map(fetch._checkpoint, checkpoints)]
    parts = {one.title: Part(definition=one.definition, reason=(reasons or {}).get(one.title)) for one in needs}
    return Manifest(suite=suite.name, parts=parts, items=tuple(items))


def make_job(stage, task, record, **parts):
    """A planned job whose record is (or is not) at ``record``."""
    usual = {"image": "worker", "argv": (), "profile": "default", "fingerprint": "f", "done": False, "why": ""}
    return PlannedJob(stage=stage, task=task, record=record, **(usual | parts))


def finish(job, ended=NOW, **parts):
    """Write the record of a planned job, as its stage would."""
    if job.stage == "sample":
        parts.setdefault("files", {"outputs.json": "abc"})
    if job.stage == "judge":
        parts.setdefault("provenance", make_provenance(ended, outputs_sha256="abc"))
    parts.setdefault("identity", job.identity.document)
    parts.setdefault("checkpoint", job.identity.checkpoint)
    parts.setdefault("provenance", make_provenance(ended))
    write_model(job.record, make_record(job.stage, job.task, fingerprint=job.fingerprint, **parts))


def result_of(record, name):
    """The file that a record names for ``name``, such as outputs.json."""
    files = {plain_name(file): file for file in json.loads(Path(record).read_text())["files"]}
    return Path(record).parent / files[name]


def outputs_in(folder):
    """The rows that the sample stage wrote with --output=FOLDER/outputs.json."""
    return json.loads(result_of(folder / "outputs.record.json", "outputs.json").read_text())


def write_failure(url, message="the reason", error="BadInput"):
    """A failure note."""
    write_model(url, Failure(error=error, message=message, exit_code=2, at=NOW))


def isolate_airflow(home):
    """Give Airflow a home of its own; has to come before its first import. The folder is removed with the process."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
    os.environ.clear()
    os.environ.update(
        kept,
        AIRFLOW_HOME=home,
        AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=f"sqlite:///{home}/none.db",
        AIRFLOW__CORE__LOAD_EXAMPLES="False",
        AIRFLOW__USAGE_DATA_COLLECTION__ENABLED="False",
    )
    return lambda: shutil.rmtree(home, ignore_errors=True)

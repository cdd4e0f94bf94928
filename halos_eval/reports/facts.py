"""Facts of a row beside its scores: when it was evaluated, what it cost, and which results have samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from halos_eval.digests import digest_json
from halos_eval.storage.records import Record

PAGES = ("samples/", "annotations")
"""Starts of the names of files with samples."""


def evaluated(records: Iterable[Record]) -> datetime | None:
    """Return the UTC time at which the newest result with scores ended; None without one."""
    return max((record.provenance.ended for record in records if record.stage != "sample"), default=None)


def gpu_hours(records: Sequence[Record]) -> float | None:
    """Return hours times GPUs of the samples and tasks; None without one. An interrupted run lacks its start."""
    own = [record for record in records if record.stage != "judge"]
    return sum(map(hours_of, own)) if own else None


def hours_of(record: Record, server_gpus: int = 0) -> float:
    """Return hours times GPUs of a stage; 0 on a machine without GPUs.

    :param server_gpus: GPUs of the judge's server, which the record of a judge does not have.
    """
    config = record.provenance.config
    if record.stage == "judge":
        model, gpus = record.provenance.inputs.get("judge_gpus", "none"), server_gpus
    else:
        model = record.provenance.hardware.get("gpus", "none")
        gpus = int(config.get("tensor_parallel_size") or 1) * int(config.get("engines") or 1)
    return 0.0 if model == "none" else gpus * (record.usage.load_seconds + record.usage.work_seconds) / 3600


def price(records: Sequence[Record]) -> float | None:
    """Return the price of the judgements in USD; None without one, or if one price is unknown."""
    prices = [record.usage.price_usd for record in records if record.stage == "judge"]
    known = [one for one in prices if one is not None]
    return sum(known) if known and len(known) == len(prices) else None


def samples_of(record: Record) -> str | None:
    """Return FINGERPRINT-DIGEST of a result with samples, which changes with them; None for other results."""
    files = {name: digest for name, digest in record.files.items() if name.startswith(PAGES)}
    return f"{record.fingerprint}-{digest_json(files)[:8]}" if files else None

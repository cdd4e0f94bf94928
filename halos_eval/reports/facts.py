"""Facts of a row beside its scores: when it was evaluated, what it cost, and which results have samples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from halos_eval.digests import digest_json
from halos_eval.storage.records import Record

NO_FILTER = "none"
"""lm_eval's name of the filter that extracts nothing."""
UNAVAILABLE = "unavailable"
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


def items(records: Iterable[Record]) -> dict[str, int]:
    """Return the numbers of documents and pairs with a score by column, TASK-n and alpacaeval_n.

    A record of a tag counts the documents of all its tasks together, so they have no number.
    """
    return {
        f"{record.task}-n" if record.task else "alpacaeval_n": record.coverage.scored
        for record in records
        if record.stage != "sample" and len({one.task for one in record.scores if one.group is None}) == 1
    }


def stage_status(record: Record | None, outdated: bool = False) -> str:
    """Return in a word whether a stage has a result, with its fingerprint."""
    return f"{'not current' if outdated else 'current'} {record.fingerprint}" if record else "missing"


def fingerprint_of(records: Iterable[Record]) -> str | None:
    """Return a digest of the results of a row: it is the same as long as they are. None without a result."""
    found = sorted(record.fingerprint for record in records)
    return digest_json(found)[:16] if found else None


def samples_of(record: Record) -> str | None:
    """Return FINGERPRINT-DIGEST of a result with samples, which changes with them; None for other results."""
    files = {name: digest for name, digest in record.files.items() if name.startswith(PAGES)}
    return f"{record.fingerprint}-{digest_json(files)[:8]}" if files else None

"""Find and read the sampled outputs that are judged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halos_eval.data.prompts import check_whole
from halos_eval.digests import digest_bytes
from halos_eval.errors import BadInput, EvaluationFailed
from halos_eval.stages.thinking import LEAST_ENDED
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, read_record
from halos_eval.storage.result_files import plain_name
from halos_eval.untrusted import parse_json


def find_outputs(url: str) -> tuple[str, bytes, Record | None]:
    """Return the URL and the content of outputs, and the record of the sample stage that wrote them, if there is one.

    ``url`` is that record, a file, or the NAME.json that was the sample stage's --output. Raise BadInput, StoreError.
    """
    is_record = url.endswith(f".{layout.RECORD}")
    record_url = url if is_record else layout.record_beside(plain_name(url))
    sampled = read_record(record_url)
    data = None if is_record else _content(url)
    if data is not None:
        known = sampled is not None and digest_bytes(data) in sampled.files.values()
        return url, data, sampled if known else None
    if sampled is None:
        raise BadInput(f"{url} not found. Run `halos-eval sample`, which writes it")
    if sampled.stage != "sample" or len(sampled.files) != 1 or "/" in min(sampled.files):
        raise BadInput(f"{record_url} is no record of outputs; expected one that `halos-eval sample` wrote")
    ((name, digest),) = sampled.files.items()
    file = filesystem.join(record_url.rpartition("/")[0] or ".", name)
    data = _content(file)
    if data is None or digest_bytes(data) != digest:
        raise BadInput(f"{file} is missing or damaged; {record_url} names it. Sample again with --force")
    return file, data, sampled


def cut_outputs(rows: Sequence[dict[str, Any]]) -> frozenset[str]:
    """Return the instructions whose output has no end, because the model used up its budget: no win and no loss.

    Raise EvaluationFailed, before the judge is paid, if they are too many for a win rate over the others.
    """
    cut = frozenset(row["instruction"] for row in rows if row.get("cut") is True)
    if len(cut) > (1 - LEAST_ENDED) * len(rows):
        raise EvaluationFailed(
            f"{len(cut)} of {len(rows)} outputs were cut at max_tokens; expected at most {1 - LEAST_ENDED:.0%}. A win "
            "rate over the others would not represent the set. Raise max_tokens and max_model_len in the suite's "
            "sampling"
        )
    return cut


def _content(url: str) -> bytes | None:
    try:
        return filesystem.read_bytes(url)
    except FileNotFoundError:
        return None


def read_outputs(url: str, data: bytes) -> list[dict[str, Any]]:
    """Return the rows of the outputs at ``url``. Raise BadInput."""
    try:
        rows = parse_json(data)
    except ValueError as error:
        raise BadInput(f"{url} is not valid JSON ({error}); expected a file that `halos-eval sample` wrote") from error
    if not isinstance(rows, list) or not rows:
        raise BadInput(f"{url} does not contain outputs; expected a non-empty list")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output")):
            raise BadInput(
                f"{url}: item {number} is invalid; expected an object with the strings 'instruction' and 'output'"
            )
        for key in ("instruction", "output", "generator"):
            check_whole(str(row.get(key)), f"{url}: {key} of item {number}")
    return rows

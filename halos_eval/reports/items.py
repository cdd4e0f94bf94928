"""The items of a result: documents of an lm_eval task with their scores, and pairs with the judge's preference.

Only the files that a record names are read, and they must have its digest.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from halos_eval.digests import digest_bytes
from halos_eval.errors import StoreError
from halos_eval.stages.harness.clusters import cluster_of
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, readable_record
from halos_eval.storage.result_files import plain_name
from halos_eval.untrusted import parse_json

SAMPLES = "samples/"
ANNOTATIONS = "annotations.json"
OUTPUTS = "outputs.json"


class Item(NamedTuple):
    """One document of an lm_eval task with one filter."""

    task: str
    """Task, or subtask of a group."""
    id: str
    """``doc_id`` of lm_eval; for a subtask SUBTASK/doc_id."""
    filter: str
    """lm_eval's filter that extracted the answer."""
    scores: dict[str, tuple[float, ...]]
    """Values by metric; IFEval has several for one document. Metrics without a number for each document are absent."""
    prompt: str
    """The whole prompt, with its examples."""
    reference: str
    """The reference answer: lm_eval's target, or the right choice."""
    answer: str
    """The model's answer, or the choice that it finds most likely."""
    extracted: str
    """What the filter extracted from the answer; of a choice, the choice."""
    cluster: str
    """Documents with the same text here depend on each other."""
    digest: str
    """Digest of the document, which tells whether two checkpoints were asked the same; empty in old results."""


def items_of(url: str, record: Record, task: str | None = None) -> Iterator[Item]:
    """Yield the items of the harness record at ``url``, of all its tasks or of ``task``. Raise StoreError."""
    files = {plain_name(name): name for name in record.files if name.startswith(SAMPLES)}
    for plain, name in sorted(files.items()):
        of = plain.removeprefix(SAMPLES).removesuffix(".jsonl.gz")
        if task not in {None, record.task, of}:
            continue
        file, data = _named(url, record, name)
        try:
            lines = gzip.decompress(data).splitlines()
            for line in lines:
                yield _item(of, "" if of == record.task else f"{of}/", parse_json(line))
        except (OSError, EOFError, zlib.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise StoreError(f"{file} has no readable samples ({error}). Run this task again") from error


def has_samples(record: Record, task: str) -> bool:
    """Return whether a harness record has samples of ``task``: its own task, or a subtask."""
    return task == record.task or any(plain_name(name) == f"{SAMPLES}{task}.jsonl.gz" for name in record.files)


def annotations_of(url: str, record: Record) -> list[dict[str, Any]]:
    """Return the judged pairs of the judge record at ``url``, as alpaca_eval writes them. Raise StoreError."""
    return _rows(url, record, ANNOTATIONS)


def pair_id(instruction: str) -> str:
    """Return the id of a judged pair."""
    return digest_bytes(instruction.encode(errors="surrogatepass"))[:12]


def subsets_of(root: str, judged: Record) -> dict[str, str]:
    """Return the subset of AlpacaEval by instruction, from the outputs that ``judged`` is about; none if they are gone.

    Raise StoreError if they are damaged.
    """
    outputs = judged.identity.get("inputs", {}).get("outputs", "")
    tail = layout.record_tail("sample", None, str(outputs))
    url = filesystem.join(layout.runs_url(root, judged.checkpoint.name), tail)
    record, _ = readable_record(url)
    rows = _rows(url, record, OUTPUTS) if record else []
    return {str(row.get("instruction")): str(row["dataset"]) for row in rows if row.get("dataset")}


def _rows(url: str, record: Record, plain: str) -> list[dict[str, Any]]:
    name = next((name for name in record.files if plain_name(name) == plain), plain)
    file, data = _named(url, record, name)
    try:
        rows = parse_json(data)
    except ValueError as error:
        raise StoreError(f"{file} is not JSON ({error}). Run this stage again") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StoreError(f"{file} is not a list of rows. Run this stage again")
    return rows


def _named(url: str, record: Record, name: str) -> tuple[str, bytes]:
    """Return the URL and the content of a file that a record names. Raise StoreError if it is not that file."""
    file = filesystem.join(url.rpartition("/")[0], name)
    try:
        data = filesystem.read_bytes(file)
    except FileNotFoundError:
        data = b""
    if digest_bytes(data) != record.files.get(name):
        raise StoreError(f"{file} is missing or was changed after its record was written. Run this stage again")
    return file, data


def _item(task: str, prefix: str, row: Mapping[str, Any]) -> Item:
    asked = row.get("arguments") or [[""]]
    first = asked[0] if isinstance(asked[0], list) else [asked[0]]
    answer, reference, extracted = _answer(row, asked)
    metrics = {metric: values for metric in row.get("metrics", ()) if (values := _values(row.get(metric)))}
    return Item(
        task=task,
        id=f"{prefix}{row['doc_id']}",
        filter=str(row.get("filter", "none")),
        scores=metrics,
        prompt=str(first[0]) if first else "",
        reference=reference,
        answer=answer,
        extracted=extracted,
        cluster=f"{prefix}{cluster_of(row)}",
        digest="".join(str(row.get(key, "")) for key in ("doc_hash", "target_hash")),
    )


def _answer(row: Mapping[str, Any], asked: list[Any]) -> tuple[str, str, str]:
    """Return the answer, the reference and the extracted answer as text."""
    target, responses = row.get("target"), row.get("resps") or []
    likelihoods = [one[0] for one in responses if isinstance(one, list) and one and isinstance(one[0], list)]
    if len(likelihoods) == len(asked) > 1 and all(isinstance(one, list) and len(one) > 1 for one in asked):
        texts = [str(one[1]) for one in asked]
        if len(set(texts)) == 1:  # the choices are in the context, as in winogrande
            texts = [str(one[0]) for one in asked]
        best = max(range(len(texts)), key=lambda number: float(likelihoods[number][0]))
        right = texts[target] if isinstance(target, int) and 0 <= target < len(texts) else target
        return texts[best], str(right), texts[best]
    if likelihoods:  # of one given text, such as the last word
        value, *greedy = likelihoods[0]
        word = f"log-likelihood {value:.4g}{', the most likely text' if greedy and greedy[0] else ''}"
        return word, str(target), word
    first = responses[0] if responses else ""
    while isinstance(first, list) and first:
        first = first[0]
    filtered = row.get("filtered_resps") or [""]
    return str(first), str(target), str(filtered[0])


def _values(value: Any) -> tuple[float, ...]:
    """Return the numbers of a metric; none if it has other values, such as the pairs of a corpus metric."""
    found = value if isinstance(value, list) else [value]
    numbers = [one for one in found if isinstance(one, bool | int | float)]
    return tuple(map(float, numbers)) if len(numbers) == len(found) else ()

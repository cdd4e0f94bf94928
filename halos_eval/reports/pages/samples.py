"""Pages with a checkpoint's answers: the samples of a harness task, or the judge's pairs. Written once for each record."""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halos_eval.config.suite import title_of
from halos_eval.errors import StoreError
from halos_eval.reports.pages import document
from halos_eval.reports.pages.links import samples_folder
from halos_eval.storage import filesystem
from halos_eval.storage.records import Record
from halos_eval.storage.result_files import plain_name

VERSION = 1
"""Version of these pages. Raise it if they change, so that they are written again."""
ON_A_PAGE = 100
SHOWN = 1000
"""Samples of a task that have pages: the worst. The result file has all."""
LONGEST = 20_000
"""Characters of a text that are shown."""
DRAW = 1.5


@dataclass(frozen=True)
class Text:
    """A text of a sample with its heading."""

    heading: str
    text: str
    language: str = ""

    @property
    def start(self) -> str:
        """The part that is shown."""
        return document.shown(self.text[:LONGEST])

    @property
    def cut(self) -> int:
        """Number of characters that are not shown."""
        return max(0, len(self.text) - LONGEST)


@dataclass(frozen=True)
class Sample:
    """One document or pair with its answers."""

    key: str
    """Name that is the same in the samples of other checkpoints."""
    texts: Sequence[Text]
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Value of each metric; None if there is none."""
    verdict: str = ""
    """In words: right or wrong; win, loss or draw."""
    subset: str = ""
    """Subset of AlpacaEval, or the subtask of a group."""

    @property
    def good(self) -> float:
        """Order of samples: the worst first, those without a score after the others."""
        first = next((value for value in self.scores.values() if value is not None), math.inf)
        return first


def pages_of(record: Record) -> int:
    """Return how many pages a record's samples have at most."""
    return math.ceil(min(max(record.coverage.attempted, 1), SHOWN) / ON_A_PAGE)


def first_page(record: Record) -> str:
    """Return the path of the first page of a record's samples, which is written last."""
    return page_name(record, 1)


def page_name(record: Record, number: int) -> str:
    """Return the path of one page. Other samples, or another version of the pages, give another name."""
    title = re.sub(r"[^A-Za-z0-9_.-]", "-", title_of(record.stage, record.task, None))[:80]
    return f"{samples_folder(record.checkpoint.name)}/{title}-{record.fingerprint}-{VERSION}-{number}.html"


def pages(record: Record, folder: str) -> dict[str, bytes]:
    """Return the pages of a record's samples by path, the first page last. ``folder`` has the record.

    Empty for a record without samples. Raise StoreError if a file is missing or damaged.
    """
    samples = read_samples(record, folder)
    if not samples:
        return {}
    ordered = sorted(samples, key=lambda one: one.good)
    kept = ordered[:SHOWN]
    parts = [kept[start : start + ON_A_PAGE] for start in range(0, len(kept), ON_A_PAGE)]
    names = [page_name(record, number).rsplit("/", 1)[1] for number in range(1, len(parts) + 1)]
    common: dict[str, Any] = {
        "checkpoint": record.checkpoint.name,
        "title": "AlpacaEval" if record.stage == "judge" else record.task,
        "total": len(samples),
        "kept": len(kept),
        "subsets": subsets_of(samples) if record.stage == "judge" else [],
        "names": names,
        "page_link": _up(record),
    }
    written = {
        page_name(record, at + 1): document.render("samples.html.jinja", samples=part, at=at, **common)
        for at, part in enumerate(parts)
    }
    return dict(reversed(written.items()))


def _up(record: Record) -> str:
    return f"../../checkpoints/{record.checkpoint.name.replace('/', '__')}.html"


def read_samples(record: Record, folder: str) -> list[Sample]:
    """Return the samples of a harness or judge record. Raise StoreError."""
    found: list[Sample] = []
    for name in sorted(record.files):
        plain = plain_name(name)
        url = filesystem.join(folder, name)
        if record.stage == "judge" and plain == "annotations.json":
            found += [_pair(number, row) for number, row in enumerate(_read(url))]
        if record.stage == "harness" and plain.startswith("samples/"):
            subtask = plain.removeprefix("samples/").removesuffix(".jsonl.gz")
            found += _documents(_read(url), "" if subtask == record.task else subtask)
    return found


def _read(url: str) -> list[Any]:
    """Return the rows of a file; a damaged row is None."""
    try:
        data = filesystem.read_bytes(url)
        if not url.endswith(".gz"):
            return list(json.loads(data))
        lines = gzip.decompress(data).splitlines()
    except FileNotFoundError as error:
        raise StoreError(f"{url} not found, although a record names it. Run the stage again with --force") from error
    except (ValueError, TypeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise StoreError(f"{url} is damaged ({error}). Run the stage again with --force") from error
    return [_row(line) for line in lines if line.strip()]


def _row(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _pair(number: int, row: Any) -> Sample:
    if not isinstance(row, dict) or not isinstance(row.get("instruction"), str):
        return _unreadable(str(number))
    preference = row.get("preference")
    known = isinstance(preference, int | float) and not math.isnan(preference)
    texts = [
        Text("Prompt", row["instruction"]),
        Text("This checkpoint", str(row.get("output_2"))),
        Text("Reference", str(row.get("output_1"))),
    ]
    verdict = _winner(preference) if known else "the judgement could not be read"
    scores = {"preference": preference - 1 if known else None}
    return Sample(str(number), texts, scores, verdict, str(row.get("dataset") or ""))


def _winner(preference: float) -> str:
    return "draw" if preference == DRAW else "win" if preference > DRAW else "loss"


def subsets_of(samples: Iterable[Sample]) -> list[tuple[str, Counter[str]]]:
    """Return the numbers of wins, losses, draws and unread judgements by subset, and of all."""
    found: dict[str, Counter[str]] = {}
    for one in samples:
        for subset in {one.subset or "no subset", "all"}:
            found.setdefault(subset, Counter())[one.verdict if one.verdict in {"win", "loss", "draw"} else "unread"] += 1
    return sorted(found.items(), key=lambda item: (item[0] == "all", item[0]))


def _documents(rows: Iterable[Any], subtask: str) -> list[Sample]:
    """Return the samples of one task. A document has a row for each filter, and is one sample."""
    found: dict[str, Sample] = {}
    for number, row in enumerate(rows):
        key = f"{subtask} {row['doc_id']}".strip() if isinstance(row, dict) and "doc_id" in row else f"row {number}"
        try:
            one = _document(key, row, subtask)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            one = _unreadable(key)
        if key in found:
            earlier = found[key]
            answer = [Text(f"Extracted by {row.get('filter')}", _plain(row.get("filtered_resps")))] if row else []
            one = Sample(key, [*earlier.texts, *answer], {**earlier.scores, **one.scores}, earlier.verdict, subtask)
        found[key] = one
    return list(found.values())


def _document(key: str, row: dict[str, Any], subtask: str) -> Sample:
    requests = [list(one) if isinstance(one, list | tuple) else [one] for one in _listed(row["arguments"])]
    responses = row["resps"]
    texts = [Text("Prompt", _plain(requests[0][0]))]
    if len(requests[0]) > 1 and isinstance(requests[0][1], str):  # log-likelihoods of continuations
        lines = [f"{_likelihood(one[0]):>10}  {request[1]}" for request, one in zip(requests, responses, strict=False)]
        texts.append(Text("Log-likelihood of each continuation", "\n".join(lines)))
    else:
        texts += [Text("Answer", _plain(one)) for response in responses for one in _listed(response)]
        texts.append(Text(f"Extracted by {row.get('filter')}", _plain(row.get("filtered_resps"))))
    texts.append(Text("Reference", _plain(row.get("target"))))
    names = [name for name in row.get("metrics", ()) if isinstance(row.get(name), int | float)]
    filtered = "" if row.get("filter") in {None, "none"} else f", {row['filter']}"
    scores = {f"{name}{filtered}": float(row[name]) for name in names}
    first = next(iter(scores.values()), None)
    verdict = {0.0: "wrong", 1.0: "right"}.get(first, "") if first is not None else "no score"
    return Sample(key, texts, scores, verdict, subtask)


def _listed(value: Any) -> list[Any]:
    if isinstance(value, dict):  # lm_eval also writes {"gen_args_0": {"arg_0": ...}}
        return [_listed(one) if isinstance(one, dict) else one for one in value.values()]
    return list(value) if isinstance(value, list | tuple) else [value]


def _likelihood(response: Any) -> str:
    value = response[0] if isinstance(response, list | tuple) else response
    return f"{float(value):.2f}"


def _plain(value: Any) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _unreadable(key: str) -> Sample:
    return Sample(key, [Text("Damaged", "This sample is unreadable in the result file.")], {}, "unreadable")

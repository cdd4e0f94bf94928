"""Pages with the answers of a checkpoint: documents of a harness task, or the judge's pairs. Written once a result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.reports.comparison import Comparison
from halos_eval.reports.items import Item, annotations_of, items_of, pair_id, subsets_of
from halos_eval.reports.pages import document
from halos_eval.reports.pages.links import anchor, checkpoint_page, samples_name
from halos_eval.storage.records import Record

ON_A_PAGE = 100
SHOWN = 1000
"""Samples of a task that have pages: the first in their order. The result file has all."""
LONGEST = 20_000
"""Characters of a text that are shown."""
DRAW = 1.5
WORDS = {0.0: "wrong", 1.0: "right"}


@dataclass(frozen=True)
class Text:
    """A text of a sample with its heading."""

    heading: str
    text: str

    @property
    def start(self) -> str:
        """The part that is shown."""
        return self.text[:LONGEST]

    @property
    def cut(self) -> int:
        """Number of characters that are not shown."""
        return max(0, len(self.text) - LONGEST)


@dataclass(frozen=True)
class Sample:
    """One document or pair with its answers."""

    key: str
    """Id of the item, as in a comparison."""
    texts: Sequence[Text]
    scores: Mapping[str, float | None] = field(default_factory=dict)
    """Value of each metric; None if there is none."""
    verdict: str = ""
    """In words: right or wrong; win, loss or draw."""
    subset: str = ""
    """Subset of AlpacaEval."""
    flips: Sequence[str] = ()
    """Beside which checkpoints it flipped, in words."""

    @property
    def anchor(self) -> str:
        """Name in the page."""
        return anchor(self.key)

    @property
    def order(self) -> float:
        """The worst samples come first after those that flipped, those without a score last."""
        return next((value for value in self.scores.values() if value is not None), math.inf)


def pages(
    root: str, title: str, key: str, url: str, record: Record, flipped: Mapping[str, Sequence[str]]
) -> dict[str, bytes]:
    """Return the pages of the result ``record`` at ``url`` by name; the first page is the last, so it means all.

    ``title`` is that of the job, ``key`` the `samples_key`, and ``flipped`` as `flipped_items` returns it. Raise
    StoreError if a file is missing or damaged.
    """
    judged = record.stage == "judge"
    found = pairs(annotations_of(url, record), subsets_of(root, record)) if judged else documents(items_of(url, record))
    ordered = flipped_first(found, flipped)
    kept = ordered[:SHOWN]
    parts = [kept[start : start + ON_A_PAGE] for start in range(0, len(kept), ON_A_PAGE)] or [[]]
    common: dict[str, Any] = {
        "checkpoint": record.checkpoint.name,
        "title": "AlpacaEval" + title.removeprefix("judge").replace("@", ", judge ") if judged else title,
        "total": len(found),
        "kept": len(kept),
        "flipped": sum(bool(one.flips) for one in ordered),
        "subsets": counts(found) if judged else [],
        "names": [samples_name(title, key, at) for at in range(1, len(parts) + 1)],
        "up": f"../../{checkpoint_page(record.checkpoint.name)}",
    }
    return {
        samples_name(title, key, at + 1): document.render("samples.html.jinja", samples=part, at=at, **common)
        for at, part in reversed(list(enumerate(parts)))
    }


def flipped_items(comparisons: Iterable[Comparison], title: str, result: str) -> dict[str, list[str]]:
    """Return the items on which a checkpoint, A of each comparison, differs from another one: first those it lost.

    They are by id, with the other checkpoints in words. ``title`` is that of the job. Comparisons of another ``result``
    than this one, which is as in ``Row.samples``, say nothing of its samples.
    """
    part = title.replace("judge", ALPACA_EVAL, 1) if title.partition("@")[0] == "judge" else title
    compared = [
        (one.b, task) for one in comparisons for task in one.tasks if (task.task, task.result_a) == (part, result)
    ]
    found: dict[str, list[str]] = {}
    for verdict in ("worse", "better"):
        for other, task in compared:
            for value in getattr(task, verdict):
                words = found.setdefault(value.partition("#")[0], [])  # one of several values of a document
                if f"{verdict} than {other}" not in words:
                    words.append(f"{verdict} than {other}")
    return found


def flipped_first(samples: Iterable[Sample], flipped: Mapping[str, Sequence[str]]) -> list[Sample]:
    """Return the samples in the order of the pages: those that flipped, in that order, then the worst first."""
    places = {key: place for place, key in enumerate(flipped)}
    marked = [replace(one, flips=flipped.get(one.key, ())) for one in samples]
    return sorted(marked, key=lambda one: (places.get(one.key, len(places)), one.order))


def documents(items: Iterable[Item]) -> list[Sample]:
    """Return the samples of a harness task. A document has an item for each filter, and is one sample."""
    found: dict[str, list[Item]] = {}
    for one in items:
        found.setdefault(one.id, []).append(one)
    return [_document(key, filters) for key, filters in found.items()]


def _document(key: str, filters: Sequence[Item]) -> Sample:
    first = filters[0]
    texts = [Text("Prompt", first.prompt), Text("Answer", first.answer)]
    texts += [
        Text(f"Extracted by {one.filter}" if one.filter != "none" else "Extracted", one.extracted)
        for one in filters
        if one.extracted != one.answer
    ]
    scores = {
        metric if one.filter == "none" else f"{metric} ({one.filter})": sum(values) / len(values)
        for one in filters
        for metric, values in one.scores.items()
    }
    verdict = WORDS.get(next(iter(scores.values())), "") if scores else "no score"
    return Sample(key, [*texts, Text("Reference", first.reference)], scores, verdict)


def pairs(rows: Iterable[Mapping[str, Any]], subsets: Mapping[str, str]) -> list[Sample]:
    """Return the samples of AlpacaEval: the pairs with the judge's preference, 0 for the reference to 1."""
    found = []
    for row in rows:
        instruction, preference = str(row.get("instruction")), row.get("preference")
        known = isinstance(preference, int | float) and not math.isnan(preference)
        texts = [Text("Prompt", instruction), Text("Answer", str(row.get("output_2")))]
        texts.append(Text("Reference", str(row.get("output_1"))))
        subset = str(row.get("dataset") or subsets.get(instruction, ""))
        verdict = winner(float(preference or 0)) if known else "judgement unreadable"
        score = {"preference": float(preference or 0) - 1 if known else None}
        found.append(Sample(pair_id(instruction), texts, score, verdict, subset))
    return found


def winner(preference: float) -> str:
    """Return who has won by the judge's preference, from 1 (reference) to 2."""
    return "draw" if preference == DRAW else "win" if preference > DRAW else "loss"


def counts(samples: Iterable[Sample]) -> list[tuple[str, Counter[str]]]:
    """Return the numbers of wins, losses, draws and unreadable judgements by subset, those of all at the end."""
    found: dict[str, Counter[str]] = {}
    for one in samples:
        verdict = one.verdict if one.verdict in {"win", "loss", "draw"} else "unread"
        for subset in (one.subset or "unknown", "all"):
            found.setdefault(subset, Counter())[verdict] += 1
    return sorted(found.items(), key=lambda item: (item[0] == "all", item[0]))

"""Pages with the answers of a checkpoint: documents of a harness task, or the judge's pairs. Written once a result."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from halos_eval.reports.items import Item, annotations_of, items_of, pair_id, subsets_of
from halos_eval.reports.pages import document
from halos_eval.reports.pages.links import anchor, checkpoint_page, samples_name
from halos_eval.storage.records import Record

ON_A_PAGE = 100
SHOWN = 1000
"""Samples of a task that have pages: the worst. The result file has all."""
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

    @property
    def anchor(self) -> str:
        """Name in the page."""
        return anchor(self.key)

    @property
    def order(self) -> float:
        """The worst samples come first, those without a score last."""
        return next((value for value in self.scores.values() if value is not None), math.inf)


def pages(root: str, title: str, name: str, url: str, record: Record) -> dict[str, bytes]:
    """Return the pages of the result ``record`` at ``url`` by name; the first page is the last, so it means all.

    ``title`` is that of the job, and ``name`` as in ``Row.samples``. Raise StoreError if a file is missing or damaged.
    """
    judged = record.stage == "judge"
    found = pairs(annotations_of(url, record), subsets_of(root, record)) if judged else documents(items_of(url, record))
    kept = sorted(found, key=lambda one: one.order)[:SHOWN]
    parts = [kept[start : start + ON_A_PAGE] for start in range(0, len(kept), ON_A_PAGE)] or [[]]
    common: dict[str, Any] = {
        "checkpoint": record.checkpoint.name,
        "title": "AlpacaEval" + title.removeprefix("judge").replace("@", ", judge ") if judged else title,
        "total": len(found),
        "kept": len(kept),
        "subsets": counts(found) if judged else [],
        "names": [samples_name(title, name, at) for at in range(1, len(parts) + 1)],
        "up": f"../../{checkpoint_page(record.checkpoint.name)}",
    }
    return {
        samples_name(title, name, at + 1): document.render("samples.html.jinja", samples=part, at=at, **common)
        for at, part in reversed(list(enumerate(parts)))
    }


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

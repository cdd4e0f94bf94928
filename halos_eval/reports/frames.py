"""Results of a store as pandas frames: ``halos_eval.results("s3://bucket/store")``.

Nothing is computed again and nothing is written. Texts of prompts and answers are strangers': escape them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from halos_eval.config.suite import ALPACA_EVAL
from halos_eval.errors import BadInput, StoreError
from halos_eval.reports.items import Item, annotations_of, has_samples, items_of, subsets_of
from halos_eval.reports.results import Row, judge_of
from halos_eval.reports.scores import scores
from halos_eval.reports.shown import shown
from halos_eval.reports.table import frame_of, read_rows
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, readable_record

if TYPE_CHECKING:
    import pandas as pd

SAMPLE_COLUMNS = (
    "task", "id", "metric", "filter", "score", "prompt", "reference", "answer", "extracted", "cluster"
)  # fmt: skip
"""Columns of ``samples``: one row for each document, filter and metric, see `halos_eval.reports.items.Item`."""
ANNOTATION_COLUMNS = (
    "id", "instruction", "dataset", "output_1", "output_2", "generator_1", "generator_2", "preference", "judge", "raw"
)  # fmt: skip
"""Columns of ``annotations``: one row for each pair."""


class Results:
    """The results in one store."""

    def __init__(self, url: str) -> None:
        self.url = url

    def suites(self) -> list[str]:
        """Return the names of the suites with a plan. Raise StoreError."""
        found = filesystem.entries(layout.plans_url(self.url))
        return sorted(name for name, entry in found.items() if entry.is_folder)

    def table(self, suite: str | None = None) -> pd.DataFrame:
        """Return the table of a suite, or of all records, with the columns of the CSV. Raise BadInput, StoreError."""
        return frame_of(self._rows(suite))

    def scores(self, suite: str, groups: bool = False) -> pd.DataFrame:
        """Return all scores of a suite, one in each row, with the columns of `halos_eval.reports.scores.Line`.

        With ``groups``, also those of the members of groups. Raise BadInput, StoreError.
        """
        return scores(self.url, suite, groups)

    def samples(self, checkpoint: str, task: str, suite: str | None = None) -> pd.DataFrame:
        """Return the documents of a task, or of a subtask of a group, with the columns ``SAMPLE_COLUMNS``.

        ``suite`` selects the result that its table shows; without it, the newest counts. ``score`` is a number, the
        mean where a document has several values (IFEval's instructions). Raise BadInput, StoreError.
        """
        import pandas as pd

        url, record = self._record(checkpoint, "harness", task, suite)
        lines = [line for item in items_of(url, record, task) for line in _lines(item)]
        return pd.DataFrame(lines, columns=list(SAMPLE_COLUMNS))

    def annotations(self, checkpoint: str, judge: str | None = None, suite: str | None = None) -> pd.DataFrame:
        """Return the judged pairs of a checkpoint, with the columns ``ANNOTATION_COLUMNS``.

        ``judge`` is the judge's model; without it, the newest judgement counts, or that of the suite's main judge.
        ``preference`` is from 1 = output_1, the reference, to 2 = output_2, the checkpoint; NaN if the judge's answer
        could not be read. ``raw`` is that answer as JSON. Raise BadInput, StoreError.
        """
        import pandas as pd

        url, record = self._record(checkpoint, "judge", judge, suite)
        datasets: dict[str, str] = {}
        with suppress(StoreError):  # the judgement is whole without its outputs
            datasets = subsets_of(self.url, record)
        lines = [
            {
                "id": number,
                "dataset": row.get("dataset") or datasets.get(str(row.get("instruction"))),
                "judge": judge_of(record),
                "raw": json.dumps(row.get("preference_raw_completion", row.get("raw_completion")), ensure_ascii=False),
                **{key: row.get(key) for key in ("instruction", "preference")},
                **{f"{key}_{side}": row.get(f"{key}_{side}") for key in ("output", "generator") for side in (1, 2)},
            }
            for number, row in enumerate(annotations_of(url, record))
        ]
        return pd.DataFrame(lines, columns=list(ANNOTATION_COLUMNS))

    def _rows(self, suite: str | None) -> list[Row]:
        return read_rows(self.url, suite)

    def _record(self, checkpoint: str, stage: str, name: str | None, suite: str | None) -> tuple[str, Record]:
        """Return a record and its URL: that which the suite shows, else the newest."""
        found = list(self._shown(checkpoint, suite) if suite else self._all(checkpoint, stage))
        fitting = [one for one in found if one[1].stage == stage and _fits(one[1], name)]
        if not fitting:
            what = name or (ALPACA_EVAL if stage == "judge" else stage)
            known = {one[1].task or judge_of(one[1]) for one in found if one[1].stage == stage}
            where = f" in suite {suite}" if suite else ""
            raise BadInput(
                f"{checkpoint} has no result of {what}{where} in {self.url}; "
                f"available: {', '.join(sorted(filter(None, known))) or 'none'}. Evaluate it, or name another one"
            )
        return fitting[0] if suite else max(fitting, key=lambda one: one[1].provenance.ended)

    def _shown(self, checkpoint: str, suite: str) -> Iterator[tuple[str, Record]]:
        for one in shown(self.url, suite, checkpoint).parts:
            if one.record:
                yield one.url, one.record

    def _all(self, checkpoint: str, stage: str) -> Iterator[tuple[str, Record]]:
        for url in filesystem.find(layout.runs_url(self.url, checkpoint), layout.RECORD):
            folder = url.rsplit("/", 3)[1]
            if folder == stage or folder.startswith(f"{stage}."):
                record, _ = readable_record(url)
                if record:
                    yield url, record


def _fits(record: Record, name: str | None) -> bool:
    if record.stage == "harness":
        return name is not None and has_samples(record, name)
    return name is None or judge_of(record) == name


def _lines(item: Item) -> Iterator[dict[str, Any]]:
    for metric, values in item.scores.items():
        fields = {name: getattr(item, name) for name in SAMPLE_COLUMNS if name not in {"metric", "score"}}
        yield {**fields, "metric": metric, "score": sum(values) / len(values)}

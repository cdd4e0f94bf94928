"""Standard errors of tasks whose documents are not independent: questions on one passage, instructions of one prompt.

lm_eval 0.4.13 takes all documents as independent. With five questions on each passage its error can be too small by a
factor of two; see Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

PASSAGES = ("passage", "article", "context", "paragraph", "story")
"""Fields of a document that hold the text that several documents share, in lm_eval's tasks (race, drop, squad, ...)."""


def clustered_error(rows: Iterable[Mapping[str, Any]], metric: str, value: float) -> tuple[float, int] | None:
    """Return the standard error of ``value``, and the number of clusters, from the samples of one filter of a task.

    A cluster consists of the documents with the same passage. If a document has several values (IFEval's instructions),
    these are a cluster too. None if all values are independent, if there is only one cluster, or if ``value`` is not
    the mean of the samples' values, so that the error is lm_eval's.
    """
    sums: dict[str, tuple[float, int]] = {}
    for row in rows:
        values = row.get(metric)
        found = values if isinstance(values, list | tuple) else [values]
        if not all(isinstance(one, Real) for one in found):
            return None
        total, count = sums.get(key := cluster_of(row), (0.0, 0))
        sums[key] = total + sum(map(float, found)), count + len(found)
    items = sum(count for _, count in sums.values())
    if not 1 < len(sums) < items:
        return None
    mean = sum(total for total, _ in sums.values()) / items
    if not math.isclose(mean, value, abs_tol=1e-9):
        return None
    squares = sum((total - count * mean) ** 2 for total, count in sums.values())
    return math.sqrt(squares * len(sums) / (len(sums) - 1)) / items, len(sums)


def cluster_of(row: Mapping[str, Any]) -> str:
    """Return the cluster of a sample: equal for documents that depend on each other."""
    document = row.get("doc")
    texts = (document.get(key) for key in PASSAGES) if isinstance(document, Mapping) else ()
    passage = next((text for text in texts if isinstance(text, str) and text.strip()), None)
    return f"document {row.get('doc_id')}" if passage is None else f"passage {passage}"

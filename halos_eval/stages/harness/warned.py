"""Count what lm_eval only warns of, although it changes a score."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

# The beginning or a part of the message in lm_eval 0.4.13, by the name of the detail in the record.
MESSAGES = {
    "labels_out_of_range": "Label index was not in within range",  # the document is scored as wrong
    "incomplete_group_metrics": "is missing in",  # a group's metric is the average of fewer tasks
}


class _Handler(logging.Handler):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self.counts = counts

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.counts.update(name for name, part in MESSAGES.items() if part in message)


@contextmanager
def warnings_counted() -> Iterator[Counter[str]]:
    """Yield the counts of these warnings, which are updated until the context ends."""
    handler = _Handler(Counter())
    logger = logging.getLogger("lm_eval")
    logger.addHandler(handler)
    try:
        yield handler.counts
    finally:
        logger.removeHandler(handler)

"""Write the summary CSV: from the store's records, or from the log files that HALOs users already have."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, model_validator
from pydantic_settings import CliPositionalArg

from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput
from halos_eval.reports.halos_logs.read import read_logs
from halos_eval.reports.results import Row
from halos_eval.reports.table import frame, read_rows
from halos_eval.storage import filesystem
from halos_eval.storage.outbox import collect

log = logging.getLogger(__name__)


def _check_suite(name: str | None) -> str | None:
    from halos_eval.config.suite import NAME

    if name is not None and not NAME.fullmatch(name):
        raise ValueError("a suite's name has letters, digits, '-' and '_' only")
    return name


class SummarizeConfig(BaseModel):
    """One row for each checkpoint, as CSV and as a table on the screen."""

    model_config = FROZEN

    root: CliPositionalArg[str | None] = None
    """Store, or any folder or URL with records below it."""
    suite: Annotated[str | None, AfterValidator(_check_suite)] = None
    """Only this suite, with what is missing from it (default: every record, the newest of each task)."""
    outbox: str | None = None
    """Folder where tasks without a network have left their results: they are carried into the store first."""
    logs: str | None = None
    """Instead of records: a folder of *.log files of lm_eval and alpaca_eval, or one such file."""
    output: str = "summary.csv"
    """File or URL of the CSV."""

    @model_validator(mode="after")
    def _one_source(self) -> SummarizeConfig:
        if (self.root is None) == (self.logs is None):
            raise ValueError("give either a store or --logs")
        if self.outbox and self.root is None:
            raise ValueError("--outbox needs a store")
        return self


def summarize(config: SummarizeConfig) -> list[Row]:
    """Make and write the table; return its rows. Raises BadInput, StoreError."""
    if config.logs is not None:
        rows = read_logs(Path(config.logs))
    elif config.root is not None:
        if config.outbox is not None:
            collect(Path(config.outbox), config.root)
        rows = read_rows(config.root, config.suite)
    else:
        raise BadInput("give either a store or --logs")
    filesystem.write_bytes(config.output, frame(rows).to_csv(index=False).encode())
    return rows

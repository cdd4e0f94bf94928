"""Write the summary CSV, from the store's records or from the log files that HALOs users already have."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, model_validator
from pydantic_settings import CliPositionalArg

from halos_eval.config.policy import Gate
from halos_eval.config.settings import FROZEN
from halos_eval.errors import BadInput
from halos_eval.reports import kept_rows
from halos_eval.reports.gate import run_gate
from halos_eval.reports.halos_logs.read import read_logs
from halos_eval.reports.kept_rows import KeptRows
from halos_eval.reports.pages import write as pages
from halos_eval.reports.results import Row
from halos_eval.reports.scores import encoded, scores
from halos_eval.reports.table import csv_of, frame_of, in_order, read_rows
from halos_eval.storage import changes, filesystem, layout
from halos_eval.storage.claims import WAIT, claimed, this_process
from halos_eval.storage.outbox import collect

log = logging.getLogger(__name__)


def _check_suite(name: str | None) -> str | None:
    from halos_eval.config.suite import NAME

    if name is not None and not NAME.fullmatch(name):
        raise ValueError(f"invalid suite name ({name}); expected only letters, digits, '-' and '_'")
    return name


def _check_checkpoint(name: str | None) -> str | None:
    if name is not None and not layout.NAME.fullmatch(name):
        raise ValueError(f"invalid checkpoint name ({name}); expected the name of a checkpoint of the registry")
    return name


class SummarizeConfig(BaseModel):
    """Write one row per checkpoint to a CSV, and print the table."""

    model_config = FROZEN

    root: CliPositionalArg[str | None] = None
    """Store, or any folder or URL that contains records."""
    suite: Annotated[str | None, AfterValidator(_check_suite)] = None
    """Only this suite, with its missing parts (default: the newest record of each task)."""
    checkpoint: Annotated[str | None, AfterValidator(_check_checkpoint)] = None
    """Compute only the row of this checkpoint, and those that are outdated; the store keeps the others."""
    outbox: str | None = None
    """Folder with the results of tasks without network access. They are moved into the store first."""
    logs: str | None = None
    """Read *.log files of lm_eval and alpaca_eval instead of records: a folder of them, or one file."""
    gate: Gate | None = None
    """Gate of the policy file, as JSON: compare the checkpoint, and write the outcome beside the table."""
    margin: float = Field(0.01, ge=0)
    """Differences up to this do not matter to the gate; 0.01 is one percentage point."""
    scores: str | None = None
    """Also write all scores of the suite to this file or URL, one in each row: .csv, .parquet or .json."""
    groups: bool = False
    """In `scores`, also those of the members of groups."""
    output: str = "summary.csv"
    """File or URL of the table; the ending .parquet or .json selects the format, another one CSV."""

    @model_validator(mode="after")
    def _one_source(self) -> SummarizeConfig:
        if (self.root is None) == (self.logs is None):
            raise ValueError("expected either a store or --logs")
        if self.outbox and self.root is None:
            raise ValueError("--outbox requires a store")
        if self.checkpoint and not self.suite:
            raise ValueError("--checkpoint requires --suite")
        if self.gate and not self.checkpoint:
            raise ValueError("--gate requires --checkpoint")
        if self.scores and not self.suite:
            raise ValueError("--scores requires --suite")
        return self


def summarize(config: SummarizeConfig) -> list[Row]:
    """Write the table and return its rows. Raise BadInput, StoreError."""
    if config.logs is not None:
        rows = read_logs(Path(config.logs))
    elif config.root is not None:
        if config.outbox is not None:
            collect(Path(config.outbox), config.root)
        if config.suite and config.scores:
            filesystem.write_bytes(
                config.scores, encoded(scores(config.root, config.suite, config.groups), config.scores)
            )
        if config.suite and (config.checkpoint or config.output == layout.report_url(config.root, config.suite)):
            return _kept(config.root, config.suite, config)
        rows = read_rows(config.root, config.suite)
    else:
        raise BadInput("expected either a store or --logs")
    filesystem.write_bytes(config.output, _content(rows, config.output))
    return rows


def _content(rows: list[Row], output: str) -> bytes:
    """Return the table as Parquet or JSON if the name ends so, otherwise as CSV."""
    return encoded(frame_of(rows), output) if output.endswith((".parquet", ".json")) else csv_of(rows)


def _kept(root: str, suite: str, config: SummarizeConfig) -> list[Row]:
    """Write the table and its rows. No other process writes them meanwhile, so none replaces a row by an older one."""
    if config.checkpoint and config.gate:
        run_gate(root, suite, config.checkpoint, config.gate, config.margin)
    with ThreadPoolExecutor() as pool:  # requests that need not wait for each other do not
        noting = pool.submit(_note, root, suite, config.checkpoint)
        with claimed(layout.report_claims_url(root, suite), this_process(), WAIT) as confirm:
            found, removable = _rows(root, suite, config.checkpoint, noting.result())
            confirming = pool.submit(confirm)  # extends the lease by minutes, and what follows takes less than a second
            rows = in_order(found.rows.values())
            contents = {layout.rows_url(root, suite): found.encoded(), config.output: _content(rows, config.output)}
            if pages.installed():
                folder = layout.report_folder(root, suite)
                contents |= {filesystem.join(folder, path): page for path, page in pages.overview(suite, rows).items()}
            confirming.result()
            list(pool.map(filesystem.write_bytes, contents.keys(), contents.values()))
    changes.remove(root, suite, removable)
    known = found.computed if config.checkpoint else pages.with_pages(root, suite)
    pages.remove_checkpoints(root, suite, sorted(known - found.rows.keys()))
    if pages.installed():
        pages.write_checkpoints(root, suite, [found.rows[name] for name in sorted(found.computed & found.rows.keys())])
    else:
        log.warning("the pages of the report are not written: this environment lacks their libraries (image judge)")
    return rows


def _note(root: str, suite: str, checkpoint: str | None) -> str:
    """Note in all suites that a checkpoint was evaluated; return the name of the note in this one."""
    if checkpoint is None:
        return ""
    with ThreadPoolExecutor() as pool:
        others = pool.submit(changes.note_in_others, root, suite, checkpoint)
        noted = changes.note(root, suite, checkpoint)
        others.result()
    return noted


def _rows(root: str, suite: str, checkpoint: str | None, noted: str) -> tuple[KeptRows, list[str]]:
    """Return all rows, and the notes to remove once they are written. Raise BadInput if the checkpoint has no plan."""
    if checkpoint is None:
        return kept_rows.rebuild(root, suite, kept_rows.PROCESSES), []
    own = layout.folder_name(checkpoint)
    found, removable = kept_rows.with_row(root, suite, own, noted)
    if own not in found.rows:
        raise BadInput(f"{root} contains no plan of {suite} for {checkpoint}: evaluate it first")
    return found, removable

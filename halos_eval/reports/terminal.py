"""The summary table as a terminal shows it: as many checkpoints as fit, a short status, and the reasons below.

The CSV has every checkpoint. A screen has about 80 columns, and a reason is longer than that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from halos_eval.reports.markdown import first
from halos_eval.reports.results import Cell, Row
from halos_eval.reports.table import COMPLETE, JUDGE, columns, document

FOLDED = 12
"""Names and words are folded after so many characters where space is short; numbers never are."""
NAMES = 5
"""At most so many checkpoints are named for a reason: the CSV has them all."""
BORDER, PADDING = 1, 2
"""Characters beside a cell: a line before each column and after the last, and a space on each side."""


class Summary:
    """A summary table that fits the width of the console that prints it: one column a checkpoint, one row a metric.

    All cells are Text, because names and reasons come from other people's files: rich reads no markup in them.
    """

    def __init__(self, rows: Sequence[Row], csv: str) -> None:
        """``csv`` is where the whole table is, which is named where checkpoints are hidden."""
        self.rows, self.csv = rows, csv
        self.names = [plain(row.checkpoint) for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Give the table, how many checkpoints it does not show, and why anything is missing."""
        rows = dict(self._rows())
        space = options.max_width - 2 * BORDER - PADDING
        longest = max(map(cell_len, rows), default=0)
        widths = _fitting(self.names, list(rows.values()), space - min(longest, space // 3))
        label = min(longest, space - sum(width + PADDING + BORDER for width in widths))
        columns = zip(["", *self.names], [label, *widths], strict=False)
        table = Table(*(Column(Text(name), overflow="fold", width=width) for name, width in columns))
        for title, cells in rows.items():
            table.add_row(*map(Text, [title, *cells[: len(widths)]]))
        yield table
        if hidden := len(self.names) - len(widths):
            yield Text(f"{hidden} more checkpoint{'s' if hidden > 1 else ''}: see {self.csv}")
        yield from self._reasons()

    def _rows(self) -> Iterator[tuple[str, list[str]]]:
        for column in columns(map(document, self.rows)):
            if column == "model_name":
                continue
            if column in SPECIAL:
                yield column, [SPECIAL[column](row) for row in self.rows]
            elif not column.endswith("_stderr"):
                yield column, [_cell(row.cells.get(column)) for row in self.rows]

    def _reasons(self) -> Iterator[Table | Text]:
        """One item for each reason: a suite that cannot measure something cannot do so for all checkpoints alike."""
        affected: dict[str, list[str]] = {}
        for name, row in zip(self.names, self.rows, strict=True):
            for one in row.missing or ():
                affected.setdefault(plain(str(one)), []).append(name)
        if not affected:
            return
        items = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
        for reason, names in affected.items():
            items.add_row("-", Text(f"{reason} ({first(names, NAMES)})"))
        yield Text("Missing, and why:")
        yield items


def plain(text: str) -> str:
    """Text from files of others without what a terminal would obey."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _fitting(names: Sequence[str], rows: Sequence[Sequence[str]], space: int) -> list[int]:
    """The widths of the columns that fit into ``space``, at least one: with whole names if so all of them fit."""
    columns = list(zip(names, *rows, strict=True))
    whole = [max(map(cell_len, column)) for column in columns]
    if sum(width + PADDING + BORDER for width in whole) <= space:
        return whole
    shown: list[int] = []
    for column in columns:
        width = max(map(_least, column))
        space -= width + PADDING + BORDER
        if space < 0:
            break
        shown.append(width)
    return shown or [max(1, space + width)]


def _least(cell: str) -> int:
    """How narrow a cell may get: a number that is folded is misread."""
    return cell_len(cell) if cell[:1].isdigit() or cell[:1] == "-" else min(cell_len(cell), FOLDED)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    error = cell.shown_stderr
    return f"{cell.value:.4g}" + ("" if error is None else f" ±{error:.2g}")


def _state(row: Row) -> str:
    if row.missing is None:
        return ""
    return COMPLETE if row.complete else f"{len(row.missing)} missing"


def _average(row: Row) -> str:
    return "" if row.average is None else f"{row.average:.4g}"


SPECIAL = {JUDGE: lambda row: plain(row.judge or ""), "avg": _average, "status": _state}
"""Columns that hold no score."""

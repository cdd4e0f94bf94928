"""The summary table for a terminal: as many checkpoints as fit, a short status, and the reasons below.

The CSV has all checkpoints. A terminal has about 80 columns, and reasons are longer than that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from halos_eval.reports.markdown import first
from halos_eval.reports.results import Cell, Row, labelled
from halos_eval.reports.table import JUDGE, columns, document, short_status

FOLDED = 12
"""Number of characters after which text is folded in a narrow terminal. Numbers are never folded."""
NAMES = 5
"""Maximum number of checkpoints named per reason. The CSV has all of them."""
BORDER, PADDING = 1, 2
"""Characters around a cell: a line before each column and after the last, and a space on each side."""
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but for tab and newline, and those that change the direction of writing."""


class Summary:
    """A summary table that fits the console's width, with one column per checkpoint and one row per metric.

    All cells are Text, in which rich reads no markup, because names and reasons come from files of other people.
    """

    def __init__(self, rows: Sequence[Row], csv: str) -> None:
        """``csv`` is the path of the full table, which is shown if checkpoints are hidden."""
        self.rows, self.csv = rows, csv
        self.names = [plain(row.checkpoint) for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the table, the number of hidden checkpoints, and the reasons for missing results."""
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
            yield Text(f"{hidden} more checkpoint{'s' if hidden > 1 else ''}: see {plain(self.csv)}")
        yield from self._reasons()

    def _rows(self) -> Iterator[tuple[str, list[str]]]:
        for column in columns(map(document, self.rows)):
            if column == "model_name":
                continue
            if column == "series" and len({row.series for row in self.rows}) == 1:
                continue
            if column in SPECIAL:
                if shown := SPECIAL[column]:
                    yield column, [shown(row) for row in self.rows]
            elif any(column in row.cells for row in self.rows):
                yield plain(column), [_cell(row.cells.get(column)) for row in self.rows]
            elif any(column in row.counts for row in self.rows):
                yield plain(column), [str(row.counts.get(column, "")) for row in self.rows]
            elif column.startswith(labelled(JUDGE, "")):
                label = column.removeprefix(labelled(JUDGE, ""))
                yield plain(column), [plain(row.judges.get(label, "")) for row in self.rows]

    def _reasons(self) -> Iterator[Table | Text]:
        """Yield one item per reason, because checkpoints of one suite often share it."""
        for heading, reasons in NOTES.items():
            affected: dict[str, list[str]] = {}
            for name, row in zip(self.names, self.rows, strict=True):
                for one in reasons(row):
                    affected.setdefault(plain(str(one)), []).append(name)
            if not affected:
                continue
            items = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 1))
            for reason, names in affected.items():
                items.add_row("-", Text(f"{reason} ({first(names, NAMES)})"))
            yield Text(heading)
            yield items


class PlainConsole(Console):
    """A console that prints text as it is, but for control characters: no markup, no emoji codes, no escapes.

    Names, reasons and answers come from files of other people, and a terminal would execute their escapes.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return ``text`` for the terminal. Rich calls this for every string that it prints, also in tables."""
        return super().render_str(plain_lines(text), **options)


def plain(text: str) -> str:
    """Return ``text`` without control characters, which a terminal would execute."""
    return "".join(char if char.isprintable() else "?" for char in text)


def plain_lines(text: str) -> str:
    """Return ``text`` as ``plain`` does, with its ends of lines."""
    return "\n".join(map(plain, text.split("\n")))


def visible(text: str) -> str:
    r"""Return ``text`` as it is, but for controls that a terminal would execute: these become ``\x1b`` and the like."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def _fitting(names: Sequence[str], rows: Sequence[Sequence[str]], space: int) -> list[int]:
    """Return the widths of the columns that fit into ``space``, at least one. Fold text if not all of them fit."""
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
    """Return the minimum width of a cell. Numbers are not folded, because folded numbers are misread."""
    return cell_len(cell) if cell[:1].isdigit() or cell[:1] == "-" else min(cell_len(cell), FOLDED)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.interval:
        low, high = cell.interval
        if low < cell.value < high:
            return f"{cell.value:.4g} ({low:.3g} to {high:.3g})"
        return f"{cell.value:.4g} (≥{low:.3g})" if cell.value else f"{cell.value:.4g} (≤{high:.3g})"
    error = cell.shown_stderr
    return f"{cell.value:.4g}" + ("" if error is None else f" ±{error:.2g}")


def _average(row: Row) -> str:
    return "" if row.average is None else _cell(Cell(row.average, row.average_stderr))


SPECIAL = {
    JUDGE: lambda row: plain(row.judge or ""),
    "avg": _average,
    "avg_stderr": None,
    "series": lambda row: str(row.series or ""),
    "status": lambda row: short_status(row.missing, row.trial, row.warnings),
}
"""Columns without scores; None for one that is part of another."""
NOTES: dict[str, Callable[[Row], Sequence[object]]] = {
    "Missing, and why:": lambda row: row.missing or (),
    "Compared by the policy's gate:": lambda row: (row.gate,) if row.gate else (),
    "Trials:": lambda row: (row.trial,) if row.trial else (),
    "Warnings:": lambda row: row.warnings,
}
"""Lists below the table."""

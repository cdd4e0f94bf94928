"""Markdown that reads well as plain text, made from words of others: names, reasons, exceptions.

Such text stands in code spans only. There nothing is interpreted, in Markdown and in what is made of it (HTML for mail,
Slack's dialect), and it stays legible where nobody renders it.
"""

from __future__ import annotations

from collections.abc import Sequence

from halos_eval.reports.results import Cell

# What would end a code span, or a cell of a table. Dialects differ in how to escape it, so it is replaced.
LOOKALIKES = str.maketrans({"`": "'", "|": "¦"})


def code(text: str, longest: int = 300) -> str:
    """``text`` as a code span of one line, cut after ``longest`` characters."""
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()) or "?"
    cut = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return f"`{cut.translate(LOOKALIKES)}`"


def number(cell: Cell | None, digits: int) -> str:
    """Return a score with its standard error, if there is one; empty where nothing was measured."""
    if cell is None:
        return ""
    error = cell.shown_stderr
    return f"{cell.value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned in a fixed-width font."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def first(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first ``most`` items, and how many more there are."""
    more = len(items) - most
    return separator.join([*items[:most], *([f"and {more} more"] if more > 0 else [])])

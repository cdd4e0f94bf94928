"""Build Markdown that is also legible as plain text, from text of other sources: names, reasons, exceptions.

Such text is put only into code spans. There nothing is interpreted, neither in Markdown nor in formats made from it
(HTML for mail, Slack's dialect), and it is legible without rendering.
"""

from __future__ import annotations

from collections.abc import Sequence

from halos_eval.reports.results import Cell

# Characters that end a code span or a table cell, and those of mentions and links, which Apprise finds in code spans
# as well: "<!channel>" would become a mention in Slack, "@everyone" one in Discord. Dialects differ in how to escape
# them, so they are replaced.
LOOKALIKES = str.maketrans({"`": "'", "|": "¦", "<": "‹", ">": "›", "@": "＠"})  # noqa: RUF001


def code(text: str, longest: int = 300) -> str:
    """Return ``text`` as a code span of one line, truncated to ``longest`` characters."""
    words = " ".join("".join(sign if sign.isprintable() else " " for sign in text).split()) or "?"
    cut = words if len(words) <= longest else f"{words[: longest - 1]}…"
    return f"`{cut.translate(LOOKALIKES)}`"


def number(cell: Cell | None, digits: int) -> str:
    """Return a score with its standard error, if any; empty without a score."""
    if cell is None:
        return ""
    if cell.interval:
        low, high = cell.interval
        return f"{cell.value:.{digits}f} " + (f"(≥ {low:.{digits}f})" if cell.value else f"(≤ {high:.{digits}f})")
    error = cell.shown_stderr
    return f"{cell.value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns are aligned in a fixed-width font."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in lines
    )


def first(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return the first ``most`` items, and the number of further ones."""
    more = len(items) - most
    return separator.join([*items[:most], *([f"and {more} more"] if more > 0 else [])])

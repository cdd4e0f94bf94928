"""What strangers write: JSON of any depth, times of any year, text that is no UTF-8, cells that are formulas."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, TypeVar

HALF = re.compile("[\ud800-\udfff]")
"""Half a character. JSON and names of files may contain one; files, databases and terminals take none."""

FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""Beginnings of text that a spreadsheet takes for a formula."""
FIRST, LAST = (datetime(*day, tzinfo=UTC).timestamp() for day in ((1, 1, 2), (9999, 12, 30)))
Cell = TypeVar("Cell")


def parse_json(data: str | bytes) -> Any:
    """Return the document in ``data``. Raise ValueError if it is none, also if it is nested too deeply for Python."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def moment(seconds: float) -> datetime:
    """Return the time ``seconds`` after 1970 in UTC; the first or last of Python's years for files beyond them."""
    return datetime.fromtimestamp(min(max(seconds, FIRST), LAST), UTC)


def whole(text: str) -> str:
    """Return ``text`` with U+FFFD in place of each half of a character."""
    return HALF.sub("\ufffd", text)


def shown_name(name: str) -> str:
    """Return the name of a file as text that can be stored. Other than with ``whole``, each name has its own.

    Linux takes any bytes as a name; Python reads those that are no UTF-8 as halves of characters.
    """
    return name.replace("\\", "\\\\").encode(errors="backslashreplace").decode()


def whole_json(document: Any) -> Any:
    """Return a JSON document with ``whole`` texts. Raise ValueError if it is nested too deeply for Python."""
    try:
        return _whole(document)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return whole(value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    return {whole(key): _whole(one) for key, one in value.items()} if isinstance(value, dict) else value


def as_cell(cell: Cell) -> Cell | str:
    """Return a cell that stays one cell of text: names in logs and of judges are texts of strangers.

    A text that begins like a formula gets an apostrophe before it (OWASP, CSV injection). A carriage return is written
    as a newline, because Python's writer would not quote it.
    """
    if not isinstance(cell, str):
        return cell
    text = cell.replace("\r\n", "\n").replace("\r", "\n") if "\r" in cell else cell
    return f"'{text}" if text.startswith(FORMULA) else text

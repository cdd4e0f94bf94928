"""What strangers write: JSON documents of any depth, and text with characters that UTF-8 cannot encode."""

from __future__ import annotations

import json
import re
from typing import Any

HALF = re.compile("[\ud800-\udfff]")
"""Half a character. JSON and names of files may contain one; files, databases and terminals take none."""


def parse_json(data: str | bytes) -> Any:
    """Return the document in ``data``. Raise ValueError if it is none, also if it is nested too deeply for Python."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def whole(text: str) -> str:
    """Return ``text`` with U+FFFD in place of each half of a character."""
    return HALF.sub("\ufffd", text)


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

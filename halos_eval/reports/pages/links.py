"""Paths of the pages in the folder of a suite's report."""

from __future__ import annotations

from urllib.parse import quote

from halos_eval.storage import layout

INDEX, CHARTS = "index.html", "charts.html"


def checkpoint_page(checkpoint: str) -> str:
    """Return the path of the page of one checkpoint."""
    return f"checkpoints/{layout.folder_name(checkpoint)}.html"


def samples_folder(checkpoint: str) -> str:
    """Return the folder of the samples of one checkpoint."""
    return f"samples/{layout.folder_name(checkpoint)}"


def pair_page(first: str, second: str) -> str:
    """Return the path of the page with two checkpoints side by side."""
    return f"pairs/{layout.folder_name(first)}--{layout.folder_name(second)}.html"


def linked(path: str) -> str:
    """Return a path for a link."""
    return quote(path)

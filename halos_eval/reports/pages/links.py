"""Paths of the pages in the folder of a suite's report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from halos_eval.digests import digest_json
from halos_eval.storage import layout

INDEX, CHARTS = "index.html", "charts.html"
SAMPLES_VERSION = 2
"""Version of the pages with samples. Raise it if they change, so that they are written again."""


def checkpoint_page(checkpoint: str) -> str:
    """Return the path of the page of one checkpoint."""
    return f"checkpoints/{layout.folder_name(checkpoint)}.html"


def samples_folder(checkpoint: str) -> str:
    """Return the folder of the samples of one checkpoint."""
    return f"samples/{layout.folder_name(checkpoint)}"


def samples_key(name: str, flipped: Mapping[str, Sequence[str]]) -> str:
    """Return what determines pages of samples: the result ``name``, as in ``Row.samples``, and the flipped items."""
    return f"{name}-{digest_json([SAMPLES_VERSION, list(flipped.items())])[:8]}"


def samples_name(title: str, key: str, number: int = 1) -> str:
    """Return the name of a page of samples: ``title`` of the job, `samples_key`, number from 1."""
    return f"{_safe(title)}-{key}-{number}.html"


def is_samples_of(title: str, page: str) -> bool:
    """Return whether ``page`` is the name of a page with samples of ``title``, of any result."""
    return re.fullmatch(rf"{re.escape(_safe(title))}-[0-9a-f]+-[0-9a-f]{{8}}-[0-9a-f]+-\d+\.html", page) is not None


def anchor(item: str) -> str:
    """Return the name of an item in its page of samples."""
    return "i-" + re.sub(r"[^A-Za-z0-9_.-]", "-", item)[:120]


def pair_page(first: str, second: str) -> str:
    """Return the path of the page with two checkpoints side by side."""
    return f"pairs/{layout.folder_name(first)}/{layout.folder_name(second)}.html"


def _safe(title: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.@-]", "-", title)[:80]

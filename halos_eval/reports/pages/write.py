"""Write the pages of a suite into the store. An evaluation writes those of its checkpoint, the leaderboard and charts.

The pages of other checkpoints stay as they are, and a page of samples is written once for each result.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

from halos_eval.errors import StoreError
from halos_eval.reports.comparison import Comparison
from halos_eval.reports.pages import charts, checkpoint, leaderboard, pair, samples
from halos_eval.reports.pages.links import (
    CHARTS,
    INDEX,
    checkpoint_page,
    is_samples_of,
    pair_page,
    samples_folder,
    samples_key,
    samples_name,
)
from halos_eval.reports.results import Row
from halos_eval.storage import filesystem, layout
from halos_eval.storage.records import Record, readable, readable_record

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Checkpoints whose pages are written at once; each has at most the samples of one result in memory."""


def installed() -> bool:
    """Return whether this environment has the libraries of the pages: that of the image judge has."""
    return all(find_spec(name) for name in ("altair", "itables", "vl_convert"))


def overview(suite: str, rows: Sequence[Row]) -> dict[str, bytes]:
    """Return the pages about all checkpoints by path."""
    return {INDEX: leaderboard.page(suite, rows), CHARTS: charts.page(suite, rows)}


def write_checkpoints(root: str, suite: str, rows: Iterable[Row]) -> None:
    """Write the pages of these rows' checkpoints, with their samples and comparisons. Raise StoreError."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda row: _write_checkpoint(root, suite, row), rows))


def remove_checkpoints(root: str, suite: str, names: Iterable[str]) -> None:
    """Remove the pages of checkpoints that have no row any more; ``names`` are as in file names. Raise StoreError."""
    folder = layout.report_folder(root, suite)
    for name in names:
        if not layout.NAME.fullmatch(name.replace("__", "/")):
            continue  # no checkpoint's, and perhaps no name of a file: ".."
        filesystem.delete_file(filesystem.join(folder, "checkpoints", f"{name}.html"))
        for kind in ("samples", "pairs"):
            filesystem.delete(filesystem.join(folder, kind, name))


def with_pages(root: str, suite: str) -> set[str]:
    """Return the names, as in file names, of the checkpoints that have a page. Raise StoreError."""
    found = filesystem.entries(filesystem.join(layout.report_folder(root, suite), "checkpoints"))
    return {name.removesuffix(".html") for name in found if name.endswith(".html")}


def _write_checkpoint(root: str, suite: str, row: Row) -> None:
    folder = layout.report_folder(root, suite)
    pairs = []
    comparisons = _comparisons(root, suite, row.checkpoint)
    for one in comparisons:
        path = pair_page(one.a, one.b)
        filesystem.write_bytes(filesystem.join(folder, path), pair.page(one))
        pairs.append((one.b, f"{one.verdict}{' (by an earlier version)' if one.caution else ''}", path))
    linked, damaged = _write_samples(root, folder, row, comparisons)
    content = checkpoint.page(suite, row, linked, damaged, pairs)
    filesystem.write_bytes(filesystem.join(folder, checkpoint_page(row.checkpoint)), content)


def _comparisons(root: str, suite: str, name: str) -> list[Comparison]:
    """Return the comparisons of a checkpoint with others; a damaged one is left out."""
    folder = layout.comparisons_url(root, suite, name)
    read = [readable(filesystem.join(folder, file), Comparison) for file in sorted(filesystem.entries(folder))]
    for _, damage in read:
        if damage:
            log.warning("%s", damage)
    return [one for one, _ in read if one]


def _write_samples(
    root: str, folder: str, row: Row, comparisons: Sequence[Comparison]
) -> tuple[dict[str, str], dict[str, str]]:
    """Write the pages of samples that do not exist, and remove those of older results and comparisons.

    Return the first page of each title, and why others have none.
    """
    if not row.samples:
        return {}, {}
    own = samples_folder(row.checkpoint)
    there = filesystem.entries(filesystem.join(folder, own)).keys()
    linked: dict[str, str] = {}
    damaged: dict[str, str] = {}
    for title, name in row.samples.items():
        flipped = samples.flipped_items(comparisons, title, name)
        key = samples_key(name, flipped)
        first = samples_name(title, key)
        if first not in there:
            url = _record_url(root, row.checkpoint, title, name)
            try:
                pages = samples.pages(root, title, key, url, _record(url), flipped)
            except StoreError as error:
                damaged[title] = str(error)
                continue
            for page, content in pages.items():
                filesystem.write_bytes(filesystem.join(folder, own, page), content)
        linked[title] = f"{own}/{first}"
        _remove_older(folder, own, there, title, key)
    return linked, damaged


def _record_url(root: str, name: str, title: str, of: str) -> str:
    fingerprint = of.partition("-")[0]
    judged = title.partition("@")[0] == "judge"
    tail = (
        layout.record_tail("judge", None, fingerprint) if judged else layout.record_tail("harness", title, fingerprint)
    )
    return filesystem.join(layout.runs_url(root, name), tail)


def _record(url: str) -> Record:
    record, damage = readable_record(url)
    if record is None:
        raise StoreError(damage or f"{url} was removed. Run the stage again")
    return record


def _remove_older(folder: str, own: str, there: Collection[str], title: str, key: str) -> None:
    current = samples_name(title, key).removesuffix("1.html")
    for page in there:
        if is_samples_of(title, page) and not page.startswith(current):
            filesystem.delete_file(filesystem.join(folder, own, page))

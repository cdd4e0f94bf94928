"""The check that weights are complete, on a disk, in object storage and on the hub. It reads headers only."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from halos_eval import hub
from halos_eval.errors import BadInput, StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.filesystem import Entry
from halos_eval.untrusted import parse_json

ADAPTER_CONFIG = "adapter_config.json"
FIRST_READ = 64 * 1024  # bytes; most headers are shorter, so that one request is enough
LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors itself
PICKLES = (".bin", ".pt", ".pth")
Shapes = dict[str, tuple[int, ...]]
"""Shapes of tensors by their names in the weight files."""


def check_weights(folder: str, files: Mapping[str, Entry]) -> Shapes:
    """Return all tensors of the model or PEFT adapter in ``folder``. Raise BadInput if it is incomplete.

    Each weight file must have the size that its header implies. ``files`` are the entries from ``files_of``.
    """
    shapes: Shapes = {}
    files = {name: entry for name, entry in files.items() if not entry.is_folder}
    if not files:
        raise BadInput(f"{folder} does not exist or is empty. Check its path")
    if ADAPTER_CONFIG not in files and "config.json" not in files:
        raise BadInput(f"{folder} is not a model; expected config.json or {ADAPTER_CONFIG} in it")
    for name in _shards(folder, files, "adapter_model" if ADAPTER_CONFIG in files else "model"):
        if name not in files:
            other = [file for file in sorted(files) if file.endswith(PICKLES)]
            remedy = f"Convert {other[0]} to safetensors" if other else "Wait until it is saved, or copy it again"
            raise BadInput(f"{folder} is incomplete: {name} is missing. {remedy}")
        path = filesystem.join(folder, name)
        size, found = _header(path, files[name].size)
        if files[name].size != size:
            raise BadInput(f"{path} is truncated or not a safetensors file. Copy or save the checkpoint again")
        shapes |= found
    return shapes


def _shards(folder: str, files: Mapping[str, Entry], stem: str) -> list[str]:
    """Return the names of the weight files, from the index if there is one."""
    index = f"{stem}.safetensors.index.json"
    if index not in files:
        return [f"{stem}.safetensors"]
    names = read_json(filesystem.join(folder, index)).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadInput(f"{filesystem.join(folder, index)} names no weights. Save or download it again")
    return sorted({str(name).rsplit("/", 1)[-1] for name in names.values()})


def _header(url: str, size: int) -> tuple[int, Shapes]:
    """Return the size that a safetensors file must have, and its tensors; -1 and none if the header is invalid.

    The file has 8 bytes of header length, the header, and the tensors.
    """
    if size < 8:
        return -1, {}
    start = read(url, 0, FIRST_READ)
    length = struct.unpack("<Q", start[:8])[0]
    if length > min(size, LONGEST_HEADER):
        return -1, {}
    text = start[8 : 8 + length]
    if len(text) < length:
        text += read(url, len(start), 8 + length)
    try:
        tensors = {name: tensor for name, tensor in parse_json(text).items() if name != "__metadata__"}
        ends = [int(tensor["data_offsets"][1]) for tensor in tensors.values()]
        shapes = {name: tuple(map(int, tensor.get("shape", ()))) for name, tensor in tensors.items()}
    except (ValueError, AttributeError, LookupError, TypeError, OverflowError):  # JSON has Infinity, which is no int
        return -1, {}
    return 8 + int(length) + max(ends, default=0), shapes


def read_json(url: str) -> dict[str, Any]:
    """Return the JSON object in a file. Raises BadInput if it contains none."""
    try:
        document = parse_json(read(url))
    except ValueError as error:
        raise BadInput(f"{url} is not valid JSON ({error}). Save or download it again") from error
    if not isinstance(document, dict):
        raise BadInput(f"{url} is not a JSON object. Save or download it again")
    return document


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """Return the bytes of a listed file, from ``start`` up to ``end``.

    Raises BadInput, StoreError, and DataUnavailable or Incomplete for a file on the hub.
    """
    if url.startswith(hub.SCHEME):
        return hub.read(url, start, end)
    try:
        with readable(url):
            return filesystem.read_bytes(url, start, end)
    except FileNotFoundError as error:
        raise BadInput(f"{url} was removed while it was read. Retry when the checkpoint is saved") from error


def files_of(folder: str) -> dict[str, Entry]:
    """Return the entries of a folder by name; none if it does not exist. Raises BadInput, StoreError."""
    with readable(folder):
        return filesystem.entries(folder)


@contextmanager
def readable(location: str) -> Iterator[None]:
    """Turn a PermissionError of a disk into BadInput, because the checkpoint's owner can fix it.

    For a bucket, StoreError is raised unchanged: its message names the credentials.
    """
    try:
        yield
    except (PermissionError, StoreError) as error:
        refusal = error if isinstance(error, PermissionError) else error.__cause__
        if "://" in location or not isinstance(refusal, PermissionError):
            raise
        raise BadInput(
            f"{refusal.filename or location} is not readable by user {os.getuid()}. Grant read permission, and execute "
            "permission on the parent directories"
        ) from error

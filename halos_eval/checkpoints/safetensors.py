"""Whether weights are all there: one check for a folder on a disk and in object storage. It reads headers only."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from halos_eval.errors import BadInput, StoreError
from halos_eval.storage import filesystem
from halos_eval.storage.filesystem import Entry

ADAPTER_CONFIG = "adapter_config.json"
FIRST_READ = 64 * 1024  # bytes; most headers are shorter, so that one request is enough
LONGEST_HEADER = 100_000_000  # bytes; safetensors itself takes none that is longer
PICKLES = (".bin", ".pt", ".pth")


def check_complete(folder: str, files: Mapping[str, Entry]) -> None:
    """Raise BadInput unless ``folder`` holds a model or a PEFT adapter with all its safetensors.

    Each of them has to be as long as its header says. ``files`` is what ``files_of`` finds there.
    """
    files = {name: entry for name, entry in files.items() if not entry.is_folder}
    if not files:
        raise BadInput(f"{folder} is not there, or is empty: check its path")
    if ADAPTER_CONFIG not in files and "config.json" not in files:
        raise BadInput(f"{folder} is no model: there is no config.json (nor {ADAPTER_CONFIG}) in it")
    for name in _shards(folder, files, "adapter_model" if ADAPTER_CONFIG in files else "model"):
        if name not in files:
            other = [file for file in sorted(files) if file.endswith(PICKLES)]
            hint = f"{other[0]} is not loaded: convert it to safetensors" if other else "is it still being written?"
            raise BadInput(f"{folder} is not complete: {name} is missing ({hint})")
        if files[name].size != _size_by_header(filesystem.join(folder, name), files[name].size):
            path = filesystem.join(folder, name)
            raise BadInput(f"{path} is cut short or is no safetensors file: copy or save the checkpoint again")


def _shards(folder: str, files: Mapping[str, Entry], stem: str) -> list[str]:
    """The files that the weights consist of, as their index tells."""
    index = f"{stem}.safetensors.index.json"
    if index not in files:
        return [f"{stem}.safetensors"]
    names = read_json(filesystem.join(folder, index)).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise BadInput(f"{filesystem.join(folder, index)} names no weights: save or download it again")
    return sorted({str(name).rsplit("/", 1)[-1] for name in names.values()})


def _size_by_header(url: str, size: int) -> int:
    """The size in bytes that a safetensors file must have: 8 bytes of header length, the header, the tensors."""
    if size < 8:
        return -1
    start = read(url, 0, FIRST_READ)
    length = struct.unpack("<Q", start[:8])[0]
    if length > min(size, LONGEST_HEADER):
        return -1
    text = start[8 : 8 + length]
    if len(text) < length:
        text += read(url, len(start), 8 + length)
    try:
        header = json.loads(text)
        ends = [int(tensor["data_offsets"][1]) for key, tensor in header.items() if key != "__metadata__"]
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError):
        return -1
    return 8 + int(length) + max(ends, default=0)


def read_json(url: str) -> dict[str, Any]:
    """A JSON object from a file. Raises BadInput where it is none."""
    try:
        document = json.loads(read(url))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{url} is not JSON ({error}): save or download it again") from error
    if not isinstance(document, dict):
        raise BadInput(f"{url} is not a JSON object")
    return document


def read(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The bytes of a file that has been there, from ``start`` up to ``end``. Raises BadInput, StoreError."""
    try:
        with readable(url):
            return filesystem.read_bytes(url, start, end)
    except FileNotFoundError as error:
        raise BadInput(f"{url} was removed while it was looked at: is it being saved again?") from error


def files_of(folder: str) -> dict[str, Entry]:
    """What is in a folder, by name; nothing where there is none. Raises BadInput, StoreError."""
    with readable(folder):
        return filesystem.entries(folder)


@contextmanager
def readable(place: str) -> Iterator[None]:
    """Turn a disk's refusal into BadInput: it is the checkpoint's. That of a bucket stays: it is about its keys."""
    try:
        yield
    except (PermissionError, StoreError) as error:
        refusal = error if isinstance(error, PermissionError) else error.__cause__
        if "://" in place or not isinstance(refusal, PermissionError):
            raise
        raise BadInput(
            f"{refusal.filename or place} may not be read by user {os.getuid()}: let others read the checkpoint, and "
            "walk through the folders above it"
        ) from error

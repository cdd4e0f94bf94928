"""Digests of JSON documents, files and folders, and the fingerprints made from them."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(document: Any) -> str:
    """Return the SHA-256 of ``document`` as canonical JSON (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def fingerprint(identity: dict[str, Any]) -> str:
    """Return the first 16 digits of the digest of ``identity``.

    They are short enough for a folder name, and their 64 bits are enough against collisions.
    """
    return digest_json(identity)[:16]


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, names: list[str]) -> str:
    """Return one digest over the names and contents of the given files of ``folder``.

    Shards are read in parallel. Hashing releases the interpreter's lock, so disks are the limit.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = list(pool.map(lambda name: digest_file(folder / name), sorted(names)))
    return digest_json(dict(zip(sorted(names), digests, strict=True)))

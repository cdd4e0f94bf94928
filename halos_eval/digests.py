"""Digests: of JSON documents, of files, of folders. A fingerprint is the digest of all that determines a score."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any


def digest_bytes(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_json(document: Any) -> str:
    """SHA-256 of ``document`` written as canonical JSON (sorted keys, no spaces)."""
    return digest_bytes(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())


def fingerprint(identity: dict[str, Any]) -> str:
    """The first 16 digits of the digest of ``identity``: short enough for a folder name, 64 bits against collision."""
    return digest_json(identity)[:16]


def digest_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, names: list[str]) -> str:
    """One digest over the named files of ``folder``: their names and contents, not their times.

    Shards are read in parallel: hashing releases the interpreter's lock, so disks are the limit.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:
        digests = list(pool.map(lambda name: digest_file(folder / name), sorted(names)))
    return digest_json(dict(zip(sorted(names), digests, strict=True)))

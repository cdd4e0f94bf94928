"""ETags of S3: the MD5 of an object or, of an upload in N parts, the MD5 of the MD5s of its parts, with -N at the end.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
"""

from __future__ import annotations

import hashlib
import re

ETAG = re.compile(r"[0-9a-f]{32}(?:-(?P<parts>[1-9]\d{0,4}))?")


def parts_of(etag: str) -> int:
    """Return in how many parts an object was uploaded: 1 for a plain MD5, and 0 if its ETag is of another kind."""
    found = ETAG.fullmatch(etag.strip('"'))
    return int(found["parts"] or 1) if found else 0


class Etag:
    """Computes the ETag of an upload from its content. All parts but the last have ``size`` bytes; None: no parts."""

    def __init__(self, size: int | None = None) -> None:
        self._size, self._left = size, size or 0
        self._part, self._parts = _md5(), list[bytes]()

    def update(self, data: bytes) -> None:
        """Add content."""
        rest = memoryview(data)
        while self._size and len(rest) >= self._left:
            self._part.update(rest[: self._left])
            self._parts.append(self._part.digest())
            rest, self._part, self._left = rest[self._left :], _md5(), self._size
        self._part.update(rest)
        self._left -= len(rest)

    @property
    def value(self) -> str:
        """The ETag of what was added."""
        if not self._size:
            return self._part.hexdigest()
        parts = self._parts if self._left == self._size and self._parts else [*self._parts, self._part.digest()]
        return f"{_md5(b''.join(parts)).hexdigest()}-{len(parts)}"


def _md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)

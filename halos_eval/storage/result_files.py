"""Result files of a stage: each has the start of its digest in its name, and only a record says which of them count.

So a result file never changes. Whatever two runs of the same stage do, and wherever they are killed, a record names
files with the content that belongs to it. Files that no record names are removed by `halos_eval.planning.prune`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from halos_eval.digests import digest_bytes
from halos_eval.storage import filesystem

DIGITS = 16
ENDINGS = ".json", ".json.gz", ".jsonl.gz"
NAMED = re.compile(rf"(?P<start>.+)-(?P<digest>[0-9a-f]{{{DIGITS}}})(?P<ending>\.json|\.jsonl?\.gz)")


def write(folder: str, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Write files below ``folder``: outputs.json as outputs-DIGEST.json. Return their SHA-256 by name.

    Raise StoreError.
    """
    files = {}
    for plain, data in contents.items():
        digest = digest_bytes(data)
        name = named(plain, digest)
        filesystem.write_bytes(filesystem.join(folder, name), data)
        files[name] = digest
    return files


def named(plain: str, digest: str) -> str:
    """Return the name of the file ``plain``, such as outputs.json, with the start of its ``digest``."""
    ending = next(ending for ending in ENDINGS if plain.endswith(ending))
    return f"{plain.removesuffix(ending)}-{digest[:DIGITS]}{ending}"


def plain_name(name: str) -> str:
    """Return ``name`` without the digest, which only result files have."""
    found = NAMED.fullmatch(name)
    return found["start"] + found["ending"] if found else name


def digest_in(name: str) -> str | None:
    """Return the start of the digest in ``name``; None if it is not the name of a result file."""
    found = NAMED.fullmatch(name)
    return found["digest"] if found else None

#!/usr/bin/env python3
"""Serve a folder as a Hugging Face hub on loopback: the part of its API that clients read from.

    python tests/doubles/hub.py ROOT --port 0        # prints HF_ENDPOINT=http://127.0.0.1:PORT

ROOT holds repositories at models/NAMESPACE/NAME, datasets/NAMESPACE/NAME and spaces/NAMESPACE/NAME. A repository has
one branch, main; its commit follows from the content of its files, so a changed file is a new commit, and a restored
file the old one. A revision other than main and the present commit is not found.

Each line "NAMESPACE/NAME TOKEN" of ROOT/gated.txt gates a repository. As on the real hub, anybody may read a gated
repository's metadata, and only the token opens its files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

KINDS = ("models", "datasets", "spaces")
LONG_AGO = "2026-01-01T00:00:00.000Z"
STATUS = {"RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}


class RefusedError(Exception):
    """The hub does not give it; the argument is the code that clients read in X-Error-Code."""


@cache
def _blob_id(path: Path, size: int, modified: int) -> str:
    # Keyed by size and time as well: a file is read once, until it changes.
    return hashlib.sha1(b"blob %d\0" % size + path.read_bytes(), usedforsecurity=False).hexdigest()


def blob_id(path: Path) -> str:
    """Return what Git calls a file's content, which the hub gives as its ETag."""
    found = path.stat()
    return _blob_id(path, found.st_size, found.st_mtime_ns)


class Repository(NamedTuple):
    """A repository below the root."""

    kind: str
    name: str
    folder: Path

    def below(self, path: str) -> Path:
        """Return the place of ``path``. Raise RefusedError where nothing is there."""
        found = (self.folder / path).resolve()
        if not found.is_relative_to(self.folder) or not found.exists():
            raise RefusedError("EntryNotFound")
        return found

    def files(self) -> dict[str, Path]:
        """Return all files by name."""
        return {self.name_of(path): path for path in sorted(self.folder.rglob("*")) if path.is_file()}

    def name_of(self, path: Path) -> str:
        """Return how the repository calls one of its files or folders."""
        return path.relative_to(self.folder).as_posix()

    def commit(self) -> str:
        """Return the commit at which main stands."""
        listing = "".join(f"{name} {blob_id(path)}\n" for name, path in self.files().items())
        return hashlib.sha1(listing.encode(), usedforsecurity=False).hexdigest()

    def entry(self, path: Path) -> dict[str, Any]:
        """Describe one file or folder."""
        if path.is_dir():
            return {"type": "directory", "path": self.name_of(path), "oid": "0" * 40, "size": 0}
        return {"type": "file", "path": self.name_of(path), "oid": blob_id(path), "size": path.stat().st_size}


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"  # clients keep their connections
    root: Path
    verbose: bool

    def log_message(self, *words: Any) -> None:
        """Log the request to the standard error, if asked to."""
        if self.verbose:
            super().log_message(*words)

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self._answer()

    def do_GET(self) -> None:
        """Answer from the API, or give a file."""
        self._answer()

    def do_POST(self) -> None:
        """Answer a question that comes with a body."""
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        words = [unquote(word) for word in url.path.strip("/").split("/")]
        try:
            if words[0] == "api":
                self._send_json(self._api(words[1:], parse_qs(url.query), body))
            else:
                self._send_file(*self._resolve(words))
        except RefusedError as error:
            self._refuse(str(error))

    def _api(self, words: list[str], query: dict[str, list[str]], body: bytes) -> Any:
        match words:
            case ["whoami-v2"]:
                return {"type": "user", "name": "nobody", "orgs": [], "auth": {"type": "access_token"}}
            case [kind, namespace, name, *rest] if kind in KINDS:
                repository = self._repository(kind, f"{namespace}/{name}")
            case _:
                raise RefusedError("EntryNotFound")
        match rest:
            case [] | ["revision", _]:
                self._check_revision(repository, *rest[1:])
                return self._about(repository)
            case ["refs"]:
                main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commit()}
                return {"branches": [main], "converts": [], "tags": [], "pullRequests": []}
            case ["auth-check"]:
                self._check_token(repository)
                return {}
            case ["tree", revision, *folder]:
                self._check_revision(repository, revision)
                below = repository.below("/".join(folder))
                found = below.rglob("*") if query.get("recursive") in (["true"], ["True"], ["1"]) else below.iterdir()
                return [repository.entry(path) for path in sorted(found)]
            case ["paths-info", revision]:
                self._check_revision(repository, revision)
                return list(self._paths_info(repository, body))
            case _:
                raise RefusedError("EntryNotFound")

    def _paths_info(self, repository: Repository, body: bytes) -> Iterator[dict[str, Any]]:
        form = "json" not in self.headers.get("Content-Type", "")
        asked = (parse_qs(body.decode()) if form else json.loads(body)).get("paths", [])
        for path in [asked] if isinstance(asked, str) else asked:
            try:
                yield repository.entry(repository.below(path))
            except RefusedError:
                continue  # what is not there is left out of the answer

    def _about(self, repository: Repository) -> dict[str, Any]:
        return {
            "_id": hashlib.sha1(repository.name.encode(), usedforsecurity=False).hexdigest()[:24],
            "id": repository.name,
            "sha": repository.commit(),
            "siblings": [{"rfilename": name, "size": path.stat().st_size} for name, path in repository.files().items()],
            "gated": "manual" if repository.name in self._gates() else False,
            "private": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": LONG_AGO,
            "lastModified": LONG_AGO,
        }

    def _resolve(self, words: list[str]) -> tuple[Repository, Path]:
        kind, words = (words[0], words[1:]) if words[0] in KINDS[1:] else ("models", words)
        match words:
            case [namespace, name, "resolve", revision, *path] if path:
                repository = self._repository(kind, f"{namespace}/{name}")
                self._check_token(repository)
                self._check_revision(repository, revision)
                file = repository.below("/".join(path))
                if file.is_file():
                    return repository, file
        raise RefusedError("EntryNotFound")

    def _repository(self, kind: str, name: str) -> Repository:
        folder = (self.root / kind / name).resolve()
        if not folder.is_relative_to(self.root / kind) or not folder.is_dir():
            raise RefusedError("RepoNotFound")
        return Repository(kind, name, folder)

    def _check_revision(self, repository: Repository, revision: str = "main") -> None:
        if revision != "main" and revision != repository.commit():
            raise RefusedError("RevisionNotFound")

    def _check_token(self, repository: Repository) -> None:
        token = self._gates().get(repository.name)
        if token and self.headers.get("Authorization") != f"Bearer {token}":
            raise RefusedError("GatedRepo")

    def _gates(self) -> dict[str, str]:
        path = self.root / "gated.txt"
        lines = path.read_text().splitlines() if path.is_file() else []
        return dict(map(str.split, filter(None, lines)))

    def _refuse(self, code: str) -> None:
        status = STATUS[code]
        if code == "GatedRepo" and not self.headers.get("Authorization"):
            status = 401
        message = f"{code}: {self.path}"
        self._send_json({"error": message}, status, {"X-Error-Code": code, "X-Error-Message": message})

    def _send_json(self, document: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self._send(status, {"Content-Type": "application/json", **(headers or {})}, body)

    def _send_file(self, repository: Repository, file: Path) -> None:
        body = file.read_bytes()
        headers = {
            "Content-Type": "application/octet-stream",
            "ETag": f'"{blob_id(file)}"',
            "X-Repo-Commit": repository.commit(),
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), min(int(wanted[2] or len(body)), len(body) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body = body[first : last + 1]
        self._send(206 if wanted else 200, headers, body)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="Serve a folder as a Hugging Face hub on loopback.")
    parser.add_argument("root", type=Path, help="folder with models/, datasets/ and spaces/")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--verbose", action="store_true", help="log each request")
    options = parser.parse_args()
    Handler.root, Handler.verbose = options.root.resolve(), options.verbose
    with ThreadingHTTPServer(("127.0.0.1", options.port), Handler) as server:
        print(f"HF_ENDPOINT=http://127.0.0.1:{server.server_port}", flush=True)  # noqa: T201 (how others learn the port)
        server.serve_forever()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Serve the judge of tests/doubles/judge.py, also by OpenAI's Batch API (files and batches).

    python tests/doubles/batch_judge.py --port 0 --looks 2

A batch is in progress for ``--looks`` requests for its state. A share of its requests ends as an error (``--failing``),
or all after the first half never end (``--expire 1``). GET /stats counts batches, and answers in them, as well.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.doubles import judge


class Batches:
    """Files and batches of one account."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self._random = random.Random(options.seed)

    def store(self, data: bytes) -> str:
        """Keep a file and return its id."""
        name = f"file-{len(self.files) + 1}"
        self.files[name] = data
        return name

    def create(self, request: dict[str, Any]) -> dict[str, Any]:
        """Create a batch."""
        name = f"batch_{len(self.batches) + 1}"
        self.batches[name] = {
            "id": name,
            "object": "batch",
            "endpoint": request["endpoint"],
            "input_file_id": request["input_file_id"],
            "completion_window": request["completion_window"],
            "created_at": int(time.time()),
            "status": "validating",
            "metadata": request.get("metadata"),
        }
        return self.batches[name]

    def look(self, name: str, handler: Handler) -> dict[str, Any]:
        """Return a batch, which ends when it was looked at often enough."""
        batch = self.batches[name]
        self.looks[name] = self.looks.get(name, 0) + 1
        if self.looks[name] <= self.options.looks:
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress" or "output_file_id" not in batch:
            self._end(batch, handler)
        return batch

    def _end(self, batch: dict[str, Any], handler: Handler) -> None:
        items = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        answered, failed = [], []
        for number, item in enumerate(items):
            assert item["method"] == "POST"
            if self.options.expire and number >= len(items) / 2:
                failed.append({"custom_id": item["custom_id"], "response": None, "error": {"code": "batch_expired"}})
            elif self._random.random() < self.options.failing:
                reply = {"status_code": 500, "body": {"error": {"message": "broken"}}}
                failed.append({"custom_id": item["custom_id"], "response": reply, "error": None})
            else:
                reply = {"status_code": 200, "body": handler.reply_of(item["body"])}
                answered.append({"custom_id": item["custom_id"], "response": reply, "error": None})
        random.Random(0).shuffle(answered)  # in any order
        batch["status"] = "expired" if self.options.expire else "completed"
        for key, lines in {"output_file_id": answered, "error_file_id": failed}.items():
            batch[key] = self.store("\n".join(map(json.dumps, lines)).encode()) if lines else None
            handler.faults.count("files", bool(lines))
        handler.faults.count("answered in batches", len(answered))


class Handler(judge.Handler):
    """Answers one request."""

    batches: Batches
    caught: tuple[int, Any] | None = None

    def reply_of(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the judge's reply to a request, instead of sending it."""
        self._catching = True
        try:
            self._judge(request)
        finally:
            self._catching = False
        return self.caught[1]

    def _send(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "_catching", False):
            self.caught = status, body
        else:
            super()._send(status, body, headers)

    def do_GET(self) -> None:  # noqa: N802 (the server's name)
        """Give a batch, the list of batches, or a file."""
        path = self.path.partition("?")[0].split("/")[2:]
        if path[:1] == ["batches"] and len(path) == 2:
            self._send(200, self.batches.look(path[1], self))
        elif path == ["batches"]:
            self.faults.count("lists of batches")
            self._send(200, {"object": "list", "data": list(self.batches.batches.values())[::-1], "has_more": False})
        elif path[:1] == ["files"] and path[2:] == ["content"]:
            self._send(200, self.batches.files[path[1]].decode())
        else:
            super().do_GET()

    def do_DELETE(self) -> None:  # noqa: N802 (the server's name)
        """Delete a file."""
        name = self.path.rpartition("/")[2]
        del self.batches.files[name]
        self.faults.count("files", -1)
        self._send(200, {"id": name, "object": "file", "deleted": True})

    def do_POST(self) -> None:  # noqa: N802 (the server's name)
        """Take a file or a batch; judge anything else."""
        if self.path == "/v1/files":
            data = self.rfile.read(int(self.headers["Content-Length"]))
            boundary = self.headers["Content-Type"].partition("boundary=")[2].encode()
            [part] = [one for one in data.split(b"--" + boundary) if b"filename=" in one]
            name = self.batches.store(part.partition(b"\r\n\r\n")[2].rstrip(b"\r\n"))
            self.faults.count("files")
            self._send(200, {"id": name, "object": "file", "bytes": len(data), "created_at": 0, "purpose": "batch"})
        elif self.path == "/v1/batches":
            self.faults.count("batches")
            batch = self.batches.create(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self._send(200, batch)
        else:
            super().do_POST()


def main() -> None:
    """Serve until the process is ended."""
    parser = judge.options()
    parser.add_argument("--looks", type=int, default=1, help="requests for the state of a batch before it ends")
    parser.add_argument("--failing", type=float, default=0, help="share of a batch's requests that fail")
    parser.add_argument("--expire", type=int, default=0, help="1: the second half of a batch never ends")
    options = parser.parse_args()
    Handler.faults = judge.Faults(options)
    Handler.batches = Batches(options)
    with judge.Server(("127.0.0.1", options.port), Handler) as server:
        print(f"OPENAI_BASE_URL=http://127.0.0.1:{server.server_port}/v1", flush=True)  # noqa: T201 (how others learn the port)
        server.serve_forever()


if __name__ == "__main__":
    main()

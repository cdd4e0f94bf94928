"""The vendor's Batch API: files of requests that are answered within a day, for half the price.

https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from halos_eval.errors import Incomplete, JudgeRefused
from halos_eval.stages.judge.endpoint import Endpoint
from halos_eval.stages.judge.sending import body_of, read_body
from halos_eval.untrusted import parse_json, whole_json

if TYPE_CHECKING:
    from openai import AsyncOpenAI

log = logging.getLogger(__name__)

NAME = "halos_eval"
"""Key of a batch's metadata that has its name."""
PATH = "/v1/chat/completions"
WINDOW = "24h"
UPLOAD_SECONDS = 600.0
CLOCKS = timedelta(hours=1)
"""By how much the vendor's clock may be behind."""


class State(NamedTuple):
    """What the vendor says about a batch."""

    status: str
    """validating, in_progress, finalizing, cancelling; at the end completed, expired, cancelled or failed."""
    done: int = 0
    """Requests that are answered or failed."""
    files: tuple[str, ...] = ()
    """Ids of the files with its answers and with its errors."""
    problem: str = ""
    """Why it was rejected."""
    codes: frozenset[str] = frozenset()
    """The vendor's codes of these reasons."""
    uploaded: str | None = None
    """Id of the file with its requests."""


class Vendor:
    """The batches of one account."""

    def __init__(self, endpoint: Endpoint, client: AsyncOpenAI) -> None:
        self.endpoint, self.client = endpoint, client

    async def find(self, name: str, since: datetime) -> str | None:
        """Return the id of the batch ``name``, which was not created before ``since``; None if there is none."""
        oldest = (since - CLOCKS).timestamp()
        with self._errors():
            async for batch in self.client.batches.list(limit=100):  # the newest first
                if batch.created_at < oldest:
                    return None
                if (batch.metadata or {}).get(NAME) == name:
                    return str(batch.id)
        return None

    async def submit(self, name: str, requests: dict[str, dict[str, Any]]) -> str:
        """Upload the requests, by their keys, and create a batch of them; return its id."""
        data = b"".join(line(key, request) for key, request in requests.items())
        with self._errors():
            file = await self.client.files.create(
                file=(f"{NAME}-{name}.jsonl", data), purpose="batch", timeout=UPLOAD_SECONDS
            )
            batch = await self.client.batches.create(
                input_file_id=file.id, endpoint=PATH, completion_window=WINDOW, metadata={NAME: name}
            )
        return str(batch.id)

    async def state(self, batch_id: str) -> State:
        """Return the state of a batch."""
        with self._errors():
            batch = await self.client.batches.retrieve(batch_id)
        errors = (batch.errors.data if batch.errors else None) or []
        words = "; ".join(dict.fromkeys(str(one.message) for one in errors))
        return State(
            status=batch.status,
            done=batch.request_counts.completed + batch.request_counts.failed if batch.request_counts else 0,
            files=tuple(filter(None, (batch.output_file_id, batch.error_file_id))),
            problem=self._words(words),
            codes=frozenset(str(one.code) for one in errors),
            uploaded=batch.input_file_id,
        )

    async def answers(self, file_id: str) -> dict[str, dict[str, Any]]:
        """Return the answers in a file, by key. Requests that failed, and lines that cannot be read, are left out."""
        with self._errors():
            content = await self.client.files.content(file_id, timeout=UPLOAD_SECONDS)
        found: dict[str, dict[str, Any]] = {}
        for text in content.content.splitlines():  # bytes: in text, U+2028 would end a line as well
            try:
                item = whole_json(parse_json(text))
                if item["response"]["status_code"] == 200:
                    found.setdefault(str(item["custom_id"]), read_body(item["response"]["body"]))
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # its request is sent singly
        return found

    async def delete(self, file_id: str) -> None:
        """Delete a file. Log why if that fails: the vendor deletes files of batches after 30 days."""
        import openai

        try:
            await self.client.files.delete(file_id)
        except (openai.APIConnectionError, openai.APIStatusError) as error:
            log.warning("file %s is still at %s: %s", file_id, self.endpoint.place, self._words(str(error)))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise JudgeRefused for what a retry cannot fix, and Incomplete for what it can."""
        import openai

        try:
            yield
        except openai.APIConnectionError as error:  # timeouts included
            raise Incomplete(f"{self.endpoint.place}: {self._words(str(error.__cause__ or error))}") from None
        except openai.APIStatusError as error:
            words = self._words(str(error))
            again = error.status_code in {408, 409, 429} or error.status_code >= 500
            if again and error.code != "insufficient_quota":
                raise Incomplete(f"{self.endpoint.place}: {words}") from None
            raise JudgeRefused(
                f"{self.endpoint.place} refuses a batch: {words}. Check the key and its permissions for files and "
                "batches, and the model; or run it without --batch"
            ) from None

    def _words(self, text: str) -> str:
        return " ".join(self.endpoint.hide(text).split())[:300]


def line(key: str, request: dict[str, Any]) -> bytes:
    """Return the line of a request in a batch's file."""
    item = {"custom_id": key, "method": "POST", "url": PATH, "body": body_of(request)}
    return (json.dumps(item) + "\n").encode()

"""Requests by the vendor's Batch API: submitted once, collected when they are answered, in as many starts as it takes.

    ANSWERS/FORM/SET/batches/NUMBER.json      one batch of a run: its requests, the vendor's id, and how it ended

The document is written before the batch is submitted, with the name that the batch gets at the vendor. A start that
finds a document without an id looks for that name in the vendor's list, and submits only what is not there.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Protocol
from uuid import uuid4

from pydantic import BaseModel

from halos_eval.config.settings import FROZEN
from halos_eval.errors import JudgeRefused, StoreError, Waiting
from halos_eval.stages.judge.budget import Budget
from halos_eval.stages.judge.vendor import State, line
from halos_eval.storage import filesystem
from halos_eval.storage.records import read_model, write_model

log = logging.getLogger(__name__)

MOST_REQUESTS, MOST_BYTES = 50_000, 190_000_000
"""Of one batch. The vendor's limits are 50,000 requests and 200 MB."""
FEWEST = 20
"""Fewer requests are not worth the wait, and are sent singly."""
QUEUE_FULL = "token_limit_exceeded"
"""The vendor's code for too many tokens in all waiting batches of an account."""
PATIENCE = timedelta(hours=24)
"""How long a batch is submitted again because the queue is full; the requests are then sent singly."""
SOONEST, LATEST = timedelta(minutes=5), timedelta(hours=1)
"""Between two looks at a batch. The time grows with the age of the batch."""


class Batch(BaseModel):
    """One batch of a run."""

    model_config = FROZEN

    version: Literal[1] = 1
    """Version of this format."""
    name: str
    """Its name at the vendor, in the metadata."""
    keys: tuple[str, ...]
    """The requests."""
    at: datetime
    """UTC time at which it was decided."""
    id: str | None = None
    """The vendor's id; None until it is known to be submitted."""
    ended: str | None = None
    """The vendor's last status; None until its answers are kept."""
    tried: bool = True
    """Whether the vendor accepted the requests; otherwise they may be in another batch."""
    files: tuple[str, ...] = ()
    """The vendor's ids of files that are to be deleted there."""


class Account(Protocol):
    """A vendor's account, see `halos_eval.stages.judge.vendor`."""

    async def find(self, name: str, since: datetime) -> str | None:
        """Return the id of a batch."""

    async def submit(self, name: str, requests: dict[str, dict[str, Any]]) -> str:
        """Create a batch and return its id."""

    async def state(self, batch_id: str) -> State:
        """Return the state of a batch."""

    async def answers(self, file_id: str) -> dict[str, dict[str, Any]]:
        """Return the answers in a file."""

    async def delete(self, file_id: str) -> None:
        """Delete a file."""


class Batches:
    """The batches of one run, in the folder ``url``. ``keep`` saves answers, and returns when they are safe."""

    def __init__(
        self,
        url: str,
        account: Account,
        requests: dict[str, dict[str, Any]],
        budget: Budget,
        keep: Callable[[dict[str, dict[str, Any]]], None],
    ) -> None:
        self.url, self.account, self.requests, self.budget, self.keep = url, account, requests, budget, keep

    async def advance(self, todo: dict[str, dict[str, Any]]) -> None:
        """Collect what has ended, and submit what of ``todo`` was in no batch. Return if the rest is to be sent singly.

        Raise Waiting while a batch is open, JudgeRefused, Incomplete, StoreError.
        """
        batches = self._read()
        answered: set[str] = set()
        for number, batch in enumerate(batches):
            if batch.ended is None:
                batches[number], found = await self._collect(number, batch)
                answered |= found
            batches[number] = await self._tidied(number, batches[number])
        waiting = [batch for batch in batches if batch.ended is None]
        known = answered.union(*(batch.keys for batch in batches if batch.tried))
        new = {key: request for key, request in todo.items() if key not in known}
        if len(new) >= FEWEST and not self._given_up(batches):
            waiting += [await self._submit(len(batches) + more, keys) for more, keys in self._chunks(new, waiting)]
        if waiting:
            raise self._wait(waiting)

    def _read(self) -> list[Batch]:
        names = [name for name in sorted(filesystem.entries(self.url)) if name.endswith(".json")]
        found = [read_model(filesystem.join(self.url, name), Batch) for name in names]
        return [batch for batch in found if batch]

    def _write(self, number: int, batch: Batch) -> Batch:
        write_model(self._document(number), batch)
        return batch

    def _document(self, number: int) -> str:
        return filesystem.join(self.url, f"{number:04d}.json")

    def _chunks(self, new: dict[str, dict[str, Any]], waiting: list[Batch]) -> Iterator[tuple[int, list[str]]]:
        """Return the requests for new batches, numbered, as far as the budget allows."""
        for batch in waiting:
            for key in batch.keys:
                self.budget.take(self.requests[key], batch=True)
        keys: list[str] = []
        size = number = 0
        for key, request in new.items():
            length = len(line(key, request))
            if self.budget.take(request, batch=True) is None:
                break
            if keys and (len(keys) == MOST_REQUESTS or size + length > MOST_BYTES):
                yield number, keys
                keys, size, number = [], 0, number + 1
            keys.append(key)
            size += length
        if keys:
            yield number, keys

    async def _submit(self, number: int, keys: list[str]) -> Batch:
        batch = Batch(name=uuid4().hex, keys=tuple(keys), at=datetime.now(UTC))
        if not filesystem.create(self._document(number), (batch.model_dump_json(indent=2) + "\n").encode()):
            raise StoreError(f"{self._document(number)} was written by another run. Run it again")
        return await self._create(number, batch)

    async def _create(self, number: int, batch: Batch) -> Batch:
        found = await self.account.submit(batch.name, {key: self.requests[key] for key in batch.keys})
        log.info("submitted a batch of %d requests: %s", len(batch.keys), found)
        return self._write(number, batch.model_copy(update={"id": found}))

    async def _collect(self, number: int, batch: Batch) -> tuple[Batch, set[str]]:
        """Return a batch with its state now, and the requests that it answered. Keep these answers first."""
        if batch.id is None:
            # An earlier start was killed, or got no reply: the vendor may have the batch.
            found = await self.account.find(batch.name, batch.at)
            if found is None:
                return await self._create(number, batch), set()
            batch = self._write(number, batch.model_copy(update={"id": found}))
        state = await self.account.state(str(batch.id))
        files = tuple(filter(None, (state.uploaded, *state.files)))
        if state.status == "failed" and not state.files:
            return await self._rejected(number, batch.model_copy(update={"files": files}), state), set()
        if state.status not in {"completed", "expired", "cancelled", "failed"}:
            log.info("batch %s: %s, %d of %d requests", batch.id, state.status, state.done, len(batch.keys))
            return batch, set()
        answers: dict[str, dict[str, Any]] = {}
        for file in state.files:
            answers |= await self.account.answers(file)
        own = {key: {**answer, "batch": True} for key, answer in answers.items() if key in set(batch.keys)}
        self.keep(own)
        log.info("batch %s: %s, with answers to %d of %d requests", batch.id, state.status, len(own), len(batch.keys))
        return self._write(number, batch.model_copy(update={"ended": state.status, "files": files})), set(own)

    async def _tidied(self, number: int, batch: Batch) -> Batch:
        """Return a batch whose files are deleted at the vendor, once its answers are kept."""
        if not batch.files:
            return batch
        for file in batch.files:
            await self.account.delete(file)
        return self._write(number, batch.model_copy(update={"files": ()}))

    async def _rejected(self, number: int, batch: Batch, state: State) -> Batch:
        """Return a rejected batch, whose requests may be in another one. Raise JudgeRefused unless it was the queue."""
        batch = self._write(number, batch.model_copy(update={"ended": state.status, "tried": False}))
        if QUEUE_FULL not in state.codes:
            await self._tidied(number, batch)
            raise JudgeRefused(
                f"the batch {batch.id} was rejected: {state.problem or 'without a reason'}. Fix that, or run it "
                "without --batch"
            )
        log.warning("batch %s has no place in the vendor's queue: %s", batch.id, state.problem)
        return batch

    def _given_up(self, batches: list[Batch]) -> bool:
        """Return whether the queue has been full for too long."""
        return bool(batches) and not batches[-1].tried and datetime.now(UTC) - batches[0].at > PATIENCE

    def _wait(self, waiting: list[Batch]) -> Waiting:
        now = datetime.now(UTC)
        age = now - min(batch.at for batch in waiting)
        requests = sum(len(batch.keys) for batch in waiting)
        # Few ids, because Airflow reads the time at the end of this line, and cuts long ones.
        ids = ", ".join(str(batch.id)[:60] for batch in waiting[:3]) + (", ..." if len(waiting) > 3 else "")
        until = now + min(max(age / 2, SOONEST), LATEST)
        return Waiting(
            f"{requests} requests wait in batches of the vendor ({ids}). Run the same command again after "
            f"{until:%Y-%m-%dT%H:%M:%SZ}"
        )

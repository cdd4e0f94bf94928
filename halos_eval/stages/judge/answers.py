"""Paid answers, kept by the request that they answer, for all runs.

    ANSWERS/FORM/SET/*.jsonl     the journal of a run; FORM is a digest of endpoint and options, SET of the requests
    ANSWERS/FORM/SET/keys.txt    the requests that it answers, so that other runs need not read the answers
    ANSWERS/FORM/SET.NAME/       the journal of a forced run, which asks again
    ANSWERS/FORM/SET/batches/    the batches of a run, see `halos_eval.stages.judge.batches`

So a changed parser, or another checkpoint with the same output for a prompt, requests nothing again.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from halos_eval.digests import digest_json
from halos_eval.storage import filesystem
from halos_eval.storage.journal import Journal

KEYS = "keys.txt"
SHORT = 16
"""Digits of a key in keys.txt: 64 bits tell a few million requests apart."""


class Answers:
    """The answers to one run's requests. ``again`` names a forced run, which uses no answers of others."""

    def __init__(self, url: str, again: str | None = None) -> None:
        self.url = url
        self.again = again
        self.journal: Journal | None = None
        self._folder = self._form = ""
        self._mine: dict[str, Any] = {}

    @property
    def own(self) -> set[str]:
        """The requests whose answers are this run's own, of this start or an earlier one."""
        return set(self._mine)

    @property
    def batches(self) -> str:
        """Folder for the batches of this run, beside its journal."""
        if self.journal is None:
            raise RuntimeError("load comes first")
        return filesystem.join(self.journal.url, "batches")

    def load(self, options: dict[str, Any], keys: Iterable[str]) -> dict[str, Any]:
        """Return the kept answers to the requests ``keys``, which share ``options``, and open the journal.

        The options include the endpoint. No answer comes from requests with other ones.
        """
        wanted = set(keys)
        self._form = filesystem.join(self.url, digest_json(options)[:SHORT])
        self._folder = filesystem.join(self._form, digest_json(sorted(wanted))[:SHORT])
        self.journal = Journal(f"{self._folder}.{self.again}" if self.again else self._folder)
        self._mine = self.journal.load()
        found = dict(self._mine)
        if not self.again and (missing := wanted - found.keys()):
            found |= self._of_other_runs(missing)
        return found

    def _of_other_runs(self, missing: set[str]) -> dict[str, Any]:
        short = {key[:SHORT] for key in missing}
        lists = filesystem.find(self._form, f"/{KEYS}")
        with ThreadPoolExecutor(max_workers=16) as pool:
            having = [
                url.removesuffix(f"/{KEYS}")
                for url, text in zip(lists, pool.map(filesystem.read_bytes, lists), strict=True)
                if not short.isdisjoint(text.decode().split())
            ]
        return {key: answer for url in having for key, answer in Journal(url).load().items() if key in missing}

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Keep one answer: now, or with a later one."""
        if self.journal is None:
            raise RuntimeError("load comes first")
        self._mine[key] = answer
        self.journal.add(key, answer)

    def save(self) -> None:
        """Save what is pending."""
        if self.journal:
            self.journal.save()

    def finish(self) -> str | None:
        """List the answers for other runs. Return the folder that the record makes superfluous, of a forced run.

        A forced run's answers replace those before it.
        """
        if self.journal is None:
            return None
        if self.again:
            old = filesystem.find(self._folder, ".jsonl")
            journal = Journal(self._folder)
            for key, answer in self._mine.items():
                journal.add(key, answer)
            journal.save()
            for url in old:
                filesystem.delete(url)
        if self._mine:
            text = "".join(f"{key[:SHORT]}\n" for key in sorted(self._mine))
            filesystem.write_bytes(filesystem.join(self._folder, KEYS), text.encode())
        return self.journal.url if self.again else None

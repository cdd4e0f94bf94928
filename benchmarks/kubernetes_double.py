"""A cluster with a number of GPUs, whose pods are stages that leave a record and compute nothing.

python -m benchmarks.kubernetes_double GPUS SECONDS      SECONDS that a pod with a GPU runs; prints its address

``/figures`` has what it saw of the pods.
"""

from __future__ import annotations

import asyncio
import sys

from halos_eval.storage import filesystem
from halos_eval.storage.records import write_model
from tests.doubles import make_record
from tests.doubles.kubernetes import Cluster, Pod, gpus_of, served

WITHOUT_GPU = 1.0
"""Seconds that a pod without a GPU runs."""
LOG = [f"INFO step {number}" for number in range(50)]
WAIT = ["wait"]
"""Arguments of a pod that does not end."""


class Recording(Cluster):
    """A cluster whose pods take their time and leave a record."""

    def __init__(self, gpus: int, seconds: float) -> None:
        super().__init__(gpus)
        self.seconds = seconds

    async def work(self, pod: Pod) -> int:
        """Wait, and write the record of a harness stage, as its command would."""
        words = pod["spec"]["containers"][0]["args"]
        if words == WAIT:
            await asyncio.Event().wait()
        await asyncio.sleep(self.seconds if gpus_of(pod) else WITHOUT_GPU)
        await asyncio.to_thread(_record, words)
        return 0

    def log(self, name: str) -> list[str]:
        """Return lines that are always the same."""
        return LOG


def _record(words: list[str]) -> None:
    command, *rest = words
    options = dict(word[2:].split("=", 1) for word in rest if word.startswith("--") and "=" in word)
    if command == "harness":
        record = make_record(command, options["task"], name=options["name"], fingerprint=options["expect"])
        write_model(filesystem.join(options["output-dir"], "record.json"), record)


async def serve(gpus: int, seconds: float) -> None:
    """Serve until the process is ended."""
    async with served(Recording(gpus, seconds)) as port:
        print(f"http://127.0.0.1:{port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))

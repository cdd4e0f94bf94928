"""Time, requests and memory of the table of 2,000 checkpoints and 12 tasks, beside HALOs' rule on logs.

python -m benchmarks.table [CHECKPOINTS] [LATENCY]     LATENCY of a request to object storage, in milliseconds

Each measurement is a process of its own. Its time begins when everything is imported; its processor time is shorter if
other programs run on the machine. Object storage is ``rclone serve
s3`` on this machine; each request waits for the latency first.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from s3fs import S3FileSystem

from benchmarks import halos_rule, store
from halos_eval.reports.pages import write as pages
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.storage import filesystem, layout

BUCKET = "s3://bucket"
KEYS = {"AWS_ACCESS_KEY_ID": "bench-access", "AWS_SECRET_ACCESS_KEY": "bench-secret", "AWS_DEFAULT_REGION": "us-east-1"}
LATENCY, COUNTS = "BENCH_LATENCY", "BENCH_COUNTS"
CASES = {
    "HALOs' rule on all logs": "logs",
    "rebuild, files": "files all",
    "one evaluation, files": "files one",
    "rebuild, S3": "s3 all",
    "one evaluation, S3": "s3 one",
}


def measure(case: str, folder: Path) -> dict[str, float]:
    """Run one case in this process. Return seconds, requests and the most memory in MB."""
    pages.installed = lambda: False  # benchmarks.report measures the pages
    where, _, what = case.partition(" ")
    filesystem.exists(f"{BUCKET}/none" if where == "s3" else str(folder))  # connects
    Path(os.environ[COUNTS]).write_bytes(b"")
    began, used = time.perf_counter(), _processor()
    if where == "logs":
        halos_rule.write_table(folder / "logs", folder / "logs.csv")
    else:
        root = BUCKET if where == "s3" else str(folder / "store" / "bucket")
        one = {"checkpoint": store.reference(7).name} if what == "one" else {}
        summarize(SummarizeConfig(root=root, suite=store.SUITE, output=layout.report_url(root, store.SUITE), **one))
    seconds, used = time.perf_counter() - began, _processor() - used
    requests = Path(os.environ[COUNTS]).stat().st_size
    peaks = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {"seconds": seconds, "processor": used, "requests": requests, "memory": max(peaks)}


def _processor() -> float:
    """Return the seconds of processor time of this process and those that it started."""
    return sum(os.times()[:4])


def _delay(counts: str, latency: float) -> None:
    """Delay each request of this process, and add a byte to the file ``counts``."""
    call = S3FileSystem._call_s3
    file = os.open(counts, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def delayed(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.write(file, b".")
        await asyncio.sleep(latency)
        return await call(self, *args, **kwargs)

    S3FileSystem._call_s3 = delayed


# Also in processes that a measured one starts: they import this module, too.
if LATENCY in os.environ:
    _delay(os.environ[COUNTS], float(os.environ[LATENCY]))


@contextmanager
def served(folder: Path) -> Iterator[dict[str, str]]:
    """Serve ``folder`` as S3. Gives the environment of its clients."""
    rclone = Path(sys.executable).with_name("rclone")
    address, keys = "127.0.0.1:18733", ",".join(list(KEYS.values())[:2])
    words = [rclone, "serve", "s3", "--addr", address, "--auth-key", keys, "--vfs-cache-mode", "off", folder]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL) as process:
        time.sleep(3)
        try:
            yield os.environ | KEYS | {"AWS_ENDPOINT_URL": f"http://{address}"}
        finally:
            process.terminate()


def main(checkpoints: int, latency: float) -> None:
    """Make the results, measure all cases and print them."""
    folder = Path(tempfile.mkdtemp(prefix="bench-table-"))
    try:
        store.make(folder, checkpoints, BUCKET)
        with served(folder / "store") as environment:
            found = {}
            for title, case in CASES.items():
                environment |= {LATENCY: str(latency), COUNTS: str(folder / "requests")}
                words = [sys.executable, "-m", "benchmarks.table", "case", case, folder]
                done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
                found[title] = json.loads(done.stdout.splitlines()[-1])
        print(f"{checkpoints} checkpoints x {len(store.TASKS)} tasks, {1000 * latency:.0f} ms for each request to S3")
        print("| case | time | processor time | time / HALOs' rule | requests | memory |")
        print("| --- | --- | --- | --- | --- | --- |")
        rule = found[next(iter(CASES))]["seconds"]
        for title, one in found.items():
            cells = [title, f"{one['seconds']:.2f} s", f"{one['processor']:.2f} s", f"{one['seconds'] / rule:.2f}"]
            print("|", " | ".join([*cells, f"{one['requests']:.0f}" if "S3" in title else "-"]), end=" | ")
            print(f"{one['memory']:.0f} MB |")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["case"]:
        print(json.dumps(measure(sys.argv[2], Path(sys.argv[3]))))
    else:
        numbers = [float(word) for word in sys.argv[1:]] + [2000, 10][len(sys.argv) - 1 :]
        main(int(numbers[0]), numbers[1] / 1000)

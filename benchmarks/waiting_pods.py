"""Memory and processor time that the pod trigger takes for each pod that runs.

python -m benchmarks.waiting_pods KUBERNETES      address of kubernetes_double.py, for which KUBECONFIG is set

One process runs the triggers in one event loop, as a triggerer does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
from datetime import UTC, datetime
from urllib.request import Request, urlopen

import psutil

PODS = 200
SETTLE, SECONDS = 12, 30
"""Seconds until all triggers wait, and over which the processor time is taken."""


def create(kubernetes: str, number: int) -> str:
    """Start a pod that does not end meanwhile; return its name."""
    name = f"waiting-{number}"
    container = {"name": "base", "image": "none", "args": ["wait"], "resources": {"limits": {"nvidia.com/gpu": "0"}}}
    pod = {"metadata": {"name": name, "labels": {"waits": "true"}}, "spec": {"containers": [container]}}
    address = f"{kubernetes}/api/v1/namespaces/night/pods"
    request = Request(address, json.dumps(pod).encode(), method="POST")  # noqa: S310 (the double's address)
    with urlopen(request, timeout=30):  # noqa: S310
        return name


async def measure(kubernetes: str) -> str:
    """Run the triggers; return what each takes."""
    from halos_eval.orchestration.pod_trigger import StagePodTrigger

    process = psutil.Process()
    now = datetime.now(UTC)

    async def wait(name: str) -> None:
        trigger = StagePodTrigger(
            name, "night", now, "base", poll_interval=5, logging_interval=30, get_logs=True, schedule_timeout=600
        )
        async for _ in trigger.run():
            raise RuntimeError("the pod has ended")

    names = [create(kubernetes, number) for number in range(PODS + 1)]
    tasks = [asyncio.create_task(wait(names[0]))]  # the first one imports what all need
    await asyncio.sleep(SETTLE)
    gc.collect()
    before = process.memory_full_info().uss
    tasks += [asyncio.create_task(wait(name)) for name in names[1:]]
    await asyncio.sleep(SETTLE)
    began = process.cpu_times()
    await asyncio.sleep(SECONDS)
    ended = process.cpu_times()
    gc.collect()
    each = (process.memory_full_info().uss - before) / PODS
    failed = [task for task in tasks if task.done()]
    for task in tasks:
        task.cancel()
    if failed:
        raise RuntimeError(f"{len(failed)} triggers have ended: {failed[0]}")
    spent = (ended.user + ended.system - began.user - began.system) / SECONDS / PODS
    return f"a waiting pod: {each / 2**10:.0f} KiB of the triggerer, {spent * 1000:.1f} ms of CPU a second"


if __name__ == "__main__":
    print(asyncio.run(measure(sys.argv[1])))

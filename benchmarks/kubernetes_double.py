"""An API server of Kubernetes with a number of GPUs, whose pods are stages that leave a record and compute nothing.

python -m benchmarks.kubernetes_double GPUS SECONDS      SECONDS that a pod with a GPU runs; prints its address

It has the calls that Airflow's pod operator and its trigger make. ``/figures`` has what it saw of the pods.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from halos_eval.storage import filesystem
from halos_eval.storage.records import write_model
from tests.doubles import make_record

PODS = "/api/v1/namespaces/{namespace}/pods"
GPU = "nvidia.com/gpu"
WITHOUT_GPU = 1.0
"""Seconds that a pod without a GPU runs."""
LOG_LINES = 50
WAIT = ["wait"]
"""Arguments of a pod that does not end."""


class Cluster:
    """The pods, and when GPUs became free."""

    def __init__(self, gpus: int, seconds: float) -> None:
        self.gpus, self.seconds = gpus, seconds
        self.pods: dict[str, dict[str, Any]] = {}
        self.free_since: list[float] = []
        self.waiting: list[str] = []
        self.in_use = 0
        self.figures: dict[str, Any] = {"created": 0, "without_a_free_gpu": 0, "gaps": []}
        self._numbers = itertools.count(1)
        self._running: set[asyncio.Task[None]] = set()

    def create(self, pod: dict[str, Any], namespace: str) -> dict[str, Any]:
        """Add a pod; it starts once it has its GPU."""
        number = next(self._numbers)
        pod["metadata"] |= {"namespace": namespace, "uid": str(number), "resourceVersion": str(number)}
        pod["metadata"]["creationTimestamp"] = _now()
        pod["status"] = {"phase": "Pending"}
        name = pod["metadata"]["name"]
        self.pods[name] = pod
        self.figures["created"] += 1
        if not _gpus(pod):
            self._start(name)
        elif self.in_use < self.gpus:
            if self.free_since:
                self.figures["gaps"].append(time.monotonic() - self.free_since.pop(0))
            self.in_use += 1
            self._start(name)
        else:  # Airflow's pool should not let that happen
            self.figures["without_a_free_gpu"] += 1
            self.waiting.append(name)
        return pod

    def _start(self, name: str) -> None:
        task = asyncio.get_running_loop().create_task(self._run(name))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _run(self, name: str) -> None:
        pod = self.pods[name]
        state = {"running": {"startedAt": _now()}}
        pod["status"] = {"phase": "Running", "containerStatuses": [_status(pod, state, ready=True)]}
        if pod["spec"]["containers"][0]["args"] == WAIT:
            return
        await asyncio.sleep(self.seconds if _gpus(pod) else WITHOUT_GPU)
        await asyncio.to_thread(_record, pod["spec"]["containers"][0]["args"])
        state = {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": _now(), "finishedAt": _now()}}
        pod["status"] = {"phase": "Succeeded", "containerStatuses": [_status(pod, state, ready=False)]}
        if _gpus(pod):
            if self.waiting:
                self._start(self.waiting.pop(0))
            else:
                self.in_use -= 1
                self.free_since.append(time.monotonic())


def _gpus(pod: dict[str, Any]) -> int:
    return int(pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get(GPU, 0))


def _status(pod: dict[str, Any], state: dict[str, Any], ready: bool) -> dict[str, Any]:
    container = pod["spec"]["containers"][0]
    about = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return about | {"ready": ready, "state": state}


def _record(words: list[str]) -> None:
    """Write the record of a stage, as its command would."""
    command, *rest = words
    options = dict(word[2:].split("=", 1) for word in rest if word.startswith("--") and "=" in word)
    if command == "harness":
        record = make_record(command, options["task"], name=options["name"], fingerprint=options["expect"])
        write_model(filesystem.join(options["output-dir"], "record.json"), record)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _matches(labels: dict[str, str], selector: str) -> bool:
    for part in filter(None, selector.split(",")):
        name, unequal, value = part.partition("!=")
        if unequal:
            found = labels.get(name) != value
        elif part.startswith("!"):
            found = part[1:] not in labels
        else:
            name, _, value = part.partition("=")
            found = labels.get(name) == value
        if not found:
            return False
    return True


class Api:
    """The calls on the cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    async def create(self, request: web.Request) -> web.Response:
        """Create a pod."""
        pod = self.cluster.create(await request.json(), request.match_info["namespace"])
        return web.json_response(pod, status=201)

    async def find(self, request: web.Request) -> web.Response:
        """List pods by their labels."""
        selector = request.query.get("labelSelector", "")
        found = [pod for pod in self.cluster.pods.values() if _matches(pod["metadata"].get("labels", {}), selector)]
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})

    async def one(self, request: web.Request) -> web.Response:
        """Read, patch or delete a pod."""
        pod = self.cluster.pods.get(request.match_info["name"])
        if pod is None:
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        if request.method == "PATCH":
            pod["metadata"].setdefault("labels", {}).update((await request.json())["metadata"]["labels"])
        if request.method == "DELETE":
            del self.cluster.pods[request.match_info["name"]]
        return web.json_response(pod)

    async def log(self, request: web.Request) -> web.Response:
        """Return a log that is always the same but for its times."""
        stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f000Z} " if request.query.get("timestamps") else ""
        return web.Response(text="".join(f"{stamp}INFO step {number}\n" for number in range(LOG_LINES)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Return no events; a watch ends after its time."""
        if not request.query.get("watch"):
            return web.json_response({"kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": []})
        reply = web.StreamResponse()
        await reply.prepare(request)
        await asyncio.sleep(float(request.query.get("timeoutSeconds", 5)))
        return reply

    async def figures(self, _request: web.Request) -> web.Response:
        """Return what was seen of the pods."""
        return web.json_response(self.cluster.figures)


def application(api: Api) -> web.Application:
    """Return the server."""
    found = web.Application()
    found.add_routes([web.post(PODS, api.create), web.get(PODS, api.find), web.get("/figures", api.figures)])
    found.add_routes([web.route(method, PODS + "/{name}", api.one) for method in ("GET", "PATCH", "DELETE")])
    found.add_routes([web.get(PODS + "/{name}/log", api.log)])
    found.add_routes([web.get("/api/v1/namespaces/{namespace}/events", api.events)])
    return found


async def serve(gpus: int, seconds: float) -> None:
    """Serve until the process is ended."""
    runner = web.AppRunner(application(Api(Cluster(gpus, seconds))), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))

"""An API server of Kubernetes with the calls of Airflow's pod operator and its trigger, on a cluster with some GPUs.

What a pod does is for a subclass of Cluster to say.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

PODS = "/api/v1/namespaces/{namespace}/pods"
GPU = "nvidia.com/gpu"
Pod = dict[str, Any]


class Cluster:
    """The pods, and when GPUs became free."""

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus
        self.pods: dict[str, Pod] = {}
        self.free_since: list[float] = []
        self.waiting: list[str] = []
        self.in_use = 0
        self.lost: set[str] = set()
        """Pods on nodes that do not answer any more."""
        self.figures: dict[str, Any] = {"created": 0, "without_a_free_gpu": 0, "gaps": []}
        self._numbers = itertools.count(1)
        self._running: dict[str, asyncio.Task[None]] = {}

    async def work(self, pod: Pod) -> int:
        """Do what the container of a pod does, and return its exit code. Cancelled if the pod is deleted."""
        raise NotImplementedError

    def log(self, name: str) -> list[str]:
        """Return the lines of a pod's log."""
        raise NotImplementedError

    def create(self, pod: Pod, namespace: str) -> Pod:
        """Add a pod; it starts once it has its GPU."""
        number = next(self._numbers)
        pod["metadata"] |= {"namespace": namespace, "uid": str(number), "resourceVersion": str(number)}
        pod["metadata"]["creationTimestamp"] = _now()
        pod["status"] = {"phase": "Pending"}
        name = pod["metadata"]["name"]
        self.pods[name] = pod
        self.figures["created"] += 1
        if not gpus_of(pod):
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

    def delete(self, name: str, forced: bool = False) -> None:
        """Delete a pod: at once, or when its container has ended. On a lost node that is never confirmed."""
        if name in self._running:
            self.pods[name]["metadata"] |= {"deletionTimestamp": _now(), "deletionGracePeriodSeconds": 0}
            if forced or name not in self.lost:
                self._running[name].cancel()
        elif name in self.pods:
            if name in self.waiting:
                self.waiting.remove(name)
            del self.pods[name]

    def _start(self, name: str) -> None:
        task = self._running[name] = asyncio.get_running_loop().create_task(self._run(name))
        task.add_done_callback(lambda _: self._ended(name))

    def _ended(self, name: str) -> None:
        del self._running[name]
        pod = self.pods[name]
        if "deletionTimestamp" in pod["metadata"]:
            del self.pods[name]
        if gpus_of(pod):
            if self.waiting:
                self._start(self.waiting.pop(0))
            else:
                self.in_use -= 1
                self.free_since.append(time.monotonic())

    async def _run(self, name: str) -> None:
        pod = self.pods[name]
        began = _now()
        state = {"running": {"startedAt": began}}
        pod["status"] = {"phase": "Running", "containerStatuses": [_status(pod, state, ready=True)]}
        code = await self.work(pod)
        end: dict[str, Any] = {"exitCode": code, "startedAt": began, "finishedAt": _now()}
        end |= {"reason": "Error", "message": "\n".join(self.log(name)[-80:])} if code else {"reason": "Completed"}
        phase = "Failed" if code else "Succeeded"
        pod["status"] = {"phase": phase, "containerStatuses": [_status(pod, {"terminated": end}, ready=False)]}


def gpus_of(pod: Pod) -> int:
    """Return the number of GPUs of a pod's container."""
    return int(pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get(GPU, 0))


def _status(pod: Pod, state: dict[str, Any], ready: bool) -> dict[str, Any]:
    container = pod["spec"]["containers"][0]
    about = {"name": container["name"], "image": container["image"], "imageID": "", "restartCount": 0}
    return about | {"ready": ready, "state": state}


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
        """Create a pod, unless there is one of its name."""
        pod = await request.json()
        if pod["metadata"]["name"] in self.cluster.pods:
            return web.json_response({"kind": "Status", "code": 409, "reason": "AlreadyExists"}, status=409)
        return web.json_response(self.cluster.create(pod, request.match_info["namespace"]), status=201)

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
            self.cluster.delete(request.match_info["name"], request.query.get("gracePeriodSeconds") == "0")
        return web.json_response(pod)

    async def log(self, request: web.Request) -> web.Response:
        """Return the end of a log. The lines have the time of this request."""
        lines = self.cluster.log(request.match_info["name"])
        if tail := request.query.get("tailLines"):
            lines = lines[-int(tail) :]
        stamp = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f000Z} " if request.query.get("timestamps") else ""
        return web.Response(text="".join(f"{stamp}{line}\n" for line in lines))

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


@asynccontextmanager
async def served(cluster: Cluster) -> AsyncIterator[int]:
    """Serve the cluster on loopback until the context ends; gives the port."""
    api, found = Api(cluster), web.Application()
    found.add_routes([web.post(PODS, api.create), web.get(PODS, api.find), web.get("/figures", api.figures)])
    found.add_routes([web.route(method, PODS + "/{name}", api.one) for method in ("GET", "PATCH", "DELETE")])
    found.add_routes([web.get(PODS + "/{name}/log", api.log)])
    found.add_routes([web.get("/api/v1/namespaces/{namespace}/events", api.events)])
    runner = web.AppRunner(found, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def write_kubeconfig(path: Path, server: str) -> None:
    """Write the file that names the API server."""
    user = {"name": "one", "user": {"token": "none"}}
    context = {"name": "one", "context": {"cluster": "one", "user": "one"}}
    config = {"apiVersion": "v1", "kind": "Config", "current-context": "one", "contexts": [context], "users": [user]}
    path.write_text(json.dumps(config | {"clusters": [{"name": "one", "cluster": {"server": server}}]}))

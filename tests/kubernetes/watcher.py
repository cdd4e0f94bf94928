"""Watches the pods of stages while tests run: what each was, what it held and when, and what it could read."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import NamedTuple

PODS = "app.kubernetes.io/name=halos-eval"
"""Selects the pods of stages."""
STAGES = ("fetch", "pack", "sample", "serve", "judge", "harness", "score", "summarize")


class Holding(NamedTuple):
    """GPUs that live pods hold at one moment, by pod."""

    at: float
    gpus: dict[str, int]


class Watcher(threading.Thread):
    """Looks at them several times a second. The node is this machine, so it sees their processes as well."""

    def __init__(self, client, namespace):
        super().__init__(daemon=True)
        self.client, self.namespace = client, namespace
        self.pods = {}
        """Every pod that was ever seen, by name, in its last state."""
        self.holdings = []
        self.environments = {}
        """Variables of the stages' processes inside pods, by stage."""
        self._ended = threading.Event()

    def run(self):
        while not self._ended.wait(0.25):
            items = self.client.list_namespaced_pod(self.namespace, label_selector=PODS).items
            self.pods |= {pod.metadata.name: pod for pod in items}
            live = [pod for pod in items if pod.status.phase in {"Pending", "Running"}]
            self.holdings.append(Holding(time.monotonic(), {pod.metadata.name: gpus_of(pod) for pod in live}))
            self._look_into_processes()

    def stop(self):
        self._ended.set()
        self.join(timeout=10)

    def since(self, earlier, component=None):
        """Pods that were not among ``earlier`` names, the oldest first."""
        found = [pod for name, pod in self.pods.items() if name not in earlier]
        found = [pod for pod in found if component in {None, pod.metadata.labels["app.kubernetes.io/component"]}]
        return sorted(found, key=lambda pod: pod.metadata.creation_timestamp)

    def _look_into_processes(self):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes().decode().split("\0")
                if "halos-eval" not in " ".join(words[:3]):
                    continue
                pairs = (folder / "environ").read_bytes().decode().split("\0")
            except OSError:
                continue
            variables = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
            stage = next((word for word in words if word in STAGES), None)
            if stage and "KUBERNETES_SERVICE_HOST" in variables:
                self.environments.setdefault(stage, variables)


def gpus_of(pod):
    """The GPUs that a pod asks for."""
    requests = [container.resources.requests or {} for container in pod.spec.containers]
    return sum(int(one.get("nvidia.com/gpu", 0)) for one in requests)

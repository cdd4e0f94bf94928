"""The manifest of a stage's pod, as pure functions of the job and the cluster file."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from halos_eval.config.cluster import ANSWERS, CACHE, COMPILE, OUTBOX, Kubernetes, Priority, Profile, Trust, Volume
from halos_eval.orchestration.failures import BASE, SERVER
from halos_eval.orchestration.pod_overrides import overridden
from halos_eval.orchestration.secrets import HUB, allowed
from halos_eval.planning.jobs import StageJob

TRUST: dict[str, Trust] = {"fetch": "fetch", "judge": "judge", "summarize": "judge"}
"""The class of each stage that loads no model."""
USER = 1000
"""The images' user and group."""
# The root filesystem is read-only, so the images write everything but results below /tmp.
TMP = Volume(mount_path="/tmp", empty_dir="50Gi")  # noqa: S108 (a volume of the pod's own)
EXCHANGE = Volume(mount_path="/exchange", empty_dir="1Gi")
"""Folder that a judge and its server share. It has the server's log and key, and ends with the pod."""
# A pod without a network must not wait for the hub, and must unpack data into its own folder.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_DATASETS_CACHE": "/tmp/datasets",  # noqa: S108
    "HF_MODULES_CACHE": "/tmp/modules",  # noqa: S108
}


def manifest(
    job: StageJob, kubernetes: Kubernetes, profile: Profile, priority: Priority, cpu: Profile | None = None
) -> dict[str, Any]:
    """Return the pod that runs ``job``: non-root, read-only, without a token, with the secrets of its stage only.

    A judge that is served has a second container with the GPUs of ``profile``; ``cpu`` is the profile of the first.
    """
    volumes = _volumes(job, kubernetes, profile)
    if job.server:
        stage, server = job.with_server(EXCHANGE.mount_path)
        volumes["exchange"] = EXCHANGE
        containers = [
            _container(stage, kubernetes, cpu or profile.model_copy(update={"gpus": 0}), volumes),
            _container(server, kubernetes, profile, volumes, SERVER),
        ]
    else:
        containers = [_container(job, kubernetes, profile, volumes)]
    spec = {
        "containers": containers,
        "volumes": [
            *({"name": name, **_source(volume)} for name, volume in volumes.items()),
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": profile.shared_memory}},
        ],
        "restartPolicy": "Never",
        # Workload identity puts a token of its own into each pod of an account, so a model's code has another account.
        "serviceAccountName": kubernetes.account(trust_of(job)),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",  # else Kubernetes visits every file of the cache at each start
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": profile.node_selector,
        "tolerations": list(profile.tolerations),
        "priorityClassName": profile.priority_class_name or kubernetes.priority_classes.get(priority),
        "runtimeClassName": profile.runtime_class_name,
        "imagePullSecrets": [{"name": name} for name in (*kubernetes.image_pull_secrets, *profile.image_pull_secrets)],
        "activeDeadlineSeconds": profile.run_timeout_seconds,
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(job),
            "namespace": kubernetes.namespace,
            "labels": _labels(job, profile, priority),
        },
        "spec": {key: value for key, value in spec.items() if value not in (None, [], {})},
    }
    return overridden(pod, profile.pod_overrides, code=bool(job.outbox))


def pod_name(job: StageJob) -> str:
    """Return a name with the stage and the task. The operator appends a random suffix."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{job.command}-{job.task or ''}".lower())
    return f"halos-eval-{slug[:40]}".strip("-")


def trust_of(job: StageJob) -> Trust:
    """Return the class of the job's pod."""
    if job.outbox:
        return "code"
    return TRUST.get(job.stage, "gpu")


def _labels(job: StageJob, profile: Profile, priority: Priority) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "halos-eval",
        "app.kubernetes.io/part-of": "halos-eval",
        "app.kubernetes.io/component": job.command,
        # The chart's NetworkPolicies select by these two.
        "halos-eval/network": "none" if job.outbox else "egress",
        "halos-eval/trust": trust_of(job),
        "halos-eval/priority": priority,
    }
    return labels | ({"kueue.x-k8s.io/queue-name": profile.queue} if profile.queue else {})


def _container(
    job: StageJob, kubernetes: Kubernetes, profile: Profile, volumes: dict[str, Volume], name: str = BASE
) -> dict[str, Any]:
    gpus = {profile.gpu_resource: str(profile.gpus)} if profile.gpus else {}
    return {
        "name": name,
        "image": getattr(kubernetes.images, job.image),
        "imagePullPolicy": kubernetes.image_pull_policy,
        "args": [literal(word) for word in job.argv],
        "env": _environment(job, kubernetes, volumes),
        "resources": {
            "requests": {"cpu": profile.cpu, "memory": profile.memory, **gpus},
            "limits": {"memory": profile.memory, **gpus},  # no CPU limit: it would leave cores idle
        },
        "volumeMounts": [
            *_mounts(volumes, job),
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        ],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The stages write no termination message, so Kubernetes takes the end of the log: "halos-eval: BadInput: ...".
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def literal(text: str) -> str:
    """Return ``text`` so that Kubernetes leaves it as it is.

    In arguments and variables, Kubernetes replaces ``$(NAME)`` by the pod's variable NAME, which may be a secret, and
    ``$$`` by ``$``.
    """
    return text.replace("$", "$$")


def _environment(job: StageJob, kubernetes: Kubernetes, volumes: dict[str, Volume]) -> list[dict[str, Any]]:
    plain = dict(kubernetes.environment)
    if CACHE in volumes:
        plain["HF_HOME"] = volumes[CACHE].mount_path
    if COMPILE in volumes:
        plain["HALOS_EVAL_COMPILE_CACHE"] = volumes[COMPILE].mount_path
    if job.outbox:
        plain |= OFFLINE
    secrets = {name: secret for name, secret in kubernetes.secrets.items() if _gets(name, job)}
    return [
        *({"name": name, "value": literal(value)} for name, value in plain.items() if name not in kubernetes.secrets),
        *({"name": name, "valueFrom": {"secretKeyRef": secret.model_dump()}} for name, secret in secrets.items()),
    ]


def _gets(secret: str, job: StageJob) -> bool:
    """Return whether a container gets a secret. A judge's server uses no store, so it gets at most the hub's token."""
    return allowed(secret, job) and (job.stage != "serve" or secret == HUB)


def _volumes(job: StageJob, kubernetes: Kubernetes, profile: Profile) -> dict[str, Volume]:
    volumes = {**kubernetes.volumes, **profile.volumes}
    if not (job.outbox or job.answers or job.boxes or job.stage == "summarize"):
        volumes.pop(OUTBOX, None)
    # The next pod executes what is in it, so only pods that run no code but this project's may write it.
    if trust_of(job) != "gpu" or not profile.gpus:
        volumes.pop(COMPILE, None)
    if job.outbox:  # of shared data it sees only what it needs, and it gets a /tmp of its own
        needed = {OUTBOX, *_read_from(volumes, job)}
        volumes = {name: one for name, one in volumes.items() if name in needed or one.empty_dir or one.config_map}
        volumes = {name: one for name, one in volumes.items() if one.mount_path != TMP.mount_path}
    if not any(volume.mount_path == TMP.mount_path for volume in volumes.values()):
        volumes["tmp"] = TMP
    return volumes


def _source(volume: Volume) -> dict[str, Any]:
    if volume.persistent_volume_claim:
        return {"persistentVolumeClaim": {"claimName": volume.persistent_volume_claim}}
    if volume.host_path:
        return {"hostPath": {"path": volume.host_path}}
    if volume.config_map:
        return {"configMap": {"name": volume.config_map}}
    return {"emptyDir": {"sizeLimit": volume.empty_dir}}


def _mounts(volumes: dict[str, Volume], job: StageJob) -> list[dict[str, Any]]:
    """Return the mounts of ``volumes``. A job with an outbox sees single files and folders, most of them read-only."""
    if not job.outbox:
        own = [_mount(name, volume, job) for name, volume in volumes.items() if not (name == OUTBOX and job.boxes)]
        return own + [
            {"name": OUTBOX, "mountPath": f"{volumes[OUTBOX].mount_path}/{number}", "subPath": box}
            for number, box in enumerate(job.boxes)
        ]
    boxes: list[dict[str, Any]] = []
    if volume := volumes.get(OUTBOX):
        boxes.append({"name": OUTBOX, "mountPath": volume.mount_path, "subPath": job.outbox})
        if job.answers:  # without a subPath it would be the whole outbox
            boxes.append({"name": OUTBOX, "mountPath": ANSWERS, "subPath": job.answers, "readOnly": True})
    own = [{"name": name, "mountPath": one.mount_path} for name, one in volumes.items() if one.empty_dir]
    partly = _read_from(volumes, job)
    # Variables may name a file in a ConfigMap, such as certificates, without which libraries fail to load.
    own += [_mount(name, one, job) for name, one in volumes.items() if one.config_map and name not in partly]
    read = [
        {"name": name, "mountPath": path, "readOnly": True} | ({"subPath": inside} if inside != "." else {})
        for name, paths in partly.items()
        for path, inside in paths.items()
    ]
    return [*boxes, *own, *read]


def _read_from(volumes: dict[str, Volume], job: StageJob) -> dict[str, dict[str, str]]:
    """Return the paths that a job reads, by the volume that has them, each with its path in the volume."""
    found: dict[str, dict[str, str]] = {}
    paths = [PurePosixPath(path) for path in job.reads]
    for path in paths:
        mounted = [name for name, one in volumes.items() if path.is_relative_to(one.mount_path)]
        if mounted and not any(path != other and path.is_relative_to(other) for other in paths):
            name = max(mounted, key=lambda one: len(volumes[one].mount_path))
            found.setdefault(name, {})[str(path)] = str(path.relative_to(volumes[name].mount_path))
    return found


def _mount(name: str, volume: Volume, job: StageJob) -> dict[str, Any]:
    mount: dict[str, Any] = {"name": name, "mountPath": volume.mount_path}
    if job.answers and name == OUTBOX:
        return mount | {"subPath": job.answers}  # the pod sees only its own task
    if job.stage == "fetch" and name == CACHE:
        return mount  # the stage that writes the cache, even if the volume is read-only for the others
    return mount | ({"readOnly": True} if volume.read_only else {})

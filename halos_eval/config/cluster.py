"""Where stages run: one YAML file, named by HALOS_EVAL_CLUSTER, with the pools, the GPU profiles and the cluster.

Without ``kubernetes`` in it stages are local processes. Keys are spelled as Kubernetes spells them (camelCase): the
Helm chart writes this file, and its values are the same.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from halos_eval.config.settings import FROZEN, Settings
from halos_eval.config.yaml_file import read_settings_file
from halos_eval.errors import BadInput

CAMEL = ConfigDict(**FROZEN, alias_generator=to_camel, populate_by_name=True)
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
Priority = Literal["manual", "nightly", "backfill"]
DEFAULT_PROFILE = "default"
"""The profile of GPU stages for which nobody names another."""
CPU_PROFILE = "cpu"
"""The profile of staging, of the judge and of the summary: they use no GPU."""
GPU_POOL = "halos_eval_gpu"
JUDGE_POOL = "halos_eval_judge"
BACKFILL_POOL = "halos_eval_backfill"
BACKFILL_SLOTS = 60
"""A backfill that runs at most N checkpoints at a time takes an Nth of these for each."""
CACHE = "cache"
"""The volume for models and datasets from the hub; HF_HOME is on it."""
OUTBOX = "outbox"
"""The volume on which tasks without a network leave their results; the summary carries them into the store."""


class Volume(BaseModel):
    """A volume of a pod, from exactly one source."""

    model_config = CAMEL

    mount_path: str = Field(pattern="^/")
    """Where the pod sees it. Checkpoints and suites are seen at the same path by Airflow, which plans with them."""
    read_only: bool = False
    """Mount it for reading."""
    persistent_volume_claim: str | None = Field(None, min_length=1)
    """Name of a claim."""
    host_path: str | None = Field(None, pattern="^/")
    """Folder of the node."""
    empty_dir: str | None = Field(None, min_length=1)
    """Size limit, such as 20Gi, of a folder that ends with the pod."""
    config_map: str | None = Field(None, min_length=1)
    """Name of a ConfigMap."""

    @model_validator(mode="after")
    def _one_source(self) -> Volume:
        sources = ("persistent_volume_claim", "host_path", "empty_dir", "config_map")
        if len([name for name in sources if getattr(self, name) is not None]) != 1:
            raise ValueError(f"give exactly one of {', '.join(map(to_camel, sources))}")
        return self


class Profile(BaseModel):
    """What a pod gets, and how long it may wait and run."""

    model_config = CAMEL

    gpus: int = Field(0, ge=0)
    """GPUs; a model is split over all of them."""
    tensor_parallel_size: int | None = Field(None, ge=1)
    """Parts to split a model into, where that is not the number of GPUs."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the GPU resource, as the device plugin calls it."""
    cpu: str = "4"
    """Processors that are reserved; more may be used if they are free."""
    memory: str = "32Gi"
    """Memory, reserved and at most; /dev/shm counts."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm, in memory: vLLM's and PyTorch's processes talk through it."""
    node_selector: dict[str, str] = {}
    """Labels of the nodes that will do."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that are accepted, in Kubernetes' own form."""
    priority_class_name: str | None = None
    """Priority class, instead of that of the run's priority."""
    runtime_class_name: str | None = None
    """Runtime class, such as nvidia."""
    image_pull_secrets: tuple[str, ...] = ()
    """Further secrets for pulling images."""
    queue: str | None = Field(None, pattern=DNS_LABEL)
    """Kueue's LocalQueue."""
    volumes: dict[str, Volume] = {}
    """Volumes that differ from the cluster's, by name."""
    schedule_timeout_seconds: int = Field(6 * 3600, ge=1)
    """Longest wait for a node."""
    start_timeout_seconds: int = Field(1800, ge=1)
    """Longest wait, once there is a node, for the image and the container."""
    run_timeout_seconds: int = Field(24 * 3600, ge=1)
    """Longest life of the pod on its node."""

    @property
    def parts(self) -> int:
        """vLLM's tensor_parallel_size."""
        return self.tensor_parallel_size or max(1, self.gpus)


class SecretKey(BaseModel):
    """A reference to one value of a Secret."""

    model_config = CAMEL

    name: str
    """The Secret."""
    key: str
    """The key in it."""


class Pools(BaseModel):
    """How much runs at a time; Airflow's pools are made from this."""

    model_config = CAMEL

    gpu: int = Field(ge=1)
    """GPUs, over all pods, waiting ones included."""
    judge: int = Field(ge=1)
    """Judge stages: each sends its own requests to the judge's endpoint."""

    def document(self) -> dict[str, dict[str, Any]]:
        """What ``airflow pools import`` reads. Deferred tasks count: a pod runs while its task is deferred."""
        return {
            GPU_POOL: {"slots": self.gpu, "description": "GPUs", "include_deferred": True},
            JUDGE_POOL: {"slots": self.judge, "description": "judge stages", "include_deferred": True},
            BACKFILL_POOL: {"slots": BACKFILL_SLOTS, "description": "older checkpoints", "include_deferred": True},
        }


class Images(BaseModel):
    """Full names, with tag or digest, of the images that stages run in."""

    model_config = CAMEL

    worker: str
    """vLLM and lm-eval."""
    judge: str
    """alpaca_eval and the summary."""


class Kubernetes(BaseModel):
    """The cluster."""

    model_config = CAMEL

    namespace: str = Field(pattern=DNS_LABEL)
    """Where pods run."""
    images: Images
    """What they run."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """Whether an image that the node has is pulled again."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets for pulling images."""
    service_account_name: str
    """The pods' account; its token is not given to them."""
    environment: dict[str, str] = {}
    """Plain variables of all stages: AWS_ENDPOINT_URL, HF_ENDPOINT, OPENAI_BASE_URL, ..."""
    secrets: dict[str, SecretKey] = {}
    """Variables from Secrets; each stage gets only those that are for it (orchestration/secrets.py)."""
    volumes: dict[str, Volume] = {}
    """Volumes of all pods, by name: cache and outbox have a meaning, others are mounted as they are."""
    priority_classes: dict[Priority, str] = {}
    """Priority classes by the run's priority."""


class Cluster(BaseModel):
    """Where stages run."""

    model_config = CAMEL

    pools: Pools
    """How much runs at a time."""
    profiles: dict[str, Profile]
    """What pods get, by name."""
    kubernetes: Kubernetes | None = None
    """The cluster; None: local processes."""

    @model_validator(mode="after")
    def _reserved(self) -> Cluster:
        needed = [DEFAULT_PROFILE, *([CPU_PROFILE] if self.kubernetes else [])]
        if missing := [name for name in needed if name not in self.profiles]:
            raise ValueError(f"profiles needs {' and '.join(missing)}")
        if CPU_PROFILE in self.profiles and self.profiles[CPU_PROFILE].gpus:
            raise ValueError(f"profile {CPU_PROFILE} is for stages without a GPU: gpus must be 0")
        return self

    @property
    def outbox(self) -> Volume | None:
        """The volume of that name; None without a cluster or without one."""
        return self.kubernetes.volumes.get(OUTBOX) if self.kubernetes else None

    @property
    def cache(self) -> Volume | None:
        """The cache that all pods share; None without a cluster, too.

        There is none where what a pod fetches ends with it, or where a profile has a cache of its own.
        """
        found = self.kubernetes.volumes.get(CACHE) if self.kubernetes else None
        shared = all(profile.volumes.get(CACHE, found) == found for profile in self.profiles.values())
        return found if found and shared and (found.persistent_volume_claim or found.host_path) else None

    @property
    def can_fetch(self) -> bool:
        """Whether what one stage fetches is there for the next: on this machine always."""
        return self.kubernetes is None or self.cache is not None

    def gpu_profile(self, name: str) -> Profile:
        """The profile called ``name``, for a stage that loads a model. Raises BadInput if it cannot ever run."""
        profile = self.profiles.get(name)
        if profile is None:
            raise BadInput(f"there is no profile {name!r} in the cluster's file: there are {', '.join(self.profiles)}")
        if profile.gpus > self.pools.gpu:
            raise BadInput(
                f"profile {name} takes {profile.gpus} GPUs and the pool has {self.pools.gpu}: it would wait for ever. "
                "Raise pools.gpu or choose a smaller profile"
            )
        return profile


def load_cluster() -> Cluster:
    """The cluster of HALOS_EVAL_CLUSTER. Raises BadInput with everything that is wrong in the file at once."""
    # One spelling: the chart's.
    return read_settings_file("cluster", Settings().cluster, Cluster, by_alias=True, by_name=False)

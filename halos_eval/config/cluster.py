"""The cluster file, which HALOS_EVAL_CLUSTER names: pools, profiles and the Kubernetes cluster.

Without the key ``kubernetes``, stages run as local processes. Keys are in camelCase, as in Kubernetes, because the Helm
chart writes this file from values with the same keys.
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
Trust = Literal["fetch", "gpu", "judge", "code"]
"""Class of a pod by what it runs and whom it may speak to: the stage fetch; sample and harness; judge and summarize; a
model's code."""
DEFAULT_PROFILE = "default"
"""The default profile of GPU stages."""
CPU_PROFILE = "cpu"
"""The profile of the fetch, judge and summarize stages, which use no GPU."""
GPU_POOL = "halos_eval_gpu"
JUDGE_POOL = "halos_eval_judge"
BACKFILL_POOL = "halos_eval_backfill"
BACKFILL_SLOTS = 60
"""Slots of the backfill pool. With at most N checkpoints at a time, each takes an Nth of them."""
WEIGHTS_GIB = 500
CACHE = "cache"
"""Name of the volume for models and datasets from the hub; HF_HOME is on it."""
OUTBOX = "outbox"
"""Name of the volume for results of pods without a network. The summarize stage moves them into the store."""
COMPILE = "compile"
"""Name of the volume for what vLLM compiles. Only pods with a GPU that sample or score with a model have it."""
ANSWERS = "/answers"
"""Where a pod that executes a model's code has the answers."""


class Volume(BaseModel):
    """A volume of a pod, from exactly one source."""

    model_config = CAMEL

    mount_path: str = Field(pattern="^/")
    """Path in the pod. Checkpoints and suites need the same path in Airflow, which reads them for planning."""
    read_only: bool = False
    """Mount the volume read-only."""
    persistent_volume_claim: str | None = Field(None, min_length=1)
    """Name of a persistent volume claim."""
    host_path: str | None = Field(None, pattern="^/")
    """Folder on the node."""
    empty_dir: str | None = Field(None, min_length=1)
    """Size limit, such as 20Gi, of a folder that is deleted with the pod."""
    config_map: str | None = Field(None, min_length=1)
    """Name of a ConfigMap."""

    @model_validator(mode="after")
    def _one_source(self) -> Volume:
        sources = ("persistent_volume_claim", "host_path", "empty_dir", "config_map")
        if len([name for name in sources if getattr(self, name) is not None]) != 1:
            raise ValueError(f"give exactly one of {', '.join(map(to_camel, sources))}")
        return self


class Profile(BaseModel):
    """The resources and timeouts of a pod."""

    model_config = CAMEL

    gpus: int = Field(0, ge=0)
    """Number of GPUs. A model that takes at most half of the memory of one runs on each, a larger one is split."""
    tensor_parallel_size: int | None = Field(None, ge=1)
    """Number of GPUs that a model is split over (default: gpus)."""
    engines: int | None = Field(None, ge=1)
    """Number of copies of the model that share the GPUs evenly (default: by the size of the model)."""
    gpu_resource: str = "nvidia.com/gpu"
    """Name of the device plugin's GPU resource."""
    cpu: str = "4"
    """CPU request; there is no limit."""
    memory: str = "32Gi"
    """Memory request and limit; /dev/shm counts towards it."""
    shared_memory: str = "8Gi"
    """Size of /dev/shm, which vLLM's and PyTorch's processes use to communicate."""
    node_selector: dict[str, str] = {}
    """Labels that the node must have."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Tolerations of the pod, as in Kubernetes."""
    priority_class_name: str | None = None
    """Priority class; overrides the one of the run's priority."""
    runtime_class_name: str | None = None
    """Runtime class, such as nvidia."""
    image_pull_secrets: tuple[str, ...] = ()
    """Additional secrets for pulling images."""
    queue: str | None = Field(None, pattern=DNS_LABEL)
    """Name of Kueue's LocalQueue."""
    volumes: dict[str, Volume] = {}
    """Volumes by name; they override the cluster's volumes of the same name."""
    pod_overrides: dict[str, Any] = {}
    """Additions to the pod in Kubernetes' own form (metadata, spec), merged last; they cannot weaken its protection."""
    schedule_timeout_seconds: int = Field(6 * 3600, ge=1)
    """Maximum wait for a node."""
    start_timeout_seconds: int = Field(1800, ge=1)
    """Maximum time from scheduling to the start of the container, including the image pull."""
    run_timeout_seconds: int = Field(24 * 3600, ge=1)
    """Maximum run time of the pod."""
    infrastructure_budget_seconds: int = Field(24 * 3600, ge=0)
    """How long after its first preemption, lost node or similar failure a stage may still start a new pod."""

    @model_validator(mode="after")
    def _shared_evenly(self) -> Profile:
        if self.engines and self.engines * (self.tensor_parallel_size or 1) > max(1, self.gpus):
            raise ValueError(
                f"engines: {self.engines} engines need more than {self.gpus} GPUs. Lower it, or raise gpus"
            )
        # Without a GPU, vLLM can split a model over a processor's NUMA nodes.
        if self.gpus and (self.tensor_parallel_size or 1) > self.gpus:
            raise ValueError(
                f"tensorParallelSize is above gpus ({self.tensor_parallel_size}); expected at most {self.gpus}. "
                "Lower it, or raise gpus"
            )
        return self

    @property
    def parts(self) -> int:
        """Value of vLLM's tensor_parallel_size."""
        return self.tensor_parallel_size or max(1, self.gpus) // (self.engines or 1)

    @property
    def copies(self) -> int | None:
        """Number of engines; None if the size of the model decides it."""
        return 1 if self.tensor_parallel_size and not self.engines else self.engines


class SecretKey(BaseModel):
    """A reference to one value of a Secret."""

    model_config = CAMEL

    name: str
    """Name of the Secret."""
    key: str
    """Key in the Secret."""


class Pools(BaseModel):
    """How much runs at a time. Airflow's pools are created from these numbers."""

    model_config = CAMEL

    gpu: int = Field(ge=1)
    """GPUs of all pods together, including pending pods."""
    judge: int = Field(ge=1)
    """Number of judge stages. Each sends its own requests to the judge's endpoint."""
    reserved: dict[int, int] = {}
    """GPUs, of those of gpu, that only stages with this number of GPUs use: {4: 8} keeps 8 for stages with 4 GPUs."""

    @model_validator(mode="after")
    def _possible(self) -> Pools:
        if wrong := [size for size, gpus in self.reserved.items() if size < 1 or gpus < size]:
            raise ValueError(f"reserved: {self.reserved[wrong[0]]} GPUs are too few for stages with {wrong[0]} GPUs")
        if sum(self.reserved.values()) > self.gpu:
            raise ValueError(f"reserved: expected at most gpu ({self.gpu}) GPUs in all")
        return self

    def of(self, gpus: int) -> str:
        """Return the pool of a stage with so many GPUs.

        Airflow gives free slots to a small task while a large one waits for more. In a pool whose tasks all have
        the same size, none can wait for ever.
        """
        return f"{GPU_POOL}_{gpus}" if gpus in self.reserved else GPU_POOL

    @property
    def gpu_slots(self) -> dict[str, int]:
        """The GPUs of each pool."""
        rest = self.gpu - sum(self.reserved.values())
        return {GPU_POOL: rest} | {self.of(size): gpus for size, gpus in self.reserved.items()}

    def document(self) -> dict[str, dict[str, Any]]:
        """Return the input of ``airflow pools import``. Deferred tasks count, because their pods are running."""
        gpus = {
            name: {"slots": slots, "description": "GPUs", "include_deferred": True}
            for name, slots in self.gpu_slots.items()
        }
        return gpus | {
            JUDGE_POOL: {"slots": self.judge, "description": "judge stages", "include_deferred": True},
            BACKFILL_POOL: {"slots": BACKFILL_SLOTS, "description": "older checkpoints", "include_deferred": True},
        }


class Images(BaseModel):
    """Images of the stages, with tag or digest."""

    model_config = CAMEL

    worker: str
    """Image with vLLM and lm-eval."""
    judge: str
    """Image with alpaca_eval and the summarize stage."""


class Kubernetes(BaseModel):
    """The Kubernetes cluster."""

    model_config = CAMEL

    namespace: str = Field(pattern=DNS_LABEL)
    """Namespace of the pods."""
    images: Images
    """Images of the pods."""
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    """Kubernetes' imagePullPolicy."""
    image_pull_secrets: tuple[str, ...] = ()
    """Secrets for pulling images."""
    service_account_name: str = "default"
    """Service account of pods for which serviceAccounts has none; no token of an account is mounted."""
    service_accounts: dict[Literal["fetch", "gpu", "judge"], str] = {}
    """Service accounts by class of pods: fetch; gpu (sample and harness); judge (judge and summarize)."""
    code_service_account_name: str = "default"
    """Service account of pods that execute a model's code: without rights and without workload identity."""
    environment: dict[str, str] = {}
    """Environment variables of all stages: AWS_ENDPOINT_URL, HF_ENDPOINT, OPENAI_BASE_URL, ..."""
    secrets: dict[str, SecretKey] = {}
    """Environment variables from Secrets. Each stage gets only those it needs (orchestration/secrets.py)."""
    weights_gib: int = Field(WEIGHTS_GIB, ge=1)
    """GiB of the cache for copies of checkpoints in object storage; the least recently used ones are removed."""
    volumes: dict[str, Volume] = {}
    """Volumes of all pods, by name. The names cache, outbox and compile have a meaning; others are only mounted."""
    priority_classes: dict[Priority, str] = {}
    """Priority class for each priority of a run."""

    def account(self, trust: Trust) -> str:
        """Return the service account of a class of pods."""
        if trust == "code":
            return self.code_service_account_name
        return self.service_accounts.get(trust, self.service_account_name)


class Cluster(BaseModel):
    """The cluster file."""

    model_config = CAMEL

    pools: Pools
    """Sizes of the Airflow pools."""
    profiles: dict[str, Profile]
    """Profiles by name."""
    kubernetes: Kubernetes | None = None
    """The Kubernetes cluster; None runs stages as local processes."""

    @model_validator(mode="after")
    def _reserved(self) -> Cluster:
        needed = [DEFAULT_PROFILE, *([CPU_PROFILE] if self.kubernetes else [])]
        if missing := [name for name in needed if name not in self.profiles]:
            raise ValueError(f"profiles must contain {' and '.join(missing)}")
        if CPU_PROFILE in self.profiles and self.profiles[CPU_PROFILE].gpus:
            raise ValueError(f"profile {CPU_PROFILE} is for stages without a GPU: gpus must be 0")
        return self

    @property
    def outbox(self) -> Volume | None:
        """The outbox volume; None if the cluster file has none."""
        return self.kubernetes.volumes.get(OUTBOX) if self.kubernetes else None

    @property
    def cache(self) -> Volume | None:
        """The cache that all pods share; None if there is no such cache.

        A cache that is deleted with the pod is not shared, nor is one that a profile overrides.
        """
        found = self.kubernetes.volumes.get(CACHE) if self.kubernetes else None
        shared = all(profile.volumes.get(CACHE, found) == found for profile in self.profiles.values())
        return found if found and shared and (found.persistent_volume_claim or found.host_path) else None

    @property
    def can_fetch(self) -> bool:
        """Whether later stages can read fetched data; always true for local processes."""
        return self.kubernetes is None or self.cache is not None

    @property
    def weights_gib(self) -> int:
        """GiB of the cache for copies of checkpoints in object storage."""
        return self.kubernetes.weights_gib if self.kubernetes else WEIGHTS_GIB

    def gpu_profile(self, name: str) -> Profile:
        """Return the profile ``name`` of a stage. Raise BadInput if there is none, or if its pool is too small for it.

        Stages with the profile ``cpu`` are in pools without GPUs, so they run even if all GPUs are reserved.
        """
        profile = self.profiles.get(name)
        if profile is None:
            raise BadInput(f"unknown profile {name!r} in the cluster file; available: {', '.join(self.profiles)}")
        slots, needed = self.pools.gpu_slots[self.pools.of(profile.gpus)], max(1, profile.gpus)
        if name != CPU_PROFILE and needed > slots:
            raise BadInput(
                f"profile {name} requests {needed} GPUs, but the pool has only {slots}. "
                "Raise pools.gpu, or choose a smaller profile"
            )
        return profile


def load_cluster() -> Cluster:
    """Return the cluster file of HALOS_EVAL_CLUSTER. Raises BadInput with all errors of the file."""
    # Only camelCase keys, as in the chart's values.
    return read_settings_file("cluster", Settings().cluster, Cluster, by_alias=True, by_name=False)

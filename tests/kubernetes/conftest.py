"""A cluster with the chart installed, and an Airflow on this machine that starts pods with the chart's Role.

KUBECONFIG names any cluster that has the images and whose node is this machine: folders are mounted from it, and pods
reach its servers at CLUSTER_TEST_HOST. `make cluster-test` makes one where there is none.
"""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tests.airflow_server import Airflow, airflow_environment, free_port, migrate, standalone, wait_for
from tests.kubernetes.watcher import Watcher

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "halos-eval"
NAMESPACE = "halos-eval-test"
HOST = os.environ.get("CLUSTER_TEST_HOST", "10.244.0.1")
KEYS = {
    "OPENAI_API_KEY": "sk-judge-never-to-be-shown",
    "HF_TOKEN": "hf-token-never-to-be-shown",
    "AWS_ACCESS_KEY_ID": "store-access-never-shown",
    "AWS_SECRET_ACCESS_KEY": "store-secret-never-shown",
}
ENGINE = {"enforce_eager": True, "harness": {"max_model_len": 1024, "dtype": "float32"}}


@pytest.fixture(scope="session")
def admin():
    """The cluster as its administrator sees it."""
    path = os.environ.get("KUBECONFIG")
    if not path:
        pytest.skip("needs KUBECONFIG: `make cluster-test` starts a cluster and sets it")
    from kubernetes import client, config

    with config.new_client_from_config(path) as api:
        yield SimpleNamespace(path=path, client=client, core=client.CoreV1Api(api), api=api)


@pytest.fixture(scope="session")
def folders(checkpoints):
    """Folders that pods see at the same path: below one that any user may traverse, in an image as well."""
    root = Path(tempfile.mkdtemp(prefix="halos-eval-", dir="/var/tmp"))
    root.chmod(0o755)
    found = {name: root / name for name in ("cache", "outbox", "suites")}
    for folder in found.values():
        folder.mkdir()
        folder.chmod(0o777)  # pods run as another user
    shutil.copytree(checkpoints, root / "checkpoints")
    yield SimpleNamespace(checkpoints=root / "checkpoints", **found)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def store(environments, tmp_path_factory):
    """An S3 server that pods reach; ``folder`` is what is behind the bucket."""
    folder = tmp_path_factory.mktemp("s3") / "evaluations"
    folder.mkdir()
    port = free_port()
    words = [environments / "dev" / "bin" / "rclone", "serve", "s3", "--addr", f"0.0.0.0:{port}"]
    keys = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    options = [
        "--vfs-cache-mode",
        "off",
        "--dir-cache-time",
        "100ms",
        "--config",
        folder.parent / "none",
        "--auth-key",
        keys,
        folder.parent,
    ]
    log = folder.parent.with_suffix(".log")
    with log.open("w") as file:
        server = subprocess.Popen([*words, *options], stdout=file, stderr=file)
    wait_for(lambda: "Starting s3 server" in log.read_text() or server.poll() is not None, 30, log.read_text)
    yield SimpleNamespace(url="s3://evaluations", folder=folder, port=port)
    server.kill()
    server.wait()


@pytest.fixture(scope="session")
def judge(environments, checkpoints, tmp_path_factory):
    """The demo's judge, where pods reach it; gives its port."""
    from halos_eval.demo.checkpoints import INTACT
    from halos_eval.demo.judge_server import judge_server

    log = tmp_path_factory.mktemp("judge") / "log"
    program = environments / "worker" / "bin" / "vllm"
    with judge_server(program, checkpoints / INTACT / "FINAL", log, host="0.0.0.0") as server:
        yield int(server.url.split(":")[2].split("/")[0])


@pytest.fixture(scope="session")
def release(admin, folders, store, judge):
    """The chart, installed; gives the ConfigMap's cluster file."""
    from helm_python import Config

    meta = admin.client.V1ObjectMeta
    _remove_namespace(admin)
    admin.core.create_namespace(admin.client.V1Namespace(metadata=meta(name=NAMESPACE)))
    admin.core.create_namespaced_secret(NAMESPACE, admin.client.V1Secret(metadata=meta(name="keys"), string_data=KEYS))
    with Config(kubeconfig_path=admin.path, namespace=NAMESPACE) as helm:
        helm.install(CHART, "halos-eval", _values(folders, store, judge), namespace=NAMESPACE)
        data = admin.core.read_namespaced_config_map("halos-eval-cluster", NAMESPACE).data
        yield data["cluster.yaml"]
        helm.uninstall("halos-eval")
    _remove_namespace(admin)


def _remove_namespace(admin):
    def exists():
        return NAMESPACE in {one.metadata.name for one in admin.core.list_namespace().items}

    if exists():
        admin.core.delete_namespace(NAMESPACE)
        wait_for(lambda: not exists(), 120)


def _values(folders, store, judge):
    """The chart's own scenario of a test cluster, with this run's folders, servers and profiles for the drills."""
    values = yaml.safe_load((CHART / "ci" / "test-cluster-values.yaml").read_text())
    small = values["profiles"]["default"]
    values["profiles"] |= {
        "starved": small | {"memory": "300Mi", "sharedMemory": "16Mi"},
        "many": small | {"gpus": 9, "tensorParallelSize": 1, "scheduleTimeoutSeconds": 15},
    }
    kubernetes = values["kubernetes"]
    kubernetes["environment"] |= {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{store.port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "OPENAI_BASE_URL": f"http://{HOST}:{judge}/v1",
    }
    kubernetes["secrets"] = {name: {"name": "keys", "key": name} for name in KEYS}
    own = {"checkpoints": folders.checkpoints, "cache": folders.cache, "outbox": folders.outbox, "own": folders.suites}
    kubernetes["volumes"] = {
        name: {"mountPath": str(folder), "hostPath": str(folder), "readOnly": name in {"checkpoints", "own"}}
        for name, folder in own.items()
    }
    return values


@pytest.fixture(scope="session")
def launcher(admin, release, tmp_path_factory):
    """A kubeconfig with the token of the chart's service account for Airflow: it may do what its Role says."""
    account = wait_for(lambda: _token_secret(admin), 30)
    token = base64.b64decode(admin.core.read_namespaced_secret(account, NAMESPACE).data["token"]).decode()
    config = yaml.safe_load(Path(admin.path).read_text())
    config["users"] = [{"name": "launcher", "user": {"token": token}}]
    config["contexts"][0]["context"]["user"] = "launcher"
    path = tmp_path_factory.mktemp("launcher") / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def _token_secret(admin):
    name = "halos-eval-launcher"
    if admin.core.read_namespaced_service_account(name, NAMESPACE).secrets:
        return admin.core.read_namespaced_service_account(name, NAMESPACE).secrets[0].name
    # Newer clusters make a token only for a Secret that asks for it.
    meta = admin.client.V1ObjectMeta(name=f"{name}-token", annotations={"kubernetes.io/service-account.name": name})
    admin.core.create_namespaced_secret(
        NAMESPACE, admin.client.V1Secret(metadata=meta, type="kubernetes.io/service-account-token")
    )
    return meta.name


@pytest.fixture(scope="session")
def watcher(admin, release):
    """All pods of the namespace, watched from now on."""
    watcher = Watcher(admin.core, NAMESPACE)
    watcher.start()
    yield watcher
    watcher.stop()


class Lab(Airflow):
    """An Airflow that starts pods, with the files that it reads."""

    def __init__(self, port, store, environment, folders, watcher):
        super().__init__(port, store.folder)
        self.port, self.environment, self.folders, self.watcher = port, environment, folders, watcher
        self.cluster_file = Path(environment["HALOS_EVAL_CLUSTER"])
        self._standalone = None

    def start(self):
        """Start scheduler, triggerer, DAG processor and API server."""
        self._standalone = standalone(self.environment, self.port)
        self._process = self._standalone.__enter__()

    def stop(self):
        """End them in order."""
        self._standalone.__exit__(None, None, None)

    def kill(self):
        """End them with SIGKILL, and all that they have started."""
        groups = descendants(self._process.pid)
        for process in groups:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()

    def suite(self, name, **parts):
        """Write a suite of one's own."""
        (self.folders.suites / f"{name}.yaml").write_text(yaml.safe_dump(ENGINE | parts))
        return name

    @contextmanager
    def edited(self, change):
        """Change the cluster's file, and the pools with it, until the context ends."""
        before = self.cluster_file.read_text()
        document = yaml.safe_load(before)
        change(document)
        self.cluster_file.write_text(yaml.safe_dump(document))
        try:
            migrate(self.environment)
            yield
        finally:
            self.cluster_file.write_text(before)
            migrate(self.environment)

    def running(self, earlier, component, seconds=180):
        """The newest pod that runs and was not among ``earlier``."""

        def found():
            pods = [pod for pod in self.watcher.since(earlier, component) if pod.status.phase == "Running"]
            return pods and pods[-1]

        return wait_for(found, seconds, lambda: [pod.status for pod in self.watcher.since(earlier)])


@pytest.fixture(scope="session")
def lab(environments, folders, store, release, launcher, watcher, tmp_path_factory):
    """A running Airflow with the chart's cluster file and the launcher's rights."""
    folder = tmp_path_factory.mktemp("airflow")
    (folder / "cluster.yaml").write_text(release)
    port = free_port()
    environment = airflow_environment(
        environments,
        folder,
        port,
        KUBECONFIG=str(launcher),
        HALOS_EVAL_CLUSTER=str(folder / "cluster.yaml"),
        HALOS_EVAL_STORE=store.url,
        HALOS_EVAL_CHECKPOINTS=str(folders.checkpoints),
        HALOS_EVAL_SUITES=str(folders.suites),
        # how soon a task whose scheduler or worker was killed is retried; five minutes by default
        AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL="30",
        AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT="60",
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{store.port}",
        AWS_DEFAULT_REGION="us-east-1",
        **{name: value for name, value in KEYS.items() if name.startswith("AWS")},
    )
    migrate(environment)
    lab = Lab(port, store, environment, folders, watcher)
    lab.start()
    yield lab
    lab.stop()


def descendants(pid):
    """A process and all that it has started, by their ids; workers have sessions of their own."""
    children = [one for file in Path(f"/proc/{pid}/task").glob("*/children") for one in file.read_text().split()]
    return [pid, *(one for child in children for one in descendants(int(child)))]


@pytest.fixture(scope="session")
def demo_store(environments):
    """The store of `make demo` in this checkout: the same suite by local processes."""
    words = [environments / "airflow" / "bin" / "python", "-m", "halos_eval.demo.run"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return ROOT / "var" / "store"

"""A cluster with halos-eval and Airflow installed as docs/install-cluster.md tells.

KUBECONFIG names any cluster that has the images and whose node is this machine: folders are mounted from it, and pods
reach its servers at CLUSTER_TEST_HOST. `make cluster-test` makes one where there is none.

What differs from the documentation: the values of ``_values`` over those of the page (images, sizes, addresses), an
Airflow whose chart is tests/kubernetes/airflow_release.py, and addresses instead of DNS. PostgreSQL is a pod.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import dedent
from types import SimpleNamespace
from urllib.request import Request, urlopen

import pytest
import yaml

from tests.airflow_server import Airflow, free_port, wait_for
from tests.helm.release import CHART, ROOT, airflow_values, merged, scenario
from tests.kubernetes.airflow_release import API_SERVER, COMPONENTS, PORT, AirflowRelease
from tests.kubernetes.suites import SUITES, TASK_FILES
from tests.kubernetes.watcher import PODS, Watcher

PAGE = (ROOT / "docs" / "install-cluster.md").read_text()
NAMESPACE = "halos-eval-test"  # `evaluation` on the page
HOST = os.environ.get("CLUSTER_TEST_HOST", "10.244.0.1")
KEYS = {
    "OPENAI_API_KEY": "sk-judge-never-to-be-shown",
    "HF_TOKEN": "hf-token-never-to-be-shown",
    "AWS_ACCESS_KEY_ID": "store-access-never-shown",
    "AWS_SECRET_ACCESS_KEY": "store-secret-never-shown",
}
DATABASE = "database-password-never-shown"
# What stands for `...` in the commands of the page, by Secret and key.
GIVEN = {
    ("judge", "api-key"): KEYS["OPENAI_API_KEY"],
    ("store", "access-key-id"): KEYS["AWS_ACCESS_KEY_ID"],
    ("store", "secret-access-key"): KEYS["AWS_SECRET_ACCESS_KEY"],
    ("hub", "token"): KEYS["HF_TOKEN"],
    ("airflow", "connection"): f"postgresql+psycopg2://airflow:{DATABASE}@postgresql/postgres",
    ("airflow", "fernet-key"): base64.urlsafe_b64encode(b"a fernet key for tests, 32 bytes").decode(),
    ("airflow", "api-secret-key"): "api-secret-never-shown",
    ("airflow", "jwt-secret"): "jwt-secret-never-shown-of-at-least-64-bytes-because-airflow-warns-otherwise",
}
USER, PASSWORD = "admin", "airflow-password-never-shown"


def commands(words):
    """The commands of the page that begin with ``words``, in the tests' namespace."""
    found = [line.strip() for line in PAGE.splitlines() if line.startswith(f"       {words}")]
    assert found, words
    return [line.replace("evaluation", NAMESPACE) for line in found]


def run(command, **options):
    """Run a command of the page; its output."""
    words = shlex.split(command) if isinstance(command, str) else command
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


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
    """Folders of this machine that are behind the claims: below one that any user may traverse."""
    root = Path(tempfile.mkdtemp(prefix="halos-eval-", dir="/var/tmp"))
    root.chmod(0o755)
    found = {name: root / name for name in ("cache", "outbox", "compile", "logs")}
    for folder in found.values():
        folder.mkdir()
        folder.chmod(0o777)  # pods run as other users
    shutil.copytree(checkpoints, root / "checkpoints")
    before = time.time() - 2 * 86400  # the last night, whenever it was, takes what was registered before
    for path in (root / "checkpoints").rglob("*"):
        os.utime(path, (before, before))
    (root / "checkpoints" / TASK_FILES).mkdir()
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
    """The judge `demo` by its name: a server where pods reach it.

    It takes as long to start as Airflow, so both start together.
    """
    port, log = free_port(), tmp_path_factory.mktemp("judge") / "log"
    words = ["setpriv", "--pdeathsig", "TERM", "--", environments / "worker" / "bin" / "vllm", "serve"]
    options = [
        checkpoints / "smollm2-135m" / "FINAL", "--host=0.0.0.0", f"--port={port}", "--served-model-name=demo-judge",
        "--max-model-len=2048", "--dtype=float32", "--enforce-eager", "--logprobs-mode=processed_logprobs",
        f"--kv-cache-memory-bytes={1 << 29}",
    ]  # fmt: skip
    with log.open("w") as file:
        server = subprocess.Popen([*words, *options], stdout=file, stderr=file, start_new_session=True)
    yield SimpleNamespace(port=port, log=log)
    server.terminate()
    server.wait()


@pytest.fixture(scope="session")
def namespace(admin, folders):
    """The namespace with what the page asks for: the Secrets, the claim of the checkpoints, volumes for the others."""
    meta = admin.client.V1ObjectMeta
    _clean(admin)
    admin.core.create_namespace(admin.client.V1Namespace(metadata=meta(name=NAMESPACE)))
    claims = {
        "checkpoints": folders.checkpoints,
        "halos-eval-cache": folders.cache,
        "halos-eval-outbox": folders.outbox,
        "halos-eval-compile": folders.compile,
        "airflow-logs": folders.logs,
    }
    for name, folder in claims.items():
        admin.core.create_persistent_volume(_volume(name, folder))
    claim = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    admin.core.create_namespaced_persistent_volume_claim(
        NAMESPACE, {"metadata": {"name": "checkpoints"}, "spec": claim}
    )
    for command in commands("kubectl -n evaluation create secret"):
        words = command.split()
        name = words[words.index("generic") + 1]
        run(re.sub(r"=([\w-]+)=\.\.\.", lambda key, name=name: f"={key[1]}={GIVEN[name, key[1]]}", command))
    yield NAMESPACE
    _clean(admin)


def _volume(claim, folder):
    return {
        "metadata": {"name": f"{NAMESPACE}-{claim}"},
        "spec": {
            "accessModes": ["ReadWriteMany", "ReadOnlyMany"],
            "capacity": {"storage": "1Ti"},
            "hostPath": {"path": str(folder)},
            "claimRef": {"namespace": NAMESPACE, "name": claim},
        },
    }


def _clean(admin):
    def exists():
        return NAMESPACE in {one.metadata.name for one in admin.core.list_namespace().items}

    if exists():
        admin.core.delete_namespace(NAMESPACE)
        wait_for(lambda: not exists(), 120)
    for volume in admin.core.list_persistent_volume().items:
        if volume.metadata.name.startswith(NAMESPACE):
            admin.core.delete_persistent_volume(volume.metadata.name)


@pytest.fixture(scope="session")
def helm(admin, namespace):
    """Helm in that namespace."""
    from helm_python import Config

    with Config(kubeconfig_path=admin.path, namespace=namespace) as helm:
        yield helm


@pytest.fixture(scope="session")
def release(admin, helm, store, judge):
    """The chart, installed with the values of the page; gives the values."""
    values = _values(store, judge)
    helm.install(CHART, "halos-eval", values, namespace=NAMESPACE)
    yield values
    helm.uninstall("halos-eval")


def _values(store, judge):
    """lab.yaml of the page, with sizes and images of a test cluster, this run's servers, and profiles for drills."""
    page = re.search(r"```yaml\n *# examples/lab.yaml\n(?P<text>.*?)^ *```$", PAGE, re.M | re.S)
    values = yaml.safe_load(dedent(page["text"]))
    small = scenario("test-cluster")
    profile = small["profiles"]["default"]
    del values["profiles"], values["pools"]  # they are for the nodes of a lab
    own = {
        "profiles": {
            "starved": profile | {"memory": "300Mi", "sharedMemory": "16Mi"},
            "many": profile
            | {"gpus": 9, "tensorParallelSize": 1, "scheduleTimeoutSeconds": 15, "infrastructureBudgetSeconds": 1},
        },
        "kubernetes": {
            "environment": {
                "AWS_ENDPOINT_URL": f"http://{HOST}:{store.port}",
                "AWS_DEFAULT_REGION": "us-east-1",
                "OPENAI_BASE_URL": f"http://{HOST}:{judge.port}/v1",
            }
        },
        "suites": {f"{name}.yaml": yaml.safe_dump(suite) for name, suite in SUITES.items()},
        "policy": {"rules": [{"match": "*-rounded", "suites": ["night"]}, {"match": "*", "suites": []}]},
        "airflow": {"store": store.url},
        "networkPolicies": {"extraEgress": [{"to": [{"ipBlock": {"cidr": f"{HOST}/32"}}]}]},
    }
    return merged(merged(values, small), own)


@pytest.fixture(scope="session")
def watcher(admin, release):
    """All pods of stages, watched from now on."""
    watcher = Watcher(admin.core, NAMESPACE)
    watcher.start()
    yield watcher
    watcher.stop()


@pytest.fixture(scope="session")
def airflow(admin, release):
    """Airflow's release; gives the address of its API server."""
    written = run(commands("kubectl -n evaluation get configmap")[0].partition(" > ")[0])
    values = airflow_values(written)
    # How soon a task whose scheduler or worker was killed is retried (five minutes by default), and how many tasks
    # this machine takes at a time.
    faster = {"orphaned_tasks_check_interval": "30", "task_instance_heartbeat_timeout": "60"}
    values = merged(values, {"config": {"scheduler": faster, "core": {"parallelism": "4"}}})
    chart = AirflowRelease(values)
    for document in chart.before():
        _create(admin, document)
    _create(admin, _postgresql())
    aliases = {"postgresql": wait_for(lambda: _address(admin, "app=postgresql"), 60)}
    _create(admin, chart.migration(aliases))
    batch = admin.client.BatchV1Api(admin.api)
    wait_for(
        lambda: batch.read_namespaced_job("airflow-run-airflow-migrations", NAMESPACE).status.succeeded,
        240,
        lambda: _logs(admin, "job-name=airflow-run-airflow-migrations"),
    )
    _create(admin, chart.component("api-server", aliases))
    aliases[API_SERVER] = wait_for(lambda: _address(admin, "component=api-server"), 60)
    for name in COMPONENTS.keys() - {"api-server"}:
        _create(admin, chart.component(name, aliases))
    return aliases[API_SERVER]


def _create(admin, document):
    from kubernetes import utils

    utils.create_from_dict(admin.api, document, namespace=NAMESPACE)


def _postgresql():
    container = {
        "name": "postgresql",
        "image": "docker.io/halos-eval/postgresql:test",
        "imagePullPolicy": "Never",
        "env": [{"name": "PASSWORD", "value": DATABASE}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "postgresql", "labels": {"app": "postgresql"}},
        "spec": {
            "containers": [container],
            "securityContext": {"fsGroup": 1000},
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    }


def _signal(pods, number):
    """Send a signal to all processes of some pods: the node is this machine."""
    names = {f"HOSTNAME={pod.metadata.name}".encode() for pod in pods}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if names & set((folder / "environ").read_bytes().split(b"\0")):
                os.kill(int(folder.name), number)


def _address(admin, selector):
    items = admin.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
    return items and items[0].status.pod_ip


def _logs(admin, selector):
    """The ends of the logs of some pods, as text."""
    pods = admin.core.list_namespaced_pod(NAMESPACE, label_selector=selector).items
    return "\n".join(admin.core.read_namespaced_pod_log(pod.metadata.name, NAMESPACE, tail_lines=2000) for pod in pods)


class Lab(Airflow):
    """The Airflow in the cluster, with the folders behind its claims."""

    def __init__(self, admin, address, store, folders, watcher, helm, values):
        super().__init__(PORT, store.folder)
        self.url = f"http://{address}:{PORT}"
        self.admin, self.folders, self.watcher, self.helm, self.values = admin, folders, watcher, helm, values
        self._token = None

    def call(self, method, path, body=None):
        """Ask as the first user."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token()}"}
        with urlopen(Request(self.url + "/api/v2" + path, data, headers, method=method), timeout=120) as reply:
            return json.load(reply)

    def token(self):
        if not self._token:
            asked = json.dumps({"username": USER, "password": PASSWORD}).encode()
            request = Request(f"{self.url}/auth/token", asked, {"Content-Type": "application/json"})
            with urlopen(request, timeout=120) as reply:
                self._token = json.load(reply)["access_token"]
        return self._token

    def is_up(self):
        """Whether the DAGs can be read."""
        with suppress(OSError):
            return self.call("GET", "/dags/evaluate_checkpoint")

    def inside(self, *words):
        """Run a command in the pod of the API server, as the chart's notes and the README tell; its output."""
        return run(["kubectl", "-n", NAMESPACE, "exec", "deploy/airflow-api-server", "--", *words])

    def components(self):
        """The pods of Airflow."""
        return self.admin.core.list_namespaced_pod(NAMESPACE, label_selector="tier=airflow,component").items

    def logs(self):
        """What the components have printed."""
        return _logs(self.admin, "tier=airflow,component")

    def kill(self):
        """End every process of Airflow with SIGKILL. Kubernetes starts the containers again."""
        _signal(self.components(), signal.SIGKILL)

    @contextmanager
    def stopped(self, pod):
        """A pod whose processes stand still until the context ends, so that it runs for as long as a test needs it."""
        _signal([pod], signal.SIGSTOP)
        try:
            yield
        finally:
            _signal([pod], signal.SIGCONT)

    @contextmanager
    def upgraded(self, **more):
        """The release with other values, until the context ends: `helm upgrade`, then `helm rollback`."""
        self.helm.upgrade(CHART, "halos-eval", merged(self.values, more))
        try:
            self._read_again()
            yield
        finally:
            self.helm.rollback("halos-eval")
            self._read_again()

    def _read_again(self):
        """Wait until Airflow's pods have the new cluster file, then import the pools as the chart's notes tell."""
        expected = self.cluster_file()
        pods = [pod.metadata.name for pod in self.components()]
        for name in pods:  # the kubelet looks at a pod that changes at once, and at others every minute
            note = {"metadata": {"annotations": {"halos-eval/read": str(time.time_ns())}}}
            self.admin.core.patch_namespaced_pod(name, NAMESPACE, note)
        read = ["cat", "/etc/halos-eval/cluster.yaml"]
        for name in pods:
            wait_for(lambda name=name: run(["kubectl", "-n", NAMESPACE, "exec", name, "--", *read]) == expected, 120)
        self.inside("bash", "-ec", "halos-eval pools > /tmp/pools.json; airflow pools import /tmp/pools.json")

    def cluster_file(self):
        return self.admin.core.read_namespaced_config_map("halos-eval-cluster", NAMESPACE).data["cluster.yaml"]

    def pods(self):
        """The pods of stages that exist."""
        return self.admin.core.list_namespaced_pod(NAMESPACE, label_selector=PODS).items

    def running(self, earlier, component, seconds=180):
        """The newest pod that runs and was not among ``earlier``."""

        def found():
            pods = [pod for pod in self.watcher.since(earlier, component) if pod.status.phase == "Running"]
            return pods and pods[-1]

        return wait_for(found, seconds, lambda: [pod.status for pod in self.watcher.since(earlier)])


@pytest.fixture(scope="session")
def lab(admin, airflow, release, folders, store, watcher, helm, judge):
    """The Airflow in the cluster, with its first user."""
    lab = Lab(admin, airflow, store, folders, watcher, helm, release)
    wait_for(lambda: _is_ready(airflow), 240, lab.logs)
    (command,) = commands("kubectl -n evaluation exec -it deploy/airflow-api-server -- airflow users create")
    run([*shlex.split(command.replace(" -it ", " ")), "--password", PASSWORD])
    wait_for(lab.is_up, 240, lab.logs)
    wait_for(lambda: _answers(judge.port), 300, lambda: judge.log.read_text()[-2000:])
    return lab


def _answers(port):
    with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
        return reply.status == 200


def _is_ready(address):
    with suppress(OSError), urlopen(f"http://{address}:{PORT}/api/v2/version", timeout=5) as reply:
        return reply.status == 200


@pytest.fixture(scope="session")
def demo_store(environments):
    """The store of `make demo` in this checkout: the same suite by local processes."""
    words = [environments / "airflow" / "bin" / "python", "-m", "halos_eval.demo.run"]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    return ROOT / "var" / "store"

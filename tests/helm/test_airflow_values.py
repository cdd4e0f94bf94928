"""The values of Airflow's release agree with the chart, the package and the image. Airflow's chart is not tested.

They are helm/airflow-values.yaml and what the chart writes for the documentation's values (examples/lab.yaml).
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import kubernetes_validate
import pytest
import yaml
from airflow._shared.observability.metrics.metrics_registry import MetricsRegistry
from airflow.jobs.triggerer_job_runner import TriggerRunnerSupervisor
from helm_python import HelmError

from halos_eval.config.settings import Settings
from halos_eval.demo.installation import airflow_environment
from release import version
from tests.helm.release import ROOT, merged, scenario
from tests.kubernetes.airflow_release import COMPONENTS, AirflowRelease

VALUES = yaml.safe_load((ROOT / "helm" / "airflow-values.yaml").read_text())
LAB = yaml.safe_load((ROOT / "examples" / "lab.yaml").read_text())
STORE = {"image": {"repository": "registry.example.org/halos-eval/airflow", "tag": "1"}, "store": "s3://bucket"}


@pytest.fixture(scope="module")
def release(render):
    return render(LAB)


@pytest.fixture(scope="module")
def values(release):
    return release.airflow_values


@pytest.fixture
def settings(values, monkeypatch):
    for variable in values["env"]:
        monkeypatch.setenv(variable["name"], variable["value"])
    return Settings()


def mounts(part):
    """Return the volumes of ``part`` by mount path."""
    volumes = {volume.pop("name"): volume for volume in map(dict, part.get("volumes", part.get("extraVolumes", [])))}
    mounted = part.get("volumeMounts", part.get("extraVolumeMounts", []))
    return {one["mountPath"]: volumes[one["name"]] for one in mounted}


def test_it_is_for_the_version_that_is_locked():
    pins = re.findall(r'"apache-airflow==(\S+)"', (ROOT / "pyproject.toml").read_text())
    assert pins == [VALUES["airflowVersion"]]


def test_every_setting_is_one_that_the_code_knows(values, settings):
    names = {variable["name"].removeprefix("HALOS_EVAL_").lower() for variable in values["env"]}
    assert names < set(Settings.model_fields)
    assert settings.store.startswith("s3://")


def test_a_backfill_of_five_thousand_checkpoints_can_start():
    assert int(VALUES["config"]["core"]["max_map_length"]) >= 5000
    assert int(airflow_environment()["AIRFLOW__CORE__MAX_MAP_LENGTH"]) >= 5000


def test_airflow_sees_the_file_the_suites_and_the_checkpoints_where_the_pods_do(release, values, settings):
    kubernetes = release.cluster.kubernetes
    cluster = mounts(values)[str(Path(settings.cluster).parent)]["configMap"]["name"]
    assert Path(settings.cluster).name in release.get("ConfigMap", cluster)["data"]
    assert Path(settings.policy).parent == Path(settings.cluster).parent
    assert Path(settings.policy).name in release.get("ConfigMap", cluster)["data"]
    scheduler = mounts(values["scheduler"])
    for name, path in (("checkpoints", settings.checkpoints), ("suites", settings.suites)):
        assert kubernetes.volumes[name].mount_path == path
    assert scheduler[settings.suites]["configMap"]["name"] == kubernetes.volumes["suites"].config_map
    claim = scheduler[settings.checkpoints]["persistentVolumeClaim"]
    assert claim == {"claimName": kubernetes.volumes["checkpoints"].persistent_volume_claim, "readOnly": True}


@pytest.mark.parametrize(
    ("claim", "name"),
    [({"existingClaim": "trained"}, "trained"), ({"mountPath": "/models"}, "halos-eval-checkpoints")],
)
def test_the_claim_of_the_checkpoints_has_one_name(render, claim, name):
    """The scheduler would stay Pending if Airflow's release mounted a claim that this one does not know."""
    release = render(merged(LAB, {"claims": {"checkpoints": {"existingClaim": ""} | claim}}))
    kubernetes = release.cluster.kubernetes
    assert kubernetes.volumes["checkpoints"].persistent_volume_claim == name
    scheduler = mounts(release.airflow_values["scheduler"])
    path = kubernetes.volumes["checkpoints"].mount_path
    assert scheduler[path]["persistentVolumeClaim"] == {"claimName": name, "readOnly": True}
    environment = {one["name"]: one["value"] for one in release.airflow_values["env"]}
    assert environment["HALOS_EVAL_CHECKPOINTS"] == path


def test_checkpoints_of_a_registry_need_no_volume(render):
    more = {
        "claims": {"checkpoints": {"enabled": False}},
        "airflow": {"environment": {"HALOS_EVAL_CHECKPOINTS": "s3://b"}},
    }
    values = render(merged(LAB, more)).airflow_values
    assert mounts(values["scheduler"]).keys() == {"/suites"}
    assert {"name": "HALOS_EVAL_CHECKPOINTS", "value": "s3://b"} in values["env"]


def test_airflow_reads_the_store_as_the_stages_do(render):
    more = {"kubernetes": {"environment": {"AWS_ENDPOINT_URL": "http://minio:9000", "OPENAI_BASE_URL": "http://judge"}}}
    values = render(merged(LAB, more)).airflow_values
    names = {one["name"] for one in values["env"]}
    assert "AWS_ENDPOINT_URL" in names
    assert "OPENAI_BASE_URL" not in names
    assert {one["envName"]: (one["secretName"], one["secretKey"]) for one in values["secret"]} == {
        name: (secret["name"], secret["key"])
        for name, secret in LAB["kubernetes"]["secrets"].items()
        if name.startswith("AWS_")
    }


def test_kubernetes_leaves_the_variables_as_they_are(render):
    more = {"airflow": {"environment": {"HALOS_EVAL_NIGHT": "$(AWS_SECRET_ACCESS_KEY)"}}}
    values = render(merged(LAB, more)).airflow_values
    assert {"name": "HALOS_EVAL_NIGHT", "value": "$$(AWS_SECRET_ACCESS_KEY)"} in values["env"]


def test_workload_identity_needs_no_secret(render):
    values = render(scenario("minimal") | {"airflow": STORE}).airflow_values
    assert values["secret"] == []


@pytest.mark.parametrize("airflow", [{}, {"store": ""}, STORE | {"serviceAccounts": []}])
def test_without_a_store_or_an_airflow_in_the_cluster_no_values_are_written(render, airflow):
    release = render(scenario("minimal") | {"airflow": airflow})
    assert "halos-eval-airflow" not in release.names("ConfigMap")


def test_airflows_image_is_required(render):
    with pytest.raises(HelmError, match=r"airflow\.image\.repository is missing"):
        render(scenario("minimal") | {"airflow": {"store": "s3://bucket"}})


def test_secrets_are_references(values):
    assert {one["secretName"] for one in values["secret"]} == {"store"}
    assert {VALUES[name] for name in ("fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName")} == {"airflow"}
    assert VALUES["data"] == {"metadataSecretName": "airflow"}
    assert not [one for one in values["env"] if re.search("KEY|TOKEN|SECRET|PASSWORD", one["name"])]
    assert VALUES["postgresql"] == {"enabled": False}


def test_pools_are_made_right_after_the_migration():
    *shell, script = VALUES["migrateDatabaseJob"]["args"]
    assert shell == ["bash", "-ec"]
    steps = [step.strip() for step in script.split("&&")]
    assert steps == ["airflow db migrate", "halos-eval pools > /tmp/pools.json", "airflow pools import /tmp/pools.json"]


def test_it_runs_as_the_user_of_the_image():
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "images" / "airflow" / "Dockerfile").read_text(), re.MULTILINE)
    context = VALUES["securityContexts"]["pod"]
    assert [str(context[key]) for key in ("runAsUser", "runAsGroup")] == list(user.groups())
    assert context["runAsNonRoot"] is True


@pytest.mark.parametrize("component", ["dagProcessor", "triggerer"])
def test_nothing_is_started_that_only_the_official_image_has(component):
    assert VALUES[component]["logGroomerSidecar"] == {"enabled": False}


def test_logs_are_removed_after_thirty_days(tmp_path):
    """The command of the sidecar, once, on a folder of the test."""
    old, new = tmp_path / "old.log", tmp_path / "new.log"
    for path, days in ((old, 31), (new, 29)):
        path.write_text("")
        then = time.time() - days * 86400
        os.utime(path, (then, then))
    *shell, script = VALUES["scheduler"]["logGroomerSidecar"]["args"]
    script = script.replace("/opt/airflow/logs", str(tmp_path)).replace("sleep 6h", "exit")
    subprocess.run([*shell, script], check=True)
    assert list(tmp_path.iterdir()) == [new]


@pytest.mark.parametrize("component", ["scheduler", "dagProcessor", "triggerer", "apiServer"])
def test_each_component_requests_its_resources_and_has_a_limit_of_memory(component):
    resources = VALUES[component]["resources"]
    assert resources["requests"].keys() == {"cpu", "memory"}
    assert resources["limits"].keys() == {"memory"}


def test_a_triggerer_that_stops_is_restarted_and_the_other_one_goes_on():
    """Its probe fails once the heartbeat is old, which ends if the runner of the triggers is not heard of any more."""
    assert VALUES["triggerer"]["replicas"] == 2
    probe = VALUES["triggerer"]["livenessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] <= 300
    threshold = TriggerRunnerSupervisor.runner_health_check_threshold
    assert 0 < threshold <= 60
    job = SimpleNamespace(latest_heartbeat=None)
    heard_of = time.monotonic() - threshold - 1
    supervisor = SimpleNamespace(
        job=job,
        runner_health_check_threshold=threshold,
        _last_runner_comms=heard_of,
        _runner_comms_silence_logged=False,
    )
    TriggerRunnerSupervisor.heartbeat(supervisor)
    assert job.latest_heartbeat is None
    assert supervisor._runner_comms_silence_logged


def test_the_metrics_to_alert_on_are_those_of_this_airflow():
    page = (ROOT / "docs" / "install-cluster.md").read_text()
    table = page.partition("## Load, and what to alert on")[2].partition("\n\n## ")[0]
    named = re.findall(r"^\| `([a-z_.]+)` \|", table, re.MULTILINE)
    registry = MetricsRegistry()
    assert len(named) > 5
    assert [name for name in named if registry.get(name) is None] == []


def test_the_auth_manager_is_in_the_image():
    module = VALUES["config"]["core"]["auth_manager"].rpartition(".")[0]
    assert importlib.util.find_spec(module) is not None
    assert VALUES["createUserJob"] == {"enabled": False}  # no password in values


def test_the_role_is_ours():
    assert VALUES["allowPodLaunching"] is False
    assert VALUES["apiServer"]["allowPodLogReading"] is False


# What the cluster tests make of these values instead of Airflow's chart


def objects(values):
    chart = AirflowRelease(values)
    aliases = {"postgresql": "10.0.0.1"}
    return [*chart.before(), chart.migration(aliases), *(chart.component(name, aliases) for name in COMPONENTS)]


def test_the_cluster_tests_install_what_kubernetes_accepts(values):
    for document in objects(values):
        kubernetes_validate.validate(document, "1.34", strict=True)


def test_the_cluster_tests_mount_and_name_what_the_values_say(release, values):
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects(values)}
    scheduler = found["StatefulSet", "airflow-scheduler"]["spec"]["template"]["spec"]
    claims = {
        one["persistentVolumeClaim"]["claimName"] for one in scheduler["volumes"] if "persistentVolumeClaim" in one
    }
    assert claims == {"airflow-logs", "checkpoints"}
    accounts = {subject["name"] for subject in release.get("RoleBinding", "halos-eval-launcher")["subjects"]}
    assert {scheduler["serviceAccountName"], "airflow-triggerer"} <= accounts
    [container] = scheduler["containers"]
    variables = {one["name"]: one.get("value") for one in container["env"]}
    assert variables["HALOS_EVAL_STORE"] == "s3://bucket/halos-eval"
    assert container["image"] == f"registry.example.org/halos-eval/airflow:{version.version()}"
    assert "http://airflow-api-server:8080/execution/" in found["ConfigMap", "airflow-config"]["data"]["airflow.cfg"]


@pytest.mark.parametrize("more", [{"redis": {}}, {"scheduler": {"replicas": 2}}, {"statsd": {"enabled": True}}])
def test_the_cluster_tests_refuse_a_value_that_they_do_not_install(values, more):
    with pytest.raises(AssertionError):
        AirflowRelease(merged(values, more))

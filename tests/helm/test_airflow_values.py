"""helm/airflow-values.yaml agrees with the chart, the package and the image. Airflow's chart itself is not tested."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from halos_eval.config.settings import Settings
from halos_eval.demo.installation import airflow_environment
from tests.helm.release import scenario

ROOT = Path(__file__).parents[2]
VALUES = yaml.safe_load((ROOT / "helm" / "airflow-values.yaml").read_text())


@pytest.fixture(scope="module")
def release(render):
    return render(scenario("minimal"))


@pytest.fixture
def settings(monkeypatch):
    for variable in VALUES["env"]:
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


def test_every_setting_is_one_that_the_code_knows(settings):
    names = {variable["name"].removeprefix("HALOS_EVAL_").lower() for variable in VALUES["env"]}
    assert names < set(Settings.model_fields)
    assert settings.store.startswith("s3://")


def test_a_backfill_of_five_thousand_checkpoints_can_start():
    assert int(VALUES["config"]["core"]["max_map_length"]) >= 5000
    assert int(airflow_environment()["AIRFLOW__CORE__MAX_MAP_LENGTH"]) >= 5000


def test_airflow_sees_the_file_the_suites_and_the_checkpoints_where_the_pods_do(release, settings):
    kubernetes = release.cluster.kubernetes
    cluster = mounts(VALUES)[str(Path(settings.cluster).parent)]["configMap"]["name"]
    assert Path(settings.cluster).name in release.get("ConfigMap", cluster)["data"]
    assert Path(settings.policy).parent == Path(settings.cluster).parent
    assert Path(settings.policy).name in release.get("ConfigMap", cluster)["data"]
    scheduler = mounts(VALUES["scheduler"])
    for name, path in (("checkpoints", settings.checkpoints), ("suites", settings.suites)):
        assert kubernetes.volumes[name].mount_path == path
    assert scheduler[settings.suites]["configMap"]["name"] == kubernetes.volumes["suites"].config_map
    claim = scheduler[settings.checkpoints]["persistentVolumeClaim"]
    assert claim == {"claimName": kubernetes.volumes["checkpoints"].persistent_volume_claim, "readOnly": True}


def test_secrets_are_references():
    assert {one["secretName"] for one in VALUES["secret"]} == {"store"}
    assert {VALUES[name] for name in ("fernetKeySecretName", "apiSecretKeySecretName", "jwtSecretName")} == {"airflow"}
    assert VALUES["data"] == {"metadataSecretName": "airflow"}
    assert not [one for one in VALUES["env"] if re.search("KEY|TOKEN|SECRET|PASSWORD", one["name"])]
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


@pytest.mark.parametrize("component", ["scheduler", "dagProcessor", "triggerer"])
def test_nothing_is_started_that_only_the_official_image_has(component):
    assert VALUES[component]["logGroomerSidecar"] == {"enabled": False}


def test_the_auth_manager_is_in_the_image():
    module = VALUES["config"]["core"]["auth_manager"].rpartition(".")[0]
    assert importlib.util.find_spec(module) is not None
    assert VALUES["createUserJob"] == {"enabled": False}  # no password in values


def test_the_role_is_ours():
    assert VALUES["allowPodLaunching"] is False
    assert VALUES["apiServer"]["allowPodLogReading"] is False

"""What Airflow's official chart makes of our values, for a cluster without that chart, cluster DNS and Services.

It takes the keys that our values have, as release ``airflow``, and refuses any other, so that no value goes untested.
It leaves out what needs more processors than the tests have: the probes, the requested resources, the second triggerer,
the cleaning of logs and the waiting for the migration. The official chart: https://github.com/apache/airflow/tree/main/chart
"""

from __future__ import annotations

import io
from configparser import RawConfigParser
from typing import Any

HOME = "/opt/airflow"
# Without a DNS server, the machine's is asked from pods that do not reach it, for 40 seconds each time.
NO_DNS = {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["127.0.0.1"]}}
API_SERVER = "airflow-api-server"
PORT = 8080
# The chart's templates in our configuration.
TEMPLATES = {'{{ include "airflow.fullname" . }}': "airflow", "{{ .Values.ports.apiServer }}": str(PORT)}
SECRETS = {
    "AIRFLOW__CORE__FERNET_KEY": ("fernetKeySecretName", "fernet-key"),
    "AIRFLOW__API__SECRET_KEY": ("apiSecretKeySecretName", "api-secret-key"),
    "AIRFLOW__API_AUTH__JWT_SECRET": ("jwtSecretName", "jwt-secret"),
}
# Component: key of its values, kind of its object.
COMPONENTS = {
    "api-server": ("apiServer", "Deployment"),
    "scheduler": ("scheduler", "StatefulSet"),
    "triggerer": ("triggerer", "StatefulSet"),
    "dag-processor": ("dagProcessor", "Deployment"),
}
# Objects that we switch off: the chart would make more of them.
OFF = {
    "allowPodLaunching": False,
    "createUserJob": {"enabled": False},
    "dags": {"gitSync": {"enabled": False}, "persistence": {"enabled": False}},
    "postgresql": {"enabled": False},
    "statsd": {"enabled": False},
}
LEFT_OUT = {
    "apiServer": {"resources"},
    "scheduler": {"logGroomerSidecar", "resources"},
    "dagProcessor": {"resources"},
    "triggerer": {"livenessProbe", "replicas", "resources"},
}
OFF_IN_COMPONENTS = {
    "apiServer": {"allowPodLogReading": False},
    "scheduler": {},
    "dagProcessor": {"logGroomerSidecar": {"enabled": False}},
    "triggerer": {"enabled": True, "logGroomerSidecar": {"enabled": False}},
}
POD = {"images", "env", "secret", "volumes", "volumeMounts", "securityContexts"}
REST = {"airflowVersion", "config", "data", "executor", "logs", "migrateDatabaseJob"}


class AirflowRelease:
    """The objects of the release."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        unknown = (
            values.keys() - POD - REST - OFF.keys() - OFF_IN_COMPONENTS.keys() - {key for key, _ in SECRETS.values()}
        )
        assert not unknown, f"tests/kubernetes/airflow_release.py does not know {unknown}"
        assert {key: values[key] for key in OFF} == OFF
        for component, off in OFF_IN_COMPONENTS.items():
            given = {key: value for key, value in values[component].items() if not key.startswith("extraVolume")}
            assert {key: value for key, value in given.items() if key not in LEFT_OUT[component]} == off
        assert values["logs"]["persistence"].keys() == {"enabled", "size"}

    def before(self) -> list[dict[str, Any]]:
        """The accounts, the configuration and the claim of the logs."""
        accounts = [f"airflow-{name}" for name in (*COMPONENTS, "migrate-database-job")]
        return [
            *({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}} for name in accounts),
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "airflow-config"},
                "data": {"airflow.cfg": self._configuration()},
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "airflow-logs"},
                "spec": {
                    "accessModes": ["ReadWriteMany"],
                    "resources": {"requests": {"storage": self.values["logs"]["persistence"]["size"]}},
                },
            },
        ]

    def migration(self, aliases: dict[str, str]) -> dict[str, Any]:
        """The job that runs after each install and upgrade; ``aliases``: addresses by name, as DNS would give."""
        pod = self._pod("migrate-database-job", {}, self.values["migrateDatabaseJob"]["args"], aliases, logs=False)
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "airflow-run-airflow-migrations"},
            "spec": {"template": {"spec": pod | {"restartPolicy": "OnFailure"}}},
        }

    def component(self, name: str, aliases: dict[str, str]) -> dict[str, Any]:
        """The Deployment or StatefulSet of one component."""
        key, kind = COMPONENTS[name]
        labels = {"tier": "airflow", "component": name, "release": "airflow"}
        pod = self._pod(name, self.values[key], ["bash", "-c", f"exec airflow {name}"], aliases)
        return {
            "apiVersion": "apps/v1",
            "kind": kind,
            "metadata": {"name": f"airflow-{name}"},
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": pod},
                **({"serviceName": f"airflow-{name}"} if kind == "StatefulSet" else {}),
            },
        }

    def _pod(
        self, name: str, own: dict[str, Any], args: list[str], aliases: dict[str, str], logs: bool = True
    ) -> dict[str, Any]:
        values, image = self.values, self.values["images"]["airflow"]
        container = {
            "name": name,
            "image": f"{image['repository']}:{image['tag']}",
            "imagePullPolicy": image["pullPolicy"],
            "args": args,
            "env": self._environment(),
            "securityContext": values["securityContexts"]["containers"],
            "volumeMounts": [
                {"name": "config", "mountPath": f"{HOME}/airflow.cfg", "subPath": "airflow.cfg", "readOnly": True},
                *([{"name": "logs", "mountPath": f"{HOME}/logs"}] if logs else []),
                *values["volumeMounts"],
                *own.get("extraVolumeMounts", []),
            ],
        }
        return {
            "serviceAccountName": f"airflow-{name}",
            "securityContext": values["securityContexts"]["pod"],
            **NO_DNS,
            "hostAliases": [{"ip": address, "hostnames": [host]} for host, address in aliases.items()],
            "containers": [container],
            "volumes": [
                {"name": "config", "configMap": {"name": "airflow-config"}},
                *([{"name": "logs", "persistentVolumeClaim": {"claimName": "airflow-logs"}}] if logs else []),
                *values["volumes"],
                *own.get("extraVolumes", []),
            ],
        }

    def _environment(self) -> list[dict[str, Any]]:
        database = {"name": self.values["data"]["metadataSecretName"], "key": "connection"}
        secrets = {
            **{one["envName"]: {"name": one["secretName"], "key": one["secretKey"]} for one in self.values["secret"]},
            **{variable: {"name": self.values[name], "key": key} for variable, (name, key) in SECRETS.items()},
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": database,
            "AIRFLOW_CONN_AIRFLOW_DB": database,
        }
        references = ({"name": name, "valueFrom": {"secretKeyRef": key}} for name, key in secrets.items())
        return [*self.values["env"], *references]

    def _configuration(self) -> str:
        parser = RawConfigParser()
        own = {"core": {"dags_folder": f"{HOME}/dags", "executor": self.values["executor"]}}
        parser.read_dict(own)
        for section, options in self.values["config"].items():
            parser.read_dict({section: options})
        file = io.StringIO()
        parser.write(file)
        text = file.getvalue()
        for template, value in TEMPLATES.items():
            text = text.replace(template, value)
        assert "{{" not in text, text
        return text

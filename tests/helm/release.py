"""A rendered release of the chart."""

from __future__ import annotations

from pathlib import Path

import yaml

from halos_eval.config.cluster import Cluster

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "halos-eval"
SCENARIOS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").iterdir())}


def scenario(name):
    """Return the values of a file in ci/."""
    return yaml.safe_load(SCENARIOS[name].read_text())


def airflow_values(written):
    """Return the values of Airflow's release: helm/airflow-values.yaml, then what the chart has ``written``."""
    return merged(yaml.safe_load((ROOT / "helm" / "airflow-values.yaml").read_text()), yaml.safe_load(written))


def merged(values, more):
    """Return ``values`` with ``more`` over them, as helm merges files: mappings by key, all else as a whole."""
    both = [key for key in more if isinstance(values.get(key), dict) and isinstance(more[key], dict)]
    return values | more | {key: merged(values[key], more[key]) for key in both}


class Release:
    """The objects and the notes of a release."""

    def __init__(self, files, namespace):
        self.namespace = namespace
        self.notes = next(text for path, text in files.items() if path.endswith("NOTES.txt"))
        self.files = {
            path: [document for document in yaml.safe_load_all(text) if document]
            for path, text in files.items()
            if path.endswith(".yaml")
        }
        self.objects = [document for documents in self.files.values() for document in documents]

    def names(self, kind):
        """Return the names of all objects of a kind."""
        return [one["metadata"]["name"] for one in self.objects if one["kind"] == kind]

    def get(self, kind, name):
        """Return the object of that kind and name."""
        (found,) = [one for one in self.objects if one["kind"] == kind and one["metadata"]["name"] == name]
        return found

    @property
    def cluster_file(self):
        """The text of the cluster file."""
        return self.get("ConfigMap", "halos-eval-cluster")["data"]["cluster.yaml"]

    @property
    def airflow_values(self):
        """The values of Airflow's release beside this one."""
        return airflow_values(self.get("ConfigMap", "halos-eval-airflow")["data"]["values.yaml"])

    @property
    def cluster(self):
        """The cluster file as the code reads it."""
        return Cluster.model_validate(yaml.safe_load(self.cluster_file))

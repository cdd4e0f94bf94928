"""MLflow's model registry: a model version is the checkpoint MODEL/vVERSION, such as llama3-kto/v3.

The checkpoint's tags are the version's, merged over the model's. The tags halos_eval.chat_template, halos_eval.stop (a
JSON list) and halos_eval.profile override halos_eval.yaml. https://mlflow.org/docs/latest/ml/model-registry/
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from halos_eval.checkpoints.metadata import folder_url, look_into, with_template
from halos_eval.checkpoints.registry import (
    SHOWN,
    Checkpoint,
    Listing,
    Metadata,
    RegistryUnavailable,
    in_interval,
    listing,
    look_at_all,
    not_registered,
)
from halos_eval.errors import BadInput
from halos_eval.storage import filesystem
from halos_eval.storage.layout import original_part, safe_name
from halos_eval.untrusted import moment, parse_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities.paged_list import PagedList

SCHEMES = ("mlflow+http://", "mlflow+https://")
OWN_TAG = "halos_eval."
RESULT_TAG = "halos_eval.result."
"""Beginning of tags that are results, see `halos_eval.exporters.mlflow`."""
OTHERS = ("mlflow.", RESULT_TAG)
"""Beginnings of tags that are no tags of the checkpoint."""
OWN = tuple(name for name in Metadata.model_fields if name != "tags")
"""Metadata that tags of this project have."""
EXPECTED = {
    "stop": 'a JSON list of strings, such as ["###"]',
    "chat_template_args": 'a JSON object, such as {"reasoning_effort": "low"}',
}
# By default MLflow's client retries for minutes. With these settings it gives up after 3 seconds if nothing listens,
# and after half a minute if the server does not answer. Telemetry is switched off.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
PAGE = 1000  # the maximum that MLflow allows
NEWEST_FIRST = "creation_timestamp DESC"
RUN_SOURCE = re.compile(r"runs:/(?P<run>[^/]+)/(?P<path>.+)")
# A logged model, or a version of which this one is a copy (https://mlflow.org/docs/latest/ml/model-registry/workflow/).
MODEL_SOURCE = re.compile(r"models:/((?P<name>[^/]+)/(?P<version>[0-9]+)|(?P<model>[\w-]+))", re.ASCII)
Thing = TypeVar("Thing")


class MlflowRegistry:
    """The model versions of an MLflow server whose weights are in folders or in object storage."""

    def __init__(self, url: str) -> None:
        """Take ``url``, mlflow+http://HOST:PORT. Raises BadInput."""
        self.server = url.removeprefix("mlflow+")
        address = urlsplit(self.server)
        if address.username or address.password:
            raise BadInput(
                "MLflow's address contains a user or password. Use MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, instead"
            )
        if not address.hostname:
            raise BadInput(f"{url} names no server; expected mlflow+http://HOST:PORT")

    def registered(self, start: datetime | None = None, end: datetime | None = None) -> Listing:
        """Return the checkpoints as in ``Registry``. A version is registered when it is created in MLflow."""
        with self._client() as client:
            versions = {_name(one): one for one in _since(client, start) if in_interval(_created(one), start, end)}
            models = {model.name: model for model in _models(client)} if versions else {}
        found, skipped = look_at_all(
            versions, lambda name: self._look(versions[name], models.get(versions[name].name)), one_storage=False
        )
        return listing(found.values(), skipped)

    def get(self, name: str) -> Checkpoint:
        """Return MODEL/vVERSION, or the version that has the alias of MODEL/ALIAS now. As in ``Registry``."""
        with self._client() as client:
            version, model = self._find(client, name)
        return self._look(version, model)

    def _find(self, client: MlflowClient, name: str) -> tuple[ModelVersion, RegisteredModel | None]:
        safe_name(name)
        model_name, _, wanted = name.partition("/")
        model_name = original_part(model_name, lambda: (one.name for one in _models(client)))
        model = _known(client.get_registered_model, model_name)
        number = model.aliases.get(wanted, wanted.removeprefix("v")) if model else ""
        version = _known(client.get_model_version, model_name, number) if str(number).isdecimal() else None
        if version is None:
            newest = client.search_model_versions(order_by=[NEWEST_FIRST], max_results=SHOWN)
            raise not_registered(name, f"MLflow at {self.server}", map(_name, newest))
        return version, model

    def write(self, name: str, prefix: str, tags: Mapping[str, str], metrics: Mapping[str, float]) -> None:
        """Set tags of a version, and metrics of the run that logged its model; all their names get the ``prefix``.

        Other tags that begin with it are deleted; the run's metrics keep their history. As in ``get`` for errors.
        """
        with self._client() as client:
            version, _ = self._find(client, name)
            wanted = {f"{prefix}{key}": value for key, value in tags.items()}
            for key, value in wanted.items() - version.tags.items():
                client.set_model_version_tag(version.name, version.version, key, value)
            for key in version.tags.keys() - wanted.keys():
                if key.startswith(prefix):
                    client.delete_model_version_tag(version.name, version.version, key)
            run = _known(client.get_run, version.run_id) if version.run_id else None
            if run and run.info.lifecycle_stage == "active":
                numbers = {f"{prefix}{key}": number for key, number in metrics.items()}
                for key, number in numbers.items() - run.data.metrics.items():
                    client.log_metric(run.info.run_id, key, number)

    def advance_alias(self, name: str, alias: str) -> bool:
        """Give an alias of the model to this version, unless a later version has it; return whether it has it now.

        No other version keeps it. As in ``get`` for errors.
        """
        with self._client() as client:
            version, model = self._find(client, name)
            holder = int(model.aliases.get(alias, 0)) if model else 0  # MLflow counts versions from 1
            if holder < int(version.version):
                client.set_registered_model_alias(version.name, alias, version.version)
            return holder <= int(version.version)

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """Yield MLflow's client; turn its errors into RegistryUnavailable."""
        for key, value in CLIENT.items():
            os.environ.setdefault(key, value)
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise BadInput(
                "MLflow's client is not installed. Run the command in the environment or image `airflow`, or install "
                "halos-eval[airflow]"
            ) from error
        try:
            yield MlflowClient(tracking_uri=self.server, registry_uri=self.server)
        except (MlflowException, json.JSONDecodeError) as error:
            raise RegistryUnavailable(
                f"MLflow at {self.server} is unavailable ({str(error).splitlines()[0]}). Check that it runs and is "
                "reachable from here. If it requires authentication, check MLFLOW_TRACKING_TOKEN, or "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            ) from error

    def _look(self, version: ModelVersion, model: RegisteredModel | None) -> Checkpoint:
        """Return the checkpoint of a version. Raises BadInput if it cannot be evaluated."""
        if model is None:
            raise BadInput(f"{_name(version)} was deleted from MLflow while it was read")
        if version.status != "READY":
            raise BadInput(
                f"{_name(version)} is {version.status} in MLflow; expected READY. If it stays so, register it again"
            )
        location = self._location(version)
        own = with_template(_metadata(version, model), location, f"{_name(version)} in MLflow")
        return look_into(location).checkpoint(_name(version), _created(version), own)

    def _location(self, version: ModelVersion) -> str:
        """Return the folder of a version's source. Raises BadInput with the source if there is none."""
        source = version.source or ""
        with self._client() as client:
            location = _stored(client, version) if source.startswith("models:") else source
            if found := RUN_SOURCE.fullmatch(location):
                run = _known(client.get_run, found["run"])
                if run is None:
                    raise BadInput(f"source {location} belongs to a run that was deleted. Register the model again")
                location = filesystem.join(run.info.artifact_uri, found["path"])
        try:
            return folder_url(unquote(location) if location.startswith("file:") else location)
        except BadInput as error:
            raise BadInput(
                f"source {source} is not a folder of weights; expected a folder or an s3:// URL, but it is {location}. "
                "For artifacts of runs and logged models, use "
                "`mlflow server --no-serve-artifacts --default-artifact-root`"
            ) from error


def _stored(client: MlflowClient, version: ModelVersion) -> str:
    """Return what holds the weights of a version whose source is a logged model or another version.

    MLflow has known it since the version was registered, even if the original is deleted. Servers that have not
    recorded it return the source, which is followed here. Raises BadInput.
    """
    location = _known(client.get_model_version_download_uri, version.name, version.version) or version.source or ""
    passed = [f"models:/{version.name}/{version.version}"]
    while location.startswith("models:"):
        chain = " -> ".join([*passed, location])
        if location in passed:
            raise BadInput(f"sources of model versions form a cycle ({chain}). Register the weights again")
        following = _follow(client, location)
        if following is None:
            raise BadInput(
                f"source {location} is unknown to MLflow ({chain}); expected models:/MODEL_ID or models:/NAME/VERSION, "
                "not deleted. Register the weights again"
            )
        passed.append(location)
        location = following
    return location


def _follow(client: MlflowClient, source: str) -> str | None:
    """Return where a logged model or a version is stored; None if MLflow does not know it."""
    found = MODEL_SOURCE.fullmatch(source)
    if found is None:
        return None
    if found["name"]:
        return _known(client.get_model_version_download_uri, found["name"], found["version"])
    logged = _known(client.get_logged_model, found["model"])
    return logged.artifact_location if logged else None


def _name(version: ModelVersion) -> str:
    return f"{version.name}/v{version.version}"


def _created(version: ModelVersion) -> datetime:
    return moment(version.creation_timestamp / 1000)


def _metadata(version: ModelVersion, model: RegisteredModel) -> Metadata:
    tags = {key: text for key, text in (model.tags | version.tags).items() if not key.startswith(OTHERS)}
    if aliases := [alias for alias, number in model.aliases.items() if str(number) == str(version.version)]:
        tags.setdefault("aliases", ", ".join(sorted(aliases)))
    own: dict[str, Any] = {key: tags.pop(f"{OWN_TAG}{key}") for key in OWN if f"{OWN_TAG}{key}" in tags}
    try:
        if "stop" in own:
            own["stop"] = parse_json(own["stop"])
        return Metadata(**own, tags=tags)
    except ValueError as error:
        wrong = error.errors()[0]["loc"][0] if isinstance(error, ValidationError) else "stop"
        raise BadInput(
            f"tag {OWN_TAG}{wrong} is not valid ({error}); expected {EXPECTED.get(str(wrong), 'a text')}"
        ) from error


def _models(client: MlflowClient) -> Iterator[RegisteredModel]:
    return _pages(client.search_registered_models, max_results=PAGE)


def _since(client: MlflowClient, start: datetime | None) -> Iterator[ModelVersion]:
    """Yield the versions created since ``start``, newest first, so that older pages are not requested."""
    for version in _pages(client.search_model_versions, order_by=[NEWEST_FIRST], max_results=PAGE):
        if start and _created(version) < start:
            return
        yield version


def _pages(search: Callable[..., PagedList[Thing]], **options: Any) -> Iterator[Thing]:
    token = None
    while True:
        page = search(page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return


def _known(call: Callable[..., Thing], *arguments: object) -> Thing | None:
    """Return the result of ``call``, or None if MLflow says that it does not exist."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*arguments)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise

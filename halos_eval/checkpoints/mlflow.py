"""MLflow's model registry: a model version is a checkpoint called MODEL/vVERSION, such as llama3-kto/v3.

Its tags, over those of its model, are the checkpoint's. The tags halos_eval.chat_template, halos_eval.stop (a JSON
list) and halos_eval.profile say what halos_eval.yaml says. https://mlflow.org/docs/latest/ml/model-registry/
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
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
from halos_eval.storage.layout import check_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities.paged_list import PagedList

SCHEMES = ("mlflow+http://", "mlflow+https://")
OWN_TAG = "halos_eval."
OWN = ("chat_template", "stop", "profile")
# MLflow's client would try for minutes. So it gives up after 3 seconds where nothing listens, and after half a minute
# where nothing answers. And nothing about its use is sent to its makers.
CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
PAGE = 1000  # the most models that MLflow gives at once
NEWEST_FIRST = "creation_timestamp DESC"
RUN_SOURCE = re.compile(r"runs:/(?P<run>[^/]+)/(?P<path>.+)")
Thing = TypeVar("Thing")


class MlflowRegistry:
    """The model versions of an MLflow server whose weights are in folders or in object storage."""

    def __init__(self, place: str) -> None:
        """``place``: mlflow+http://HOST:PORT. Raises BadInput."""
        self.server = place.removeprefix("mlflow+")
        address = urlsplit(self.server)
        if address.username or address.password:
            raise BadInput(
                "MLflow's address holds a user or password: put them into MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or a token into MLFLOW_TRACKING_TOKEN"
            )
        if not address.hostname:
            raise BadInput(f"{place} names no server: write mlflow+http://HOST:PORT")

    def registered(self, start: datetime | None = None, end: datetime | None = None) -> Listing:
        """As in ``Registry``; a version is registered when it was created in MLflow."""
        with self._client() as client:
            versions = {_name(one): one for one in _since(client, start) if in_interval(_created(one), start, end)}
            pages = _pages(client.search_registered_models, max_results=PAGE) if versions else ()
            models = {model.name: model for model in pages}
        found, skipped = look_at_all(
            versions, lambda name: self._look(versions[name], models.get(versions[name].name)), one_storage=False
        )
        return listing(found.values(), skipped)

    def get(self, name: str) -> Checkpoint:
        """As in ``Registry``: MODEL/vVERSION, or MODEL/ALIAS, which stands for the version that has it now."""
        model_name, _, wanted = check_name(name).partition("/")
        with self._client() as client:
            model = _known(client.get_registered_model, model_name)
            number = model.aliases.get(wanted, wanted.removeprefix("v")) if model else ""
            version = _known(client.get_model_version, model_name, number) if str(number).isdecimal() else None
            if version is None:
                newest = client.search_model_versions(order_by=[NEWEST_FIRST], max_results=SHOWN)
                raise not_registered(name, f"MLflow at {self.server}", map(_name, newest))
        return self._look(version, model)

    @contextmanager
    def _client(self) -> Iterator[MlflowClient]:
        """MLflow's client. What it raises becomes RegistryUnavailable."""
        for key, value in CLIENT.items():
            os.environ.setdefault(key, value)
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise BadInput(
                "MLflow's client is not installed here: run this in the environment (or image) airflow, or install "
                "halos-eval[airflow]"
            ) from error
        try:
            yield MlflowClient(tracking_uri=self.server, registry_uri=self.server)
        except (MlflowException, json.JSONDecodeError) as error:
            raise RegistryUnavailable(
                f"MLflow at {self.server} gives no answer that can be used: {str(error).splitlines()[0]}. Check that "
                "it runs and can be reached from here, and MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, if it wants to know who asks"
            ) from error

    def _look(self, version: ModelVersion, model: RegisteredModel | None) -> Checkpoint:
        """The checkpoint of a version. Raises BadInput where there is none that can be evaluated."""
        if model is None:
            raise BadInput("it was deleted while it was looked at")
        if version.status != "READY":
            raise BadInput(f"MLflow says that it is {version.status}: register it again if it stays so")
        location = self._location(version.source or "")
        own = with_template(_metadata(version, model), location, f"{_name(version)} in MLflow")
        return look_into(location).checkpoint(_name(version), _created(version), own)

    def _location(self, source: str) -> str:
        """The folder of a version's source, which may be a path in a run's artifacts."""
        place = source
        if found := RUN_SOURCE.fullmatch(source):
            with self._client() as client:
                run = _known(client.get_run, found["run"])
            if run is None:
                raise BadInput(f"its source {source} is in a run that is not there any more: register it again")
            place = filesystem.join(run.info.artifact_uri, found["path"])
        try:
            return folder_url(unquote(place) if place.startswith("file:") else place)
        except BadInput as error:
            raise BadInput(
                f"its source {source} is no folder of weights. Register a folder or s3:// URL, or the artifacts of a "
                "run that are in one: `mlflow server --no-serve-artifacts --default-artifact-root`"
            ) from error


def _name(version: ModelVersion) -> str:
    return f"{version.name}/v{version.version}"


def _created(version: ModelVersion) -> datetime:
    return datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)


def _metadata(version: ModelVersion, model: RegisteredModel) -> Metadata:
    tags = {key: value for key, value in (model.tags | version.tags).items() if not key.startswith("mlflow.")}
    if aliases := [alias for alias, number in model.aliases.items() if str(number) == str(version.version)]:
        tags.setdefault("aliases", ", ".join(sorted(aliases)))
    own: dict[str, Any] = {key: tags.pop(f"{OWN_TAG}{key}") for key in OWN if f"{OWN_TAG}{key}" in tags}
    try:
        if "stop" in own:
            own["stop"] = json.loads(own["stop"])
        return Metadata(**own, tags=tags)
    except (ValidationError, json.JSONDecodeError) as error:
        raise BadInput(f'its tag {OWN_TAG}stop is no JSON list of strings, such as ["###"]: {error}') from error


def _since(client: MlflowClient, start: datetime | None) -> Iterator[ModelVersion]:
    """The versions created since ``start``, the newest first: older pages are not asked for."""
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
    """What ``call`` gives, or None where MLflow does not know it."""
    from mlflow.exceptions import MlflowException

    try:
        return call(*arguments)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise

"""MLflow's model registry: the real client against a real server, which is also killed, slow and out of reach."""

from __future__ import annotations

import json
import socket
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from halos_eval.checkpoints.mlflow import CLIENT, MlflowRegistry
from halos_eval.checkpoints.open_registry import open_registry
from halos_eval.checkpoints.registry import Metadata, NotRegistered
from halos_eval.errors import BadInput, DataUnavailable
from tests.airflow_server import free_port
from tests.checkpoints.behaviour import Behaviour, FolderLab
from tests.doubles import make_checkpoint
from tests.mlflow_server import Server

pytestmark = pytest.mark.real

TRIES = 1 + int(CLIENT["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])


@pytest.fixture(scope="module")
def server(environments, tmp_path_factory):
    found = Server(environments, tmp_path_factory.mktemp("mlflow"))
    found.start()
    yield found
    found.kill()


@pytest.fixture
def client(server, monkeypatch):
    """MLflow's client; all models are gone when the test ends."""
    for key, value in CLIENT.items():
        monkeypatch.setenv(key, value)
    from mlflow import MlflowClient

    found = MlflowClient(server.url, server.url)
    yield found
    for model in found.search_registered_models():
        found.delete_registered_model(model.name)


@pytest.fixture
def registry(server):
    return open_registry(f"mlflow+{server.url}")


@pytest.fixture
def lab(server, client, tmp_path):
    return MlflowLab(server, client, tmp_path)


class MlflowLab(FolderLab):
    """Checkpoints in the artifacts of a run of their own, registered by it as version 1 of a model of their name."""

    def __init__(self, server, client, scratch):
        self.server, self.client, self.scratch, self.runs = server, client, scratch, {}
        self.root, self.days = "runs", 0

    @property
    def registry(self):
        return open_registry(f"mlflow+{self.server.url}")

    def folder(self, name):
        if name not in self.runs:
            self.runs[name] = self.client.create_run("0")
        return f"{self.runs[name].info.artifact_uri.removeprefix('file://')}/FINAL"

    def remove(self, name):
        self.client.delete_registered_model(name)

    def register(self, name):
        self.client.create_registered_model(name)
        version = self.version(name)
        return f"{name}/v{version.version}"

    def version(self, name, **options):
        """Register the checkpoint of that name (again)."""
        time.sleep(0.005)  # MLflow's times are in milliseconds
        run = self.runs[name].info.run_id
        return self.client.create_model_version(name, f"runs:/{run}/FINAL", run_id=run, **options)


class TestMlflow(Behaviour):
    """``lab`` is the module's."""


def test_a_version_is_registered_when_it_was_created(lab):
    before = datetime.now(UTC) - timedelta(seconds=1)
    found = lab.registry.get(lab.add("kto"))
    assert before < found.registered < datetime.now(UTC) + timedelta(seconds=1)


def test_every_version_is_a_checkpoint(lab):
    lab.add("kto")
    lab.version("kto")
    names = [one.name for one in lab.registry.registered().checkpoints]
    assert names == ["kto/v1", "kto/v2"]


def test_an_alias_stands_for_the_version_that_has_it(lab):
    lab.add("kto")
    lab.version("kto")
    lab.client.set_registered_model_alias("kto", "champion", "1")
    assert lab.registry.get("kto/champion").name == "kto/v1"
    lab.client.set_registered_model_alias("kto", "champion", "2")
    lab.client.set_registered_model_alias("kto", "best", "2")
    assert lab.registry.get("kto/champion") == lab.registry.get("kto/v2")
    tags = {one.name: one.metadata.tags for one in lab.registry.registered().checkpoints}
    assert tags == {"kto/v1": {}, "kto/v2": {"aliases": "best, champion"}}
    for unknown in ("kto/challenger", "kto", "kto/v3"):
        with pytest.raises(NotRegistered):
            lab.registry.get(unknown)


def test_tags_of_the_version_over_those_of_the_model_over_the_file(lab):
    lab.add("kto", "tags: {method: sft, team: alignment, data: ultra}\nstop: ['a']\nprofile: small")
    lab.client.set_registered_model_tag("kto", "method", "dpo")
    lab.client.set_registered_model_tag("kto", "base_model", "llama3-8b")
    tags = {"method": "kto", "halos_eval.stop": '["###"]', "halos_eval.chat_template": "chatml", "mlflow.user": "me"}
    lab.version("kto", tags=tags)
    assert lab.registry.get("kto/v2").metadata == Metadata(
        chat_template="chatml",
        stop=("###",),
        profile="small",
        tags={"method": "kto", "base_model": "llama3-8b", "team": "alignment", "data": "ultra"},
    )


def test_results_are_written_to_the_version_and_the_run_that_logged_it(lab):
    """Twice: a missing score has no tag, and what is there already is not written again."""
    name = lab.add("kto", "tags: {method: kto}")
    registered = lab.registry.get(name)
    run = lab.runs["kto"].info.run_id
    for scores, status in (({"avg": 0.5, "a-acc": 0.5}, "complete"), ({"a-acc": 0.5}, "b: failed")):
        tags = {key: str(value) for key, value in scores.items()} | {"status": status}
        lab.registry.write(name, "halos_eval.result.quick.", tags, scores)
        assert lab.client.get_model_version("kto", "1").tags == {
            f"halos_eval.result.quick.{key}": value for key, value in tags.items()
        }
    assert lab.client.get_run(run).data.metrics == {f"halos_eval.result.quick.{key}": 0.5 for key in ("avg", "a-acc")}
    assert len(lab.client.get_metric_history(run, "halos_eval.result.quick.a-acc")) == 1
    assert lab.registry.get(name) == registered  # they are no tags of the checkpoint
    lab.client.delete_run(run)
    lab.registry.write(name, "halos_eval.result.quick.", {"status": "complete"}, {"avg": 1})
    assert lab.client.get_model_version("kto", "1").tags == {"halos_eval.result.quick.status": "complete"}
    with pytest.raises(NotRegistered):
        lab.registry.write("kto/v2", "halos_eval.result.quick.", {}, {})


def test_an_alias_is_given_to_one_version_and_never_back_to_an_earlier_one(lab):
    lab.add("kto")
    lab.version("kto")
    for number in ("1", "2"):
        assert lab.registry.advance_alias(f"kto/v{number}", "best")
        assert lab.client.get_registered_model("kto").aliases == {"best": number}
    assert not lab.registry.advance_alias("kto/v1", "best")
    assert lab.client.get_registered_model("kto").aliases == {"best": "2"}


@pytest.mark.parametrize("stop", ["###", '{"a": 1}', "[1]"])
def test_a_tag_that_is_wrong_costs_its_own_version_only(lab, stop):
    lab.add("kto")
    lab.version("kto", tags={"halos_eval.stop": stop})
    listed = lab.registry.registered()
    assert [one.name for one in listed.checkpoints] == ["kto/v1"]
    assert "tag halos_eval.stop is not valid" in listed.skipped["kto/v2"]


def test_a_file_url_with_spaces(lab):
    lab.add("kto")
    run = lab.runs["kto"].info
    folder = Path(run.artifact_uri.removeprefix("file://"))
    (folder / "FINAL").rename(folder / "final weights")
    lab.client.create_model_version("kto", f"file://{folder}/final%20weights".replace(" ", "%20"), run_id=run.run_id)
    assert lab.registry.get("kto/v2").location == f"{folder}/final weights"


def test_sources_that_are_no_folders_are_told(lab, server):
    lab.add("kto")
    for source in ("hf://team/model", "gs://bucket/kto", "gs://bucket/kto", "dbfs:/kto"):
        lab.client.create_model_version("kto", source)
    # what a server says that keeps artifacts itself
    server.execute("UPDATE model_versions SET source = 'mlflow-artifacts:/1/run/artifacts/kto' WHERE version = 5")
    listed = lab.registry.registered()
    assert [one.name for one in listed.checkpoints] == ["kto/v1"]
    assert sorted(listed.skipped) == ["kto/v2", "kto/v3", "kto/v4", "kto/v5"]
    assert all(
        "is not a folder of weights; expected a folder or an s3:// URL" in why for why in listed.skipped.values()
    )


@pytest.fixture
def logged(lab):
    """A logged model whose artifacts are a checkpoint: its id and its folder."""
    run = lab.client.create_run("0")
    model = lab.client.create_logged_model("0", name="kto", source_run_id=run.info.run_id)
    folder = make_checkpoint(Path(model.artifact_location.removeprefix("file://")))
    lab.client.finalize_logged_model(model.model_id, "READY")
    return model.model_id, str(folder)


def register_logged(lab, name, model):
    lab.client.create_registered_model(name)
    return lab.client.create_model_version(name, f"models:/{model}", model_id=model)


def test_a_logged_model_is_found_in_its_artifacts(lab, logged):
    model, folder = logged
    assert register_logged(lab, "kto", model).source == f"models:/{model}"
    assert lab.registry.get("kto/v1").location == folder
    listed = lab.registry.registered()
    assert [(one.name, one.location) for one in listed.checkpoints] == [("kto/v1", folder)]
    assert listed.skipped == {}


def test_copies_have_the_weights_of_the_original_even_when_it_is_deleted(lab, logged):
    model, folder = logged
    register_logged(lab, "kto", model)
    first = lab.client.copy_model_version("models:/kto/1", "staging")
    second = lab.client.copy_model_version("models:/staging/1", "prod")
    assert (first.source, second.source) == ("models:/kto/1", "models:/staging/1")
    lab.add("dpo")
    lab.client.copy_model_version("models:/dpo/1", "prod")
    lab.client.delete_registered_model("kto")
    listed = lab.registry.registered()
    assert listed.skipped == {}
    assert {one.name: one.location for one in listed.checkpoints} == {
        "dpo/v1": lab.folder("dpo"),
        "prod/v1": folder,
        "prod/v2": lab.folder("dpo"),
        "staging/v1": folder,
    }


def test_a_server_that_has_recorded_no_location_is_asked_for_each_source(lab, server, logged):
    model, folder = logged
    register_logged(lab, "kto", model)
    lab.client.copy_model_version("models:/kto/1", "staging")
    lab.client.copy_model_version("models:/staging/1", "prod")
    server.execute("UPDATE model_versions SET storage_location = NULL")
    assert lab.registry.get("prod/v1").location == folder
    lab.client.delete_registered_model("kto")
    listed = lab.registry.registered()
    assert listed.checkpoints == []
    chain = "models:/prod/1 -> models:/staging/1 -> models:/kto/1"
    assert f"source models:/kto/1 is unknown to MLflow ({chain})" in listed.skipped["prod/v1"]


def test_a_logged_model_that_is_deleted_costs_its_own_version_only(lab, server, logged):
    model, _ = logged
    register_logged(lab, "kto", model)
    lab.add("dpo")
    server.execute("UPDATE model_versions SET storage_location = NULL")
    lab.client.delete_logged_model(model)
    listed = lab.registry.registered()
    assert [one.name for one in listed.checkpoints] == ["dpo/v1"]
    assert f"source models:/{model} is unknown to MLflow" in listed.skipped["kto/v1"]


def test_copies_of_each_other_are_named(lab, server, logged):
    for name in ("a", "b"):
        register_logged(lab, name, logged[0])
    lab.add("kto")
    change = "UPDATE model_versions SET source = ?, storage_location = NULL WHERE name = ?"
    server.execute(change, "models:/b/1", "a")
    server.execute(change, "models:/a/1", "b")
    listed = lab.registry.registered()
    assert [one.name for one in listed.checkpoints] == ["kto/v1"]
    assert "form a cycle (models:/a/1 -> models:/b/1 -> models:/a/1)" in listed.skipped["a/v1"]
    assert "form a cycle (models:/b/1 -> models:/a/1 -> models:/b/1)" in listed.skipped["b/v1"]


def test_a_version_that_is_not_ready_does_not_count(lab, server):
    lab.add("kto")
    server.execute("UPDATE model_versions SET status = 'PENDING_REGISTRATION'")
    assert "is PENDING_REGISTRATION in MLflow; expected READY" in lab.registry.registered().skipped["kto/v1"]
    with pytest.raises(BadInput, match="PENDING_REGISTRATION"):
        lab.registry.get("kto/v1")


def test_a_run_that_is_purged_costs_its_own_version_only(lab, server):
    lab.add("gone")
    lab.add("kto")
    server.execute("DELETE FROM runs WHERE run_uuid = ?", lab.runs["gone"].info.run_id)
    listed = lab.registry.registered()
    assert [one.name for one in listed.checkpoints] == ["kto/v1"]
    assert "belongs to a run that was deleted" in listed.skipped["gone/v1"]


def test_a_model_whose_name_is_unsafe_is_told(lab):
    assert lab.add("my;model") == "my;model/v1"
    assert "expected up to four parts joined by" in lab.registry.registered().skipped["my;model/v1"]


def test_prompts_are_no_checkpoints(lab):
    lab.client.register_prompt("greeting", "Hello {{name}}")
    assert lab.registry.registered() == ([], {})


@pytest.fixture
def searches(monkeypatch):
    """The options of each search for versions from now on."""
    from mlflow import MlflowClient

    asked = []
    real = MlflowClient.search_model_versions
    monkeypatch.setattr(
        MlflowClient, "search_model_versions", lambda self, **options: asked.append(options) or real(self, **options)
    )
    return asked


def test_each_page_is_asked_for_once(lab, searches, monkeypatch):
    monkeypatch.setattr("halos_eval.checkpoints.mlflow.PAGE", 25)
    lab.add("kto")
    for _ in range(99):
        lab.version("kto")
    listed = lab.registry.registered()
    assert [one.name for one in listed.checkpoints] == [f"kto/v{number}" for number in range(1, 101)]
    assert len(searches) == 4
    newest = listed.checkpoints[-3:]
    assert lab.registry.registered(newest[0].registered).checkpoints == newest
    assert len(searches) == 5  # older pages are not asked for


def test_weights_in_object_storage(lab, s3, run):
    for name, content in lab.contents(halos_eval_yaml="tags: {method: kto}").items():
        (s3.folder / "kto").mkdir(exist_ok=True)
        (s3.folder / "kto" / name).write_bytes(content)
    lab.client.create_registered_model("kto")
    lab.client.create_model_version("kto", f"{s3.bucket}/kto")
    done = run("airflow", "checkpoints", "--json", env=s3.environment | place(lab.server))
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["checkpoints"]
    assert (found["name"], found["location"]) == ("kto/v1", f"{s3.bucket}/kto")
    assert found["metadata"]["tags"] == {"method": "kto"}
    planned = run("airflow", "plan", "demo", "kto/v1", env=s3.environment | place(lab.server))
    assert planned.returncode == 3
    assert f"{s3.bucket}/kto is not known: `halos-eval fetch` copies it and computes its digest" in planned.stderr


def place(server):
    """The setting that means this server."""
    return {"HALOS_EVAL_CHECKPOINTS": f"mlflow+{server.url}"}


def test_the_planners_environment_has_what_it_takes(lab, run):
    """The planner has only MLflow's client, not the rest of it."""
    name = lab.add("kto", "tags: {method: kto}")
    done = run("airflow", "checkpoints", env=place(lab.server) | {"COLUMNS": "120"})
    assert done.returncode == 0, done.stderr
    assert name in done.stdout
    assert "method: kto" in done.stdout
    planned = run("airflow", "plan", "demo", name, env=place(lab.server) | {"COLUMNS": "120"})
    assert planned.returncode == 0, planned.stderr
    assert f"demo on {name}" in planned.stdout


def test_a_password_is_taken_from_the_environment_and_never_shown(lab, run):
    secret = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "never-to-be-shown"}
    done = run("airflow", "checkpoints", env=place(lab.server) | secret)
    assert done.returncode == 0, done.stderr
    lab.server.kill()
    try:
        done = run("airflow", "checkpoints", env=place(lab.server) | secret)
        assert done.returncode == 3
        assert "never-to-be-shown" not in done.stdout + done.stderr
    finally:
        lab.server.start()


def expect_no_answer(call):
    with pytest.raises(DataUnavailable) as caught:
        call()
    assert "If it requires authentication, check MLFLOW_TRACKING_TOKEN" in str(caught.value)
    return str(caught.value)


def test_a_server_that_is_not_there():
    registry = MlflowRegistry(f"mlflow+http://127.0.0.1:{free_port()}")
    for call in (registry.registered, lambda: registry.get("kto/v1")):
        assert "Connection refused" in expect_no_answer(call)


def test_a_server_that_hangs(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        registry = MlflowRegistry(f"mlflow+http://127.0.0.1:{silent.getsockname()[1]}")
        assert "timed out" in expect_no_answer(registry.registered)
        assert connections(silent) == TRIES


def connections(listener):
    """How many connections nobody has accepted."""
    listener.setblocking(False)
    number = 0
    with suppress(BlockingIOError):
        while True:
            listener.accept()[0].close()
            number += 1
    return number


@contextmanager
def another_server(status, body):
    """Something else that answers on the port: its address, and the requests that it has got."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"mlflow+http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>hello</html>"), (404, b"none"), (403, b"no"), (401, b"who"), (503, b"")]
)
def test_a_server_that_is_none_of_mlflows_or_refuses(status, body):
    with another_server(status, body) as (address, requests):
        for call in (MlflowRegistry(address).registered, lambda: MlflowRegistry(address).get("kto/v1")):
            expect_no_answer(call)
        assert len(requests) == 2 * (TRIES if status == 503 else 1)


def test_a_server_that_dies_in_the_middle(lab, monkeypatch):
    """It answers the search, and is dead when the runs are asked for: no half a list, and the next try has it all."""
    lab.add("kto")
    lab.add("dpo")
    registry = lab.registry
    look = MlflowRegistry._look
    monkeypatch.setattr(MlflowRegistry, "_look", lambda self, *arguments: lab.server.kill() or look(self, *arguments))
    try:
        assert "Connection refused" in expect_no_answer(registry.registered)
    finally:
        monkeypatch.undo()
        lab.server.start()
    assert {one.name for one in lab.registry.registered().checkpoints} == {"kto/v1", "dpo/v1"}

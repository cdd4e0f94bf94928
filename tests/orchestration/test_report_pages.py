"""The report in Airflow's API server: who may read it, and what is served. Airflow's own dependency decides."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from airflow.api_fastapi.common.db.common import _get_session
from airflow.api_fastapi.core_api import security
from fastapi import FastAPI
from fastapi.testclient import TestClient

from halos_eval.orchestration import report_pages
from halos_eval.orchestration.report_views import PREFIX
from tests.conftest import ROOT


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store with a report of two pages."""
    folder = tmp_path / "reports" / "halos"
    for path in ("index.html", "checkpoints/exp__kto.html", "rows.json.gz", "checkpoints/claims/x.json"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"content of {path}")
    (tmp_path / "secret.html").write_text("secret")
    monkeypatch.setenv("HALOS_EVAL_STORE", str(tmp_path))
    return tmp_path


class Runs:
    """Stands for the session of Airflow's database, with one run."""

    def __init__(self, conf):
        self.conf = conf

    def query(self, _):
        return self

    def filter(self, *_):
        return self

    def one_or_none(self):
        return self.conf and SimpleNamespace(conf=self.conf)


@pytest.fixture
def client(monkeypatch):
    """``client(user, allowed, conf)``: a browser of the app as Airflow mounts it; no user is an anonymous one."""

    def client(user=object(), allowed=True, conf=None):  # noqa: B008
        manager = SimpleNamespace(
            is_authorized_dag=lambda **asked: allowed and asked["details"].id == report_pages.DAG,
            serialize_user=lambda _: {"sub": "7"},
            deserialize_user=lambda found: SimpleNamespace(**found),
        )
        for module in (security, report_pages):
            monkeypatch.setattr(module, "get_auth_manager", lambda: manager)
        monkeypatch.setattr(security.DagModel, "get_team_name", lambda _: None)
        app, airflow = report_pages.app(), FastAPI()
        if user:
            app.dependency_overrides[security.get_user] = lambda: user
        app.dependency_overrides[_get_session] = lambda: Runs(conf)
        airflow.mount(PREFIX, app)
        return TestClient(airflow, follow_redirects=False)

    return client


def test_users_who_may_read_the_dag_get_the_pages(store, client):
    reply = client().get("/halos-eval/halos/index.html")
    assert (reply.status_code, reply.text) == (200, "content of index.html")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    policy = reply.headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts allow-downloads;")
    assert "allow-same-origin" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["", "halos/index.html", "runs/evaluate_checkpoint/r", "openapi.json", "docs"])
def test_others_get_nothing(store, client, path):
    assert client(user=None).get(f"/halos-eval/{path}").status_code in {401, 404}
    assert client(allowed=False).get(f"/halos-eval/{path}").status_code in {403, 404}


def test_anonymous_users_get_401_and_forbidden_ones_403(store, client):
    assert client(user=None).get("/halos-eval/halos/index.html").status_code == 401
    assert client(allowed=False).get("/halos-eval/halos/index.html").status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "../secret.html",
        "..%2f..%2fsecret.html",
        "checkpoints/..%2f..%2f..%2fsecret.html",
        "%2e%2e/%2e%2e/secret.html",
        "rows.json.gz",
        "checkpoints/claims/x.json",
        "checkpoints/.hidden.html",
        "checkpoints/a%00.html",
        "/etc/passwd",
        "checkpoints/a/b/c.html",
        "none.html",
    ],
)
def test_nothing_else_is_served(store, client, path):
    reply = client().get(f"/halos-eval/halos/{path}")
    assert reply.status_code == 404
    assert "secret" not in reply.text.replace("secret.html", "")


def test_links_out_of_the_store_are_not_followed(store, client):
    (store / "reports" / "halos" / "checkpoints" / "b.html").symlink_to(store / "secret.html")
    assert client().get("/halos-eval/halos/checkpoints/b.html").status_code == 404


def test_the_entry_shows_the_only_suite_or_a_list(store, client):
    reply = client().get("/halos-eval/")
    assert reply.status_code == 307
    assert re.fullmatch(r"~/[\w=-]+/halos/index.html", reply.headers["location"])
    (store / "reports" / "quick").mkdir()
    reply = client().get("/halos-eval/")
    (href,) = re.findall(r'href="(~/[\w%-]+/quick/index.html)"', reply.text)
    (store / "reports" / "quick" / "index.html").write_text("content of quick")
    assert client().get(f"/halos-eval/{href}").text == "content of quick"


@pytest.fixture
def linked(store, client):
    """The path to which the entry leads, with the pass of a user; it is opened without the user's cookie."""
    return "/halos-eval/" + client().get("/halos-eval/").headers["location"]


def test_links_of_a_frame_work_without_the_cookie(linked, client):
    frame = client(user=None)
    for name in ("index.html", "checkpoints/exp__kto.html"):
        reply = frame.get(linked.replace("index.html", name))
        assert (reply.status_code, reply.text) == (200, f"content of {name}")
        assert reply.headers["content-security-policy"].startswith("sandbox ")
    assert frame.get("/halos-eval/halos/index.html").status_code == 401


def test_a_pass_opens_only_pages_and_only_while_the_user_may_read_them(linked, client, monkeypatch):
    assert client(allowed=False).get(linked).status_code == 403
    assert client().get(linked.replace("index.html", "rows.json.gz")).status_code == 404
    assert client().get(linked.replace("~/", "~/x")).status_code == 401
    monkeypatch.setattr(report_pages, "PASS_SECONDS", -1)
    reply = client().get(linked)
    assert reply.status_code == 401
    assert "Load the page again" in reply.text


def test_without_a_report_the_page_says_so(tmp_path, client, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_STORE", str(tmp_path))
    reply = client().get("/halos-eval/")
    assert reply.status_code == 404
    assert "No report yet" in reply.text


def test_a_run_leads_to_the_page_of_its_checkpoint(store, client):
    conf = {"checkpoint": "exp/kto", "suite": "halos"}
    reply = client(conf=conf).get("/halos-eval/runs/evaluate_checkpoint/manual__2026-01-01T00%3A00%3A00%2B00%3A00")
    assert reply.status_code == 307
    assert re.fullmatch(r"/halos-eval/~/[\w=-]+/halos/checkpoints/exp__kto.html", reply.headers["location"])
    assert client().get(reply.headers["location"]).text == "content of checkpoints/exp__kto.html"


@pytest.mark.parametrize(
    ("dag", "conf"),
    [
        ("nightly_evaluation", {"checkpoint": "exp/kto", "suite": "halos"}),
        ("evaluate_checkpoint", None),
        ("evaluate_checkpoint", {"checkpoint": "../x", "suite": "halos"}),
        ("evaluate_checkpoint", {"checkpoint": "exp/kto", "suite": "../.."}),
        ("evaluate_checkpoint", {"checkpoint": "exp/new", "suite": "halos"}),
    ],
)
def test_a_run_without_results_has_a_page_that_says_so(store, client, dag, conf):
    reply = client(conf=conf).get(f"/halos-eval/runs/{dag}/r")
    assert reply.status_code == 404
    assert "No results" in reply.text


def test_a_store_that_is_down_has_a_page_that_says_so(client, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_STORE", "ftp://nowhere")
    for path in ("", "halos/index.html"):
        reply = client().get(f"/halos-eval/{path}")
        assert reply.status_code == 503
        assert "not available" in reply.text
        assert "ftp" not in reply.text


def test_airflow_finds_the_plugin(store, client):
    client()
    scope = {}
    exec((ROOT / "plugins" / "halos_eval_plugin.py").read_text(), scope)
    plugin = scope["HalosEvalPlugin"]
    assert [view["destination"] for view in plugin.external_views] == ["nav", "dag_run"]
    (mounted,) = plugin.fastapi_apps
    airflow = FastAPI()
    airflow.mount(mounted["url_prefix"], mounted["app"])
    assert TestClient(airflow).get(plugin.external_views[0]["href"]).status_code == 401

"""The report in Airflow's UI, with FAB's users: who sees the entry, who gets the pages, and what the frame can do."""

from __future__ import annotations

import json
import os
import subprocess
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.airflow_server import ROOT, airflow_environment, free_port, wait_for
from tests.browser import chromium
from tests.reports.pages.material import SUITE, made_store

pytestmark = pytest.mark.real
FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
VIEWER, GRANTED, NOBODY = "viewer", "granted", "nobody"


@contextmanager
def api_server(environment, port):
    """Airflow's API server until the context ends."""
    log = ROOT / environment["AIRFLOW_HOME"] / "api-server.log"
    with log.open("w") as file:
        words = [ROOT / ".venv" / "airflow" / "bin" / "airflow", "api-server"]
        process = subprocess.Popen(words, env=environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: status(f"http://127.0.0.1:{port}/api/v2/version") == 200, 180, log.read_text)
        yield
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def status(url, token=None):
    """The status of an answer; 0 while nobody listens."""
    try:
        return answer(url, token)[0]
    except OSError:
        return 0


def answer(url, token=None):
    """Status, headers and content of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(url, headers=headers), timeout=60) as reply:
            return reply.status, reply.headers, reply.read()
    except HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


def log_in(url, name):
    """A token of the user."""
    body = json.dumps({"username": name, "password": name}).encode()
    request = Request(f"{url}/auth/token", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as reply:
        return json.load(reply)["access_token"]


@pytest.fixture(scope="module")
def server(environments, tmp_path_factory):
    """Airflow with FAB, a report of 2,000 checkpoints, and a user of each kind: its URL and their tokens."""
    folder, port = tmp_path_factory.mktemp("report"), free_port()
    made_store(folder / "store", 2000)
    environment = airflow_environment(
        environments, folder, port,
        AIRFLOW__CORE__AUTH_MANAGER=FAB,
        AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"),
        AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS="False",
        AIRFLOW__API_AUTH__JWT_SECRET="a-secret-of-the-tests-that-is-long-enough-for-a-signature-of-512-bits",
        HALOS_EVAL_STORE=f"file://{folder / 'store'}",
    )  # fmt: skip
    programs = ROOT / ".venv" / "airflow" / "bin"
    users = [f"{VIEWER}:Viewer", f"{GRANTED}:Viewer+plugins", f"{NOBODY}:Nobody"]
    for words in (["airflow", "db", "migrate"], ["python", ROOT / "tests" / "real" / "report_users.py", *users]):
        command = [programs / words[0], *words[1:]]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    with api_server(environment, port):
        url = f"http://127.0.0.1:{port}"
        yield url, {name: log_in(url, name) for name in (VIEWER, GRANTED, NOBODY)}


def test_who_gets_the_pages(server):
    url, tokens = server
    page = f"{url}/halos-eval/{SUITE}/index.html"
    assert status(page) == 401
    assert status(page, tokens[NOBODY]) == 403
    assert status(page, "not-a-token") in {401, 403}
    code, headers, content = answer(page, tokens[VIEWER])
    assert code == 200
    assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts allow-downloads;")
    assert b"Leaderboard of" in content


def test_who_sees_the_entry(server):
    url, tokens = server
    assert status(f"{url}/api/v2/plugins", tokens[VIEWER]) == 403
    _, _, content = answer(f"{url}/api/v2/plugins", tokens[GRANTED])
    views = [view["name"] for plugin in json.loads(content)["plugins"] for view in plugin["external_views"]]
    assert views == ["Leaderboard", "Results"]


@pytest.mark.parametrize(
    "path", ["../plans", "..%2f..%2fplans/s/a.json", "rows.json.gz", "checkpoints/../rows.json.gz"]
)
def test_nothing_else_of_the_store_is_served(server, path):
    url, tokens = server
    assert status(f"{url}/halos-eval/{SUITE}/{path}", tokens[VIEWER]) == 404


def test_the_page_in_the_frame_has_no_access_to_airflow(server):
    url, tokens = server
    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        context.add_cookies([{"name": "_token", "value": tokens[GRANTED], "url": url}])
        page = context.new_page()
        page.goto(f"{url}/plugin/leaderboard")
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_selector("html[data-ready]")
        assert frame.evaluate("self.origin") == "null"
        frame.click("td.name a")
        frame.wait_for_selector("h2:has-text('Scores')")
        if folder := os.environ.get("HALOS_EVAL_SCREENSHOTS"):
            page.go_back()
            frame.wait_for_selector("html[data-ready]")
            page.screenshot(path=f"{folder}/airflow.png")

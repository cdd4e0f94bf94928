"""The report in Airflow's UI, in a browser, with FAB's users: who sees the entry, who gets the pages, and the frame.

Airflow's API server runs alone: nothing is evaluated, and the report is made.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from halos_eval.reports.pages.write import overview, write_checkpoints
from halos_eval.storage import layout
from tests.airflow_server import ROOT, airflow_environment, free_port, wait_for
from tests.browser import chromium
from tests.reports.pages.material import SUITE, row

pytestmark = [pytest.mark.real, pytest.mark.slow]

FAB = "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"
ROLES = {"viewer": "Viewer", "user": "User", "nobody": "Public"}  # each user's password is the name
# `airflow users create` does the same in a process for each.
MAKE_USERS = """
import json, sys
from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
with get_application_builder() as builder:
    manager = builder.sm
    manager.sync_roles()
    for name, role in json.loads(sys.argv[1]).items():
        assert manager.add_user(name, name, name, f"{name}@example.org", manager.find_role(role), password=name)
"""
CHECKPOINT = row(1).checkpoint
PAGE = f"/halos-eval/{SUITE}/index.html"


class Server:
    """Airflow's API server with users of FAB."""

    def __init__(self, url, environment):
        self.url, self.environment = url, environment

    def airflow(self, *words):
        program = ROOT / ".venv" / "airflow" / "bin" / "airflow"
        subprocess.run([program, *words], env=self.environment, check=True, capture_output=True, timeout=300)

    def call(self, path, user=None, body=None):
        """Status, headers and content of the answer to a user; without one to an anonymous one."""
        headers = {"Authorization": f"Bearer {self.token(user)}"} if user else {}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urlopen(Request(self.url + path, data, headers | {"Content-Type": "application/json"})) as reply:
                return reply.status, reply.headers, reply.read()
        except HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def token(self, user):
        body = {"username": user, "password": user}
        return json.loads(self.call("/auth/token", body=body)[2])["access_token"]

    @contextmanager
    def page(self, user=None):
        """A page of a browser in which a user has logged in by Airflow's form."""
        with chromium() as browser:
            page = browser.new_context(viewport={"width": 1280, "height": 800}).new_page()
            page.goto(self.url)
            if user:
                page.fill("#username", user)
                page.fill("#password", user)
                page.click("[type=submit]")
                page.wait_for_selector("#root nav, #root a")
            yield page


@pytest.fixture(scope="module")
def server(environments, tmp_path_factory):
    """The API server with a report of 40 checkpoints, and a user of each role. No role has the grant yet."""
    folder, port = tmp_path_factory.mktemp("report"), free_port()
    store = f"file://{folder / 'store'}"
    rows = [row(number) for number in range(40)]
    report = Path(layout.report_folder(str(folder / "store"), SUITE))
    report.mkdir(parents=True)
    for path, content in overview(SUITE, rows).items():
        (report / path).write_bytes(content)
    write_checkpoints(str(folder / "store"), SUITE, rows)
    environment = airflow_environment(
        environments, folder, port,
        AIRFLOW__CORE__AUTH_MANAGER=FAB,
        AIRFLOW__CORE__PLUGINS_FOLDER=str(ROOT / "plugins"),
        AIRFLOW__FAB__CACHE_TTL="1",  # seconds until it looks for a user's permissions again
        AIRFLOW__API__WORKERS="1",
        AIRFLOW__API_AUTH__JWT_SECRET="a-secret-of-the-tests-that-is-long-enough-for-a-signature-of-512-bits",
        HALOS_EVAL_STORE=store,
    )  # fmt: skip
    found = Server(f"http://127.0.0.1:{port}", environment)
    found.airflow("db", "migrate")
    python = ROOT / ".venv" / "airflow" / "bin" / "python"
    subprocess.run([python, "-c", MAKE_USERS, json.dumps(ROLES)], env=environment, check=True, capture_output=True)
    found.airflow("dags", "reserialize")
    with api_server(found, folder):
        yield found


@contextmanager
def api_server(server, folder):
    """Airflow's API server until the context ends."""
    log = folder / "api-server.log"
    with log.open("w") as file:
        words = ["setpriv", "--pdeathsig", "TERM", "--", ROOT / ".venv" / "airflow" / "bin" / "airflow", "api-server"]
        process = subprocess.Popen(words, env=server.environment, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: answers(server, process, log), 180, log.read_text)
        yield
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=60)


def answers(server, process, log):
    assert process.poll() is None, log.read_text()[-3000:]
    try:
        return server.call("/api/v2/version")[0] == 200
    except OSError:
        return False


def documented_grant():
    """The words after `airflow` of the command in the documentation."""
    text = (ROOT / "docs" / "install-cluster.md").read_text()
    (line,) = re.findall(r"-- airflow (roles add-perms .*)", text)
    return shlex.split(line)


def screenshot(page, name):
    if folder := os.environ.get("HALOS_EVAL_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/airflow-{name}.png")


def test_who_gets_the_page(server):
    assert server.call(PAGE)[0] == 401
    assert server.call(PAGE, "nobody")[0] == 403
    for user in ("viewer", "user"):
        code, headers, content = server.call(PAGE, user)
        assert code == 200
        assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts allow-downloads;")
        assert b"Leaderboard of" in content


def test_an_anonymous_browser_sees_only_the_login(server):
    with server.page() as page:
        page.wait_for_selector("#username")
        assert page.goto(server.url + PAGE).status == 401
        assert page.get_by_text("Leaderboard").count() == 0


def test_the_entry_needs_the_documented_grant(server):
    with server.page("viewer") as page:
        page.wait_for_selector("text=Dags")
        assert page.get_by_text("Leaderboard").count() == 0
        screenshot(page, "without-grant")
        server.airflow(*documented_grant())
        page.wait_for_timeout(1500)  # the time of the cache of permissions, above
        page.reload()
        page.get_by_text("Leaderboard").first.click()
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_selector("html[data-ready]")
        screenshot(page, "leaderboard")
        assert frame.evaluate("self.origin") == "null"  # no access to Airflow's cookies
        frame.fill("#name", CHECKPOINT)
        frame.click("td.name a")
        frame.wait_for_selector("h2:has-text('Scores')")
        screenshot(page, "checkpoint")


def test_a_run_links_to_the_page_of_its_checkpoint(server):
    conf = {"checkpoint": CHECKPOINT, "suite": SUITE}
    server.airflow(*documented_grant())
    code, _, content = server.call(
        "/api/v2/dags/evaluate_checkpoint/dagRuns", "user", {"logical_date": None, "conf": conf}
    )
    assert code == 200, content
    run = json.loads(content)["dag_run_id"]
    with server.page("user") as page:
        page.goto(f"{server.url}/dags/evaluate_checkpoint/runs/{run}")
        page.get_by_text("Results", exact=True).first.click()
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_selector(f"h1:has-text('{CHECKPOINT}')")
        screenshot(page, "run")

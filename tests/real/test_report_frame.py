"""The report in a frame as Airflow shows it, in Chromium: the cookie is SameSite=Lax, and links in the frame work."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import uvicorn
from airflow.api_fastapi.core_api import security
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse

from halos_eval.orchestration import report_pages
from halos_eval.orchestration.report_views import PREFIX
from halos_eval.reports.pages.write import overview, write_checkpoints
from halos_eval.storage import filesystem, layout
from tests.airflow_server import free_port, wait_for
from tests.browser import chromium
from tests.reports.pages.material import SUITE, row

pytestmark = pytest.mark.real

CHECKPOINT = row(1).checkpoint
# As Airflow 3.3 writes it for an entry of the navigation and for a tab of a run.
FRAME = "<iframe sandbox='allow-scripts allow-same-origin allow-forms allow-downloads' src='{}/' width=1200 height=700>"


def user_of(request: Request):
    """Stands for Airflow's check of its cookie."""
    if request.cookies.get("_token") != "one":
        raise HTTPException(401)
    return object()


@contextmanager
def served(app):
    """Serve an app on this machine; gives its URL."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started, 30)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def airflow(tmp_path, monkeypatch):
    """The URL of a page with the frame, in an app that has the report's app as Airflow has it."""
    rows = [row(number) for number in range(40)]
    for path, content in overview(SUITE, rows).items():
        filesystem.write_bytes(filesystem.join(layout.report_folder(str(tmp_path), SUITE), path), content)
    write_checkpoints(str(tmp_path), SUITE, rows[:2])
    monkeypatch.setenv("HALOS_EVAL_STORE", str(tmp_path))
    manager = SimpleNamespace(
        is_authorized_dag=lambda **_: True, serialize_user=lambda _: {"sub": "1"}, deserialize_user=lambda _: object()
    )
    for module in (security, report_pages):
        monkeypatch.setattr(module, "get_auth_manager", lambda: manager)
    monkeypatch.setattr(security.DagModel, "get_team_name", lambda _: None)
    pages, app = report_pages.app(), FastAPI()
    pages.dependency_overrides[security.get_user] = user_of
    app.mount(PREFIX, pages)

    @app.get("/")
    def parent():
        reply = HTMLResponse(FRAME.format(PREFIX))
        reply.set_cookie("_token", "one", samesite="lax")
        return reply

    with served(app) as url:
        yield url


def test_links_work_although_the_frame_cannot_reach_airflow(airflow):
    with chromium() as browser:
        page = browser.new_page()
        page.goto(airflow)
        frame = page.wait_for_selector("iframe").content_frame()
        frame.wait_for_selector("html[data-ready]")
        assert frame.evaluate("self.origin") == "null"
        frame.fill("#name", CHECKPOINT)
        frame.click("td.name a")
        frame.wait_for_selector(f"h1:has-text('{CHECKPOINT}')")
        frame.click("nav a:has-text('Charts')")
        frame.wait_for_selector("h2:has-text('History')")
        assert frame.evaluate("self.origin") == "null"

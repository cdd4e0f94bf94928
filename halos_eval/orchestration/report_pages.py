"""Serve the report's pages from the store in Airflow's API server, to users who may read evaluate_checkpoint.

Airflow shows them in a frame of its own origin. Their header ``sandbox`` gives them another one, so that a script in a
page could neither read Airflow's cookies nor call its API. So a link in the frame is followed without the cookie (it is
SameSite=Lax). Therefore the addresses of the pages in a frame have a pass: the user, encrypted, because some auth
managers put tokens of their own into a user. It opens only these pages, and each request asks Airflow whether this user
still may read them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Callable
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, requires_access_dag
from airflow.configuration import conf
from airflow.models.dagrun import DagRun
from cryptography.fernet import Fernet, InvalidToken
from fastapi import Depends, FastAPI, Request
from fastapi.responses import RedirectResponse, Response

from halos_eval.config.settings import Settings
from halos_eval.errors import BadInput, HalosEvalError
from halos_eval.reports.pages import document
from halos_eval.reports.pages.links import INDEX, checkpoint_page
from halos_eval.storage import filesystem, layout

log = logging.getLogger(__name__)

DAG = "evaluate_checkpoint"
ALLOWED = requires_access_dag("GET", DagAccessEntity.RUN, DAG)
"""Airflow's own check: 401 or 403 unless a user may read runs of evaluate_checkpoint."""
PASS_SECONDS = 8 * 3600
"""How long the links of a page work; after that it has to be loaded again."""
SUITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_PART = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._@-]{0,300}"
PAGE = re.compile(rf"(index|charts)\.html|summary\.csv|(checkpoints|samples|pairs)/({_PART}/)?{_PART}\.html")
"""Files of a suite's report that are served; everything else in the store is not."""
HEADERS = {
    "Content-Security-Policy": "sandbox allow-scripts allow-downloads; frame-ancestors 'self'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "private, no-cache",
}


def app() -> FastAPI:
    """Return the app. Each request needs a user who may read runs of evaluate_checkpoint: else 401 or 403."""
    allowed = [Depends(ALLOWED)]
    pages = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    pages.get("/", dependencies=allowed)(_suites)
    pages.get("/runs/{dag_id}/{run_id:path}", dependencies=allowed)(_run)
    pages.get("/~/{token}/{suite}/{path:path}")(_page_with_pass)
    pages.get("/{suite}/{path:path}", dependencies=allowed)(_page)
    return pages


def _passes() -> Fernet:
    key = hashlib.sha256(f"halos-eval report {conf.get('api', 'secret_key')}".encode()).digest()
    return Fernet(base64.urlsafe_b64encode(key))


def _with_pass(user: GetUserDep, path: str) -> str:
    """Return the path below the app at which a page can be opened from a frame."""
    own = json.dumps(get_auth_manager().serialize_user(user)).encode()
    return f"~/{_passes().encrypt(own).decode()}/{path}"


def _page_with_pass(request: Request, token: str, suite: str, path: str) -> Response:
    """Show one page to the user whose pass is in its address."""
    try:
        own = _passes().decrypt(token.encode(), ttl=PASS_SECONDS)
        user = get_auth_manager().deserialize_user(json.loads(own))
    except (InvalidToken, ValueError, LookupError):
        return _message(401, "Load the page again", "Its links have expired. Select Leaderboard, or reload the page.")
    ALLOWED(request, user)
    return _page(suite, path)


def _suites(user: GetUserDep) -> Response:
    """Show the suites with a report; if there is one, show its leaderboard."""

    def found() -> Response:
        folder = filesystem.join(Settings().store, "reports")
        names = sorted(name for name, entry in filesystem.entries(folder).items() if entry.is_folder)
        names = [name for name in names if SUITE.fullmatch(name)]
        if len(names) == 1:
            return RedirectResponse(_with_pass(user, f"{names[0]}/{INDEX}"), headers=HEADERS)
        if not names:
            return _message(404, "No report yet", "It is written when the first evaluation of a suite ends.")
        return _message(
            200, "Leaderboards", "Select a suite.", {name: _with_pass(user, f"{name}/{INDEX}") for name in names}
        )

    return _answered(found)


def _page(suite: str, path: str) -> Response:
    """Show one page of a suite's report."""

    def found() -> Response:
        if not (SUITE.fullmatch(suite) and PAGE.fullmatch(path)):
            return _message(404, "Page not found", "Reports have no page of this name.")
        root = Settings().store
        url = filesystem.join(layout.report_folder(root, suite), path)
        if not filesystem.inside(root, url):
            return _message(404, "Page not found", "A folder of the report is a link, which is not followed.")
        try:
            content = filesystem.read_bytes(url)
        except FileNotFoundError:
            return _message(404, "Page not found", "Nothing has been evaluated yet, or the page was removed.")
        kind = "text/csv" if path.endswith(".csv") else "text/html"
        return Response(content, media_type=f"{kind}; charset=utf-8", headers=HEADERS)

    return _answered(found)


def _run(request: Request, dag_id: str, run_id: str, session: SessionDep, user: GetUserDep) -> Response:
    """Show the page of the checkpoint that a run evaluates."""
    if dag_id != DAG:
        return _message(404, "No results", f"Only runs of {DAG} have results.")
    run = session.query(DagRun).filter(DagRun.dag_id == DAG, DagRun.run_id == run_id).one_or_none()
    params = (run.conf or {}) if run else {}
    checkpoint, suite = str(params.get("checkpoint", "")), str(params.get("suite", "halos"))

    def found() -> Response:
        try:
            page = checkpoint_page(checkpoint)
        except BadInput:
            return _message(404, "No results", "The run is unknown, or names no checkpoint.")
        url = filesystem.join(layout.report_folder(Settings().store, suite), page)
        if not SUITE.fullmatch(suite) or not filesystem.exists(url):
            return _message(404, "No results yet", "They are written by the task summarize.")
        path = _with_pass(user, f"{suite}/{quote(page)}")
        return RedirectResponse(f"{request.scope['root_path']}/{path}", headers=HEADERS)

    return _answered(found)


def _answered(found: Callable[[], Response]) -> Response:
    """Return what ``found`` returns, or a page that says that the store is not available; the log says why."""
    try:
        return found()
    except HalosEvalError:
        log.exception("the report cannot be read")
        words = "The store of the results is not available. The log of Airflow's API server has the reason."
        return _message(503, "Store not available", f"{words} Reload the page later.")


def _message(status: int, title: str, words: str, links: dict[str, str] | None = None) -> Response:
    content = document.render("message.html.jinja", title=title, words=words, links=links or {})
    return Response(content, status, media_type="text/html; charset=utf-8", headers=HEADERS)

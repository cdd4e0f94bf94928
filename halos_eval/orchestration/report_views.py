"""What Airflow's plugin declares. Airflow loads plugins in all of its processes, so nothing heavy is imported here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow.configuration import conf

PREFIX = "/halos-eval"


def external_views() -> list[dict[str, Any]]:
    """Return the entry in the navigation, and that of each run. The latter is shown for runs of all DAGs."""
    base = urlsplit(conf.get("api", "base_url", fallback="")).path.rstrip("/")
    return [
        {
            "name": "Leaderboard",
            "href": f"{base}{PREFIX}/",
            "destination": "nav",
            "url_route": "leaderboard",
            "nav_top_level": True,  # also beside other plugins, whose entries share a menu
        },
        {
            "name": "Results",
            "href": f"{base}{PREFIX}/runs/{{DAG_ID}}/{{RUN_ID}}",
            "destination": "dag_run",
            "url_route": "results",
        },
    ]


class ReportApp:
    """The ASGI app of the pages, which is imported at its first request: only the API server needs it."""

    @cached_property
    def _app(self) -> Callable[..., Any]:
        from halos_eval.orchestration.report_pages import app

        return app()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""
        await self._app(scope, receive, send)

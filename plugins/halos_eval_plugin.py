"""The report in Airflow's UI: "Leaderboard" in the navigation, and the results of each run of evaluate_checkpoint."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from halos_eval.orchestration.report_views import PREFIX, ReportApp, external_views


class HalosEvalPlugin(AirflowPlugin):
    """Airflow shows the external views in frames, and the app serves the pages in them."""

    name = "halos_eval"
    fastapi_apps = [{"app": ReportApp(), "url_prefix": PREFIX, "name": "halos-eval"}]  # noqa: RUF012 (Airflow's interface)
    external_views = external_views()

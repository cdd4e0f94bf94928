"""Write docs/settings.md: a table of all settings, from the fields of ``Settings`` and their docstrings.

`make docs` runs it; tests/config/test_settings_page.py fails if the page and the code differ.
"""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo

import halos_eval
from halos_eval.config.settings import Settings

PAGE = """\
# Settings

<!-- Written by `make docs` from the fields of Settings. Change the docstrings there, then run it again. -->

Each setting is an environment variable. Airflow reads them, and so does `halos-eval`. Set them for both.
Relative paths are relative to the folder in which the process starts.

| variable | default | meaning |
| --- | --- | --- |
{rows}

## Variables of other tools

| variable | read by | meaning |
| --- | --- | --- |
| `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT_URL` and the other AWS variables | every command | \
access to `s3://` |
| `HF_HOME` | `fetch` and every command with `--manifest` | folder of the cache |
| `HF_ENDPOINT` | `fetch`, and the stages where nothing was fetched | address of the hub, if it is a mirror |
| `HF_TOKEN` | `fetch`, and the stages where nothing was fetched | token for gated models and datasets |
| `OPENAI_API_KEY` | `judge` | key of the judge's endpoint |
| `OPENAI_BASE_URL` | `judge` | address of the judge's endpoint, if it is not the vendor's |
| `AZURE_OPENAI_API_KEY` | `judge` | key of a judge on Azure |
| `MLFLOW_TRACKING_TOKEN`, or `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD` | Airflow, `checkpoints`, \
`plan` | credentials for MLflow |
| `AIRFLOW_CONN_HALOS_EVAL_MESSAGE` | the task `report` | where messages go, instead of a stored Airflow connection |
"""


def settings_page() -> str:
    """Return the text of docs/settings.md."""
    return PAGE.format(rows="\n".join(_row(name, field) for name, field in Settings.model_fields.items()))


def _row(name: str, field: FieldInfo) -> str:
    description = " ".join((field.description or "").replace("``", "`").split()).replace("|", r"\|")
    default = _default(field.default)
    return f"| `HALOS_EVAL_{name.upper()}` | {default} | {description} |"


def _default(value: object) -> str:
    """Return a default as a table cell, without the paths of the machine that writes the page."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    text = str(value)
    package = Path(halos_eval.__file__).parent
    started = Path(Settings.model_fields["environments"].default).parent
    if text.startswith(str(package)):
        return f"`{Path(text).name}`, shipped with the package"
    return f"`{text.replace(str(started), '.')}`"


if __name__ == "__main__":
    import sys

    sys.stdout.write(settings_page())

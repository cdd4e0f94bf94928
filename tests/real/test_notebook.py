"""The notebook among the examples, with a real kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reports.evaluated import evaluate

__all__ = ["evaluate"]

pytestmark = [
    pytest.mark.real,
    # what Jupyter's own packages warn of
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_the_notebook_runs(root, suite, evaluate, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    suite("tasks: {demo_choice: {}, demo_cloze: {}}")
    evaluate("one", demo_choice=[1.0, 0.0, 1.0, 1.0])
    monkeypatch.setenv("HALOS_EVAL_STORE", root)
    notebook = nbformat.read(Path(__file__).parents[2] / "examples" / "results.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "data" in output
    ]
    assert len(shown) == 4
    assert "demo_cloze" in shown[2]  # the missing result, with its reason
    assert "right" in shown[3]
    assert "wrong" in shown[3]

"""A store, a database and a chart of the version before, with this version."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import re
import shutil
from pathlib import Path

import pytest
import yaml
from helm_python import Chart

from halos_eval.checkpoints.folders import FolderRegistry
from halos_eval.config.cluster import Cluster, load_cluster
from halos_eval.config.suite import load_suite
from halos_eval.planning.plan import make_plan, read_plan, save_plan
from halos_eval.planning.progress import overview
from halos_eval.reports.summarize import SummarizeConfig, summarize
from halos_eval.stages import tools
from halos_eval.storage import filesystem, layout
from halos_eval.storage.manifest import read_manifest
from halos_eval.storage.records import Record, read_model
from tests.upgrade import write

BEFORE = Path(__file__).parent / "before"
ROOT = Path(__file__).parents[2]
AIRFLOW = "3.3.2"
"""Airflow of the version before."""
VALUES = sorted((BEFORE / "chart").iterdir())


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A copy of what the version before has left, with the tools that it had."""
    home = tmp_path / "home"
    shutil.copytree(BEFORE, home)
    for path in (home / "store").rglob("*.json"):
        path.write_text(path.read_text().replace("@HOME@", str(home)))
    monkeypatch.setenv("HALOS_EVAL_SUITES", str(home / "suites"))
    used = yaml.safe_load((home / "store" / "series.json").read_text())["series"][0]["tools"]
    monkeypatch.setattr(tools, "pinned", used.__getitem__)
    return home


@pytest.fixture
def store(home):
    return str(home / "store")


def table(data):
    """The rows of a CSV by the name of the checkpoint."""
    return {row["model_name"]: row for row in csv.DictReader(io.StringIO(data))}


def test_the_table_has_the_scores_and_reasons_of_before(home, store):
    url = layout.report_url(store, "own")
    before = table(Path(url).read_text())
    summarize(SummarizeConfig(root=store, suite="own", output=url))
    after = table(Path(url).read_text())
    assert after.keys() == before.keys() == {"dpo", "team/kto"}
    for name, row in before.items():
        assert {column: after[name][column] for column in row} == row


def test_every_record_and_plan_can_be_read(store):
    records = filesystem.find(store, layout.RECORD)
    planned = [
        f"file://{job.record}" for url in filesystem.find(f"{store}/plans", ".json") for job in read_plan(url).jobs
    ]
    failed = filesystem.find(store, layout.FAILURE)
    assert failed
    assert {url for url in planned if layout.failure_beside(url) not in failed} == set(records)
    assert all(read_model(url, Record).scores or "sample" in url for url in records)
    assert [job.title for job in read_plan(layout.plan_url(store, "own", "dpo")).jobs] == [
        "sample", "judge", "demo_choice", "demo_cloze",
    ]  # fmt: skip


def test_the_manifest_can_be_read(store):
    manifest = read_manifest(layout.manifest_url(store, "own"))
    assert manifest.parts.keys() == {"alpaca_eval", "demo_choice", "demo_cloze"}


def test_this_version_can_write_what_the_next_one_is_tested_with(tmp_path, monkeypatch):
    monkeypatch.setenv("HALOS_EVAL_SUITES", "")  # restored after it
    write.main(str(tmp_path / "home"))
    files, before = (
        {path.relative_to(home).parts[:2] for path in home.rglob("*") if path.is_file() and path.parent != home}
        for home in (tmp_path / "home", BEFORE)
    )
    assert files == before


def test_only_what_had_failed_runs_again(home, store):
    registry, suite = FolderRegistry(str(home / "checkpoints"), steps=True), load_suite("own")
    wanted = {"team/kto": [], "dpo": ["demo_cloze"]}
    for name, titles in wanted.items():
        plan = make_plan(suite, registry.get(name), store, load_cluster())
        assert [job.title for job in plan.jobs if not job.done] == titles
        save_plan(plan, suite, store)
    found = overview(store, [registry.get(name) for name in wanted], load_cluster())
    assert found.unreadable == {}
    assert {name: one["own"].complete for name, one in found.progress.items()} == {"team/kto": True, "dpo": False}


def test_records_stay_as_they_are_and_plans_do_not(home, store):
    registry, suite = FolderRegistry(str(home / "checkpoints"), steps=True), load_suite("own")
    records = {url: filesystem.read_bytes(url) for url in filesystem.find(store, layout.RECORD)}
    plan = layout.plan_url(store, "own", "dpo")
    before = filesystem.read_bytes(plan)
    save_plan(make_plan(suite, registry.get("dpo"), store, load_cluster()), suite, store)
    summarize(SummarizeConfig(root=store, suite="own", output=layout.report_url(store, "own")))
    assert {url: filesystem.read_bytes(url) for url in filesystem.find(store, layout.RECORD)} == records
    assert filesystem.read_bytes(plan) != before  # as docs/upgrade.md says


def test_the_database_is_that_of_the_same_airflow():
    """The project has no tables of its own. If this fails, say in docs/upgrade.md what `airflow db migrate` does."""
    found = importlib.metadata.version("apache-airflow-core")
    text = (ROOT / "docs" / "upgrade.md").read_text()
    assert found == AIRFLOW or f"Airflow {found}" in text


@pytest.mark.parametrize("values", VALUES, ids=lambda path: path.stem)
def test_values_of_the_chart_of_before_are_still_accepted(values):
    before = yaml.safe_load(values.read_text())
    with Chart.load(ROOT / "helm" / "halos-eval") as chart:
        files = chart.render(before, name="halos-eval", namespace="evaluation")
    (text,) = (text for path, text in files.items() if "halos-eval-cluster" in text and path.endswith(".yaml")
               and "cluster.yaml:" in text)  # fmt: skip
    config = next(one for one in yaml.safe_load_all(text) if one and "cluster.yaml" in one.get("data", {}))
    cluster = Cluster.model_validate(yaml.safe_load(config["data"]["cluster.yaml"]))
    assert cluster.kubernetes.images.worker == before["kubernetes"]["images"]["worker"]


def test_a_value_that_no_chart_has_is_rejected_by_its_name():
    before = yaml.safe_load(VALUES[0].read_text()) | {"notAValue": 1}
    with (
        Chart.load(ROOT / "helm" / "halos-eval") as chart,
        pytest.raises(Exception, match=re.compile("notAValue")),
    ):
        chart.render(before, name="halos-eval", namespace="evaluation")
